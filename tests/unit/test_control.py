"""What people and agents do with tasks: what each order changes, what it refuses, and who may give it."""

from typing import Any

import anyio
import pytest

from omnid.errors import Rejected
from omnid.flow.caller import Caller
from omnid.flow.control import AGENT_ACTIONS, Cancelling
from omnid.flow.dependents import CASCADE_MAX
from omnid.model import Submit, Task
from tests.fakes.clock import FakeClock
from tests.fakes.world import AGENT, World

pytestmark = pytest.mark.anyio

PERSON_ACTIONS = ("complete", "assign", "delete", "approve", "deny", "done", "again", "fail")


async def in_state(world: World, state: str) -> Task:
    """Makes one task and brings it into a state."""
    task = await world.add("x", attempts_max=1)
    if state == "waiting":
        await world.control(task.id, "pause")
    elif state == "cancelled":
        await world.control(task.id, "cancel")
    elif state != "idle":
        (command,) = await world.claim()
        ends = {"uncertain": "lost", "completed": "success", "failed": "failure"}
        if state in ends:
            await world.finish(command, ends[state])
    return await world.task(task.id)


async def refused(world: World, ref: str, action: str, caller: Caller | None = None, **fields: Any) -> Rejected:
    with pytest.raises(Rejected) as caught:
        await world.control(ref, action, **({"caller": caller} if caller else {}), **fields)
    return caught.value


TAKES = {
    "idle": {"cancel", "pause", "complete", "assign", "priority", "delete"},
    "waiting": {"cancel", "pause", "resume", "complete", "assign", "priority", "delete"},
    "executing": {"cancel", "priority"},
    "uncertain": {"cancel", "complete", "priority", "delete", "done", "again", "fail"},
    "completed": {"delete"},
    "failed": {"retry", "complete", "delete"},
    "cancelled": {"retry", "complete", "delete"},
}


@pytest.mark.parametrize("state", TAKES)
@pytest.mark.parametrize("action", sorted((AGENT_ACTIONS | set(PERSON_ACTIONS)) - {"reply"}))
async def test_each_state_takes_its_orders_and_refuses_the_rest(world: World, state: str, action: str) -> None:
    task = await in_state(world, state)
    fields = {"executor": "safe"} if action == "assign" else {"priority": 1}
    if action in TAKES[state]:
        effect = await world.control(task.id, action, **fields)
        assert effect.task_id == task.id
        assert task.id in effect.touched
        return
    error = await refused(world, task.id, action, **fields)
    assert error.code == "not_in_state"
    assert error.what.startswith(f"t1 is {state}")
    assert await world.task(task.id) == task


@pytest.mark.parametrize("action", PERSON_ACTIONS)
async def test_what_is_a_persons_to_decide_is_refused_to_agents(world: World, action: str) -> None:
    await world.add("x", caller=AGENT)
    assert (await refused(world, "t1", action, caller=AGENT)).code == "not_allowed"


@pytest.mark.parametrize("action", sorted(AGENT_ACTIONS))
async def test_an_agent_leaves_the_tasks_of_others_alone(world: World, action: str) -> None:
    await world.add("x")
    assert (await refused(world, "user/t1", action, caller=AGENT, priority=10)).code == "other_origin"


async def test_a_person_completes_a_task_by_hand(world: World) -> None:
    task = await world.add("x")
    after = await world.add("y", after=("t1",))
    await world.control("t1", "complete")
    assert (await world.task(task.id)).state == "completed"
    assert (await world.task(after.id)).state == "idle"


async def test_what_a_person_says_of_an_uncertain_task_is_kept(world: World) -> None:
    task = await in_state(world, "uncertain")
    await world.control("t1", "done", output="the mail was sent")
    assert (await world.task(task.id)).problem is None
    (body,) = await world.rows("SELECT body FROM note WHERE kind = 'finished_by_hand'")
    assert "the mail was sent" in body[0]


async def test_an_uncertain_task_runs_again_or_fails(world: World) -> None:
    task = await in_state(world, "uncertain")
    await world.control("t1", "again")
    (command,) = await world.claim()
    assert command.number == 2
    await world.finish(command, "lost")
    await world.control("t1", "fail")
    assert (await world.task(task.id)).state == "failed"


