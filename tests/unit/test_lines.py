"""The daemon's end of links: commands out of outboxes, results into the journal, leases, gates, and cancels."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import anyio
import msgspec
import pytest

from omnid.errors import Rejected
from omnid.executor.elsewhere import Elsewhere
from omnid.flow.control import Cancelling
from omnid.flow.dispatcher import SENT_MAX, claim
from omnid.flow.fleet import Fleet
from omnid.flow.intake import plan
from omnid.flow.lines import RESULTS_AT_ONCE
from omnid.flow.runner import left
from omnid.model import Command, Problem, Result, Submit, Task, Watch, Work
from omnid.store import journal, outbox
from tests.fakes.cable import DOWN, Bench, beat
from tests.fakes.clock import FakeClock
from tests.fakes.world import PERSON, World

pytestmark = pytest.mark.anyio


@pytest.fixture
def bench(world: World) -> Bench:
    return Bench(world)


async def queued(bench: Bench, runner: str = "a") -> list[str]:
    rows = await bench.world.store.read(lambda reader: outbox.peek(reader, f"runner/{runner}", 100))
    return [row.kind for row in rows]


async def test_commands_go_out_at_once_and_their_results_are_acknowledged_once_they_are_durable(bench: Bench) -> None:
    async with bench.runs():
        assert ("a", Watch(120.0, bench.context.fleet.peers["a"].token)) in bench.cable.sent
        task = await bench.world.add("one", executor="command")
        assert (await bench.task(task)).state == "idle", "nobody was heard yet"
        bench.cable.bring("a", beat())
        (command,) = await bench.sent(1)
        assert (command.work.argv, command.number, await queued(bench)) == (("one",), 1, [])
        assert (await bench.task(task)).state == "executing"
        assert bench.context.running == {}
        assert (await bench.ends(command)).state == "completed"
        assert bench.context.fleet.where(command.attempt_id) is None
        assert (await bench.ends(command, "failure")).state == "completed", "it is known already"


async def test_a_window_keeps_the_priority_of_what_waits(bench: Bench) -> None:
    bench.config("a")
    async with bench.runs():
        bench.cable.bring("a", beat(1))
        first = await bench.world.add("first")
        for number in range(4):
            await bench.world.add(str(number), priority=number)
        (one, two) = await bench.sent(2)
        assert [one.task_id, two.work.argv] == [first.id, ("0",)]
        for number, command in enumerate(["3", "2", "1"]):
            await bench.ends(bench.cable.commands()[number])
            assert (await bench.sent(3 + number))[-1].work.argv == (command,)


async def test_a_batch_leaves_others_their_turn_and_all_of_it_goes_out(bench: Bench) -> None:
    bench.config("a", window_max=1000)
    count = 2 * SENT_MAX + 5
    async with bench.runs():
        for number in range(count):
            await bench.world.add(str(number))
        bench.cable.bring("a", beat(500))
        commands = await bench.sent(count)
        assert [command.work.argv for command in commands] == [(str(number),) for number in range(count)]


async def test_labels_choose_the_runner_and_hold_up_nobody_else(bench: Bench) -> None:
    async with bench.runs():
        bench.cable.bring("a", beat(1, labels=("gpu",)))
        bench.cable.bring("b", beat(1))
        for number in range(4):
            await bench.world.add(f"gpu{number}", labels=("gpu", "mine"))
        plain = await bench.world.add("plain", labels=("mine",))
        (command,) = await bench.sent(1, "b")
        assert command.task_id == plain.id
        assert [one.work.argv for one in await bench.sent(2)] == [("gpu0",), ("gpu1",)]


async def test_while_the_link_is_down_nothing_is_claimed_and_what_was_on_its_way_is_sent_again(bench: Bench) -> None:
    bench.config("a")
    async with bench.runs():
        bench.cable.bring("a", beat())
        await anyio.wait_all_tasks_blocked()
        bench.cable.lose = True
        task = await bench.world.add("one")
        (first,) = await bench.sent(1)
        assert await queued(bench) == ["command"]
        later = await bench.world.add("two")
        await anyio.wait_all_tasks_blocked()
        assert (await bench.task(later)).attempt == 0
        gate = bench.world.gates.of("command")
        assert gate is not None
        assert (gate.id, gate.problem) == ("link:cable", DOWN)
        bench.cable.turn(None)
        again, other = (await bench.sent(3))[1:]
        assert (again, other.work.argv) == (first, ("two",))
        assert bench.world.gates.all() == []
        assert (await bench.ends(first)).id == task.id


async def test_a_label_that_nobody_is_known_to_have_waits_a_lease_for_who_is_behind_a_link_that_is_down(
    bench: Bench, clock: FakeClock
) -> None:
    bench.config("a", "b", links=("cable", "other"))
    config = bench.context.config
    behind = msgspec.structs.replace(config.remote[0], link="other")
    bench.context.config = msgspec.structs.replace(config, remote=(behind, config.remote[1]))
    bench.context.take_executors(bench.context.executors)
    async with bench.runs():
        bench.cables[0].turn(None)
        bench.cables[1].turn(DOWN)
        bench.cables[0].bring("b", beat())
        await bench.world.add("one", labels=("gpu",))
        await anyio.wait_all_tasks_blocked()
        assert bench.cables[0].commands("b") == []
        for _ in range(6):  # At once would be the daemon's own absence.
            clock.now_s += 10
            bench.cables[0].bring("b", beat())
            bench.lines.configure()
            await anyio.wait_all_tasks_blocked()
        await bench.cables[0].until(lambda: bench.cables[0].commands("b"))


async def test_a_command_that_can_not_be_sent_fails_its_task_and_holds_up_nobody(bench: Bench) -> None:
    bench.config("a")
    async with bench.runs():
        tasks = [await bench.world.add(name) for name in ("1", "2", "poison", "3")]
        bench.cable.bring("a", beat())
        commands = await bench.sent(3)
        assert [command.work.argv for command in commands] == [("1",), ("2",), ("3",)]
        failed = await bench.task(tasks[2])
        assert (failed.state, failed.problem and failed.problem.code) == ("failed", "message_refused")
        assert await queued(bench) == []


async def lease_over(bench: Bench, clock: FakeClock, command: Command) -> None:
    """Lets a lease of 30 s pass, and waits until the runner's command is settled."""
    for _ in range(4):  # At once would be the daemon's own absence.
        clock.now_s += 10
        bench.lines.configure()
        await anyio.wait_all_tasks_blocked()
    await bench.cable.until(lambda: bench.context.fleet.where(command.attempt_id) is None)
    await anyio.wait_all_tasks_blocked()


