"""A socket server with methods for every way in which a request can go, and clients that speak to it."""

import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import msgspec
from anyio.lowlevel import checkpoint
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.memory import MemoryObjectReceiveStream

from omnid import wire
from omnid.api.socket import Connection, Request, SocketServer
from omnid.clock import SystemClock
from omnid.errors import Fatal, Rejected
from omnid.log import Log
from omnid.settings import Socket
from omnid.store.interface import Outcome

DEADLINE_S = 30.0
LIMIT_BYTES = 64 << 10


class Handler:
    """Methods for every way in which a request can go."""

    def __init__(self) -> None:
        self.release = anyio.Event()
        self.entered = anyio.Event()
        self.cancelled = anyio.Event()
        self.connections: list[Connection] = []
        self.mcp_lines: list[bytes] = []
        self.begun: list[tuple[Request, Callable[[Outcome[bytes]], None]]] = []

    def waits(self, request: Request) -> bool:
        return request.method == "omnid/wait"

    def begin(self, connection: Connection, request: Request, done: Callable[[Outcome[bytes]], None]) -> bool:
        if not request.method.startswith("omnid/write"):
            return False
        self.connections.append(connection)
        self.begun.append((request, done))
        return True

    def commit(self) -> None:
        """Answers what was begun, as the writer does after a commit."""
        begun, self.begun = self.begun, []
        for request, done in begun:
            done(Written(request))

    async def call(self, connection: Connection, request: Request) -> bytes:
        self.connections.append(connection)
        name = request.method.removeprefix("omnid/")
        match name:
            case "echo":
                return bytes(request.params)
            case "big":
                return b'"' + b"x" * msgspec.json.decode(request.params)["bytes"] + b'"'
            case "wait" | "held":
                self.entered.set()
                try:
                    await self.release.wait()
                except BaseException:
                    self.cancelled.set()
                    raise
                return b"{}"
            case "fault":
                raise ZeroDivisionError
            case "fatal":
                raise Fatal("store_io", path="/x", detail="EIO")
            case _:
                raise Rejected("unknown_method", method=request.method, version="0", hint="")

    async def serve_mcp(
        self,
        connection: Connection,
        lines: MemoryObjectReceiveStream[bytes],
        send: Callable[[bytes], Awaitable[None]],
    ) -> None:
        async for line in lines:
            self.mcp_lines.append(line)
            message = json.loads(line)
            if message["method"] == "fault":
                raise ZeroDivisionError
            if message["method"] == "end":
                return
            await send(wire.line({"jsonrpc": "2.0", "id": message["id"], "result": "mcp"}))


class Written:
    """What became of a write: its parameters, or what its method says."""

    def __init__(self, request: Request) -> None:
        self.request = request

    def outcome(self) -> bytes:
        match self.request.method:
            case "omnid/write.refused":
                raise Rejected("unknown_task", task="t7", hint="")
            case "omnid/write.fault":
                raise ZeroDivisionError
            case _:
                return bytes(self.request.params)


class Client:
    def __init__(self, stream: anyio.abc.SocketStream) -> None:
        self.stream = stream
        self.lines = BufferedByteReceiveStream(stream)

    async def ask(self, method: str, params: object = None, request_id: object = 1) -> dict[str, Any]:
        await self.send(method, params, request_id)
        return await self.answer()

    async def send(self, method: str, params: object = None, request_id: object = 1) -> None:
        await self.stream.send(line(method, params, request_id))

    async def answer(self) -> dict[str, Any]:
        return json.loads(await self.lines.receive_until(b"\n", 64 << 20))

    async def ended(self) -> bool:
        try:
            await self.lines.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return True
        return False


def line(method: str, params: object = None, request_id: object = 1) -> bytes:
    return wire.line({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params or {}})


class Serving:
    def __init__(self, path: str, server: SocketServer, handler: Handler, log: StringIO) -> None:
        self.path = path
        self.server = server
        self.handler = handler
        self._log = log

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        async with await anyio.connect_unix(self.path) as stream:
            yield Client(stream)

    def logged(self) -> list[dict[str, Any]]:
        return [json.loads(entry) for entry in self._log.getvalue().splitlines()]


@asynccontextmanager
async def serving(directory: Path, **settings: Any) -> AsyncIterator[Serving]:
    path = str(directory / "run" / "s")
    stream = StringIO()
    log = Log(SystemClock(), lambda text: text, stream=stream).logger()
    handler = Handler()
    server = SocketServer(
        Socket(**{"path": path, "message_bytes_max": LIMIT_BYTES} | settings), SystemClock(), handler, log
    )
    with anyio.fail_after(DEADLINE_S):
        async with anyio.create_task_group() as tasks:
            await tasks.start(server.serve)
            yield Serving(path, server, handler, stream)
            handler.release.set()
            server.stop()
    assert not os.path.lexists(path)


async def begun(serve: Serving, count: int) -> None:
    while len(serve.handler.begun) < count:
        await checkpoint()
