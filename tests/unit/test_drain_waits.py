"""When the drain tries again: after a send that hung, and by a clock that was set back."""

from collections.abc import Sequence

import anyio
import pytest

from omnid.errors import Retryable
from omnid.flow.drain import DAY_MS, Carrier, Drain
from omnid.flow.notify import HOUR_MS
from omnid.model import Delivery
from omnid.store import outbox
from tests.fakes.clock import FakeClock
from tests.fakes.world import World
from tests.unit.test_drain import DOWN, WAIT_S, Place, carrier, carry_all, draining, left, put

pytestmark = pytest.mark.anyio

DAY_S = DAY_MS / 1000


class Hangs(Place):
    """A destination that doesn't answer as long as `hangs`."""

    timeout_s = 0.01
    hangs = True

    async def send(self, batch: Sequence[Delivery]) -> None:
        if self.hangs:
            self.calls.append([])
            self.bell.set()
            await anyio.sleep_forever()
        await super().send(batch)


async def test_a_send_that_hangs_is_ended_at_its_deadline(world: World) -> None:
    await put(world, "1")
    await carry_all(carrier(world, Hangs()))
    (head,) = await world.store.read(lambda reader: outbox.peek(reader, "a", 1))
    assert head.problem is not None
    assert "no answer within 0.01 s" in head.problem.what


async def test_one_that_rings_and_hung_is_tried_again_though_nobody_rings(world: World) -> None:
    world.set("outbox", retry_base_s=0.01, retry_max_s=0.01)
    place = Hangs()
    place.rings = True
    caught_up: list[tuple[str, int]] = []
    async with draining(world, {"a": place}.get) as drain:
        drain.caught_up = lambda queue, sent: caught_up.append((queue, sent))
        await put(world, "1", "2")
        await place.called(4)  # Two may be due to what was put in.
        place.hangs = False
        with anyio.fail_after(WAIT_S):
            while not caught_up:
                await anyio.lowlevel.checkpoint()
    assert (place.texts, caught_up, await left(world)) == (["1", "2"], [("a", 2)], [])
    assert world.logged.getvalue().count("destination_down") == 1
    assert world.logged.getvalue().count("destination_back") == 1


async def test_one_that_rings_and_hung_is_tried_at_once_when_it_rings_and_holds_up_no_stop(world: World) -> None:
    world.set("outbox", retry_base_s=900.0)
    place = Hangs()
    place.rings = True
    async with draining(world, {"a": place}.get) as drain:
        await put(world, "1")
        await place.called(1)
        await anyio.wait_all_tasks_blocked()
        drain.ring_all()
        await place.called(2)
        with anyio.fail_after(WAIT_S):
            await drain.finish()
    with anyio.fail_after(WAIT_S):
        await Drain(world.context, {"a": place}.get).flush()
    assert await left(world) == ["1"]


async def test_one_that_rings_is_tried_again_where_it_was_the_store_that_failed(world: World) -> None:
    world.set("outbox", retry_base_s=0.01, retry_max_s=0.01)
    place = Place()
    place.rings = True
    place.down = Retryable("store_busy", seconds_s=5)
    async with draining(world, {"a": place}.get):
        await put(world, "1")
        await place.called(3)
        place.down = None
        with anyio.fail_after(WAIT_S):
            while await left(world):
                await anyio.lowlevel.checkpoint()
    assert place.texts[-1] == "1"


async def failed_once(world: World, error: Retryable = DOWN) -> tuple[Place, Carrier]:
    """Gives a destination that is there again, and its carrier, which waits for the next try."""
    place = Place()
    place.down = error
    one = carrier(world, place)
    await put(world, "1")
    await carry_all(one)
    await carry_all(one)
    assert len(place.calls) == 1
    place.down = None
    return place, one


DELAYED = Retryable("delivery_delayed", destination="a", detail="429", after_s=7200)


@pytest.mark.parametrize("back_ms", [1_000, 6 * HOUR_MS, 365 * DAY_MS])
@pytest.mark.parametrize("error", [DOWN, DELAYED])
async def test_a_clock_that_was_set_back_keeps_nothing_waiting(
    world: World, clock: FakeClock, error: Retryable, back_ms: int
) -> None:
    place, one = await failed_once(world, error)
    clock.now_ms -= back_ms
    await carry_all(one)
    assert place.texts == ["1"]


async def test_a_next_daemon_whose_clock_was_set_back_waits_no_longer_than_there_are_waits(
    world: World, clock: FakeClock
) -> None:
    world.set("outbox", retry_max_s=900.0)
    place, _ = await failed_once(world)
    clock.now_ms -= 900_000
    await carry_all(carrier(world, place))
    assert place.texts == ["1"]


async def test_a_next_daemon_keeps_to_the_wait_that_the_other_side_asked_for(world: World, clock: FakeClock) -> None:
    place, _ = await failed_once(world, DELAYED)
    await carry_all(carrier(world, place))
    assert place.texts == []
    assert world.context.alarms.next_ms() == clock.now_ms + 7_200_000
    clock.now_ms -= 2 * DAY_MS
    await carry_all(carrier(world, place))
    assert place.texts == ["1"]


async def test_a_wait_of_days_is_a_wait(world: World, clock: FakeClock) -> None:
    world.set("outbox", retry_base_s=2.0 * DAY_S, retry_max_s=2.0 * DAY_S)
    place, one = await failed_once(world)
    for later in (one, carrier(world, place)):
        await carry_all(later)
        assert world.context.alarms.next_ms() == clock.now_ms + 2 * DAY_MS
    clock.now_ms += 2 * DAY_MS
    await carry_all(one)
    assert place.texts == ["1"]
