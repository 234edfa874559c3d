"""Every tool on tasks in every state and of every outcome: what it answers fits the schema that it is listed with."""

from pathlib import Path
from typing import Any

import anyio
import jsonschema
import pytest

from omnid.daemon import Daemon
from omnid.model import InputRequest
from omnid.states import STATES
from tests.fakes.executor import Crash, InProcessExecutor, asks
from tests.fakes.home import Home
from tests.fakes.mcp_talk import Talk, talk

pytestmark = pytest.mark.anyio

OUTCOMES = ("success", "failure", "rejected", "lost", "parked", "unstarted", "crash", "hang", "ask")
QUESTION = InputRequest("elicitation/create", {"message": "Sure?", "requestedSchema": {"type": "object"}})
CONFIG = """
[agents]
allow = ["mine"]
[retry]
attempts_max = 1
[[executor]]
name = "mine"
kind = "command"
[[executor]]
name = "closed"
kind = "command"
"""
ACTIONS: tuple[dict[str, Any], ...] = (
    {"action": "priority", "priority": 1},
    {"action": "priority"},
    {"action": "pause"},
    {"action": "resume"},
    {"action": "reply", "text": "2"},
    {"action": "answer", "text": "x"},
    {"action": "answer", "response": "decline"},
    {"action": "retry"},
    {"action": "cancel"},
)
TEXT_CHARS_MAX = 700
"""The longest error that a model has to read."""


async def work(argv: tuple[str, ...]) -> Any:
    match argv[0]:
        case "hang":
            await anyio.sleep_forever()
        case "ask":
            await asks.get()({"sure": QUESTION})
            return "success", b""
        case "crash":
            raise Crash("it broke")
    return argv[0], b"said \xff" + b"x" * 40_000


class Tools:
    """The tools as a client gets them; each answer is held against what was listed."""

    def __init__(self, client: Talk, listed: list[dict[str, Any]]) -> None:
        self._client = client
        self._schemas = {tool["name"]: jsonschema.Draft202012Validator(tool["outputSchema"]) for tool in listed}
        self.fits, self.errors = 0, 0

    async def __call__(self, name: str, **arguments: Any) -> dict[str, Any]:
        answer = await self._client.ask("tools/call", name=name, arguments=arguments)
        if answer["isError"]:
            self.errors += 1
            assert "structuredContent" not in answer
            (said,) = answer["content"]
            assert 20 < len(said["text"]) < TEXT_CHARS_MAX, said
            return {}
        self.fits += 1
        self._schemas[name].validate(answer["structuredContent"])
        return answer["structuredContent"]


async def states(call: Tools) -> dict[str, str]:
    found, cursor = {}, None
    while page := await call("task_search", limit=5, **({"cursor": cursor} if cursor else {})):
        found |= {task["name"]: task["state"] for task in page["tasks"]}
        cursor = page.get("next")
        if cursor is None:
            break
    return found


async def schedules(daemon: Daemon, call: Tools) -> None:
    """Submits schedules, which are no tasks but make some, and runs one."""
    asked: dict[str, Any] = {
        "argv": ["success"],
        "executor": "mine",
        "schedule": {"name": "nightly", "cron": "0 3 * * *"},
    }
    made = await call("task_submit", **asked)
    assert (made["state"], made["name"], made["created"]) == ("scheduled", "me/nightly", True)
    assert await call("task_submit", **asked) == {**made, "created": False}
    for refused in ({"argv": ["other"]}, {"schedule": {"name": "x", "cron": "eaten"}}, {"after": ["t1"]}, {"lane": ""}):
        assert not await call("task_submit", **{**asked, **refused}), refused
    assert not await call("task_get", task=made["name"]), "a schedule is no task"
    assert not await call("task_control", task=made["name"], action="cancel")
    async with await anyio.connect_unix(daemon.context.config.socket.path) as stream:
        run = await Talk(stream, modern=False).ask("omnid/schedule.run", name=made["name"])
    view = await call("task_get", task=run["id"], wait_s=10)
    assert view["task"]["state"] == "completed"
    closed = {"argv": ["x"], "executor": "closed", "schedule": {"name": "closed", "every_s": 1}}
    assert (await call("task_submit", **closed))["state"] == "scheduled"
    assert await call("status")


