"""Commands through a broker to runners that do nothing: beside Celery on the same broker, and while it is away."""

import contextlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from bench.fleet import PING_EVERY_S, TIMEOUT_S, Fleet, batch, broker, message
from bench.latency import BareCommit
from bench.load import Load
from bench.report import Report
from bench.world import Connection, cpu_s, memory_mb, scratch
from omnid.ctl.demo_broker import Broker

HERE = Path(__file__).parent
CELERY = HERE.parent / ".venv-celery" / "bin"
CLIENTS, RUNNERS = 64, 4
ROUNDS, COMMANDS = 3, 3_200
BLOCKS, TURNS = 10, 25
AWAY_BLOCKS, AWAY_TURNS = 4, 200
PARKED, BATCH = 100_000, 1_000
DRAIN_SLOTS = 256
"""Of the one runner to which the parked are drained: as many as the four of the rates have together."""
SUBMIT_EVERY_S = 0.02
OUTAGES = 3
LOOK_S = 0.002
DRAIN_LOOK_S = 0.5
"""Each look costs the daemon a status, and this takes a minute."""
STEP_S = 60.0
CELERY_S = 120.0
SLOTS = 2 * PARKED


def run(report: Report) -> None:
    with scratch() as directory:
        with broker("redis", directory / "redis") as redis:
            with Fleet(directory / "idle", redis, 1, SLOTS) as fleet:
                _idle(report, fleet, directory)
            _rates(report, directory, redis, durable=True)
            with Fleet(directory / "away", redis, RUNNERS, SLOTS) as fleet:
                slots = count()
                _away(report, fleet, slots)
                _outages(report, fleet)
            with Fleet(directory / "drain", redis, 1, SLOTS, runner_slots=DRAIN_SLOTS) as fleet:
                _drain(report, fleet, count())
            with Fleet(directory / "sent", redis, 0, SLOTS, window_max=SLOTS) as fleet:
                _sent(report, fleet, count())
        with broker("rabbitmq", directory / "rabbitmq") as rabbitmq:
            _rates(report, directory, rabbitmq, durable=False)


def _idle(report: Report, fleet: Fleet, directory: Path) -> None:
    """From a submit to the start at the runner, block by block beside the least that this could take."""
    bare, commit = _Bare(fleet.broker), BareCommit(directory / "bare.db", grown=True)
    rounds: list[float] = []
    commits: list[float] = []
    ours: list[float] = []
    slots = count()
    for _ in range(BLOCKS):
        rounds += [bare.take_ms() for _ in range(TURNS)]
        commits += [commit.take_ms() for _ in range(TURNS)]
        for _ in range(TURNS):
            slot = next(slots)
            since_ns = time.monotonic_ns()
            fleet.client.exchange(message(slot))
            _until(lambda slot=slot: fleet.started_ns(slot))  # A look at the stamps costs the daemon nothing.
            ours.append((fleet.started_ns(slot) - since_ns) / 1e6)
            fleet.until_done(slot + 1)
    bare.close()
    least_ms = median(rounds) + median(commits)
    report.add("submit to start at a runner through Redis, idle, p50", median(ours), "ms")
    report.add("a bare XADD and XREADGROUP, synced, p50", median(rounds), "ms")
    report.add("a bare commit, p50", median(commits), "ms")
    report.add("submit to start, against both together", median(ours) / least_ms, "x", "<=", 2)


class _Bare:
    """One entry at a time from a sender to a reader that waits for it."""

    def __init__(self, redis: Broker) -> None:
        library: Any = import_module("redis")
        self._sender: Any = library.Redis(port=redis.port, password=redis.password)
        self._reader: Any = library.Redis(port=redis.port, password=redis.password)
        self._sender.xgroup_create("bare", "bare", mkstream=True)
        self._came = threading.Event()
        self._at_ns = 0
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while True:
            ((_, ((id, fields),)),) = self._reader.xreadgroup("bare", "bare", {"bare": ">"}, count=1, block=0)
            self._at_ns = time.monotonic_ns()
            self._reader.xack("bare", "bare", id)
            self._came.set()
            if b"end" in fields:
                return

    def take_ms(self) -> float:
        self._came.clear()
        since_ns = time.monotonic_ns()
        self._sender.xadd("bare", {"m": "x" * 500})
        self._came.wait()
        return (self._at_ns - since_ns) / 1e6

    def close(self) -> None:
        self._sender.xadd("bare", {"end": 1})
        self._thread.join()


