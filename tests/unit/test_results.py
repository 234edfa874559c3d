"""Results: what each outcome does to its task, and that only the current attempt counts (promises 2 and 3)."""

from typing import Any, cast

import anyio
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnid.api import shapes
from omnid.api.views import Views
from omnid.errors import Retryable
from omnid.flow.dependents import CASCADE_MAX
from omnid.flow.results import UNSTARTED_WAIT_S, Results, backoff_of, judge
from omnid.model import Attempt, Command, Park, Problem, Result, Submit, Task, Work
from omnid.retry import Backoff
from omnid.store import journal
from tests.fakes.clock import FakeClock
from tests.fakes.world import PERSON, World

pytestmark = pytest.mark.anyio

PROBLEM = Problem.make("exit_code", code=1, detail="x", task="t1")


async def attempt(world: World, command: Command) -> Attempt:
    row = await world.store.read(lambda reader: reader.one("attempt_by_number", command.task_id, command.number))
    assert row is not None
    return journal.attempt_of(row)


async def started(world: World, **fields: Any) -> Command:
    await world.add("x", **fields)
    (command,) = await world.claim()
    return command


async def after_backoff(world: World) -> Command:
    """Lets the wait of the one task pass that is tried again, and starts it."""
    (row,) = await world.rows("SELECT wake_at_ms FROM task WHERE reason = 'backoff'")
    world.clock.now_ms = row[0]
    await world.wake()
    (command,) = await world.claim()
    return command


async def test_a_success_completes_the_task_and_is_kept_whole(world: World, clock: FakeClock) -> None:
    command = await started(world)
    clock.now_ms += 500
    result = {"output": "é" * 40_000, "output_bytes": 80_000, "exit_code": 0, "value": {"a": [1]}, "cost_usd": 0.25}
    await world.finish(command, "success", **result)
    task, kept = await world.task(command.task_id), await attempt(world, command)
    assert (task.state, task.finished_at_ms, task.problem) == ("completed", clock.now_ms, None)
    assert (kept.outcome, kept.ended_at_ms) == ("success", clock.now_ms)
    assert {name: getattr(kept, name) for name in result} == result


async def test_a_cost_that_nobody_knows_is_none_and_not_zero(world: World) -> None:
    command = await started(world)
    await world.finish(command, "success")
    assert (await attempt(world, command)).cost_usd is None


@pytest.mark.parametrize("outcome", ["failure", "timeout"])
async def test_a_failure_is_tried_again_after_a_wait_until_the_limit(
    world: World, clock: FakeClock, outcome: str
) -> None:
    command = await started(world, attempts_max=3, backoff_s=2)
    task_id = command.task_id
    for number, wait_s in ((1, 2), (2, 4)):
        await world.finish(command, outcome, problem=PROBLEM)
        task = await world.task(task_id)
        assert (task.state, task.reason, task.failures) == ("waiting", "backoff", number)
        assert task.wake_at_ms == clock.now_ms + wait_s * 1000
        assert task.problem == PROBLEM
        clock.now_ms += wait_s * 1000 - 1
        await world.wake()
        assert await world.claim() == []
        clock.now_ms += 1
        await world.wake()
        (command,) = await world.claim()
    await world.finish(command, outcome, problem=PROBLEM)
    task = await world.task(task_id)
    assert (task.state, task.failures, task.attempt, task.problem) == ("failed", 3, 3, PROBLEM)


async def test_what_can_not_be_mended_is_not_tried_again(world: World) -> None:
    command = await started(world, attempts_max=5)
    await world.finish(command, "rejected", problem=PROBLEM, output="kept")
    assert (await world.task(command.task_id)).state == "failed"
    assert (await attempt(world, command)).output == "kept"


async def test_an_attempt_that_never_began_does_not_count(world: World, clock: FakeClock) -> None:
    command = await started(world, attempts_max=1)
    await world.finish(command, "unstarted", problem=PROBLEM)
    task = await world.task(command.task_id)
    assert (task.state, task.reason, task.failures) == ("waiting", "backoff", 0)
    assert task.wake_at_ms == clock.now_ms + UNSTARTED_WAIT_S * 1000


async def test_what_is_lost_is_uncertain_and_runs_again_only_where_that_is_harmless(world: World) -> None:
    command = await started(world)
    await world.finish(command, "lost", problem=PROBLEM)
    assert (await world.task(command.task_id)).state == "uncertain"
    assert await world.claim() == []
    safe = await started(world, executor="safe")
    await world.finish(safe, "lost", problem=PROBLEM)
    again = await after_backoff(world)
    assert (again.task_id, again.number) == (safe.task_id, 2)


