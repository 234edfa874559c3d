"""Starts what may start: claims tasks in the order of priority and submission, and hands them on as commands."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import NamedTuple

import msgspec

from omnid.executor.interface import Executor
from omnid.flow import lookout, money
from omnid.flow.commands import hand_over
from omnid.flow.context import Context, FirstCall
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
from omnid.route.runners import Seats
from omnid.settings import Config
from omnid.store import journal
from omnid.store.interface import Reader, Tx

SENT_MAX = 32
"""How many commands for runners elsewhere one transaction writes at most, so that others have their turn."""
NO_SEATS = Seats()


class Sent(NamedTuple):
    """An attempt that was given to a runner elsewhere."""

    attempt_id: str
    task_id: str
    executor: str
    runner: str


class Claimed(NamedTuple):
    """What one transaction claimed."""

    commands: list[Command]
    """For the runner in the daemon."""
    calls: dict[str, FirstCall]
    """Their first calls that are written down by now, by attempt."""
    sent: list[Sent]
    """For runners on other hosts: they are in their outboxes."""
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
        context.store.attend(partial(self._claim, stirred=True), self._take, context.dispatch.ring)

    async def run(self) -> None:
        """Starts tasks whenever the bell rings; ends when it is cancelled."""
        while True:
            while await self.start_some():
                pass
            await self._context.dispatch.wait()

    async def start_some(self) -> bool:
        """Starts what fits now; tells whether there may be more."""
        await self._send()
        if not self.room():
            return False
        claimed = await self._context.store.write(self._claim, then=self._take)
        await self._send()
        return claimed.more

    def room(self) -> dict[str, int]:
        """Gives how many tasks may start on each executor now; none of those whose gates are closed."""
        return {**self._room()[0], **self._seats().rooms()}

    def _room(self, begun: Iterable[str] = (), ended: Iterable[str] = ()) -> tuple[dict[str, int], int]:
        """Gives how many tasks may start on each executor in the daemon, and in all.

        `begun` (their executors) and `ended` are attempts of a transaction that isn't committed yet.
        """
        context = self._context
        if context.paused_starts:
            return {}, 0
        running, elsewhere = Counter(context.running.values()), context.fleet.executors
        running.update([name for name in begun if name not in elsewhere])
        running.subtract([context.running[id] for id in ended if id in context.running])
        executors = context.executors.items()
        loads = {name: Load(running[name], one.concurrency) for name, one in executors if name not in elsewhere}
        slots_free = context.config.daemon.slots_max - running.total()
        return room(loads, self._gates.closed(), slots_free), slots_free

    def _seats(self, ended: Iterable[str] = ()) -> Seats:
        """Gives what runners elsewhere can take."""
        if self._context.paused_starts or not self._context.fleet.executors:
            return NO_SEATS
        return self._context.fleet.seats(self._gates.closed(), ended)

    def _claim(self, tx: Tx, *, stirred: bool = False) -> Claimed:
        """Claims what fits at the moment of the transaction: a gate that was closed before it has begun holds.

        `stirred`: it is called because something may have become ready, in an earlier transaction perhaps.
        """
        if stirred or tx.stirred:
            lookout.stir(tx)
        context = self._context
        free, slots_free = self._room(tx.begun, tx.ended)
        seats = self._seats(tx.ended)
        claimed = Claimed([], {}, [], more=False, turned=Turned.nothing())
        if free or seats.rooms():
            claimed = claim(tx, context, free=free, slots_free=slots_free, seats=seats)
        tx.stirred = False
        return claimed

    def _take(self, claimed: Claimed) -> None:
        """What was claimed takes its slots as soon as that is committed, whoever still waits for it."""
        context = self._context
        context.first_calls.update(claimed.calls)
        for command in claimed.commands:
            context.take_on(command.attempt_id, command.executor)
            if self._claimed or not self._link.offer(command):
                self._claimed.append(command)
            context.watch.tell((command.task_id,))
        for sent in claimed.sent:
            context.fleet.took(sent.attempt_id, sent.runner, sent.executor, unsent=True)
            context.watch.tell((sent.task_id,))
        self._gates.took(claimed.turned)
        if claimed.more or self._claimed:
            context.dispatch.ring()
        elif context.shut():
            context.failover.ring()

    async def _send(self) -> None:
        while self._claimed:
            await self._link.send(EMBEDDED, (self._claimed[0],))
            self._claimed.popleft()


def claim(tx: Tx, context: Context, *, free: Mapping[str, int], slots_free: int, seats: Seats = NO_SEATS) -> Claimed:
    """Claims the first tasks that fit: for each a new attempt and the state executing, in this transaction.

    `free` and `slots_free` are what may start in the daemon, `seats` what runners elsewhere can take. Where a cap on
    money keeps a task from its start, a gate closes or the task waits: `Claimed.turned` has that. Where calls are paid
    and not attempts, the first of them is written with its attempt, if it can be made now.
    """
    chosen, cut, looks = _chosen(tx, free, slots_free, seats)
    claimed = Claimed([], {}, [], False, Turned.nothing())
    held = False
    lanes: set[str] = set()
    for task in chosen:
        if task.lane is not None:
            if task.lane in lanes:
                continue
            lanes.add(task.lane)
        if task.deadline_ms is not None and task.deadline_ms <= tx.now_ms:
            continue
        if _held_back(tx, task, context.executors[task.executor]):
            held = True
            continue
        is_free, reserved = _admit(tx, context.budget, task, claimed.turned)
        if is_free:
            start = partial(_start, tx, context, task, reserved, claimed.calls)
            _hand_on(tx, task, start, seats if task.executor not in free else None, claimed)
    # Whoever was passed over had a slot that another may take; but those who stay where they are come again next time.
    count = len(claimed.commands) + len(claimed.sent)
    more = held or looks or any(claimed.turned) or 0 < count < len(chosen) or (cut and count > 0)
    return claimed._replace(more=more)


def _admit(tx: Tx, budget: Budget, task: Task, turned: Turned) -> tuple[bool, int | None]:
    """Tells whether caps on money let a task start, and what is reserved for it."""
    if task.executor not in budget.paid or task.executor in budget.by_call:
        return True, None
    if f"{money.GATE}:{task.executor}" in turned.closed:
        return False, None
    reserved = money.admit(tx, budget, task, turned)
    return reserved is not None, reserved


def _hand_on(tx: Tx, task: Task, start: Callable[..., Command], seats: Seats | None, claimed: Claimed) -> None:
    """Starts a task in the daemon, or by way of the outbox of a runner elsewhere, where one has a seat for it."""
    if seats is None:
        claimed.commands.append(start())
        return
    runner = seats.take(task.executor, task.labels) if len(claimed.sent) < SENT_MAX else None
    if runner is None:
        return
    command = start(runner=runner)
    hand_over(tx, runner, command)
    claimed.sent.append(Sent(command.attempt_id, command.task_id, command.executor, runner))


def _chosen(tx: Tx, free: Mapping[str, int], slots_free: int, seats: Seats) -> tuple[list[Task], bool, bool]:
    """Gives the tasks to start, in order, whether there may be more for runners elsewhere, and whether to look on."""
    # A gate that was closed while this waited for its turn holds too.
    closed, ajar = doors(tx)
    elsewhere = seats.rooms()
    here: list[Task] = []
    there: list[Task] = []
    cut = looks = False
    for (executor,) in tx.all("ready_executors"):
        if closed and not closed.isdisjoint(("*", executor)):
            continue
        if executor in free:
            most = 1 if executor in ajar else free[executor]
            here += [journal.task_of(row) for row in tx.all("ready_tasks", executor, most)]
        elif executor in elsewhere:
            most = 1 if executor in ajar else min(SENT_MAX, elsewhere[executor])
            rows = tx.all("ready_tasks", executor, most)
            fit = [task for task in map(journal.task_of, rows) if seats.could(executor, task.labels)]
            if len(fit) < len(rows) == most and executor not in ajar:
                # Whoever waits for another runner holds up nobody behind it.
                fit, more = lookout.look(tx, executor, seats, most)
                looks = looks or more
            there += fit
            cut = cut or len(rows) >= most
    chosen = first(here, slots_free)
    if there:
        chosen = first([*chosen, *there], len(chosen) + len(there))
    return chosen, cut, looks


def _held_back(tx: Tx, task: Task, executor: Executor) -> bool:
    """Makes a task wait again for whose start something has changed while it waited for its turn; tells whether."""
    if task.approval is not None and not still_granted(task, executor.exact(task.work)):
        # Its executor's config has changed since a person approved what would run.
        settle_wait(tx, journal.edit_task(tx, task, approval="needed"))
        return True
    return task.work.only is not None and settle_wait(tx, task).state != "idle"  # Its hours have ended.


def _start(
    tx: Tx,
    context: Context,
    task: Task,
    reserved_microusd: int | None,
    calls: dict[str, FirstCall],
    *,
    runner: str | None = None,
) -> Command:
    """Writes the attempt and what it reserves, and gives its command."""
    attempt_id, safe = context.clock.uuid(), context.executors[task.executor].idempotent
    before = earlier(tx, task, task.attempt + 1) if task.attempt else NOTHING_EARLIER
    started = journal.start_attempt(
        tx, task, attempt_id, idempotent=safe, route=written(task, runner), reserved_microusd=reserved_microusd
    )
    if reserved_microusd is not None:
        money.reserve(tx, started, attempt_id, reserved_microusd)
    elif runner is None and context.reserve_first is not None and task.executor in context.budget.by_call:
        reserved_microusd = context.reserve_first(calls, tx, started, attempt_id)
    reserved_usd = None if reserved_microusd is None else reserved_microusd / MICRO
    return command_of(started, attempt_id, context.config, idempotent=safe, before=before, reserved_usd=reserved_usd)


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
