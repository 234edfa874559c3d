"""Schedules after a start before which the clock, the zone or the config was another than it is now."""

from typing import Any

import msgspec
import pytest

from omnid.flow.schedules import START
from omnid.model import Schedule
from omnid.settings import Preset
from omnid.store import schedules as rows
from tests.fakes.clock import FakeClock
from tests.fakes.world import World
from tests.unit.test_schedules import EVERY, MINUTE_MS, House

pytestmark = pytest.mark.anyio

HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
YEAR_MS = 365 * DAY_MS
NIGHTLY = Schedule(cron="0 3 * * *")


@pytest.fixture
def house(world: World, clock: FakeClock) -> House:
    return House(world, clock)


async def start(house: House) -> None:
    """Ends omnid and starts it again."""
    await house.world.restart()
    house.begin()
    await house.schedules.work_off()


def move(house: House, zone: str) -> None:
    house.world.set("daemon", zone=zone)
    house.world.context.take_executors(house.world.context.executors)


async def test_times_of_a_clock_that_was_ahead_are_not_waited_for(house: House) -> None:
    house.clock.now_ms += YEAR_MS
    await house.add("nightly", NIGHTLY)
    await house.add("alarm", Schedule(on=(START,)))
    await house.world.write(lambda tx: rows.fire(tx, START))
    house.clock.now_ms -= YEAR_MS
    await start(house)
    assert [task.work.argv for task in await house.tasks()] == [("alarm",)], "an event is not lost"
    house.clock.now_ms += 2_000
    for _ in range(71):
        await house.after(60)
        await house.finish()
    assert (await house.show("nightly")).runs == 3


async def test_what_is_slept_through_after_a_clock_was_ahead_is_missed(house: House) -> None:
    house.clock.now_ms += YEAR_MS
    await house.add("nightly", NIGHTLY)
    house.clock.now_ms -= YEAR_MS
    await start(house)
    house.clock.now_ms += 2_000
    await house.after(3 * 24 * 60)
    view = await house.show("nightly")
    assert (view.runs, view.skipped) == (1, 2)


async def test_another_zone_since_the_last_start_moves_what_is_to_come(house: House) -> None:
    move(house, "UTC")
    await house.add("nightly", NIGHTLY)
    await house.schedules.work_off()
    before_ms = (await house.show("nightly")).next_at_ms
    move(house, "Asia/Taipei")
    await start(house)
    moved_ms = (await house.show("nightly")).next_at_ms
    assert before_ms is not None
    assert moved_ms is not None
    assert (moved_ms - before_ms) % DAY_MS == 16 * HOUR_MS
    house.clock.now_ms = moved_ms + HOUR_MS
    move(house, "UTC")
    await start(house)
    assert (await house.show("nightly")).runs == 1, "what was due has been missed, wherever that was"


async def test_a_start_at_which_nothing_is_another_writes_nothing(house: House) -> None:
    for name, schedule in (("nightly", NIGHTLY), ("tick", EVERY), ("alarm", Schedule(on=(START,)))):
        await house.add(name, schedule)
    before = await house.world.rows("SELECT max(seq) FROM change")
    await start(house)
    assert await house.world.rows("SELECT max(seq) FROM change") == before


async def test_a_machine_that_forgets_the_time_runs_nothing_again(house: House) -> None:
    """It starts with a clock of long ago, and learns the time later; the journal knows the earlier runs no more."""
    for name, cron in (("yearly", "@yearly"), ("nightly", NIGHTLY.cron)):
        await house.add(name, Schedule(cron=cron, zone="UTC"))
    view = await house.show("yearly")
    assert view.next_at_ms is not None
    house.clock.now_ms = view.next_at_ms
    await house.after(0)
    await house.finish()
    house.clock.now_ms += 100 * DAY_MS
    await house.after(0)
    await house.finish()
    for task in await house.tasks():
        await house.world.control(task.id, "delete")
    before = [await house.show(name) for name in ("yearly", "nightly")]
    house.clock.now_ms -= 20 * YEAR_MS
    await start(house)
    house.clock.now_ms += 20 * YEAR_MS
    await house.after(1)
    assert await house.tasks() == []
    assert [await house.show(name) for name in ("yearly", "nightly")] == before
    house.clock.now_ms -= 20 * YEAR_MS
    await start(house)
    house.clock.now_ms += 20 * YEAR_MS + 3 * DAY_MS
    await house.after(0)
    (task,) = await house.tasks()
    assert task.work.argv == ("nightly",), "what it has missed since is made up for"
    assert (await house.show("nightly")).skipped == before[1].skipped + 2


async def test_a_time_that_comes_again_ends_no_run_and_is_none_of_its_times(house: House) -> None:
    await house.add("tick", Schedule(every_s=60, times_max=4, overlap="kill"))
    for _ in range(3):
        await house.after(1)
        (command,) = await house.world.claim()
        if len(await house.tasks()) < 3:
            await house.world.finish(command, "success")
    before = await house.show("tick")
    house.clock.now_ms -= 2 * MINUTE_MS
    await start(house)
    await house.after(1)
    await house.after(1)
    assert await house.show("tick") == before
    assert [task.cancel for task in await house.tasks()] == [False, False, False]
    await house.after(1)
    assert [task.cancel for task in await house.tasks()] == [False, False, True, False]
    view = await house.show("tick")
    assert (view.runs, view.next_at_ms) == (4, None)


async def take(house: House, **preset: Any) -> None:
    """Starts omnid with the preset `backup` as it is in the config now; see `Schedules.run`."""
    made = Preset(name="backup", zone="UTC", **preset)
    house.world.context.config = msgspec.structs.replace(house.world.context.config, preset=(made,))
    await house.world.restart()
    house.begin()
    await house.schedules._take_presets()
    await house.schedules.work_off()


NIGHT = {"cron": NIGHTLY.cron}


@pytest.mark.parametrize(
    ("after", "runs", "skipped"),
    [
        (NIGHT, 1, 0),
        ({**NIGHT, "missed": "skip"}, 0, 1),
        ({"cron": "0 22 * * *"}, 1, 0),
        ({"on": ("cloud.up",)}, 1, 0),
        ({}, 0, 0),
    ],
)
async def test_a_run_that_was_due_outlasts_a_change_of_its_preset(
    house: House, after: dict[str, Any], runs: int, skipped: int
) -> None:
    await take(house, task={"argv": ["old"]}, **NIGHT)
    view = await house.show("backup")
    assert view.next_at_ms is not None
    house.clock.now_ms = view.next_at_ms + 3 * HOUR_MS
    await take(house, task={"argv": ["new"]}, **after)
    assert [task.work.argv for task in await house.tasks()] == [("new",)] * runs
    view = await house.show("backup")
    assert (view.runs, view.skipped) == (runs, skipped)
    assert view.next_at_ms is None or view.next_at_ms > house.clock.now_ms


async def test_an_event_outlasts_a_change_of_its_preset(house: House) -> None:
    await take(house, task={"argv": ["old"]}, on=("cloud.up",))
    await house.world.write(lambda tx: rows.fire(tx, "cloud.up"))
    await take(house, task={"argv": ["new"]}, on=("cloud.up",))
    assert [task.work.argv for task in await house.tasks()] == [("new",)]
