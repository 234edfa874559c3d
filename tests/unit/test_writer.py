"""Group commit: what runs together, what is run again, who is told what, and the file that it is written to."""

import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from shutil import copy
from typing import Any

import anyio
import apsw
import pytest

from omnid.errors import OmnidError
from omnid.store.database import SqliteStore
from omnid.store.interface import GATE, Outcome, Tx
from omnid.store.sqlite import WAL_BYTES, lengthen_wal, open_connection
from tests.fakes.store import opened as opened_store

pytestmark = pytest.mark.anyio


class Told:
    """What callers were told, in order."""

    def __init__(self, count: int) -> None:
        self.values: list[Any] = []
        self.all = anyio.Event()
        self._count = count

    def __call__(self, outcome: Outcome[Any]) -> None:
        try:
            self.values.append(outcome.outcome())
        except (OmnidError, ValueError) as error:
            self.values.append(str(error) if isinstance(error, ValueError) else error.code)
        if len(self.values) == self._count:
            self.all.set()


class Jobs:
    """Functions that count how often they run."""

    def __init__(self) -> None:
        self.runs: list[str] = []

    def write(self, name: str) -> Callable[[Tx], str]:
        def fn(tx: Tx) -> str:
            self.runs.append(name)
            tx.create(GATE, name, {"cause": "paused", "subject": name, "closed_at_ms": 1})
            tx.moved(None, "idle")
            tx.memory["last"] = name
            return name

        return fn

    def refuse(self, name: str, *, after_write: bool) -> Callable[[Tx], str]:
        def fn(tx: Tx) -> str:
            if after_write:
                self.write(name)(tx)
                tx.stirred = True
                tx.ended.append(name)
                tx.begun.append(name)
            else:
                self.runs.append(name)
            raise ValueError(name)

        return fn


def opened(path: Path, **settings: Any) -> AbstractAsyncContextManager[SqliteStore]:
    # A group that nobody cuts off, however busy the machine is.
    return opened_store(path, group_s=10.0, **settings)


def commits_of(store: SqliteStore) -> list[int]:
    commits: list[int] = []
    store._connection.set_commit_hook(lambda: bool(commits.append(1)))
    return commits


async def gates(store: SqliteStore) -> list[str]:
    return await store.read(lambda reader: [row[0] for row in reader.all("gates")])


async def seqs(store: SqliteStore) -> list[int]:
    return await store.read(lambda reader: [row[0] for row in reader.all("changes_page", 0, 1 << 60, 100)])


