"""What starts, and in which order: strict priority, then submission; lanes, slots and gates; nobody blocks others."""

from collections.abc import Iterable

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnid.errors import Retryable
from omnid.flow.dispatcher import Dispatcher, timeout_s
from omnid.flow.intake import plan_one
from omnid.flow.results import Results
from omnid.link.embedded import EmbeddedLink
from omnid.model import Command, Gate, Result, Submit
from omnid.store import journal
from omnid.store.interface import Tx
from tests.fakes.clock import FakeClock
from tests.fakes.world import AGENT, PERSON, World

pytestmark = pytest.mark.anyio


def names(commands: Iterable[Command]) -> list[str]:
    return [command.name for command in commands]


async def test_the_highest_priority_first_then_the_oldest(world: World) -> None:
    for priority in (0, 5, -5, 5, 0):
        await world.add("x", priority=priority)
    assert names(await world.claim(slots=2)) == ["t2", "t4"]
    await world.add("x", priority=1)
    assert names(await world.claim(slots=8)) == ["t6", "t1", "t5", "t3"]


async def test_priority_holds_across_executors(world: World) -> None:
    await world.add("x", executor="command")
    await world.add("x", executor="safe", priority=1)
    await world.add("x", executor="command", priority=2)
    assert names(await world.claim(slots=2)) == ["t3", "t2"]


async def test_a_full_executor_blocks_nobody_else(world: World) -> None:
    for executor in ("command", "command", "safe"):
        await world.add("x", executor=executor)
    assert names(await world.claim(slots=8, command=1, safe=1)) == ["t1", "t3"]
    assert names(await world.claim(slots=8, safe=1)) == []


async def test_a_changed_priority_holds_at_once(world: World) -> None:
    for _ in range(3):
        await world.add("x")
    await world.control("t3", "priority", priority=10)
    await world.control("t1", "priority", priority=-10)
    assert names(await world.claim()) == ["t3", "t2", "t1"]


async def test_a_lane_runs_one_task_at_a_time_and_blocks_nobody_else(world: World) -> None:
    await world.add("x", lane="l", priority=1)
    await world.add("x", lane="l", priority=1)
    await world.add("x")
    first = await world.claim()
    assert names(first) == ["t1", "t3"]
    assert await world.claim() == []
    await world.finish(first[0], "success")
    assert names(await world.claim()) == ["t2"]


async def test_a_lane_that_spans_executors_still_runs_one_task_at_a_time(world: World) -> None:
    await world.add("x", lane="l", executor="command")
    await world.add("x", lane="l", executor="safe", priority=1)
    assert names(await world.claim(slots=8, command=8)) == ["t1"], "the head of another executor's must not block it"
    assert await world.claim() == []


async def test_heads_of_one_lane_on_several_executors_do_not_start_together(world: World) -> None:
    await world.add("x", lane="l", executor="command")
    await world.add("x", lane="l", executor="safe", priority=1)
    await world.add("x", executor="safe")
    assert names(await world.claim()) == ["t2", "t3"]


async def test_a_lane_gives_its_head_by_priority_then_by_order(world: World) -> None:
    for priority in (0, 0, 3):
        await world.add("x", lane="l", priority=priority)
    await world.control("t2", "priority", priority=2)
    order: list[str] = []
    while commands := await world.claim():
        order += names(commands)
        await world.finish(commands[0], "success")
    assert order == ["t3", "t2", "t1"]


@pytest.mark.parametrize("outcome", ["success", "failure", "rejected", "lost", "unstarted"])
async def test_a_lane_is_free_when_its_task_has_let_go(world: World, outcome: str) -> None:
    await world.add("x", lane="l", priority=1)
    await world.add("x", lane="l")
    (command,) = await world.claim()
    await world.finish(command, outcome)
    assert names(await world.claim()) == ["t2"]


@pytest.mark.parametrize("action", ["cancel", "pause", "delete", "complete", "assign"])
async def test_a_lane_goes_on_when_its_head_leaves(world: World, action: str) -> None:
    await world.add("x", lane="l")
    await world.add("x", lane="l")
    await world.control("t1", action, **({"executor": "safe"} if action == "assign" else {}))
    assert names(await world.claim(slots=8, command=8)) == ["t2"]


async def test_a_task_that_comes_back_into_a_busy_lane_waits_for_it(world: World) -> None:
    await world.add("x", lane="l", priority=5)
    await world.control("t1", "pause")
    await world.add("x", lane="l")
    (command,) = await world.claim()
    await world.control("t1", "resume")
    assert await world.claim() == []
    await world.finish(command, "success")
    assert names(await world.claim()) == ["t1"]


