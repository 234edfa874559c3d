"""A kit for tests of what servers do over time: in each era, over each transport, on each backend."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from omnid.model import Command, InputResponse, Result
from tests.contract.executors import Ports
from tests.contract.mcp_harness import argv
from tests.fakes.mcp_http_server import McpHttpServer
from tests.fakes.signals import WAIT_S, Fifo
from tests.unit.test_mcp_executor import Bench, bench

DONE = {"status": "completed", "result": {"content": [{"type": "text", "text": "done"}]}}
_WAYS = [("asyncio", "old", "stdio"), ("trio", "new", "stdio"), ("trio", "old", "http"), ("asyncio", "new", "http")]
"""Backend, era and transport: each with each, but not all with all."""

each_way = pytest.mark.parametrize(("anyio_backend", "era", "transport"), _WAYS)
each_way_of_http = pytest.mark.parametrize(
    ("anyio_backend", "era", "transport"), [way for way in _WAYS if "http" in way]
)
each_new_way = pytest.mark.parametrize(("anyio_backend", "era", "transport"), [way for way in _WAYS if "new" in way])


class Noted(Ports):
    """Ports that tell when a task was noted."""

    def __init__(self, answer: InputResponse | None = None) -> None:
        super().__init__(answer)
        self.noted = anyio.Event()

    async def note(self, attempt_id: str, kind: str, body: Any) -> None:
        await super().note(attempt_id, kind, body)
        if kind == "remote_task":
            self.noted.set()


class Kit:
    """A server that has tasks, over one of the transports, and an executor for it; both can go and come back."""

    def __init__(self, path: Path, era: str, transport: str) -> None:
        self.path, self.era, self.transport = path, era, transport
        self.tasks = path / "tasks"
        self.tasks.mkdir()
        self.fifo = Fifo(path / "fifo")
        self.ports = Noted()
        self.server: McpHttpServer | None = None
        self.fake: Bench

    @property
    def options(self) -> dict[str, Any]:
        return {"ledger": str(self.path / "ledger"), "era": self.era, "tasks": str(self.tasks)}

    def listen(self, port: int = 0) -> McpHttpServer:
        self.server = McpHttpServer(port=port, **self.options)
        return self.server

    @asynccontextmanager
    async def daemon(self) -> AsyncGenerator[Bench]:
        """An executor like that of one daemon; leaving ends it, and what was under way is left to the next one."""
        section = {"argv": (), "url": self.server.url} if self.server else {"argv": argv(**self.options)}
        async with bench(self.path, restart_base_s=0.01, **section) as self.fake:
            self.fake.ports = self.ports
            yield self.fake

    def set(self, id: str, **fields: Any) -> None:
        path = self.tasks / id
        task = {**json.loads(path.read_text()), **fields}
        path.with_suffix(".new").write_text(json.dumps(task))
        path.with_suffix(".new").rename(path)

    def job(self, tool: str = "job", timeout_s: float = WAIT_S, **task: Any) -> Command:
        return self.fake.command(tool, timeout_s, fifo=self.fifo.path, task=task)

    async def ended(self, command: Command, *fields: dict[str, Any]) -> Result:
        """Runs an attempt, and goes on with its task in steps."""
        results: list[Result] = []

        async def run() -> None:
            results.append(await self.fake.attempt(command))

        async with anyio.create_task_group() as group:
            group.start_soon(run)
            id = await self.fifo.line()
            for step in fields:
                self.set(id, **step)
        return results[0]


async def left_behind(kit: Kit) -> tuple[Command, str]:
    """Leaves a task to the next daemon."""
    command = kit.job()
    async with anyio.create_task_group() as group:
        group.start_soon(kit.fake.executor.run, command, kit.ports)
        id = await kit.fifo.line()
        await kit.ports.noted.wait()
        group.cancel_scope.cancel()
    with anyio.CancelScope(shield=True):
        await kit.fake.executor.aclose()
    return command, id
