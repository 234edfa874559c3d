"""What one client waits for, against a bare durable SQLite commit in the same run, block by block.

Blocks, because ext4 makes a process wait that syncs right after another one did: turn by turn both would look slow.
"""

import json
import time
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from statistics import median

import apsw

from bench.report import Report
from bench.served import NAME
from bench.world import Daemon, answer_of, request, scratch

BLOCKS = 40
TURNS = 25
ROW_BYTES = 1_000
"""About what the rows of one submit hold: the task with its keys, and its entry in the log."""
CHECKPOINT_PAGES = 1_000
PAGE_BYTES = 4_096
"""SQLite's own defaults."""
SETTLE_S = 5.0

Take = Callable[[], float]
"""Does the thing once and gives how long it took, in ms."""


class BareCommit:
    """One row, one transaction, synced: the least that a durable submit can cost.

    A new database's WAL grows with every commit until the first checkpoint, which makes a sync dearer; so each row of
    the report has a new one. `grown`: it has its length already, as omnid's has from its start.
    """

    def __init__(self, path: Path, *, grown: bool = False) -> None:
        self._connection = apsw.Connection(str(path))
        self._connection.pragma("journal_mode", "wal")
        self._connection.pragma("synchronous", "full")
        self._connection.execute("CREATE TABLE entry (id INTEGER PRIMARY KEY, body TEXT NOT NULL)")
        self._body = "x" * ROW_BYTES
        if grown:
            rows = [(self._body,)] * (2 * CHECKPOINT_PAGES * PAGE_BYTES // ROW_BYTES)
            with self._connection:
                self._connection.executemany("INSERT INTO entry (body) VALUES (?)", rows)
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def take_ms(self) -> float:
        since_ns = time.monotonic_ns()
        self._connection.execute("INSERT INTO entry (body) VALUES (?)", (self._body,))
        return (time.monotonic_ns() - since_ns) / 1e6


def run(report: Report) -> None:
    with scratch() as directory, Daemon(directory) as daemon:
        daemon.client.call("gate.pause", {"executor": "*"})
        _add(report, directory, "submit by one client", _submits(daemon, count()), 2.5)
    with scratch() as directory, Daemon(directory) as daemon:
        slots = count()
        _add(report, directory, "submit to start", _starts(daemon, slots), 4)
        _add(report, directory, "submit to result, durable", _results(daemon, slots), 8)
        _add(report, directory, "submit to result, at a waiting client", _answers(daemon, slots))


def _add(report: Report, directory: Path, name: str, other: Iterator[float], goal: float | None = None) -> None:
    """Measures something beside bare commits into a new database and into one whose WAL has its length."""
    new = BareCommit(directory / f"{name}.db")
    grown = BareCommit(directory / f"{name}, grown.db", grown=True)
    new_ms, grown_ms, other_ms = _beside(new.take_ms, grown.take_ms, other)
    report.add(f"{name}, p50", other_ms, "ms")
    report.add(f"{name}: the bare commit beside it, p50", new_ms, "ms")
    report.add(f"{name}: against that", other_ms / new_ms, "x", "<=" if goal else None, goal)
    report.add(f"{name}: one into a WAL that doesn't grow, p50", grown_ms, "ms")
    report.add(f"{name}: against that one", other_ms / grown_ms, "x")


def _beside(new: Take, grown: Take, other: Iterator[float]) -> tuple[float, float, float]:
    """Gives the medians of both commits and of the other."""
    news: list[float] = []
    growns: list[float] = []
    others: list[float] = []
    for _ in range(BLOCKS):
        news += [new() for _ in range(TURNS)]
        growns += [grown() for _ in range(TURNS)]
        others += islice(other, TURNS)
    return median(news), median(growns), median(others)


def _message(slot: int) -> bytes:
    """Gives a request as omnid's own client makes it, with an idempotency key."""
    return request("task.submit", {"argv": [str(slot)], "executor": NAME, "key": f"{slot:032x}"})


def _submits(daemon: Daemon, slots: Iterator[int]) -> Iterator[float]:
    for slot in slots:
        message = _message(slot)
        since_ns = time.monotonic_ns()
        daemon.client.exchange(message)
        yield (time.monotonic_ns() - since_ns) / 1e6


def _starts(daemon: Daemon, slots: Iterator[int]) -> Iterator[float]:
    for slot, since_ns in _done(daemon, slots):
        yield (daemon.started_ns(slot) - since_ns) / 1e6


def _results(daemon: Daemon, slots: Iterator[int]) -> Iterator[float]:
    for slot, since_ns in _done(daemon, slots):
        yield (daemon.settled_ns(slot) - since_ns) / 1e6


def _done(daemon: Daemon, slots: Iterator[int]) -> Iterator[tuple[int, int]]:
    """Submits one task after the other to an idle daemon; gives its slot and when it was sent, once it is done."""
    for slot in slots:
        message = _message(slot)
        since_ns = time.monotonic_ns()
        daemon.client.exchange(message)
        until_s = time.monotonic() + SETTLE_S
        while not daemon.settled_ns(slot):
            if time.monotonic() > until_s:
                raise TimeoutError("a task got no result")
            time.sleep(0.0005)
        yield slot, since_ns


def _answers(daemon: Daemon, slots: Iterator[int]) -> Iterator[float]:
    for slot in slots:
        message = _message(slot)
        since_ns = time.monotonic_ns()
        task = json.loads(daemon.client.exchange(message))["result"]["id"]
        line = daemon.client.exchange(request("task.get", {"task": task, "wait_s": SETTLE_S}))
        yield (time.monotonic_ns() - since_ns) / 1e6
        if answer_of(line)["task"]["state"] != "completed":
            raise RuntimeError("a task was not completed")
