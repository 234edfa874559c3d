"""What is wrong with a request of MCP: the exact error, with what helps, over socket and HTTP alike; and no change."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import httpx2
import pytest

from omnid.daemon import Daemon
from tests.fakes.home import Home
from tests.fakes.mcp_talk import EXTENSION, Talk, Work, talk
from tests.fakes.web import ACCEPTS, HELLO, ON_ASYNCIO, listen, url

NOBODY = "01931e3c-0000-7000-8000-00000000dead"
MISSING = {"requiredCapabilities": {"extensions": {EXTENSION: {}}}}
CONFIG = """
[[origin]]
name = "bounded"
labels = []
"""
Ask = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]


class Bad(NamedTuple):
    """A request that is refused: `{theirs}` stands for the UUID of another origin's task."""

    eras: str
    """`new` is 2026-07-28, `old` 2025-11-25."""
    who: str
    method: str
    params: dict[str, Any]
    code: int
    data: Callable[[Any], bool]
    declared: bool = True


def says(code: str) -> Callable[[Any], bool]:
    return lambda data: data["code"] == code and {"what", "why", "do"} <= data.keys()


def of_method(data: Any) -> bool:
    return {"method", "protocolVersion", "do"} == data.keys()


def helps(data: Any) -> bool:
    return bool(data)


def prompt(name: str) -> dict[str, Any]:
    return {"ref": {"type": "ref/prompt", "name": name}, "argument": {"name": "task", "value": "t"}}


def template(uri: str) -> dict[str, Any]:
    return {"ref": {"type": "ref/resource", "uri": uri}, "argument": {"name": "id", "value": "t"}}


TASK, LOG = "omnid://task/{theirs}", "omnid://task/{theirs}/log"
TABLE = [
    Bad("new old", "open", "tasks/get", {"taskId": NOBODY}, -32602, says("unknown_task")),
    Bad("new old", "open", "tasks/get", {"taskId": "t1"}, -32602, says("unknown_task")),
    Bad("new old", "open", "tasks/cancel", {"taskId": NOBODY}, -32602, says("unknown_task")),
    Bad("new", "open", "tasks/update", {"taskId": NOBODY}, -32602, says("unknown_task")),
    Bad("old", "open", "tasks/result", {"taskId": NOBODY}, -32602, says("unknown_task")),
    Bad("new old", "bounded", "tasks/get", {"taskId": "{theirs}"}, -32602, says("unknown_task")),
    Bad("new old", "bounded", "tasks/cancel", {"taskId": "{theirs}"}, -32602, says("unknown_task")),
    Bad("new", "bounded", "tasks/update", {"taskId": "{theirs}"}, -32602, says("unknown_task")),
    Bad("old", "bounded", "tasks/result", {"taskId": "{theirs}"}, -32602, says("unknown_task")),
    Bad("new old", "open", "tasks/cancel", {"taskId": "{theirs}"}, -32602, says("other_origin")),
    Bad("old", "open", "tasks/list", {"cursor": "x"}, -32602, says("bad_cursor")),
    Bad("new", "open", "tasks/result", {"taskId": "{theirs}"}, -32601, of_method),
    Bad("new", "open", "tasks/list", {}, -32601, of_method),
    Bad("old", "open", "tasks/update", {"taskId": "{theirs}"}, -32601, of_method),
    Bad("new", "open", "tasks/get", {"taskId": "{theirs}"}, -32021, MISSING.__eq__, declared=False),
    Bad("new", "open", "tasks/cancel", {"taskId": "{theirs}"}, -32021, MISSING.__eq__, declared=False),
    Bad("new", "bounded", "resources/read", {"uri": TASK}, -32602, says("unknown_task")),
    Bad("old", "bounded", "resources/read", {"uri": LOG}, -32002, says("unknown_task")),
    Bad("new old", "open", "prompts/get", {"name": "x"}, -32602, lambda data: "away" in data["prompts"]),
    Bad("new old", "open", "tools/call", {"name": "x"}, -32602, lambda data: "status" in data["tools"]),
    Bad("new old", "open", "tools/nothing", {}, -32601, lambda data: data == "tools/nothing"),
    Bad(
        "new", "open", "resources/read", {"uri": "omnid://x"}, -32602, lambda data: "omnid://inbox" in data["resources"]
    ),
    Bad("new old", "open", "prompts/get", {"name": "queue_plan"}, -32602, lambda data: data == {"missing": ["plan"]}),
    Bad("new old", "open", "completion/complete", prompt("x"), -32602, lambda data: "away" in data["prompts"]),
    Bad("new old", "open", "completion/complete", template("x://"), -32602, lambda data: len(data["templates"]) == 2),
    Bad("new", "open", "resources/subscribe", {"uri": "omnid://status"}, -32601, helps),
    Bad("old", "open", "subscriptions/listen", {"notifications": {"taskIds": ["{theirs}"]}}, -32601, helps),
    Bad("new", "open", "subscriptions/listen", {"notifications": {"taskIds": "t1"}}, -32602, helps),
    Bad(
        "new",
        "open",
        "subscriptions/listen",
        {"notifications": {"taskIds": [str(n) for n in range(101)]}},
        -32602,
        helps,
    ),
    Bad(
        "new",
        "open",
        "subscriptions/listen",
        {"notifications": {"taskIds": []}},
        -32021,
        MISSING.__eq__,
        declared=False,
    ),
    Bad("old", "bounded", "resources/subscribe", {"uri": TASK}, -32002, says("unknown_task")),
    Bad("old", "open", "tools/call", {"name": "status", "arguments": {}, "task": {}}, -32601, helps),
    Bad("old", "open", "tools/call", {"name": "task_submit", "arguments": {}, "task": {}}, -32602, helps),
    Bad("new old", "open", "tasks/get", {"taskId": 7}, -32602, lambda data: data["faults"][0]["where"] == "taskId"),
    Bad("new old", "open", "resources/read", {}, -32602, lambda data: "uri" in data["faults"][0]["where"]),
]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


