"""The real store with its writer's queue on virtual time: it may be slow, full, broken, or killed around a commit."""

from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import apsw
import trio

from omnid.errors import Fatal, Retryable
from omnid.store.database import SqliteStore, StoreSettings
from omnid.store.interface import Outcome, Reader, Tx
from omnid.store.writer import InlineWriter, Job, Looking, apply_batch, commit_batch
from tests.sim.model import Entry, View

if TYPE_CHECKING:
    from tests.sim.daemon import SimDaemon

T = TypeVar("T")

GROUP_MAX = 8
CHANGES = "SELECT seq, hlc, collection, id, kind, body FROM change WHERE seq > ? ORDER BY seq"


class Part(NamedTuple):
    """One function of a batch: what it wrote, what its caller saw when it called, and its time."""

    entries: list[Entry]
    view: View
    now_ms: int


class SimStore:
    """See `store.interface.Store`. Batches, answers and errors come as from the writer's thread."""

    def __init__(self, path: Path, daemon: "SimDaemon") -> None:
        self._daemon = daemon
        self._sim = daemon.sim
        self._inner = SqliteStore(path, daemon.sim.clock, StoreSettings(inline=True))
        self.tally = self._inner.tally
        self.trouble = None
        self.zone = self._inner.zone
        self.node = self._inner.node
        self.incarnation = self._inner.incarnation
        self.connection = self._inner._connection
        writer = self._inner._writer
        if not isinstance(writer, InlineWriter):
            raise TypeError("the simulation's writer runs inline")
        self._unit = writer._unit
        self._unit._execute = self._execute
        self._waiting: deque[Job] = deque()
        self._bulk: deque[Job] = deque()
        self._open: dict[Job, None] = {}
        self._bell = trio.Event()
        self._look: Callable[[], Job] | None = None
        self._parts: list[Part] = []
        self._seq = 0
        """The end of the log as far as the batch has come."""
        self.busy = 0
        """How many reads and writes are on their way."""
        self._ended = False
        """Whether it serves no more: as the real one it answers nobody from then on, and keeps nobody waiting."""
        self.faulty_s = -1e9
        """When it last failed or was slow."""

    async def write(
        self,
        fn: Callable[[Tx], T],
        *,
        bulk: bool = False,
        patient: bool = False,
        then: Callable[[T], None] | None = None,
    ) -> T:
        if self._daemon.dead or self._ended:
            raise Retryable("store_closed")
        answered = trio.Event()
        job = Job(
            partial(self._note, fn=fn, view=self._daemon.view()), trio.current_time(), then, lambda _: answered.set()
        )
        (self._bulk if bulk else self._waiting).append(job)
        self._bell.set()
        self._open[job] = None
        self.busy += 1
        try:
            await answered.wait()
            return job.outcome()
        finally:
            self.busy -= 1
            self._open.pop(job, None)

    def post(
        self,
        fn: Callable[[Tx], T],
        done: Callable[[Outcome[T]], None],
        *,
        then: Callable[[T], None] | None = None,
        patient: bool = False,
    ) -> None:
        raise AssertionError("nobody here is without a task")

    def attend(self, look: Callable[[Tx], T], then: Callable[[T], None], failed: Callable[[], None]) -> None:
        def done(job: Job) -> None:
            if job.error is not None:
                failed()

        self._look = lambda: Job(partial(self._note, fn=look, view=None), trio.current_time(), then, done)

    async def read(self, fn: Callable[[Reader], T]) -> T:
        sim = self._sim
        self.busy += 1
        try:
            await trio.lowlevel.checkpoint()
            if self._daemon.dead:
                raise Retryable("store_closed")
            if sim.chance.random() < sim.weather.read_busy:
                self.faulty_s = trio.current_time()
                raise Retryable("store_busy", seconds_s=5)
            value = await self._inner.read(fn)
            await self._dawdle()
            return value
        finally:
            self.busy -= 1

    async def peek(self, fn: Callable[[Reader], T]) -> T:
        return await self.read(fn)

    async def serve(self) -> None:
        """Does what the real writer does, in its order; raises Fatal when the disk failed."""
        try:
            await self._serve()
        finally:
            self._ended = True
            self.let_go()

    def let_go(self) -> None:
        """Ends the wait of all who wait: the daemon is dead, and so are they."""
        for job in self._open:
            job.error = Retryable("store_closed")
            job.finish()

    async def _serve(self) -> None:
        while True:
            await self._bell.wait()
            self._bell = trio.Event()
            while self._waiting or self._bulk:
                await self._dawdle()
                if self._waiting:
                    await self._gathered([self._waiting.popleft()])
                if self._bulk:
                    await self._group([self._bulk.popleft()], lambda: None)
                    if self._unit.stirred and self._look is not None:
                        self._waiting.append(self._look())

    async def _gathered(self, jobs: list[Job]) -> None:
        """Runs a batch with what comes behind its first job: what waits, and what looks at what they stirred up."""
        last = Looking(self._unit, self._look)

        def more() -> Job | None:
            return self._waiting.popleft() if self._waiting and len(jobs) < GROUP_MAX else last()

        await self._group(jobs, more)

    async def _group(self, jobs: list[Job], more: Callable[[], Job | None]) -> None:
        """Runs one batch with the store's own code; a kill finds it before, between, or after its two halves."""
        self._fate("before a transaction")
        if not apply_batch(self._unit, jobs, more):
            self._answer(jobs)
            return
        await self._dawdle()
        self._fate("before a commit")
        if self._daemon.dead:
            await trio.sleep_forever()
        commit_batch(self._unit, jobs)
        self._fate("after a commit")
        await self._dawdle()
        self._answer(jobs)

    def _answer(self, jobs: list[Job]) -> None:
        for job in jobs:
            job.answer()
            if isinstance(job.error, Fatal):
                raise job.error

    def _fate(self, when: str) -> None:
        if self._sim.chance.random() < self._sim.weather.kill_at_commit:
            self._daemon.kill(when)

    async def _dawdle(self) -> None:
        chance = self._sim.chance
        if chance.random() < self._sim.weather.slow_store:
            await trio.sleep(chance.uniform(0, 0.2))
        else:
            await trio.lowlevel.checkpoint()

    def _note(self, tx: Tx, *, fn: Callable[[Tx], T], view: View | None) -> T:
        """Runs the function and reads what it logged, before a later one of the batch may forget it."""
        if view is None:
            view = self._daemon.view(tx.begun, tx.ended)
        value = fn(tx)
        rows = self.connection.execute(CHANGES, (self._seq,))
        self._parts.append(Part([Entry.of(row) for row in rows], view, tx.now_ms))
        self._seq = self._unit._position.seq
        return value

    def _execute(self, sql: str, *args: Any) -> Any:
        if sql.startswith("BEGIN"):
            # A batch that was spoilt begins anew: only what it does then counts.
            self._parts = []
            self._seq = self._unit._position.seq
        if sql != "COMMIT":
            return self.connection.execute(sql, *args)
        sim = self._sim
        if sim.chance.random() < sim.weather.disk_full:
            self.faulty_s = trio.current_time()
            sim.trace("disk full")
            raise apsw.FullError("database or disk is full")
        breaks = sim.chance.random() < sim.weather.disk_broken
        if breaks and sim.chance.random() < 0.5:
            raise apsw.IOError("disk I/O error")
        self.connection.execute(sql)
        self._tell()
        if breaks:
            raise apsw.IOError("disk I/O error, after all was written")
        return None

    def _tell(self) -> None:
        for part in self._parts:
            self._sim.model.committed(*part)

    def close(self) -> None:
        self._inner.close()
