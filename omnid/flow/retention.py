"""Removes what is old, in small batches in the background: finished tasks, kept answers, tombstones, outputs."""

from functools import partial

import anyio

from omnid.flow.context import Context
from omnid.states import TERMINAL
from omnid.store import journal
from omnid.store.interface import ANSWER, COLLECTIONS, Tx

ROUND_S = 60.0
DAY_MS = 86_400_000
ANSWERS_DAYS = 2.0
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
            settings = context.config.retention
            attempts, tasks = await context.store.write(
                partial(
                    forget_finished,
                    before_ms=context.clock.wall_ms() - round(settings.finished_days * DAY_MS),
                    surplus=self._surplus(),
                    batch=settings.batch,
                ),
                bulk=True,
            )
            for attempt_id in attempts:
                await context.spool.remove(attempt_id)
            gone += tasks
            if tasks < settings.batch:
                break
            await anyio.sleep(PAUSE_S)
        while True:
            forget = partial(forget_old, now_ms=context.clock.wall_ms(), batch=settings.batch)
            if not await context.store.write(forget, bulk=True):
                break
            await anyio.sleep(PAUSE_S)
        keep = frozenset(context.running)
        dropped = await context.spool.shrink(context.config.limits.spool_total_bytes_max, keep)
        if gone or dropped:
            context.log.info("retention", tasks=gone, outputs=len(dropped))
        return gone

    def _surplus(self) -> int:
        tally = self._context.store.tally
        finished = sum(tally.get(state, 0) for state in TERMINAL)
        return max(0, finished - self._context.config.retention.finished_max)


def forget_finished(tx: Tx, *, before_ms: int, surplus: int, batch: int) -> tuple[list[str], int]:
    """Forgets tasks that finished before a time, and the oldest of those beyond the limit; gives attempts and count."""
    ids: dict[str, None] = {row[0]: None for row in tx.all("finished_before", before_ms, batch)}
    if surplus:
        ids.update((row[0], None) for row in tx.all("finished_oldest", min(surplus, batch)))
    attempts: list[str] = []
    count = 0
    for id in list(ids)[:batch]:
        if tx.all("dependents", id, 1):
            continue  # The timer has yet to tell those that wait for it.
        attempts += journal.forget_task(tx, journal.need_task(tx, id))
        count += 1
    return attempts, count


def forget_old(tx: Tx, *, now_ms: int, batch: int) -> int:
    """Forgets kept answers and the history of deleted rows that are over their age; gives how many."""
    before = round(now_ms - ANSWERS_DAYS * DAY_MS) << 16
    answers = tx.all("old_answers", before, batch)
    for (id,) in answers:
        tx.forget(ANSWER, id)
    tombstones = tx.all("old_tombstones", before, batch)
    for name, id in tombstones:
        tx.forget_history(COLLECTIONS[name], id)
    return len(answers) + len(tombstones)