def _rates(report: Report, directory: Path, made: Broker, *, durable: bool) -> None:
    """Rounds of ours and of Celery's in turns, on the same broker."""
    name = made.label
    ours: list[float] = []
    plain: list[float] = []
    hard: list[float] = []
    with (
        Fleet(directory / f"rate-{made.scheme}", made, RUNNERS, SLOTS) as fleet,
        contextlib.closing(Load(fleet.socket_path, CLIENTS)) as load,
    ):
        pids = [fleet.process.pid, *fleet.pids, made.pid]
        busy_us: list[list[float]] = [[] for _ in pids]
        for round_ in range(ROUNDS):
            slots = range(round_ * COMMANDS, (round_ + 1) * COMMANDS)
            before_s = [cpu_s(pid) for pid in pids]
            since_s = time.monotonic()
            load.run(message(slot) for slot in slots)
            ours.append(COMMANDS / (fleet.until_done(slots.stop) - since_s))
            for busy, pid, before in zip(busy_us, pids, before_s, strict=True):
                busy.append((cpu_s(pid) - before) / COMMANDS * 1e6)
            plain.append(COMMANDS / _celery_s(directory / "celery", made, durable=False))
            if durable:
                hard.append(COMMANDS / _celery_s(directory / "celery", made, durable=True))
    goal = 1_500 if durable else None
    report.add(f"commands through {name}, 64 submitters, 4 runners", median(ours), "/s", ">=" if goal else None, goal)
    for what, busy in (("the daemon's", busy_us[0]), ("a runner's", busy_us[1]), (f"{name}'s", busy_us[-1])):
        report.add(f"{what} processor time for each through {name}", median(busy), "us")
    report.add(f"tasks of Celery through {name}, acks late", median(plain), "/s")
    report.add(f"commands through {name} against Celery", _ratio(ours, plain), "x", ">=", 1)
    if hard:
        report.add(f"tasks of Celery through {name}, made as durable", median(hard), "/s")
        report.add(f"commands through {name} against Celery made as durable", _ratio(ours, hard), "x", ">=", 2)


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return median(a / b for a, b in zip(ours, theirs, strict=True))


def _celery_s(directory: Path, made: Broker, *, durable: bool) -> float:
    """Gives the seconds that Celery's round took, with four workers of its own."""
    if not CELERY.exists():
        raise RuntimeError("Celery is not there: `make bench` installs it")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    (directory / "stamps").write_bytes(bytes(8 * COMMANDS))
    path = "/0" if made.scheme == "redis" else "//"
    env = {
        **{name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ},
        "BENCH_BROKER": f"{made.scheme}://{made.user}:{made.password}@127.0.0.1:{made.port}{path}",
        "BENCH_STAMPS": str(directory / "stamps"),
        "BENCH_DURABLE": str(directory) if durable else "",
    }
    argv = [str(CELERY / "celery"), "-A", "celery_load", "worker", "-c", str(RUNNERS), "-l", "warning"]
    argv += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    with (
        open(directory / "said", "wb") as said,
        subprocess.Popen(argv, env=env, cwd=HERE, stdin=subprocess.DEVNULL, stdout=said, stderr=said) as worker,
    ):
        try:
            argv = [str(CELERY / "python"), "celery_load.py", str(COMMANDS)]
            done = subprocess.run(
                argv, env=env, cwd=HERE, check=True, stdout=subprocess.PIPE, text=True, timeout=CELERY_S
            )
            return float(done.stdout)
        finally:
            worker.terminate()
            try:
                worker.wait(STEP_S)
            except subprocess.TimeoutExpired:
                worker.kill()


def _away(report: Report, fleet: Fleet, slots: Iterator[int]) -> None:
    """One client that submits, block by block with the broker and without it; runs of the first are waited out."""
    up: list[float] = []
    away: list[float] = []
    done = 0
    for _ in range(AWAY_BLOCKS):
        up += _submits(fleet, slots)
        done += AWAY_TURNS
        fleet.until_done(done)
        seen = fleet.logged("link_down")
        fleet.broker.kill()
        _until(lambda seen=seen: fleet.logged("link_down") > seen)
        away += _submits(fleet, slots)
        done += AWAY_TURNS
        fleet.broker.start()
        fleet.until_done(done)
    report.add("submit while the broker is there, p50", median(up), "ms")
    report.add("submit while the broker is away, p50", median(away), "ms")
    report.add("submit with the broker away against there", median(away) / median(up), "x", "<=", 1.1)


def _submits(fleet: Fleet, slots: Iterator[int]) -> list[float]:
    took: list[float] = []
    for _ in range(AWAY_TURNS):
        line = message(next(slots))
        since_ns = time.monotonic_ns()
        fleet.client.exchange(line)
        took.append((time.monotonic_ns() - since_ns) / 1e6)
    return took


