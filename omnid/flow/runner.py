"""Takes commands from a link, calls their executors, and hands the results on. One task per attempt, guarded."""

from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Protocol

import anyio
from anyio.abc import TaskGroup

from omnid.errors import OmnidError, Retryable
from omnid.executor.allowance import Allowance
from omnid.executor.interface import Executor, Found
from omnid.flow.asking import Asking
from omnid.flow.context import Context
from omnid.flow.guard import guard
from omnid.flow.results import SETTLE_BACKOFF
from omnid.link.interface import Link
from omnid.model import Command, InputRequest, InputResponse, Problem, Result
from omnid.store import journal

IDLE_MAX = 64
"""How many tasks are kept for the next attempts, once what an earlier process had begun is taken over."""
OVERRUN_S = 60.0
"""How much longer than its timeout an executor may take to give a result before the runner gives up on it."""


class JournalPorts:
    """What executors may write durably; see `executor.interface.Ports`."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._asking = Asking(context)
        self.allowances: dict[str, Allowance] = {}
        """The time that each attempt has, which stands while it asks."""

    async def note(self, attempt_id: str, kind: str, body: Any) -> None:
        """See `Ports.note`."""
        limit = self._context.config.limits.notes_max
        await self._context.store.write(lambda tx: journal.add_note(tx, attempt_id, kind, body, notes_max=limit))

    async def notes(self, attempt_id: str, kind: str) -> list[Any]:
        """See `Ports.notes`."""
        # All of them: the limit may have been a higher one when they were written.
        return await self._context.store.read(lambda reader: journal.notes(reader, attempt_id, kind))

    async def ask(self, attempt_id: str, requests: Mapping[str, InputRequest]) -> dict[str, InputResponse]:
        """See `Ports.ask`."""
        with self.allowances[attempt_id].held():
            return await self._asking.ask(attempt_id, requests)

    def may_ask(self, attempt_id: str, *, may: bool) -> None:
        """See `Ports.may_ask`."""
        if may:
            self._context.may_ask.add(attempt_id)
        else:
            self._context.may_ask.discard(attempt_id)

    async def withdraw(self, attempt_id: str, names: Collection[str]) -> None:
        """See `Ports.withdraw`."""
        await self._asking.withdraw(attempt_id, names)


class Standing(Protocol):
    """Hears how executors do; see `gates.Gates`."""

    async def executor_down(self, executor: str, error: Retryable) -> None:
        """Hears that an executor can't be used; nothing was begun."""
        ...

    def executor_worked(self, executor: str) -> None:
        """Hears that an executor has brought an attempt to its end."""
        ...


class Settles(Protocol):
    """Takes results; see `results.Results`."""

    async def settle(self, result: Result) -> bool:
        """Writes a result down, and tells whether it counts: a late or double one doesn't."""
        ...


