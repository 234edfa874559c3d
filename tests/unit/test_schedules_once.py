"""Schedules that run once, at a time, whatever happens to omnid, its config and its clock."""

from datetime import UTC, datetime
from typing import Any

import pytest

from omnid.api.shapes_schedules import ScheduleSwitch
from omnid.errors import Rejected
from omnid.model import Schedule
from omnid.store import schedules as rows
from tests.fakes.clock import FakeClock
from tests.fakes.world import PERSON, World
from tests.unit.test_schedules import MINUTE_MS, House
from tests.unit.test_schedules_restart import move, start, take

pytestmark = pytest.mark.anyio

TASK = {"argv": ["old"]}


@pytest.fixture
def house(world: World, clock: FakeClock) -> House:
    return House(world, clock)


def moment(house: House, minutes: float) -> str:
    """Gives the time so many minutes from now."""
    return datetime.fromtimestamp(house.clock.now_ms / 1000 + 60 * minutes, UTC).isoformat()


async def switch(house: House, name: str) -> None:
    for enabled in (False, True):
        await house.views.switch(PERSON, ScheduleSwitch(name=name, enabled=enabled))


async def test_it_runs_at_its_time_and_never_again(house: House) -> None:
    began_ms = house.clock.now_ms
    view = await house.add("once", Schedule(at=moment(house, 2)))
    assert view.next_at_ms == began_ms + 2 * MINUTE_MS
    await house.after(1)
    await switch(house, "once")
    assert await house.tasks() == []
    await house.after(1)
    assert len(await house.tasks()) == 1
    await house.finish()
    await switch(house, "once")
    await start(house)
    await house.after(60 * 24 * 400)
    assert len(await house.tasks()) == 1
    view = await house.show("once")
    assert (view.runs, view.skipped, view.next_at_ms) == (1, 0, None)
    assert house.world.context.alarms.next_ms() is None


@pytest.mark.parametrize(("missed", "runs"), [("run_once", 1), ("skip", 0)])
async def test_one_that_passed_while_omnid_was_off_is_missed(house: House, missed: str, runs: int) -> None:
    await house.add("once", Schedule(at=moment(house, 2), missed=missed))
    house.clock.now_ms += 30 * MINUTE_MS
    for _ in range(2):
        await start(house)
        view = await house.show("once")
        assert (view.runs, view.skipped, view.next_at_ms) == (runs, 1 - runs, None)
    assert len(await house.tasks()) == runs


@pytest.mark.parametrize(("missed", "runs"), [("run_once", 1), ("skip", 0)])
async def test_one_that_has_passed_when_it_is_made_is_missed(house: House, missed: str, runs: int) -> None:
    await house.add("once", Schedule(at=moment(house, -30), missed=missed))
    await take(house, task=TASK, at=moment(house, -30).removesuffix("+00:00"), missed=missed)
    for name in ("once", "backup"):
        view = await house.show(name)
        assert (view.runs, view.skipped, view.next_at_ms) == (runs, 1 - runs, None)


async def test_one_that_passes_while_it_is_switched_off_is_over(house: House) -> None:
    await house.add("once", Schedule(at=moment(house, 2)))
    await house.views.switch(PERSON, ScheduleSwitch(name="once", enabled=False))
    await house.after(3)
    view = await house.views.switch(PERSON, ScheduleSwitch(name="once", enabled=True))
    assert view.next_at_ms is None
    await house.after(3)
    assert await house.tasks() == []


async def test_a_clock_that_is_set_back_brings_no_second_run(house: House) -> None:
    await house.add("once", Schedule(at=moment(house, 2)))
    await house.after(2)
    await house.finish()
    house.clock.now_ms -= 30 * MINUTE_MS
    await start(house)
    await switch(house, "once")
    await house.after(60)
    view = await house.show("once")
    assert (view.runs, view.next_at_ms, len(await house.tasks())) == (1, None, 1)


async def test_a_local_time_moves_with_the_zone_of_the_daemon(house: House) -> None:
    move(house, "UTC")
    view = await house.add("once", Schedule(at=moment(house, 60 * 24).removesuffix("+00:00")))
    move(house, "Asia/Taipei")
    await start(house)
    moved_ms = (await house.show("once")).next_at_ms
    assert view.next_at_ms is not None
    assert moved_ms == view.next_at_ms - 8 * 60 * MINUTE_MS


async def test_an_event_is_a_run_beside_it(house: House) -> None:
    await house.add("once", Schedule(at=moment(house, 2), on=("cloud.up",), overlap="queue"))
    at_ms = (await house.show("once")).next_at_ms
    for event, minutes, next_at_ms in (("cloud.up", 1, at_ms), ("", 1, None), ("", 1, None), ("cloud.up", 0, None)):
        await house.world.write(lambda tx, event=event: rows.fire(tx, event))
        await house.after(minutes)
        assert (await house.show("once")).next_at_ms == next_at_ms
    assert (await house.show("once")).runs == 3


@pytest.mark.parametrize(
    ("is_over", "minutes", "wait_minutes", "runs"),
    [
        (True, 0, 0, 1),  # Its task is another.
        (True, -1, 0, 1),
        (True, 5, 0, 1),
        (True, 5, 5, 2),
        (True, 0.5, 0, 2),  # Another that passed while omnid was off, like those below.
        (False, 0, 0, 1),
        (False, -1, 0, 1),
        (False, 5, 0, 0),
        (False, 5, 5, 1),
    ],
)
async def test_a_changed_preset_runs_at_its_new_time(
    house: House, is_over: bool, minutes: float, wait_minutes: int, runs: int
) -> None:
    """Its time is two minutes off at first; omnid is off from then on, or from just before, and its preset changed."""
    first, second = moment(house, 2), moment(house, 2 + minutes)
    await take(house, task=TASK, at=first)
    if is_over:
        await house.after(2)
        await house.finish()
    house.clock.now_ms += MINUTE_MS * (1 if is_over else 3)
    await take(house, task={"argv": ["new"]}, at=second)
    assert (await house.show("backup")).next_at_ms is None or minutes == 5
    await house.after(wait_minutes)
    tasks: list[Any] = await house.tasks()
    assert len(tasks) == runs
    assert [task.work.argv for task in tasks[int(is_over) :]] == [("new",)] * (runs - is_over)


@pytest.mark.parametrize(("schedule", "where"), [({"at": "noon"}, "at"), ({"at": "2026-12-01", "every_s": 60}, "at")])
async def test_what_is_no_time_is_refused(house: House, schedule: dict[str, Any], where: str) -> None:
    with pytest.raises(Rejected) as caught:
        await house.add("bad", Schedule(**schedule))
    assert (caught.value.code, caught.value.fields["where"]) == ("bad_schedule", where)
