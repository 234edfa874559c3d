"""The receipt of a task: its way, its cost, and a hash that changes with any of its entries."""

from omnid.flow import receipt
from omnid.store.interface import CALL
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
            ("c", second, None, None),
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
            tx.create(CALL, id, fields)

    await world.write(calls)
    facts = await world.store.read(lambda reader: receipt.gather(reader, task))
    assert [attempt.outcome for attempt in facts.attempts] == ["failure", "success"]
    assert facts.restarts == {first.attempt_id: 0, second.attempt_id: 2}
    assert (facts.calls, facts.unknown) == (3, 1)
    assert (facts.spent_microusd, facts.reserved_microusd) == (250_000, 2_000_000)
    assert await world.differences() == []


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
