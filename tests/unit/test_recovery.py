"""What becomes of attempts: of those that an earlier daemon left open, and of those whose executor is at fault."""

from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest

from omnid.errors import Fatal, Rejected, Retryable
from omnid.executor.interface import Found
from omnid.flow.gates import Gates
from omnid.flow.recovery import Recovery
from omnid.flow.results import Results
from omnid.flow.runner import JournalPorts, Runner
from omnid.link.embedded import EmbeddedLink
from omnid.link.interface import EMBEDDED
from omnid.model import Command, Result, Work
from omnid.retry import Backoff
from tests.fakes.clock import FakeClock
from tests.fakes.world import World

pytestmark = pytest.mark.anyio


class Scripted:
    """An executor that does what the test says, and remembers what it was asked for."""

    kind = "in_process"
    concurrency: int | None = None
    idempotent = False
    takes_prompts = False

    def __init__(self, name: str, *, found: Any = Found.NEVER_RAN, run: Any = "success") -> None:
        self.name = name
        self.found = found
        self.outcome = run
        self.asked: list[str] = []

    def accepts(self, work: Work) -> None:
        pass

    def exact(self, work: Work) -> Work:
        return work

    async def probe(self) -> None:
        pass

    async def recover(self, command: Command, ports: Any) -> Found:
        self.asked.append("recover")
        found = self.found.pop(0) if isinstance(self.found, list) else self.found
        if isinstance(found, Exception):
            raise found
        return found

    async def run(self, command: Command, ports: Any) -> Result:
        return await self._answer("run", command)

    async def adopt(self, command: Command, ports: Any) -> Result:
        return await self._answer("adopt", command)

    async def _answer(self, how: str, command: Command) -> Result:
        self.asked.append(how)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        if self.outcome == "hang":
            await anyio.sleep_forever()
        return Result(command.attempt_id, command.task_id, command.number, self.outcome)

    async def cancel(self, attempt_id: str) -> None:
        self.asked.append("cancel")

    async def settled(self, attempt_id: str) -> None:
        self.asked.append("settled")

    async def aclose(self) -> None:
        pass


class Rooms:
    """Runner and recovery over a world."""

    def __init__(self, world: World, **executors: Scripted) -> None:
        self.world = world
        context = world.context
        context.take_executors({**context.executors, **executors})
        self.results = Results(context, world.gates)
        self.link = EmbeddedLink()
        self.runner = Runner(context, world.gates, self.results)
        self.recovery = Recovery(context, self.runner, self.results)

    async def recover(self) -> int:
        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                return await self.recovery.run(group)

    async def run(self, command: Command) -> None:
        self.world.context.running[command.attempt_id] = command.executor
        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                self.runner.begin(group, command)


Make = Callable[..., Rooms]


@pytest.fixture
def rooms(world: World) -> Iterator[Make]:
    made: list[Rooms] = []

    def make(**executors: Scripted) -> Rooms:
        made.append(Rooms(world, **executors))
        return made[-1]

    yield make
    for one in made:
        one.link.close()


async def left_open(world: World, **fields: Any) -> Command:
    """A task whose attempt was open when the daemon was killed."""
    await world.add("x", **fields)
    (command,) = await world.claim()
    await world.restart()
    return command


@pytest.mark.parametrize(
    ("found", "asked", "state"),
    [
        (Found.NEVER_RAN, ["recover", "run", "settled"], "completed"),
        (Found.RUNNING, ["recover", "adopt", "settled"], "completed"),
        (Found.LOST, ["recover", "settled"], "uncertain"),
    ],
)
async def test_an_open_attempt_is_run_adopted_or_lost(
    world: World, rooms: Make, found: Found, asked: list[str], state: str
) -> None:
    command = await left_open(world)
    executor = Scripted("command", found=found)
    assert await rooms(command=executor).recover() == 1
    task = await world.task(command.task_id)
    assert (task.state, task.attempt, executor.asked) == (state, 1, asked)
    assert world.context.running == {}


async def test_lost_work_that_is_harmless_runs_again(world: World, rooms: Make) -> None:
    command = await left_open(world, executor="safe")
    await rooms(safe=Scripted("safe", found=Found.LOST)).recover()
    task = await world.task(command.task_id)
    assert (task.state, task.reason, task.failures) == ("waiting", "backoff", 0)
    await world.control("t1", "retry")
    assert [one.number for one in await world.claim()] == [2]


