"""What a runner does that is told to stop: who hears of it, and what goes back."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import anyio
import pytest

from omnid.flow import remote
from omnid.link.interface import Message
from omnid.model import Cancel, Heartbeat, Watch
from tests.fakes.clock import FakeClock
from tests.fakes.station import Bench, command
from tests.fakes.world import World

pytestmark = pytest.mark.anyio


@pytest.fixture
def bench(tmp_path: Path, clock: FakeClock) -> Iterator[Bench]:
    """Not the `world` of other tests: a runner has attempts without tasks."""
    world = World(tmp_path / "world", clock)
    yield Bench(world, clock)
    world.close()


async def test_who_leaves_begins_nothing_and_gives_back_what_has_not_begun(bench: Bench) -> None:
    async with bench.runs():
        bench.cable.bring(*map(command, range(4)))
        await anyio.wait_all_tasks_blocked()
        await bench.remote.leave()
        assert sorted(await bench.owed()) == [("a2", "unstarted"), ("a3", "unstarted")]
        assert bench.cable.acked == ["a0", "a1", "a2", "a3"]
        bench.cable.bring(command(2), command(4))
        await anyio.wait_all_tasks_blocked()
        assert (await bench.owed())[2:] == [("a4", "unstarted")], "what went back is known"
        assert (bench.remote.given_back, bench.remote.idle.is_set()) == (3, False)
        for number in range(2):
            bench.let(number)
        await bench.remote.idle.wait()
        assert bench.started == ["0", "1"]


async def test_who_leaves_waits_until_those_who_send_to_it_have_heard(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "LINGER_S", 0.0)
    gone = anyio.Event()

    async def leave() -> None:
        await bench.remote.leave()
        gone.set()

    async with bench.runs(), anyio.create_task_group() as group:
        for name in ("home", "away"):
            # What was said to an earlier runner that has left by now says nothing.
            bench.cable.bring(Watch(60.0, heard_leaving=True), sender=name)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(leave)
        await anyio.wait_all_tasks_blocked()
        bench.cable.bring(Watch(60.0, heard_leaving=True))
        bench.cable.bring(command(0), Watch(60.0), sender="away")  # By one that was being told.
        await anyio.wait_all_tasks_blocked()
        assert (gone.is_set(), bench.cable.acked[-2:]) == (False, ["Watch", "a0"])
        assert [beat.leaving for _, beat in bench.cable.sent[-2:] if isinstance(beat, Heartbeat)] == [True, True]
        bench.cable.bring(Watch(60.0, heard_leaving=True), sender="away")
        await gone.wait()


async def test_a_daemon_that_can_not_be_told_keeps_nothing_from_going_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = bench.cable.send

    async def hangs(to: str, batch: Sequence[Message]) -> None:
        if to == "deaf":
            await anyio.sleep_forever()
        await send(to, batch)

    async with bench.runs():
        bench.cable.bring(*map(command, range(3)), Watch(60.0))
        bench.cable.bring(Watch(60.0), sender="deaf")
        await anyio.wait_all_tasks_blocked()
        monkeypatch.setattr(bench.cable, "send", hangs)
        with anyio.move_on_after(0.5):
            await bench.remote.leave()
        assert await bench.owed() == [("a2", "unstarted")]
        told = [name for name, beat in bench.cable.sent if isinstance(beat, Heartbeat) and beat.leaving]
        assert told == ["home"]


async def test_who_leaves_does_not_wait_for_ever_for_who_is_away(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "LINGER_S", 0.0)
    monkeypatch.setattr(remote, "HEARD_S_MAX", 0.01)
    async with bench.runs():
        bench.cable.bring(Watch(60.0))
        await anyio.wait_all_tasks_blocked()
        await bench.remote.leave()


@pytest.mark.parametrize("again", [False, True], ids=["same-process", "next-start"])
async def test_what_the_broker_may_bring_again_is_given_back_when_it_has_and_never_runs(
    bench: Bench, again: bool
) -> None:
    async with bench.runs():
        bench.cable.bring(*map(command, range(3)))
        await anyio.wait_all_tasks_blocked()
        bench.cable.down = True
        await bench.remote.leave()
        assert await bench.owed() == []
        if not again:
            bench.cable.down = False
            await comes_back(bench)
            assert bench.remote.given_back == 1
    if again:
        bench.cable.down = False
        bench.again()
        async with bench.runs():
            await comes_back(bench)
    assert sorted(bench.started) == sorted(["0", "1"] * (1 + again))


async def comes_back(bench: Bench) -> None:
    """Brings the command again that was to go back, and the cancel of a person who has decided about it meanwhile."""
    await anyio.wait_all_tasks_blocked()
    assert await bench.owed() == [], "another end may have got it"
    bench.cable.acked.clear()
    bench.cable.bring(command(2), Cancel("a2"), tag="again")
    await anyio.wait_all_tasks_blocked()
    assert bench.cable.acked == ["again", "again"]
    assert await bench.owed() == [("a2", "unstarted")]


async def test_who_may_have_lost_its_name_gives_nothing_back(bench: Bench) -> None:
    async with bench.runs():
        bench.cable.bring(*map(command, range(3)))
        await anyio.wait_all_tasks_blocked()
        bench.cable.nameless = True
        await bench.remote.leave()
        assert [one.begun.command.attempt_id for one in await bench.ledger.open()] == ["a0", "a1"]
        assert (bench.cable.acked, await bench.owed()) == (["a0", "a1"], [])
