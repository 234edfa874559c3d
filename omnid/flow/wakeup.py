"""The one timer: sleeps until the smallest time at which something is due, and sets it going."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple
from zoneinfo import ZoneInfo

import anyio
from anyio.abc import TaskGroup

from omnid.flow.context import Context
from omnid.flow.control import Cancelling
from omnid.flow.dependents import give_up, settle_dependents, settle_leftovers, settle_wait
from omnid.flow.gates import Gates
from omnid.flow.guard import first
from omnid.model import Problem
from omnid.store import journal
from omnid.store.interface import Reader, Row, Tx

Settle = Callable[[Tx, int], tuple[list[str], int | None]]
"""Settles a batch of tasks behind an `ord`; gives them, and after which to go on."""
BATCH_MAX = 500
NAP_S_MAX = 30.0
"""The longest sleep: a wall clock that jumps is noticed within it. Wall time is stored, monotonic time is slept."""
SET_BACK_MS = 1_000
"""By how much the wall clock must have been set back between two looks; less is how clocks are steered."""


class Done(NamedTuple):
    """What one round of the timer did."""

    touched: list[str]
    overdue: list[str]
    """Running tasks whose deadline has passed: their attempts are asked to end."""
    more: bool


class Wakeup:
    """Wakes waiting tasks, fails those past their deadline, and lets gates be probed."""

    def __init__(self, context: Context, gates: Gates, cancelling: Cancelling) -> None:
        self._context = context
        self._gates = gates
        self._cancelling = cancelling
        self._overdue: set[str] = set()
        self._ahead_ms = self._wall_ahead_ms()
        self._zone: ZoneInfo | None = None
        """That of the hours that tasks wait for; None: they are an earlier daemon's, with its zone and its clock."""

    async def run(self) -> None:
        """Works off what is due, then sleeps until the next time or the bell; ends when it is cancelled."""
        try:
            async with anyio.create_task_group() as probes:
                await self._go_on(probes)
        except ExceptionGroup as group:
            # Whoever keeps the timer going looks at the error's class.
            raise first(group) from group

    async def _go_on(self, probes: TaskGroup) -> None:
        while True:
            # What becomes due while this looks, at a store that may be slow, is what the next look is for.
            since_ms, gate_ms = self._context.clock.wall_ms(), self._gates.next_wake_at_ms()
            await self.work_off()
            # A probe may take a minute, and nothing else waits for it.
            self._gates.probe_due(probes)
            with anyio.move_on_after(await self.nap_s(since_ms, gate_ms)):
                await self._context.timer.wait()

    async def work_off(self) -> None:
        """Does everything that is due now."""
        context = self._context
        ahead_ms = self._wall_ahead_ms()
        # At the start only the journal knows the clock of before.
        is_first = self._zone is None
        back_ms = await context.store.write(journal.ahead_ms) if is_first else self._ahead_ms - ahead_ms
        if back_ms > SET_BACK_MS:
            # A backoff of a moment would last until the clock is back where it was: rather too early than that late.
            await self._each_once(end_backoffs)
            context.alarms.ring_due(None)
        if back_ms > SET_BACK_MS or self._zone is not context.zone:
            await self._each_once(settle_hours)  # It is another time, or in another zone.
        self._zone = context.zone
        self._ahead_ms = ahead_ms
        context.alarms.ring_due(context.clock.wall_ms())
        more = True
        while more:
            due = await context.store.read(partial(_anything_due, now_ms=context.clock.wall_ms()))
            if not due:
                break
            done = await context.store.write(wake_due, bulk=True)
            context.watch.tell(done.touched)
            context.dispatch.ring()
            for task_id in done.overdue:
                if task_id not in self._overdue:
                    await self._cancelling.end_attempt_of(task_id)
            self._overdue = set(done.overdue)
            more = done.more

    async def _each_once(self, settle: Settle) -> None:
        """Decides anew about tasks that wait, a batch at a time; what begins to wait again meanwhile is passed by."""
        context = self._context
        after: int | None = 0
        while after is not None:
            touched, after = await context.store.write(lambda tx, after=after: settle(tx, after), bulk=True)
            context.watch.tell(touched)
            context.dispatch.ring()

    def _wall_ahead_ms(self) -> float:
        clock = self._context.clock
        return clock.wall_ms() - 1000 * clock.monotonic_s()

    async def nap_s(self, since_ms: int | None = None, gate_ms: int | None = None) -> float:
        """Gives how long nothing is due.

        It is 0 where something became due since a look at `since_ms`, when the next gate was due at `gate_ms`.
        """
        clock = self._context.clock
        since_ms = clock.wall_ms() if since_ms is None else since_ms
        times = await self._context.store.read(partial(_next_times, now_ms=since_ms))
        others = (gate_ms, self._gates.next_wake_at_ms(), self._context.alarms.next_ms())
        due_ms = min((time for time in (*times, *others) if time is not None), default=None)
        # The time after the read counts: a slow one would make the nap too long by as much.
        return NAP_S_MAX if due_ms is None else min(NAP_S_MAX, max(0.0, (due_ms - clock.wall_ms()) / 1000))


