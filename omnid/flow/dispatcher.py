"""Starts what may start: claims tasks in the order of priority and submission, and hands them on as commands."""

from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from omnid.clock import Clock
from omnid.executor.interface import Executor
from omnid.flow.context import Context
from omnid.flow.dependents import settle_wait
from omnid.flow.gates import Gates
from omnid.flow.intake import still_granted
from omnid.flow.limits import doors
from omnid.link.interface import Link
from omnid.model import Command, Task
from omnid.route.admission import Load, first, room
from omnid.route.router import route
from omnid.settings import Config
from omnid.store import journal
from omnid.store.interface import Reader, Tx


class Dispatcher:
    """Holds what it can start, never what waits: the queue is an index of the journal."""

    def __init__(self, context: Context, gates: Gates, link: Link) -> None:
        self._context = context
        self._gates = gates
        self._link = link
        self._claimed: deque[Command] = deque()
        """Claimed and not handed on yet; never more than there are slots."""

    def loads(self) -> dict[str, Load]:
        """Gives what each executor does now and may do at most."""
        running = self._context.running_by_executor()
        return {name: Load(running[name], executor.concurrency) for name, executor in self._context.executors.items()}

    async def run(self) -> None:
        """Starts tasks whenever the bell rings; ends when it is cancelled."""
        while True:
            while await self.start_some():
                pass
            await self._context.dispatch.wait()

    async def start_some(self) -> bool:
        """Starts what fits now; tells whether there may be more."""
        await self._send()
        if not self._room():
            return False
        commands = await self._context.store.write(self._claim, then=self._take)
        await self._send()
        return bool(commands)

    def _room(self) -> dict[str, int]:
        context = self._context
        if context.paused_starts:
            return {}
        return room(self.loads(), self._gates.closed(), self._slots_free())

    def _slots_free(self) -> int:
        return self._context.config.daemon.slots_max - len(self._context.running)

    def _claim(self, tx: Tx) -> list[Command]:
        """Claims what fits at the moment of the transaction: a gate that was closed before it has begun holds."""
        context = self._context
        free = self._room()
        if not free:
            return []
        return claim(
            tx,
            free=free,
            slots_free=self._slots_free(),
            executors=context.executors,
            config=context.config,
            clock=context.clock,
        )

    def _take(self, commands: list[Command]) -> None:
        """What was claimed takes its slots as soon as that is committed, whoever still waits for it."""
        for command in commands:
            self._context.take_on(command.attempt_id, command.executor)
            self._claimed.append(command)
            self._context.watch.tell((command.task_id,))
        if commands:
            self._context.dispatch.ring()  # In case the one who asked for them has given up.

    async def _send(self) -> None:
        while self._claimed:
            await self._link.send(self._claimed[0])
            self._claimed.popleft()


def claim(
    tx: Tx,
    *,
    free: Mapping[str, int],
    slots_free: int,
    executors: Mapping[str, Executor],
    config: Config,
    clock: Clock,
) -> list[Command]:
    """Claims the first tasks that fit: for each a new attempt and the state executing, in this transaction."""
    # A gate that was closed while this waited for its turn holds too.
    closed, ajar = doors(tx)
    candidates: list[Task] = []
    for executor, count in free.items():
        if closed and not closed.isdisjoint(("*", executor)):
            continue
        most = 1 if executor in ajar else count
        candidates += [journal.task_of(row) for row in tx.all("ready_tasks", executor, most)]
    commands: list[Command] = []
    lanes: set[str] = set()
    for task in first(candidates, slots_free):
        if task.lane is not None:
            if task.lane in lanes:
                continue
            lanes.add(task.lane)
        if task.deadline_ms is not None and task.deadline_ms <= tx.now_ms:
            continue
        executor = executors[task.executor]
        if task.approval is not None and not still_granted(task, executor.exact(task.work)):
            # Its executor's config has changed since a person approved what would run.
            settle_wait(tx, journal.edit_task(tx, task, approval="needed"))
            continue
        attempt_id = clock.uuid()
        safe = executor.idempotent
        before = earlier(tx, task, task.attempt + 1) if task.attempt else NOTHING_EARLIER
        started = journal.start_attempt(tx, task, attempt_id, idempotent=safe, route=route(task.work, task.executor))
        commands.append(command_of(started, attempt_id, config, idempotent=safe, before=before))
    return commands


class Earlier(NamedTuple):
    """What the attempts before one have left for it; see `Command`."""

    begun: int = 0
    lost: bool = False
    session: str | None = None


NOTHING_EARLIER = Earlier()


def earlier(reader: Reader, task: Task, number: int) -> Earlier:
    """Looks at the attempts of the task's executor before that number."""
    begun = reader.one("attempts_begun", task.id, number, task.executor)
    if begun is None or not begun[0]:
        return NOTHING_EARLIER
    session = reader.one("session_of_task", task.id, number, task.executor)
    return Earlier(begun[0], bool(begun[1]), None if session is None else msgspec.json.decode(session[0]))


def command_of(
    task: Task,
    attempt_id: str,
    config: Config,
    *,
    idempotent: bool,
    recover: bool = False,
    before: Earlier = NOTHING_EARLIER,
) -> Command:
    """Makes the command of a task's current attempt."""
    return Command(
        attempt_id=attempt_id,
        task_id=task.id,
        number=task.attempt,
        name=task.name,
        executor=task.executor,
        work=task.work,
        timeout_s=timeout_s(task, config),
        recover=recover,
        idempotent=idempotent,
        begun_before=before.begun,
        lost_before=before.lost,
        session=before.session,
    )


def timeout_s(task: Task, config: Config) -> float:
    """Gives how long an attempt may take: the task's timeout, else the executor's, else the config's."""
    if task.work.timeout_s is not None:
        return task.work.timeout_s
    executor = config.executors().get(task.executor)
    return (executor and executor.timeout_s) or config.task.timeout_s
