"""HTTP of a daemon that is a process of its own: killed under its clients, and called as docs/http.md says."""

import json
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp_types import Implementation

from tests.e2e.harness import WAIT_S, Home
from tests.fakes.web import ON_ASYNCIO, TOKEN

PAGE = Path(__file__).parents[2] / "docs" / "http.md"
CONFIG = """
[http]
listen = "127.0.0.1:{port}"
token = "file:{token}"
[agents]
allow = ["command"]
"""


@pytest.fixture
def port(home: Home) -> Iterator[int]:
    """A daemon that serves HTTP at this port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (home.root / "token").write_text(TOKEN)
    home.configure(CONFIG.format(port=port, token=home.root / "token"))
    home.start()
    yield port
    home.stop()


@asynccontextmanager
async def connected(port: int, mode: str) -> AsyncIterator[Client]:
    async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {TOKEN}"}) as http:
        transport = streamable_http_client(f"http://127.0.0.1:{port}/mcp", http_client=http)
        info = Implementation(name="tester", version="1")
        async with Client(transport, mode=mode, client_info=info, read_timeout_seconds=WAIT_S) as client:
            yield client


async def call(client: Client, name: str, **arguments: Any) -> dict[str, Any]:
    result = await client.call_tool(name, arguments)
    assert result.structured_content is not None, result
    return result.structured_content


@ON_ASYNCIO
@pytest.mark.anyio
async def test_a_client_without_sessions_goes_on_after_a_kill(home: Home, port: int) -> None:
    async with connected(port, "2026-07-28") as client:
        made = await call(client, "task_submit", argv=["echo", "hello"], cwd="/", key="k")
        home.kill()
        home.start()
        again = await call(client, "task_submit", argv=["echo", "hello"], cwd="/", key="k")
        assert (again["id"], again["created"]) == (made["id"], False)
        got = await call(client, "task_get", task="t1", wait_s=30)
        assert got["task"]["state"] == "completed"


@ON_ASYNCIO
@pytest.mark.anyio
async def test_a_session_ends_with_its_daemon_by_the_error_that_makes_a_client_begin_anew(
    home: Home, port: int
) -> None:
    async with connected(port, "legacy") as client:
        made = await call(client, "task_submit", argv=["echo", "hello"], cwd="/", key="k")
        home.kill()
        home.start()
        with pytest.raises(MCPError, match=r"[Ss]ession"):
            await client.call_tool("task_get", {"task": "t1"})
    async with connected(port, "legacy") as client:
        assert (await call(client, "task_get", task="t1", wait_s=30))["task"]["id"] == made["id"]


def test_what_the_page_says_of_rest_is_so(home: Home, port: int) -> None:
    rest = PAGE.read_text().partition("## REST")[2]
    (block,) = re.findall(r"^```sh\n(.*?)^```$", rest, re.DOTALL | re.MULTILINE)
    (home.work / "Makefile").write_text("test:\n\t@echo 41 passed\n")
    assert shutil.which("curl"), "the page's examples need curl"
    environ = {**home.environ, "OMNID": f"http://127.0.0.1:{port}/api/v1", "TOKEN": TOKEN}
    answers: list[str] = []
    for line in block.splitlines():
        assert line.startswith("curl -sS")
        command = line.replace("/src/x", str(home.work))
        done = subprocess.run(
            ["sh", "-c", command], capture_output=True, text=True, env=environ, timeout=WAIT_S, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), line
        answers.append(done.stdout)
    submitted, got, output, listed, retried, mode = answers
    assert json.loads(submitted)["data"]["name"] == "agent/t1"
    assert json.loads(got)["data"]["task"]["state"] == "completed"
    assert output == "41 passed\n"
    assert json.loads(listed)["data"]["tasks"] == []
    assert json.loads(retried)["data"]["code"] == "not_in_state"
    assert json.loads(mode)["data"]["mode"] == "normal"
    shapes = re.findall(r'^\{"status".*$', rest, re.MULTILINE)
    assert [list(json.loads(shape)) for shape in shapes] == [["status", "data", "message"]] * 2
    assert list(json.loads(shapes[0])["data"]) == list(json.loads(submitted)["data"])
    assert list(json.loads(shapes[1])["data"]) == list(json.loads(retried)["data"])