def _next_times(reader: Reader, *, now_ms: int) -> tuple[int | None, int | None]:
    wake = reader.one("next_wake")
    deadline = reader.one("next_deadline", now_ms)
    return (wake[0] if wake else None, deadline[0] if deadline else None)


def _anything_due(reader: Reader, *, now_ms: int) -> bool:
    wake, _ = _next_times(reader, now_ms=now_ms)
    if wake is not None and wake <= now_ms:
        return True
    expired = reader.all("expired_waiting", now_ms, 1) or reader.all("expired_running", now_ms, 1)
    return bool(expired or reader.all("cascades", 1))


def end_backoffs(tx: Tx, after: int) -> tuple[list[str], int | None]:
    """Lets a batch of tasks that wait before their next attempt go on now; gives what `settle_hours` does."""
    rows = tx.all("waiting_after", "backoff", after, BATCH_MAX)
    for id, _ in rows:
        settle_wait(tx, journal.edit_task(tx, journal.need_task(tx, id), retry_at_ms=None))
    return _page(rows)


def settle_hours(tx: Tx, after: int) -> tuple[list[str], int | None]:
    """Settles a batch of the tasks that wait for their hours; gives them, and after which `ord` to go on."""
    rows = tx.all("waiting_after", "hours", after, BATCH_MAX)
    for id, _ in rows:
        settle_wait(tx, journal.need_task(tx, id))
    return _page(rows)


def _page(rows: list[Row]) -> tuple[list[str], int | None]:
    return [row[0] for row in rows], rows[-1][1] if len(rows) == BATCH_MAX else None


def wake_due(tx: Tx) -> Done:
    """Releases what is due, fails what is past its deadline, and settles leftovers of cascades; one bounded batch."""
    touched: list[str] = []
    due = tx.all("due_tasks", tx.now_ms, BATCH_MAX)
    for row in due:
        task = journal.task_of(row)
        settle_wait(tx, task)
        touched.append(task.id)
    expired = tx.all("expired_waiting", tx.now_ms, BATCH_MAX)
    for row in expired:
        # It is read again: as the dependent of an expired task before it, it may have ended just now.
        task = journal.need_task(tx, row[1])
        if task.finished_at_ms is None:
            give_up(tx, task, Problem.make("deadline_passed"))
            touched += [task.id, *settle_dependents(tx, task.id)]
    overdue = [row[0] for row in tx.all("expired_running", tx.now_ms, BATCH_MAX)]
    leftovers = settle_leftovers(tx)
    more = bool(leftovers) or BATCH_MAX in (len(due), len(expired))
    return Done([*touched, *leftovers], overdue, more)