@pytest.mark.parametrize("idempotent", [True, False])
async def test_a_note_of_the_executor_decides_about_promise_3(world: World, idempotent: bool) -> None:
    command = await started(world, executor="command" if idempotent else "safe")
    await world.write(lambda tx: journal.add_note(tx, command.attempt_id, "idempotent", body=idempotent, notes_max=5))
    await world.finish(command, "lost")
    assert (await world.task(command.task_id)).state == ("waiting" if idempotent else "uncertain")


async def test_a_cancel_holds_against_every_end_but_success(world: World) -> None:
    for n, outcome in enumerate(["failure", "timeout", "cancelled", "lost", "unstarted", "rejected"], 1):
        command = await started(world)
        effect = await world.control(f"t{n}", "cancel")
        assert effect.cancel_attempt == command.attempt_id
        assert (await world.task(command.task_id)).state == "executing", "cancel is a flag until the attempt has ended"
        await world.finish(command, outcome)
        assert (await world.task(command.task_id)).state == "cancelled", outcome
    command = await started(world)
    await world.control("t7", "cancel")
    await world.finish(command, "success")
    assert (await world.task(command.task_id)).state == "completed", "a success that came first stands"


async def test_a_result_counts_once(world: World) -> None:
    command = await started(world)
    assert await world.finish(command, "failure")
    before = await world.task(command.task_id)
    for outcome in ("success", "failure", "lost"):
        assert await world.finish(command, outcome) == []
    assert await world.task(command.task_id) == before


async def test_of_results_that_come_together_each_is_written_or_not_for_itself(world: World) -> None:
    for name in "abcd":
        await world.add(name)
    good, bad, twice, closed = await world.claim()
    results = Results(world.context, world.gates)
    event = world.context.watch.event(good.task_id)
    ends = [one.ended("success", None) for one in (good, bad, twice, twice)]
    ends[1] = msgspec.structs.replace(ends[1], exit_code=1 << 70)  # More than the column takes.
    assert await results.try_all(ends) == [True, False, True, True]
    assert [(await world.task(one.task_id)).state for one in (good, bad, twice)] == [
        "completed",
        "executing",
        "completed",
    ]
    assert event.is_set()
    assert world.logged.getvalue().count("late_result_refused") == 1
    assert await results.try_all(()) == []
    cast(Any, world.context.store).post = lambda _fn, done, **_: done(Closed())
    assert await results.try_all([closed.ended("success", None)]) == [False]


class Closed:
    """What a store says that is closed."""

    def outcome(self) -> Any:
        raise Retryable("store_closed")


async def test_a_late_result_of_an_earlier_attempt_is_refused(world: World, clock: FakeClock) -> None:
    first = await started(world, executor="safe")
    await world.finish(first, "lost")
    second = await after_backoff(world)
    assert await world.finish(first, "success") == []
    assert (await world.task(first.task_id)).state == "executing"
    assert (await attempt(world, first)).outcome == "lost"
    assert await world.finish(second, "success")


async def test_a_result_of_a_task_that_is_gone_is_refused(world: World) -> None:
    command = await started(world)
    await world.finish(command, "lost")
    await world.control("t1", "delete")
    assert await world.finish(command, "success") == []


@pytest.mark.parametrize(
    ("outcome", "state"),
    [("success", "completed"), ("failure", "waiting"), ("rejected", "failed"), ("unstarted", "waiting")],
)
async def test_a_late_result_resolves_what_was_uncertain(world: World, outcome: str, state: str) -> None:
    command = await started(world)
    await world.finish(command, "lost", problem=PROBLEM)
    assert await world.finish(command, "lost") == [], "that is no news"
    problem = None if outcome == "success" else PROBLEM
    assert await world.finish(command, outcome, problem=problem, output="late")
    task, kept = await world.task(command.task_id), await attempt(world, command)
    assert (task.state, task.problem) == (state, problem)
    assert (kept.outcome, kept.problem, kept.output) == (outcome, problem, "late")


async def test_only_the_current_attempt_resolves_what_is_uncertain(world: World) -> None:
    first = await started(world)
    await world.finish(first, "lost")
    await world.control("t1", "again")
    (second,) = await world.claim()
    await world.finish(second, "lost")
    assert await world.finish(first, "success") == []
    assert (await world.task(first.task_id)).state == "uncertain"
    assert await world.finish(second, "success")


async def test_a_resolved_task_takes_no_late_result(world: World) -> None:
    for n, action in enumerate(["done", "again", "fail"], 1):
        command = await started(world)
        await world.finish(command, "lost")
        await world.control(f"t{n}", action)
        if action == "again":
            (next_command,) = await world.claim()
            assert next_command.number == 2
            assert await world.finish(command, "success") == []
            assert await world.finish(next_command, "success")
        else:
            assert await world.finish(command, "success") == []


