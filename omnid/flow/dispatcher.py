"""Starts what may start: claims tasks in the order of priority and submission, and hands them on as commands."""

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from omnid.clock import Clock
from omnid.executor.interface import Executor
from omnid.flow import money
from omnid.flow.context import Context
from omnid.flow.dependents import settle_wait
from omnid.flow.gates import Gates
from omnid.flow.intake import still_granted
from omnid.flow.limits import doors
from omnid.flow.turned import Turned
from omnid.link.interface import EMBEDDED, InProcessLink
from omnid.model import Command, Task
from omnid.money import MICRO
from omnid.route.admission import Load, first, room
from omnid.route.budget import Budget
from omnid.route.router import written
from omnid.settings import Config
from omnid.store import journal
from omnid.store.interface import Reader, Tx


class Claimed(NamedTuple):
    """What one transaction claimed."""

    commands: list[Command]
    more: bool
    """Whether there may be more that fits: something that was looked at couldn't start."""
    turned: Turned
    """What caps on money did meanwhile."""


class Dispatcher:
    """Holds what it can start, never what waits: the queue is an index of the journal.

    It looks in the very transaction in which a task becomes ready or an attempt ends, and claims what may start by
    then. The bell is for all that isn't in the journal: gates, slots, the config.
    """

    def __init__(self, context: Context, gates: Gates, link: InProcessLink) -> None:
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

    def room(self) -> dict[str, int]:
        """Gives how many tasks may start on each executor now; none of those whose gates are closed."""
        return self._room()[0]

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
        claimed = Claimed([], more=False, turned=Turned.nothing())
        if free:
            claimed = claim(
                tx,
                free=free,
                slots_free=slots_free,
                executors=context.executors,
                config=context.config,
                clock=context.clock,
                budget=context.budget,
            )
        tx.stirred = False
        return claimed

    def _take(self, claimed: Claimed) -> None:
        """What was claimed takes its slots as soon as that is committed, whoever still waits for it."""
        context = self._context
        for command in claimed.commands:
            context.take_on(command.attempt_id, command.executor)
            if self._claimed or not self._link.offer(command):
                self._claimed.append(command)
            context.watch.tell((command.task_id,))
        self._gates.took(claimed.turned)
        if claimed.more or self._claimed:
            context.dispatch.ring()
        elif context.shut():
            context.failover.ring()

    async def _send(self) -> None:
        while self._claimed:
            await self._link.send(EMBEDDED, (self._claimed[0],))
            self._claimed.popleft()


def claim(
    tx: Tx,
    *,
    free: Mapping[str, int],
    slots_free: int,
    executors: Mapping[str, Executor],
    config: Config,
    clock: Clock,
    budget: Budget,
) -> Claimed:
    """Claims the first tasks that fit: for each a new attempt and the state executing, in this transaction.

    Where a cap on money keeps a task from its start, a gate closes or the task waits: `Claimed.turned` has that.
    """
    # A gate that was closed while this waited for its turn holds too.
    closed, ajar = doors(tx)
    candidates: list[Task] = []
    for (executor,) in tx.all("ready_executors"):
        if executor not in free or (closed and not closed.isdisjoint(("*", executor))):
            continue
        most = 1 if executor in ajar else free[executor]
        candidates += [journal.task_of(row) for row in tx.all("ready_tasks", executor, most)]
    commands: list[Command] = []
    turned = Turned.nothing()
    held = False
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
        if _held_back(tx, task, executor):
            held = True
            continue
        reserved = None
        if task.executor in budget.paid and task.executor not in budget.by_call:
            if f"{money.GATE}:{task.executor}" in turned.closed:
                continue
            reserved = money.admit(tx, budget, task, turned)
            if reserved is None:
                continue
        commands.append(_start(tx, task, executor, clock.uuid(), config, reserved))
    # Whoever was passed over had a slot that another may take; but those who stay where they are come again next time.
    return Claimed(commands, held or any(turned) or 0 < len(commands) < len(chosen), turned)


def _held_back(tx: Tx, task: Task, executor: Executor) -> bool:
    """Makes a task wait again for whose start something has changed while it waited for its turn; tells whether."""
    if task.approval is not None and not still_granted(task, executor.exact(task.work)):
        # Its executor's config has changed since a person approved what would run.
        settle_wait(tx, journal.edit_task(tx, task, approval="needed"))
        return True
    return task.work.only is not None and settle_wait(tx, task).state != "idle"  # Its hours have ended.


def _start(
    tx: Tx, task: Task, executor: Executor, attempt_id: str, config: Config, reserved_microusd: int | None
) -> Command:
    """Writes the attempt and what it reserves, and gives its command."""
    safe = executor.idempotent
    before = earlier(tx, task, task.attempt + 1) if task.attempt else NOTHING_EARLIER
    started = journal.start_attempt(
        tx, task, attempt_id, idempotent=safe, route=written(task), reserved_microusd=reserved_microusd
    )
    if reserved_microusd is None:
        return command_of(started, attempt_id, config, idempotent=safe, before=before)
    money.reserve(tx, started, attempt_id, reserved_microusd)
    reserved_usd = reserved_microusd / MICRO
    return command_of(started, attempt_id, config, idempotent=safe, before=before, reserved_usd=reserved_usd)


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
    reserved_usd: float | None = None,
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
        cost_max_usd=reserved_usd,
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
