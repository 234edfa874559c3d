"""A daemon in a child process with an executor inside it that does nothing but say when.

Run as a program it serves until its standard input ends, so that it never outlives the bench.
"""

import mmap
import os
import struct
import sys
import time
from functools import partial
from pathlib import Path

import anyio

from omnid import config, daemon
from omnid.clock import SystemClock
from omnid.executor.interface import Found, Ports
from omnid.log import Log
from omnid.model import Command, Result, Work
from omnid.secrets import Secrets
from omnid.store.statedir import StateDir

NAME = "noop"
SLOT_BYTES = 16
"""Of each task, in the file of stamps: when it started and when its result was durable, in ns of CLOCK_MONOTONIC."""


class NoopExecutor:
    """Succeeds at once. `argv[0]` is the number of the task's slot in the stamps."""

    name = NAME
    kind = "in_process"
    concurrency: int | None = None
    idempotent = True
    takes_prompts = False

    def __init__(self, stamps: mmap.mmap) -> None:
        self._stamps = stamps
        self._slots: dict[str, int] = {}

    def accepts(self, work: Work) -> None:
        pass

    def exact(self, work: Work) -> Work:
        return work

    async def probe(self) -> None:
        pass

    async def run(self, command: Command, ports: Ports) -> Result:  # noqa: ARG002 - see `Executor`.
        at = int((command.work.argv or ("0",))[0]) * SLOT_BYTES
        self._stamp(at)
        self._slots[command.attempt_id] = at
        return command.ended("success", None)

    async def recover(self, command: Command, ports: Ports) -> Found:  # noqa: ARG002 - see `Executor`.
        return Found.NEVER_RAN

    async def adopt(self, command: Command, ports: Ports) -> Result:
        raise NotImplementedError

    async def cancel(self, attempt_id: str) -> None:
        pass

    async def settled(self, attempt_id: str) -> None:
        self._stamp(self._slots.pop(attempt_id) + 8)

    async def aclose(self) -> None:
        pass

    def _stamp(self, at: int) -> None:
        struct.pack_into("q", self._stamps, at, time.monotonic_ns())


async def _serve(loaded: config.Loaded, clock: SystemClock, log: Log, secrets: Secrets, stamps: mmap.mmap) -> None:
    serve = partial(
        daemon.serve,
        loaded,
        environ=os.environ,
        clock=clock,
        log=log.logger(),
        secrets=secrets,
        executors={NAME: NoopExecutor(stamps)},
    )
    async with anyio.create_task_group() as group:
        served = await group.start(serve)
        await anyio.wait_readable(sys.stdin)
        served.stop()


def main(stamps_path: str) -> None:
    loaded = config.load(os.environ)
    clock = SystemClock()
    secrets = Secrets(os.environ)
    state = Path(loaded.config.state.dir)
    with (
        StateDir(state),
        Log(clock, secrets.redact, path=str(state / "omnid.log")) as log,
        open(stamps_path, "r+b") as file,
        mmap.mmap(file.fileno(), 0) as stamps,
    ):
        anyio.run(_serve, loaded, clock, log, secrets, stamps)


if __name__ == "__main__":
    main(sys.argv[1])
