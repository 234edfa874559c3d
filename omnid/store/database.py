"""The store on SQLite: one writer, a few short-lived readers, and the facts of this node."""

import contextlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from zoneinfo import ZoneInfo

import anyio
import anyio.from_thread
import anyio.to_thread
import apsw

from omnid.clock import Clock
from omnid.errors import Fatal, Retryable
from omnid.model import Problem
from omnid.states import REASONS, STATES
from omnid.store.interface import Follow, Outcome, Reader, Trouble, Tx, tally_key
from omnid.store.migrate import migrate
from omnid.store.queries import queries
from omnid.store.snapshots import TooLargeError, copy
from omnid.store.sqlite import LogClock, SqliteReader, SqliteUnit, lengthen_wal, mapped, open_connection
from omnid.store.writer import GroupWriter, InlineWriter, Job

T = TypeVar("T")

READERS_MAX = 4
READ_S_MAX = 30.0
READ_PRESSED_S_MAX = 5.0
"""How long a read may take while the WAL is over its limit, which no reader may keep it from going below."""
SWEEP_S = 1.0
COPY_S_MAX = 120.0
CHECKPOINT_MS = 500
"""How long a checkpoint of the whole WAL waits for readers, while writers wait for it."""
PEEK_STEPS, PEEK_TURNS_MAX = 1_000, 50
"""How much a look on the event loop may take: turns of so many of SQLite's own steps, a millisecond or two in all."""
DATABASE_NAME = "journal.db"
TALLY_KEYS = (*STATES, *(tally_key("waiting", reason) for reason in REASONS))


class StoreSettings(NamedTuple):
    """How the store is opened. `inline` runs the writer and the readers where they are called (simulation)."""

    group_max: int = 256
    group_s: float = 0.002
    wal_bytes_max: int = 64 * 1024 * 1024
    fullfsync: bool = False
    inline: bool = False


