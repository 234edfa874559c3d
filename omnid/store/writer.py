"""The one writer: functions that wait are run as savepoints of one transaction, committed once, then answered."""

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

ANSWER_S_MAX = 60.0
SWEEP_S = 1.0


class Unit(Protocol):
    """One transaction at a time, on one connection; see `sqlite.SqliteUnit`."""

    @property
    def broken(self) -> bool:
        """Whether the engine gave the whole transaction up by itself."""
        ...

    def begin(self) -> None:
        """Opens a transaction."""
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

    __slots__ = ("done", "error", "fn", "orphan", "since_s", "value")

    def __init__(self, fn: Callable[[Any], Any], since_s: float) -> None:
        self.fn = fn
        self.since_s = since_s
        self.done = anyio.Event()
        self.value: Any = None
        self.error: BaseException | None = None
        self.orphan = False
        """True where the caller was cancelled: what it would have done after the commit is left undone."""


def run_batch(unit: Unit, jobs: list[Job], more: Callable[[], Job | None]) -> None:
    """Runs jobs as one transaction and fills in what came of each; `more` gives those that arrive meanwhile.

    If the commit fails, every job gets that error, and none is run again: its caller knows whether it may be.
    """
    try:
        unit.begin()
    except OmnidError as error:
        _fail(jobs, error)
        return
    job: Job | None
    for job in jobs:
        if _apply(unit, job):
            _fail(jobs, job.error)
            unit.rollback()
            return
    while (job := more()) is not None:
        jobs.append(job)
        if _apply(unit, job):
            _fail(jobs, job.error)
            unit.rollback()
            return
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


def _nothing() -> None:
    """Stands for a listener that isn't there."""


class InlineWriter:
    """Runs each function at once, where it is called: for the simulation, and for tools without a loop."""

    def __init__(self, unit: Unit) -> None:
        self._unit = unit
        self.on_orphan: Callable[[], None] = _nothing

    async def submit(self, fn: Callable[[Any], Any]) -> Any:
        """Runs `fn` as a transaction of its own."""
        await anyio.lowlevel.checkpoint()
        job = Job(fn, 0.0)
        run_batch(self._unit, [job], lambda: None)
        if job.error is not None:
            raise job.error
        return job.value

    async def serve(self) -> None:
        """Has nothing to do."""

    def close(self) -> None:
        """Has nothing to let go of."""


class ThreadWriter:
    """Group commit on a thread of its own; answers come back to the event loop through a socket pair.

    `serve` runs in the daemon's task group and hands the answers to those who wait, so that the thread never waits
    for the loop and the next batch gathers while this one syncs.
    """

    def __init__(self, unit: Unit, clock: Clock, *, group_max: int, group_s: float) -> None:
        self._unit = unit
        self._clock = clock
        self._group_max = group_max
        self._group_s = group_s
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._open: dict[int, Job] = {}
        self._answered: deque[list[Job]] = deque()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self.on_orphan: Callable[[], None] = _nothing
        """Called when a job is committed whose caller has been cancelled."""
        self._closing = False
        self._ended = False
        self._last = False
        self._left = 0
        self._until_s = 0.0
        self._thread = threading.Thread(target=self._run, name="omnid-writer", daemon=True)
        self._thread.start()

    async def submit(self, fn: Callable[[Any], Any]) -> Any:
        """Queues `fn` and waits until its batch is committed."""
        if self._closing:
            raise Retryable("store_closed")
        job = Job(fn, self._clock.monotonic_s())
        self._open[id(job)] = job
        self._jobs.put(job)
        try:
            await job.done.wait()
        except BaseException:
            job.orphan = True
            raise
        if job.error is not None:
            raise job.error
        return job.value

    async def serve(self) -> None:
        """Answers those who wait; raises Fatal when the disk failed. Ends after `close`, or when cancelled."""
        while not self._ended:
            with anyio.move_on_after(SWEEP_S):
                await anyio.wait_readable(self._wake_read)
                self._drain_wake()
            while self._answered:
                for job in self._answered.popleft():
                    self._open.pop(id(job), None)
                    job.done.set()
                    if job.orphan:
                        self.on_orphan()
                    if isinstance(job.error, Fatal):
                        raise job.error
            self._sweep()

    def close(self) -> None:
        """Lets the thread finish what is queued, and ends it. Blocks until the last commit is synced."""
        if not self._closing:
            self._closing = True
            self._jobs.put(None)
        self._thread.join()
        self._wake_read.close()
        self._wake_write.close()

    def _sweep(self) -> None:
        """Frees those who have waited too long: their functions may still be committed, as their error says."""
        limit_s = self._clock.monotonic_s() - ANSWER_S_MAX
        while self._open:
            key, job = next(iter(self._open.items()))
            if job.since_s > limit_s:
                return
            del self._open[key]
            job.error = Retryable("store_busy", seconds_s=ANSWER_S_MAX)
            job.done.set()

    def _drain_wake(self) -> None:
        try:
            while len(self._wake_read.recv(4096)) == 4096:
                pass
        except BlockingIOError:
            return

    def _signal(self) -> None:
        try:
            self._wake_write.send(b"\0")
        except BlockingIOError:
            return  # The pipe is full of wake-ups already, so the loop will look.

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._left = self._group_max - 1
            self._until_s = self._clock.monotonic_s() + self._group_s
            jobs = [job]
            run_batch(self._unit, jobs, self._more)
            self._answered.append(jobs)
            self._signal()
            if self._last:
                break
        self._ended = True
        self._signal()

    def _more(self) -> Job | None:
        """Gives a job that has come in the meantime, within the limits of the batch."""
        if self._last or self._left <= 0 or self._clock.monotonic_s() > self._until_s:
            return None
        try:
            job = self._jobs.get_nowait()
        except queue.Empty:
            return None
        self._left -= 1
        self._last = job is None
        return job
