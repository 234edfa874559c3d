"""SQLite through APSW: connections, the transaction object, and SQLite's errors mapped to ours."""

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import apsw
import msgspec

from omnid import platform
from omnid.clock import Clock
from omnid.errors import Fatal, OmnidError, Rejected, Retryable
from omnid.store import log
from omnid.store.interface import NOTHING, At, Collection, Follow, Row, Taken
from omnid.store.queries import insert_sql, queries, update_sql

BUSY_MS = 5_000
PAGE_CACHE_KIB = 8_192
CHECKPOINT_PAGES = 2_000
WAL_BYTES = (CHECKPOINT_PAGES + 256) * (4096 + 24)
"""What the WAL comes to between two checkpoints: pages with their headers, and what the last commit adds."""


def open_connection(path: Path, *, wal_bytes_max: int, fullfsync: bool, readonly: bool = False) -> apsw.Connection:
    """Opens the database with the settings that promise 1 needs; raises what `mapped` gives."""
    flags = apsw.SQLITE_OPEN_READONLY if readonly else apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
    if not readonly:
        # SQLite would make it readable for others; its other files get the same mode. What forbids it, SQLite says.
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        connection = apsw.Connection(str(path), flags=flags, statementcachesize=200)
        connection.set_busy_timeout(BUSY_MS)
        # Else a new value of a parameter may change the plan, and SQLite prepares the statement anew each time.
        connection.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
        connection.pragma("cache_size", -PAGE_CACHE_KIB)
        connection.pragma("trusted_schema", False)
        if not readonly:
            connection.pragma("journal_mode", "wal")
            connection.pragma("synchronous", "full")
            connection.pragma("fullfsync", fullfsync)
            connection.pragma("checkpoint_fullfsync", fullfsync)
            connection.pragma("journal_size_limit", wal_bytes_max)
            connection.wal_autocheckpoint(CHECKPOINT_PAGES)
    except apsw.Error as error:
        raise mapped(error, path) from error
    return connection


def lengthen_wal(connection: apsw.Connection, path: Path, *, wal_bytes_max: int) -> None:
    """Makes the WAL as long at once as it becomes anyway, so that commits overwrite the file and don't lengthen it.

    A sync of a file that grows writes the file system's own journal too, and takes about twice as long. Behind its last
    frame SQLite expects whatever an earlier round left there; zeros are never a frame. Where there is no room for it
    nothing changes.
    """
    try:
        connection.execute("BEGIN IMMEDIATE")  # So that no other process writes to the file meanwhile.
    except apsw.BusyError:
        return
    try:
        wal = os.open(f"{path}-wal", os.O_WRONLY | os.O_CLOEXEC)
        try:
            size_bytes = os.fstat(wal).st_size
            _fill(wal, size_bytes, min(WAL_BYTES, wal_bytes_max))
        finally:
            os.close(wal)
    except OSError:
        return
    finally:
        connection.execute("ROLLBACK")


def _fill(file: int, begin: int, end: int) -> None:
    """Writes zeros; on an error the file is as long as before."""
    zeros = bytes(1 << 20)
    try:
        for at in range(begin, end, len(zeros)):
            os.pwrite(file, zeros[: end - at], at)
        os.fsync(file)
    except OSError:
        os.ftruncate(file, begin)
        raise


def mapped(error: apsw.Error, path: Path) -> OmnidError:
    """Gives the error that the rest of omnid knows for one of SQLite's."""
    detail = str(error) or type(error).__name__
    match error:
        case apsw.FullError():
            return Retryable("disk_full", path=path.parent, detail=f"SQLite says: {detail}")
        case apsw.BusyError() | apsw.LockedError() | apsw.InterruptError():
            return Retryable("store_busy", seconds_s=BUSY_MS / 1000)
        case apsw.NotADBError():
            return Fatal("not_a_database", path=path, detail=detail)
        case apsw.CorruptError():
            return Fatal("journal_damaged", path=path, detail=detail)
        case apsw.CantOpenError() | apsw.ReadOnlyError() | apsw.PermissionsError():
            return Fatal("state_unwritable", path=path.parent, detail=detail)
        case apsw.IOError() | apsw.ProtocolError() | apsw.NoLFSError():
            return Fatal("store_io", path=path, detail=detail)
        case _:
            # A fault of the statement, and so of its job alone.
            return Rejected("internal", detail=f"SQLite says: {detail}")