class SqliteStore:
    """See `interface.Store`. Opened by its constructor; `serve` must run while `write` is used; `close` ends it."""

    def __init__(self, path: Path, clock: Clock, settings: StoreSettings) -> None:
        """Opens (or makes) the database, migrates it, and takes the next incarnation.

        Raises Rejected(`schema_newer`, `not_a_database`) and what `sqlite.mapped` gives.
        """
        self.path = path
        self._settings = settings
        self._open = partial(open_connection, path, wal_bytes_max=settings.wal_bytes_max, fullfsync=settings.fullfsync)
        self._connection = self._open()
        try:
            migrate(self._connection, path)
            position, self.node = _start(self._connection, clock)
            self.incarnation = position.incarnation
            unit = SqliteUnit(self._connection, path, position, clock)
            unit.tally.update(dict.fromkeys(TALLY_KEYS, 0))  # Complete, so that it can be read while it changes.
            if not settings.inline:
                lengthen_wal(self._connection, path, wal_bytes_max=settings.wal_bytes_max)
            for state, reason, count in self._connection.execute(queries()["count_by_state"]):
                unit.tally[tally_key(state, reason)] = count
        except apsw.Error as error:
            self._connection.close()
            raise mapped(error, path) from error
        except Exception:
            self._connection.close()
            raise
        self.tally = unit.tally
        self.rung: Callable[[str], None] | None = None
        self._unit = unit
        self._tx = unit.tx
        self._writer = (
            InlineWriter(unit, self._tell)
            if settings.inline
            else GroupWriter(unit, clock, group_max=settings.group_max, group_s=settings.group_s, after=self._tell)
        )
        self._clock = clock
        self.trouble: Trouble | None = None
        self._readers: list[apsw.Connection] = []
        self._busy: dict[apsw.Connection, float] = {}
        """Connections that read now, and since when."""
        self._interrupted = False
        self._checkpointer: apsw.Connection | None = None
        self._peeker: Peeker | None = None
        self._reading = anyio.CapacityLimiter(READERS_MAX)

    @property
    def zone(self) -> ZoneInfo:
        """See `interface.Store.zone`."""
        return self._tx.zone

    @zone.setter
    def zone(self, zone: ZoneInfo) -> None:
        self._tx.zone = zone

    async def write(
        self,
        fn: Callable[[Tx], T],
        *,
        bulk: bool = False,
        patient: bool = False,
        then: Callable[[T], None] | None = None,
    ) -> T:
        """See `interface.Store.write`."""
        try:
            value = await self._writer.submit(fn, bulk=bulk, patient=patient, then=then)
        except Retryable as error:
            if error.code == "disk_full":
                self.trouble = Trouble(self._clock.monotonic_s(), Problem.of(error))
            raise
        self.trouble = None
        return value

    def post(
        self,
        fn: Callable[[Tx], T],
        done: Callable[[Outcome[T]], None],
        *,
        then: Callable[[T], None] | None = None,
        patient: bool = False,
    ) -> None:
        """See `interface.Store.post`."""
        self._writer.post(Job(fn, self._clock.monotonic_s(), then, done), patient=patient)

    def attend(self, look: Callable[[Tx], T], then: Callable[[T], None], failed: Callable[[], None]) -> None:
        """See `interface.Store.attend`."""

        def done(job: Job) -> None:
            if job.error is not None:
                failed()

        self._writer.look = lambda: Job(look, self._clock.monotonic_s(), then, done)

    def set_follow(self, follow: Follow) -> None:
        """See `interface.Store.set_follow`."""
        self._unit.set_follow(follow)

    def _tell(self) -> None:
        """After each batch, on the event loop: passes on what committed transactions rang."""
        for name in self._unit.take_rung():
            if self.rung is not None:
                self.rung(name)

    async def read(self, fn: Callable[[Reader], T]) -> T:
        """See `interface.Store.read`; raises Retryable(`store_busy`) after `READ_S_MAX`."""
        if self._settings.inline:
            return self._read(fn)
        return await anyio.to_thread.run_sync(self._read, fn, limiter=self._reading)

    async def copy(self, path: Path, bytes_max: int) -> int:
        """See `interface.Store.copy`."""
        if self._settings.inline:
            return self._copy(path, bytes_max, lambda: None)
        return await anyio.to_thread.run_sync(self._copy, path, bytes_max, anyio.from_thread.check_cancelled)

    async def peek(self, fn: Callable[[Reader], T]) -> T:
        """See `interface.Store.peek`."""
        if not self._settings.inline:
            try:
                if self._peeker is None:
                    self._peeker = Peeker(self._open(readonly=True))
                return self._peeker.run(fn)
            except (apsw.Error, Retryable):
                pass  # It takes longer, or can't be had at once: a thread has the time, and says what is wrong.
        return await self.read(fn)

    async def booted_since(self, boot_id: str) -> bool:
        """Tells whether the machine was started anew since `remember_boot`."""
        row = await self.read(lambda reader: reader.one("meta_one", "boot_id"))
        return row is not None and row[0] != boot_id

    async def remember_boot(self, boot_id: str) -> None:
        """Remembers that the database was looked at since this start of the machine."""
        await self.write(lambda tx: tx.run("meta_set", "boot_id", boot_id))

    async def serve(self) -> None:
        """Runs the part of the writer that belongs to the event loop; raises Fatal when the disk failed."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._sweep)
            await self._writer.serve()

    def interrupt(self) -> None:
        """Breaks off the reads and copies that are under way, so that a stop needn't wait for them."""
        self._interrupted = True
        for connection in tuple(self._busy):
            connection.interrupt()

    async def _sweep(self) -> None:
        """Breaks off reads that take too long (Retryable(`store_busy`) for them), and keeps the WAL in its limit."""
        while True:
            await anyio.sleep(SWEEP_S)
            pressed = self._wal_bytes() > self._settings.wal_bytes_max
            limit_s = self._clock.monotonic_s() - (READ_PRESSED_S_MAX if pressed else READ_S_MAX)
            for connection, since_s in tuple(self._busy.items()):
                if since_s < limit_s:
                    connection.interrupt()
            if pressed:
                await anyio.to_thread.run_sync(self._empty_wal)

    def _wal_bytes(self) -> int:
        try:
            return os.stat(f"{self.path}-wal").st_size
        except FileNotFoundError:
            return 0

    def _empty_wal(self) -> None:
        """Checkpoints all of the WAL and cuts it off.

        SQLite does so by itself only in a moment in which nobody reads, and readers that overlap leave none. Here it
        holds up writers for a moment, waits for the readers from before, and those that come then don't need the WAL.
        Where one of them takes too long, or there is no room, the next round tries again. Raises Fatal as a write does.
        """
        if self._checkpointer is None:
            self._checkpointer = self._open()
            self._checkpointer.set_busy_timeout(CHECKPOINT_MS)
        try:
            self._checkpointer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        except apsw.Error as error:
            failure = mapped(error, self.path)
            if not isinstance(failure, Retryable):
                raise failure from error

    def close(self) -> None:
        """Finishes what is queued and closes all connections."""
        self._writer.close()
        for reader in self._readers:
            reader.close()
        if self._checkpointer is not None:
            self._checkpointer.close()
        if self._peeker is not None:
            self._peeker.close()
        self._connection.close()

    def _read(self, fn: Callable[[Reader], Any]) -> Any:
        try:
            connection = self._readers.pop()
        except IndexError:
            connection = self._open(readonly=True)
        self._busy[connection] = self._clock.monotonic_s()
        try:
            connection.execute("BEGIN")
            return fn(SqliteReader(connection))
        except apsw.Error as error:
            raise mapped(error, self.path) from error
        finally:
            del self._busy[connection]
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            self._readers.append(connection)

    def _copy(self, path: Path, bytes_max: int, check: Callable[[], None]) -> int:
        """Copies on a connection of its own; `check` may raise, to break it off."""
        until_s = self._clock.monotonic_s() + COPY_S_MAX

        def go_on() -> None:
            check()
            if self._interrupted:
                raise _no_copy(path, "omnid is stopping")
            if self._wal_bytes() > self._settings.wal_bytes_max:
                raise _no_copy(path, "so much is written just now that it would hold that up")
            if self._clock.monotonic_s() > until_s:
                raise _no_copy(path, f"it took more than {COPY_S_MAX:g} s")

        try:
            with contextlib.closing(self._open(readonly=True)) as source:
                return copy(source, path, bytes_max, go_on)
        except TooLargeError as error:
            detail = f"it takes {error.size_bytes} bytes, and there is room for {max(0, bytes_max)}"
            raise _no_copy(path, detail) from None
        except OSError as error:
            raise _no_copy(path, error.strerror or str(error)) from error
        except (apsw.Error, Fatal) as error:
            # Whatever is wrong with the copy: the journal goes on.
            raise _no_copy(path, str(error) or type(error).__name__) from error


