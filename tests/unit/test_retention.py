"""Retention: what is old or too much goes, with all that hangs on it, and what is left still adds up."""

import anyio
import pytest

from omnid.api.mcp_task_shapes import task_fields
from omnid.errors import Rejected
from omnid.flow.retention import DAY_MS, Retention
from omnid.model import Submit
from tests.fakes.calls import Calls
from tests.fakes.clock import FakeClock
from tests.fakes.world import World

pytestmark = pytest.mark.anyio


async def ended(world: World, *argv: str, outcome: str = "success", **fields: object) -> str:
    task = await world.add(*argv, **fields)
    command = next(one for one in await world.claim() if one.task_id == task.id)
    await world.context.spool.append_log(command.attempt_id, "x" * 1000)
    await world.finish(command, outcome, output="z" * 20_000)
    return task.id


async def names(world: World) -> list[str]:
    return [f"t{row[0]}" for row in await world.rows("SELECT number FROM task ORDER BY ord")]


async def test_a_finished_task_goes_when_its_days_are_over(world: World, clock: FakeClock) -> None:
    await ended(world, labels=("a",))
    await ended(world, outcome="rejected")
    await world.add("open")
    clock.now_ms += 30 * DAY_MS
    assert await world.retain() == 0
    clock.now_ms += 1
    assert await world.retain() == 2
    assert await names(world) == ["t3"]
    for table in ("attempt", "blob", "label"):
        assert await world.rows(f"SELECT count(*) FROM {table}") == [(0,)], table
    assert await world.context.spool.attempts() == []
    assert await world.rows("SELECT DISTINCT collection FROM change ORDER BY 1") == [("origin",), ("task",)]


async def test_the_oldest_finished_go_when_there_are_too_many(world: World, clock: FakeClock) -> None:
    world.set("retention", finished_max=2, kept_days_min=0, batch=2)
    for _ in range(7):
        clock.now_ms += 1
        await ended(world)
    clock.now_ms += 1
    assert await world.retain() == 5
    assert await names(world) == ["t6", "t7"]


async def test_no_task_goes_before_the_time_that_a_client_was_shown(world: World, clock: FakeClock) -> None:
    world.set("retention", finished_max=2, kept_days_min=3.0, batch=2)
    first = await ended(world)
    call = Calls(world)
    brief = (await call("task.get", task=first)).task
    until_ms = brief.created_at_ms + task_fields(brief, None, call.api.kept_ms(), modern=True)["ttlMs"]
    for _ in range(4):
        clock.now_ms += 1000
        await ended(world)
    clock.now_ms = until_ms
    assert await world.retain() == 0, "it was promised, however many there are"
    clock.now_ms += 1
    assert await world.retain() == 1
    assert await names(world) == ["t2", "t3", "t4", "t5"]
    clock.now_ms += DAY_MS
    assert await world.retain() == 2
    assert await names(world) == ["t4", "t5"]
    world.set("retention", finished_days=1.0)
    assert call.api.kept_ms() == DAY_MS, "what goes by its age is promised no longer than that"


async def test_numbers_are_never_given_again(world: World, clock: FakeClock) -> None:
    for _ in range(3):
        await ended(world)
    clock.now_ms += 31 * DAY_MS
    assert await world.retain() == 3
    await world.restart()
    assert (await world.add("x")).name == "t4"


async def test_entries_of_the_log_are_never_numbered_again(world: World, clock: FakeClock) -> None:
    await ended(world)
    clock.now_ms += 31 * DAY_MS
    await world.retain()
    (last,) = (await world.rows("SELECT CAST(value AS INTEGER) FROM meta WHERE name = 'seq_floor'"))[0]
    await world.restart()
    await world.add("x")
    (first,) = (await world.rows("SELECT min(seq) FROM change WHERE collection = 'task'"))[0]
    assert first == last + 1


async def test_a_large_value_stays_while_anybody_holds_it(world: World, clock: FakeClock) -> None:
    first = await ended(world, "x", "y" * 20_000)
    clock.now_ms += 31 * DAY_MS
    second = await world.add("x", "y" * 20_000)
    assert await world.retain() == 1
    assert (await world.task(second.id)).work.argv == ("x", "y" * 20_000)
    with pytest.raises(Rejected):
        await world.task(first)
    await world.control(second.id, "delete")
    assert await world.rows("SELECT count(*) FROM blob") == [(0,)]


