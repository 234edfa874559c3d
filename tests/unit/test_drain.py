"""The drain: at least once, in order, a dead destination blocks nobody, and what is refused is set aside."""

import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnid.errors import Rejected, Retryable
from omnid.flow.control import Cancelling
from omnid.flow.drain import BATCH_BYTES_MAX, DAY_MS, Carrier, Drain
from omnid.flow.wakeup import Wakeup
from omnid.link.destination import Destination
from omnid.model import Delivery
from omnid.retry import Backoff
from omnid.store import outbox
from tests.fakes.clock import FakeClock
from tests.fakes.world import World

pytestmark = pytest.mark.anyio

WAIT_S = 10.0
CONFIRM_AT_ONCE = Backoff(base_s=0.0, max_s=0.0)


class Place:
    """A destination that does as it is told: down, refusing texts, or losing the confirmation."""

    timeout_s = 5.0

    def __init__(self, batch_max: int = 1) -> None:
        self.batch_max = batch_max
        self.rings = False
        self.got: list[tuple[str, str]] = []
        self.calls: list[list[str]] = []
        self.down: Retryable | None = None
        self.refuses: set[str] = set()
        self.loses = 0
        self.due = 0
        self.bell = anyio.Event()

    def due_ms(self, batch: Sequence[Delivery], now_ms: int) -> int:
        return self.due

    async def send(self, batch: Sequence[Delivery]) -> None:
        await anyio.lowlevel.checkpoint()
        texts = [delivery.body["text"] for delivery in batch]
        self.calls.append(texts)
        self.bell.set()
        if self.down is not None:
            raise self.down
        if self.refuses.intersection(texts):
            raise Rejected("delivery_refused", destination="a", detail="no")
        self.got += [(delivery.id, delivery.body["text"]) for delivery in batch]
        if self.loses:
            self.loses -= 1
            raise Retryable("delivery_failed", destination="a", detail="the answer was lost")

    @property
    def texts(self) -> list[str]:
        return [text for _, text in self.got]

    async def called(self, times: int) -> None:
        """Waits until it was called so often."""
        with anyio.fail_after(WAIT_S):
            while len(self.calls) < times:
                self.bell = anyio.Event()
                await self.bell.wait()


DOWN = Retryable("delivery_failed", destination="a", detail="down")


async def put(world: World, *texts: str, queue: str = "a") -> list[str]:
    rows_max = world.context.config.outbox.rows_max
    return [
        await world.write(
            partial(outbox.put, destination=queue, kind="answer", subject=None, body={"text": text}, rows_max=rows_max)
        )
        for text in texts
    ]


async def left(world: World, queue: str = "a") -> list[str]:
    rows = await world.store.read(lambda reader: outbox.peek(reader, queue, 1000))
    return [row.body["text"] for row in rows]


async def dead(world: World) -> list[tuple[str, str]]:
    rows = await world.store.read(lambda reader: outbox.dead(reader, 0, 1000))
    return [(row.body["text"], row.problem.code if row.problem else "") for row in rows]


def carrier(world: World, place: Destination | None) -> Carrier:
    return Carrier(world.context, lambda _: place, "a")


async def carry_all(one: Carrier) -> None:
    with anyio.fail_after(WAIT_S):
        while await one.carry():
            pass


async def wait_out(world: World) -> None:
    """Moves the clock to the next alarm."""
    at_ms = world.context.alarms.next_ms()
    assert at_ms is not None
    world.clock.now_ms = max(world.clock.now_ms, at_ms)
    world.context.alarms.ring_due(world.clock.now_ms)


@asynccontextmanager
async def draining(world: World, open: Callable[[str], Destination | None]) -> AsyncIterator[Drain]:
    drain = Drain(world.context, open)
    world.store.rung = drain.ring
    async with anyio.create_task_group() as group:
        group.start_soon(drain.run, group)
        yield drain
        group.cancel_scope.cancel()


