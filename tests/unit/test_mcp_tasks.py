"""MCP tasks in both eras, as raw messages to the socket of a daemon in this process."""

from pathlib import Path
from typing import Any

import anyio
import jsonschema
import pytest

from omnid.api.mcp_task_shapes import status_of, task_fields
from omnid.api.mcp_tools import TOOLS
from omnid.states import STATES
from tests.fakes.home import Home
from tests.fakes.mcp_peer import BRIEF
from tests.fakes.mcp_talk import EXTENSION, Talk, Work, talk

pytestmark = pytest.mark.anyio

MISSING = {"requiredCapabilities": {"extensions": {EXTENSION: {}}}}
NOBODY = "01931e3c-0000-7000-8000-00000000dead"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


async def settled(talk: Talk, task_id: str) -> dict[str, Any]:
    await talk.ask("tools/call", name="task_get", arguments={"task": task_id, "wait_s": 10})
    return await talk.ask("tasks/get", taskId=task_id)


@pytest.mark.parametrize("outcome", ["success", "rejected"])
async def test_a_submit_of_2026_is_a_task_that_outlives_its_session(home: Home, outcome: str) -> None:
    work = Work(home)
    work.outcome = outcome
    async with home.daemon() as daemon:
        async with talk(daemon, modern=True) as one:
            made = await one.submit()
            assert made["resultType"] == "task"
            assert made["status"] == "working"
            assert made["ttlMs"] is None
            assert {"taskId", "createdAt", "lastUpdatedAt", "pollIntervalMs", "statusMessage"} <= made.keys()
            assert {"task", "result", "content"}.isdisjoint(made)
            got = await one.ask("tasks/get", taskId=made["taskId"])
            assert (got["resultType"], got["status"]) == ("complete", "working")
            assert "result" not in got
        work.go.set()
        async with talk(daemon, modern=True, name="another") as other:
            ended = await settled(other, made["taskId"])
            # A tool's own failure is a completed task; `failed` is for JSON-RPC errors.
            assert ended["status"] == "completed"
            assert ended["result"]["isError"] is (outcome != "success")
            jsonschema.validate(ended["result"]["structuredContent"], TOOLS["task_submit"].output_schema())
            assert ended["result"]["structuredContent"]["attempts"][0]["output"] == "done"
            assert 7 * 86_400_000 <= ended["ttlMs"] < 8 * 86_400_000
            refused = await other.ask("tasks/cancel", taskId=made["taskId"])
            assert (refused["code"], refused["data"]["code"]) == (-32602, "other_origin")
        async with talk(daemon, modern=True) as one:
            for method in ("tasks/cancel", "tasks/update"):
                acked = await one.ask(method, taskId=made["taskId"].upper(), inputResponses={"x": {}})
                assert acked["resultType"] == "complete"
                assert acked.keys() <= {"resultType", "_meta"}


async def test_without_the_capability_there_are_no_tasks(home: Home) -> None:
    Work(home)
    async with home.daemon() as daemon, talk(daemon, modern=True, declared=False) as one:
        made = await one.submit()
        assert made["structuredContent"]["created"] is True
        for method in ("tasks/get", "tasks/cancel", "tasks/update"):
            refused = await one.ask(method, taskId=made["structuredContent"]["id"])
            assert (refused["code"], refused["data"]) == (-32021, MISSING)
        refused = await one.ask("subscriptions/listen", notifications={"taskIds": []})
        assert (refused["code"], refused["data"]) == (-32021, MISSING)


@pytest.mark.parametrize("modern", [True, False])
@pytest.mark.parametrize("task_id", [NOBODY, "t1", "me/t1", "", "\0"])
async def test_tasks_are_known_by_their_uuids_alone(home: Home, task_id: str, *, modern: bool) -> None:
    Work(home)
    async with home.daemon() as daemon, talk(daemon, modern=modern) as one:
        await one.submit()
        for method in ("tasks/get", "tasks/cancel", "tasks/update" if modern else "tasks/result"):
            refused = await one.ask(method, taskId=task_id)
            assert refused["code"] == -32602
            assert refused["data"]["code"] == "unknown_task"
            assert (await one.ask(method, taskId=7))["code"] == -32602


