"""What a client of the relay has asked for before its daemon is killed, and gets from the next one."""

import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp.shared.exceptions import MCPDeprecationWarning
from mcp_types import ServerNotification

from tests.e2e.test_mcp import WAIT_S, daemon_of_a_relay

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def updates(agent: Client, mode: str, heard: Any, uri: str) -> AsyncIterator[Any]:
    """Subscribes to a resource, and gives what waits for the next change of it."""
    if mode == "legacy":
        with pytest.warns(MCPDeprecationWarning):
            await agent.session.subscribe_resource(uri)
        yield heard.receive
        return
    async with agent.listen(resource_subscriptions=[uri]) as subscription:
        yield partial(anext, aiter(subscription))


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_a_subscription_outlives_the_killed_daemon(tmp_path: Path, mode: str) -> None:
    say, heard = anyio.create_memory_object_stream[Any](100)

    async def hear(message: Any) -> None:
        if isinstance(message, ServerNotification) and message.method == "notifications/resources/updated":
            await say.send(message)

    go = tmp_path / "go"
    with daemon_of_a_relay(tmp_path, mode) as (client, pid), say, heard:
        client.message_handler = hear
        async with client as agent:
            script = f"until [ -e {go} ]; do sleep 0.02; done"
            made = (await agent.call_tool("task_submit", {"argv": ["sh", "-c", script]})).structured_content
            uri = f"omnid://task/{made['id']}"

            async def state() -> str:
                (content,) = (await agent.read_resource(uri)).contents
                return json.loads(content.text)["task"]["state"]

            async with updates(agent, mode, heard, uri) as changed:
                with anyio.fail_after(WAIT_S):
                    os.kill(first := pid(), signal.SIGKILL)
                    await agent.call_tool("status", {})
                    assert pid() != first
                    # It may have changed in between; here it has not.
                    await changed()
                    assert await state() == "executing"
                    go.touch()
                    while True:
                        await changed()
                        if await state() == "completed":
                            break
