"""The store: group commit, errors, migration, the state directory."""

import os
import threading
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import anyio
import apsw
import pytest

from omnid.clock import SystemClock
from omnid.errors import Fatal, Rejected, Retryable
from omnid.store import migrate as migration
from omnid.store.database import SqliteStore, StoreSettings
from omnid.store.interface import GATE, Tx
from omnid.store.migrate import migrate
from omnid.store.queries import parse, queries
from omnid.store.sqlite import mapped
from omnid.store.statedir import StateDir
from omnid.store.writer import GroupWriter
from tests.fakes.store import gate, opened

pytestmark = pytest.mark.anyio

FIRST_SCHEMA = Path(__file__).parents[1] / "fakes" / "schema_1.sql"


def ids(reader: Any) -> list[str]:
    return [row[0] for row in reader.all("gates")]


async def test_what_was_written_is_there_after_a_start(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        first = await store.write(gate("a"))
        node, incarnation = store.node, store.incarnation
    async with opened(tmp_path) as store:
        assert await store.read(ids) == ["paused:a"]
        assert await store.write(gate("b")) > first
        assert store.node == node
        assert store.incarnation == incarnation + 1


async def test_the_database_syncs_and_its_wal_is_bounded(tmp_path: Path) -> None:
    async with opened(tmp_path, wal_bytes_max=2 << 20) as store:
        settings = await store.write(_pragmas)
        assert settings == {"journal_mode": "wal", "synchronous": 2, "journal_size_limit": 2 << 20}
        for n in range(300):
            await store.write(lambda tx, n=n: tx.create(GATE, f"g{n}", {**_big(), "subject": f"{n}"}))
        assert (tmp_path / "journal.db-wal").stat().st_size < 40 << 20


def _big() -> dict[str, Any]:
    return {"cause": "x" * 15_000, "closed_at_ms": 1}


def _pragmas(tx: Any) -> dict[str, Any]:
    names = ("journal_mode", "synchronous", "journal_size_limit")
    return {name: tx.connection.pragma(name) for name in names}


async def test_writers_that_gather_share_one_commit_and_fail_alone(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        held, release = threading.Event(), threading.Event()
        commits: list[int] = []

        def hold(tx: Tx) -> None:
            held.set()
            assert release.wait(10)

        def refuse(tx: Tx) -> None:
            gate("refused")(tx)
            raise ValueError("no")

        results: dict[str, Any] = {}

        async def write(name: str, fn: Callable[[Tx], Any], bulk: bool = False) -> None:
            try:
                results[name] = await store.write(fn, bulk=bulk)
            except ValueError as error:
                results[name] = error

        connection: apsw.Connection = store._connection
        connection.set_commit_hook(lambda: bool(commits.append(1)))
        async with anyio.create_task_group() as group:
            group.start_soon(write, "hold", hold, True)
            await anyio.to_thread.run_sync(held.wait)
            for name in ("a", "b", "c"):
                group.start_soon(write, name, gate(name))
            group.start_soon(write, "refused", refuse)
            await anyio.wait_all_tasks_blocked()
            release.set()
        assert sorted(await store.read(ids)) == ["paused:a", "paused:b", "paused:c"]
        assert isinstance(results["refused"], ValueError)
        assert len(commits) <= 2


def full() -> bool:
    raise apsw.FullError("database or disk is full")


async def test_a_failed_commit_fails_the_whole_batch_and_leaves_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        connection: apsw.Connection = store._connection
        connection.set_commit_hook(full)
        with pytest.raises(Retryable) as caught:
            await store.write(gate("a"))
        assert caught.value.code == "disk_full"
        connection.set_commit_hook(None)
        assert await store.read(ids) == []


async def test_after_a_full_disk_the_store_goes_on(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.write(gate("before"))
        connection: apsw.Connection = store._connection
        pages = connection.pragma("page_count")
        connection.pragma("max_page_count", pages)
        with pytest.raises(Retryable) as caught:
            for n in range(50):
                await store.write(lambda tx, n=n: tx.create(GATE, f"g{n}", {**_big(), "subject": "x"}))
        assert caught.value.code == "disk_full"
        assert store.trouble is not None
        assert store.trouble.problem.code == "disk_full"
        connection.pragma("max_page_count", 1_000_000)
        await store.write(gate("after"))
        assert store.trouble is None
        assert "paused:after" in await store.read(ids)


async def test_a_peek_is_on_the_loop_and_sees_one_committed_state(tmp_path: Path) -> None:
    ran_on: list[int] = []

    def look(reader: Any) -> tuple[list[str], list[str]]:
        ran_on.append(threading.get_ident())
        before = ids(reader)
        beside.execute("DELETE FROM gate")
        return before, ids(reader)

    async with opened(tmp_path) as store:
        beside = apsw.Connection(str(store.path))
        await store.write(gate("a"))
        assert await store.peek(look) == (["paused:a"], ["paused:a"])
        assert await store.peek(ids) == []
        assert ran_on == [threading.get_ident()]
        beside.close()


async def test_a_peek_that_takes_long_is_done_on_a_thread(tmp_path: Path) -> None:
    ran_on: list[int] = []
    sql = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 100000) SELECT count(*) FROM n"

    def count(reader: Any) -> int:
        ran_on.append(threading.get_ident())
        return next(iter(reader.connection.execute(sql)))[0]

    def short(reader: Any) -> None:
        ran_on.append(threading.get_ident())
        list(reader.connection.execute(sql.replace("100000", "100")))

    async with opened(tmp_path) as store:
        assert await store.peek(count) == 100_000
        assert len(ran_on) == 2
        assert ran_on[0] == threading.get_ident() != ran_on[1]
        ran_on.clear()
        for _ in range(1_000):
            await store.peek(short)
        assert set(ran_on) == {threading.get_ident()}, "none of them pays for those before it"


async def test_a_peek_says_what_is_wrong_as_a_read_does(tmp_path: Path) -> None:
    def refuse(_: Any) -> None:
        raise Rejected("unknown_task", task="t1", hint="")

    async with opened(tmp_path) as store:
        with pytest.raises(Rejected, match="t1"):
            await store.peek(refuse)
        with pytest.raises(Rejected, match="no such table"):
            await store.peek(lambda reader: list(reader.connection.execute("SELECT * FROM nowhere")))
        assert await store.peek(ids) == []


async def test_what_a_failed_batch_had_taken_of_the_log_is_given_back(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.write(gate("a"))
        connection: apsw.Connection = store._connection
        connection.pragma("max_page_count", connection.pragma("page_count"))
        with pytest.raises(Retryable):
            await store.write(
                lambda tx: tx.create(GATE, "big", {"cause": "x" * 10_000_000, "subject": "x", "closed_at_ms": 1})
            )
        connection.pragma("max_page_count", 1_000_000)
        await store.write(gate("b"))
        rows = await store.read(lambda reader: reader.all("changes_page", 0, 1 << 60, 10))
        assert [row[0] for row in rows] == [1, 2]


async def test_an_io_error_ends_the_store(tmp_path: Path) -> None:
    class Broken:
        broken = False
        spoilt = False

        def begin(self, *, wait: bool) -> None:
            pass

        def apply(self, fn: Any, *, savepoint: bool) -> Any:
            return fn(None)

        def commit(self) -> None:
            raise mapped(apsw.IOError("disk I/O error"), Path("journal.db"))

        def rollback(self) -> None:
            pass

    writer = GroupWriter(Broken(), SystemClock(), group_max=8, group_s=0.001)
    try:
        with pytest.raises(BaseExceptionGroup) as caught, anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                group.start_soon(writer.serve)
                await writer.submit(lambda tx: 1)
        fatal, rest = caught.value.split(Fatal)
        assert fatal is not None
        assert rest is None
    finally:
        writer.close()


async def test_a_closed_store_refuses_and_keeps_what_it_took(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "journal.db", SystemClock(), StoreSettings())
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(store.serve)
            await store.write(gate("a"))
            group.cancel_scope.cancel()
    store.close()
    with pytest.raises(Retryable) as caught:
        await store.write(gate("b"))
    assert caught.value.code == "store_closed"


def frozen_first_schema(path: Path) -> apsw.Connection:
    connection = apsw.Connection(str(path))
    connection.execute(FIRST_SCHEMA.read_text())
    connection.execute(f"PRAGMA application_id = {migration.APPLICATION_ID}")
    connection.execute("PRAGMA user_version = 1")
    return connection


def test_the_first_schema_is_frozen() -> None:
    number, text = migration.schemas()[0]
    assert number == 1
    assert text == FIRST_SCHEMA.read_text(), "schema 1 is out in the world: put what is new into the next file"


FROZEN = {
    2: "66dabb7ef012596f8071bdf2f01124b54c1fede0c24f4ba0222c546c44d55334",
    3: "da948b5269abcb9127e7d7d213a13721c5a8b0e6d6a71181789687e80fa58b6e",
    4: "b87108aeb77b00f433b6a0bb3ad9d27dc11c969408e9178f2d974ff39e027e5c",
}
"""The digests of the later schema files: they are out in the world too."""


def test_the_later_schemas_are_frozen() -> None:
    assert {number: sha256(text.encode()).hexdigest() for number, text in migration.schemas()[1:]} == FROZEN


def test_a_database_of_the_first_schema_is_brought_up_to_date(tmp_path: Path) -> None:
    connection = frozen_first_schema(tmp_path / "journal.db")
    connection.execute("INSERT INTO gate (ord, id, cause, subject, closed_at_ms) VALUES (1, 'g', 'paused', '*', 1)")
    steps = [*migration.schemas(), (9998, "ALTER TABLE gate ADD COLUMN note TEXT"), (9999, "CREATE TABLE x (y)")]
    assert migrate(connection, tmp_path, steps) == 9999
    assert list(connection.execute("SELECT id, note FROM gate")) == [("g", None)]
    assert connection.pragma("user_version") == 9999


def test_a_step_that_fails_changes_nothing(tmp_path: Path) -> None:
    connection = frozen_first_schema(tmp_path / "journal.db")
    with pytest.raises(Rejected):
        migrate(connection, tmp_path, [*migration.schemas()[:1], (2, "CREATE TABLE x (y); CREATE TABLE gate (z)")])
    assert connection.pragma("user_version") == 1
    assert not list(connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'x'"))


async def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    connection = frozen_first_schema(tmp_path / "journal.db")
    newer = migration.schemas()[-1][0] + 1
    connection.execute(f"PRAGMA user_version = {newer}")
    connection.close()
    with pytest.raises(Rejected) as caught:
        SqliteStore(tmp_path / "journal.db", SystemClock(), StoreSettings())
    assert caught.value.code == "schema_newer"
    assert str(newer) in caught.value.what
    assert apsw.Connection(str(tmp_path / "journal.db")).pragma("user_version") == newer


@pytest.mark.parametrize("content", ["database", "text"])
async def test_a_foreign_file_is_refused_and_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "journal.db"
    if content == "database":
        apsw.Connection(str(path)).execute("CREATE TABLE theirs (x)")
    else:
        path.write_text("these are notes, not a database\n" * 100)
    before = path.read_bytes()
    with pytest.raises((Rejected, Fatal)) as caught:
        SqliteStore(path, SystemClock(), StoreSettings())
    assert caught.value.code == "not_a_database"
    assert path.read_bytes()[100:] == before[100:]


def test_one_daemon_per_state_directory(tmp_path: Path) -> None:
    with StateDir(tmp_path / "state"):
        with pytest.raises(Rejected) as caught:
            StateDir(tmp_path / "state")
        assert caught.value.code == "already_running"
        assert f"pid {os.getpid()}" in caught.value.what
    StateDir(tmp_path / "state").close()
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


def test_a_state_directory_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.mkdir()
    path.chmod(0o755)
    with pytest.raises(Rejected) as caught:
        StateDir(path)
    assert caught.value.code == "unsafe_directory"
    (tmp_path / "file").write_text("")
    with pytest.raises(Rejected) as caught:
        StateDir(tmp_path / "file" / "state")
    assert caught.value.code == "state_unwritable"


def test_queries_take_positions_and_fragments() -> None:
    text = "-- fragment: both\na, b\n-- name: q\nSELECT {both} FROM t WHERE b = $2 AND a = $1\n"
    assert parse(text) == {"q": "SELECT a, b FROM t WHERE b = ?2 AND a = ?1"}
    with pytest.raises(ValueError, match="twice"):
        parse(text + text)


def test_every_claim_and_timer_uses_an_index(tmp_path: Path) -> None:
    connection = apsw.Connection(":memory:")
    migrate(connection, tmp_path)
    for name in (
        "ready_executors",
        "ready_tasks",
        "due_tasks",
        "expired_waiting",
        "expired_running",
        "lane_busy",
        "lane_ready",
        "lane_next",
        "dependents",
        "attempt_head",
        "open_attempts",
        "task_by_key",
        "last_number",
        "finished_before",
        "next_wake",
        "next_deadline",
        "open_tasks_page",
        "waiting_for",
        "old_tombstones",
    ):
        plan = " | ".join(
            row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {queries()[name]}", (1, 1, 1, 1)[: _count(name)])
        )
        assert "SCAN t" not in plan.replace("SCAN t USING", "")
        assert "USING" in plan, (name, plan)
        assert "TEMP B-TREE" not in plan or name == "lane_next", (name, plan)


def _count(name: str) -> int:
    text = queries()[name]
    return max((n for n in range(1, 5) if f"?{n}" in text), default=0)
