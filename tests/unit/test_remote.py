"""What a runner does with what comes: slots, limits of executors, what comes twice, heartbeats for those who ask."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import anyio
import msgspec
import pytest

from omnid.errors import Retryable
from omnid.flow import remote
from omnid.model import Cancel, Heartbeat, Watch, Work
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


async def test_what_has_no_slot_stays_unacknowledged_and_goes_on_in_order(bench: Bench) -> None:
    async with bench.runs():
        bench.cable.bring(*map(command, range(4)))
        await anyio.wait_all_tasks_blocked()
        assert bench.started == ["0", "1"]
        assert bench.cable.acked == ["a0", "a1"]
        bench.let(1)
        await anyio.wait_all_tasks_blocked()
        assert bench.started == ["0", "1", "2"]
        assert bench.cable.acked == ["a0", "a1", "a2"]
        assert await bench.owed() == [("a1", "success")]


async def test_an_executor_that_is_full_holds_up_no_other(bench: Bench) -> None:
    async with bench.runs():
        bench.cable.bring(command(0, "single"), command(1, "single"), command(2))
        await anyio.wait_all_tasks_blocked()
        assert bench.started == ["0", "2"]


async def test_what_comes_again_is_acknowledged_and_not_done_again(bench: Bench) -> None:
    async with bench.runs():
        bench.cable.bring(command(0), command(0), command(1), command(2), command(2))
        await anyio.wait_all_tasks_blocked()
        assert bench.cable.acked == ["a0", "a0", "a1"]
        bench.cable.bring(command(1), tag="again")
        await anyio.wait_all_tasks_blocked()
        assert bench.cable.acked[3:] == ["again"]
        bench.let(0)
        await anyio.wait_all_tasks_blocked()
        assert bench.cable.acked[4:] == ["a2", "a2"]
        bench.let(2)
        bench.cable.bring(command(0), tag="late")
        await anyio.wait_all_tasks_blocked()
        assert bench.cable.acked[6:] == ["late"]
        assert bench.started == ["0", "1", "2"]


async def test_without_a_link_what_has_begun_goes_on_and_what_has_not_comes_again(bench: Bench) -> None:
    async with bench.runs():
        bench.cable.bring(*map(command, range(3)))
        await anyio.wait_all_tasks_blocked()
        bench.cable.down = True
        bench.remote.link_down()
        bench.let(0)
        await anyio.wait_all_tasks_blocked()
        assert bench.started == ["0", "1"]
        assert await bench.owed() == [("a0", "success")]
        bench.cable.down = False
        bench.cable.bring(command(2))
        await anyio.wait_all_tasks_blocked()
        assert bench.started == ["0", "1", "2"]


async def test_where_another_may_have_its_name_it_begins_nothing(bench: Bench) -> None:
    async with bench.runs():
        bench.cable.bring(*map(command, range(3)))
        await anyio.wait_all_tasks_blocked()
        bench.cable.nameless = True  # It was stopped for longer than its lease.
        bench.let(0)
        await anyio.wait_all_tasks_blocked()
        assert await bench.owed() == [("a0", "success")]
        assert bench.started == ["0", "1"]
        bench.remote.link_down()
        bench.cable.nameless = False
        bench.cable.bring(command(2))
        await anyio.wait_all_tasks_blocked()
        assert bench.started == ["0", "1", "2"]


async def test_no_more_is_held_than_memory_is_meant_to_take(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "HELD_MIN", 2)
    monkeypatch.setattr(remote, "WATCHERS_MAX", 0)
    async with bench.runs():
        await anyio.wait_all_tasks_blocked()
        bench.cable.bring(*map(command, range(4)))
        await anyio.wait_all_tasks_blocked()
        bench.cable.bring(command(4))
        await anyio.wait_all_tasks_blocked()
        assert len(bench.cable._come) == 1
        bench.let(0)
        await anyio.wait_all_tasks_blocked()
        assert bench.cable._come == []


async def test_a_cancel_gets_through_behind_all_that_daemons_send_at_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "HELD_MIN", 1)
    async with bench.runs():
        full = remote.WATCHERS_MAX * 2 * 2
        bench.cable.bring(*map(command, range(full)))
        await anyio.wait_all_tasks_blocked()
        bench.cable.bring(Cancel(f"a{full - 1}"))
        await anyio.wait_all_tasks_blocked()
        assert await bench.owed() == [(f"a{full - 1}", "cancelled")]


async def test_a_cancel_ends_what_runs_and_what_waits_before_it_begins(bench: Bench) -> None:
    async with bench.runs():
        bench.cable.bring(*map(command, range(3)))
        await anyio.wait_all_tasks_blocked()
        bench.cable.bring(Cancel("a2"), Cancel("a0"), Cancel("unknown"))
        await anyio.wait_all_tasks_blocked()
        assert bench.started == ["0", "1"]
        assert await bench.owed() == [("a2", "cancelled"), ("a0", "cancelled")]
        assert bench.cable.acked == ["a0", "a1", "a2", "a2", "a0", "unknown"]


async def test_a_command_whose_cancel_lay_behind_it_at_the_broker_never_begins(bench: Bench) -> None:
    async with bench.runs():
        bench.cable.bring(command(0), Cancel("a0"))
        await anyio.wait_all_tasks_blocked()
        assert bench.started == []
        assert await bench.owed() == [("a0", "cancelled")]
        assert bench.cable.acked == ["a0", "a0"]


async def test_nothing_begins_before_all_has_come_that_lay_at_the_broker(bench: Bench) -> None:
    async with bench.runs():
        bench.cable.bring(command(0))
        await anyio.wait_all_tasks_blocked()
        for again in (False, True):
            bench.cable.holds_back = True
            bench.cable.down = True
            bench.remote.link_down()
            bench.cable.down = False
            bench.cable.bring(command(1), command(2))  # As a page of them, with their cancels in the next.
            await anyio.wait_all_tasks_blocked()
            assert bench.started == ["0"]
            if not again:
                continue
            bench.cable.bring(Cancel("a1"))
            bench.cable.holds_back = False
            await anyio.wait_all_tasks_blocked()
            assert bench.started == ["0", "2"]
            assert await bench.owed() == [("a1", "cancelled")]


async def test_what_had_begun_and_never_ran_waits_for_what_lay_at_the_broker_and_goes_first(bench: Bench) -> None:
    async with bench.runs():
        bench.cable.bring(command(0), command(1))
        await anyio.wait_all_tasks_blocked()
    bench.again()
    bench.cable.holds_back = True
    async with bench.runs():
        bench.cable.bring(command(2))
        await anyio.wait_all_tasks_blocked()
        assert bench.started == ["0", "1"]
        bench.cable.bring(Cancel("a1"))  # A person has decided about it meanwhile.
        bench.cable.holds_back = False
        await anyio.wait_all_tasks_blocked()
        assert bench.started == ["0", "1", "0", "2"]
        assert await bench.owed() == [("a1", "cancelled")]


async def test_where_the_broker_takes_no_mark_nothing_waits_for_one(bench: Bench) -> None:
    bench.cable.is_full = True
    async with bench.runs():
        bench.cable.bring(command(0))
        await anyio.wait_all_tasks_blocked()
        assert bench.started == ["0"]


async def test_a_cancel_is_kept_before_it_is_acknowledged_and_holds_at_the_next_start(bench: Bench) -> None:
    async with bench.runs():
        bench.cable.bring(*map(command, range(3)))
        await anyio.wait_all_tasks_blocked()
        bench.executor.deaf = True  # As when it dies before it passes the cancel on.
        bench.cable.bring(Cancel("a1"), Cancel("a1"), Cancel("a2"))
        await anyio.wait_all_tasks_blocked()
        assert bench.cable.acked[2:] == ["a1", "a1", "a2", "a2"]
    assert [(one.begun.command.attempt_id, one.cancelled) for one in await bench.ledger.open()] == [
        ("a0", False),
        ("a1", True),
    ]
    bench.again()
    async with bench.runs():
        bench.cable.bring(command(2), tag="again")  # As where the acknowledgement didn't get through.
        await anyio.wait_all_tasks_blocked()
        assert bench.cable.acked == ["again"]
        assert bench.started == ["0", "1", "0"]
        assert sorted(await bench.owed()) == [("a1", "cancelled"), ("a2", "cancelled")]


async def test_what_it_had_begun_is_not_given_back_where_its_executor_is_offered_no_more(bench: Bench) -> None:
    async with bench.runs():
        await anyio.wait_all_tasks_blocked()
        bench.cable.down = True  # It dies before the acknowledgement.
        bench.cable.bring(command(0, "single"))
        await anyio.wait_all_tasks_blocked()
        bench.let(0)
        await anyio.wait_all_tasks_blocked()
        assert await bench.owed() == [("a0", "success")]
        bench.cable.down = False
        executors = bench.world.context.executors
        bench.world.context.take_executors({"command": executors["command"]})
        bench.cable.bring(command(0, "single"), command(1, "single"))
        await anyio.wait_all_tasks_blocked()
        assert (bench.cable.acked, bench.cable.refused) == (["a0"], ["a1"])
        assert await bench.owed() == [("a0", "success"), ("a1", "unstarted")]


async def test_what_it_has_given_back_never_begins_not_even_where_its_executor_is_offered_by_then(bench: Bench) -> None:
    async with bench.runs():
        executors = dict(bench.world.context.executors)
        bench.world.context.take_executors({"command": executors["command"]})
        bench.cable.down = True  # It can't be set aside.
        bench.cable.bring(command(0, "single"))
        await anyio.wait_all_tasks_blocked()
        bench.cable.down = False
        bench.world.context.take_executors(executors)
        bench.cable.bring(command(0, "single"))
        await anyio.wait_all_tasks_blocked()
        assert (bench.started, bench.cable.acked, bench.cable.refused) == ([], ["a0"], [])
        assert await bench.owed() == [("a0", "unstarted")]


async def test_what_can_not_be_kept_is_not_acknowledged(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def closed(*_: Any, **__: Any) -> None:
        raise Retryable("store_closed")

    async with bench.runs():
        bench.cable.bring(*map(command, range(3)))
        await anyio.wait_all_tasks_blocked()
        monkeypatch.setattr(bench.world.store, "write", closed)
        bench.cable.bring(Cancel("a0"), Cancel("a2"), command(3, "codex"))
        await anyio.wait_all_tasks_blocked()
        assert bench.cable.acked == ["a0", "a1"]
        assert bench.cable.refused == []


async def test_what_one_message_fails_with_holds_up_no_other(bench: Bench) -> None:
    async with bench.runs():
        bench.cable.bring(command(0))
        await anyio.wait_all_tasks_blocked()
        bench.executor.broken = True
        bench.cable.bring(Cancel("a0"), Watch(cast("float", "soon")), command(1))
        await anyio.wait_all_tasks_blocked()
        assert bench.started == ["0", "1"]
        assert sorted(bench.cable.acked) == ["a0", "a0", "a1"]
        assert bench.world.logged.getvalue().count("guard_ended") == 2


async def test_those_who_ask_hear_how_it_is_until_their_time_has_passed(bench: Bench) -> None:
    async with bench.runs():
        bench.cable.bring(command(0), Watch(60.0, "now"))
        await anyio.wait_all_tasks_blocked()
        ((to, beat),) = bench.cable.sent
        assert to == "home"
        assert isinstance(beat, Heartbeat)
        assert (beat.slots, beat.labels, beat.executors) == (2, ("gpu",), {"command": 2, "single": 1})
        assert beat.token == "now"
        bench.clock.now_s += 61.0
        await bench.remote.tell()
        assert len(bench.cable.sent) == 1
        assert bench.remote.heartbeat().running == 1


async def test_who_asks_beyond_the_limit_is_named_and_takes_the_next_place(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "WATCHERS_MAX", 1)
    async with bench.runs():
        bench.cable.bring(Watch(10.0), sender="first")
        for _ in range(2):
            bench.cable.bring(Watch(60.0), sender="second")
        await anyio.wait_all_tasks_blocked()
        assert {to for to, _ in bench.cable.sent} == {"first"}
        assert bench.remote.turned_away == 1
        assert bench.world.logged.getvalue().count('"watcher_turned_away","daemon":"second"') == 1
        bench.clock.now_s += 11.0
        bench.cable.bring(Watch(60.0), sender="second")
        await anyio.wait_all_tasks_blocked()
        assert [to for to, _ in bench.cable.sent][-1] == "second"
        assert bench.remote.turned_away == 0


async def test_an_executor_that_is_down_is_not_offered_for_a_while(bench: Bench) -> None:
    bench.down = True
    async with bench.runs():
        bench.cable.bring(command(0))
        await anyio.wait_all_tasks_blocked()
        assert await bench.owed() == [("a0", "unstarted")]
        assert bench.remote.heartbeat().executors == {"single": 1}
        bench.clock.now_s += 31.0
        assert "command" in bench.remote.heartbeat().executors
        bench.down = False
        bench.cable.bring(command(1))
        bench.let(1)
        await anyio.wait_all_tasks_blocked()
        assert "executor_up" in bench.world.logged.getvalue()


@pytest.mark.parametrize("id", ["", ".", "..", "../../evil", "/etc", "a/b", "a\n", "nul\0", "ß", "x" * 65])
async def test_an_attempt_whose_id_would_lead_out_of_the_spool_is_set_aside(bench: Bench, id: str) -> None:
    async with bench.runs():
        bench.cable.bring(msgspec.structs.replace(command(0), attempt_id=id), command(1))
        await anyio.wait_all_tasks_blocked()
        assert bench.cable.refused == [id]
        assert await bench.owed() == [], "no daemon gives such an id, and the ledger would remove what it names"
        assert bench.started == ["1"]


async def test_what_is_not_offered_is_answered_and_set_aside(bench: Bench) -> None:
    async with bench.runs():
        tree = msgspec.structs.replace(command(2), work=Work(argv=("2",), workspace="worktree"))
        bench.cable.bring(command(0, "codex"), command(1), tree)
        await anyio.wait_all_tasks_blocked()
        assert bench.cable.refused == ["a0", "a2"]
        assert await bench.owed() == [("a0", "unstarted"), ("a2", "unstarted")]
        assert bench.started == ["1"]
