"""HTTP clients of a daemon in this process: bare requests, and the SDK's own client."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import Implementation

from omnid.daemon import Daemon
from tests.fakes.home import Home

ERAS = ["legacy", "2026-07-28"]
TOKEN = "a-token-of-some-length"
ON_ASYNCIO = pytest.mark.parametrize("anyio_backend", ["asyncio"])
PING = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
ACCEPTS = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
HELLO = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "bare", "version": "1"},
    },
}


def listen(home: Home, **settings: Any) -> None:
    lines = [f"{key} = {value!r}" for key, value in {"listen": "127.0.0.1:0", **settings}.items()]
    home.file.write_text("[http]\n" + "\n".join(lines) + "\n")


def url(daemon: Daemon, path: str = "/mcp", scheme: str = "http") -> str:
    assert daemon.http is not None
    return f"{scheme}://127.0.0.1:{daemon.http.port}{path}"


@asynccontextmanager
async def bare(home: Home, **headers: str) -> AsyncIterator[tuple[Daemon, httpx2.AsyncClient]]:
    async with home.daemon() as daemon, httpx2.AsyncClient(headers={**ACCEPTS, **headers}) as client:
        yield daemon, client


@asynccontextmanager
async def connected(daemon: Daemon, mode: str, token: str = "", name: str = "tester") -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with httpx2.AsyncClient(headers=headers) as http:
        transport = streamable_http_client(url(daemon), http_client=http)
        info = Implementation(name=name, version="1")
        async with Client(transport, mode=mode, client_info=info, read_timeout_seconds=10) as client:
            yield client


def problem(answer: httpx2.Response) -> dict[str, Any]:
    return answer.json()["error"]["data"]


async def until(look: Callable[[], object]) -> None:
    """Looks again and again until there is something: what a client who has gone left behind tells nobody."""
    with anyio.fail_after(10):
        while True:
            if look():
                return
            await anyio.sleep(0.005)
