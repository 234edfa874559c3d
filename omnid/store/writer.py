"""The one writer: functions that gather run as savepoints of one transaction, are committed once, then answered."""

import queue
import socket
import threading
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any, Protocol

import anyio
import anyio.lowlevel

from omnid.clock import Clock
from omnid.errors import Fatal, OmnidError, Retryable

ANSWER_S_MAX = 60.0
SWEEP_S = 1.0


class Unit(Protocol):
    """One transaction at a time, on one connection; see `sqlite.SqliteUnit`."""

    @property
    def broken(self) -> bool:
        """Whether the engine gave the whole transaction up by itself."""
        ...

    def begin(self, *, wait: bool) -> None:
        """Opens a transaction; without `wait` it raises Retryable(`store_busy`) where another process writes."""
        ...

    def apply(self, fn: Callable[[Any], Any]) -> Any:
        """Runs a function in it, whole or not at all."""
        ...

    def commit(self) -> None:
        """Makes it durable."""
        ...

    def rollback(self) -> None:
        """Gives it up."""
        ...


class Job:
    """A function on its way through the writer, and what came of it."""

    __slots__ = ("_then", "done", "error", "fn", "late", "since_s", "value")

    def __init__(self, fn: Callable[[Any], Any], since_s: float, then: Callable[[Any], None] | None = None) -> None:
        self.fn = fn
        self.since_s = since_s
        self.done = anyio.Event()
        self.value: Any = None
        self.error: BaseException | None = None
        self.late = False
        """True where the caller was answered before the commit was decided."""
        self._then = then

    def answer(self) -> None:
        """Once the commit is decided, on the event loop: follows it up, and wakes the caller if there still is one."""
        if self.error is None and self._then is not None:
            self._then(self.value)
        self.done.set()

    async def outcome(self) -> Any:
        """Waits, and gives the value or raises the error."""
        await self.done.wait()
        if self.late:
            raise Retryable("store_busy", seconds_s=ANSWER_S_MAX)
        if self.error is not None:
            raise self.error
        return self.value


def run_batch(unit: Unit, jobs: list[Job], *, wait: bool) -> None:
    """Runs jobs as one transaction and fills in what came of each; `wait`: for another writer, if there is one."""
    if apply_batch(unit, jobs, lambda: None, wait=wait):
        commit_batch(unit, jobs)


def apply_batch(unit: Unit, jobs: list[Job], more: Callable[[], Job | None], *, wait: bool = False) -> bool:
    """Does all but the commit; `more` gives jobs that arrive meanwhile. Tells whether there is something to commit."""
    try:
        unit.begin(wait=wait)
    except OmnidError as error:
        _fail(jobs, error)
        return False
    job: Job | None
    for position in count():
        job = jobs[position] if position < len(jobs) else more()
        if job is None:
            return True
        if position == len(jobs):
            jobs.append(job)
        if _apply(unit, job):
            _fail(jobs, job.error)
            unit.rollback()
            return False
    raise AssertionError("count() has no end")


def commit_batch(unit: Unit, jobs: list[Job]) -> None:
    """Commits. If that fails, every job gets the error, and none is run again: its caller knows whether it may be."""
    try:
        unit.commit()
    except OmnidError as error:
        _fail(jobs, error)


def _apply(unit: Unit, job: Job) -> bool:
    """Runs one job; tells whether the whole transaction is lost with it."""
    try:
        job.value = unit.apply(job.fn)
    except Exception as error:  # noqa: BLE001 - it belongs to the caller, who gets it.
        job.error = error
        return isinstance(error, Fatal) or unit.broken
    return False


def _fail(jobs: list[Job], error: BaseException | None) -> None:
    for job in jobs:
        job.value = None
        job.error = error


class InlineWriter:
    """Runs each function at once, where it is called: for the simulation, and for tools without a loop."""

    def __init__(self, unit: Unit, after: Callable[[], None] = lambda: None) -> None:
        """Takes `after` as `GroupWriter` does."""
        self._unit = unit
        self._after = after

    async def submit(
        self,
        fn: Callable[[Any], Any],
        *,
        bulk: bool = False,  # noqa: ARG002 - all are alike here.
        then: Callable[[Any], None] | None = None,
    ) -> Any:
        """Runs `fn` as a transaction of its own."""
        await anyio.lowlevel.checkpoint()
        job = Job(fn, 0.0, then)
        run_batch(self._unit, [job], wait=True)
        self._after()
        job.answer()
        return await job.outcome()

    async def serve(self) -> None:
        """Has nothing to do."""

    def close(self) -> None:
        """Has nothing to let go of."""


