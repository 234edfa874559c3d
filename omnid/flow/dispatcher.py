"""Starts what may start: claims tasks in the order of priority and submission, and hands them on as commands."""

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from omnid.clock import Clock
from omnid.config import Config
from omnid.executor.interface import Executor
from omnid.flow.context import Context
from omnid.flow.dependents import settle_wait
from omnid.flow.gates import Gates
from omnid.flow.intake import still_granted
from omnid.link.interface import Link
from omnid.model import Command, Task
from omnid.route.admission import Load, first, room
from omnid.route.router import route
from omnid.store import journal
from omnid.store.interface import Tx


class Claimed(NamedTuple):
    """What one transaction claimed."""

    commands: list[Command]
    more: bool
    """Whether there may be more that fits: something that was looked at couldn't start."""


class Dispatcher:
    """Holds what it can start, never what waits: the queue is an index of the journal.

    It looks in the very transaction in which a task becomes ready or an attempt ends, and claims what may start by
    then. The bell is for all that isn't in the journal: gates, slots, the config.
    """

    def __init__(self, context: Context, gates: Gates, link: Link) -> None:
        self._context = context
        self._gates = gates
        self._link = link
        self._claimed: deque[Command] = deque()
        """Claimed and not handed on yet; never more than there are slots."""
        context.store.attend(self._claim, self._take, context.dispatch.ring)

    async def run(self) -> None:
        """Starts tasks whenever the bell rings; ends when it is cancelled."""
        while True:
            while await self.start_some():
                pass
            await self._context.dispatch.wait()

    async def start_some(self) -> bool:
        """Starts what fits now; tells whether there may be more."""
        await self._send()
        if not self._room()[0]:
            return False
        claimed = await self._context.store.write(self._claim, then=self._take)
        await self._send()
        return claimed.more

    def _room(self, begun: Iterable[str] = (), ended: Iterable[str] = ()) -> tuple[dict[str, int], int]:
        """Gives how many tasks may start on each executor and in all.

        `begun` (their executors) and `ended` are attempts of a transaction that isn't committed yet.
        """
        context = self._context
        if context.paused_starts:
            return {}, 0
        running = Counter(context.running.values())
        running.update(begun)
        running.subtract(context.running[id] for id in ended if id in context.running)
        loads = {name: Load(running[name], executor.concurrency) for name, executor in context.executors.items()}
        slots_free = context.config.daemon.slots_max - running.total()
        return room(loads, self._gates.closed(), slots_free), slots_free

    def _claim(self, tx: Tx) -> Claimed:
        """Claims what fits at the moment of the transaction: a gate that was closed before it has begun holds."""
        context = self._context
        free, slots_free = self._room(tx.begun, tx.ended)
        claimed = Claimed([], more=False)
        if free:
            claimed = claim(
                tx,
                free=free,
                slots_free=slots_free,
                executors=context.executors,
                config=context.config,
                clock=context.clock,
            )
        tx.stirred = False
        return claimed

    def _take(self, claimed: Claimed) -> None:
        """What was claimed takes its slots as soon as that is committed, whoever still waits for it."""
        context = self._context
        for command in claimed.commands:
            context.running[command.attempt_id] = command.executor
            if self._claimed or not self._link.offer(command):
                self._claimed.append(command)
            context.watch.tell((command.task_id,))
        if claimed.more or self._claimed:
            context.dispatch.ring()

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
) -> Claimed:
    """Claims the first tasks that fit: for each a new attempt and the state executing, in this transaction."""
    # A gate that was closed while this waited for its turn holds too.
    closed = {row[2] for row in tx.all("gates")}
    candidates: list[Task] = []
    for executor, count in free.items():
        if closed and not closed.isdisjoint(("*", executor)):
            continue
        candidates += [journal.task_of(row) for row in tx.all("ready_tasks", executor, count)]
    commands: list[Command] = []
    turned_away = 0
    lanes: set[str] = set()
    chosen = first(candidates, slots_free)
    for task in chosen:
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
            turned_away += 1
            continue
        attempt_id = clock.uuid()
        safe = executor.idempotent
        started = journal.start_attempt(tx, task, attempt_id, idempotent=safe, route=route(task.work, task.executor))
        commands.append(command_of(started, attempt_id, config, idempotent=safe))
    # Whoever was passed over had a slot that another may take; but those who stay where they are come again next time.
    return Claimed(commands, more=bool(commands or turned_away) and len(commands) < len(chosen))


def command_of(task: Task, attempt_id: str, config: Config, *, idempotent: bool, recover: bool = False) -> Command:
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
    )


def timeout_s(task: Task, config: Config) -> float:
    """Gives how long an attempt may take: the task's timeout, else the executor's, else the config's."""
    if task.work.timeout_s is not None:
        return task.work.timeout_s
    executor = config.executors().get(task.executor)
    return (executor and executor.timeout_s) or config.task.timeout_s
