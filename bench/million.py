"""A million waiting tasks against a thousand: claims, memory, and the start after SIGKILL."""

import mmap
import shutil
import time
from functools import partial
from io import StringIO
from pathlib import Path
from statistics import median

import anyio
import apsw

from bench.report import Report
from bench.served import NAME, NoopExecutor
from bench.world import Daemon, answer_of, memory_mb, request, scratch
from omnid.clock import SystemClock
from omnid.executor.spool import Spool
from omnid.flow import dispatcher, results
from omnid.flow.context import Context
from omnid.flow.turned import Turned
from omnid.log import Log
from omnid.model import Command, Result
from omnid.settings import Config
from omnid.store import journal
from omnid.store.database import DATABASE_NAME, SqliteStore, StoreSettings

FEW, MANY = 1_000, 1_000_000
BATCH = 1_000
LANE = "one"
CLAIMS = 300
WORKED = 500
"""How many tasks a daemon does before its memory is looked at."""
KILLS = 3
WORK_S = 60.0

ONE_LANE = """
UPDATE task SET lane = 'one', ready = NULL;
UPDATE task SET ready = 1 WHERE ord = (SELECT min(ord) FROM task);
"""
"""Puts all tasks into one lane. Submitting them there would give the same tables, a minute later."""


def run(report: Report) -> None:
    with scratch() as directory:
        few, many, few_lane, many_lane = (directory / name for name in ("few", "many", "few-lane", "many-lane"))
        _fill(few, FEW)
        _fill(many, MANY)
        for source, lane in ((few, few_lane), (many, many_lane)):
            _copy_into_lane(source, lane)
        for name, small, large in (("waiting", few, many), ("in one lane", few_lane, many_lane)):
            small_ms, large_ms = anyio.run(_claims, small, large)
            report.add(f"claim among 1,000 {name}, p50", small_ms, "ms")
            report.add(f"claim among 1,000,000 {name}, p50", large_ms, "ms")
            report.add(f"claim among a million {name} against a thousand", large_ms / small_ms, "x", "<=", 2)
        small_mb, _ = _work(few)
        large_mb, ready_s = _work(many)
        report.add("peak memory with a thousand waiting", small_mb, "MB")
        report.add("peak memory with a million waiting", large_mb, "MB")
        report.add("more memory with a million waiting", large_mb - small_mb, "MB", "<=", 30)
        report.add("a million waiting: ready again after SIGKILL", ready_s, "s", "<=", 3)


def _daemon(directory: Path) -> Daemon:
    return Daemon(directory, limits__waiting_tasks_max=2 * MANY)


def _fill(directory: Path, count: int) -> None:
    """Submits tasks behind a closed gate."""
    directory.mkdir()
    message = request("task.submit_batch", {"tasks": [{"argv": ["0"], "executor": NAME}] * BATCH})
    with _daemon(directory) as daemon:
        daemon.client.call("gate.pause", {"executor": "*"})
        for _ in range(count // BATCH):
            if len(answer_of(daemon.client.exchange(message))["tasks"]) != BATCH:
                raise RuntimeError("a batch was not taken whole")


def _copy_into_lane(source: Path, target: Path) -> None:
    (target / "state").mkdir(parents=True, mode=0o700)
    database = target / "state" / DATABASE_NAME
    shutil.copyfile(source / "state" / DATABASE_NAME, database)
    connection = apsw.Connection(str(database))
    connection.pragma("journal_mode", "off")
    connection.pragma("synchronous", "off")
    with connection:
        connection.execute(ONE_LANE)
    connection.close()


async def _claims(small: Path, large: Path) -> tuple[float, float]:
    """Claims and completes one task at a time in both databases, turn by turn; gives the claims' p50 in ms.

    Without the sync: it costs the same in both, and would hide what differs.
    """
    clock = SystemClock()
    stores = [
        SqliteStore(directory / "state" / DATABASE_NAME, clock, StoreSettings(inline=True))
        for directory in (small, large)
    ]
    for store in stores:
        store._connection.pragma("synchronous", "off")
        await store.write(lambda tx: journal.open_gate(tx, "paused:*"))
    contexts = [_context(store, clock, directory) for store, directory in zip(stores, (small, large), strict=True)]
    taken_ms: tuple[list[float], list[float]] = ([], [])
    for _ in range(CLAIMS):
        for context, durations in zip(contexts, taken_ms, strict=True):
            claim = partial(dispatcher.claim, context=context, free={NAME: 1}, slots_free=1)
            since_ns = time.monotonic_ns()
            claimed = await context.store.write(claim)
            durations.append((time.monotonic_ns() - since_ns) / 1e6)
            (command,) = claimed.commands
            finish = partial(
                results.finish,
                result=_success(command),
                config=context.config,
                chance=clock.uniform,
                budget=context.budget,
                turned=Turned.nothing(),
            )
            if not await context.store.write(finish):
                raise RuntimeError("a result was refused")
    for store in stores:
        store.close()
    return median(taken_ms[0]), median(taken_ms[1])


def _context(store: SqliteStore, clock: SystemClock, directory: Path) -> Context:
    config = Config()

    async def nobody(attempt_id: str) -> None:
        raise RuntimeError(f"{attempt_id} is not in the journal")

    return Context(
        store=store,
        clock=clock,
        log=Log(clock, lambda text: text, stream=StringIO()).logger(),
        config=config,
        executors={NAME: NoopExecutor(mmap.mmap(-1, 16))},
        spool=Spool(directory / "state" / "spool", config.limits),
        set_aside=nobody,
    )


def _success(command: Command) -> Result:
    return Result(command.attempt_id, command.task_id, command.number, "success")


def _work(directory: Path) -> tuple[float, float]:
    """Lets a fresh daemon do tasks, and kills it while it does; gives its peak memory and how long a start took."""
    peaks: list[float] = []
    starts: list[float] = []
    since_s = time.monotonic()
    for _ in range(KILLS + 1):
        with _daemon(directory) as daemon:
            done = daemon.client.call("status", {})["tasks"].get("completed", 0)
            starts.append(time.monotonic() - since_s)
            daemon.client.call("gate.resume", {"executor": "*"})
            _wait_for(daemon, min(done + WORKED, FEW))
            peaks.append(memory_mb(daemon.pid)["peak"])
            daemon.kill()
        since_s = time.monotonic()
    return median(peaks), median(starts[1:])


def _wait_for(daemon: Daemon, completed: int) -> None:
    until_s = time.monotonic() + WORK_S
    while daemon.client.call("status", {})["tasks"].get("completed", 0) < completed:
        if time.monotonic() > until_s:
            raise TimeoutError("the tasks were not done")
        time.sleep(0.05)
