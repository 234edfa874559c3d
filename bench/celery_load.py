"""Celery as `make bench` compares with it, in an environment of its own (.venv-celery): it imports nothing of omnid.

As an app its workers load it: `celery -A celery_load worker`. As a program, `celery_load COUNT` submits from 64 threads
and prints the seconds from the first submit to the end of the last task. BENCH_* in the environment set both up:
BROKER, STAMPS (a file with room for a time of each task), and DURABLE, a directory where both ends keep a database.
"""

import mmap
import os
import sqlite3
import struct
import sys
import threading
import time
from importlib import import_module
from typing import Any

THREADS = 64
STALL_S = 90.0
BROKER, STAMPS = os.environ["BENCH_BROKER"], os.environ["BENCH_STAMPS"]
DURABLE = os.environ.get("BENCH_DURABLE", "")

app: Any = import_module("celery").Celery("bench", broker=BROKER, backend=BROKER if DURABLE else None)
app.conf.update(
    task_acks_late=True,
    task_ignore_result=not DURABLE,
    worker_prefetch_multiplier=16,
    broker_pool_limit=THREADS,
    broker_connection_retry_on_startup=True,
    worker_enable_remote_control=False,
    task_default_queue_type="quorum" if BROKER.startswith("amqp") else "classic",
    broker_transport_options={"confirm_publish": True} if BROKER.startswith("amqp") else {},
)
_local = threading.local()
_own: dict[int, tuple[mmap.mmap, sqlite3.Connection | None]] = {}


def database(name: str) -> sqlite3.Connection:
    """Opens what one end writes down, with the durability of omnid's journal."""
    opened = sqlite3.connect(f"{DURABLE}/{name}.db", timeout=60, isolation_level=None)
    opened.execute("PRAGMA journal_mode=WAL")
    opened.execute("PRAGMA synchronous=FULL")
    opened.execute("CREATE TABLE IF NOT EXISTS entry (id INTEGER PRIMARY KEY, body TEXT NOT NULL)")
    return opened


def keep(connection: sqlite3.Connection, slot: int) -> None:
    connection.execute("INSERT INTO entry (body) VALUES (?)", (str(slot),))


@app.task(name="noop")
def noop(argv: list[str]) -> None:
    """Does nothing but say that it was done; where it is durable, it is written down first."""
    pid, slot = os.getpid(), int(argv[0])
    if pid not in _own:
        with open(STAMPS, "r+b") as file:
            _own[pid] = mmap.mmap(file.fileno(), 0), database(f"worker-{pid}") if DURABLE else None
    stamps, ledger = _own[pid]
    if ledger is not None:
        keep(ledger, slot)
    struct.pack_into("q", stamps, slot * 8, time.monotonic_ns())


def submit(count: int) -> float:
    begin = threading.Barrier(THREADS + 1)

    def client(number: int) -> None:
        journal = database("journal") if DURABLE else None
        begin.wait()
        for slot in range(number, count, THREADS):
            if journal is not None:
                keep(journal, slot)
            app.send_task("noop", [[str(slot)]])

    with open(STAMPS, "r+b") as file:
        stamps = mmap.mmap(file.fileno(), 0)
    threads = [threading.Thread(target=client, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    begin.wait()
    since_ns = time.monotonic_ns()
    for thread in threads:
        thread.join()
    until_s = time.monotonic() + STALL_S
    while not all(ends := struct.unpack_from(f"{count}q", stamps)):
        if time.monotonic() > until_s:
            raise TimeoutError("not all tasks were done")
        time.sleep(0.02)
    return (max(ends) - since_ns) / 1e9


if __name__ == "__main__":
    print(submit(int(sys.argv[1])))