@pytest.mark.parametrize(("executor", "state"), [("command", "uncertain"), ("safe", "waiting")])
async def test_a_runner_whose_lease_is_over_is_lost(bench: Bench, clock: FakeClock, executor: str, state: str) -> None:
    bench.config("a", lease_s=30.0)
    async with bench.runs():
        bench.cable.bring("a", beat())
        task = await bench.world.add("one", executor=executor)
        (command,) = await bench.sent(1)
        await lease_over(bench, clock, command)
        lost = await bench.task(task)
        assert (lost.state, lost.problem and lost.problem.code) == (state, "runner_lost")
        assert bench.cable.cancels() == ([command.attempt_id] if executor == "safe" else [])
        shut = bench.world.gates.of(executor)
        assert shut is not None
        assert shut.problem is not None
        assert shut.problem.code == "no_runner"
        late = await bench.ends(command)
        assert late.state == ("completed" if executor == "command" else "waiting")
        bench.cable.bring("a", beat())
        await anyio.wait_all_tasks_blocked()
        assert bench.world.gates.of(executor) is None


@pytest.mark.parametrize("action", ["again", "done", "complete", "fail", "cancel", "delete"])
async def test_what_a_person_decides_about_an_uncertain_task_takes_its_command_back(
    bench: Bench, clock: FakeClock, action: str
) -> None:
    bench.config("a", lease_s=30.0)
    async with bench.runs():
        bench.cable.bring("a", beat())
        task = await bench.world.add("one")
        (command,) = await bench.sent(1)
        await lease_over(bench, clock, command)
        assert bench.cable.cancels() == [], "its result may yet count"
        await bench.world.control(task.id, action)
        await bench.cable.until(bench.cable.cancels)
        assert bench.cable.cancels() == [command.attempt_id]


async def test_what_a_runner_gives_back_goes_elsewhere_and_waits_longer_each_time(bench: Bench) -> None:
    async with bench.runs():
        bench.cable.bring("a", beat())
        task = await bench.world.add("one")
        (command,) = await bench.sent(1)
        refused = command.ended("unstarted", Problem.make("executor_down", executor="command", detail="not here"))
        bench.cable.bring("a", refused)
        await bench.cable.until(lambda: command.attempt_id in bench.cable.acked)
        again = await bench.task(task)
        assert (again.state, again.reason, again.failures) == ("waiting", "backoff", 0)
        assert again.problem is not None
        assert again.problem.code == "runner_refused"
        assert again.problem.what == "Runner a gave t1 back: Executor command can't be used: not here."
        assert bench.context.fleet.seats().rooms() == {"safe": 8}