@given(st.lists(st.tuples(st.integers(-3, 3), st.sampled_from([None, "a", "b"])), max_size=9), st.integers(1, 4))
def test_everything_starts_once_and_in_order(asked: list[tuple[int, str | None]], slots: int) -> None:
    """Against a plain model: the first by rank whose lane is free, until the slots are full or nothing is left."""

    async def run() -> None:
        import tempfile
        from pathlib import Path

        with tempfile.TemporaryDirectory() as directory:
            world = World(Path(directory), FakeClock())
            for priority, lane in asked:
                await world.add("x", priority=priority, lane=lane)
            left = [(-priority, n, lane) for n, (priority, lane) in enumerate(asked, 1)]
            while left:
                wanted: list[tuple[int, int, str | None]] = []
                for one in sorted(left):
                    if len(wanted) < slots and (one[2] is None or one[2] not in {w[2] for w in wanted}):
                        wanted.append(one)
                commands: list[Command] = []
                while len(commands) < slots and (more := await world.claim(slots - len(commands))):
                    commands += more
                assert {command.name for command in commands} == {f"t{n}" for _, n, _ in wanted}
                left = [one for one in left if one not in wanted]
                for command in commands:
                    await world.finish(command, "success")
            assert await world.claim() == []
            world.close()

    anyio.run(run)


async def test_an_attempt_is_numbered_and_says_why_it_is_there(world: World) -> None:
    task = await world.add("x", executor="safe")
    (first,) = await world.claim()
    assert (first.number, first.executor, first.idempotent, first.recover) == (1, "safe", True, False)
    await world.finish(first, "unstarted")
    await world.control("t1", "retry")
    (second,) = await world.claim()
    assert second.number == 2
    assert second.attempt_id != first.attempt_id
    row = await world.store.read(lambda reader: reader.one("attempt_by_number", task.id, 2))
    assert row is not None
    route = journal.attempt_of(row).route
    assert route is not None
    assert route["executor"] == "safe"


async def test_the_timeout_is_the_tasks_else_the_configs(world: World) -> None:
    assert timeout_s(await world.add("x", timeout_s=7), world.context.config) == 7
    assert timeout_s(await world.add("x"), world.context.config) == world.context.config.task.timeout_s


class Started:
    """A dispatcher with its link."""

    def __init__(self, world: World) -> None:
        self.link = EmbeddedLink()
        self.dispatcher = Dispatcher(world.context, world.gates, self.link)
        world.context.paused_starts = False
        self.world = world

    async def start(self) -> list[str]:
        started: list[str] = []
        while await self.dispatcher.start_some():
            pass
        while self.link.held:
            started.append((await self.link.receive())[0].message.name)
        return started


async def test_slots_bound_what_runs_in_the_whole_daemon(world: World) -> None:
    world.set("daemon", slots_max=2)
    for _ in range(3):
        await world.add("x")
    started = Started(world)
    assert await started.start() == ["t1", "t2"]
    assert len(world.context.running) == 2
    world.context.let_go(next(iter(world.context.running)))
    assert await started.start() == ["t3"]
    started.link.close()


async def test_concurrency_bounds_what_runs_on_one_executor(world: World) -> None:
    world.context.executors["command"].concurrency = 1
    for executor in ("command", "command", "safe"):
        await world.add("x", executor=executor)
    started = Started(world)
    assert await started.start() == ["t1", "t3"]
    started.link.close()


async def test_a_closed_gate_keeps_only_its_own_executor(world: World) -> None:
    await world.add("x", executor="command")
    await world.add("x", executor="safe")
    started = Started(world)
    await world.gates.executor_down("command", Retryable("executor_down", executor="command", detail="x"))
    assert await started.start() == ["t2"]
    await world.gates.pause("*")
    await world.add("x", executor="safe")
    await world.gates.resume("command")
    assert await started.start() == []
    await world.gates.resume("*")
    assert await started.start() == ["t3"]
    started.link.close()


async def test_nothing_starts_before_recovery_is_done(world: World) -> None:
    await world.add("x")
    started = Started(world)
    world.context.paused_starts = True
    assert await started.start() == []
    started.link.close()


async def test_a_submit_claims_what_it_makes_ready_in_its_own_transaction(world: World) -> None:
    started = Started(world)
    task = await world.add("x")
    assert task.state == "executing"
    assert list(world.context.running.values()) == ["command"]
    assert started.link.held == 1
    started.link.close()