@pytest.mark.parametrize("modern", [True, False])
async def test_every_tool_in_every_outcome(tmp_path: Path, *, modern: bool) -> None:
    home = Home(tmp_path)
    home.executors = {name: InProcessExecutor(name, work) for name in ("mine", "closed")}
    home.file.write_text(CONFIG)
    async with home.daemon() as daemon, talk(daemon, modern=modern, declared=False) as client:
        call = Tools(client, (await client.ask("tools/list"))["tools"])
        for outcome in OUTCOMES:
            made = await call("task_submit", argv=[outcome], executor="mine", key=outcome, labels=[outcome])
            assert await call("task_submit", argv=[outcome], executor="mine", key=outcome, labels=[outcome])
            assert not await call("task_submit", argv=["other"], executor="mine", key=outcome), "another body"
            goes_on = outcome in ("lost", "parked", "unstarted", "hang")
            view = await call("task_get", task=made["id"], wait_s=0 if goes_on else 10)
            assert view["task"]["name"] == made["name"]
        # These wait: for a person, for another task, for a time, for their lane.
        await call("task_submit", argv=["x"], executor="closed")
        await call("task_submit", argv=["x"], executor="mine", after=["t1", "t8"])
        await call("task_submit", argv=["x"], executor="mine", not_before_ms=4_000_000_000_000, cost_max_usd=1.0)
        await call("task_submit", argv=["hang"], executor="mine", lane="l")
        await call("task_submit", argv=["hang"], executor="mine", lane="l", cwd="/", only="00:00-23:59")
        for refused in ({}, {"argv": []}, {"argv": ["x"], "executor": "nobody"}, {"argv": ["x"], "after": ["t99"]}):
            assert not await call("task_submit", **refused)
        met = await states(call)
        # No runner on another host is there, and a cancel comes below.
        assert set(STATES) - set(met.values()) == {"dispatching", "cancelled"}
        for name in met:
            for action in ACTIONS:
                await call("task_control", task=name, **action)
            await call("task_get", task=name)
            await call("status")
        ended = await call("task_get", task="t8", wait_s=10)
        assert ended["task"]["state"] == "cancelled"
        for filters in ({"states": ["failed"]}, {"text": "x", "labels": ["lost"]}, {"inbox": True}, {"limit": 1}):
            await call("task_search", **filters)
        for filters in ({"states": ["eaten"]}, {"cursor": "x"}, {"inbox": True, "cursor": "x"}):
            assert not await call("task_search", **filters)
        for tool in ("task_get", "task_control"):
            assert not await call(tool, task="t99", **({"action": "cancel"} if tool == "task_control" else {}))
        await schedules(daemon, call)
        assert call.fits > 100
        assert call.errors > 30


@pytest.mark.parametrize("modern", [True, False])
async def test_what_a_task_came_to_fits_the_tool_that_made_it(tmp_path: Path, *, modern: bool) -> None:
    home = Home(tmp_path)
    home.executors = {"mine": InProcessExecutor("mine", work)}
    home.file.write_text(CONFIG.replace('name = "closed"', 'name = "mine2"'))
    async with home.daemon() as daemon, talk(daemon, modern=modern, declared=True) as client:
        listed = {tool["name"]: tool for tool in (await client.ask("tools/list"))["tools"]}
        schema = jsonschema.Draft202012Validator(listed["task_submit"]["outputSchema"])
        for outcome in ("success", "failure", "rejected", "crash"):
            arguments = {"argv": [outcome], "executor": "mine"}
            more = {} if modern else {"task": {}}
            made = await client.ask("tools/call", name="task_submit", arguments=arguments, **more)
            task_id = made["taskId"] if modern else made["task"]["taskId"]
            await client.ask("tools/call", name="task_get", arguments={"task": task_id, "wait_s": 10})
            came = (
                (await client.ask("tasks/get", taskId=task_id))["result"]
                if modern
                else await client.ask("tasks/result", taskId=task_id)
            )
            schema.validate(came["structuredContent"])
            assert came["isError"] is (outcome != "success")