async def test_what_a_runner_gives_back_that_was_told_to_stop_goes_elsewhere_at_once(bench: Bench) -> None:
    async with bench.runs():
        bench.cable.bring("a", beat())
        task = await bench.world.add("one")
        (command,) = await bench.sent(1)
        bench.cable.bring("a", left(command, "a"))
        await bench.cable.until(lambda: command.attempt_id in bench.cable.acked)
        again = await bench.task(task)
        assert (again.state, again.problem and again.problem.code) == ("idle", "runner_left")
        assert "runner/a" not in await bench.world.store.read(outbox.destinations), "not to the one that it came from"
        bench.cable.bring("b", beat())
        (second,) = await bench.sent(1, "b")
        assert (second.task_id, second.number) == (task.id, 2)


async def test_a_runner_that_leaves_is_told_that_this_was_heard_and_gets_nothing_more(bench: Bench) -> None:
    async with bench.runs():
        bench.cable.bring("a", beat())
        await anyio.wait_all_tasks_blocked()
        unsent = await bench.world.write(partial(_claimed, bench=bench))
        bench.cable.turn(DOWN)
        bench.cable.bring("a", beat(leaving=True))
        await anyio.wait_all_tasks_blocked()
        bench.cable.turn(None)
        peer = bench.context.fleet.peers["a"]
        await bench.cable.until(lambda: ("a", Watch(120.0, peer.token, heard_leaving=True)) in bench.cable.sent)
        await anyio.wait_all_tasks_blocked()
        again = await bench.task(unsent)
        assert (again.state, again.problem and again.problem.code) == ("idle", "runner_left")
        assert bench.cable.commands() == []
        bench.cable.bring("b", beat())
        (command,) = await bench.sent(1, "b")
        assert command.task_id == unsent.id


async def test_a_result_of_another_runner_is_refused(bench: Bench) -> None:
    async with bench.runs():
        bench.cable.bring("a", beat())
        await bench.world.add("one")
        (command,) = await bench.sent(1)
        bench.cable.bring("b", command.ended("success", None))
        await bench.cable.until(lambda: bench.cable.refused)
        assert bench.cable.refused == ["its attempt is none of b's"]
        assert (await bench.ends(command)).state == "completed"


async def test_a_cancel_follows_its_command_and_ends_at_once_what_was_never_sent(bench: Bench) -> None:
    bench.config("a")
    cancelling = Cancelling(bench.context)
    async with bench.runs():
        bench.cable.bring("a", beat())
        task = await bench.world.add("one")
        (command,) = await bench.sent(1)
        await cancelling.end_attempt_of(task.id)
        await bench.cable.until(lambda: bench.cable.cancels() == [command.attempt_id])
        assert (await bench.task(task)).state == "executing", "the runner says how it ended"
        bench.cable.lose = True
        tried = await bench.world.add("two")
        await bench.sent(2)
        bench.cable.turn(None)
        await bench.sent(3)
        unsent = await bench.world.write(partial(_claimed, bench=bench))
        bench.cable.turn(DOWN)
        for one in (tried, unsent):
            await bench.world.write(partial(_ask_cancel, task=one))
            await cancelling.end_attempt_of(one.id)
        await anyio.wait_all_tasks_blocked()
        assert [(await bench.task(one)).state for one in (tried, unsent)] == ["executing", "cancelled"]
        bench.cable.turn(None)
        await bench.cable.until(lambda: len(bench.cable.cancels()) == 3)
        assert len(bench.cable.commands()) == 3, "what ended before it was sent is not sent any more"


def _ask_cancel(tx: Any, *, task: Task) -> None:
    journal.edit_task(tx, journal.need_task(tx, task.id), cancel=True)


def _claimed(tx: Any, *, bench: Bench) -> Task:
    """Writes down an attempt with its command, in the moment in which the link goes down."""
    plan(bench.context, PERSON, [Submit(argv=("three",))])(tx)
    context = bench.context
    claimed = claim(tx, context, free={}, slots_free=0, seats=context.fleet.seats())
    (sent,) = claimed.sent
    context.fleet.took(*(sent.attempt_id, sent.runner, sent.executor), unsent=True)
    return journal.need_task(tx, sent.task_id)


async def test_a_new_daemon_sends_what_is_left_and_takes_what_has_come(bench: Bench) -> None:
    bench.config("a")
    async with bench.runs():
        bench.cable.bring("a", beat())
        done = await bench.world.add("one")
        (first,) = await bench.sent(1)
        bench.cable.lose = True
        left = await bench.world.add("two")
        (_, second) = await bench.sent(2)
    await bench.world.restart()
    bench.world.context.fleet = Fleet(bench.world.clock)
    fresh = Bench(bench.world)
    fresh.config("a")
    async with fresh.runs():
        assert await fresh.sent(1) == [second]
        assert (await fresh.ends(first)).id == done.id
        assert (await fresh.ends(second)).id == left.id
        assert [(await fresh.task(one)).state for one in (done, left)] == ["completed", "completed"]


