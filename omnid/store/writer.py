"""The one writer: functions that gather run as savepoints of one transaction, are committed once, then answered."""

import queue
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import anyio
import anyio.lowlevel

from omnid.clock import Clock
from omnid.errors import Fatal, OmnidError, Retryable
from omnid.readable import on_readable

ANSWER_S_MAX = 60.0
SWEEP_S = 1.0


class Unit(Protocol):
    """One transaction at a time, on one connection; see `sqlite.SqliteUnit`."""

    @property
    def broken(self) -> bool:
        """Whether the engine gave the whole transaction up by itself."""
        ...

    @property
    def stirred(self) -> bool:
        """See `interface.Tx.stirred`."""
        ...

    @property
    def spoilt(self) -> bool:
        """Whether the transaction holds a part of a function that raised: all of it must be given up."""
        ...

    def begin(self, *, wait: bool) -> None:
        """Opens a transaction; without `wait` it raises Retryable(`store_busy`) where another process writes."""
        ...

    def apply(self, fn: Callable[[Any], Any], *, savepoint: bool) -> Any:
        """Runs a function in it; with a savepoint whole or not at all, else what it wrote may spoil the transaction."""
        ...

    def commit(self) -> None:
        """Makes it durable."""
        ...

    def rollback(self) -> None:
        """Gives it up."""
        ...


class Job:
    """A function on its way through the writer, and what came of it."""

    __slots__ = ("_done", "_then", "error", "fn", "late", "since_s", "value")

    def __init__(
        self,
        fn: Callable[[Any], Any],
        since_s: float,
        then: Callable[[Any], None] | None = None,
        done: Callable[["Job"], None] | None = None,
    ) -> None:
        self.fn = fn
        self.since_s = since_s
        self.value: Any = None
        self.error: BaseException | None = None
        self.late = False
        """True where the caller was answered before the commit was decided."""
        self._then = then
        self._done = done

    def answer(self) -> None:
        """Once the commit is decided, on the event loop: follows it up, and tells the caller if there still is one."""
        if self.error is None and self._then is not None:
            self._then(self.value)
        self.finish()

    def finish(self) -> None:
        """Tells the caller, once, whatever is known by now."""
        done, self._done = self._done, None
        if done is not None:
            done(self)

    def give_up(self) -> None:
        """Tells the caller that it has waited too long."""
        self.late = True
        self.finish()

    def outcome(self) -> Any:
        """Gives the value or raises the error."""
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
    """Does all but the commit; `more` gives jobs that arrive meanwhile. Tells whether there is something to commit.

    The jobs run without savepoints, because hardly any raises after it has written. Where one does, the transaction is
    given up, what had succeeded in it is run again, and the rest of the batch gets savepoints.
    """
    if not _begin(unit, jobs, wait=wait):
        return False
    careful = False
    position = 0
    while True:
        if position == len(jobs):
            job = more()
            if job is None:
                return True
            jobs.append(job)
        job = jobs[position]
        position += 1
        if job.error is not None:
            continue
        if _apply(unit, job, savepoint=careful):
            _fail(jobs, job.error)
            unit.rollback()
            return False
        if unit.spoilt:
            unit.rollback()
            careful = True
            position = 0
            if not _begin(unit, jobs, wait=wait):
                return False


def commit_batch(unit: Unit, jobs: list[Job]) -> None:
    """Commits. If that fails, every job gets the error, and none is run again: its caller knows whether it may be."""
    try:
        unit.commit()
    except OmnidError as error:
        _fail(jobs, error)


def _begin(unit: Unit, jobs: list[Job], *, wait: bool) -> bool:
    try:
        unit.begin(wait=wait)
    except OmnidError as error:
        _fail(jobs, error)
        return False
    return True


