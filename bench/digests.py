"""How long the digest takes over a night in which very many tasks ended."""

import time
from pathlib import Path
from statistics import median

import apsw

from bench.report import Report
from bench.served import NAME
from bench.world import Daemon, answer_of, request, scratch
from omnid.clock import SystemClock
from omnid.flow import digest
from omnid.store.database import DATABASE_NAME, SqliteStore, StoreSettings

TASKS = 100_000
BATCH = 1_000
TURNS = 50
HOUR_MS = 3_600_000

ENDED = "UPDATE task SET ready = NULL, finished_at_ms = ?, state = iif(ord % 10 = 0, 'failed', 'completed')"
"""Ends all tasks. Running them would give the same rows, a minute later."""


async def digests(report: Report) -> None:
    """Adds the digest's figure."""
    with scratch() as directory:
        now_ms = _fill(directory)
        store = SqliteStore(directory / "state" / DATABASE_NAME, SystemClock(), StoreSettings(inline=True))
        taken_ms: list[float] = []
        for _ in range(TURNS):
            since_s = time.perf_counter()
            found = await store.read(lambda reader: digest.gather(reader, now_ms - HOUR_MS, now_ms, (), 0, None))
            taken_ms.append((time.perf_counter() - since_s) * 1e3)
            if sum(found.ended.values()) != TASKS:
                raise RuntimeError(f"it counted {found.ended}")
        store.close()
    report.add(f"digest over {TASKS:,} tasks, p50", median(taken_ms), "ms", "<=", 50)


def _fill(directory: Path) -> int:
    """Submits tasks behind a closed gate, and ends them; gives the time of their end."""
    message = request("task.submit_batch", {"tasks": [{"argv": ["0"], "executor": NAME}] * BATCH})
    with Daemon(directory) as daemon:
        daemon.client.call("gate.pause", {"executor": "*"})
        for _ in range(TASKS // BATCH):
            answer_of(daemon.client.exchange(message))
    now_ms = SystemClock().wall_ms()
    connection = apsw.Connection(str(directory / "state" / DATABASE_NAME))
    connection.execute(ENDED, (now_ms,))
    connection.close()
    return now_ms
