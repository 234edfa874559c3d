"""Cancels of attempts on runners: what is committed is told, once, whatever becomes of the daemon after its commit."""

import anyio
import pytest

from omnid.errors import Retryable
from omnid.flow.control import Cancelling, Effect
from omnid.model import Schedule
from tests.fakes.cable import DOWN, Bench, beat
from tests.fakes.clock import FakeClock
from tests.fakes.world import World
from tests.unit.test_schedules import House

pytestmark = pytest.mark.anyio


@pytest.fixture
def bench(world: World) -> Bench:
    made = Bench(world)
    made.config("a", lease_s=3600.0)
    return made


async def test_the_transaction_that_cancels_has_the_runner_told_and_nothing_does_so_again(bench: Bench) -> None:
    async with bench.runs():
        bench.cable.bring("a", beat())
        task = await bench.world.add("one")
        (command,) = await bench.sent(1)
        effect = await bench.world.control(task.id, "cancel")
        await bench.cable.until(lambda: bench.cable.cancels() == [command.attempt_id])
        await anyio.wait_all_tasks_blocked()
        assert effect.cancel_attempt == command.attempt_id
        await Cancelling(bench.context).end_attempt(command.attempt_id)
        await anyio.wait_all_tasks_blocked()
        assert bench.cable.cancels() == [command.attempt_id]
        assert (await bench.ends(command, "cancelled")).state == "cancelled"


async def test_what_was_never_sent_ends_at_once_though_the_link_is_down(bench: Bench) -> None:
    async with bench.runs():
        bench.cable.bring("a", beat())
        await anyio.wait_all_tasks_blocked()
        rung, bench.context.store.rung = bench.context.store.rung, None
        task = await bench.world.add("one")
        await anyio.wait_all_tasks_blocked()
        bench.cable.turn(DOWN)
        bench.context.store.rung = rung
        effect = await bench.world.control(task.id, "cancel")
        await anyio.wait_all_tasks_blocked()
        assert (await bench.task(task)).state == "executing"
        assert effect.cancel_attempt is not None
        await Cancelling(bench.context).end_attempt(effect.cancel_attempt)
        await anyio.wait_all_tasks_blocked()
        assert (await bench.task(task)).state == "cancelled"
        bench.cable.turn(None)
        await bench.cable.until(bench.cable.cancels)
        assert bench.cable.commands() == []


async def test_a_run_that_is_ended_for_the_next_one_is_told_whatever_fails_then(bench: Bench, clock: FakeClock) -> None:
    house = House(bench.world, clock)
    await house.add("tick", Schedule(every_s=60, overlap="kill"))
    async with bench.runs():
        bench.cable.bring("a", beat())
        await house.after(1)
        (command,) = await bench.sent(1)

        async def fails(_effect: Effect) -> None:
            raise Retryable("disk_full", path="journal.db", detail="full")

        house.schedules.follow_up = fails
        with pytest.raises(Retryable):
            await house.after(1)
        await bench.cable.until(lambda: bench.cable.cancels() == [command.attempt_id])