class Runner:
    """Runs the commands of one link, side by side; the dispatcher decides how many there are.

    An attempt runs in a task, and a task that has ended its attempt takes the next one: to start a task costs more than
    to wake one.
    """

    def __init__(
        self, context: Context, gates: Standing, results: Settles, told: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """`told` is waited for before what an earlier process had begun and never ran is run: it may be cancelled."""
        self._context = context
        self._gates = gates
        self._results = results
        self._told = told
        self._ports = JournalPorts(context)
        self._begun: deque[tuple[Executor, Command]] = deque()
        """Waits for its task, which is about to run."""
        self._idle: list[anyio.Event] = []
        """Wakes the tasks that have nothing to do."""
        self._idle_max = 0

    async def run(self, group: TaskGroup, link: Link) -> None:
        """Starts each command that arrives in the group; ends when it is cancelled."""
        self.keep_tasks()
        while True:
            for received in await link.receive():
                if isinstance(received.message, Command):
                    self.begin(group, received.message)

    def keep_tasks(self) -> None:
        """Has tasks that have nothing to do wait for the next attempts; those of before end with their attempts."""
        self._idle_max = IDLE_MAX

    def begin(self, group: TaskGroup, command: Command, name: str | None = None) -> None:
        """Starts one command in the group, on the executor `name` where that isn't the command's own."""
        executor = self._context.executors.get(name or command.executor)
        if executor is None:
            group.start_soon(self._without_executor, command)
            return
        self._context.active[command.attempt_id] = executor
        self._begun.append((executor, command))
        if self._idle:
            self._idle.pop().set()
        else:
            group.start_soon(self._work)

    async def _without_executor(self, command: Command) -> None:
        """Takes back an attempt whose executor left the config between its claim and its start."""
        problem = Problem.make("executor_down", executor=command.executor, detail="it is not in the config any more")
        settle = self._results.settle(command.ended("unstarted", problem))
        await guard(f"attempt {command.name}", lambda: settle, log=self._context.log)
        self._context.let_go(command.attempt_id)
        self._context.dispatch.ring()

    async def _work(self) -> None:
        """Runs one attempt after the other, and waits for more unless enough others do."""
        while True:
            while self._begun:
                executor, command = self._begun.popleft()
                await guard(f"attempt {command.name}", self._one, executor, command, log=self._context.log)
            if len(self._idle) >= self._idle_max:
                return
            woken = anyio.Event()
            self._idle.append(woken)
            await woken.wait()

    async def _one(self, executor: Executor, command: Command) -> None:
        """Brings one attempt to its result; the result is settled even when the executor is at fault."""
        context = self._context
        settled = False
        allowance = self._ports.allowances[command.attempt_id] = Allowance(command.timeout_s + OVERRUN_S)
        try:
            result = None
            with allowance.scope:
                result = await self._call(executor, command)
            if result is None:
                detail = "it gave no result in time"
                problem = Problem.make("executor_fault", executor=command.executor, detail=detail)
                result = failed(command, problem)
            if result.outcome != "unstarted":
                self._gates.executor_worked(command.executor)
            settled = await self._results.settle(result)
            if settled:
                await executor.settled(command.attempt_id)
        finally:
            del self._ports.allowances[command.attempt_id]
            context.let_go(command.attempt_id)
            if not settled:
                context.dispatch.ring()  # Else the dispatcher has looked when the attempt ended.

    async def _call(self, executor: Executor, command: Command) -> Result:
        try:
            recovered = await self._recovered(executor, command) if command.recover else None
            if recovered is not None:
                return recovered
            if command.recover and self._told is not None:
                with self._ports.allowances[command.attempt_id].held():
                    await self._told()
            if self._context.cancel_was_asked(command.attempt_id):
                return unbegun(command)
            return await executor.run(command, self._ports)
        except Retryable as error:
            await self._close_gate(command, error)
            return command.ended("unstarted", Problem.of(error))
        except OmnidError as error:
            problem = Problem.of(error)
            return failed(command, problem) if command.recover else command.ended("rejected", problem)
        except Exception as error:
            self._context.log.exception("executor_fault", executor=command.executor, task=command.name)
            detail = f"{type(error).__name__}: {error}"[:500]
            return failed(command, Problem.make("executor_fault", executor=command.executor, detail=detail))

    async def _close_gate(self, command: Command, error: Retryable) -> None:
        """Closes the executor's gate; where that can't be written, the attempt is taken back all the same."""
        try:
            await self._gates.executor_down(command.executor, error)
        except Retryable as unwritten:
            self._context.log.warning("gate_not_closed", executor=command.executor, **unwritten.as_dict())

    async def _recovered(self, executor: Executor, command: Command) -> Result | None:
        """Gives the result of an attempt of an earlier daemon, None where it never ran.

        An executor that can't tell yet is asked again: what may have begun is never taken for what hasn't.
        """
        failures = 0
        while True:
            try:
                found = await executor.recover(command, self._ports)
                self._context.unclear.pop(command.attempt_id, None)
                if found is Found.RUNNING:
                    return await self._adopt(executor, command)
                return lost(command) if found is Found.LOST else None
            except Retryable as error:
                failures += 1
                self._context.unclear[command.attempt_id] = Problem.of(error)
                if failures == 1:
                    self._context.log.warning("recovery_waits", task=command.name, **error.as_dict())
            await anyio.sleep(SETTLE_BACKOFF.delay_s(failures, self._context.clock.uniform))

    async def _adopt(self, executor: Executor, command: Command) -> Result:
        """Waits for an attempt of an earlier daemon; a cancel that this one had not passed on is passed on now."""
        if self._context.cancel_was_asked(command.attempt_id):
            await executor.cancel(command.attempt_id)
        return await executor.adopt(command, self._ports)


def failed(command: Command, problem: Problem) -> Result:
    """Makes a failure: whatever happened may have had an effect, so only idempotent work may run again."""
    return command.ended("failure" if command.idempotent else "lost", problem)


def unbegun(command: Command) -> Result:
    """Makes the result of an attempt that was cancelled before it began: it had no effect, and cost nothing."""
    problem = Problem.make("cancelled", detail="It had not begun.")
    return command.ended("cancelled", problem, cost_usd=None if command.cost_max_usd is None else 0.0)


def left(command: Command, runner: str) -> Result:
    """Makes the result of a command that goes back because its runner was told to stop: it had no effect."""
    return command.ended("unstarted", Problem.make("runner_left", runner=runner, task=command.name))


def lost(command: Command) -> Result:
    """Makes the result of an attempt that died with the machine, its supervisor, or its server."""
    detail = "it had begun, and neither it nor its exit record was there when omnid came back"
    return command.ended(
        "lost",
        Problem.make("uncertain", executor=command.executor, detail=detail, task=command.name),
    )
