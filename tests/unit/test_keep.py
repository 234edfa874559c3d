"""A loop of the daemon is kept going; only Fatal ends it."""

import anyio
import pytest

from omnid.errors import Fatal, Retryable
from omnid.flow.keep import keep
from omnid.retry import Backoff
from tests.fakes.world import World

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omnid.flow.keep.AGAIN", Backoff(0.001, 0.001))


async def run(world: World, *fates: Exception | None) -> None:
    left = list(fates)

    async def loop() -> None:
        fate = left.pop(0)
        if fate is not None:
            raise fate

    with anyio.fail_after(10):
        await keep("x", loop, clock=world.clock, log=world.context.log)
    assert left == []


async def test_a_loop_that_returns_is_done(world: World) -> None:
    await run(world, None)


async def test_a_fault_is_logged_each_time_and_the_loop_started_again(world: World) -> None:
    await run(world, ValueError("odd"), ValueError("odd"), None)
    assert world.logged.getvalue().count("loop_failed") == 2
    assert "ValueError: odd" in world.logged.getvalue()


async def test_a_full_disk_is_logged_once(world: World) -> None:
    full = Retryable("disk_full", path="/", detail="x")
    await run(world, full, full, full, None)
    assert world.logged.getvalue().count("loop_waits") == 1


async def test_fatal_passes(world: World) -> None:
    with pytest.raises(Fatal):
        await run(world, Fatal("store_io", path="/", detail="x"))
