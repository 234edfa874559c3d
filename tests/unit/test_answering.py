"""The answer to what a task asks: shown to people and agents, given by whoever may, all or none, once."""

from typing import Any

import pytest
from msgspec import structs

from omnid.flow import asking
from omnid.flow.answers import Announcer
from omnid.flow.caller import Caller
from omnid.flow.runner import JournalPorts
from omnid.model import Command, InputRequest, InputResponse, ReplyTo
from omnid.settings import Destination
from tests.fakes.calls import Calls, code
from tests.fakes.world import AGENT, PERSON, World

pytestmark = pytest.mark.anyio

FORM = {"type": "object", "properties": {"name": {"type": "string", "title": "Name"}}, "required": ["name"]}
NAME = InputRequest("elicitation/create", {"message": "Your\n name?", "requestedSchema": FORM})
SURE = InputRequest("elicitation/create", {"message": "Sure?"})
OTHER = Caller("agent", "codex")
ADA = {"name": "Ada"}


@pytest.fixture
def call(world: World) -> Calls:
    return Calls(world)


async def asks(world: World, caller: Caller = PERSON, **requests: InputRequest) -> Command:
    world.set("agents", allow=("command",))
    await world.add("deploy", caller=caller)
    (command,) = await world.claim()
    config = world.context.config
    await world.write(lambda tx: asking.record(tx, command.attempt_id, requests, config))
    return command


async def given(world: World, command: Command) -> dict[str, InputResponse | None]:
    found = await world.store.read(lambda reader: asking.questions(reader, command.attempt_id))
    return {one.asked.key: one.answer for one in found}


async def test_a_question_is_seen_wherever_one_looks(call: Calls, world: World) -> None:
    await asks(world, AGENT, name=NAME)
    view = await call("task.get", task="claude/t1")
    (question,) = view.questions
    assert (question.key, question.method, question.params) == ("q1", NAME.method, NAME.params)
    assert question.until_ms == question.asked_at_ms + 86_400_000
    (field,) = question.fields
    assert (field.name, field.kind, field.about, field.required, field.choices) == (
        "name",
        "string",
        "Name",
        True,
        None,
    )
    why = (await call("task.why", task="claude/t1")).text
    assert why == (
        'claude/t1 asks on command 0 s ago: "Your name?"; `omnictl answer claude/t1` answers it; otherwise the answer '
        "is `cancel`, in 24 h."
    )
    status = await call("status")
    assert status.needs_you_total == 1
    (need,) = status.needs_you
    assert (need.task, need.what, need.do) == ("claude/t1", "asks: Your name?", "omnictl answer claude/t1")
    assert (await call("away")).text.startswith("1 needs you")


async def test_a_question_that_may_be_of_one_of_several_tasks_is_told_of_each(call: Calls, world: World) -> None:
    await world.add("deploy")
    (command,) = await world.claim()
    ports = JournalPorts(world.context)
    ports.may_ask(command.attempt_id, may=True)
    said = "asks something without saying in which of its open calls, so nobody is asked yet"
    assert said in (await call("task.why", task="t1")).text
    assert said in (await call("task.get", task="t1")).why
    ports.may_ask(command.attempt_id, may=False)
    assert said not in (await call("task.why", task="t1")).text
    ports.may_ask(command.attempt_id, may=True)
    world.context.let_go(command.attempt_id)
    assert world.context.may_ask == set()


async def test_an_answer_lets_the_task_go_on_once(call: Calls, world: World) -> None:
    command = await asks(world, name=NAME, sure=SURE)
    assert await code(call("task.answer", task="t1", value="Ada")) == "no_question", "it asks two"
    done = await call("task.answer", task="t1", key="q1", value="Ada")
    assert done.task.state == "input_required"
    done = await call("task.answer", task="t1", action="decline")
    assert done.task.state == "executing"
    assert await given(world, command) == {"q1": InputResponse("accept", ADA), "q2": InputResponse("decline")}
    assert await code(call("task.answer", task="t1", value="Bob")) == "no_question"
    await world.finish(command, "success")
    assert await code(call("task.answer", task="t1", key="q1", value="Bob")) == "no_question"
    assert (await call("task.get", task="t1")).questions is None


