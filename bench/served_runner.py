"""A runner in a child process whose executor `noop` does nothing but say when; until its standard input ends.

`served_runner STAMPS NAME`: the config names the link. See `served` for the daemon's side.
"""

import mmap
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import anyio
from anyio.abc import TaskGroup

from bench.served import NAME, NoopExecutor
from omnid import config, runner
from omnid.clock import SystemClock
from omnid.executor.interface import Executor
from omnid.log import Log
from omnid.parts import Parts
from omnid.secrets import Secrets
from omnid.settings import Config
from omnid.store.statedir import StateDir


class _Parts(Parts):
    """Makes the executor `noop`, whatever the config says it is."""

    stamps: mmap.mmap

    def executors(self, wanted: Config, work: TaskGroup, kept: Mapping[str, Executor]) -> dict[str, Executor]:
        return {**super().executors(wanted, work, kept), NAME: NoopExecutor(self.stamps)}


def main(stamps_path: str, name: str) -> None:
    clock = SystemClock()
    secrets = Secrets(os.environ)
    wanted, section = runner.chosen(config.load(os.environ).config, runner.Options(name=name))
    state = Path(wanted.state.dir)
    with (
        StateDir(state),
        Log(clock, secrets.redact, path=str(state / "runner.log")) as log,
        open(stamps_path, "r+b") as file,
        mmap.mmap(file.fileno(), 0) as stamps,
    ):
        _Parts.stamps = stamps
        runner.Parts = _Parts

        async def serve() -> None:
            process = runner.RunnerProcess(wanted, section, os.environ, clock, log.logger(), secrets)
            async with anyio.create_task_group() as group:
                await group.start(process.serve)
                await anyio.wait_readable(sys.stdin)
                process.stop()

        anyio.run(serve)


if __name__ == "__main__":
    main(*sys.argv[1:])
