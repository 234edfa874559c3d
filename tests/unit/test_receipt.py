"""The receipt of a task: its way, its cost, and a hash that changes with any of its entries."""

import pytest

from omnid.api.night import Night
from omnid.api.shapes_night import ReceiptOf
from omnid.api.views import Views
from omnid.flow import receipt
from omnid.flow.caller import Caller
from omnid.model import Problem
from omnid.store.calls import add_call, zone_of
from tests.fakes.clock import FakeClock
from tests.fakes.world import World


async def test_it_adds_up_what_the_journal_knows(world: World, clock: FakeClock) -> None:
    task = await world.add("agent", attempts_max=2)
    (first,) = await world.claim(1)
    await world.finish(first, "failure", cost_usd=0.25)
    clock.now_ms += 600_000
    await world.wake()
    (second,) = await world.claim(1)
    await world.restart()
    await world.restart()
    await world.finish(second, "success", cost_usd=0.5)

    def calls(tx):
        for id, attempt, spent, settled in (
            ("a", first, 250_000, clock.now_ms),
            ("b", second, None, clock.now_ms),
            ("c", second, None, clock.now_ms),
        ):
            fields = {
                "task_id": task.id,
                "attempt_id": attempt.attempt_id,
                "executor": "command",
                "reserved_microusd": 1_000_000,
                "spent_microusd": spent,
                "started_at_ms": clock.now_ms,
                "settled_at_ms": settled,
            }
            add_call(tx, id, fields, zone_of(tx))

    await world.write(calls)
    facts = await world.store.read(lambda reader: receipt.gather(reader, task))
    assert [attempt.outcome for attempt in facts.attempts] == ["failure", "success"]
    assert facts.restarts == {first.attempt_id: 0, second.attempt_id: 2}
    assert (facts.calls, facts.unknown) == (3, 2)
    assert (facts.spent_microusd, facts.reserved_microusd) == (250_000, 2_000_000)
    assert await world.differences() == []


@pytest.mark.parametrize(
    ("outcome", "code", "by_hand", "passed"),
    [
        ("success", None, False, True),
        ("failure", "check_failed", False, False),
        ("failure", "exit_code", False, None),
        ("failure", "check_failed", True, None),
    ],
)
async def test_a_check_has_passed_only_where_it_was_run(
    world: World, outcome: str, code: str | None, by_hand: bool, passed: bool | None
) -> None:
    await world.add("x", check=("true",), attempts_max=1)
    (command,) = await world.claim()
    problem = code and Problem(code, "what", "why", "do")
    await world.finish(command, outcome, problem=problem or None)
    if by_hand:
        await world.control("t1", "complete")
    night = Night(world.context, world.gates, Views(world.context, world.gates))
    check = (await night.receipt(Caller(), ReceiptOf(task="t1"))).check
    assert check is not None
    assert check.passed is passed


async def test_the_hash_covers_every_entry(world: World) -> None:
    task = await world.add("x")
    before = await world.store.read(lambda reader: receipt.gather(reader, task))
    again = await world.store.read(lambda reader: receipt.gather(reader, task))
    assert (before.entries, before.sha256) == (1, again.sha256)
    await world.control(task.name, "pause")
    after = await world.store.read(lambda reader: receipt.gather(reader, task))
    assert after.entries > before.entries
    assert after.sha256 != before.sha256
    rows = await world.store.read(lambda reader: reader.all("changes_of", "task", task.id, 0, 10))
    assert receipt.digest(rows) == after.sha256
    for column in range(8):
        forged = [tuple(row) for row in rows]
        forged[0] = (*forged[0][:column], "forged", *forged[0][column + 1 :])
        assert receipt.digest(forged) != after.sha256
