"""The write-ahead log stays within its limit, whoever reads meanwhile."""

import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

import anyio
import apsw
import pytest

from omnid.clock import SystemClock
from omnid.errors import Fatal, Retryable
from omnid.store.database import SqliteStore, StoreSettings
from omnid.store.interface import GATE
from tests.unit.test_store import ids, opened

pytestmark = pytest.mark.anyio
LIMIT_BYTES = 1 << 20


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omnid.store.database.SWEEP_S", 0.02)
    monkeypatch.setattr("omnid.store.database.CHECKPOINT_MS", 50)


def wal_bytes(path: Path) -> int:
    return (path / "journal.db-wal").stat().st_size


async def fill(store: SqliteStore, path: Path) -> None:
    for n in range(10_000):
        fields = {"cause": "x" * 50_000, "subject": f"{n}", "closed_at_ms": 1}
        await store.write(lambda tx, n=n, fields=fields: tx.create(GATE, f"g{n}", fields))
        if wal_bytes(path) > 2 * LIMIT_BYTES:
            return


async def emptied(path: Path) -> None:
    while wal_bytes(path) > LIMIT_BYTES:  # noqa: ASYNC110 - a file has no signal.
        await anyio.sleep(0.01)


class Relay:
    """Readers that overlap: each ends only after the next has its snapshot."""

    def __init__(self, store: SqliteStore) -> None:
        self.store = store
        self.begun: dict[int, threading.Event] = defaultdict(threading.Event)
        self.over = False
        self.overlaps = 0

    def read(self, reader: Any, number: int) -> None:
        ids(reader)
        self.begun[number].set()
        if not self.over:
            assert self.begun[number + 1].wait(10)
            self.overlaps += 1

    async def run(self, first: int) -> None:
        number = first
        while not self.over:
            await self.store.read(lambda reader, number=number: self.read(reader, number))
            number += 2
        self.begun[number].set()


async def test_readers_that_overlap_without_end_do_not_keep_it_from_being_emptied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = SqliteStore._empty_wal
    monkeypatch.setattr(SqliteStore, "_empty_wal", lambda store: None)
    async with opened(tmp_path, wal_bytes_max=LIMIT_BYTES) as store:
        relay = Relay(store)
        async with anyio.create_task_group() as group:
            group.start_soon(relay.run, 0)
            group.start_soon(relay.run, 1)
            await fill(store, tmp_path)
            monkeypatch.setattr(SqliteStore, "_empty_wal", empty)
            before = relay.overlaps
            await emptied(tmp_path)
            assert relay.overlaps > before, "they went on meanwhile"
            relay.over = True
        assert len(await store.read(ids)) > 10
        await store.write(lambda tx: tx.create(GATE, "after", {"cause": "x", "subject": "y", "closed_at_ms": 1}))


async def test_a_reader_that_holds_it_too_long_is_broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omnid.store.database.READ_PRESSED_S_MAX", 0.2)
    ended: list[str] = []
    async with opened(tmp_path, wal_bytes_max=LIMIT_BYTES) as store:
        begun = anyio.Event()

        async def forever() -> None:
            try:
                await store.read(endless)
            except Retryable as error:
                ended.append(error.code)

        def endless(reader: Any) -> None:
            ids(reader)
            anyio.from_thread.run_sync(begun.set)
            sql = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
            list(reader.connection.execute(sql))

        async with anyio.create_task_group() as group:
            group.start_soon(forever)
            await begun.wait()
            await fill(store, tmp_path)
            await emptied(tmp_path)
    assert ended == ["store_busy"]


@pytest.mark.parametrize(("error", "fatal"), [(apsw.FullError("no room"), False), (apsw.IOError("EIO"), True)])
async def test_a_checkpoint_that_fails_is_tried_again_unless_the_disk_is_broken(
    tmp_path: Path, error: apsw.Error, fatal: bool
) -> None:
    class Broken:
        def wal_checkpoint(self, mode: int) -> None:
            raise error

        def close(self) -> None:
            pass

    store = SqliteStore(tmp_path / "journal.db", SystemClock(), StoreSettings())
    store._checkpointer = Broken()
    if fatal:
        with pytest.raises(Fatal):
            store._empty_wal()
    else:
        store._empty_wal()
    store.close()