async def test_promise_3_follows_what_held_at_the_start_of_the_attempt(world: World, rooms: Make) -> None:
    command = await left_open(world, executor="safe")
    now_unsafe = Scripted("safe", found=Found.LOST)
    assert not now_unsafe.idempotent
    assert command.idempotent
    await rooms(safe=now_unsafe).recover()
    assert (await world.task(command.task_id)).reason == "backoff"


async def test_a_cancel_that_was_not_passed_on_is_passed_on(world: World, rooms: Make) -> None:
    command = await left_open(world)
    await world.control("t1", "cancel")
    executor = Scripted("command", found=Found.RUNNING, run="cancelled")
    await rooms(command=executor).recover()
    assert executor.asked == ["recover", "cancel", "adopt", "settled"]
    assert (await world.task(command.task_id)).state == "cancelled"


async def test_a_cancelled_attempt_that_never_ran_does_not_run(world: World, rooms: Make) -> None:
    command = await left_open(world)
    await world.control("t1", "cancel")
    executor = Scripted("command")
    await rooms(command=executor).recover()
    assert executor.asked == ["recover", "settled"]
    assert (await world.task(command.task_id)).state == "cancelled"


async def test_an_executor_that_can_not_tell_yet_is_asked_again(
    world: World, rooms: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omnid.flow.runner.SETTLE_BACKOFF", Backoff(0.001, 0.001))
    command = await left_open(world)
    not_yet = Retryable("executor_down", executor="command", detail="x")
    unclear: list[str] = []

    class Slow(Scripted):
        async def recover(self, command: Command, ports: Any) -> Found:
            unclear.extend(problem.code for problem in world.context.unclear.values())
            return await super().recover(command, ports)

    executor = Slow("command", found=[not_yet, not_yet, Found.RUNNING])
    await rooms(command=executor).recover()
    assert unclear == ["executor_down"] * 2, "what `why` tells meanwhile"
    assert world.context.unclear == {}
    assert executor.asked == ["recover"] * 3 + ["adopt", "settled"]
    assert (await world.task(command.task_id)).state == "completed"
    assert world.logged.getvalue().count("recovery_waits") == 1


async def test_a_command_of_an_executor_that_left_the_config_is_looked_after(world: World, rooms: Make) -> None:
    command = await left_open(world, executor="safe")
    del world.context.executors["safe"]
    executor = Scripted("command", found=Found.RUNNING)
    await rooms(command=executor).recover()
    assert "adopt" in executor.asked
    assert (await world.task(command.task_id)).state == "completed"


async def test_other_work_of_an_executor_that_left_the_config_is_lost(world: World, rooms: Make) -> None:
    command = await left_open(world)
    world.context.take_executors({})
    await rooms().recover()
    assert (await world.task(command.task_id)).state == "uncertain"
    assert "executor_gone" in world.logged.getvalue()


async def test_many_open_attempts_are_all_looked_after(
    world: World, rooms: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omnid.flow.recovery.PAGE_MAX", 3)
    for _ in range(7):
        await world.add("x")
    await world.claim()
    assert await rooms(command=Scripted("command")).recover() == 7
    assert world.store.tally["completed"] == 7


async def test_what_the_journal_does_not_know_is_set_aside_and_what_ended_is_tidied(
    world: World, rooms: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ended", "open"):
        await world.add(name)
    done, still = await world.claim()
    await world.finish(done, "success")
    spool: Any = world.context.spool
    for attempt_id in ("stranger", "another", done.attempt_id, still.attempt_id):
        await spool.append_log(attempt_id, "x")
        (spool.directory(attempt_id) / "control").touch()

    async def aside(attempt_id: str) -> None:
        if attempt_id == "another":
            raise OSError("busy")
        world.set_aside.append(attempt_id)

    world.context.set_aside = aside
    await rooms().recovery.tidy()
    assert world.set_aside == ["stranger"]
    assert "spool_not_tidied" in world.logged.getvalue()
    assert not (spool.directory(done.attempt_id) / "control").exists()
    assert (spool.directory(still.attempt_id) / "control").exists()


# The runner, on attempts of its own daemon.


async def test_an_executor_that_is_down_closes_its_gate_and_nothing_counts(
    world: World, rooms: Make, clock: FakeClock
) -> None:
    await world.add("x")
    (command,) = await world.claim()
    error = Retryable("executor_down", executor="command", detail="gone")
    await rooms(command=Scripted("command", run=error)).run(command)
    task = await world.task(command.task_id)
    assert (task.state, task.reason, task.failures) == ("waiting", "backoff", 0)
    assert world.gates.closed() == {"command"}


async def test_work_that_is_refused_fails_for_good(world: World, rooms: Make) -> None:
    await world.add("x")
    (command,) = await world.claim()
    error = Rejected("bad_arguments", tool="t", detail="x")
    await rooms(command=Scripted("command", run=error)).run(command)
    task = await world.task(command.task_id)
    assert (task.state, task.problem and task.problem.code) == ("failed", "bad_arguments")


@pytest.mark.parametrize(("executor", "state"), [("command", "uncertain"), ("safe", "waiting")])
async def test_a_fault_of_an_executor_may_have_had_an_effect(
    world: World, rooms: Make, executor: str, state: str
) -> None:
    await world.add("x", executor=executor)
    (command,) = await world.claim()
    await rooms(**{executor: Scripted(executor, run=ValueError("odd"))}).run(command)
    task = await world.task(command.task_id)
    assert (task.state, task.problem and task.problem.code) == (state, "executor_fault")
    assert task.problem is not None
    assert "ValueError: odd" in task.problem.what
    assert world.context.active == {}


async def test_an_executor_that_never_answers_is_given_up(
    world: World, rooms: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omnid.flow.runner.OVERRUN_S", 0.01)
    await world.add("x", timeout_s=0.01)
    (command,) = await world.claim()
    await rooms(command=Scripted("command", run="hang")).run(command)
    assert (await world.task(command.task_id)).state == "uncertain"


async def test_a_late_result_lets_its_executor_keep_what_it_has(world: World, rooms: Make) -> None:
    await world.add("x")
    (command,) = await world.claim()
    await world.finish(command, "success")
    executor = Scripted("command")
    await rooms(command=executor).run(command)
    assert executor.asked == ["run"]


async def test_only_fatal_gets_out_of_an_attempt(world: World, rooms: Make) -> None:
    await world.add("x")
    (command,) = await world.claim()
    house = rooms(command=Scripted("command"))

    async def broken(result: Result) -> bool:
        raise Fatal("store_io", path="/", detail="x")

    house.results.settle = broken
    with pytest.raises(BaseExceptionGroup) as caught:
        await house.run(command)
    assert caught.group_contains(Fatal)


async def test_an_executor_that_left_between_claim_and_start_gives_the_attempt_back(world: World, rooms: Make) -> None:
    await world.add("x", executor="safe")
    (command,) = await world.claim()
    house = rooms()
    world.context.take_executors({"command": world.context.executors["command"]})
    await house.run(command)
    task = await world.task(command.task_id)
    assert (task.state, task.failures) == ("waiting", 0)
    assert world.context.running == {}


async def test_commands_that_arrive_are_run(world: World, rooms: Make) -> None:
    await world.add("x")
    (command,) = await world.claim()
    executor = Scripted("command")
    house = rooms(command=executor)
    event = world.context.watch.event(command.task_id)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(house.runner.run, group, house.link)
            await house.link.send(EMBEDDED, (command,))
            await event.wait()
            group.cancel_scope.cancel()
    assert (await world.task(command.task_id)).state == "completed"


async def test_notes_are_kept_with_the_attempt_and_bounded(world: World, rooms: Make) -> None:
    await world.add("x")
    (command,) = await world.claim()
    ports = JournalPorts(world.context)
    for n in range(3):
        await ports.note(command.attempt_id, "seen", {"n": n})
    await ports.note(command.attempt_id, "other", "")
    assert await ports.notes(command.attempt_id, "seen") == [{"n": 0}, {"n": 1}, {"n": 2}]
    world.set("limits", notes_max=4)
    with pytest.raises(Rejected) as caught:
        await ports.note(command.attempt_id, "seen", 1)
    assert caught.value.code == "too_many"
    assert "limits.notes_max" in caught.value.do
    await world.finish(command, "lost", problem=None)
    await world.control("t1", "done")
    assert len(await world.rows("SELECT 1 FROM note")) == 5, "there is room for what a person says"


async def test_a_gate_that_can_not_be_written_takes_the_attempt_back_all_the_same(world: World, rooms: Make) -> None:
    await world.add("x")
    (command,) = await world.claim()
    error = Retryable("executor_down", executor="command", detail="gone")
    house = rooms(command=Scripted("command", run=error))

    async def full(self: Gates, executor: str, error: Retryable) -> None:
        raise Retryable("disk_full", path="/", detail="x")

    world.gates.executor_down = full.__get__(world.gates)
    await house.run(command)
    assert (await world.task(command.task_id)).reason == "backoff"
    assert "gate_not_closed" in world.logged.getvalue()