def _apply(unit: Unit, job: Job, *, savepoint: bool) -> bool:
    """Runs one job; tells whether the whole transaction is lost with it."""
    try:
        job.value = unit.apply(job.fn, savepoint=savepoint)
    except Exception as error:  # noqa: BLE001 - it belongs to the caller, who gets it.
        job.error = error
        return isinstance(error, Fatal) or unit.broken
    return False


def _fail(jobs: list[Job], error: BaseException | None) -> None:
    for job in jobs:
        job.value = None
        job.error = error


def _raise_fatal(jobs: list[Job]) -> None:
    """Raises the Fatal that one of them has got: the state of the file is unknown from here on."""
    for job in jobs:
        if isinstance(job.error, Fatal):
            raise job.error


class InlineWriter:
    """Runs each function at once, where it is called: for the simulation, and for tools without a loop."""

    def __init__(self, unit: Unit, after: Callable[[], None] = lambda: None) -> None:
        """Takes `after` as `GroupWriter` does."""
        self._unit = unit
        self._after = after
        self.look: Callable[[], Job] | None = None
        """See `GroupWriter.look`."""

    async def submit(
        self,
        fn: Callable[[Any], Any],
        *,
        bulk: bool = False,  # noqa: ARG002 - all are alike here.
        patient: bool = False,  # noqa: ARG002 - nobody waits here.
        then: Callable[[Any], None] | None = None,
    ) -> Any:
        """Runs `fn` as a transaction of its own."""
        await anyio.lowlevel.checkpoint()
        job = Job(fn, 0.0, then)
        self.post(job)
        return job.outcome()

    def post(self, job: Job, *, patient: bool = False) -> None:  # noqa: ARG002 - nobody waits here.
        """Runs the job at once and answers it."""
        jobs = [job]
        if apply_batch(self._unit, jobs, Looking(self._unit, self.look), wait=True):
            commit_batch(self._unit, jobs)
        self._after()
        for each in jobs:
            each.answer()

    async def serve(self) -> None:
        """Has nothing to do."""

    def close(self) -> None:
        """Has nothing to let go of."""


