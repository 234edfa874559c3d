"""A daemon with MCP over HTTP and the fixtures of the suite; it says its address, and ends with its input."""

import os
import sys
from pathlib import Path
from typing import Any

import anyio

from omnid import config
from omnid.clock import SystemClock
from omnid.daemon import Daemon
from omnid.log import Log
from omnid.secrets import Secrets
from tests.conformance import fixtures

CONFIG = """
[http]
listen = "127.0.0.1:0"
requests_per_s_max = 100000
[agents]
allow = ["fixture"]
[[executor]]
name = "fixture"
kind = "command"
"""


async def serve(home: Path) -> None:
    """Serves until standard input ends."""
    (home / "state").mkdir(mode=0o700)
    (home / "omnid.toml").write_text(CONFIG)
    environ = {"HOME": str(home), "OMNID_STATE": str(home / "state"), "OMNID_CONFIG": str(home / "omnid.toml")}
    environ["PATH"] = os.environ["PATH"]
    clock = SystemClock()
    log = Log(clock, lambda text: text, level="error", stream=sys.stderr).logger()
    executors: dict[str, Any] = {"fixture": fixtures.executor()}
    daemon = Daemon(config.load(environ), environ, clock, log, Secrets(environ), executors)
    daemon.extend_mcp = fixtures.extend
    async with anyio.create_task_group() as group:

        async def run(*, task_status: Any) -> None:
            await daemon.serve(task_status=task_status)

        await group.start(run)
        assert daemon.http is not None
        sys.stdout.write(f"http://127.0.0.1:{daemon.http.port}/mcp\n")
        sys.stdout.flush()
        await anyio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        daemon.stop()


if __name__ == "__main__":
    anyio.run(serve, Path(sys.argv[1]))