async def test_several_answers_are_taken_all_or_none(call: Calls, world: World) -> None:
    command = await asks(world, name=NAME, sure=SURE)
    both = {"q1": InputResponse("accept", {}), "q2": InputResponse("accept")}
    assert await code(call("task.answer", task="t1", responses=both)) == "answer_unfit"
    assert await code(call("task.answer", task="t1", responses={**both, "q9": InputResponse("cancel")})) in (
        "answer_unfit",
        "no_question",
    )
    assert await given(world, command) == {"q1": None, "q2": None}
    await call("task.answer", task="t1", responses={**both, "q1": InputResponse("accept", ADA)})
    assert None not in (await given(world, command)).values()


async def test_a_repeat_of_a_session_is_answered_and_not_done(call: Calls, world: World) -> None:
    await asks(world, name=NAME)
    session = Caller(session="s", request_id="1")
    first = await call("task.answer", session, task="t1", value="Ada")
    assert await call("task.answer", session, task="t1", value="Ada") == first
    assert await code(call("task.answer", session, task="t1", value="Bob")) == "busy_key"


async def test_agents_answer_their_own_tasks_and_people_all(call: Calls, world: World) -> None:
    command = await asks(world, AGENT, name=NAME, sure=SURE)
    for caller in (OTHER, Caller("agent", "user")):
        assert await code(call("task.answer", caller, task="claude/t1", key="q1", value="x")) == "other_origin"
        assert await code(call("task.control", caller, task="claude/t1", action="answer", text="x")) == "other_origin"
        assert await code(call("task.control", caller, task="claude/t1", action="reply", text="x")) == "other_origin"
    assert await given(world, command) == {"q1": None, "q2": None}
    await call("task.control", AGENT, task="t1", action="answer", key="q2", response="decline")
    await call("task.control", AGENT, task="t1", action="answer", content=ADA)
    assert await given(world, command) == {"q1": InputResponse("accept", ADA), "q2": InputResponse("decline")}


async def test_what_a_person_approved_a_person_answers(call: Calls, world: World) -> None:
    await world.add("deploy", caller=AGENT)
    await world.control("claude/t1", "approve")
    (command,) = await world.claim()
    config = world.context.config
    await world.write(lambda tx: asking.record(tx, command.attempt_id, {"name": NAME}, config))
    assert await code(call("task.answer", AGENT, task="t1", value="x")) == "not_allowed"
    await call("task.answer", task="claude/t1", value="Ada")
    assert await given(world, command) == {"q1": InputResponse("accept", ADA)}


async def test_a_reply_to_what_asks_is_the_answer(call: Calls, world: World) -> None:
    command = await asks(world, name=NAME)
    await call("task.control", task="t1", action="reply", text="3 drop")
    assert await given(world, command) == {"q1": InputResponse("accept", {"name": "3 drop"})}
    # Later it is an answer to the task as before.
    await world.finish(command, "rejected")
    assert (await call("task.control", task="t1", action="reply", text="2")).task.state == "idle"


async def test_who_is_told_of_a_question_can_read_it(world: World) -> None:
    world.store.set_follow(Announcer(world.context))
    chat = (Destination(name="chat", kind="openclaw", target="@me"),)
    world.context.config = structs.replace(world.context.config, destination=chat)
    world.set("notify", to=("chat",))
    await world.add("deploy", reply_to=ReplyTo(channel="chat"))
    (command,) = await world.claim()
    config = world.context.config
    await world.write(lambda tx: asking.record(tx, command.attempt_id, {"n": NAME, "s": SURE}, config))
    rows: list[Any] = await world.rows("SELECT body FROM outbox ORDER BY ord")
    answer, notice = (row[0] for row in rows)
    assert "Your name?" in answer
    assert "Reply with the answer, or see: omnictl answer t1" in answer
    assert '"choices":[]' in answer
    assert '"question":"Your name?' in notice


async def test_an_agent_passes_on_what_a_person_says_of_its_task_that_asks_nothing(call: Calls, world: World) -> None:
    await world.add("deploy", caller=AGENT)
    # It is held against the code of the message, which there is none of: not refused for who passes it on.
    assert await code(call("task.control", AGENT, task="claude/t1", action="reply", text="1 K7F39M2XQ4")) == "bad_code"


async def test_two_answers_in_one_request_are_two(call: Calls, world: World) -> None:
    command = await asks(world, AGENT, name=NAME, sure=SURE)
    for part, content in (("q1", ADA), ("q2", {})):
        caller = structs.replace(AGENT, session="s", request_id=f"7/{part}")
        responses = {part: InputResponse("accept", content)}
        await call("task.answer", caller, task="claude/t1", responses=responses)
    assert all(one is not None for one in (await given(world, command)).values())
