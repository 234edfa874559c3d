"""MCP as a client meets it: the SDK's client, the relay as its own process, the real socket, and the MCP server."""

import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import msgspec
import pytest
from anyio.streams.memory import MemoryObjectReceiveStream
from mcp import Client, MCPError, StdioServerParameters
from mcp_types import Implementation

from omnid import wire
from omnid.api import shapes
from omnid.api.client import Client as Daemon
from omnid.api.mcp_server import McpServer
from omnid.api.mcp_tools import TOOLS, shown
from omnid.api.socket import Connection, Request, SocketServer
from omnid.clock import SystemClock
from omnid.errors import Rejected
from omnid.log import Log
from omnid.settings import Socket
from tests.fakes.mcp_peer import RESULTS, Api, Held, bounded

WAIT_S = 30.0
SESSION = "01931e3c-0000-7000-8000-000000000002"
ERAS = ["legacy", "2026-07-28", "auto"]


class Handler:
    """What stands between the socket and the operations: hello, and MCP."""

    def __init__(self, mcp: McpServer) -> None:
        self._mcp = mcp

    def waits(self, request: Request) -> bool:
        return False

    def begin(self, connection: Connection, request: Request, done: Callable[..., None]) -> bool:
        return False

    async def call(self, connection: Connection, request: Request) -> bytes:
        assert request.method == "omnid/hello"
        hello = msgspec.json.decode(request.params, type=shapes.Hello)
        connection.role, connection.origin, connection.session = hello.role, hello.origin, hello.session
        return msgspec.json.encode(shapes.Welcome("0.1.0", os.getpid(), 1, 1 << 20))

    async def serve_mcp(
        self, connection: Connection, lines: MemoryObjectReceiveStream[bytes], send: Callable[..., object]
    ) -> None:
        await self._mcp.serve(connection, lines, send)


@asynccontextmanager
async def listening(path: Path, api: Api) -> AsyncIterator[SocketServer]:
    """The socket with the MCP server behind it; leaving stops it as a daemon stops."""
    clock = SystemClock()
    log = Log(clock, lambda text: text).logger()
    mcp = McpServer(api, "0.1.0", clock, log, requests_max=64)
    server = SocketServer(Socket(path=str(path)), clock, Handler(mcp), log)
    async with anyio.create_task_group() as tasks:
        await tasks.start(server.serve)
        yield server
        server.stop()


def client(path: Path, mode: str) -> Client:
    # A config that can't be read keeps the relay from starting a daemon of its own while the socket is away.
    config = path.with_name("config.toml")
    config.write_text("no config")
    relay = StdioServerParameters(
        command=sys.executable,
        args=["-m", "omnid", "mcp"],
        env={"OMNID_SOCKET": str(path), "OMNID_CONFIG": str(config), "OMNID_STATE": str(path.parent)},
    )
    return Client(relay, mode=mode, client_info=Implementation(name="tester", version="1"), read_timeout_seconds=WAIT_S)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    directory = tmp_path / "s"
    directory.mkdir(mode=0o700)
    return directory / "omnid.sock"


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ERAS)
async def test_tools_through_the_relay(path: Path, mode: str) -> None:
    api = Api()
    async with listening(path, api), client(path, mode) as agent:
        assert [tool.name for tool in (await agent.list_tools()).tools] == list(TOOLS)
        for request in range(3):
            answer = await agent.call_tool("task_submit", {"argv": ["true"], "key": f"k{request}"})
            assert answer.structured_content == shown(RESULTS["task.submit"])
    callers = [caller for caller, _, _ in api.calls]
    assert {(caller.role, caller.origin) for caller in callers} == {("agent", "tester")}
    assert len({caller.session for caller in callers}) == 1
    assert callers[0].session is not None
    assert len({caller.request_id for caller in callers}) == 3


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ERAS)
async def test_a_wait_outlives_a_restart_and_is_answered_once(path: Path, mode: str) -> None:
    held, answered = Held(), anyio.Event()

    async def ask() -> None:
        async with client(path, mode) as agent:
            answer = await agent.call_tool("task_get", {"task": "t1", "wait_s": 50})
            assert answer.structured_content == shown(RESULTS["task.get"])
            answered.set()

    first, second = Api(held.do), Api()
    async with anyio.create_task_group() as tasks:
        async with listening(path, first):
            tasks.start_soon(ask)
            await bounded(held.begun)
        assert held.finished == 0
        async with listening(path, second):
            await bounded(answered)
    ((before, _, _),) = first.calls
    ((after, _, _),) = second.calls
    assert (before.session, before.request_id) == (after.session, after.request_id)


