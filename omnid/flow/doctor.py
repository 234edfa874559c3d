"""Looks after the journal: replays the log, compares it with the tables, and lets SQLite look for damage."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import NamedTuple

import anyio

from omnid.errors import Rejected
from omnid.flow.context import Context
from omnid.store import derived
from omnid.store.calls import check_spend, zone_of
from omnid.store.interface import COLLECTIONS, Reader
from omnid.store.replay import (
    DIFFERENCES_MAX,
    Difference,
    Replica,
    apply_page,
    check_table,
    compare_page,
    derive,
)


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
        damage: list[str] = []
        for name in (*COLLECTIONS, "change", "blob"):
            damage += await self._context.store.read(partial(check_table, name=name))
        wrong = await self._derived()
        async with self._replica() as replica:
            try:
                return await self._compare(replica, damage, wrong)
            except Rejected as error:
                return Report(replica.seq, 0, [error.what, *wrong], damage)

    async def _derived(self) -> list[str]:
        """Compares what is derived from the tables with them."""
        store = self._context.store
        found = [*await store.read(derived.queue), *await store.read(check_spend)]
        for check, first in derived.CHECKS:
            after: derived.Cursor | None = first
            while after is not None and len(found) < DIFFERENCES_MAX:
                at: derived.Cursor = after
                page, after = await store.read(lambda reader, check=check, at=at: check(reader, at))
                found += page
        return found[:DIFFERENCES_MAX]

    async def _compare(self, replica: Replica, damage: list[str], wrong: list[str]) -> Report:
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
        return Report(until, replica.rows(), [*lines, *wrong], damage)

    @asynccontextmanager
    async def state_at(self, until: int) -> AsyncGenerator[Replica]:
        """Rebuilds the state up to an entry of the log."""
        async with self._replica() as replica:
            while await self._context.store.read(partial(apply_page, replica=replica, until=until)):
                pass
            await self._context.store.read(lambda reader: derive(replica, zone_of(reader)))
            yield replica

    @asynccontextmanager
    async def _replica(self) -> AsyncGenerator[Replica]:
        """Gives an empty database in a temporary file, one at a time: a long log takes disk then, not memory."""
        async with self._lock:
            directory = self._context.config.state.dir
            with NamedTemporaryFile(dir=directory, prefix="replay-", suffix=".db") as file:
                replica = Replica(Path(file.name))
                try:
                    yield replica
                finally:
                    replica.close()


def _last_seq(reader: Reader) -> int:
    row = reader.one("last_seq")
    return row[0] if row else 0
