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

    A new database's WAL grows with every commit until the first checkpoint, which makes a sync dearer. `grown`: it has
    its length already, as omnid's has from its start.
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
        bare = BareCommit(directory / "bare.db")
        daemon.client.call("gate.pause", {"executor": "*"})
        commit_ms, submit_ms = _beside(bare.take_ms, _submits(daemon, count()))
        report.add("bare durable commit, p50", commit_ms, "ms")
        report.add("submit by one client, p50", submit_ms, "ms")
        report.add("submit against the commit", submit_ms / commit_ms, "x", "<=", 2.5)
        grown = BareCommit(directory / "grown.db", grown=True)
        commit_ms, submit_ms = _beside(grown.take_ms, _submits(daemon, islice(count(), BLOCKS * TURNS, None)))
        report.add("bare commit into a WAL that doesn't grow, p50", commit_ms, "ms")
        report.add("submit against that", submit_ms / commit_ms, "x")
    with scratch() as directory, Daemon(directory) as daemon:
        bare = BareCommit(directory / "bare.db")
        slots = count()
        for name, take, goal in (
            ("submit to start", _starts(daemon, slots), 4),
            ("submit to result, durable", _results(daemon, slots), 8),
            ("submit to result, at a client that waits", _answers(daemon, slots), None),
        ):
            commit_ms, taken_ms = _beside(bare.take_ms, take)
            report.add(f"{name}, p50", taken_ms, "ms")
            report.add(f"{name}, against the commit", taken_ms / commit_ms, "x", "<=" if goal else None, goal)


def _beside(commit: Take, other: Iterator[float]) -> tuple[float, float]:
    """Gives the medians of the commit and of the other."""
    commits: list[float] = []
    others: list[float] = []
    for _ in range(BLOCKS):
        commits += [commit() for _ in range(TURNS)]
        others += islice(other, TURNS)
    return median(commits), median(others)


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
