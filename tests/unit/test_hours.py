"""Hours: nothing starts outside them, everything at their beginning, and nothing is written for it but own waits."""

from datetime import datetime
from typing import Any

import anyio
import msgspec
import pytest

from omnid.flow.control import Cancelling
from omnid.flow.dispatcher import Dispatcher
from omnid.flow.gates import Gates
from omnid.flow.wakeup import BATCH_MAX, NAP_S_MAX, Wakeup
from omnid.model import Command, Submit
from omnid.settings import CommandExecutor
from tests.fakes.clock import FakeClock
from tests.fakes.world import World

pytestmark = pytest.mark.anyio

NIGHT = "23:00-07:00"


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(ms("2026-06-01T22:00+02:00"))


@pytest.fixture
def timer(world: World) -> Wakeup:
    return Wakeup(world.context, world.gates, Cancelling(world.context))


def move(clock: FakeClock, at: str) -> None:
    """Lets the time pass up to there."""
    then_ms = ms(at)
    clock.now_s += (then_ms - clock.now_ms) / 1000
    clock.now_ms = then_ms


def configure(world: World, zone: str = "Europe/Berlin", **only: str) -> None:
    """Gives executors their hours."""
    world.set("daemon", zone=zone)
    sections = tuple(CommandExecutor(name=name, only=hours) for name, hours in only.items())
    world.context.config = msgspec.structs.replace(world.context.config, executor=sections)
    world.context.take_executors(world.context.executors)


async def tick(world: World, timer: Wakeup) -> None:
    """Does what the timer does when it wakes up."""
    await timer.work_off()
    async with anyio.create_task_group() as group:
        world.gates.probe_due(group)