def _no_copy(path: Path, detail: str) -> Retryable:
    return Retryable("no_snapshot", path=path.parent, detail=detail)


class Peeker:
    """A reading connection for the event loop: it waits for nobody, and breaks off what takes too many steps."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._reader = SqliteReader(connection)
        self._turns = 0
        connection.set_busy_timeout(0)
        connection.set_progress_handler(self._has_had_enough, PEEK_STEPS)

    def run(self, fn: Callable[[Reader], T]) -> T:
        """Runs `fn` against one committed state; raises apsw.Error where it can't be had at once."""
        self._turns = 0
        self._connection.execute("BEGIN")
        try:
            return fn(self._reader)
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    def _has_had_enough(self) -> bool:
        self._turns += 1
        return self._turns > PEEK_TURNS_MAX


def _start(connection: apsw.Connection, clock: Clock) -> tuple[LogClock, str]:
    """Reads where the log stands and takes the next incarnation."""
    with connection:
        return _take_incarnation(connection, clock)
    raise AssertionError("APSW's context manager hides no exception")


def _take_incarnation(connection: apsw.Connection, clock: Clock) -> tuple[LogClock, str]:
    texts = queries()
    meta: dict[str, str] = dict(connection.execute(texts["meta_all"]))
    node = meta.get("node") or clock.uuid()
    incarnation = int(meta.get("incarnation", "0")) + 1
    for name, value in (("node", node), ("incarnation", str(incarnation))):
        connection.execute(texts["meta_set"], (name, value))
    connection.execute(texts["node_add"], (1, node))
    seq, hlc = next(iter(connection.execute(texts["log_end"])))
    seq = max(seq or 0, int(meta.get("seq_floor", "0")))
    hlc = max(hlc or 0, int(meta.get("hlc_floor", "0")))
    return LogClock(seq, hlc, 1, incarnation), node