class Web:
    """A client over HTTP, in one era."""

    def __init__(self, daemon: Daemon, http: httpx2.AsyncClient, *, modern: bool, declared: bool, name: str) -> None:
        self.address = url(daemon)
        self.http = http
        self.modern = modern
        self.name = name
        self.capabilities: dict[str, Any] = {"extensions": {EXTENSION: {}}} if declared else {}
        self.session: dict[str, str] = {}

    async def greet(self) -> None:
        params = {**HELLO["params"], "clientInfo": {"name": self.name, "version": "1"}}
        begun = await self.http.post(self.address, json={**HELLO, "params": params})
        self.session = {"Mcp-Session-Id": begun.headers["mcp-session-id"]}

    async def post(self, method: str, params: dict[str, Any]) -> httpx2.Response:
        version = "2026-07-28" if self.modern else "2025-11-25"
        headers = {"Mcp-Protocol-Version": version, **self.session}
        if self.modern:
            headers["Mcp-Method"] = method
            name = params.get("name", params.get("uri"))
            headers |= {"Mcp-Name": name} if name else {}
            meta = {
                "io.modelcontextprotocol/protocolVersion": version,
                "io.modelcontextprotocol/clientInfo": {"name": self.name, "version": "1"},
                "io.modelcontextprotocol/clientCapabilities": self.capabilities,
            }
            params = {**params, "_meta": meta}
        message = {"jsonrpc": "2.0", "id": 7, "method": method, "params": params}
        return await self.http.post(self.address, json=message, headers=headers)

    async def ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Gives the answer, which may come as the one event of a stream."""
        answer = await self.post(method, params)
        if not answer.headers["content-type"].startswith("text/event-stream"):
            return answer.json()
        (found,) = [message for message in events(answer.text) if message.get("id") == 7]
        return found


def events(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data:").strip() for line in text.splitlines() if line.startswith("data:")]
    return [json.loads(line) for line in lines if line]


@asynccontextmanager
async def by_socket(daemon: Daemon, **how: Any) -> AsyncIterator[Ask]:
    async with talk(daemon, **how) as one:

        async def ask(method: str, params: dict[str, Any]) -> dict[str, Any]:
            return await one.answer(await one.send(method, **params))

        yield ask


@asynccontextmanager
async def by_http(daemon: Daemon, **how: Any) -> AsyncIterator[Ask]:
    async with httpx2.AsyncClient(headers=ACCEPTS) as http:
        web = Web(daemon, http, **how)
        if not web.modern:
            await web.greet()
        yield web.ask


@asynccontextmanager
async def served(home: Home) -> AsyncIterator[tuple[Daemon, str]]:
    """Gives a daemon, and the UUID of a task of an origin that none of the others is."""
    listen(home, body_bytes_max=100_000)
    home.file.write_text(f"{home.file.read_text()}{CONFIG}[socket]\nmessage_bytes_max = 100000\n")
    written = home.file.read_text()
    Work(home)
    home.file.write_text(written + home.file.read_text())
    async with home.daemon(limit_s=60) as daemon:
        async with talk(daemon, modern=False, name="theirs") as one:
            made = await one.submit()
        theirs = made["structuredContent"]["id"]
        for _ in range(2):  # It runs, and waits to be told to end: the journal stands still.
            await one_look(daemon, theirs)
        yield daemon, theirs


async def one_look(daemon: Daemon, task_id: str) -> None:
    with anyio.fail_after(10):
        while True:
            event = daemon.context.watch.event(task_id)
            row = await daemon.store.read(lambda reader: reader.one("brief_by_id", task_id))
            if row is not None and row[3] == "executing":
                daemon.context.watch.forget(task_id, event)
                return
            await event.wait()
            daemon.context.watch.forget(task_id, event)


async def last_seq(daemon: Daemon) -> int:
    row = await daemon.store.read(lambda reader: reader.one("last_seq"))
    assert row is not None
    return row[0]


@ON_ASYNCIO
@pytest.mark.anyio
@pytest.mark.parametrize("way", [by_socket, by_http])
async def test_each_wrong_request_has_its_error_with_what_helps_and_changes_nothing(home: Home, way: Any) -> None:
    async with served(home) as (daemon, theirs):
        before = await last_seq(daemon)
        for bad in TABLE:
            for era in bad.eras.split():
                how = {"modern": era == "new", "declared": bad.declared, "name": bad.who}
                async with way(daemon, **how) as ask:
                    said = await ask(bad.method, filled(bad.params, theirs))
                    error = said.get("error")
                    assert error is not None, (bad, said)
                    assert error["code"] == bad.code, (bad, error)
                    assert bad.data(error.get("data")), (bad, error)
                    if "{theirs}" in str(bad.params) and bad.who == "bounded":
                        like = (await ask(bad.method, filled(bad.params, NOBODY)))["error"]
                        assert json.dumps(error).replace(theirs, NOBODY) == json.dumps(like), bad
        assert await last_seq(daemon) == before


def filled(params: dict[str, Any], theirs: str) -> dict[str, Any]:
    return json.loads(json.dumps(params).replace("{theirs}", theirs))


@ON_ASYNCIO
@pytest.mark.anyio
@pytest.mark.parametrize("method", ["tools/list", "tasks/get"])
async def test_a_request_before_its_session_is_told_how_one_begins(home: Home, method: str) -> None:
    async with home.daemon() as daemon, await anyio.connect_unix(daemon.context.config.socket.path) as stream:
        error = await Talk(stream, modern=False).ask(method, taskId=NOBODY)
        assert error["code"] == -32602
        assert error["data"]["method"] == method
        assert "initialize" in error["data"]["do"]


@ON_ASYNCIO
@pytest.mark.anyio
async def test_a_message_that_is_too_large_is_told_so(home: Home) -> None:
    arguments = {"argv": ["x" * 200_000], "executor": "mine"}
    async with served(home) as (daemon, _):
        before = await last_seq(daemon)
        for modern in (True, False):
            how = {"modern": modern, "declared": True, "name": "open"}
            async with httpx2.AsyncClient(headers=ACCEPTS) as http:
                web = Web(daemon, http, **how)
                if not modern:
                    await web.greet()
                answer = await web.post("tools/call", {"name": "task_submit", "arguments": arguments})
                assert answer.status_code == 413
                data = answer.json()["error"]["data"]
                assert data["code"] == "body_too_large"
                assert "100000 bytes" in data["what"]
            async with await anyio.connect_unix(daemon.context.config.socket.path) as stream:
                one = Talk(stream, modern=modern)
                if not modern:
                    await one.greet()
                await one.send("tools/call", name="task_submit", arguments=arguments)
                said = await one.read()
                assert said["error"]["data"]["code"] == "message_too_large"
                assert (await one.ask("tools/call", name="status", arguments={}))["isError"] is False
        assert await last_seq(daemon) == before
