"""The timer: what is due is released, what is past its deadline fails, and each sleep ends when something is due."""

from collections.abc import Callable
from typing import TypeVar

import anyio
import pytest

from omnid.errors import Retryable
from omnid.flow import wakeup
from omnid.flow.control import Cancelling
from omnid.flow.wakeup import BATCH_MAX, NAP_S_MAX, Wakeup
from omnid.model import Submit
from omnid.store.interface import Reader
from tests.fakes.clock import FakeClock
from tests.fakes.world import World

pytestmark = pytest.mark.anyio

T = TypeVar("T")


@pytest.fixture
def timer(world: World) -> Wakeup:
    return Wakeup(world.context, world.gates, Cancelling(world.context))


async def test_a_task_waits_for_its_time_and_no_longer(world: World, clock: FakeClock, timer: Wakeup) -> None:
    task = await world.add("later", not_before_ms=clock.now_ms + 5_000)
    assert (task.state, task.reason) == ("waiting", "not_before")
    assert await timer.nap_s() == 5.0
    clock.now_ms += 4_999
    await timer.work_off()
    assert await world.claim() == []
    clock.now_ms += 1
    await timer.work_off()
    assert [command.task_id for command in await world.claim()] == [task.id]


async def test_a_time_in_the_past_is_no_reason_to_wait(world: World, clock: FakeClock) -> None:
    assert (await world.add("now", not_before_ms=clock.now_ms)).state == "idle"


