"""Connections to the MCP server, spoken to by raw lines: cancellation, limits, the end, and what can't be read."""

import json
from typing import Any

import anyio
import mcp_types as types
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from omnid.api.mcp_lines import AHEAD_MAX, parsed
from omnid.api.mcp_server import McpServer
from omnid.api.mcp_session import OTHER_ERA
from omnid.errors import Fatal, Rejected
from tests.fakes.mcp_peer import WAIT_S, Api, Clock, Connection, Held, Log, Peer, bounded, served

MODERN = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}

HANDSHAKE = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "me", "version": "1"}}


@pytest.mark.anyio
async def test_a_fault_ends_one_call_only() -> None:
    async def fail(_name: str, _params: Struct) -> Struct:
        raise ZeroDivisionError("secret detail")

    log = Log()
    async with served(Api(fail), log=log) as peer:
        await peer.greet()
        await peer.tool(1, "status")
        answer = await peer.answer()
        assert answer["result"]["isError"] is True
        assert answer["result"]["content"][0]["text"] == str(
            Rejected("internal", detail="status broke off (ZeroDivisionError)")
        )
        await peer.call(2, "ping")
        assert await peer.answer() == {"jsonrpc": "2.0", "id": 2, "result": {}}
    assert [(entry["event"], entry["tool"]) for entry in log.errors] == [("mcp_call_failed", "status")]
    assert isinstance(log.errors[0]["exc_info"], ZeroDivisionError)


@pytest.mark.anyio
async def test_fatal_passes_and_is_no_answer() -> None:
    async def fail(_name: str, _params: Struct) -> Struct:
        raise Fatal("store_io", path="/db", detail="input/output error")

    sent: list[bytes] = []

    async def send(line: bytes) -> None:
        sent.append(line)

    server = McpServer(Api(fail), "0.1.0", Clock(), Log(), requests_max=8)
    lines, received = anyio.create_memory_object_stream[bytes](8)
    with lines, received:
        await Peer(lines).call(1, "tools/call", {"name": "task_submit", "arguments": {"argv": ["ls"]}, "_meta": MODERN})
        with anyio.fail_after(WAIT_S), pytest.raises(Fatal):
            await server.serve(Connection(), received, send)
    assert sent == []


@pytest.mark.anyio
async def test_the_first_request_says_the_era_of_the_connection() -> None:
    async with served(Api()) as peer:
        for _ in range(AHEAD_MAX + 2):
            await peer.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
        await peer.call(1, "initialize", {**HANDSHAKE, "_meta": MODERN})
        assert (await peer.answer())["result"]["protocolVersion"] == "2025-11-25"
        await peer.call(2, "tools/list", {"_meta": MODERN})
        refused = (await peer.answer())["error"]
        assert (refused["code"], refused["message"]) == (-32600, OTHER_ERA)
        assert refused["data"]["method"] == "tools/list"
        await peer.call(3, "tools/list", {})
        assert (await peer.answer())["result"]["tools"]
    async with served(Api()) as peer:
        await peer.call(1, "tools/list", {"_meta": MODERN})
        assert (await peer.answer())["result"]["tools"]
        await peer.call(2, "initialize", HANDSHAKE)
        assert (await peer.answer())["error"]["code"] == -32022
    async with served(Api()) as peer:
        await peer.call(1, "tools/list", {})
        assert (await peer.answer())["error"]["code"] == -32602, "without a handshake"
    async with served(Api()) as peer:
        await peer.send({"jsonrpc": "2.0", "method": "notifications/initialized"})


@pytest.mark.anyio
@pytest.mark.parametrize("request_id", [1, "one"])
async def test_a_cancelled_wait_ends_unanswered_and_frees_its_place(request_id: Any) -> None:
    held = Held()
    async with served(Api(held.do), requests_max=1) as peer:
        await peer.greet()
        await peer.tool(request_id, "task_get", task="t1", wait_s=50)
        await bounded(held.begun)
        cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": request_id}}
        await peer.send(cancel)
        await bounded(held.ended)
        assert held.finished == 0
        # Its end and its settling are two steps of one task: the place is free once that task has had its turn.
        await anyio.wait_all_tasks_blocked()
        for number in (2, 3):
            await peer.call(number, "ping")
            assert await peer.answer() == {"jsonrpc": "2.0", "id": number, "result": {}}


@pytest.mark.anyio
async def test_a_mutation_that_has_begun_is_finished() -> None:
    held = Held()
    async with served(Api(held.do)) as peer:
        await peer.greet()
        await peer.tool(1, "task_submit", argv=["ls"])
        await bounded(held.begun)
        await peer.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}})
        await anyio.wait_all_tasks_blocked()
        assert not held.ended.is_set()
        held.release.set()
        await bounded(held.ended)
        assert held.finished == 1
        await peer.call(2, "ping")
        assert (await peer.answer())["id"] == 2


@pytest.mark.anyio
async def test_open_requests_are_bounded() -> None:
    held = Held()
    async with served(Api(held.do), requests_max=2) as peer:
        await peer.greet()
        for number in (1, 2):
            await peer.tool(number, "task_get", task="t1", wait_s=50)
        await peer.call("three", "ping")
        answer = await peer.answer()
        assert answer["id"] == "three"
        assert answer["error"]["code"] == -32000
        assert (answer["error"]["data"]["code"], answer["error"]["data"]["kind"]) == ("too_many", "retryable")
        held.release.set()
        assert {(await peer.answer())["id"] for _ in range(2)} == {1, 2}
        await peer.call(4, "ping")
        assert await peer.answer() == {"jsonrpc": "2.0", "id": 4, "result": {}}


