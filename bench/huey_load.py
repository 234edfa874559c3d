"""Durable enqueues with huey's SqliteHuey from 64 threads: as a program, `huey_load DATABASE COUNT` prints the seconds.

`fsync=True` is huey's way to `PRAGMA synchronous=FULL`; its journal mode is WAL, as omnid's.
"""

import sys
import threading
import time

from huey import SqliteHuey

THREADS = 64


def enqueue(path: str, count: int) -> float:
    # With 64 writers its own busy timeout of 5 s would now and then end in "database is locked".
    huey = SqliteHuey(filename=path, fsync=True, timeout=60)

    @huey.task()
    def work(argv: list[str]) -> None:
        pass

    begin = threading.Barrier(THREADS + 1)

    def client() -> None:
        begin.wait()
        for _ in range(count // THREADS):
            work(["x"])

    threads = [threading.Thread(target=client) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    begin.wait()
    since_s = time.perf_counter()
    for thread in threads:
        thread.join()
    elapsed_s = time.perf_counter() - since_s
    stored = huey.storage.queue_size()
    if stored % (count // THREADS * THREADS):
        raise RuntimeError(f"huey stored {stored} tasks")
    return elapsed_s


if __name__ == "__main__":
    print(enqueue(sys.argv[1], int(sys.argv[2])))