async def test_one_that_raises_amid_a_group_leaves_nothing_and_the_others_are_written(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        commits, jobs, told = commits_of(store), Jobs(), Told(5)
        store.post(jobs.write("a"), told)
        store.post(jobs.refuse("x", after_write=True), told)
        store.post(jobs.write("b"), told)
        store.post(jobs.refuse("y", after_write=True), told)
        store.post(jobs.write("c"), told)
        await told.all.wait()
        assert told.values == ["a", "x", "b", "y", "c"]
        assert await gates(store) == ["a", "b", "c"]
        assert store.tally["idle"] == 3
        assert len(commits) == 1
        assert await seqs(store) == [1, 2, 3]
        # Only what stood before the first that raised runs again; what raised never does.
        assert jobs.runs == ["a", "x", "a", "b", "y", "c"]


async def test_one_that_raises_before_it_writes_costs_the_others_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        jobs, told = Jobs(), Told(3)
        store.post(jobs.write("a"), told)
        store.post(jobs.refuse("x", after_write=False), told)
        store.post(jobs.write("b"), told)
        await told.all.wait()
        assert told.values == ["a", "x", "b"]
        assert jobs.runs == ["a", "x", "b"]
        assert await gates(store) == ["a", "b"]


async def test_what_raised_is_not_remembered(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        jobs, told, seen = Jobs(), Told(5), list[Any]()

        def look(tx: Tx) -> str:
            seen.append((dict(tx.memory), list(tx.ended), list(tx.begun)))
            return "seen"

        store.post(jobs.write("a"), told)
        store.post(jobs.refuse("x", after_write=True), told)
        store.post(look, told)
        store.post(jobs.refuse("y", after_write=True), told)
        store.post(look, told)
        await told.all.wait()
        assert seen == [({"last": "a"}, [], []), ({}, [], [])]


async def test_a_failed_commit_is_told_to_all_and_nothing_is_run_again(tmp_path: Path) -> None:
    def full() -> bool:
        raise apsw.FullError("database or disk is full")

    async with opened(tmp_path) as store:
        jobs, told, followed = Jobs(), Told(2), list[Any]()
        store._connection.set_commit_hook(full)
        store.post(jobs.write("a"), told, then=followed.append)
        store.post(jobs.write("b"), told)
        await told.all.wait()
        store._connection.set_commit_hook(None)
        assert told.values == ["disk_full", "disk_full"]
        assert jobs.runs == ["a", "b"]
        assert followed == []
        assert await gates(store) == []


async def test_who_posts_to_a_closed_store_is_told_at_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        pass
    told = Told(1)
    store.post(Jobs().write("a"), told)
    assert told.values == ["store_closed"]


async def test_what_came_together_leaves_others_each_second_turn(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        jobs, told = Jobs(), Told(8)
        for name in ("p1", "p2", "p3", "p4", "p5"):
            store.post(jobs.write(name), told, patient=True)
        for name in ("a", "b", "c"):
            store.post(jobs.write(name), told)
        await told.all.wait()
        assert jobs.runs == ["a", "p1", "b", "p2", "c", "p3", "p4", "p5"]
        assert told.values == jobs.runs
    late = Told(1)
    store.post(jobs.write("late"), late, patient=True)
    assert late.values == ["store_closed"]


async def test_whoever_attends_looks_behind_the_group_that_stirred_in_the_same_commit(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        commits, jobs, told = commits_of(store), Jobs(), Told(3)
        looks: list[list[str]] = []
        then: list[int] = []

        def stir(tx: Tx) -> str:
            tx.stirred = True
            return jobs.write("stirs")(tx)

        def look(tx: Tx) -> int:
            looks.append([row[0] for row in tx.all("gates")])
            return len(looks)

        store.attend(look, then.append, lambda: None)
        await store.write(jobs.write("quiet"))
        assert looks == []
        for fn in (jobs.write("a"), stir, jobs.write("b")):
            store.post(fn, told)
        await told.all.wait()
        assert looks == [["quiet", "a", "stirs", "b"]]
        assert then == [1]
        assert len(commits) == 2


async def test_behind_a_bulk_function_the_look_has_a_commit_of_its_own(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        looked = anyio.Event()

        def stir(tx: Tx) -> None:
            tx.stirred = True
            Jobs().write("stirs")(tx)

        store.attend(lambda tx: tx.all("gates"), lambda _: looked.set(), lambda: None)
        await store.write(stir, bulk=True)
        await looked.wait()


async def test_a_look_that_raises_harms_nobody_and_is_told(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        failed: list[int] = []

        def look(tx: Tx) -> None:
            Jobs().refuse("x", after_write=True)(tx)

        def stir(tx: Tx) -> str:
            tx.stirred = True
            return Jobs().write("stirs")(tx)

        store.attend(look, lambda _: None, lambda: failed.append(1))
        assert await store.write(stir) == "stirs"
        assert failed == [1]
        assert await gates(store) == ["stirs"]


async def test_the_wal_has_its_length_from_the_start_and_is_read_right_after_a_crash(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    async with opened(tmp_path) as store:
        wal = tmp_path / "journal.db-wal"
        assert wal.stat().st_size == WAL_BYTES
        await store.write(Jobs().write("a"))
        assert wal.stat().st_size == WAL_BYTES
        for name in ("journal.db", "journal.db-wal"):
            copy(tmp_path / name, tmp_path / "copy" / name)
    async with opened(tmp_path / "copy") as again:
        assert await gates(again) == ["a"]
        await again.write(Jobs().write("b"))
        assert await again.read(lambda reader: reader.all("check_gate")) == [("ok",)]


async def test_the_wal_is_no_longer_than_its_limit(tmp_path: Path) -> None:
    async with opened(tmp_path, wal_bytes_max=500_000):
        assert (tmp_path / "journal.db-wal").stat().st_size == 500_000


def test_a_wal_that_another_process_writes_to_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    other = open_connection(path, wal_bytes_max=1 << 26, fullfsync=False)
    other.execute("CREATE TABLE x (y)")
    ours = open_connection(path, wal_bytes_max=1 << 26, fullfsync=False)
    ours.set_busy_timeout(0)
    other.execute("BEGIN IMMEDIATE")
    size = (tmp_path / "journal.db-wal").stat().st_size
    lengthen_wal(ours, path, wal_bytes_max=1 << 26)
    assert (tmp_path / "journal.db-wal").stat().st_size == size
    other.execute("COMMIT")


def test_a_disk_without_room_for_the_wal_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.db"
    connection = open_connection(path, wal_bytes_max=1 << 26, fullfsync=False)
    connection.execute("CREATE TABLE x (y)")
    size = (tmp_path / "journal.db-wal").stat().st_size
    written: list[int] = []

    def full(file: int, data: bytes, at: int) -> int:
        if written:
            raise OSError(28, "No space left on device")
        written.append(real(file, data, at))
        return written[0]

    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", full)
    lengthen_wal(connection, path, wal_bytes_max=1 << 26)
    assert written
    assert (tmp_path / "journal.db-wal").stat().st_size == size
    connection.execute("INSERT INTO x VALUES (1)")
