"""The mcp executor for the contract suite: each kind of work is a tool of the fake server."""

import json
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from omnid.clock import SystemClock
from omnid.executor.interface import Executor
from omnid.executor.mcp import McpExecutor
from omnid.executor.supervised import Supervised
from omnid.log import Log
from omnid.model import Work
from omnid.secrets import Secrets
from omnid.settings import Limits
from omnid.settings import McpExecutor as Section
from tests.fakes import mcp_server
from tests.fakes.mcp_http_server import McpHttpServer

HUGE_BYTES, BINARY_BYTES = 300_000, 1024


class McpHarness:
    """Tools of the fake server; the one that hangs is declared to only read, so that its timeout is no riddle."""

    def __init__(self, executor: McpExecutor) -> None:
        self.executor: Executor = executor

    def work(self, what: str, fifo: str) -> Work:
        tools: dict[str, tuple[str, dict[str, Any]]] = {
            "success": ("echo", {"text": "hello"}),
            "failure": ("fail", {}),
            "huge": ("huge", {"bytes": HUGE_BYTES}),
            "binary": ("binary", {"bytes": BINARY_BYTES}),
            "hang": ("hang_safe", {"fifo": fifo}),
            "crash": ("die", {}),
            "slow_start": ("slow", {"s": 0.5}),
            "no_start": ("nowhere", {}),
        }
        tool, arguments = tools[what]
        return Work(server=self.executor.name, tool=tool, arguments=arguments)


def argv(**options: Any) -> tuple[str, ...]:
    """Gives the command line of a fake server with these options."""
    return (sys.executable, "-I", "-S", mcp_server.__file__, json.dumps(options))


@asynccontextmanager
async def executors(
    tmp_path: Path, limits: Limits, log: Log | None = None, **section: Any
) -> AsyncGenerator[McpExecutor]:
    """Makes an mcp executor whose spool lies under the path, in a task group of its own."""
    clock = SystemClock()
    supervised = Supervised(tmp_path / "spool", clock, limits, 0.3)
    made = Section(**{"name": "fake", "argv": argv(), "restart_base_s": 0.01, **section})
    async with anyio.create_task_group() as tasks:
        executor = McpExecutor(
            made,
            supervised,
            Secrets(os.environ),
            os.environ,
            tasks=tasks,
            clock=clock,
            log=(log or Log(clock, str)).logger(),
            limits=limits,
        )
        try:
            yield executor
        finally:
            with anyio.CancelScope(shield=True), anyio.fail_after(20):
                await executor.aclose()


@asynccontextmanager
async def harness(tmp_path: Path, limits: Limits) -> AsyncGenerator[McpHarness]:
    """Makes the harness for the contract suite."""
    async with executors(tmp_path, limits) as executor:
        yield McpHarness(executor)


@asynccontextmanager
async def http_harness(tmp_path: Path, limits: Limits, *, events: bool) -> AsyncGenerator[McpHarness]:
    """Makes the harness for the contract suite over HTTP."""
    with McpHttpServer(events=events) as server:
        async with executors(tmp_path, limits, argv=(), url=server.url) as executor:
            yield McpHarness(executor)