async def test_a_paused_task_waits_until_it_is_resumed(world: World) -> None:
    task = await world.add("x")
    await world.control("t1", "pause")
    assert await world.claim() == []
    assert ((await world.task(task.id)).state, (await world.task(task.id)).reason) == ("waiting", "paused")
    await world.control("t1", "resume")
    assert len(await world.claim()) == 1


async def test_what_held_before_a_pause_holds_after_it(world: World, clock: FakeClock) -> None:
    task = await world.add("x", not_before_ms=clock.now_ms + 10_000)
    await world.control("t1", "pause")
    clock.now_ms += 5_000
    await world.control("t1", "resume")
    task = await world.task(task.id)
    assert (task.reason, task.wake_at_ms) == ("not_before", clock.now_ms + 5_000)
    await world.control("t1", "pause")
    clock.now_ms += 60_000
    await world.wake()
    assert (await world.task(task.id)).reason == "paused"
    await world.control("t1", "resume")
    assert (await world.task(task.id)).state == "idle"


async def test_a_retry_starts_from_nothing(world: World, clock: FakeClock) -> None:
    task = await world.add("x", attempts_max=2, backoff_s=0, deadline_ms=clock.now_ms + 1_000)
    for _ in range(2):
        (command,) = await world.claim()
        await world.finish(command, "failure")
    clock.now_ms += 2_000
    await world.control("t1", "retry")
    task = await world.task(task.id)
    assert (task.state, task.failures, task.problem, task.finished_at_ms, task.deadline_ms) == (
        "idle",
        0,
        None,
        None,
        None,
    )
    (command,) = await world.claim()
    assert command.number == 3
    await world.finish(command, "failure")
    assert (await world.task(task.id)).state == "idle"


async def test_a_retry_of_a_cancelled_task_forgets_the_cancel(world: World) -> None:
    task = await in_state(world, "executing")
    await world.control("t1", "cancel")
    await world.finish((await world_command(world, task)), "cancelled")
    await world.control("t1", "retry")
    (command,) = await world.claim()
    await world.finish(command, "failure")
    assert (await world.task(task.id)).state == "failed"


async def world_command(world: World, task: Task) -> Any:
    from omnid.flow.dispatcher import command_of

    (row,) = await world.rows("SELECT id FROM attempt WHERE task_id = ?", task.id)
    return command_of(await world.task(task.id), row[0], world.context.config, idempotent=False)


async def test_a_retry_ends_a_backoff(world: World) -> None:
    await world.add("x", backoff_s=3600)
    (command,) = await world.claim()
    await world.finish(command, "failure")
    assert await world.claim() == []
    await world.control("t1", "retry")
    (command,) = await world.claim()
    await world.finish(command, "failure")
    assert (await world.task(command.task_id)).failures == 2, "it is tried sooner, not forgiven"


async def test_a_retry_waits_again_for_what_comes_before(world: World) -> None:
    await world.add("x", attempts_max=1)
    after = await world.add("y", after=("t1",))
    (command,) = await world.claim()
    await world.finish(command, "failure")
    error = await refused(world, "t2", "retry")
    assert error.code == "dependency_failed"
    await world.control("t1", "retry")
    await world.control("t2", "retry")
    assert (await world.task(after.id)).reason == "dependency"
    (command,) = await world.claim()
    await world.finish(command, "success")
    (command,) = await world.claim()
    assert command.task_id == after.id


async def test_a_task_can_be_given_to_another_executor_or_person(world: World) -> None:
    task = await world.add("x")
    await world.control("t1", "assign", executor="safe", assignee="eve")
    assert (await world.task(task.id)).assignee == "eve"
    (command,) = await world.claim()
    assert command.executor == "safe"
    await world.control("t1", "assign", assignee="adam")
    assert (await refused(world, "t1", "assign", executor="command")).code == "not_in_state"


@pytest.mark.parametrize(
    ("code", "action", "fields"),
    [
        ("bad_request", "assign", {}),
        ("bad_request", "priority", {}),
        ("unknown_executor", "assign", {"executor": "nobody"}),
    ],
)
async def test_orders_that_say_too_little_or_nonsense(
    world: World, code: str, action: str, fields: dict[str, Any]
) -> None:
    task = await world.add("x")
    assert (await refused(world, "t1", action, **fields)).code == code
    assert await world.task(task.id) == task


