"""The rows of outages of links: one for each, with what waited and what went out, whatever ends meanwhile."""

import anyio
import pytest

from omnid.errors import Retryable
from omnid.flow.fleet import Fleet
from tests.fakes.cable import DOWN, Bench, beat
from tests.fakes.clock import FakeClock
from tests.fakes.world import World

pytestmark = pytest.mark.anyio

WAITING = 5
ROWS = "SELECT parked, resumed, ended_at_ms - began_at_ms FROM outage WHERE cause = 'link' ORDER BY ord"


async def goes_down(bench: Bench) -> None:
    """Leaves one command in the outbox, and more behind the gate."""
    bench.cable.bring("a", beat(1))
    await settled()
    bench.cable.lose = True
    await bench.world.add("sent")
    await bench.sent(1)
    for number in range(WAITING):
        await bench.world.add(f"{number}")
    await settled()


async def settled() -> None:
    for _ in range(3):
        await anyio.wait_all_tasks_blocked()


async def restarted(bench: Bench) -> Bench:
    """The next daemon, which has not dialled yet."""
    await bench.world.restart()
    bench.world.context.fleet = Fleet(bench.world.clock)
    fresh = Bench(bench.world)
    fresh.config("a")
    return fresh


@pytest.fixture
def bench(world: World) -> Bench:
    made = Bench(world)
    made.config("a")
    return made


@pytest.mark.parametrize("back_before_the_daemon", [True, False])
async def test_a_daemon_that_starts_in_its_midst_ends_the_row_with_all_that_waited(
    bench: Bench, clock: FakeClock, back_before_the_daemon: bool
) -> None:
    async with bench.runs():
        await goes_down(bench)
    clock.now_ms += 60_000
    fresh = await restarted(bench)
    async with fresh.runs(up=back_before_the_daemon):
        if not back_before_the_daemon:
            assert await fresh.world.rows(ROWS) == [(None, None, None)]
            fresh.cable.turn(None)
            await settled()
        assert await fresh.world.rows(ROWS) == [(1 + WAITING, 1 + WAITING, 60_000)]
        assert fresh.world.gates.all() == []
        assert [one.work.argv for one in await fresh.sent(1)] == [("sent",)]
    assert '"event":"link_up","link":"cable","down_s":60.0,"sent":1' in fresh.world.logged.getvalue()


async def test_the_row_of_a_link_that_left_the_config_meanwhile_is_ended_too(bench: Bench) -> None:
    async with bench.runs():
        await goes_down(bench)
    fresh = await restarted(bench)
    fresh.config("a", links=("other",))
    async with fresh.runs():
        await settled()
        ((_, _, took_ms),) = await fresh.world.rows(ROWS)
        assert took_ms is not None


async def test_what_did_not_go_out_before_the_next_one_is_left_out(bench: Bench) -> None:
    async with bench.runs():
        await goes_down(bench)
        bench.cable.lose = True
        bench.cable.turn(None)
        await settled()
        first, second = await bench.world.rows(ROWS)
        assert (first[:2], second) == ((1 + WAITING, WAITING), (None, None, None))
        bench.cable.turn(None)
        await settled()
        first, second = await bench.world.rows(ROWS)
        assert (first[:2], second[:2]) == ((1 + WAITING, WAITING), (1 + WAITING, 1 + WAITING))


async def test_nothing_goes_out_before_it_is_counted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    counted, opened = anyio.Event(), bench.world.gates.link_up

    async def link_up(link: str) -> None:
        await counted.wait()
        await opened(link)

    async with bench.runs():
        await goes_down(bench)
        monkeypatch.setattr(bench.world.gates, "link_up", link_up)
        bench.cable.turn(None)
        await settled()
        assert len(bench.cable.commands()) == 1
        counted.set()
        await bench.sent(2)
    assert (await bench.world.rows(ROWS))[0][:2] == (1 + WAITING, 1 + WAITING)


async def test_a_store_that_can_not_take_the_end_of_an_outage_keeps_back_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(_link: str) -> None:
        raise Retryable("disk_full", detail="no room", path="/journal")

    async with bench.runs():
        await goes_down(bench)
        with monkeypatch.context() as patched:
            patched.setattr(bench.world.gates, "link_up", full)
            bench.cable.turn(None)
            await bench.sent(2)
        bench.cable.turn(DOWN)
        bench.cable.turn(None)
        await bench.cable.until(lambda: not bench.world.gates.all())