class Sent:
    """A link that keeps what it is given."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def offer(self, command: Command) -> bool:
        self.names.append(command.name)
        return True

    async def send(self, command: Command) -> None:
        raise AssertionError("nothing has to wait here")

    async def receive(self) -> Command:
        raise AssertionError("nobody receives here")


async def start(world: World) -> list[str]:
    """Lets the dispatcher start what it can; gives the names of what it started."""
    link = Sent()
    world.context.paused_starts = False
    world.store.attend = lambda *_: None  # Nothing starts but by the tests' own calls.
    dispatcher = Dispatcher(world.context, world.gates, link)
    while await dispatcher.start_some():
        pass
    return link.names


async def test_an_executor_starts_nothing_outside_its_hours_and_all_at_their_begin(
    world: World, clock: FakeClock, timer: Wakeup
) -> None:
    configure(world, safe=NIGHT)
    await world.add("x", executor="safe")
    await world.add("y", executor="safe")
    before = await world.rows("SELECT count(*) FROM change")
    assert world.gates.closed() == {"safe"}
    (gate,) = world.gates.all()
    assert (gate.id, gate.closed_at_ms, gate.wake_at_ms) == (
        "hours:safe",
        ms("2026-06-01T07:00+02:00"),
        ms("2026-06-01T23:00+02:00"),
    )
    assert world.gates.of("safe") == gate
    assert world.gates.next_wake_at_ms() == gate.wake_at_ms
    assert await start(world) == []
    move(clock, "2026-06-01T22:59:50+02:00")
    await tick(world, timer)
    assert await timer.nap_s() == 10.0
    move(clock, "2026-06-01T23:00+02:00")
    await tick(world, timer)
    with anyio.fail_after(1):
        await world.context.dispatch.wait()
    assert world.gates.closed() == frozenset()
    assert await world.rows("SELECT count(*) FROM change") == before, "nothing is written for it"
    assert await start(world) == ["t1", "t2"]
    assert world.gates.next_wake_at_ms() == ms("2026-06-02T07:00+02:00"), "when others may get its tasks"


async def test_what_runs_when_the_hours_end_runs_on(world: World, clock: FakeClock, timer: Wakeup) -> None:
    configure(world, safe=NIGHT)
    move(clock, "2026-06-02T06:59+02:00")
    await world.add("x", executor="safe")
    (command,) = await world.claim()
    move(clock, "2026-06-02T07:00+02:00")
    await tick(world, timer)
    assert (await world.task(command.task_id)).state == "executing"
    assert not world.context.cancel_was_asked(command.attempt_id)
    assert world.gates.closed() == {"safe"}


async def test_a_clock_that_is_set_and_another_config_hold_at_once(world: World, clock: FakeClock) -> None:
    configure(world, safe=NIGHT)
    assert world.gates.closed() == {"safe"}
    clock.now_ms = ms("2026-06-05T23:30+02:00")
    assert world.gates.closed() == frozenset()
    clock.now_ms = ms("2026-06-01T22:00+02:00")
    assert world.gates.closed() == {"safe"}
    configure(world, zone="Asia/Tokyo", safe=NIGHT)
    assert world.gates.closed() == frozenset(), "there it is five in the morning"
    configure(world, safe=NIGHT, command="00:00-00:00")
    assert world.gates.closed() == {"safe"}
    configure(world, command="")
    assert (world.gates.closed(), world.gates.next_wake_at_ms()) == (frozenset(), None)


async def test_a_pause_is_shown_before_the_hours(world: World) -> None:
    configure(world, safe=NIGHT)
    await world.gates.pause("safe")
    gate = world.gates.of("safe")
    assert gate is not None
    assert gate.cause == "paused"
    assert world.context.shut()["safe"].cause == "paused"
    again = Gates(world.context)
    await again.load()
    assert [one.id for one in again.all()] == ["hours:safe", "paused:safe"]


async def test_a_task_starts_within_its_hours_only(world: World, clock: FakeClock, timer: Wakeup) -> None:
    configure(world)
    task = await world.add("x", only=NIGHT)
    opens_ms = ms("2026-06-01T23:00+02:00")
    assert (task.state, task.reason, task.wake_at_ms) == ("waiting", "hours", opens_ms)
    assert (await world.add("y", only="21:00-23:00")).state == "idle"
    assert await start(world) == ["t2"]
    move(clock, "2026-06-01T22:59:59+02:00")
    assert await timer.nap_s() == 1.0
    move(clock, "2026-06-01T23:00+02:00")
    await timer.work_off()
    assert (await world.task(task.id)).state == "idle"
    assert await start(world) == ["t1"]


async def test_other_reasons_come_before_and_after_its_hours(world: World, clock: FakeClock, timer: Wakeup) -> None:
    configure(world)
    later = await world.add("x", only=NIGHT, not_before_ms=ms("2026-06-02T06:00+02:00"))
    assert later.reason == "not_before"
    first = await world.add("y")
    after = await world.add("z", only=NIGHT, after=(first.id,))
    assert after.reason == "dependency"
    await world.finish((await world.claim())[0], "success")
    assert (await world.task(after.id)).reason == "hours"
    move(clock, "2026-06-02T06:00+02:00")
    await timer.work_off()
    assert (await world.task(later.id)).state == "idle"
    command = next(one for one in await world.claim() if one.task_id == later.id)
    move(clock, "2026-06-02T07:30+02:00")
    await world.finish(command, "failure")
    assert (await world.task(later.id)).reason == "backoff"
    move(clock, "2026-06-02T08:00+02:00")
    await timer.work_off()
    held = await world.task(later.id)
    assert (held.reason, held.wake_at_ms) == ("hours", ms("2026-06-02T23:00+02:00"))


async def test_hours_that_end_before_its_turn_hold_it_back_and_nobody_behind_it(world: World, clock: FakeClock) -> None:
    configure(world)
    world.set("daemon", slots_max=2)
    move(clock, "2026-06-02T06:59+02:00")
    for _ in range(5):
        await world.add("night", only=NIGHT, priority=1)
    await world.add("day")
    move(clock, "2026-06-02T07:00+02:00")
    assert await start(world) == ["t6"]
    rows = await world.rows("SELECT DISTINCT reason, wake_at_ms FROM task WHERE number < 6")
    assert rows == [("hours", ms("2026-06-02T23:00+02:00"))]


async def test_a_clock_set_back_and_another_zone_are_noticed(world: World, clock: FakeClock, timer: Wakeup) -> None:
    configure(world)
    await world.submit(*(Submit(argv=("x",), only=NIGHT) for _ in range(BATCH_MAX + 1)))

    async def held() -> list[Any]:
        return await world.rows("SELECT state, reason, wake_at_ms, count(*) FROM task GROUP BY 1, 2, 3")

    assert await held() == [("waiting", "hours", ms("2026-06-01T23:00+02:00"), BATCH_MAX + 1)]
    configure(world, zone="America/New_York")
    await timer.work_off()
    assert await held() == [("waiting", "hours", ms("2026-06-01T23:00-04:00"), BATCH_MAX + 1)]
    clock.now_ms = ms("2026-06-01T03:00-04:00")
    await timer.work_off()
    assert await held() == [("idle", None, None, BATCH_MAX + 1)]


async def test_another_zone_or_clock_since_the_last_start_is_noticed(world: World, clock: FakeClock) -> None:
    configure(world)
    clock.now_ms = ms("2036-06-01T22:00+02:00")
    task = await world.add("x", only=NIGHT)
    assert task.wake_at_ms == ms("2036-06-01T23:00+02:00")
    clock.now_ms = ms("2026-06-01T22:00+02:00")
    for zone, offset in (("Europe/Berlin", "+02:00"), ("America/New_York", "-04:00")):
        await world.restart()
        configure(world, zone=zone)
        await world.wake()
        assert (await world.task(task.id)).wake_at_ms == ms(f"2026-06-01T23:00{offset}")


async def test_the_night_in_which_an_hour_never_comes(world: World, clock: FakeClock, timer: Wakeup) -> None:
    configure(world, safe="02:30-04:00")
    clock.now_ms = ms("2026-03-29T01:00+01:00")
    assert world.gates.next_wake_at_ms() == ms("2026-03-29T03:00+02:00")
    task = await world.add("x", only="02:10-02:50")
    assert task.wake_at_ms == ms("2026-03-30T02:10+02:00")
    assert await timer.nap_s() == NAP_S_MAX