async def test_a_deleted_task_leaves_an_entry_in_the_log_and_nothing_else(world: World) -> None:
    await world.add("x", "y" * 20_000, labels=("a",), attempts_max=1)
    (command,) = await world.claim()
    await world.finish(command, "failure", output="z" * 20_000)
    effect = await world.control("t1", "delete")
    assert effect.gone_attempts == (command.attempt_id,)
    for table in ("task", "attempt", "label", "blob", "note"):
        assert await world.rows(f"SELECT count(*) FROM {table}") == [(0,)], table
    assert (await world.rows("SELECT kind FROM change WHERE id = ? ORDER BY seq DESC LIMIT 1", command.task_id)) == [
        ("delete",)
    ]
    assert (await refused(world, "t1", "cancel")).code == "unknown_task"


async def test_a_value_that_two_tasks_share_stays_with_the_other(world: World) -> None:
    first = await world.add("x", "y" * 20_000)
    second = await world.add("x", "y" * 20_000)
    assert await world.rows("SELECT count(*) FROM blob") == [(1,)]
    await world.control(first.id, "delete")
    assert (await world.task(second.id)).work.argv == ("x", "y" * 20_000)


async def test_those_after_a_deleted_task_fail(world: World) -> None:
    await world.add("x")
    after = await world.add("y", after=("t1",))
    effect = await world.control("t1", "delete")
    assert after.id in effect.touched
    assert (await world.task(after.id)).state == "failed"


async def test_a_task_that_too_many_wait_for_is_deleted_once_they_are_told(world: World) -> None:
    await world.add("x")
    await world.submit(*[Submit(argv=("y",), after=("t1",))] * (CASCADE_MAX + 10))
    assert (await refused(world, "t1", "delete")).code == "not_in_state"
    await world.control("t1", "cancel")
    assert (await refused(world, "t1", "delete")).code == "not_in_state"
    await world.wake()
    await world.control("t1", "delete")
    assert world.store.tally["failed"] == CASCADE_MAX + 10


# Approval.


async def test_what_an_agent_sends_waits_for_a_person_unless_the_executor_is_open_to_it(world: World) -> None:
    world.set("agents", allow=("safe",))
    asked = await world.add("rm", "x", caller=AGENT)
    assert (asked.state, asked.reason, asked.approval) == ("waiting", "approval", "needed")
    assert (await world.add("ls", executor="safe", caller=AGENT)).state == "idle"
    assert (await world.add("rm", "x")).state == "idle", "a person needs no approval"
    await world.control("claude/t1", "approve")
    assert ((await world.task(asked.id)).approval or "").startswith("granted:")


async def test_a_denied_task_fails_with_those_after_it(world: World) -> None:
    asked = await world.add("rm", "x", caller=AGENT)
    after = await world.add("y", after=("claude/t1",))
    await world.control("claude/t1", "deny")
    asked = await world.task(asked.id)
    assert (asked.state, asked.approval, asked.problem and asked.problem.code) == ("failed", "denied", "not_approved")
    assert asked.problem is not None
    assert "rm x" in asked.problem.why
    assert (await world.task(after.id)).state == "failed"


async def test_a_denied_prompt_says_what_it_asked(world: World) -> None:
    executor: Any = world.context.executors["safe"]
    executor.takes_prompts, executor.accepts = True, lambda _: None
    world.context.take_executors(world.context.executors)
    (asked,) = await world.submit(Submit(prompt="drop all tables", executor="safe"), caller=AGENT)
    await world.control("claude/t1", "deny")
    problem = (await world.task(asked.id)).problem
    assert problem is not None
    assert "drop all tables" in problem.why


async def test_an_approval_for_good_covers_exactly_the_same_work(world: World) -> None:
    fields: dict[str, Any] = {"cwd": "/a", "env": ("X",), "check": ("true",)}
    await world.add("rm", "x", caller=AGENT, **fields)
    await world.control("claude/t1", "approve", always=True)
    assert (await world.add("rm", "x", caller=AGENT, **fields)).state == "idle"
    for change in ({"cwd": "/b"}, {"env": ("Y",)}, {"check": ("false",)}, {"stdin": "z"}, {"executor": "safe"}):
        assert (await world.add("rm", "x", caller=AGENT, **{**fields, **change})).state == "waiting", change
    assert (await world.add("rm", "x", "y", caller=AGENT, **fields)).state == "waiting"
    other = Caller("agent", "another")
    assert (await world.add("rm", "x", caller=other, **fields)).state == "waiting"


