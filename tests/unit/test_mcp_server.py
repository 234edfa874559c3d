"""Connections to the MCP server, spoken to by the SDK's own client and by raw lines."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import jsonschema
import pytest
from mcp import Client, MCPError
from mcp.shared.message import SessionMessage
from mcp_types import EmptyResult, Implementation, Request, jsonrpc_message_adapter
from msgspec import Struct

from omnid.api import shapes
from omnid.api.mcp_session import origin_of
from omnid.api.mcp_tools import INSTRUCTIONS, TOOLS, shown
from omnid.errors import Rejected
from tests.fakes.mcp_peer import ATTEMPT, RESULTS, WAIT_S, Api, Clock, Connection, Peer, served, view

ERAS = ["legacy", "2026-07-28"]
SNAPSHOT = Path(__file__).with_name("mcp_tools.json")

ARGUMENTS: dict[str, dict[str, Any]] = {
    "task_submit": {"argv": ["make", "test"], "key": "k1"},
    "task_get": {"task": "t1"},
    "task_search": {"states": ["idle"]},
    "task_control": {"task": "t1", "action": "cancel"},
    "status": {},
}


@asynccontextmanager
async def transport(peer: Peer) -> AsyncIterator[Any]:
    """A raw connection as the SDK's client wants it."""
    to_client, reading = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    writing, from_client = anyio.create_memory_object_stream[SessionMessage](0)

    async def forward() -> None:
        async for item in from_client:
            await peer.lines.send(item.message.model_dump_json(by_alias=True, exclude_unset=True).encode())

    async def back() -> None:
        async for line in peer.answers:
            await to_client.send(SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False)))

    with to_client, reading, writing, from_client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(forward)
            tasks.start_soon(back)
            yield reading, writing
            tasks.cancel_scope.cancel()


@asynccontextmanager
async def connected(
    api: Api, mode: str, connection: Connection | None = None, clock: Clock | None = None
) -> AsyncIterator[Client]:
    async with served(api, connection, clock=clock) as peer:
        info = Implementation(name="tester", version="1")
        async with Client(transport(peer), mode=mode, client_info=info, read_timeout_seconds=WAIT_S) as client:
            yield client


@pytest.mark.parametrize(
    ("hello", "client", "origin"),
    [
        ("claude-code", "other", "claude-code"),
        (None, "Claude Code/2.1", "Claude-Code-2.1"),
        (None, "x" * 300, "x" * 100),
        (None, None, "agent"),
        (None, "//", "agent"),
        (None, "user", "agent"),
        ("user", None, "agent"),
    ],
)
def test_origin(hello: str | None, client: str | None, origin: str) -> None:
    assert origin_of(hello, client) == origin


def test_the_sdk_is_not_imported_at_start() -> None:
    code = "import sys, omnid.api.mcp_server; print(sorted({'mcp', 'mcp_types', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.anyio