async def test_the_gate_of_a_link_that_left_the_config_is_opened(bench: Bench) -> None:
    async with bench.runs():
        bench.cable.turn(DOWN)
        await anyio.wait_all_tasks_blocked()
        assert [gate.id for gate in bench.world.gates.all()] == ["link:cable"]
        bench.config("a", links=("other",))
        bench.lines.configure()
        await anyio.wait_all_tasks_blocked()
        assert bench.world.gates.all() == []
        assert [cable.section.name for cable in bench.cables] == ["cable", "other"]


async def test_an_outage_counts_what_lay_in_the_outbox_and_what_waited_behind_the_gate(bench: Bench) -> None:
    bench.config("a")
    async with bench.runs():
        bench.cable.bring("a", beat(1))
        await anyio.wait_all_tasks_blocked()
        bench.cable.lose = True
        await bench.world.add("sent")
        await bench.sent(1)
        for number in range(5):
            await bench.world.add(f"{number}")
        await anyio.wait_all_tasks_blocked()
        bench.cable.turn(None)
        await bench.sent(3)  # And the window of two is full.
        row = "SELECT parked, resumed, ended_at_ms IS NULL FROM outage WHERE cause = 'link'"
        assert await bench.world.rows(f"{row} ORDER BY ord DESC LIMIT 1") == [(6, 6, 0)]


async def test_what_works_elsewhere_is_looked_at_here_without_the_host(world: World) -> None:
    elsewhere = Elsewhere(world.context.executors["command"])
    elsewhere.accepts(Work(argv=("true",), cwd="/nowhere/here"))
    for work, code in (
        (Work(argv=("true",), cwd="here"), "bad_cwd"),
        (Work(argv=("true",), workspace="copy"), "bad_request"),
    ):
        with pytest.raises(Rejected) as refused:
            elsewhere.accepts(work)
        assert refused.value.code == code


@pytest.mark.parametrize(("executor", "state"), [("command", "uncertain"), ("safe", "waiting")])
async def test_what_the_broker_lost_is_settled_as_lost(
    bench: Bench, clock: FakeClock, executor: str, state: str
) -> None:
    bench.config("a", lease_s=3.0)
    async with bench.runs():
        bench.cable.bring("a", beat(attempts=()))
        task = await bench.world.add("one", executor=executor)
        await bench.sent(1)
        for _ in range(4):
            bench.cable.bring("a", beat(attempts=()))
            await anyio.wait_all_tasks_blocked()
            clock.now_s += 2
            bench.lines.configure()
            await anyio.wait_all_tasks_blocked()
        lost = await bench.task(task)
        assert (lost.state, lost.problem and lost.problem.code) == (state, "runner_silent")


async def test_only_what_is_in_the_journal_is_acknowledged(bench: Bench) -> None:
    bench.config("a")
    written, tried = bench.results.write_down, bench.results.try_all

    async def try_all(results: Sequence[Result]) -> list[bool]:
        good = [result for result in results if result.output == "good"]
        assert await tried(good) == [True] * len(good)
        return [result in good for result in results]

    async def write_down(result: Result) -> list[str] | None:
        if result.output == "closed":
            return None
        if result.output == "rejected":
            raise Rejected("internal", detail="nobody can read it")
        if result.output == "fault":
            raise ValueError(result.output)
        return await written(result)

    bench.results.try_all, bench.results.write_down = try_all, write_down
    async with bench.runs():
        bench.cable.bring("a", beat())
        for name in ("closed", "rejected", "fault", "good"):
            await bench.world.add(name)
        commands = {command.work.argv[0]: command for command in await bench.sent(4) if command.work.argv}
        ended = [Result(one.attempt_id, one.task_id, 1, "success", output=name) for name, one in commands.items()]
        bench.cable.bring("a", *ended)
        await bench.cable.until(lambda: commands["good"].attempt_id in bench.cable.acked)
        assert bench.cable.acked == ["beat", commands["good"].attempt_id]
        assert len(bench.cable.refused) == 1
        assert (await bench.world.task(commands["good"].task_id)).state == "completed"


async def test_results_that_come_together_leave_others_their_turn(bench: Bench) -> None:
    count, seen = 3 * RESULTS_AT_ONCE - 1, list[int]()

    async def try_all(results: Sequence[Result]) -> list[bool]:
        seen.append(len(results))
        await anyio.lowlevel.checkpoint()
        return [True] * len(results)

    bench.results.try_all = try_all
    async with bench.runs():
        bench.cable.bring("a", *(Result(f"a{number}", "i", 1, "success") for number in range(count)))
        await bench.cable.until(lambda: len(bench.cable.acked) == count)
    assert max(seen) == RESULTS_AT_ONCE
    assert len(set(bench.cable.acked)) == count