async def test_a_failure_fails_those_that_come_after_and_names_the_cause(world: World) -> None:
    await world.add("a", attempts_max=1)
    await world.add("b", after=("t1",))
    await world.add("c", after=("t2",))
    await world.add("d")
    await world.add("e", after=("t1", "t4"))
    command = next(one for one in await world.claim() if one.name == "t1")
    touched = await world.finish(command, "failure")
    assert len(touched) == 4
    for name, before in (("t2", "t1"), ("t3", "t2"), ("t5", "t1")):
        task = await world.task((await world.rows("SELECT id FROM task WHERE number = ?", int(name[1:])))[0][0])
        assert task.state == "failed"
        assert task.problem is not None
        assert task.problem.code == "dependency_failed"
        assert task.problem.what.startswith(f"{name} comes after {before}, ")


async def test_a_task_after_several_waits_for_all_of_them(world: World) -> None:
    await world.add("a")
    await world.add("b")
    after = await world.add("c", after=("t1", "t2"))
    first, second = await world.claim()
    await world.finish(first, "success")
    assert (await world.task(after.id)).reason == "dependency"
    await world.finish(second, "success")
    assert (await world.task(after.id)).state == "idle"


@pytest.mark.parametrize("outcome", ["success", "rejected"])
async def test_a_cascade_over_its_limit_is_finished_by_the_timer(world: World, outcome: str) -> None:
    command = await started(world)
    count = CASCADE_MAX + 50
    await world.submit(*[Submit(argv=("x",), after=("t1",))] * count)
    assert len(await world.finish(command, outcome)) == CASCADE_MAX + 1
    wanted = "idle" if outcome == "success" else "failed"
    assert world.store.tally["waiting:dependency"] == 50
    await world.wake()
    assert world.store.tally[wanted] == count + (outcome == "rejected")


async def test_a_chain_longer_than_the_limit_fails_to_its_end(world: World) -> None:
    links = [Submit(argv=("x",), ref=str(n), after=(str(n - 1),) if n else ()) for n in range(CASCADE_MAX + 50)]
    await world.submit(*links)
    (command,) = await world.claim()
    await world.finish(command, "rejected")
    await world.wake()
    assert world.store.tally["failed"] == len(links)


@given(
    st.sampled_from(["success", "failure", "rejected", "timeout", "cancelled", "lost", "unstarted"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, 99, 101]),
    st.integers(0, 3),
    st.integers(1, 4),
)
def test_the_verdict(
    outcome: Any, idempotent: bool, cancel: bool, deadline_ms: int | None, failures: int, most: int
) -> None:
    task = Task(1, "i", "user", 1, Work(), "e", "executing", cancel=cancel, deadline_ms=deadline_ms, failures=failures)
    verdict = judge(
        task,
        Result("a", "i", 1, outcome, PROBLEM),
        idempotent=idempotent,
        attempts_max=most,
        backoff=Backoff(1.0, 8.0),
        now_ms=100,
        chance=lambda _low, high: high,
    )
    counts = outcome in ("failure", "timeout", "rejected", "cancelled")
    if outcome == "success":
        assert verdict.event == "succeed"
    elif cancel:
        assert verdict.event == "cancel"
    elif outcome == "lost":
        assert verdict.event == ("again" if idempotent else "lose")
        assert bool(verdict.retry_in_s) == idempotent
    elif deadline_ms == 99:
        assert (verdict.event, verdict.problem and verdict.problem.code) == ("fail", "deadline_passed")
    elif outcome == "unstarted":
        assert (verdict.event, verdict.failures) == ("again", failures)
    elif outcome in ("rejected", "cancelled") or failures + 1 >= most:
        assert verdict.event == "fail"
    else:
        assert (verdict.event, verdict.retry_in_s) == ("again", min(8.0, 2.0**failures))
    assert verdict.failures == failures or counts


async def test_what_a_crash_makes_wait_longer_is_the_crashes_before_it(world: World, clock: FakeClock) -> None:
    world.set("retry", backoff_base_s=1.0, backoff_max_s=300.0)
    await world.add("x", executor="safe")
    for _ in range(12):
        (command,) = await world.claim()
        await world.finish(command, "parked", problem=PROBLEM, park=Park("channels", clock.now_ms + 1000))
        clock.now_ms += 1000
        await world.wake()
    waits: list[float] = []
    for _ in range(3):
        (command,) = await world.claim()
        await world.finish(command, "lost", problem=PROBLEM)
        (row,) = await world.rows("SELECT wake_at_ms FROM task")
        waits.append((row[0] - clock.now_ms) / 1000)
        clock.now_ms = row[0]
        await world.wake()
    assert waits == [1, 2, 4]


