"""How much goes through: claim and complete with 64 at once, and tasks submitted by the thousand."""

import time
from itertools import count, islice
from statistics import median

from bench.report import Report
from bench.served import NAME
from bench.world import Daemon, answer_of, cpu_s, request, scratch

AT_ONCE = 64
ROUNDS = 3
TASKS = 12_000
BATCH = 1_000
BATCHES = 20
ROUND_S = 60.0


def run(report: Report) -> None:
    with scratch() as directory, Daemon(directory, daemon__slots_max=AT_ONCE) as daemon:
        rate, busy_us = _done(daemon)
        report.add("claim and complete, 64 at once", rate, "/s", ">=", 5_000)
        report.add("the daemon's processor time for each", busy_us, "us")
    with scratch() as directory, Daemon(directory) as daemon:
        daemon.client.call("gate.pause", {"executor": "*"})
        report.add("batch submit, 1,000 a call", _batches(daemon), "/s", ">=", 30_000)


def batch(slots: range) -> bytes:
    """Makes a batch with one task for each slot, each with an idempotency key."""
    return request("task.submit_batch", {"tasks": [_task(slot) for slot in slots]})


def _task(slot: int) -> dict[str, object]:
    return {"argv": [str(slot)], "executor": NAME, "key": f"{slot:032x}"}


def _done(daemon: Daemon) -> tuple[float, float]:
    """Fills the queue behind a closed gate, opens it, and reads off when the first started and the last was done."""
    rates: list[float] = []
    busy_us: list[float] = []
    for round_ in range(ROUNDS):
        slots = range(round_ * TASKS, (round_ + 1) * TASKS)
        daemon.client.call("gate.pause", {"executor": "*"})
        for first in slots[::BATCH]:
            answer_of(daemon.client.exchange(batch(range(first, first + BATCH))))
        before_s = cpu_s(daemon.pid)
        daemon.client.call("gate.resume", {"executor": "*"})
        until_s = time.monotonic() + ROUND_S
        while not all(daemon.stamps(slots.stop)[1][slots.start :]):
            if time.monotonic() > until_s:
                raise TimeoutError("not all tasks were done")
            time.sleep(0.1)
        busy_us.append((cpu_s(daemon.pid) - before_s) / TASKS * 1e6)
        started, settled = daemon.stamps(slots.stop)
        rates.append(TASKS / ((max(settled[slots.start :]) - min(started[slots.start :])) / 1e9))
    return median(rates), median(busy_us)


def _batches(daemon: Daemon) -> float:
    rates: list[float] = []
    for first in islice(count(0, BATCH), BATCHES):
        message = batch(range(first, first + BATCH))
        since_s = time.perf_counter()
        line = daemon.client.exchange(message)
        rates.append(BATCH / (time.perf_counter() - since_s))
        if len(answer_of(line)["tasks"]) != BATCH:
            raise RuntimeError("a batch was not taken whole")
    return median(rates)