def _outages(report: Report, fleet: Fleet) -> None:
    """How long it takes until the daemon says that the link is down."""
    killed: list[float] = []
    frozen: list[float] = []
    for _ in range(OUTAGES):
        for took, go, come in (
            (killed, fleet.broker.kill, fleet.broker.start),
            (frozen, fleet.broker.freeze, fleet.broker.thaw),
        ):
            seen, up = fleet.logged("link_down"), fleet.logged("link_up")
            since_s = time.monotonic()
            go()
            _until(lambda seen=seen: fleet.logged("link_down") > seen)
            took.append(time.monotonic() - since_s)
            come()
            _until(lambda up=up: fleet.logged("link_up") > up)
    report.add("a killed broker is noticed", max(killed), "s", "<=", 1)
    report.add("a frozen one (answers within 1 s, asked every 0.5 s)", max(frozen), "s", "<=", TIMEOUT_S + PING_EVERY_S)


class _Off(NamedTuple):
    """How a backlog was worked off on the broker's return, and how another client's submits did meanwhile."""

    per_s: float
    busy_us: list[float]
    """The processor time for each task: of the daemon, and of its runners."""
    more_mb: float
    took_ms: list[float]

    @property
    def p99_ms(self) -> float:
        return sorted(self.took_ms)[int(0.99 * len(self.took_ms))]


def _sent(report: Report, fleet: Fleet, slots: Iterator[int]) -> None:
    """The drain alone: claimed, sent and confirmed, to a runner that has room for all that is parked and takes none."""

    def wait() -> float:
        fleet.say_room()
        return fleet.until_sent(PARKED, DRAIN_LOOK_S)

    off = _worked_off(fleet, slots, wait)
    report.add(f"{PARKED:,} tasks claimed, sent and confirmed, on the broker's return", off.per_s, "/s", ">=", 4_000)
    report.add("the daemon's processor time for each of these", off.busy_us[0], "us")
    report.add("the daemon's memory with all of them on their way, more", off.more_mb, "MB")
    report.add("submits of another client meanwhile, p99", off.p99_ms, "ms", "<", 20)


def _drain(report: Report, fleet: Fleet, slots: Iterator[int]) -> None:
    """All the way: parked is what is no attempt yet, because only a window goes out at once.

    So a later task of higher priority overtakes all else. The next one goes when a result comes.
    """
    done = fleet.done()
    off = _worked_off(fleet, slots, lambda: fleet.until_done(done + PARKED, DRAIN_LOOK_S))
    what = f"{PARKED:,} tasks behind the link's gate claimed, sent, run and settled, on the broker's return"
    report.add(what, off.per_s, "/s", ">=", 4_000)
    report.add("the daemon's processor time for each meanwhile", off.busy_us[0], "us")
    report.add("the runner's", off.busy_us[1], "us")
    report.add("the daemon's memory meanwhile, more", off.more_mb, "MB", "<=", 20)
    report.add("submits of another client meanwhile, p99", off.p99_ms, "ms", "<", 20)


def _worked_off(fleet: Fleet, slots: Iterator[int], wait: Callable[[], float]) -> _Off:
    """Parks tasks in the journal behind the gate of a link that is down, and waits until what `wait` waits for."""
    fleet.broker.kill()
    first = next(slots)
    for begin in range(first, first + PARKED, BATCH):
        fleet.client.exchange(batch(range(begin, begin + BATCH)))
    before_mb = memory_mb(fleet.process.pid)["rss"]
    pids = [fleet.process.pid, *fleet.pids]
    before_s = [cpu_s(pid) for pid in pids]
    fleet.broker.start()
    since_s = time.monotonic()
    stop = threading.Event()
    took: list[float] = []
    peak_mb: list[float] = [before_mb]

    def client() -> None:
        connection = Connection(fleet.socket_path)
        for slot in range(first + PARKED, SLOTS):
            if stop.wait(SUBMIT_EVERY_S):
                break
            since_ns = time.monotonic_ns()
            connection.exchange(message(slot))
            took.append((time.monotonic_ns() - since_ns) / 1e6)
            peak_mb.append(memory_mb(fleet.process.pid)["rss"])
        connection.close()

    thread = threading.Thread(target=client)
    thread.start()
    try:
        elapsed_s = wait() - since_s
    finally:
        stop.set()
        thread.join()
    busy_us = [(cpu_s(pid) - before) / PARKED * 1e6 for pid, before in zip(pids, before_s, strict=True)]
    return _Off(PARKED / elapsed_s, busy_us, max(peak_mb) - before_mb, took)


def _until(holds: Callable[[], object]) -> None:
    until_s = time.monotonic() + STEP_S
    while not holds():
        if time.monotonic() > until_s:
            raise TimeoutError
        time.sleep(LOOK_S)