async def test_a_submit_never_overtakes_what_waits_for_a_slot(world: World) -> None:
    world.set("daemon", slots_max=1)
    started = Started(world)
    for priority in (0, 5, 1):
        await world.add("x", priority=priority)
    assert await started.start() == ["t1"]
    world.context.let_go(next(iter(world.context.running)))
    # One slot is free, and nobody has told the dispatcher: the new task looks, and starts what comes before it.
    assert (await world.add("x", priority=3)).state == "idle"
    assert await started.start() == ["t2"]
    world.context.let_go(next(iter(world.context.running)))
    assert (await world.add("x", priority=9)).state == "executing"
    assert await started.start() == ["t5"]
    started.link.close()


async def test_a_gate_that_closes_in_the_same_transaction_keeps_a_submit_from_its_start(world: World) -> None:
    started = Started(world)
    write = plan_one(world.context, PERSON, Submit(argv=("x",)))

    def close_then_submit(tx: Tx) -> str:
        journal.close_gate(tx, Gate("paused:*", "paused", "*", tx.now_ms, None))
        return write(tx).state

    await world.write(close_then_submit)
    assert await started.start() == []
    assert world.store.tally["idle"] == 1
    started.link.close()


async def test_lanes_approvals_and_times_hold_for_a_submit_too(world: World, clock: FakeClock) -> None:
    started = Started(world)
    states = [
        (await world.add("x", lane="l")).state,
        (await world.add("x", lane="l")).state,
        (await world.add("x", caller=AGENT)).state,
        (await world.add("x", not_before_ms=clock.now_ms + 1000)).state,
        (await world.add("x", after=("t1",))).state,
        (await world.add("x")).state,
    ]
    assert states == ["executing", "idle", "waiting", "waiting", "waiting", "executing"]
    assert await started.start() == ["t1", "t5"]
    started.link.close()


async def test_nothing_starts_with_a_submit_while_starts_are_paused(world: World) -> None:
    started = Started(world)
    world.context.paused_starts = True
    assert (await world.add("x")).state == "idle"
    started.link.close()


async def test_the_slot_of_an_attempt_goes_to_the_next_in_the_transaction_that_ends_it(world: World) -> None:
    world.set("daemon", slots_max=1)
    started = Started(world)
    first, second = await world.add("x"), await world.add("x")
    command = (await started.link.receive())[0].message
    assert await Results(world.context, world.gates).settle(Result(command.attempt_id, first.id, 1, "success"))
    assert (await world.task(second.id)).state == "executing"
    assert len(world.context.running) == 1
    assert await started.start() == ["t2"]
    started.link.close()


async def test_two_claims_in_one_transaction_share_the_slots(world: World) -> None:
    world.set("daemon", slots_max=2)
    started = Started(world)
    writes = [plan_one(world.context, PERSON, Submit(argv=("x",))) for _ in range(5)]

    def submit_and_claim(tx: Tx) -> list[str]:
        for write in writes[:3]:
            write(tx)
        claimed = started.dispatcher._claim(tx)
        for write in writes[3:]:
            write(tx)
        return names(claimed.commands)

    assert await world.write(submit_and_claim) == ["t1", "t2"]
    assert started.link.held == 0, "what looks behind it finds no slot"
    await world.control("t1", "cancel")
    started.link.close()


async def test_what_a_full_window_does_not_take_is_sent_later_in_order(world: World) -> None:
    started = Started(world)
    started.link._window_max = 1
    for _ in range(3):
        await world.add("x")
    order: list[str] = []
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(started.dispatcher.run)
            while len(order) < 3:
                order.append((await started.link.receive())[0].message.name)
                await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
    assert order == ["t1", "t2", "t3"]
    started.link.close()


async def test_the_bell_starts_what_came(world: World) -> None:
    started = Started(world)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(started.dispatcher.run)
            await anyio.wait_all_tasks_blocked()
            await world.add("x")
            world.context.dispatch.ring()
            assert (await started.link.receive())[0].message.name == "t1"
            group.cancel_scope.cancel()
    started.link.close()


async def test_every_task_of_an_unknown_executor_waits_without_harm(world: World) -> None:
    await world.add("x", executor="safe")
    await world.add("x")
    world.context.take_executors({"command": world.context.executors["command"]})
    started = Started(world)
    assert await started.start() == ["t2"]
    started.link.close()
