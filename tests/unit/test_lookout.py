"""What a runner elsewhere can take is found behind any number of tasks that none can take now."""

from functools import partial

import pytest

from omnid.flow import lookout
from omnid.flow.dispatcher import Claimed, claim
from omnid.route.runners import Seat, Seats
from omnid.store.interface import Tx
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


class Looking:
    """Claims until nothing is left to look at, as the dispatcher does."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.unheard = frozenset[str]()

    async def one(self, *seats: Seat, stirred: bool = False) -> Claimed:
        """Looks in one transaction."""
        offered = Seats(seats, CAN, self.unheard)
        return await self.world.store.write(partial(self._claim, seats=offered, stirred=stirred))

    def _claim(self, tx: Tx, seats: Seats, *, stirred: bool) -> Claimed:
        context, tx.stirred = self.world.context, stirred
        return claim(tx, context, free={}, slots_free=0, seats=seats)

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
    world.store.attend(lambda _: None, lambda _: None, lambda: None)  # Nothing starts but by the tests' own calls.
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