async def test_the_backoff_is_the_tasks_within_the_configs_limit(world: World) -> None:
    world.set("retry", backoff_base_s=1.0, backoff_max_s=60.0)
    config = world.context.config
    assert backoff_of(await world.add("x"), config) == Backoff(1.0, 60.0)
    assert backoff_of(await world.add("x", backoff_s=5), config) == Backoff(5, 60.0)
    assert backoff_of(await world.add("x", backoff_s=300), config) == Backoff(300, 300)


async def test_no_backoff_is_no_wait(world: World) -> None:
    command = await started(world, backoff_s=0)
    await world.finish(command, "failure")
    assert [one.task_id for one in await world.claim()] == [command.task_id]


async def test_an_attempt_that_nobody_knows_changes_nothing(world: World) -> None:
    command = await started(world)
    stranger = msgspec.structs.replace(command, attempt_id="stranger")
    assert await world.finish(stranger, "success") == []
    assert (await world.task(command.task_id)).state == "executing"


class Failing:
    """A store that refuses some writes before it takes one."""

    def __init__(self, world: World, *codes: str) -> None:
        self.errors = [Retryable(code, path="/", detail="x") for code in codes]
        self.store = world.store
        self.write_now = world.store.write
        world.store.write = self.write

    async def write(self, fn: Any, **how: Any) -> Any:
        if self.errors:
            raise self.errors.pop(0)
        return await self.write_now(fn, **how)


async def test_a_result_is_kept_while_the_disk_is_full(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omnid.flow.results.SETTLE_BACKOFF", Backoff(0.001, 0.001))
    command = await started(world)
    Failing(world, "disk_full", "disk_full")
    event = world.context.watch.event(command.task_id)
    with anyio.fail_after(10):
        assert await Results(world.context, world.gates).settle(
            Result(command.attempt_id, command.task_id, 1, "success")
        )
    assert event.is_set()
    assert (await world.task(command.task_id)).state == "completed"
    assert world.logged.getvalue().count('"result_waits"') == 1
    assert '"tries":3' in world.logged.getvalue().replace(" ", "")


async def test_while_a_result_waits_for_room_why_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omnid.flow.results.SETTLE_BACKOFF", Backoff(0.001, 0.001))
    command = await started(world)
    failing = Failing(world, "disk_full")
    said: list[str] = []

    async def look(fn: Any, **how: Any) -> Any:
        if not failing.errors:
            views = Views(world.context, world.gates)
            view = await world.store.read(
                lambda reader: views.view(reader, PERSON, shapes.Get(task="t1"), timed_out=False)
            )
            said.append(view.why)
        return await failing.write(fn, **how)

    world.store.write = look
    with anyio.fail_after(10):
        assert await Results(world.context, world.gates).settle(
            Result(command.attempt_id, command.task_id, 1, "success")
        )
    (why,) = said
    assert why.startswith("t1 has ended on command (attempt 1), but its result can't be written yet: The disk is full")
    assert "free some space" in why
    assert world.context.unwritten == {}


async def test_one_result_that_waits_for_room_twice_is_written_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omnid.flow.results.SETTLE_BACKOFF", Backoff(0.001, 0.001))
    command = await started(world)
    Failing(world, "disk_full", "disk_full")
    results, counted = Results(world.context, world.gates), list[bool]()

    async def settle() -> None:
        counted.append(await results.settle(command.ended("success", None)))

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(settle)
            group.start_soon(settle)
    assert sorted(counted) == [False, True]
    assert world.context.unwritten == {}


async def test_a_result_that_nobody_waits_for_any_more_is_not_said_to_wait_for_room(world: World) -> None:
    command = await started(world)
    Failing(world, "disk_full")
    results = Results(world.context, world.gates)
    async with anyio.create_task_group() as group:
        group.start_soon(results.settle, command.ended("success", None))
        await anyio.wait_all_tasks_blocked()
        assert list(world.context.unwritten) == [command.attempt_id]
        group.cancel_scope.cancel()
    assert world.context.unwritten == {}


async def test_a_result_that_comes_while_the_store_closes_is_left_to_recovery(world: World) -> None:
    command = await started(world)
    Failing(world, "store_closed")
    assert not await Results(world.context, world.gates).settle(
        Result(command.attempt_id, command.task_id, 1, "success")
    )
    assert (await world.task(command.task_id)).state == "executing"


async def test_a_late_result_is_logged(world: World) -> None:
    command = await started(world)
    await world.finish(command, "success")
    assert not await Results(world.context, world.gates).settle(
        Result(command.attempt_id, command.task_id, 1, "success")
    )
    assert "late_result_refused" in world.logged.getvalue()
