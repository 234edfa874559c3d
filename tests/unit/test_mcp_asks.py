"""What tasks ask, put to users of MCP clients in both eras: by tasks/update, by elicitation, in rounds of a call."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import jsonschema
import msgspec
import pytest

from omnid.api.mcp_tools import TOOLS
from omnid.model import InputRequest
from tests.fakes.executor import InProcessExecutor, asks
from tests.fakes.home import Home
from tests.fakes.mcp_talk import Talk

pytestmark = pytest.mark.anyio

FORM = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
NAME = {"mode": "form", "message": "Your name?", "requestedSchema": FORM}
OTHER = {**NAME, "message": "Another one?"}
PAGE = {"mode": "url", "message": "Log in", "url": "https://example.org", "elicitationId": "e1"}
ADA = {"name": "Ada"}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path)
    made.executors["mine"] = InProcessExecutor("mine", curious)
    made.file.write_text('[agents]\nallow = ["mine"]\n[[executor]]\nname = "mine"\nkind = "command"\n')
    return made


async def curious(argv: tuple[str, ...]) -> Any:
    """Asks for what its arguments name, and prints the answers."""
    known = {"name": NAME, "other": OTHER, "page": PAGE}
    got = await asks.get()({one: InputRequest("elicitation/create", known[one]) for one in argv})
    return "success", msgspec.json.encode(got, order="sorted")


@asynccontextmanager
async def client(daemon: Any, *, modern: bool, elicitation: Any = None, name: str = "me") -> AsyncIterator[Talk]:
    async with await anyio.connect_unix(daemon.context.config.socket.path) as stream:
        one = Talk(stream, modern=modern, name=name)
        if elicitation is not None:
            one.capabilities["elicitation"] = elicitation
        if not modern:
            await one.greet()
        yield one


async def asked(one: Talk, *argv: str, **more: Any) -> str:
    """Submits a task and gives its id when it asks."""
    arguments = {"argv": argv, "executor": "mine"}
    made = await one.ask("tools/call", name="task_submit", arguments=arguments, **more)
    task_id = made.get("taskId") or made["structuredContent"]["id"]
    one.capabilities, declared = {**one.capabilities, "elicitation": None}, one.capabilities
    while (await got(one, task_id))["task"]["state"] != "input_required":
        pass
    one.capabilities = declared
    return task_id


async def got(one: Talk, task_id: str, **more: Any) -> Any:
    answer = await one.ask("tools/call", name="task_get", arguments={"task": task_id, **more})
    jsonschema.validate(answer["structuredContent"], TOOLS["task_get"].output_schema())
    return answer["structuredContent"]


def output(view: Any) -> Any:
    return msgspec.json.decode(view["attempts"][-1]["output"])


async def test_the_task_of_2026_carries_what_it_asks_and_takes_the_answers(home: Home) -> None:
    async with home.daemon() as daemon, client(daemon, modern=True, elicitation={"form": {}}) as one:
        task_id = await asked(one, "name", "other")
        task = await one.ask("tasks/get", taskId=task_id)
        assert task["status"] == "input_required"
        question = {"method": "elicitation/create", "params": NAME}
        assert task["inputRequests"] == {"q1": question, "q2": {**question, "params": OTHER}}
        answer = {"action": "accept", "content": ADA}
        for responses, detail in (
            ({"q1": answer, "q2": {"action": "accept", "content": {}}}, "'name' is a required property"),
            ({"q1": answer, "q2": {"action": "eat"}}, "Invalid enum value"),
            ({"q1": {}}, "missing required field"),
        ):
            refused = await one.ask("tasks/update", taskId=task_id, inputResponses=responses)
            assert refused["code"] == -32602
            assert detail in refused["message"]
            assert refused["data"]["do"]
        assert (await one.ask("tasks/get", taskId=task_id))["inputRequests"].keys() == {"q1", "q2"}
        acked = await one.ask("tasks/update", taskId=task_id, inputResponses={"q2": answer, "q9": {}})
        assert (acked["resultType"], "status" in acked) == ("complete", False)
        assert (await one.ask("tasks/get", taskId=task_id))["inputRequests"] == {"q1": question}
        await one.ask("tasks/update", taskId=task_id, inputResponses={"q1": {"action": "decline"}, "q2": answer})
        view = await got(one, task_id, wait_s=10)
        assert output(view) == {"name": {"action": "decline"}, "other": answer}
        ended = await one.ask("tasks/get", taskId=task_id)
        assert (ended["status"], "inputRequests" in ended) == ("completed", False)
        # It is over, so nothing is open, and the answer is ignored.
        assert (await one.ask("tasks/update", taskId=task_id, inputResponses={"q1": answer}))["resultType"]


async def test_only_who_may_answer_is_asked(home: Home) -> None:
    async with home.daemon() as daemon, client(daemon, modern=True, elicitation={}) as one:
        task_id = await asked(one, "name", "page")
        shown = await one.ask("tasks/get", taskId=task_id)
        assert shown["inputRequests"].keys() == {"q1"}, "it declares no pages"
        async with client(daemon, modern=True, elicitation={"url": {}}) as pages:
            assert (await pages.ask("tasks/get", taskId=task_id))["inputRequests"].keys() == {"q2"}
        async with client(daemon, modern=True) as dumb:
            shown = await dumb.ask("tasks/get", taskId=task_id)
            assert (shown["status"], "inputRequests" in shown) == ("working", False)
            assert "omnictl answer" in shown["statusMessage"]
        async with client(daemon, modern=True, elicitation={}, name="codex") as other:
            assert "inputRequests" not in await other.ask("tasks/get", taskId=task_id)
            refused = await other.ask("tasks/update", taskId=task_id, inputResponses={"q1": {"action": "decline"}})
            assert (refused["code"], refused["data"]["code"]) == (-32602, "other_origin")
        async with await anyio.connect_unix(daemon.context.config.socket.path) as stream:
            limited = Talk(stream, modern=False)
            await limited.ask("omnid/hello", role="agent", origin="me", readonly=True)
            limited.modern, limited.capabilities = True, one.capabilities
            assert "inputRequests" not in await limited.ask("tasks/get", taskId=task_id)
            assert (await limited.ask("tasks/update", taskId=task_id, inputResponses={}))["code"] == -32601


async def test_who_approved_a_task_answers_it(home: Home) -> None:
    home.file.write_text(home.file.read_text().replace("allow", "# allow"))
    async with home.daemon() as daemon, client(daemon, modern=True, elicitation={}) as one:
        arguments = {"argv": ["name"], "executor": "mine"}
        made = (await one.ask("tools/call", name="task_submit", arguments=arguments))["structuredContent"]
        async with await anyio.connect_unix(daemon.context.config.socket.path) as stream:
            person = Talk(stream, modern=False)
            await person.ask("omnid/task.control", task=made["id"], action="approve")
            view = await got(one, made["id"], wait_s=10)
            assert [question["key"] for question in view["questions"]] == ["q1"]
            assert "inputRequests" not in await one.ask("tasks/get", taskId=made["id"])
            answers = {"q1": {"action": "decline"}}
            refused = await one.ask("tasks/update", taskId=made["id"], inputResponses=answers)
            assert refused["data"]["code"] == "not_allowed"
            await person.ask("omnid/task.answer", task=made["id"], action="decline")
        assert (await got(one, made["id"], wait_s=10))["task"]["state"] == "completed"


async def test_a_wait_of_2026_is_answered_with_the_question_and_comes_again(home: Home) -> None:
    async with home.daemon() as daemon, client(daemon, modern=True, elicitation={"form": {}}) as one:
        task_id = await asked(one, "name", "other")
        call = {"name": "task_get", "arguments": {"task": task_id, "wait_s": 10}}
        first = await one.ask("tools/call", **call)
        assert (first["resultType"], first["inputRequests"].keys()) == ("input_required", {"q1", "q2"})
        unfit = {"q1": {"action": "accept", "content": {"name": 7}}}
        refused = await one.ask("tools/call", **call, inputResponses=unfit, requestState=first["requestState"])
        assert refused["isError"]
        assert "name: 7 is not of type 'string'" in refused["content"][0]["text"]
        # Who decides nothing isn't asked again in the same call; others may answer.
        given = {"q1": {"action": "accept", "content": ADA}, "q2": {"action": "cancel"}}
        second = await one.ask("tools/call", **call, inputResponses=given, requestState=first["requestState"])
        view = second["structuredContent"]
        assert (view["task"]["state"], [one["key"] for one in view["questions"]]) == ("input_required", ["q2"])
        third = await one.ask("tools/call", **call)
        assert third["inputRequests"].keys() == {"q2"}
        given = {"q2": {"action": "decline"}}
        ended = await one.ask("tools/call", **call, inputResponses=given, requestState=third["requestState"])
        assert output(ended["structuredContent"])["other"] == {"action": "decline"}


@pytest.mark.parametrize("modern", [True, False])
async def test_a_wait_ends_when_the_client_can_not_ask(home: Home, *, modern: bool) -> None:
    async with home.daemon() as daemon, client(daemon, modern=modern) as one:
        task_id = await asked(one, "name")
        view = await got(one, task_id, wait_s=50)
        assert (view["task"]["state"], view["timed_out"]) == ("input_required", False)
        assert view["questions"][0]["params"] == NAME
        control = {"task": task_id, "action": "answer", "content": ADA}
        done = await one.ask("tools/call", name="task_control", arguments=control)
        assert done["structuredContent"]["task"]["state"] == "executing"
        assert output(await got(one, task_id, wait_s=10))["name"]["content"] == ADA


@pytest.mark.parametrize("method", ["tasks/result", "task_get"])
async def test_the_client_of_2025_is_asked_while_it_waits(home: Home, method: str) -> None:
    async with home.daemon() as daemon, client(daemon, modern=False, elicitation={}) as one:
        task_id = await asked(one, "name", "other")
        arguments = {"task": task_id, "wait_s": 10}
        waits: dict[str, Any] = {"name": "task_get", "arguments": arguments} if method == "task_get" else {}
        if method == "tasks/result":
            assert (await one.ask("tasks/get", taskId=task_id))["status"] == "input_required"
            waits = {"taskId": task_id}
        waiting = await one.send("tools/call" if method == "task_get" else method, **waits)
        questions: dict[str, Any] = {}
        while len(questions) < 2:
            message = await one.read()
            if message["method"] == "elicitation/create":
                questions[message["params"]["message"]] = message
        assert [questions[asked["message"]]["params"] for asked in (NAME, OTHER)] == [NAME, OTHER]
        await one.reply(questions[NAME["message"]], action="accept", content=ADA)
        # The other one is answered elsewhere, so the client's user needn't any more.
        async with await anyio.connect_unix(daemon.context.config.socket.path) as stream:
            person = Talk(stream, modern=False)
            await person.ask("omnid/task.answer", task=task_id, key="q2", action="decline")
        ended = (await one.answer(waiting))["result"]["structuredContent"]
        assert output(ended) == {"name": {"action": "accept", "content": ADA}, "other": {"action": "decline"}}
        cancelled = [message for message in one.heard if message["method"] == "notifications/cancelled"]
        assert [message["params"]["requestId"] for message in cancelled] == [questions[OTHER["message"]]["id"]]


async def test_who_dismisses_a_question_or_answers_nonsense_leaves_it_open(home: Home) -> None:
    async with home.daemon() as daemon, client(daemon, modern=False, elicitation={}) as one:
        task_id = await asked(one, "name", "other")
        waiting = await one.send("tools/call", name="task_get", arguments={"task": task_id, "wait_s": 10})
        first, second = await one.read(), await one.read()
        await one.reply(first, action="cancel")
        await one.reply(second, action="accept", content={"name": 7})
        view = (await one.answer(waiting))["result"]["structuredContent"]
        assert [question["key"] for question in view["questions"]] == ["q1", "q2"]
        assert view["timed_out"] is False