async def test_methods_of_the_other_era_are_not_there(home: Home) -> None:
    Work(home)
    async with home.daemon() as daemon:
        async with talk(daemon, modern=True) as one:
            made = await one.submit()
            for method in ("tasks/result", "tasks/list"):
                assert (await one.ask(method, taskId=made["taskId"]))["code"] == -32601
        async with talk(daemon, modern=False) as one:
            assert (await one.ask("tasks/update", taskId=made["taskId"]))["code"] == -32601
        async with await anyio.connect_unix(daemon.context.config.socket.path) as stream:
            old = Talk(stream, modern=False)
            assert "tasks" not in (await old.greet("2025-06-18"))["capabilities"]
            assert (await old.ask("tasks/get", taskId=made["taskId"]))["code"] == -32601


async def test_a_cancel_ends_the_work(home: Home) -> None:
    Work(home)
    async with home.daemon() as daemon, talk(daemon, modern=True) as one:
        made = await one.submit()
        acked = await one.ask("tasks/cancel", taskId=made["taskId"])
        assert acked["resultType"] == "complete"
        ended = await settled(one, made["taskId"])
        assert ended["status"] == "cancelled"
        assert "result" not in ended


async def test_only_the_origin_of_a_task_cancels_it(home: Home) -> None:
    Work(home)
    async with home.daemon() as daemon:
        async with talk(daemon, modern=True, name="one") as one:
            made = await one.submit()
        async with talk(daemon, modern=True, name="two") as two:
            refused = await two.ask("tasks/cancel", taskId=made["taskId"])
            assert (refused["code"], refused["data"]["code"]) == (-32602, "other_origin")
            assert (await two.ask("tasks/get", taskId=made["taskId"]))["status"] == "working"
        async with talk(daemon, modern=False, name="two") as two:
            assert (await two.ask("tasks/list"))["tasks"] == []


async def test_what_waits_for_a_person_is_answered_plainly(home: Home) -> None:
    Work(home)
    home.file.write_text(home.file.read_text().replace("allow", "# allow"))
    async with home.daemon() as daemon, talk(daemon, modern=True) as one:
        made = await one.submit()
        assert made["structuredContent"]["state"] == "waiting"


async def test_a_subscription_tells_every_change(home: Home) -> None:
    work = Work(home)
    async with home.daemon() as daemon, talk(daemon, modern=True) as one:
        made = await one.submit()
        listening = await one.send("subscriptions/listen", notifications={"taskIds": [made["taskId"], NOBODY]})
        meta = {"io.modelcontextprotocol/subscriptionId": listening}
        acked = await one.read()
        assert acked["method"] == "notifications/subscriptions/acknowledged"
        assert acked["params"] == {"notifications": {"taskIds": [made["taskId"]]}, "_meta": meta}
        said = await one.read()
        assert (said["method"], said["params"]["status"]) == ("notifications/tasks", "working")
        assert said["params"]["ttlMs"] is None
        work.go.set()
        while said["params"]["status"] == "working":
            said = await one.read()
            assert said["params"]["_meta"] == meta
        got = await one.ask("tasks/get", taskId=made["taskId"])
        keys = said["params"].keys() - {"_meta"}
        assert {key: said["params"][key] for key in keys} == {key: got[key] for key in keys}
        refused = await one.ask("subscriptions/listen", notifications={"taskIds": [7]})
        assert refused["code"] == -32602
        refused = await one.ask("subscriptions/listen", notifications={"taskIds": [str(i) for i in range(101)]})
        assert refused["code"] == -32602