async def test_what_is_put_in_goes_out_in_order_and_is_forgotten(world: World) -> None:
    place = Place()
    ids = await put(world, "1", "2", "3")
    await carry_all(carrier(world, place))
    assert place.got == list(zip(ids, ["1", "2", "3"], strict=True))
    assert await left(world) == []
    assert await world.rows("SELECT count(*) FROM change WHERE collection = 'outbox'") == [(0,)]


async def test_a_batch_is_as_large_as_the_destination_takes(world: World) -> None:
    place = Place(batch_max=2)
    await put(world, "1", "2", "3")
    await carry_all(carrier(world, place))
    assert place.calls == [["1", "2"], ["3"]]


async def test_a_batch_has_a_few_mebibytes_and_what_is_larger_goes_alone(world: World) -> None:
    place = Place(batch_max=64)
    third = BATCH_BYTES_MAX // 3
    sizes = [third, third, third, 1, 2 * BATCH_BYTES_MAX, 1, *([third] * 5)]
    texts = ["ß" * (size // 2) if size > 1 else str(size) for size in sizes]
    await put(world, *texts)
    await carry_all(carrier(world, place))
    assert place.texts == texts
    assert [len(call) for call in place.calls] == [2, 2, 1, 3, 2, 1]


async def test_rows_that_come_later_wake_their_carrier_at_once(world: World) -> None:
    places = {"a": Place(), "b": Place()}
    await put(world, "early")
    async with draining(world, places.get):
        await places["a"].called(1)
        await put(world, "late")
        await put(world, "other", queue="b")
        await places["a"].called(2)
        await places["b"].called(1)
    assert places["a"].texts == ["early", "late"]
    assert places["b"].texts == ["other"]


async def test_a_dead_destination_blocks_nobody(world: World) -> None:
    places = {"a": Place(), "b": Place()}
    places["a"].down = DOWN
    async with draining(world, places.get):
        await put(world, "1", "2")
        await places["a"].called(1)
        await put(world, "x", "y", queue="b")
        await places["b"].called(2)
    assert places["b"].texts == ["x", "y"]
    assert await left(world) == ["1", "2"]


async def test_a_flush_lets_out_all_that_can_go_and_nothing_after_it(world: World) -> None:
    places = {"a": Place(), "b": Place()}
    places["b"].down, places["b"].rings = DOWN, True
    drain = Drain(world.context, places.get)
    world.store.rung = drain.ring
    await put(world, "1", "2")
    await put(world, "x", queue="b")
    with anyio.fail_after(WAIT_S):
        await drain.flush()
    assert (places["a"].texts, places["b"].calls) == (["1", "2"], [["x"]])
    async with anyio.create_task_group() as group:
        group.start_soon(drain.run, group)
        await put(world, "late", "later")
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    assert await left(world) == ["late", "later"]


async def test_the_one_timer_wakes_the_next_try(world: World, clock: FakeClock) -> None:
    place, timer = Place(), Wakeup(world.context, world.gates, Cancelling(world.context))
    place.down = DOWN
    async with draining(world, {"a": place}.get):
        await put(world, "1")
        await place.called(1)
        with anyio.fail_after(WAIT_S):
            while world.context.alarms.next_ms() is None:
                await anyio.lowlevel.checkpoint()
        nap_s = await timer.nap_s()
        assert nap_s == world.context.config.outbox.retry_base_s
        place.down = None
        clock.now_ms += round(nap_s * 1000) - 1
        await timer.work_off()
        assert world.context.alarms.next_ms() is not None
        clock.now_ms += 1
        await timer.work_off()
        await place.called(2)
    assert place.texts == ["1"]


async def test_each_failure_waits_longer_up_to_the_limit_and_is_noted_on_the_head(
    world: World, clock: FakeClock
) -> None:
    world.set("outbox", retry_base_s=2.0, retry_max_s=10.0)
    place = Place()
    place.down = DOWN
    await put(world, "1", "2")
    one, waits = carrier(world, place), []
    for _ in range(5):
        await carry_all(one)
        (head, behind) = await world.store.read(lambda reader: outbox.peek(reader, "a", 2))
        assert head.retry_at_ms is not None
        waits.append((head.retry_at_ms - clock.now_ms) / 1000)
        assert (behind.tries, behind.retry_at_ms) == (0, None)
        await wait_out(world)
    assert waits == [2, 4, 8, 10, 10]
    assert (head.tries, head.problem.code if head.problem else None) == (5, "delivery_failed")
    assert world.logged.getvalue().count("destination_down") == 1
    place.down = None
    await carry_all(one)
    assert place.texts == ["1", "2"]
    assert world.logged.getvalue().count("destination_back") == 1


async def test_a_wait_that_the_other_side_asks_for_is_kept(world: World, clock: FakeClock) -> None:
    place = Place()
    place.down = Retryable("delivery_delayed", destination="a", detail="429", after_s=120)
    await put(world, "1")
    await carry_all(carrier(world, place))
    assert world.context.alarms.next_ms() == clock.now_ms + 120_000


async def test_a_lost_confirmation_sends_again_under_the_same_id(world: World) -> None:
    place = Place()
    place.loses = 1
    (id,) = await put(world, "1")
    one = carrier(world, place)
    await carry_all(one)
    await wait_out(world)
    await carry_all(one)
    assert place.got == [(id, "1"), (id, "1")]
    assert await left(world) == []


async def test_what_is_refused_is_set_aside_and_the_rest_goes_on(world: World) -> None:
    place = Place(batch_max=3)
    place.refuses = {"2", "4"}
    await put(world, "1", "2", "3", "4", "5")
    await carry_all(carrier(world, place))
    assert place.texts == ["1", "3", "5"]
    assert await dead(world) == [("2", "delivery_refused"), ("4", "delivery_refused")]


async def test_a_destination_that_left_the_config_leaves_its_rows_to_a_person(world: World) -> None:
    (id,) = await put(world, "1")
    await carry_all(carrier(world, None))
    assert await dead(world) == [("1", "destination_gone")]
    await world.write(lambda tx: outbox.revive(tx, id))
    place = Place()
    await carry_all(carrier(world, place))
    assert place.texts == ["1"]


async def test_one_that_rings_is_not_tried_before_it_does_and_nothing_is_given_up(
    world: World, clock: FakeClock
) -> None:
    place = Place(batch_max=2)
    place.rings, place.down = True, DOWN
    await put(world, "1", "2", "3")
    caught_up: list[tuple[str, int]] = []
    async with draining(world, {"a": place}.get) as drain:
        drain.caught_up = lambda queue, sent: caught_up.append((queue, sent))
        await place.called(1)
        await anyio.wait_all_tasks_blocked()
        assert len(place.calls) == 1
        assert world.context.alarms.next_ms() is None
        assert drain.behind(["a", "b"]) == {"a": 0}
        clock.now_ms += 400 * DAY_MS
        place.down = None
        drain.ring_all()
        await place.called(3)
        await anyio.wait_all_tasks_blocked()
        assert (caught_up, drain.behind(drain.queues())) == ([("a", 3)], {})
    assert place.texts == ["1", "2", "3"]
    assert (await left(world), await dead(world)) == ([], [])


async def test_what_is_down_too_long_is_given_up_row_by_row_but_not_hammered(world: World, clock: FakeClock) -> None:
    world.set("outbox", give_up_days=1.0)
    place = Place()
    place.down = DOWN
    await put(world, "old", "older")
    one = carrier(world, place)
    clock.now_ms += DAY_MS - 1
    await carry_all(one)
    assert await dead(world) == []
    await wait_out(world)
    await carry_all(one)
    assert await dead(world) == [("old", "given_up")]
    assert len(place.calls) == 2, "the next row waits for its own try"
    await wait_out(world)
    await carry_all(one)
    assert [text for text, _ in await dead(world)] == ["old", "older"]


async def test_a_day_of_outage_loses_nothing_and_repeats_nothing(world: World, clock: FakeClock) -> None:
    place = Place()
    place.down = DOWN
    one, sent = carrier(world, place), []
    began_ms = clock.now_ms
    while clock.now_ms < began_ms + DAY_MS:
        sent += await put(world, str(len(sent)))
        await carry_all(one)
        await wait_out(world)
    assert 90 < len(place.calls) < 130
    place.down, place.loses = None, 1
    for _ in range(3):
        await carry_all(one)
        if world.context.alarms.next_ms() is not None:
            await wait_out(world)
    ids = [id for id, _ in place.got]
    assert ids[0] == ids[1], "only the one whose confirmation was lost comes twice"
    assert ids[1:] == sent


class Crash(Exception):
    """The daemon dies."""


class Dying(Place):
    """A destination that follows a script: each send is taken, lost, confirmed in vain, or the daemon's last."""

    def __init__(self, script: list[str], batch_max: int) -> None:
        super().__init__(batch_max)
        self.script = script

    async def send(self, batch: Sequence[Delivery]) -> None:
        step = self.script.pop(0) if self.script else "ok"
        if step == "die before":
            raise Crash
        if step == "down":
            raise DOWN
        self.got += [(delivery.id, delivery.body["text"]) for delivery in batch]
        if step == "die after":
            raise Crash
        if step == "lost":
            raise DOWN


STEPS = st.lists(st.sampled_from(["ok", "down", "lost", "die before", "die after", "put", "put"]), max_size=30)


@settings(max_examples=60)
@given(STEPS, st.integers(1, 3))
def test_wherever_it_dies_each_arrives_in_order_and_a_second_one_has_the_firsts_id(steps: list[str], size: int) -> None:
    async def run() -> None:
        with tempfile.TemporaryDirectory() as path:
            clock = FakeClock()
            world = World(Path(path) / "world", clock)
            place, sent = Dying([], size), await put(world, "0", "1", "2")
            one = carrier(world, place)
            for step in [*steps, "ok", "ok"]:
                if step == "put":
                    sent += await put(world, str(len(sent)))
                    continue
                place.script = [step]
                try:
                    await carry_all(one)
                except Crash:
                    await world.restart()
                    one = carrier(world, place)
                clock.now_ms += DAY_MS // 100
            await carry_all(one)
            assert [id for n, (id, _) in enumerate(place.got) if id not in dict(place.got[:n])] == sent
            assert dict(place.got) == {id: str(n) for n, id in enumerate(sent)}
            assert await left(world) == []
            assert await world.differences() == []
            world.close()

    anyio.run(run)


async def test_a_destination_says_when_it_wants_its_batch(world: World, clock: FakeClock) -> None:
    place = Place()
    place.due = clock.now_ms + 5_000
    await put(world, "1")
    one = carrier(world, place)
    await carry_all(one)
    assert place.calls == []
    await wait_out(world)
    await carry_all(one)
    assert place.texts == ["1"]


async def test_a_full_disk_delays_the_confirmation_and_repeats_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, write, failures = Place(), world.store.write, 2

    async def full(fn: Any, **more: Any) -> Any:
        nonlocal failures
        if failures:
            failures -= 1
            raise Retryable("disk_full", path="/", detail="full")
        return await write(fn, **more)

    await put(world, "1", "2")
    monkeypatch.setattr(world.store, "write", full)
    monkeypatch.setattr("omnid.flow.insist.BACKOFF", CONFIRM_AT_ONCE)
    await carry_all(carrier(world, place))
    assert place.texts == ["1", "2"]
    assert world.logged.getvalue().count("confirmation_waits") == 1


async def test_a_stop_lets_what_is_on_its_way_be_confirmed(world: World) -> None:
    begun, go = anyio.Event(), anyio.Event()

    class Slow(Place):
        async def send(self, batch: Sequence[Delivery]) -> None:
            begun.set()
            await go.wait()
            await super().send(batch)

    place = Slow()
    await put(world, "1", "2")
    async with draining(world, {"a": place}.get) as drain, anyio.create_task_group() as group:
        await begun.wait()
        group.start_soon(drain.finish)
        await anyio.lowlevel.checkpoint()
        go.set()
    assert place.texts == ["1"]
    assert await left(world) == ["2"]
