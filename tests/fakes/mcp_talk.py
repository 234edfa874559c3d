"""An MCP client as raw messages over the socket of a daemon, in one era; and work that ends as it is told."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio

from omnid.daemon import Daemon
from tests.fakes.executor import InProcessExecutor
from tests.fakes.home import Home

EXTENSION = "io.modelcontextprotocol/tasks"


class Talk:
    """A client's end of the socket, in one era."""

    def __init__(
        self, stream: anyio.abc.SocketStream, *, modern: bool, declared: bool = True, name: str = "me"
    ) -> None:
        self._stream = stream
        self._buffer = b""
        self._last = 0
        self.modern = modern
        self.name = name
        self.capabilities: dict[str, Any] = {"extensions": {EXTENSION: {}}} if declared else {}
        self.heard: list[dict[str, Any]] = []

    async def read(self) -> dict[str, Any]:
        with anyio.fail_after(10):
            while b"\n" not in self._buffer:
                self._buffer += await self._stream.receive()
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    async def send(self, method: str, **params: Any) -> int:
        self._last += 1
        if self.modern:
            params["_meta"] = {
                "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                "io.modelcontextprotocol/clientInfo": {"name": self.name, "version": "1"},
                "io.modelcontextprotocol/clientCapabilities": self.capabilities,
            }
        message = {"jsonrpc": "2.0", "id": self._last, "method": method, "params": params}
        await self._stream.send(json.dumps(message).encode() + b"\n")
        return self._last

    async def answer(self, request_id: int) -> dict[str, Any]:
        # The server's own requests have ids of their own.
        while "method" in (message := await self.read()) or message.get("id") != request_id:
            self.heard.append(message)
        return message

    async def reply(self, message: dict[str, Any], **result: Any) -> None:
        """Answers a request of the server."""
        await self._stream.send(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}).encode() + b"\n")

    async def ask(self, method: str, **params: Any) -> Any:
        """Gives the result of a request, or its error."""
        message = await self.answer(await self.send(method, **params))
        return message.get("result") or message.get("error") or {}

    async def submit(self, **more: Any) -> Any:
        arguments = {"argv": ["x"], "executor": "mine"}
        return await self.ask("tools/call", name="task_submit", arguments=arguments, **more)

    async def greet(self, version: str = "2025-11-25") -> dict[str, Any]:
        info = {"name": self.name, "version": "1"}
        hello = await self.ask("initialize", protocolVersion=version, capabilities=self.capabilities, clientInfo=info)
        await self._stream.send(b'{"jsonrpc":"2.0","method":"notifications/initialized"}\n')
        return hello


class Work:
    """An executor whose attempts end as they are told."""

    def __init__(self, home: Home) -> None:
        self.go = anyio.Event()
        self.outcome = "success"
        home.executors["mine"] = InProcessExecutor("mine", self._run)
        home.file.write_text('[agents]\nallow = ["mine"]\n[[executor]]\nname = "mine"\nkind = "command"\n')

    async def _run(self, _argv: tuple[str, ...]) -> Any:
        await self.go.wait()
        return self.outcome, b"done"


@asynccontextmanager
async def talk(daemon: Daemon, **how: Any) -> AsyncIterator[Talk]:
    async with await anyio.connect_unix(daemon.context.config.socket.path) as stream:
        talk = Talk(stream, **how)
        if not talk.modern:
            await talk.greet()
        yield talk
