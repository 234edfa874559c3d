"""The daily notice: what happened since the last one, once a day at the time of the config, whatever happens between.

Up to when people were told is written down with the notice. So a daemon that was away at that time makes up for it at
its next start, once; and a clock that is set back tells nothing twice.
"""

from collections.abc import Callable
from datetime import time
from functools import partial

from omnid.flow import notify
from omnid.flow.context import Bell, Context
from omnid.store.interface import Reader, Tx
from omnid.times import last_ms, next_ms

MARK = "digest_told_ms"
"""The name, among the facts of this node, of the time up to which the daily notice has told."""
ALARM = "digest"
DAY_MS = 86_400_000

Line = Callable[[Reader, int, int], str]
"""Says what happened between two times."""


class Daily:
    """Sends the daily notice; the one timer wakes it."""

    def __init__(self, context: Context, line: Line) -> None:
        self._context = context
        self._line = line
        self._bell = Bell()

    async def run(self) -> None:
        """Sends what is due, then waits for the next time; ends when it is cancelled."""
        while True:
            await self.send_due()
            await self._bell.wait()

    def look(self) -> None:
        """Looks anew, because the config has changed."""
        self._bell.ring()

    async def send_due(self) -> None:
        """Sends the notice if it is due, and sets the alarm for the next."""
        context = self._context
        at = context.config.notify.digest_at
        if not at:
            context.alarms.drop(ALARM)
            if await context.store.read(_told):
                # Were it wished for again next year, it would tell of a year.
                await context.store.write(partial(_mark, at_ms=None))
            return
        now_ms, clock_time = context.clock.wall_ms(), time.fromisoformat(at)
        told_ms = await context.store.read(_told)
        if told_ms is None or told_ms > now_ms + DAY_MS:
            # The first begins now. So does one after a time that no clock that is right can have told.
            await context.store.write(partial(_mark, at_ms=now_ms))
        elif told_ms < last_ms(now_ms, clock_time, context.zone):
            text = await context.store.read(partial(self._line_between, since_ms=told_ms, now_ms=now_ms))
            await context.store.write(partial(self._tell, told_ms=told_ms, now_ms=now_ms, text=text))
        context.alarms.set(ALARM, next_ms(now_ms, clock_time, context.zone), self._bell)

    def _line_between(self, reader: Reader, *, since_ms: int, now_ms: int) -> str:
        return self._line(reader, since_ms, now_ms)

    def _tell(self, tx: Tx, *, told_ms: int, now_ms: int, text: str) -> None:
        """Writes notice and mark together."""
        if _told(tx) == told_ms:
            _mark(tx, at_ms=now_ms)
            notify.tell(tx, self._context.config, "digest", "", text=text)


def _told(reader: Reader) -> int | None:
    row = reader.one("meta_one", MARK)
    return int(row[0]) if row is not None and row[0] else None


def _mark(tx: Tx, *, at_ms: int | None) -> None:
    tx.run("meta_set", MARK, "" if at_ms is None else str(at_ms))