@pytest.mark.anyio
async def test_the_end_of_a_connection_ends_its_requests() -> None:
    held = Held()
    async with served(Api(held.do)) as peer:
        await peer.greet()
        await peer.tool(1, "task_get", task="t1", wait_s=50)
        await bounded(held.begun)
        peer.lines.close()
        await bounded(held.ended)
    assert held.finished == 0


@pytest.mark.anyio
async def test_a_stop_answers_nothing() -> None:
    # A relay asks again after the restart; an answer now, even an error, would keep it from that.
    held = Held()
    server = McpServer(Api(held.do), "0.1.0", Clock(), Log(), requests_max=8)
    lines, received = anyio.create_memory_object_stream[bytes](8)
    sent: list[bytes] = []

    async def send(line: bytes) -> None:
        sent.append(line)

    with lines, received:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, Connection(), received, send)
            peer = Peer(lines)
            arguments = {"task": "t1", "wait_s": 50}
            await peer.call(1, "tools/call", {"name": "task_get", "arguments": arguments, "_meta": MODERN})
            await bounded(held.begun)
            tasks.cancel_scope.cancel()
    assert held.ended.is_set()
    assert sent == []


@pytest.mark.anyio
async def test_request_ids_of_a_session_keep_their_type() -> None:
    api = Api()
    async with served(api, Connection(origin="claude-code", session="s1")) as peer:
        await peer.greet()
        for request_id in (1, "1"):
            await peer.tool(request_id, "task_submit", argv=["ls"])
            assert (await peer.answer())["id"] == request_id
    assert [(caller.origin, caller.session, caller.request_id) for caller, _, _ in api.calls] == [
        ("claude-code", "s1", "1"),
        ("claude-code", "s1", '"1"'),
    ]


# Lines that can't be read.


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("line", "code", "request_id"),
    [
        (b"{", -32700, None),
        (b"\xff\xfe", -32700, None),
        (b"[" * 100_000, -32600, None),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":' + b"[" * 100_000, -32700, 1),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":"\\ud800"}}', -32700, 1),
        (b'{"method":"\\ud800","params":{"a":"\\ud800"},"jsonrpc":"2.0","id":1}', -32700, 1),
        (b'{"jsonrpc":"2.0","id":"\\ud800","method":"ping"}', -32700, "\ud800"),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping"', -32700, 1),
        (b"[]", -32600, None),
        (b"3", -32600, None),
        (b'{"jsonrpc":"2.0","id":1}', -32600, 1),
        (b'{"jsonrpc":"1.0","id":"a","method":"ping"}', -32600, "a"),
        (b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}', -32600, None),
        (b'{"jsonrpc":"2.0","id":1.0,"method":"ping"}', -32600, None),
        (b'{"jsonrpc":"2.0","id":true,"method":"ping"}', -32600, None),
        (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', -32600, None),
        (b'{"jsonrpc":"2.0","id":1,"method":7}', -32600, 1),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":[]}', -32600, 1),
        (b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":7}}', -32602, 1),
        (b'{"jsonrpc":"2.0","id":1,"method":"tools/eat"}', -32601, 1),
    ],
)
async def test_unreadable_lines_are_answered(line: bytes, code: int, request_id: Any) -> None:
    async with served(Api()) as peer:
        await peer.greet()
        await peer.send(line)
        answer = await peer.answer()
        assert (answer["id"], answer["error"]["code"]) == (request_id, code)
        assert answer["error"]["message"]
        await peer.call(2, "ping")
        assert await peer.answer() == {"jsonrpc": "2.0", "id": 2, "result": {}}


@pytest.mark.anyio
async def test_answers_nobody_asked_for_are_dropped() -> None:
    async with served(Api()) as peer:
        await peer.greet()
        await peer.send({"jsonrpc": "2.0", "id": 5, "result": {}})
        await peer.send({"jsonrpc": "2.0", "id": None, "error": {"code": -32700, "message": "what?"}})
        await peer.send({"jsonrpc": "2.0", "method": "notifications/unheard-of"})
        await peer.call(2, "ping")
        assert (await peer.answer())["id"] == 2


def test_an_answer_to_us_that_can_not_be_read_is_an_error() -> None:
    for text in (b'{"a":"\\ud800"}', b"1e"):
        message = parsed(b'{"jsonrpc":"2.0","id":7,"result":' + text + b"}")
        assert isinstance(message, types.JSONRPCError)
        assert (message.id, message.error.code) == (7, -32700)


MEMBERS = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.sampled_from(["2.0", "1.0", None]),
        "id": st.none() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=False, allow_infinity=False),
        "method": st.none() | st.text(max_size=5) | st.integers(),
        "params": st.none() | st.lists(st.integers()) | st.dictionaries(st.text(max_size=5), st.integers()),
        "result": st.none() | st.integers(),
        "error": st.none() | st.integers(),
    },
)


@given(line=st.binary(max_size=200) | MEMBERS.map(lambda value: json.dumps(value).encode()))
def test_no_line_breaks_the_reader(line: bytes) -> None:
    answer = parsed(line)
    if isinstance(answer, bytes):
        assert json.loads(answer)["error"]["code"] in (-32700, -32600)
