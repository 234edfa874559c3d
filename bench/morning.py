"""How long the digest takes over the tasks of a very long night."""

import time
from pathlib import Path
from statistics import median
from typing import Any

import anyio
import anyio.to_thread
import apsw

from bench.report import Report
from bench.served import NAME
from bench.world import Daemon, request, scratch
from omnid.store.database import DATABASE_NAME

TASKS, BATCH = 100_000, 1_000
TURNS = 50

NIGHT = """
UPDATE task SET ready = NULL, state = CASE WHEN ord % 20 = 0 THEN 'failed' ELSE 'completed' END,
    finished_at_ms = created_at_ms + 1 WHERE ord % 10 <> 9;
"""
"""Ends nine of ten tasks. Running them would give the same tables, minutes later."""


async def digests(report: Report) -> None:
    """Adds the figure of the digest, as a client sees it."""
    report.add("digest over 100,000 tasks, p50", await anyio.to_thread.run_sync(_digest_ms), "ms", "<=", 50)


def _digest_ms() -> float:
    with scratch() as directory:
        _fill(directory)
        connection = apsw.Connection(str(directory / "state" / DATABASE_NAME))
        connection.execute(NIGHT)
        connection.close()
        taken_ms: list[float] = []
        answer: dict[str, Any] = {}
        with _daemon(directory) as daemon:
            for _ in range(TURNS):
                since_s = time.perf_counter()
                answer = daemon.client.call("away", {"since_ms": 1})
                taken_ms.append(1e3 * (time.perf_counter() - since_s))
            if answer["ended"] != {"completed": 85_000, "failed": 5_000} or answer["parked"][0]["tasks"] != TASKS // 10:
                raise RuntimeError(f"it tells {answer['text']}")
    return median(taken_ms)


def _daemon(directory: Path) -> Daemon:
    return Daemon(directory, limits__waiting_tasks_max=2 * TASKS)


def _fill(directory: Path) -> None:
    message = request("task.submit_batch", {"tasks": [{"argv": ["0"], "executor": NAME}] * BATCH})
    with _daemon(directory) as daemon:
        daemon.client.call("gate.pause", {"executor": NAME})
        for _ in range(TASKS // BATCH):
            daemon.client.exchange(message)
