"""What one client waits for, against a bare durable SQLite commit in the same run, turn by turn."""

import time
from pathlib import Path
from statistics import median

import apsw

from bench.report import Report
from bench.served import NAME
from bench.world import Connection, Daemon, request, scratch

TURNS = 1_000
ROW_BYTES = 1_000
"""About what the rows of one submit hold: the task with its keys, and its entry in the log."""
SETTLE_S = 5.0


class BareCommit:
    """One row, one transaction, synced: the least that a durable submit can cost."""

    def __init__(self, path: Path) -> None:
        self._connection = apsw.Connection(str(path))
        self._connection.pragma("journal_mode", "wal")
        self._connection.pragma("synchronous", "full")
        self._connection.execute("CREATE TABLE entry (id INTEGER PRIMARY KEY, body TEXT NOT NULL)")
        self._body = "x" * ROW_BYTES

    def take_ms(self) -> float:
        """Commits once and gives how long it took."""
        since_ns = time.monotonic_ns()
        self._connection.execute("INSERT INTO entry (body) VALUES (?)", (self._body,))
        return (time.monotonic_ns() - since_ns) / 1e6


def submit_of(slot: int) -> bytes:
    """Gives a request as omnid's own client makes it, with an idempotency key."""
    return request("task.submit", {"argv": [str(slot)], "executor": NAME, "key": f"{slot:032x}"})


def run(report: Report) -> None:
    with scratch() as directory, Daemon(directory) as daemon:
        bare = BareCommit(directory / "bare.db")
        daemon.client.call("gate.pause", {"executor": "*"})
        _submits(report, daemon, bare)
    with scratch() as directory, Daemon(directory) as daemon:
        bare = BareCommit(directory / "bare.db")
        _results(report, daemon, bare)


def _submits(report: Report, daemon: Daemon, bare: BareCommit) -> None:
    commits: list[float] = []
    submits: list[float] = []
    for slot in range(TURNS):
        commits.append(bare.take_ms())
        message = submit_of(slot)
        since_ns = time.monotonic_ns()
        daemon.client.exchange(message)
        submits.append((time.monotonic_ns() - since_ns) / 1e6)
    commit_ms, submit_ms = median(commits), median(submits)
    report.add("bare durable commit, p50", commit_ms, "ms")
    report.add("submit by one client, p50", submit_ms, "ms")
    report.add("submit against the commit", submit_ms / commit_ms, "x", "<=", 2.5)


def _results(report: Report, daemon: Daemon, bare: BareCommit) -> None:
    """A task on an idle daemon: until it starts, until its result is durable, until a client that waits has it."""
    commits: list[float] = []
    starts: list[float] = []
    durables: list[float] = []
    answers: list[float] = []
    for slot in range(TURNS):
        commits.append(bare.take_ms())
        message = submit_of(slot)
        since_ns = time.monotonic_ns()
        task = daemon.client.exchange(message)
        settled_ns = _settled_ns(daemon, slot)
        starts.append((daemon.started_ns(slot) - since_ns) / 1e6)
        durables.append((settled_ns - since_ns) / 1e6)
        del task
    commit_ms = median(commits)
    report.add("bare durable commit beside results, p50", commit_ms, "ms")
    report.add("submit to start, p50", median(starts), "ms")
    report.add("submit to start against the commit", median(starts) / commit_ms, "x", "<=", 4)
    report.add("submit to result, p50", median(durables), "ms")
    report.add("submit to result against the commit", median(durables) / commit_ms, "x", "<=", 8)
    del answers


def _settled_ns(daemon: Daemon, slot: int) -> int:
    until_s = time.monotonic() + SETTLE_S
    while time.monotonic() < until_s:
        if settled_ns := daemon.settled_ns(slot):
            return settled_ns
        time.sleep(0.0005)
    raise TimeoutError("a task got no result")