class SqliteReader:
    """Named queries on one connection. See `interface.Reader`."""

    def __init__(self, connection: apsw.Connection) -> None:
        self.connection = connection
        self._execute = connection.execute
        self._whole = connection.cursor().execute
        """For what is read to its end at once, or gives no rows: one cursor, where a statement else has its own."""
        self._queries = queries()

    def one(self, query: str, *args: Any) -> Row | None:
        """See `interface.Reader.one`."""
        for row in self._execute(self._queries[query], args):
            return row
        return None

    def all(self, query: str, *args: Any) -> list[Row]:
        """See `interface.Reader.all`."""
        return list(self._whole(self._queries[query], args))


class LogClock:
    """The next `seq` and HLC of the log; the writer owns it and takes back what a failed commit had used."""

    def __init__(self, seq: int, hlc: int, node: int, incarnation: int) -> None:
        self.seq = seq
        self.hlc = hlc
        self.node = node
        self.incarnation = incarnation


class SqliteTx(SqliteReader):
    """A transaction. See `interface.Tx`; one object serves all transactions of the writer's connection."""

    def __init__(self, connection: apsw.Connection, position: LogClock, clock: Clock) -> None:
        super().__init__(connection)
        self._position = position
        self._clock = clock
        self.now_ms = clock.wall_ms()
        self.zone = platform.zone("UTC")
        self.memory: dict[str, Any] = {}
        self.forgot = False
        """Whether history was removed: the log's end must then be kept apart from its rows."""
        self.moves: list[tuple[str | None, str | None]] = []
        self.stirred = False
        self.ended: list[str] = []
        self.begun: list[str] = []
        self.rings: list[str] = []
        self.follow: Follow | None = None

    def begin(self) -> None:
        """Takes the time for the functions that follow."""
        self.now_ms = self._clock.wall_ms()
        self.forgot = False
        self.stirred = False
        self.moves.clear()
        self.rings.clear()
        self.ended.clear()
        self.begun.clear()

    def keep_end(self) -> None:
        """Writes down the log's end where rows of the log went, so that no number is given twice."""
        if self.forgot:
            self.run("meta_set", "seq_floor", str(self._position.seq))
            self.run("meta_set", "hlc_floor", str(self._position.hlc))

    def run(self, query: str, *args: Any) -> None:
        """See `interface.Tx.run`."""
        self._whole(self._queries[query], args)

    def moved(self, before: str | None, after: str | None) -> None:
        """See `interface.Tx.moved`."""
        self.moves.append((before, after))

    def ring(self, name: str) -> None:
        """See `interface.Tx.ring`."""
        self.rings.append(name)

    def stamp(self) -> int:
        """See `interface.Tx.stamp`."""
        return log.next_hlc(self._position.hlc, self.now_ms)

    def create(
        self, collection: Collection, id: str, fields: Mapping[str, Any], derived: Mapping[str, Any] = NOTHING
    ) -> int:
        """See `interface.Tx.create`."""
        given = {name: value for name, value in fields.items() if value is not None}
        columns, logged, blobs = log.cells(collection, given)
        self._keep(blobs)
        columns.update(derived)
        ord = self.stamp()
        try:
            # The row before its entry: where it can't be, there is no entry either.
            self._whole(insert_sql(collection.name, ("ord", "id", *columns)), (ord, id, *columns.values()))
        except apsw.ConstraintError as error:
            raise Taken(str(error)) from error
        self._append(ord, collection, id, "create", log.encode_body(logged, {}))
        return ord

    def edit(
        self,
        collection: Collection,
        id: str,
        at: At,
        fields: Mapping[str, Any],
        derived: Mapping[str, Any] = NOTHING,
    ) -> dict[str, int]:
        """See `interface.Tx.edit`."""
        columns, logged, blobs = log.cells(collection, fields)
        self._keep(blobs)
        prev = {name: at.heads.get(name, at.ord) for name in fields}
        hlc = self.stamp()
        self._append(hlc, collection, id, "edit", log.encode_body(logged, prev))
        heads = {**at.heads, **dict.fromkeys(fields, hlc)}
        columns.update(derived)
        values = (*columns.values(), log.encode_heads(heads), at.ord)
        self._whole(update_sql(collection.name, (*columns, "heads")), values)
        return heads

    def delete(self, collection: Collection, id: str, at: At) -> None:
        """See `interface.Tx.delete`."""
        prev = {"*": max((at.ord, *at.heads.values()))}
        self._append(self.stamp(), collection, id, "delete", log.encode_body({}, prev))
        self._whole(self._queries[f"delete_{collection.name}"], (id,))

    def forget(self, collection: Collection, *ids: str) -> None:
        """See `interface.Tx.forget`."""
        if not ids:
            return
        self.forgot = True
        these = msgspec.json.encode(ids).decode()
        self._whole(self._queries[f"forget_{collection.name}"], (these,))
        self._whole(self._queries["forget_changes"], (collection.name, these))

    def forget_history(self, collection: Collection, id: str, before_hlc: int) -> None:
        """See `interface.Tx.forget_history`."""
        self.forgot = True
        self._whole(self._queries["forget_deleted"], (collection.name, id, before_hlc))

    def _keep(self, blobs: list[tuple[str, str]]) -> None:
        for digest, text in blobs:
            self._whole(self._queries["keep_blob"], (digest, text))

    def _append(self, hlc: int, collection: Collection, id: str, kind: str, body: str) -> None:
        position = self._position
        position.seq += 1
        position.hlc = hlc
        self._whole(
            self._queries["append_change"],
            (position.seq, hlc, position.node, position.incarnation, collection.name, id, kind, body),
        )