async def test_a_task_that_others_have_yet_to_hear_of_stays(world: World, clock: FakeClock) -> None:
    await world.add("first")
    await world.submit(*[Submit(argv=("x",), after=("t1",))] * 600)
    (command,) = await world.claim()
    await world.finish(command, "rejected")
    clock.now_ms += 31 * DAY_MS
    await world.retain()
    assert "t1" in await names(world)
    await world.wake()
    await world.retain()
    assert "t1" not in await names(world)
    clock.now_ms += 31 * DAY_MS
    await world.retain()
    assert await names(world) == []


async def test_answers_and_the_history_of_what_was_deleted_go_after_two_days(world: World, clock: FakeClock) -> None:
    from omnid.flow.caller import Caller
    from omnid.flow.once import once

    await world.write(once(Caller(session="s", request_id="1"), "m", {}, lambda tx: 7, int))
    await world.add("x")
    await world.control("t1", "delete")
    clock.now_ms += 2 * DAY_MS
    await world.retain()
    assert await world.rows("SELECT count(*) FROM answer") == [(1,)]
    clock.now_ms += 1
    await world.retain()
    assert await world.rows("SELECT count(*) FROM answer") == [(0,)]
    assert await world.rows("SELECT collection FROM change") == [("origin",)]


async def test_a_gate_that_closed_again_keeps_its_history(world: World, clock: FakeClock) -> None:
    await world.gates.pause("*")
    await world.gates.resume("*")
    await world.gates.pause("*")
    clock.now_ms += 3 * DAY_MS
    await world.retain()
    assert await world.rows("SELECT kind FROM change") == [("create",)]


async def test_outputs_beyond_the_limit_go_oldest_first_but_not_of_what_runs(world: World, clock: FakeClock) -> None:
    for _ in range(5):
        clock.now_ms += 1
        await ended(world)
    oldest, *_, newest = await world.context.spool.attempts()
    world.context.running[oldest] = "command"
    world.set("limits", spool_total_bytes_max=2_500)
    clock.now_ms += 1
    await world.retain()
    left = await world.context.spool.attempts()
    assert (left[0], left[-1], len(left)) == (oldest, newest, 2)
    assert len(await names(world)) == 5
    assert '"outputs":3' in world.logged.getvalue().replace(" ", "")


async def test_a_task_that_is_run_again_meanwhile_stays(world: World, clock: FakeClock) -> None:
    task_id = await ended(world, outcome="rejected")
    clock.now_ms += 31 * DAY_MS
    remove = world.context.spool.remove

    async def retried(attempt_id: str) -> None:
        await remove(attempt_id)
        await world.control(task_id, "retry")

    world.context.spool.remove = retried
    assert await world.retain() == 0
    assert (await world.task(task_id)).state == "idle"


async def test_rounds_follow_each_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omnid.flow.retention.ROUND_S", 0.001)
    rounds: list[int] = []
    enough = anyio.Event()
    retention = Retention(world.context)

    async def one() -> int:
        rounds.append(1)
        if len(rounds) == 3:
            enough.set()
        return 0

    monkeypatch.setattr(retention, "round", one)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(retention.run)
            await enough.wait()
            group.cancel_scope.cancel()


async def test_a_gate_that_flaps_keeps_what_is_young_of_its_history(world: World, clock: FakeClock) -> None:
    await world.gates.pause("*")
    await world.gates.resume("*")
    clock.now_ms += 1 * DAY_MS
    await world.gates.pause("*")
    await world.gates.resume("*")
    clock.now_ms += 2 * DAY_MS - 1
    await world.retain()
    assert await world.rows("SELECT kind FROM change") == [("create",), ("delete",)]
    clock.now_ms += 2
    await world.retain()
    assert await world.rows("SELECT kind FROM change") == []


async def test_answers_go_by_the_limits_of_the_config(world: World, clock: FakeClock) -> None:
    from omnid.flow.caller import Caller
    from omnid.flow.once import once

    for n in range(5):
        await world.write(once(Caller(session="s", request_id=f"{n}"), "m", {}, lambda tx: 7, int))
    world.set("retention", answers_max=3)
    await world.retain()
    assert await world.rows("SELECT id FROM answer ORDER BY ord") == [("s/2",), ("s/3",), ("s/4",)]
    world.set("retention", answers_days=0.5, deleted_days=1.0)
    await world.gates.pause("*")
    await world.gates.resume("*")
    clock.now_ms += DAY_MS // 2 + 1
    await world.retain()
    assert await world.rows("SELECT count(*) FROM answer") == [(0,)]
    assert await world.rows("SELECT count(*) FROM change") == [(2,)]
    clock.now_ms += DAY_MS // 2
    await world.retain()
    assert await world.rows("SELECT count(*) FROM change") == [(0,)]
