"""A relay sends again what had no answer: whatever was done already is answered as it was, and done no second time."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from omnid.daemon import Daemon
from omnid.model import InputRequest
from tests.fakes.executor import InProcessExecutor, asks
from tests.fakes.home import Home
from tests.fakes.mcp_talk import EXTENSION, Talk

pytestmark = pytest.mark.anyio

SESSION = "019a0000-0000-7000-8000-000000000001"
FORM = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
QUESTION = InputRequest("elicitation/create", {"mode": "form", "message": "Who?", "requestedSchema": FORM})
ADA = {"action": "accept", "content": {"name": "Ada"}}
CONFIG = '[agents]\nallow = ["mine"]\n[[executor]]\nname = "mine"\nkind = "command"\n'


def tool(name: str, **arguments: Any) -> tuple[str, dict[str, Any]]:
    return "tools/call", {"name": name, "arguments": arguments}


CHANGES = {
    "submit": tool("task_submit", argv=["other"], executor="mine"),
    "cancel": tool("task_control", task="t1", action="cancel"),
    "priority": tool("task_control", task="t1", action="priority", priority=3),
    "answer": tool("task_control", task="t1", action="answer", text="Ada"),
    "reply": tool("task_control", task="t1", action="reply", text="Ada"),
    "tasks/cancel": ("tasks/cancel", {}),
    "tasks/update": ("tasks/update", {"inputResponses": {"q1": ADA}}),
}


class Relayed(Talk):
    """A client behind a relay: each connection goes on with the same session."""

    async def hello(self) -> None:
        await self.ask("omnid/hello", role="agent", origin="me", session=SESSION)

    async def send(self, method: str, **params: Any) -> int:
        if method.startswith("omnid/"):
            self.modern, before = False, self.modern
            try:
                return await super().send(method, **params)
            finally:
                self.modern = before
        return await super().send(method, **params)


async def work(argv: tuple[str, ...]) -> Any:
    if argv[0] == "ask":
        await asks.get()({"who": QUESTION})
    else:
        await anyio.sleep_forever()
    return "success", b""


@asynccontextmanager
async def relayed(daemon: Daemon, *, modern: bool) -> AsyncIterator[Relayed]:
    async with await anyio.connect_unix(daemon.context.config.socket.path) as stream:
        client = Relayed(stream, modern=modern)
        client.capabilities = {"extensions": {EXTENSION: {}}, "elicitation": {}} if modern else {}
        await client.hello()
        if not modern:
            await client.greet()
        yield client


async def call(client: Talk, name: str, **arguments: Any) -> dict[str, Any]:
    method, params = tool(name, **arguments)
    return await client.ask(method, **params)


@pytest.mark.parametrize(
    ("change", "modern"),
    [(change, modern) for change in CHANGES for modern in (True, False) if modern or change != "tasks/update"],
)
async def test_a_repeat_is_answered_as_the_first_was(tmp_path: Path, change: str, *, modern: bool) -> None:
    home = Home(tmp_path)
    home.executors = {"mine": InProcessExecutor("mine", work)}
    home.file.write_text(CONFIG)
    async with home.daemon() as daemon:
        async with relayed(daemon, modern=modern) as one:
            made = await call(one, "task_submit", argv=["ask"], executor="mine")
            task_id = made.get("taskId") or made["structuredContent"]["id"]
            # Its wait ends when it asks.
            await call(one, "task_get", task="t1", wait_s=10)
            method, params = CHANGES[change]
            params = {**params, "taskId": task_id} if method.startswith("tasks/") else params
            asked = await one.send(method, **params)
            first = await one.answer(asked)
        assert "error" not in first
        assert not first["result"].get("isError"), first
        async with relayed(daemon, modern=modern) as one:
            one._last = asked - 1
            assert await one.send(method, **params) == asked
            again = await one.answer(asked)
            assert steady(again) == steady(first)
            one._last = asked + 100
            found = (await call(one, "task_search"))["structuredContent"]["tasks"]
            assert {task["name"] for task in found} == ({"me/t1", "me/t2"} if change == "submit" else {"me/t1"})


def steady(answer: dict[str, Any]) -> dict[str, Any]:
    """Leaves out what tells of the task as it is now."""
    result = answer.get("result")
    if not isinstance(result, dict):
        return answer
    return {
        **answer,
        "result": {
            name: value
            for name, value in result.items()
            if name not in ("status", "statusMessage", "lastUpdatedAt", "ttl", "ttlMs")
        },
    }
