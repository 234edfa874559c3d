"""Removes what is old, in small batches in the background: finished tasks, kept answers, tombstones, outputs."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import anyio

from omnid.flow import inbox
from omnid.flow.context import Context
from omnid.settings import Retention as Settings
from omnid.states import TERMINAL
from omnid.store import journal
from omnid.store.calls import call_of, forget_call, zone_of
from omnid.store.interface import ANSWER, COLLECTIONS, OUTAGE, Reader, Tx
from omnid.store.log import HLC_COUNTER_BITS

ROUND_S = 60.0
DAY_MS = 86_400_000
PAUSE_S = 0.05
"""Between two batches, so that submits go on at their usual pace."""


class Retention:
    """Keeps the journal and the spool within the limits of the config."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def run(self) -> None:
        """Does a round now and then; ends when it is cancelled."""
        while True:
            await self.round()
            await anyio.sleep(ROUND_S)

    async def round(self) -> int:
        """Removes everything that is over its limit; gives how many tasks went."""
        context = self._context
        gone = 0
        while True:
            settings, now_ms = context.config.retention, context.clock.wall_ms()
            find = partial(
                doomed,
                before_ms=now_ms - round(settings.finished_days * DAY_MS),
                promised_before_ms=now_ms - promised_ms(settings),
                surplus=self._surplus(),
                batch=settings.batch,
            )
            found = await context.store.read(find)
            # The files first: were omnid killed in between, nothing would know any more whose they are.
            for attempt_id in found.attempts:
                await context.spool.remove(attempt_id)
            gone += await context.store.write(partial(forget_tasks, ids=found.tasks), bulk=True)
            if len(found.tasks) < settings.batch:
                break
            await anyio.sleep(PAUSE_S)
        while True:
            forget = partial(forget_old, now_ms=context.clock.wall_ms(), settings=context.config.retention)
            if not await context.store.write(forget, bulk=True):
                break
            await anyio.sleep(PAUSE_S)
        while True:
            before_ms = context.clock.wall_ms() - round(context.config.retention.calls_days * DAY_MS)
            forget = partial(forget_calls, before_ms=before_ms, batch=settings.batch)
            if not await context.store.write(forget, bulk=True):
                break
            await anyio.sleep(PAUSE_S)
        keep, before = frozenset(context.running), context.clock.uuid()
        dropped = await context.spool.shrink(context.config.limits.spool_total_bytes_max, keep, before)
        if gone or dropped:
            context.log.info("retention", tasks=gone, outputs=len(dropped))
        return gone

    def _surplus(self) -> int:
        tally = self._context.store.tally
        finished = sum(tally.get(state, 0) for state in TERMINAL)
        return max(0, finished - self._context.config.retention.finished_max)


def promised_ms(settings: Settings) -> int:
    """Gives how long a task that has ended is surely kept, however many there are."""
    return round(min(settings.finished_days, settings.kept_days_min) * DAY_MS)


class Doomed(NamedTuple):
    """Finished tasks that are over their age or number, and their attempts."""

    tasks: list[str]
    attempts: list[str]


def doomed(reader: Reader, *, before_ms: int, promised_before_ms: int, surplus: int, batch: int) -> Doomed:
    """Finds tasks that finished before a time, and the oldest of those beyond the limit, but none that is promised.

    One that others still wait for is passed over: the timer has yet to tell them.
    """
    ids: dict[str, None] = {row[0]: None for row in reader.all("finished_before", before_ms, batch)}
    if surplus:
        ids.update((row[0], None) for row in reader.all("finished_before", promised_before_ms, min(surplus, batch)))
    tasks = [id for id in list(ids)[:batch] if not reader.all("dependents", id, 1)]
    return Doomed(tasks, [row[0] for id in tasks for row in reader.all("attempt_ids", id)])


def forget_tasks(tx: Tx, *, ids: Sequence[str]) -> int:
    """Forgets tasks, but not one that was run again in the meantime; gives how many."""
    count = 0
    for id in ids:
        task = journal.task_by_id(tx, id)
        if task is not None and task.finished_at_ms is not None:
            journal.forget_task(tx, task)
            count += 1
    return count


def forget_calls(tx: Tx, *, before_ms: int, batch: int) -> int:
    """Forgets calls that are settled and over their age, with what they add up to; gives how many."""
    zone = zone_of(tx)
    rows = tx.all("old_calls", before_ms, batch)
    for row in rows:
        forget_call(tx, call_of(row), zone)
    return len(rows)


def forget_old(tx: Tx, *, now_ms: int, settings: Settings) -> int:
    """Forgets a batch of kept answers and of the history of deleted rows that are over their limits; gives how many."""
    before = _hlc(now_ms, settings.answers_days)
    surplus = tx.one("answer_at", settings.answers_max)
    if surplus is not None:
        before = max(before, surplus[0] + 1)
    answers = tx.all("old_answers", before, settings.batch)
    tx.forget(ANSWER, *(id for (id,) in answers))
    before = _hlc(now_ms, settings.deleted_days)
    tombstones = tx.all("old_tombstones", before, settings.batch)
    for name, id in tombstones:
        tx.forget_history(COLLECTIONS[name], id, before)
    outages = tx.all("old_outages", round(now_ms - settings.finished_days * DAY_MS), settings.batch)
    tx.forget(OUTAGE, *(id for (id,) in outages))
    unread = inbox.forget_old(tx, round(now_ms - settings.finished_days * DAY_MS))
    return len(answers) + len(tombstones) + len(outages) + unread


def _hlc(now_ms: int, days: float) -> int:
    return max(0, round(now_ms - days * DAY_MS)) << HLC_COUNTER_BITS