async def test_an_approval_holds_for_one_task_only(world: World) -> None:
    await world.add("rm", caller=AGENT)
    await world.control("claude/t1", "approve")
    assert (await world.add("rm", caller=AGENT)).state == "waiting"


async def test_what_was_denied_for_good_is_refused_until_it_is_approved_for_good(world: World) -> None:
    await world.add("rm", caller=AGENT)
    waiting = await world.add("rm", caller=AGENT)
    await world.control("claude/t1", "deny", always=True)
    with pytest.raises(Rejected) as caught:
        await world.add("rm", caller=AGENT)
    assert caught.value.code == "not_approved"
    await world.control(waiting.id, "approve", always=True)
    assert (await world.add("rm", caller=AGENT)).state == "idle"


@pytest.mark.parametrize("action", ["approve", "deny"])
async def test_what_has_ended_waits_for_no_approval(world: World, action: str) -> None:
    task = await world.add("rm", caller=AGENT)
    await world.control(task.id, "cancel")
    assert (await refused(world, task.id, action, always=True)).code == "not_in_state"
    assert await world.rows("SELECT count(*) FROM permit") == [(0,)]


async def test_a_retry_never_gets_round_an_approval(world: World) -> None:
    task = await world.add("rm", caller=AGENT)
    await world.control(task.id, "deny")
    for caller in (Caller(), AGENT):
        await world.control(task.id, "retry", caller=caller)
        assert (await world.task(task.id)).reason == "approval"
        await world.control(task.id, "deny")
    await world.control(task.id, "retry", caller=AGENT)
    assert (await world.task(task.id)).reason == "approval"
    await world.control(task.id, "approve")
    assert (await world.task(task.id)).state == "idle"
    await world.control(task.id, "cancel")
    await world.control(task.id, "retry", caller=AGENT)
    assert (await world.task(task.id)).state == "idle", "it was approved, and is what it was"


# Cancelling what runs.


async def test_a_cancel_before_the_executor_knows_the_attempt_is_remembered(world: World) -> None:
    task = await in_state(world, "executing")
    cancelling = Cancelling(world.context)
    with anyio.fail_after(10):
        await cancelling.end_attempt_of(task.id)
    (row,) = await world.rows("SELECT id FROM attempt")
    assert world.context.cancel_was_asked(row[0])
    world.context.let_go(row[0])
    assert not world.context.cancel_was_asked(row[0])


async def test_there_is_nothing_to_end_of_a_task_that_does_not_run(world: World) -> None:
    task = await world.add("x")
    cancelling = Cancelling(world.context)
    await cancelling.end_attempt_of(task.id)
    await cancelling.end_attempt_of("nobody")
    assert not world.context.cancel_was_asked("nobody")


def test_asked_cancels_are_bounded(tmp_path: Any) -> None:
    from omnid.flow.context import CANCELS_MAX

    world = World(tmp_path, FakeClock())
    for n in range(CANCELS_MAX + 5):
        world.context.ask_cancel(str(n))
    assert not world.context.cancel_was_asked("4")
    assert world.context.cancel_was_asked("5")
    world.close()


# How a task is named.


@pytest.mark.parametrize("ref", ["t1", "user/t1"])
async def test_a_short_name_is_of_the_callers_origin_first(world: World, ref: str) -> None:
    mine = await world.add("x")
    await world.add("y", caller=AGENT)
    assert (await world.control(ref, "pause")).task_id == mine.id


async def test_a_short_name_of_another_origin_is_found_where_it_is_the_only_one(world: World) -> None:
    await world.add("x", origin="a")
    only = await world.add("y", origin="a")
    await world.add("x", origin="b/c")
    assert (await world.control("t2", "pause")).task_id == only.id
    error = await refused(world, "t1", "pause")
    assert error.code == "ambiguous_task"
    assert "a/t1, b/c/t1" in error.what
    assert (await world.control("b/c/t1", "pause")).task_id != only.id


@pytest.mark.parametrize(
    "ref",
    [
        "t0",
        "t9",
        "t01",
        "x",
        "",
        "user/t9",
        "t" + "9" * 30,
        "\N{FULLWIDTH DIGIT SEVEN}",
        "t\N{ARABIC-INDIC DIGIT ONE}",
        "0" * 36,
    ],
)
async def test_an_unknown_name_is_refused(world: World, ref: str) -> None:
    await world.add("x")
    error = await refused(world, ref, "pause")
    assert error.code == "unknown_task"
