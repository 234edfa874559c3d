"""A state directory with a config file, and a daemon on it in this process."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import anyio

from omnid import config
from omnid.clock import SystemClock
from omnid.daemon import Daemon, serve
from omnid.log import Log
from omnid.secrets import Secrets
from tests.fakes.executor import InProcessExecutor
from tests.fakes.world import nothing

WAIT_S = 20


class Home:
    """A state directory with its config file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "state").mkdir(mode=0o700)
        self.file = path / "omnid.toml"
        self.file.write_text("")
        self.environ = {
            "HOME": str(path),
            "OMNID_STATE": str(path / "state"),
            "OMNID_CONFIG": str(self.file),
            "PATH": os.environ["PATH"],
        }
        self.logged = StringIO()
        self.executors: dict[str, Any] = {"mine": InProcessExecutor("mine", nothing)}

    @asynccontextmanager
    async def daemon(self, limit_s: float = WAIT_S) -> AsyncIterator[Daemon]:
        clock = SystemClock()
        log = Log(clock, lambda text: text, stream=self.logged).logger()
        loaded = config.load(self.environ)
        with anyio.fail_after(limit_s):
            async with anyio.create_task_group() as group:

                async def run(*, task_status: Any) -> None:
                    await serve(
                        loaded,
                        environ=self.environ,
                        clock=clock,
                        log=log,
                        secrets=Secrets(self.environ),
                        executors=self.executors,
                        task_status=task_status,
                    )

                daemon = await group.start(run)
                yield daemon
                daemon.stop()