async def test_tools_list_is_the_snapshot() -> None:
    # Where a change of the tools is meant, write the answer's tools to the file, indented by 1, and read the diff.
    async with served(Api()) as peer:
        greeting = await peer.greet()
        assert greeting["instructions"] == INSTRUCTIONS
        assert greeting["serverInfo"]["name"] == "omnid"
        assert greeting["serverInfo"]["version"] == "0.1.0"
        assert greeting["capabilities"].keys() == {"tools", "tasks", "resources", "prompts", "completions"}
        assert greeting["capabilities"]["resources"] == {"listChanged": False, "subscribe": True}
        assert greeting["capabilities"]["tools"] == {"listChanged": False}
        await peer.call(1, "tools/list")
        assert (await peer.answer())["result"]["tools"] == json.loads(SNAPSHOT.read_text())


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ERAS)
async def test_every_tool_answers_with_structured_content(mode: str) -> None:
    api = Api()
    async with connected(api, mode, Connection(session="s1")) as client:
        assert client.protocol_version == ("2025-11-25" if mode == "legacy" else mode)
        listed = {tool.name: tool for tool in (await client.list_tools()).tools}
        for name, tool in TOOLS.items():
            answer = await client.call_tool(name, ARGUMENTS[name])
            assert not answer.is_error
            assert answer.structured_content == shown(RESULTS[tool.method.name])
            assert json.loads(answer.content[0].text) == answer.structured_content
            jsonschema.validate(answer.structured_content, listed[name].output_schema or {})
            caller, method, params = api.calls[-1]
            assert (method, params) == (tool.method.name, tool.parse(ARGUMENTS[name]))
            assert (caller.role, caller.origin, caller.session) == ("agent", "tester", "s1")
            assert caller.request_id is not None


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ERAS)
async def test_errors_reach_the_model(mode: str) -> None:
    error = Rejected("unknown_task", task="t9", hint="")

    async def refuse(_name: str, _params: Struct) -> Struct:
        raise error

    async with connected(Api(refuse), mode) as client:
        answer = await client.call_tool("task_get", {"task": "t9"})
        assert answer.is_error
        assert answer.structured_content is None
        assert answer.content[0].text == f"{error.what} {error.why} {error.do}"


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ERAS)
@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("task_get", {}, "missing required field `task`"),
        ("task_get", {"task": "t1", "wait_s": 51}, "<= 50"),
        ("task_submit", {"argv": "ls"}, "Expected `array"),
        ("task_submit", {"argv": ["ls"], "origin": "user"}, "unknown field `origin`"),
        ("task_control", {"task": "t1", "action": "explode"}, "Invalid enum value"),
        ("status", {"x": 1}, "unknown field `x`"),
    ],
)
async def test_bad_arguments_reach_the_model(mode: str, name: str, arguments: dict[str, Any], text: str) -> None:
    api = Api()
    async with connected(api, mode) as client:
        answer = await client.call_tool(name, arguments)
        assert answer.is_error
        assert text in answer.content[0].text
        assert f"the arguments of {name}" in answer.content[0].text
    assert api.calls == []


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ERAS)
async def test_unknown_tools_and_methods_are_protocol_errors(mode: str) -> None:
    async with connected(Api(), mode) as client:
        with pytest.raises(MCPError) as caught:
            await client.call_tool("task_eat", {})
        assert (caught.value.error.code, caught.value.error.message) == (-32602, "Unknown tool: task_eat")
        with pytest.raises(MCPError) as caught:
            await client.session.send_request(Request(method="task/eat", params=None), EmptyResult)
        assert (caught.value.error.code, caught.value.error.message) == (-32601, "Method not found")


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ERAS)
async def test_a_wait_reports_progress_where_it_is_asked_for(mode: str) -> None:
    clock = Clock()

    async def wait(_name: str, params: Struct) -> Struct:
        assert isinstance(params, shapes.Get)
        clock.now_s += params.wait_s
        return view(ATTEMPT, timed_out=clock.now_s < 100 + 12)

    api = Api(wait)
    reports: list[tuple[float, float | None, str | None]] = []

    async def report(progress: float, total: float | None, message: str | None) -> None:
        reports.append((progress, total, message))

    async with connected(api, mode, clock=clock) as client:
        answer = await client.call_tool("task_get", {"task": "t1", "wait_s": 40}, progress_callback=report)
        assert answer.structured_content is not None
        assert answer.structured_content["timed_out"] is False
        assert [params.wait_s for _, _, params in api.calls] == [5, 5, 5]
        assert reports == [(5.0, 40.0, "tester/t1 is executing"), (10.0, 40.0, "tester/t1 is executing")]
        clock.now_s, api.calls[:] = 100.0, []
        await client.call_tool("task_get", {"task": "t1", "wait_s": 8}, progress_callback=report)
        assert [params.wait_s for _, _, params in api.calls] == [5, 3]
        clock.now_s, api.calls[:] = 100.0, []
        await client.call_tool("task_get", {"task": "t1", "wait_s": 40})
        assert [params.wait_s for _, _, params in api.calls] == [40]
        assert len(reports) == 3