class SqliteUnit:
    """Runs functions as one transaction on the writer's connection: savepoints, one commit, tally on success."""

    def __init__(self, connection: apsw.Connection, path: Path, position: LogClock, clock: Clock) -> None:
        self.connection = connection
        self.tally: dict[str, int] = {}
        self._path = path
        self._position = position
        self.tx = SqliteTx(connection, position, clock)
        self._execute = connection.cursor().execute
        self._waits: bool = True
        self.spoilt = False
        """See `writer.Unit.spoilt`."""
        self._rung: dict[str, None] = {}

    def set_follow(self, follow: Follow) -> None:
        """See `interface.Store.set_follow`."""
        self.tx.follow = follow

    def take_rung(self) -> list[str]:
        """Gives the names that committed transactions rang since the last call, each once."""
        rung, self._rung = self._rung, {}
        return list(rung)

    def begin(self, *, wait: bool) -> None:
        """Opens the transaction; raises the mapped error. `wait`: up to `BUSY_MS` for another process that writes."""
        self._start = (self._position.seq, self._position.hlc)
        try:
            if wait != self._waits:
                self.connection.set_busy_timeout(BUSY_MS if wait else 0)
                self._waits = wait
            self._execute("BEGIN IMMEDIATE")
        except apsw.Error as error:
            raise mapped(error, self._path) from error
        self.spoilt = False
        self.tx.begin()

    def apply(self, fn: Callable[[SqliteTx], Any], *, savepoint: bool) -> Any:
        """Runs one function; what it raises is raised. With a savepoint nothing of it stays then.

        Without one, `spoilt` tells whether something may have stayed. A mapped SQLite error that ended the whole
        transaction is raised as it is: `broken` is then true.
        """
        tx, connection = self.tx, self.connection
        moves, rings, ended, begun = len(tx.moves), len(tx.rings), len(tx.ended), len(tx.begun)
        position = self._position
        seq, hlc, changes = position.seq, position.hlc, connection.total_changes()
        try:
            if savepoint:
                self._execute("SAVEPOINT one")
            value = fn(tx)
            if savepoint:
                self._execute("RELEASE one")
        except BaseException as error:
            del tx.moves[moves:], tx.rings[rings:], tx.ended[ended:], tx.begun[begun:]
            tx.memory.clear()
            if not savepoint:
                self.spoilt = isinstance(error, apsw.Error) or connection.total_changes() != changes
            elif connection.in_transaction:
                position.seq, position.hlc = seq, hlc
                self._execute("ROLLBACK TO one")
                self._execute("RELEASE one")
            if isinstance(error, apsw.Error):
                raise mapped(error, self._path) from error
            raise
        return value

    @property
    def stirred(self) -> bool:
        """See `interface.Tx.stirred`."""
        return self.tx.stirred

    @property
    def broken(self) -> bool:
        """Whether SQLite rolled the whole transaction back by itself."""
        return not self.connection.in_transaction

    def commit(self) -> None:
        """Commits and counts; raises the mapped error, and then nothing of the transaction stays."""
        try:
            self.tx.keep_end()
            self._execute("COMMIT")
        except apsw.Error as error:
            self.rollback()
            raise mapped(error, self._path) from error
        for before, after in self.tx.moves:
            if before is not None:
                self.tally[before] -= 1
            if after is not None:
                self.tally[after] = self.tally.get(after, 0) + 1
        if self.tx.rings:
            self._rung.update(dict.fromkeys(self.tx.rings))

    def rollback(self) -> None:
        """Gives everything up; the log's position goes back too."""
        self._position.seq, self._position.hlc = self._start
        self.tx.memory.clear()
        if self.connection.in_transaction:
            try:
                self._execute("ROLLBACK")
            except apsw.Error as error:
                raise Fatal("store_io", path=self._path, detail=str(error)) from error
