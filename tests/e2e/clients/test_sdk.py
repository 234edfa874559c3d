"""The SDK's own client, over stdio and HTTP, in both eras."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp_types import Implementation

from tests.e2e.clients.user import User, script

ERAS = ["legacy", "2026-07-28"]
WAYS = ["stdio", "http"]
ON_ASYNCIO = pytest.mark.parametrize("anyio_backend", ["asyncio"])


@asynccontextmanager
async def connected(user: User, mode: str, url: str | None = None, **more: Any) -> AsyncIterator[Client]:
    over: Any = StdioServerParameters(command="omnid", args=["mcp"], env=user.environ)
    if url is not None:
        over = streamable_http_client(url)
    info = Implementation(name="tester", version="1")
    async with Client(over, mode=mode, client_info=info, read_timeout_seconds=60, **more) as client:
        yield client


async def call(client: Client, tool: str, **arguments: Any) -> Any:
    answer = await client.call_tool(tool, arguments)
    assert not answer.is_error, answer.content
    return answer.structured_content


@ON_ASYNCIO
@pytest.mark.anyio
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", ERAS)
async def test_a_task_outlives_its_client_and_its_daemon(user: User, mode: str, way: str) -> None:
    url = None
    if way == "http":
        url = user.listen()
        user.start()
    with user.gate() as gate:
        async with connected(user, mode, url) as client:
            argv = script("read x < go", "echo over")
            made = await call(client, "task_submit", argv=argv, cwd=str(user.work))
            assert made["name"] == "tester/t1"
        if way == "http":
            user.kill()
            user.start()
        else:
            user.kill_daemon()
        gate.let()
        async with connected(user, mode, url) as client:
            view = await call(client, "task_get", task="t1", wait_s=50)
    assert (view["task"]["id"], view["task"]["state"], view["timed_out"]) == (made["id"], "completed", False)
    assert view["attempts"][-1]["output"] == "over\n"


@ON_ASYNCIO
@pytest.mark.anyio
async def test_without_tasks_of_the_protocol_a_client_waits_in_pieces_and_sees_progress(user: User) -> None:
    heard: list[str | None] = []

    with user.gate() as gate:
        async with connected(user, "legacy") as client:
            made = await call(client, "task_submit", argv=script("read x < go"), cwd=str(user.work))
            short = await call(client, "task_get", task=made["id"], wait_s=0.1)
            assert (short["timed_out"], short["task"]["state"]) == (True, "executing")
            longer = await client.call_tool("task_get", {"task": made["id"], "wait_s": 51})
            assert longer.is_error
            assert "50" in longer.content[0].text

            async def progressed(done: float, total: float | None, message: str | None) -> None:
                assert 0 < done < 50 == total
                heard.append(message)
                gate.let()

            with anyio.fail_after(60):
                answer = await client.call_tool(
                    "task_get", {"task": made["id"], "wait_s": 50}, progress_callback=progressed
                )
    assert answer.structured_content["task"]["state"] == "completed"
    assert heard[0] == "tester/t1 is executing"
