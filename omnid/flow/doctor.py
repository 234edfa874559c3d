"""Looks after the journal: replays the log, compares it with the tables, and lets SQLite look for damage."""

from functools import partial
from typing import NamedTuple

import anyio

from omnid.errors import OmnidError
from omnid.flow.context import Context
from omnid.store.interface import COLLECTIONS, Reader
from omnid.store.replay import Difference, Replica, apply_page, compare_page, quick_check

DIFFERENCES_MAX = 20


class Report(NamedTuple):
    """What a check of the journal found."""

    entries: int
    rows: int
    differences: list[str]
    damage: list[str]


class Doctor:
    """Reads in short pages up to a fixed entry of the log, so that the daemon goes on meanwhile."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._lock = anyio.Lock()

    async def examine(self) -> Report:
        """Checks everything; one examination at a time."""
        async with self._lock:
            damage = await self._context.store.read(quick_check)
            replica = Replica()
            try:
                return await self._compare(replica, damage)
            except OmnidError as error:
                return Report(replica.seq, 0, [error.what], damage)
            finally:
                replica.close()

    async def _compare(self, replica: Replica, damage: list[str]) -> Report:
        store = self._context.store
        until = await store.read(_last_seq)
        while await store.read(partial(apply_page, replica=replica, until=until)):
            pass
        replica.seq = until
        found: list[Difference] = []
        for name in COLLECTIONS:
            after: int | None = 0
            while after is not None and len(found) < DIFFERENCES_MAX:
                page, after = await store.read(partial(compare_page, replica=replica, name=name, after=after))
                found += page
        lines = [f"{d.collection} {d.id} {d.detail}" for d in found[:DIFFERENCES_MAX]]
        return Report(until, replica.rows(), lines, damage)

    async def state_at(self, until: int) -> Replica:
        """Rebuilds the state up to an entry of the log; the caller closes it."""
        replica = Replica()
        store = self._context.store
        while await store.read(partial(apply_page, replica=replica, until=until)):
            pass
        return replica


def _last_seq(reader: Reader) -> int:
    row = reader.one("last_seq")
    return row[0] if row else 0