class GroupWriter:
    """Group commit: gathered functions run one after the other on the event loop, their commit on a thread.

    Each function takes some ten microseconds, the commit a sync of the disk. With the functions on the thread too, both
    threads would hand the interpreter's lock to and fro with every call into SQLite, which halves the throughput. While
    a commit syncs, the next batch gathers. A `bulk` function runs on the thread as a whole, in a batch of its own.
    `serve` runs in the daemon's task group.
    """

    def __init__(
        self,
        unit: Unit,
        clock: Clock,
        *,
        group_max: int,
        group_s: float,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        """Calls `after` on the event loop when a batch has been decided, before its callers hear of it."""
        self._unit = unit
        self._after = after
        self._clock = clock
        self._group_max = group_max
        self._group_s = group_s
        self._waiting: deque[Job] = deque()
        self._bulk: deque[Job] = deque()
        self._syncing: list[Job] = []
        self._gathered = anyio.Event()
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._fault: BaseException | None = None
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="omnid-writer", daemon=True)
        self._thread.start()

    async def submit(
        self, fn: Callable[[Any], Any], *, bulk: bool = False, then: Callable[[Any], None] | None = None
    ) -> Any:
        """Queues `fn` and waits until its batch is committed; raises Retryable(`store_busy`, `store_closed`)."""
        if self._closing:
            raise Retryable("store_closed")
        job = Job(fn, self._clock.monotonic_s(), then)
        (self._bulk if bulk else self._waiting).append(job)
        self._gathered.set()
        return await job.outcome()

    async def serve(self) -> None:
        """Runs what gathers, batch by batch, until it is cancelled; raises Fatal when the disk failed.

        At its end everybody who still waits is answered, and nobody is taken any more.
        """
        error: BaseException = Retryable("store_closed")
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._sweep)
                try:
                    await self._batches()
                except Fatal as fatal:
                    error = fatal
                    raise
        finally:
            self._closing = True
            for job in (*self._syncing, *self._waiting, *self._bulk):
                job.error = job.error or error
                job.done.set()

    def close(self) -> None:
        """Ends the thread; blocks until a commit that is under way is synced."""
        self._closing = True
        self._work.put(None)
        self._thread.join()
        self._wake_read.close()
        self._wake_write.close()

    async def _batches(self) -> None:
        while True:
            if not self._waiting and not self._bulk:
                self._gathered = anyio.Event()
                await self._gathered.wait()
            if self._waiting:
                await self._group()
            if self._bulk:
                await self._on_thread([self._bulk.popleft()])

    async def _group(self) -> None:
        """Runs one batch within the limits of number and time, and commits it."""
        self._syncing = jobs = [self._waiting.popleft()]
        until_s = self._clock.monotonic_s() + self._group_s

        def more() -> Job | None:
            full = len(jobs) >= self._group_max or self._clock.monotonic_s() > until_s
            return None if full or not self._waiting else self._waiting.popleft()

        if apply_batch(self._unit, jobs, more):
            await self._have_done(lambda: commit_batch(self._unit, jobs))
        elif isinstance(jobs[0].error, Retryable) and jobs[0].error.code == "store_busy":
            # Another process writes (a person with a shell, say): to wait for it is the thread's business.
            for job in jobs:
                job.error = None
            await self._on_thread(jobs)
            return
        self._answer(jobs)

    async def _on_thread(self, jobs: list[Job]) -> None:
        """Has the thread run a whole batch."""
        self._syncing = jobs
        await self._have_done(lambda: run_batch(self._unit, jobs, wait=True))
        self._answer(jobs)

    async def _have_done(self, work: Callable[[], None]) -> None:
        """Has the thread do the blocking part; raises Fatal where that broke off in a way nobody knows."""
        self._work.put(work)
        await anyio.wait_readable(self._wake_read)
        self._wake_read.recv(1)
        if self._fault is not None:
            raise Fatal("internal", detail=f"the writer broke off: {self._fault!r}") from self._fault

    def _answer(self, jobs: list[Job]) -> None:
        self._syncing = []
        self._after()
        for job in jobs:
            job.answer()
        for job in jobs:
            if isinstance(job.error, Fatal):
                raise job.error

    async def _sweep(self) -> None:
        """Answers those who have waited too long: what had not begun is never done, what is syncing may be."""
        while True:
            await anyio.sleep(SWEEP_S)
            limit_s = self._clock.monotonic_s() - ANSWER_S_MAX
            for waiting in (self._waiting, self._bulk):
                while waiting and waiting[0].since_s < limit_s:
                    waiting[0].late = True
                    waiting.popleft().done.set()
            for job in self._syncing:
                if job.since_s < limit_s:
                    job.late = True
                    job.done.set()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - the loop ends the daemon with it.
                self._fault = error
            self._wake_write.send(b"\0")
