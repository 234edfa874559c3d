"""What waits for the cloud, and what has failed at a provider that is only slow."""

from typing import Any

import pytest

from omnid.executor.model import Tried
from omnid.executor.model_errors import CLOUD_TIMEOUT_S, Failure
from omnid.flow import reach
from omnid.flow.reach import SLOW_PARKS_MAX, Reach
from tests.fakes.clock import FakeClock
from tests.fakes.world import World

pytestmark = pytest.mark.anyio
CALL: Any = None
UNSENT = Tried(CALL, Failure("cloud", "its name can't be resolved"))
SLOW = Tried(CALL, Failure("cloud", "nothing came from it in time", may_cost=True))
CUT = Tried(CALL, Failure("cut", "it broke off", may_cost=True))


async def test_what_was_never_sent_waits_for_the_cloud_however_often(world: World) -> None:
    kept = Reach(world.context)
    for _ in range(9):
        assert kept.is_away("t", [UNSENT])
        kept.parked("t", [UNSENT])
    assert not kept.is_away("t", [CUT])


@pytest.mark.parametrize("tried", [[SLOW], [UNSENT, SLOW]], ids=["alone", "beside_one_that_is_gone"])
async def test_a_slow_provider_has_failed_where_the_cloud_answers(world: World, clock: FakeClock, tried: Any) -> None:
    kept, modes = Reach(world.context), world.context.modes
    clock.now_s += 100
    clock.now_ms += 100_000
    modes.channel_was("other", away=False)
    assert not kept.is_away("t", tried)
    modes.cloud_was(good=False)
    assert kept.is_away("t", tried), "it is gone by now"


async def test_where_nothing_was_heard_of_the_cloud_a_task_waits_a_few_times(
    world: World, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach, "TASKS_MAX", 1)
    kept = Reach(world.context)
    clock.now_s += CLOUD_TIMEOUT_S
    clock.now_ms += round(1000 * CLOUD_TIMEOUT_S)
    for _ in range(SLOW_PARKS_MAX):
        assert kept.is_away("t", [SLOW])
        kept.parked("t", [SLOW])
    assert not kept.is_away("t", [SLOW])
    assert kept.is_away("another", [SLOW])
    kept.parked("another", [SLOW])
    assert kept.is_away("t", [SLOW]), "it was forgotten"


async def test_a_machine_that_has_just_woken_waits_for_its_network(world: World, clock: FakeClock) -> None:
    kept = Reach(world.context)
    assert not kept.is_away("t", [SLOW])
    clock.now_ms += 3_600_000
    assert kept.is_away("t", [SLOW])