async def test_a_slow_read_makes_the_nap_shorter(
    world: World, clock: FakeClock, timer: Wakeup, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.add("later", not_before_ms=clock.now_ms + 5_000)
    read = world.store.read

    async def slow(look: Callable[[Reader], T]) -> T:
        clock.now_ms += 1_500
        return await read(look)

    monkeypatch.setattr(world.store, "read", slow)
    assert await timer.nap_s() == 3.5


async def test_a_deadline_that_passes_while_the_timer_looks_is_due_at_once(
    world: World, clock: FakeClock, timer: Wakeup
) -> None:
    await world.add("late", deadline_ms=clock.now_ms + 2_000)
    since_ms = clock.now_ms
    clock.now_ms += 2_000
    assert await timer.nap_s() == NAP_S_MAX, "whoever looks only now takes it for one that was seen"
    assert await timer.nap_s(since_ms) == 0.0


async def test_with_nothing_due_the_timer_still_looks_now_and_then(world: World, timer: Wakeup) -> None:
    await world.add("idle")
    assert await timer.nap_s() == NAP_S_MAX


@pytest.mark.parametrize("kind", ["idle", "waiting"])
async def test_a_task_past_its_deadline_fails_and_says_so(
    world: World, clock: FakeClock, timer: Wakeup, kind: str
) -> None:
    held = {"not_before_ms": clock.now_ms + 60_000} if kind == "waiting" else {}
    task = await world.add("late", deadline_ms=clock.now_ms + 2_000, **held)
    assert task.state == kind
    assert await timer.nap_s() == 2.0
    clock.now_ms += 2_000
    assert await world.claim() == [], "it must not start any more"
    await timer.work_off()
    task = await world.task(task.id)
    assert task.state == "failed"
    assert task.problem is not None
    assert task.problem.code == "deadline_passed"


async def test_a_running_task_past_its_deadline_is_ended_once(world: World, clock: FakeClock, timer: Wakeup) -> None:
    task = await world.add("long", deadline_ms=clock.now_ms + 1_000)
    (command,) = await world.claim()
    clock.now_ms += 1_000
    asked: list[str] = []

    class Spy:
        async def cancel(self, attempt_id: str) -> None:
            asked.append(attempt_id)

    world.context.active[command.attempt_id] = Spy()
    await timer.work_off()
    await timer.work_off()
    assert asked == [command.attempt_id]
    await world.finish(command, "cancelled")
    task = await world.task(task.id)
    assert task.state == "failed"
    assert task.problem is not None
    assert task.problem.code == "deadline_passed"


async def test_a_success_after_the_deadline_is_a_success(world: World, clock: FakeClock) -> None:
    task = await world.add("long", deadline_ms=clock.now_ms + 1_000)
    (command,) = await world.claim()
    clock.now_ms += 5_000
    await world.finish(command, "success")
    assert (await world.task(task.id)).state == "completed"


async def test_an_uncertain_task_is_left_to_a_person_whatever_its_deadline(
    world: World, clock: FakeClock, timer: Wakeup
) -> None:
    task = await world.add("lost", deadline_ms=clock.now_ms + 1_000)
    (command,) = await world.claim()
    clock.now_ms += 5_000
    await world.finish(command, "lost")
    await timer.work_off()
    assert (await world.task(task.id)).state == "uncertain"


async def test_tasks_that_wait_for_each_other_and_expire_together_each_fail_once(
    world: World, clock: FakeClock, timer: Wakeup
) -> None:
    deadline_ms = clock.now_ms + 1_000
    done = await world.submit(
        Submit(argv=("a",), ref="a", deadline_ms=deadline_ms),
        Submit(argv=("b",), ref="b", after=("a",), deadline_ms=deadline_ms),
        Submit(argv=("c",), after=("b",), deadline_ms=deadline_ms + 1),
    )
    clock.now_ms += 2_000
    await timer.work_off()
    tasks = [await world.task(one.id) for one in done]
    assert [task.problem and task.problem.code for task in tasks] == [
        "deadline_passed",
        "dependency_failed",
        "dependency_failed",
    ]


async def test_more_expired_tasks_than_one_batch_holds_fail_in_one_go(
    world: World, clock: FakeClock, timer: Wakeup
) -> None:
    asked = [Submit(argv=("x",), deadline_ms=clock.now_ms + 1_000)] * (BATCH_MAX + 20)
    await world.submit(*asked)
    clock.now_ms += 1_000
    await timer.work_off()
    assert world.store.tally["failed"] == len(asked)


async def test_more_due_tasks_than_one_batch_holds_wake_in_one_go(
    world: World, clock: FakeClock, timer: Wakeup
) -> None:
    asked = [Submit(argv=("x",), not_before_ms=clock.now_ms + 1_000)] * (BATCH_MAX + 20)
    await world.submit(*asked)
    clock.now_ms += 1_000
    await timer.work_off()
    assert world.store.tally["idle"] == len(asked)


async def test_a_wall_clock_that_went_back_lets_tasks_wait_as_they_were_told(
    world: World, clock: FakeClock, timer: Wakeup
) -> None:
    task = await world.add("later", not_before_ms=clock.now_ms + 5_000)
    clock.now_ms -= 86_400_000
    await timer.work_off()
    assert await timer.nap_s() == NAP_S_MAX
    assert (await world.task(task.id)).state == "waiting"


async def test_the_timer_sleeps_until_the_bell_and_probes_gates_that_are_due(world: World, clock: FakeClock) -> None:
    probed = anyio.Event()

    async def probe() -> None:
        probed.set()

    world.context.executors["command"].probe = probe
    await world.gates.executor_down("command", Retryable("executor_down", executor="command", detail="x"))
    timer = Wakeup(world.context, world.gates, Cancelling(world.context))
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(timer.run)
            await anyio.wait_all_tasks_blocked()
            assert not probed.is_set()
            clock.now_ms += 600_000
            world.context.timer.ring()
            await probed.wait()
            await anyio.wait_all_tasks_blocked()
            assert world.gates.all() == []
            group.cancel_scope.cancel()


@pytest.mark.parametrize("ahead_ms", [0, 365 * 86_400_000])
async def test_a_backoff_that_a_clock_ahead_began_ends_with_the_next_start(
    world: World, clock: FakeClock, ahead_ms: int
) -> None:
    clock.now_ms += ahead_ms
    task = await world.add("x")
    (command,) = await world.claim()
    await world.finish(command, "failure")
    clock.now_ms -= ahead_ms
    await world.restart()
    await Wakeup(world.context, world.gates, Cancelling(world.context)).work_off()
    assert (await world.task(task.id)).state == ("idle" if ahead_ms else "waiting")


async def test_of_backoffs_that_begin_again_at_once_each_is_ended_once(
    world: World, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []
    monkeypatch.setattr(wakeup, "BATCH_MAX", 2)
    monkeypatch.setattr(wakeup, "settle_wait", lambda tx, task: ended.append(task.id))
    clock.now_ms += 86_400_000
    tasks = [await world.add("x") for _ in range(3)]
    for command in await world.claim():
        await world.finish(command, "failure")
    clock.now_ms -= 86_400_000
    await world.restart()
    with anyio.fail_after(10):
        await Wakeup(world.context, world.gates, Cancelling(world.context)).work_off()
    assert ended == [task.id for task in tasks]
    monkeypatch.undo()
    await Wakeup(world.context, world.gates, Cancelling(world.context)).work_off()