async def test_the_tasks_of_2025(home: Home) -> None:
    work = Work(home)
    async with home.daemon() as daemon, await anyio.connect_unix(daemon.context.config.socket.path) as stream:
        one = Talk(stream, modern=False)
        capabilities = (await one.greet())["capabilities"]
        assert capabilities["tasks"] == {"list": {}, "cancel": {}, "requests": {"tools": {"call": {}}}}
        assert "extensions" not in capabilities
        tools = {tool["name"]: tool for tool in (await one.ask("tools/list"))["tools"]}
        assert tools["task_submit"]["execution"] == {"taskSupport": "optional"}
        assert "execution" not in tools["task_get"]
        assert "structuredContent" in await one.submit()
        answer = await one.submit(task={"ttl": 60_000})
        made = answer["task"]
        assert "io.modelcontextprotocol/model-immediate-response" in answer["_meta"]
        assert (made["status"], made["ttl"], "ttlMs" in made) == ("working", None, False)
        assert (await one.ask("tasks/get", taskId=made["taskId"]))["status"] == "working"
        assert (await one.ask("tools/call", name="status", arguments={}, task={}))["code"] == -32601
        refused = await one.ask("tools/call", name="task_submit", arguments={"argv": 7}, task={})
        assert refused["code"] == -32602
        waiting = await one.send("tasks/result", taskId=made["taskId"], _meta={"progressToken": 7})
        said = await one.read()
        assert (said["method"], said["params"]["status"]) == ("notifications/tasks/status", "working")
        work.go.set()
        result = (await one.answer(waiting))["result"]
        assert result["isError"] is False
        assert result["_meta"]["io.modelcontextprotocol/related-task"] == {"taskId": made["taskId"]}
        listed = (await one.ask("tasks/list"))["tasks"]
        assert listed[0]["taskId"] == made["taskId"]
        assert 7 * 86_400_000 <= listed[0]["ttl"] < 8 * 86_400_000
        assert (await one.ask("tasks/list", cursor="?"))["code"] == -32602
        assert (await one.ask("tasks/cancel", taskId=made["taskId"]))["code"] == -32602


@pytest.mark.parametrize("modern", [True, False])
def test_every_state_has_a_status(*, modern: bool) -> None:
    found = {state: status_of(state, modern=modern) for state in STATES}
    assert found.pop("failed") == ("completed" if modern else "failed")
    ends = {"completed", "cancelled"} if modern else {"completed", "cancelled", "input_required"}
    assert {state for state, status in found.items() if status != "working"} == ends


def test_the_time_to_live_counts_from_the_creation() -> None:
    brief = type(BRIEF)(**{**{n: getattr(BRIEF, n) for n in BRIEF.__struct_fields__}, "finished_at_ms": 61_000})
    fields = task_fields(brief, "It ran.", 5_000, modern=True)
    assert (fields["createdAt"], fields["lastUpdatedAt"]) == ("1970-01-01T00:00:01.000Z", "1970-01-01T00:01:01.000Z")
    assert fields["ttlMs"] == 65_000


@pytest.mark.parametrize("modern", [True, False])
async def test_a_client_gets_the_tools_that_it_asked_for(home: Home, *, modern: bool) -> None:
    work = Work(home)
    async with home.daemon() as daemon:
        async with talk(daemon, modern=modern) as one:
            made = await one.ask("tools/call", name="task_submit", arguments={"argv": ["x"], "executor": "mine"})
            task_id = made.get("taskId") or made["structuredContent"]["id"]
        for hello, tools in (
            ({"readonly": True}, ["task_get", "task_search", "status"]),
            ({"expose": ["status", "task_submit"]}, ["task_submit", "status"]),
            ({"expose": ["status", "task_submit"], "readonly": True}, ["status"]),
        ):
            async with await anyio.connect_unix(daemon.context.config.socket.path) as stream:
                limited = Talk(stream, modern=False, name="me")
                await limited.ask("omnid/hello", role="agent", origin="me", **hello)
                refused = await limited.ask("omnid/task.control", task=task_id, action="cancel")
                assert refused["data"]["code"] == "unknown_method", "it gets MCP alone"
                await limited.ask("omnid/hello", role="agent", origin="me")  # It can't take that back.
                limited.modern = modern
                if not modern:
                    await limited.greet()
                listed = (await limited.ask("tools/list"))["tools"]
                assert [tool["name"] for tool in listed] == tools
                control = {"task": task_id, "action": "cancel"}
                assert (await limited.ask("tools/call", name="task_control", arguments=control))["code"] == -32602
                assert (await limited.ask("tasks/cancel", taskId=task_id))["code"] == -32601
        async with await anyio.connect_unix(daemon.context.config.socket.path) as stream:
            refused = await Talk(stream, modern=False).ask("omnid/hello", role="agent", expose=["nothing"])
            assert "there is no tool nothing" in refused["message"]
    assert not work.go.is_set()
