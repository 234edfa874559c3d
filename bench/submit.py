"""Durable submits through the socket from 64 clients, against huey's SqliteHuey in the same run, round by round."""

import subprocess
import sys
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from statistics import median

from bench.load import Load
from bench.report import Report
from bench.served import NAME
from bench.world import Daemon, cpu_s, request, scratch

CLIENTS = 64
ROUNDS = 5
SUBMITS = 24_000
HUEY_SUBMITS = 6_400
WARM_UP = 4_000


def submits(numbers: Iterator[int]) -> Iterator[bytes]:
    """Gives requests as omnid's own client makes them, each with an idempotency key."""
    template = request("task.submit", {"argv": ["0"], "executor": NAME, "key": "KEY"})
    before, after = template.split(b"KEY")
    for number in numbers:
        yield b"%b%032x%b" % (before, number, after)


def huey_s(path: Path) -> float:
    """Gives the seconds that huey's round took."""
    argv = [sys.executable, "-m", "bench.huey_load", str(path), str(HUEY_SUBMITS)]
    here = Path(__file__).parent.parent
    return float(subprocess.run(argv, cwd=here, check=True, capture_output=True, timeout=300).stdout)


def run(report: Report) -> None:
    """Measures; what is submitted stays behind a closed gate, so that nothing but submits is done."""
    with scratch() as directory, Daemon(directory) as daemon:
        daemon.client.call("gate.pause", {"executor": "*"})
        load = Load(daemon.socket_path, CLIENTS)
        numbers = submits(count())
        load.run(islice(numbers, WARM_UP))
        ours: list[float] = []
        busy_us: list[float] = []
        theirs: list[float] = []
        for _ in range(ROUNDS):
            before_s = cpu_s(daemon.pid)
            ours.append(SUBMITS / load.run(islice(numbers, SUBMITS)))
            busy_us.append((cpu_s(daemon.pid) - before_s) / SUBMITS * 1e6)
            theirs.append(HUEY_SUBMITS / huey_s(directory / "huey.db"))
        load.close()
        stored = sum(daemon.client.call("status", {})["tasks"].values())
        if stored != WARM_UP + ROUNDS * SUBMITS:
            raise RuntimeError(f"the daemon holds {stored} tasks")
    report.add("durable submits, 64 clients", median(ours), "/s", ">=", 10_000)
    report.add("the daemon's processor time for each", median(busy_us), "us")
    report.add("durable enqueues of huey, 64 threads", median(theirs), "/s")
    report.add("submits against huey", median(a / b for a, b in zip(ours, theirs, strict=True)), "x", ">=", 2.5)
