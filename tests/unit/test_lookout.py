"""What a runner elsewhere can take is found behind any number of tasks that none can take now."""

import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnid.flow import lookout
from omnid.flow.dispatcher import Claimed, Dispatcher
from omnid.route.runners import Seat, Seats
from omnid.store.interface import Tx
from tests.fakes.clock import FakeClock
from tests.fakes.world import World

pytestmark = pytest.mark.anyio

CAN = frozenset({"gpu", "tpu"})
"""What some runner can do that others can't."""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookout, "FIRST_MAX", 2)
    monkeypatch.setattr(lookout, "PAGE_MAX", 3)


def seat(*labels: str, room: int = 4) -> Seat:
    return Seat(",".join(labels) or "plain", frozenset(labels), 8, room, {"command": room})


class Seated(Dispatcher):
    """A dispatcher that has the seats of the test, and no slots of its own."""

    def __init__(self, world: World, seats: Seats) -> None:
        self._context = world.context
        self._given = seats

    def _room(self, begun: Iterable[str] = (), ended: Iterable[str] = ()) -> tuple[dict[str, int], int]:
        return {}, 0

    def _seats(self, ended: Iterable[str] = ()) -> Seats:
        return self._given


class Looking:
    """Claims until nothing is left to look at, as the dispatcher does."""

    def __init__(self, world: World) -> None:
        # Nothing starts but by the tests' own calls.
        world.store.attend(lambda _: None, lambda _: None, lambda: None)
        self.world = world
        self.unheard = frozenset[str]()

    async def one(self, *seats: Seat, stirred: bool = False) -> Claimed:
        """Looks in one transaction."""
        offered = Seats(seats, CAN, self.unheard)
        return await self.world.store.write(partial(self._claim, seats=offered, stirred=stirred))

    def _claim(self, tx: Tx, seats: Seats, *, stirred: bool) -> Claimed:
        return Seated(self.world, seats)._claim(tx, stirred=stirred)

    async def all(self, *seats: Seat, stirred: bool = False) -> list[str]:
        """Gives what is claimed until nothing more can be."""
        found: list[str] = []
        for _ in range(100):
            claimed = await self.one(*seats, stirred=stirred)
            stirred = False
            found += ["".join((await self.world.task(sent.task_id)).work.argv or ()) for sent in claimed.sent]
            if not claimed.more:
                return found
        raise AssertionError("it looks on and on")


@pytest.fixture
def looking(world: World) -> Looking:
    return Looking(world)


async def add(looking: Looking, count: int, label: str = "", priority: int = 0) -> None:
    for number in range(count):
        await looking.world.add(f"{label}{number}", labels=(label,) if label else (), priority=priority)


async def test_what_may_be_meant_for_a_runner_that_was_not_heard_yet_waits_alone_and_no_longer(
    looking: Looking,
) -> None:
    await add(looking, 2, "gpu", priority=1)
    await add(looking, 11, "mine")
    await add(looking, 2)
    looking.unheard = frozenset({"command"})
    assert await looking.all(seat()) == ["0", "1"]
    assert (await looking.one(seat())).more, "it is on its way through them"
    looking.unheard = frozenset()
    assert await looking.all(seat()) == ["mine0", "mine1", "mine2", "mine3"]


async def test_what_waits_for_another_runner_holds_up_nobody_behind_it(looking: Looking) -> None:
    await add(looking, 11, "gpu", priority=1)
    await add(looking, 11, "tpu")
    await add(looking, 3)
    await add(looking, 2, "mine", priority=-1)
    assert await looking.all(seat(room=4)) == ["0", "1", "2", "mine0"]
    assert await looking.all(seat(room=4)) == ["mine1"]
    assert await looking.all(seat("tpu", room=2)) == ["tpu0", "tpu1"]
    assert await looking.all(seat("tpu", room=2), seat("gpu", room=1)) == ["gpu0", "tpu2", "tpu3"]


async def test_a_transaction_looks_at_one_page_and_the_next_goes_on_there(looking: Looking) -> None:
    await add(looking, 8, "gpu")
    await add(looking, 1)
    first, second, third = [await looking.one(seat(room=2)) for _ in range(3)]
    assert [(len(one.sent), one.more) for one in (first, second, third)] == [(0, True), (0, True), (1, True)]
    assert await looking.all(seat()) == []


async def test_who_gets_room_meanwhile_is_looked_for_from_the_first_on(looking: Looking) -> None:
    await add(looking, 3, "gpu")
    await add(looking, 1, "tpu")
    await add(looking, 12, "gpu")
    for _ in range(2):
        assert (await looking.one(seat(room=1))).more
    assert await looking.all(seat(room=1), seat("tpu", room=1)) == ["tpu0"]


async def test_what_becomes_ready_before_the_place_is_found_by_another_round(looking: Looking) -> None:
    await add(looking, 4, "gpu", priority=1)
    await add(looking, 12, "tpu")
    for _ in range(2):
        assert (await looking.one(seat(room=1))).more
    await looking.world.add("urgent", priority=1)
    assert await looking.all(seat(room=1), stirred=True) == ["urgent"]


async def test_what_becomes_ready_behind_a_search_that_is_far_ahead_does_not_wait_for_its_end(looking: Looking) -> None:
    await add(looking, 4, "gpu", priority=1)
    await add(looking, 60, "tpu")
    for _ in range(3):
        assert (await looking.one(seat())).more
    await looking.world.add("urgent", priority=1)
    found = [await looking.one(seat(), stirred=number == 0) for number in range(3)]
    assert sum(len(one.sent) for one in found) == 1
    assert found[-1].more, "the one that is far ahead goes on"
    await looking.world.add("last", priority=-1)
    assert await looking.all(seat(), stirred=True) == ["last"]


@pytest.mark.parametrize("room", [0, 4])
async def test_what_becomes_ready_while_nobody_looks_is_not_forgotten(looking: Looking, room: int) -> None:
    await add(looking, 4, "gpu", priority=1)
    await add(looking, 12, "tpu")
    for _ in range(3):
        assert (await looking.one(seat())).more
    await looking.world.add("urgent", priority=1)
    await add(looking, room, priority=2)
    # There is no room, or enough that comes before it.
    assert len((await looking.one(seat(room=room), stirred=True)).sent) == room
    assert await looking.all(seat()) == ["urgent"]


LABELS = st.sampled_from(["", "gpu", "tpu"])
STEPS = st.lists(
    st.tuples(st.none() | LABELS, st.integers(0, 2), st.sampled_from(["", "", "", "gpu"]), st.integers(0, 2)),
    min_size=3,
    max_size=20,
)
"""What becomes ready (None: nothing) and its priority, and the label and the room of the one who looks then."""


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_whatever_comes_between_nothing_that_fits_is_left(steps: list[tuple[str | None, int, str, int]]) -> None:
    async def run() -> None:
        with tempfile.TemporaryDirectory() as path:
            world = World(Path(path) / "world", FakeClock())
            looking = Looking(world)
            await add(looking, 3, "gpu", priority=1)
            await add(looking, 12, "tpu")
            for label, priority, of, room in steps:
                if label is not None:
                    await add(looking, 1, label, priority)
                await looking.one(seat(*filter(None, (of,)), room=room), stirred=label is not None)
            await looking.all(seat(room=len(steps)))
            left = await world.rows("SELECT labels FROM task WHERE ready = 1")
            assert all(text and ("gpu" in text or "tpu" in text) for (text,) in left), left
            world.close()

    anyio.run(run)