@pytest.mark.anyio
async def test_a_daemon_from_before_the_hello_is_named_at_once(path: Path) -> None:
    async def refuse(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            asked = msgspec.json.decode((await stream.receive()).partition(b"\n")[0])
            error = Rejected("unknown_method", method=asked["method"], version="0.0.1", hint="")
            await stream.send(wire.error_answer(msgspec.json.encode(asked["id"]), error))

    listener = await anyio.create_unix_listener(path)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, refuse)
        refused = pytest.RaisesExc(MCPError, match=r"no method omnid/hello.*omnictl down")
        with anyio.fail_after(WAIT_S), pytest.RaisesGroup(refused, flatten_subgroups=True):
            async with client(path, "legacy"):
                raise AssertionError
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_a_relay_of_an_earlier_version_is_served(path: Path) -> None:
    info = {"name": "tester", "version": "1"}
    async with listening(path, Api()), await anyio.connect_unix(path) as stream:
        for method, params in (
            ("omnid/hello", {"session": SESSION, "role": "agent"}),
            ("initialize", {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": info}),
        ):
            await stream.send(wire.request(1, method, params))
            with anyio.fail_after(WAIT_S):
                answer = b""
                while not answer.endswith(b"\n"):
                    answer += await stream.receive()
            assert "result" in msgspec.json.decode(answer), answer


@contextmanager
def daemon_of_a_relay(tmp_path: Path, mode: str) -> Iterator[tuple[Client, Callable[[], int]]]:
    """A client of a relay that starts a daemon of its own, and how to learn that daemon's pid."""
    socket = tmp_path / "state" / "omnid.sock"
    config = tmp_path / "config.toml"
    config.write_text('[agents]\nallow = ["command"]\n')
    environment = {"OMNID_STATE": str(socket.parent), "OMNID_CONFIG": str(config)}
    relay = StdioServerParameters(command=sys.executable, args=["-m", "omnid", "mcp"], env=environment)
    info = Implementation(name="tester", version="1")

    def pid() -> int:
        with Daemon(str(socket)) as daemon:
            return daemon.status()["pid"]

    try:
        yield Client(relay, mode=mode, client_info=info, read_timeout_seconds=WAIT_S), pid
    finally:
        os.kill(pid(), signal.SIGKILL)


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ERAS)
async def test_a_task_is_done_by_the_daemon_that_the_relay_starts(tmp_path: Path, mode: str) -> None:
    with daemon_of_a_relay(tmp_path, mode) as (client, _):
        async with client as agent:
            submitted = await agent.call_tool("task_submit", {"argv": ["echo", "done"], "key": "k"})
            assert not submitted.is_error, submitted.content
            assert submitted.structured_content["name"] == "tester/t1"
            task = (await agent.call_tool("task_get", {"task": "t1", "wait_s": 30})).structured_content
            assert (task["task"]["state"], task["attempts"][0]["output"]) == ("completed", "done\n")
            again = await agent.call_tool("task_submit", {"argv": ["echo", "done"], "key": "k"})
            assert again.structured_content["created"] is False
            found = (await agent.call_tool("task_search", {"states": ["completed"]})).structured_content
            assert [task["name"] for task in found["tasks"]] == ["tester/t1"]
            refused = await agent.call_tool("task_control", {"task": "t1", "action": "approve"})
            assert refused.is_error
            status = (await agent.call_tool("status", {})).structured_content
            assert status["tasks"] == {"completed": 1}


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ERAS)
async def test_a_wait_outlives_the_killed_daemon(tmp_path: Path, mode: str) -> None:
    go, answers = tmp_path / "go", []

    async def wait(agent: Client) -> None:
        answers.append((await agent.call_tool("task_get", {"task": "t1", "wait_s": 20})).structured_content)

    with daemon_of_a_relay(tmp_path, mode) as (client, pid):
        async with client as agent:
            script = f"touch {tmp_path}/begun; until [ -e {go} ]; do sleep 0.02; done; echo once >> {tmp_path}/ledger"
            await agent.call_tool("task_submit", {"argv": ["sh", "-c", script]})
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait, agent)
                first = pid()
                os.kill(first, signal.SIGKILL)
                # Answered by the next daemon, so it is there when the command goes on.
                assert (await agent.call_tool("status", {})).structured_content["tasks"] == {"executing": 1}
                go.touch()
            assert pid() != first
    assert [(answer["task"]["state"], answer["timed_out"]) for answer in answers] == [("completed", False)], answers
    assert (tmp_path / "ledger").read_text() == "once\n"
