"""The outbox: order, bounds and counts of every queue, whatever comes between, on a real database."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnid.errors import Rejected
from omnid.model import Delivery, Problem
from omnid.store import outbox
from omnid.store.interface import Tx
from tests.fakes.clock import FakeClock
from tests.fakes.world import World

pytestmark = pytest.mark.anyio

PROBLEM = Problem.make("delivery_failed", destination="a", detail="no")


def put(tx: Tx, destination: str, text: str, rows_max: int = 100) -> str:
    return outbox.put(tx, destination, "answer", "t", {"text": text}, rows_max=rows_max)


async def texts(world: World, destination: str, limit: int = 100) -> list[str]:
    rows = await world.store.read(lambda reader: outbox.peek(reader, destination, limit))
    return [row.body["text"] for row in rows]


async def dead(world: World) -> list[Delivery]:
    return await world.store.read(lambda reader: outbox.dead(reader, 0, 100))


async def test_each_destination_has_a_queue_of_its_own_in_order(world: World) -> None:
    for name in ("a1", "b1", "a2", "b2"):
        await world.write(lambda tx: put(tx, name[0], name))  # noqa: B023
    assert await texts(world, "a") == ["a1", "a2"]
    assert await texts(world, "b", 1) == ["b1"]
    assert await world.store.read(outbox.destinations) == ["a", "b"]


async def test_what_was_confirmed_leaves_no_trace(world: World) -> None:
    before = await world.rows("SELECT count(*) FROM change")
    id = await world.write(lambda tx: put(tx, "a", "x"))
    await world.write(lambda tx: outbox.postpone(tx, id, 5, PROBLEM))
    assert await world.write(lambda tx: outbox.confirm(tx, [id, "nobody"])) == 1
    assert await world.write(lambda tx: outbox.confirm(tx, [id])) == 0
    assert await world.rows("SELECT count(*) FROM change") == before
    assert await world.store.read(outbox.destinations) == []


async def test_a_full_queue_loses_its_oldest_and_says_how_many(world: World) -> None:
    for number in range(5):
        await world.write(lambda tx: put(tx, "a", str(number), 3))  # noqa: B023
    await world.write(lambda tx: put(tx, "b", "other", 3))
    assert await texts(world, "a") == ["2", "3", "4"]
    await world.restart()
    await world.write(lambda tx: put(tx, "a", "5", 2))
    assert await texts(world, "a") == ["4", "5"]
    found = await world.store.read(outbox.waiting)
    assert [(one.destination, one.rows, one.dead, one.dropped) for one in found] == [("a", 2, 0, 4), ("b", 1, 0, 0)]


@pytest.mark.parametrize("leaves", ["confirm", "bury"])
async def test_what_leaves_a_full_queue_makes_room(world: World, leaves: str) -> None:
    ids = [await world.write(lambda tx: put(tx, "a", str(number), 3)) for number in range(3)]  # noqa: B023
    if leaves == "confirm":
        await world.write(lambda tx: outbox.confirm(tx, ids[:1]))
    else:
        await world.write(partial(outbox.bury, id=ids[0], problem=PROBLEM, rows_max=9))
    await world.write(lambda tx: put(tx, "a", "3", 3))
    assert await texts(world, "a") == ["1", "2", "3"]
    if leaves == "bury":
        await world.write(lambda tx: outbox.revive(tx, ids[0]))
        await world.write(lambda tx: put(tx, "a", "4", 3))
        assert await texts(world, "a") == ["2", "3", "4"]


async def test_a_try_that_failed_is_kept_with_its_reason(world: World) -> None:
    id = await world.write(lambda tx: put(tx, "a", "x"))
    for number in (1, 2):
        await world.write(partial(outbox.postpone, id=id, retry_at_ms=number * 1000, problem=PROBLEM))
    (row,) = await world.store.read(lambda reader: outbox.peek(reader, "a", 9))
    assert (row.tries, row.retry_at_ms, row.problem) == (2, 2000, PROBLEM)


async def test_what_is_given_up_waits_for_a_person_and_goes_back_to_its_place(world: World, clock: FakeClock) -> None:
    first = await world.write(lambda tx: put(tx, "a", "1"))
    await world.write(lambda tx: put(tx, "a", "2"))
    assert await world.write(partial(outbox.bury, id=first, problem=PROBLEM, rows_max=9))
    assert not await world.write(partial(outbox.bury, id=first, problem=PROBLEM, rows_max=9))
    assert not await world.write(partial(outbox.postpone, id=first, retry_at_ms=1, problem=PROBLEM))
    assert await texts(world, "a") == ["2"]
    (row,) = await dead(world)
    assert (row.id, row.dead_at_ms, row.problem) == (first, clock.now_ms, PROBLEM)
    clock.now_ms += 1000
    await world.write(lambda tx: outbox.revive(tx, first))
    rows = await world.store.read(lambda reader: outbox.peek(reader, "a", 9))
    assert [(one.body["text"], one.tries) for one in rows] == [("1", 0), ("2", 0)]
    assert rows[0].created_at_ms == clock.now_ms
    for act in (outbox.revive, outbox.drop):
        with pytest.raises(Rejected, match="no dead delivery"):
            await world.write(partial(act, id=first))


async def test_the_dead_of_a_destination_are_bounded_too(world: World) -> None:
    for number in range(4):
        id = await world.write(lambda tx: put(tx, "a", str(number)))  # noqa: B023
        await world.write(partial(outbox.bury, id=id, problem=PROBLEM, rows_max=2))
    assert [row.body["text"] for row in await dead(world)] == ["2", "3"]
    await world.write(lambda tx: outbox.drop(tx, id))
    (found,) = await world.store.read(outbox.waiting)
    assert (found.rows, found.dead, found.dropped, found.head) == (0, 1, 2, None)


async def test_the_bell_rings_after_the_commit_and_only_then(world: World) -> None:
    heard: list[tuple[str, int]] = []
    connection = world.store._connection
    world.store.rung = lambda name: heard.append((name, connection.in_transaction))

    def fail(tx: Tx) -> None:
        put(tx, "a", "x")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await world.write(fail)
    assert heard == []
    await world.write(lambda tx: [put(tx, "a", "1"), put(tx, "a", "2"), put(tx, "b", "3")])
    assert heard == [("a", False), ("b", False)]


NAMES = st.sampled_from("ab")
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), NAMES),
        st.tuples(st.just("broken"), NAMES),
        st.tuples(st.just("confirm"), NAMES, st.integers(1, 3)),
        st.tuples(st.just("again"), NAMES),
        st.tuples(st.just("postpone"), NAMES),
        st.tuples(st.just("bury"), NAMES),
        st.tuples(st.just("revive"), st.integers(0, 3)),
        st.tuples(st.just("drop"), st.integers(0, 3)),
        st.tuples(st.just("crash")),
        st.tuples(st.just("back")),
    ),
    max_size=40,
)
ROWS_MAX = 4


class Model:
    """What must be there, in lists of our own; each step does the same to the database."""

    def __init__(self, world: World, clock: FakeClock) -> None:
        self.world = world
        self.clock = clock
        self.queues: dict[str, list[tuple[int, str]]] = {"a": [], "b": []}
        self.dead: list[tuple[int, str, str, int]] = []
        self.dropped = {"a": 0, "b": 0}
        self.ids: set[str] = set()
        self.count = 0

    async def put(self, name: str) -> None:
        self.count += 1
        id = await self.world.write(lambda tx: put(tx, name, str(self.count), ROWS_MAX))
        assert id not in self.ids, "an id is never given twice: the receiver would drop the second"
        self.ids.add(id)
        queue = self.queues[name]
        queue.append((self.count, id))
        # A row that came back from the dead may have made it longer than the limit.
        while len(queue) > ROWS_MAX:
            queue.pop(0)
            self.dropped[name] += 1

    async def broken(self, name: str) -> None:
        def fail(tx: Tx) -> None:
            put(tx, name, "never", ROWS_MAX)
            for row in outbox.peek(tx, name, 9):
                outbox.confirm(tx, [row.id])
            raise ValueError("power cut")

        with pytest.raises(ValueError, match="power"):
            await self.world.write(fail)

    async def confirm(self, name: str, count: int) -> None:
        batch = await self.world.store.read(lambda reader: outbox.peek(reader, name, count))
        assert [row.id for row in batch] == [id for _, id in self.queues[name][:count]]
        await self.world.write(lambda tx: outbox.confirm(tx, [row.id for row in batch]))
        del self.queues[name][:count]

    async def again(self, name: str) -> None:
        """A confirmation that was lost, and comes a second time for what is gone."""
        gone = sorted(self.ids - {id for queue in self.queues.values() for _, id in queue} - {d[1] for d in self.dead})
        assert await self.world.write(lambda tx: outbox.confirm(tx, gone)) == 0

    async def postpone(self, name: str) -> None:
        for _, id in self.queues[name][:1]:
            await self.world.write(partial(outbox.postpone, id=id, retry_at_ms=7, problem=PROBLEM))

    async def bury(self, name: str) -> None:
        for number, id in self.queues[name][:1]:
            await self.world.write(partial(outbox.bury, id=id, problem=PROBLEM, rows_max=ROWS_MAX))
            self.queues[name].pop(0)
            self.dead.append((number, id, name, self.clock.now_ms))
            mine = [row for row in self.dead if row[2] == name]
            if len(mine) > ROWS_MAX:
                self.dead.remove(min(mine, key=lambda row: (row[3], row[0])))
                self.dropped[name] += 1
            self.clock.now_ms += 1

    async def revive(self, index: int) -> None:
        if index < len(self.dead):
            number, id, name, _ = self.dead.pop(index)
            await self.world.write(partial(outbox.revive, id=id))
            self.queues[name] = sorted([*self.queues[name], (number, id)])

    async def drop(self, index: int) -> None:
        if index < len(self.dead):
            id = self.dead.pop(index)[1]
            await self.world.write(partial(outbox.drop, id=id))

    async def crash(self) -> None:
        await self.world.restart()

    async def back(self) -> None:
        self.clock.now_ms -= 3_600_000

    async def check(self) -> None:
        for name, queue in self.queues.items():
            assert await texts(self.world, name) == [str(number) for number, _ in queue]
        assert {row.id for row in await dead(self.world)} == {row[1] for row in self.dead}
        found = {one.destination: one for one in await self.world.store.read(outbox.waiting)}
        for name, queue in self.queues.items():
            one = found.get(name) or outbox.Waiting(name, 0, 0, 0, None)
            given_up = sum(row[2] == name for row in self.dead)
            assert (one.rows, one.dead, one.dropped) == (len(queue), given_up, self.dropped[name])


@settings(max_examples=60)
@given(OPERATIONS)
def test_whatever_happens_order_bounds_and_counts_hold_and_the_log_adds_up(operations: list[tuple[Any, ...]]) -> None:
    async def run() -> None:
        with tempfile.TemporaryDirectory() as path:
            clock = FakeClock()
            world = World(Path(path) / "world", clock)
            try:
                model = Model(world, clock)
                for name, *args in operations:
                    step: Callable[..., Any] = getattr(model, name)
                    await step(*args)
                await model.check()
                assert await world.differences() == []
            finally:
                world.close()

    anyio.run(run)