class Looking:
    """Gives, once, the job that belongs behind those of a batch, where they have stirred something up."""

    __slots__ = ("_look", "_unit")

    def __init__(self, unit: Unit, look: Callable[[], Job] | None) -> None:
        self._unit = unit
        self._look = look

    def __call__(self) -> Job | None:
        """Gives the job, or None."""
        if self._look is None or not self._unit.stirred:
            return None
        look, self._look = self._look, None
        return look()


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
        self._patient: deque[Job] = deque()
        """Those that nobody waits for: between two of them one of the others has its turn."""
        self._turn = False
        """Whether the next one is one of the patient, if there are any."""
        self._bulk: deque[Job] = deque()
        self._syncing: list[Job] = []
        self._gathered = anyio.Event()
        self._decided = anyio.Event()
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._fault: BaseException | None = None
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._closing = False
        self.look: Callable[[], Job] | None = None
        """Makes the job that belongs behind those of a batch that has stirred something up."""
        self._thread = threading.Thread(target=self._run, name="omnid-writer", daemon=True)
        self._thread.start()

    async def submit(
        self,
        fn: Callable[[Any], Any],
        *,
        bulk: bool = False,
        patient: bool = False,
        then: Callable[[Any], None] | None = None,
    ) -> Any:
        """Queues `fn` and waits until its batch is committed; raises Retryable(`store_busy`, `store_closed`)."""
        if self._closing:
            raise Retryable("store_closed")
        answered = anyio.Event()
        job = Job(fn, self._clock.monotonic_s(), then, lambda _: answered.set())
        (self._bulk if bulk else self._patient if patient else self._waiting).append(job)
        self._gathered.set()
        await answered.wait()
        return job.outcome()

    def post(self, job: Job, *, patient: bool = False) -> None:
        """Queues a job, which tells its caller by itself; the caller has no task that waits."""
        if self._closing:
            job.error = Retryable("store_closed")
            job.finish()
            return
        (self._patient if patient else self._waiting).append(job)
        self._gathered.set()

    async def serve(self) -> None:
        """Runs what gathers, batch by batch, until it is cancelled; raises Fatal when the disk failed.

        At its end everybody who still waits is answered, and nobody is taken any more.
        """
        error: BaseException = Retryable("store_closed")
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._sweep)
                group.start_soon(on_readable, self._wake_read.fileno(), self._have_done)
                try:
                    await self._batches()
                except Fatal as fatal:
                    error = fatal
                    raise
        finally:
            self._closing = True
            for job in (*self._syncing, *self._waiting, *self._patient, *self._bulk):
                job.error = job.error or error
                job.finish()

    def close(self) -> None:
        """Ends the thread; blocks until a commit that is under way is synced."""
        self._closing = True
        self._work.put(None)
        self._thread.join()
        self._wake_read.close()
        self._wake_write.close()

    async def _batches(self) -> None:
        while True:
            if not self._waiting and not self._patient and not self._bulk:
                self._gathered = anyio.Event()
                await self._gathered.wait()
            if self._waiting or self._patient:
                await self._group()
            if self._bulk:
                await self._whole([self._bulk.popleft()])

    async def _group(self) -> None:
        """Runs one batch within the limits of number and time, and commits it."""
        self._syncing = jobs = [self._next()]
        until_s = self._clock.monotonic_s() + self._group_s
        last = Looking(self._unit, self.look)

        def more() -> Job | None:
            there = self._waiting or self._patient
            if there and len(jobs) < self._group_max and self._clock.monotonic_s() <= until_s:
                return self._next()
            return last()

        if apply_batch(self._unit, jobs, more):
            await self._on_thread(lambda: commit_batch(self._unit, jobs))
        elif isinstance(jobs[0].error, Retryable) and jobs[0].error.code == "store_busy":
            # Another process writes (a person with a shell, say): to wait for it is the thread's business.
            for job in jobs:
                job.error = None
            await self._whole(jobs)
        else:
            self._answer(jobs)
            _raise_fatal(jobs)

    def _next(self) -> Job:
        """Takes one of those that wait, by turns."""
        patient = bool(self._patient) and (self._turn or not self._waiting)
        self._turn = not patient
        return (self._patient if patient else self._waiting).popleft()

    async def _whole(self, jobs: list[Job]) -> None:
        """Has the thread run a whole batch."""
        self._syncing = jobs
        await self._on_thread(lambda: run_batch(self._unit, jobs, wait=True))
        if self._unit.stirred and self.look is not None:
            self._waiting.append(self.look())

    async def _on_thread(self, work: Callable[[], None]) -> None:
        """Has the thread do the blocking part, and the batch answered; raises Fatal where the disk failed."""
        jobs = self._syncing
        self._decided = anyio.Event()
        self._work.put(work)
        await self._decided.wait()
        if self._fault is not None:
            raise Fatal("internal", detail=f"the writer broke off: {self._fault!r}") from self._fault
        _raise_fatal(jobs)

    def _have_done(self) -> None:
        """The thread has done its part: the batch is answered before anything else gets its turn."""
        self._wake_read.recv(1)
        if self._fault is None:
            self._answer(self._syncing)
        self._decided.set()

    def _answer(self, jobs: list[Job]) -> None:
        self._syncing = []
        self._after()
        for job in jobs:
            job.answer()

    async def _sweep(self) -> None:
        """Answers those who have waited too long: what had not begun is never done, what is syncing may be."""
        while True:
            await anyio.sleep(SWEEP_S)
            limit_s = self._clock.monotonic_s() - ANSWER_S_MAX
            for waiting in (self._waiting, self._patient, self._bulk):
                while waiting and waiting[0].since_s < limit_s:
                    waiting.popleft().give_up()
            for job in self._syncing:
                if job.since_s < limit_s:
                    job.give_up()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - the loop ends the daemon with it.
                self._fault = error
            self._wake_write.send(b"\0")
