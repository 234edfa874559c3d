"""Many who follow one task: it is read once for those who may see the same, and each is told only what it may see."""

import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from omnid.api.views import Views
from omnid.daemon import Daemon
from tests.fakes.home import Home
from tests.fakes.mcp_talk import EXTENSION, Talk, Work, talk
from tests.fakes.web import ON_ASYNCIO, bare, url

pytestmark = pytest.mark.anyio

LISTENERS = 5


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


async def told(client: Talk) -> dict[str, Any]:
    """Gives what a follower is told next of its task."""
    said = await client.read()
    assert said["method"] == "notifications/tasks"
    return said["params"]


async def follow(client: Talk, task_id: str) -> dict[str, Any]:
    """Subscribes to a task; gives what is told at once."""
    listening = await client.send("subscriptions/listen", notifications={"taskIds": [task_id]})
    assert (await client.read())["method"] == "notifications/subscriptions/acknowledged"
    first = await told(client)
    assert first["_meta"] == {"io.modelcontextprotocol/subscriptionId": listening}
    return first


async def close_gate(daemon: Daemon) -> None:
    """Keeps all tasks from starting, as a person does: no follower of a task is woken by it."""
    async with await anyio.connect_unix(daemon.context.config.socket.path) as stream:
        assert (await Talk(stream, modern=False).ask("omnid/gate.pause", executor="*"))["gates"]


async def submit(client: Talk, **arguments: Any) -> str:
    given = {"argv": ["x"], "executor": "mine", **arguments}
    return (await client.ask("tools/call", name="task_submit", arguments=given))["taskId"]


async def started(daemon: Daemon) -> None:
    """Waits until an attempt runs."""
    with anyio.fail_after(10):
        while not daemon.context.running:
            await anyio.lowlevel.checkpoint()


async def control(client: Talk, task_id: str, action: str) -> None:
    done = await client.ask("tools/call", name="task_control", arguments={"task": task_id, "action": action})
    assert not done.get("isError"), done


def reads_of(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes each look at a whole task."""
    reads: list[str] = []
    view = Views.view

    def noted(self: Views, reader: Any, caller: Any, params: Any, **how: Any) -> Any:
        reads.append(params.task)
        return view(self, reader, caller, params, **how)

    monkeypatch.setattr(Views, "view", noted)
    return reads


async def test_a_change_is_read_once_for_all_who_follow(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    Work(home)
    reads = reads_of(monkeypatch)
    async with home.daemon() as daemon, AsyncExitStack() as stack, talk(daemon, modern=True) as one:
        await close_gate(daemon)
        made = await submit(one)
        others = [await stack.enter_async_context(talk(daemon, modern=True, name=f"o{i}")) for i in range(LISTENERS)]
        for number, other in enumerate(others):
            assert (await follow(other, made.upper() if number else made))["status"] == "working"
        for action in ("pause", "resume"):
            reads.clear()
            await control(one, made, action)
            said = [await told(other) for other in others]
            assert len({json.dumps({**params, "_meta": None}) for params in said}) == 1
            assert reads == [made]


async def test_who_comes_later_is_told_how_it_stands_then(home: Home) -> None:
    work = Work(home)
    async with home.daemon() as daemon, talk(daemon, modern=True) as one, talk(daemon, modern=True) as two:
        await submit(one, lane="a")
        made = await submit(one, lane="a")
        await started(daemon)
        assert "me/t1" in (await follow(one, made))["statusMessage"]
        await close_gate(daemon)
        assert "paused" in (await follow(two, made))["statusMessage"]
        work.go.set()


async def test_followers_with_other_rights_are_told_other_things(home: Home) -> None:
    work = Work(home)
    home.file.write_text(f'{home.file.read_text()}[[origin]]\nname = "me"\nlabels = []\n')
    async with (
        home.daemon() as daemon,
        talk(daemon, modern=True) as me,
        talk(daemon, modern=True, name="other") as other,
    ):
        theirs = await submit(other, lane="one")
        made = await submit(me, lane="one")
        await started(daemon)
        first = [await follow(client, made) for client in (other, me)]
        for action in ("pause", "resume"):
            await control(me, made, action)
            last = [await told(client) for client in (other, me)]
        for theirs_said, mine_said in (first, last):
            assert "other/t1" in theirs_said["statusMessage"]
            assert "another task" in mine_said["statusMessage"]
            assert "other" not in mine_said["statusMessage"].replace("another task", "")
        listening = await me.send("subscriptions/listen", notifications={"taskIds": [theirs]})
        meta = {"io.modelcontextprotocol/subscriptionId": listening}
        assert (await me.read())["params"] == {"notifications": {}, "_meta": meta}
        work.go.set()


@ON_ASYNCIO
async def test_a_follower_over_http_is_told_the_same(home: Home) -> None:
    work = Work(home)
    home.file.write_text(f'{home.file.read_text()}[http]\nlisten = "127.0.0.1:0"\n')
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {"extensions": {EXTENSION: {}}},
    }
    headers = {"Mcp-Protocol-Version": "2026-07-28", "Mcp-Method": "subscriptions/listen"}
    async with bare(home, **headers) as (daemon, client), talk(daemon, modern=True) as one:
        made = await submit(one)
        await follow(one, made)
        asked = {"notifications": {"taskIds": [made]}, "_meta": meta}
        body = {"jsonrpc": "2.0", "id": 7, "method": "subscriptions/listen", "params": asked}
        async with client.stream("POST", url(daemon), json=body) as stream:
            async for line in stream.aiter_lines():
                if line.startswith("data: "):
                    said = json.loads(line[6:])
                    if said["params"].get("status") == "working":
                        work.go.set()
                    if said["params"].get("status") == "completed":
                        break
        assert said["params"]["_meta"] == {"io.modelcontextprotocol/subscriptionId": 7}
        beside: dict[str, Any] = {}
        while beside.get("status") != "completed":
            beside = await told(one)
        assert {**beside, "_meta": None} == {**said["params"], "_meta": None}
