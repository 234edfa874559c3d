"""What comes over a link and is no message for its end: who hears of it, and what it can't do."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnid.api.outbox_views import OutboxViews
from omnid.api.shapes_outbox import DeadList, DeadRef, DeadView
from omnid.errors import Rejected, Retryable
from omnid.flow.remote import WATCHERS_MAX
from omnid.link.interface import Message, Poison, Received
from omnid.link.message import COMMANDS, RESULTS, Codec
from omnid.model import Cancel, Command, Heartbeat, Watch, Work
from omnid.store import outbox
from tests.fakes.cable import Bench as DaemonBench
from tests.fakes.cable import beat
from tests.fakes.clock import FakeClock
from tests.fakes.station import Bench, command
from tests.fakes.world import PERSON, World

KEY, OTHER = "a key of 16 bytes and more", "another key of 16 bytes"
NEAR = Codec("cable", "gpu", COMMANDS, KEY)
FAR = Codec("cable", "home", RESULTS, OTHER)


def poisoned(message: Message, codec: Codec = FAR, to: Codec = NEAR) -> Received:
    """What comes of a message that is signed with another key."""
    sender, read = to.read(codec.encode(to.name, [message])[0])
    assert isinstance(read, Poison)
    return Received(read, None, sender)


# What it says of itself.


@given(st.binary() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(msgspec.json.encode))
def test_whatever_comes_is_read(data: bytes) -> None:
    sender, read = NEAR.read(data)
    assert (sender, isinstance(read, Poison)) == ("", True)


def test_what_is_refused_says_whose_it_is_as_far_as_that_can_be_read() -> None:
    sent = msgspec.structs.replace(command(1), work=Work(stdin="much"))
    read = poisoned(sent)
    claimed = Command("a1", "i1", 1, "t1", "command", Work(), 0.0)
    assert isinstance(read.message, Poison)
    assert (read.sender, read.message.kind, read.message.command) == ("home", "command", claimed)
    assert read.message.why == "its signature is wrong"
    later: dict[str, Any] = {"omnid": 2, "kind": "command", "from": "home", "body": {"attempt_id": "a2", "news": []}}
    for change, wanted in (
        ({}, ("home", "a2")),
        ({"from": "No Name"}, ("", "a2")),
        ({"from": 7}, ("", None)),
        ({"kind": "cancel"}, ("home", None)),
        ({"body": {"attempt_id": "x" * 201}}, ("home", None)),
        ({"body": 1}, ("home", None)),
    ):
        sender, poison = NEAR.read(msgspec.json.encode(later | change))
        assert isinstance(poison, Poison)
        assert "of version 2" in poison.why
        assert (sender, poison.command and poison.command.attempt_id) == wanted


# At a runner.


@pytest.fixture
def bench(tmp_path: Path, clock: FakeClock) -> Iterator[Bench]:
    world = World(tmp_path / "world", clock)
    yield Bench(world, clock)
    world.close()


async def bring(bench: Bench, *received: Received) -> None:
    bench.cable._come += received
    bench.cable._filled.set()
    await anyio.wait_all_tasks_blocked()


@pytest.mark.anyio
async def test_a_command_that_is_poison_is_answered_once_and_never_begins(bench: Bench) -> None:
    async with bench.runs():
        await bring(bench, *[poisoned(command(1))] * 2)
        assert await bench.owed() == [("a1", "unstarted")]
        assert bench.cable.refused == ["Poison", "Poison"]
        assert (bench.remote.refused.total, bench.remote.refused.why) == (2, "its signature is wrong")
        bench.cable.bring(command(1), command(2))  # The key is right now.
        await anyio.wait_all_tasks_blocked()
        assert bench.started == ["2"]
        assert bench.cable.acked == ["a1", "a2"]
        rows = await bench.world.store.read(lambda reader: outbox.peek(reader, "home", 100))
        assert rows[0].body["problem"]["code"] == "message_refused"


@pytest.mark.anyio
async def test_an_id_that_leads_out_of_the_spool_never_gets_into_the_ledger(bench: Bench) -> None:
    out = msgspec.structs.replace(command(1), attempt_id="../../elsewhere")
    async with bench.runs():
        bench.cable.bring(out)
        await bring(bench, poisoned(out))
        assert await bench.owed() == []
        assert len(bench.cable.refused) == 2
    assert await bench.world.rows("SELECT count(*) FROM attempt") == [(0,)]


@pytest.mark.anyio
async def test_poison_takes_nothing_from_a_command_that_has_come(bench: Bench) -> None:
    async with bench.runs():
        bench.cable.bring(*map(command, range(4)))
        await anyio.wait_all_tasks_blocked()
        bench.let(0)
        await anyio.wait_all_tasks_blocked()
        assert bench.started == ["0", "1", "2"], "one has ended, two run, and one waits for a slot"
        await bring(bench, *(poisoned(command(number)) for number in range(4)), poisoned(Cancel("a1")))
        assert await bench.owed() == [("a0", "success")]
        assert bench.cable.refused == ["Poison"] * 5
        for number in (1, 2, 3):
            bench.let(number)
        await anyio.wait_all_tasks_blocked()
        assert [outcome for _, outcome in await bench.owed()] == ["success"] * 4


@pytest.mark.anyio
async def test_a_watch_that_is_poison_shows_its_daemon_that_somebody_is_there(bench: Bench) -> None:
    async with bench.runs():
        await bring(bench, poisoned(Watch(60.0, "a token")))
        ((to, said),) = bench.cable.sent
        assert isinstance(said, Heartbeat)
        assert (to, said.token, bench.remote._watchers) == ("home", "", {})


@pytest.mark.anyio
async def test_not_many_are_answered_of_whom_nobody_knows(bench: Bench) -> None:
    strangers = [Codec("cable", f"d{number}", RESULTS, OTHER) for number in range(WATCHERS_MAX + 1)]
    async with bench.runs():
        bench.cable.bring(Watch(60.0, "a token"))
        await bring(bench, *(poisoned(command(number), codec) for number, codec in enumerate(strangers)))
        await bring(bench, poisoned(command(1000), strangers[0]), poisoned(command(1001)))
        await bring(bench, Received(NEAR.read(b"garbage")[1]))
        assert len(bench.cable.refused) == WATCHERS_MAX + 4
    queues = await bench.world.store.read(outbox.destinations)
    assert sorted(queues) == sorted([*(codec.name for codec in strangers[:-1]), "home"])


# At the daemon.


@pytest.fixture
def daemon(world: World) -> DaemonBench:
    made = DaemonBench(world)
    made.config("a")
    return made


async def arrives(daemon: DaemonBench, *received: Received) -> None:
    count = len(daemon.cable.refused) + len(received)
    daemon.cable._come += received
    daemon.cable._bell.set()
    await daemon.cable.until(lambda: len(daemon.cable.refused) == count)


async def dead(daemon: DaemonBench) -> list[DeadView]:
    return (await OutboxViews(daemon.context).list(PERSON, DeadList())).deliveries


HOME = Codec("cable", "home", RESULTS, KEY)
GPU = Codec("cable", "gpu", COMMANDS, OTHER)
"""A runner with another key than its daemon's."""


@pytest.mark.anyio
async def test_what_the_daemon_sets_aside_is_among_the_dead_to_be_dropped_and_not_retried(
    daemon: DaemonBench,
) -> None:
    views = OutboxViews(daemon.context)
    result = poisoned(command(1).ended("success", None), GPU, HOME)
    async with daemon.runs():
        daemon.cable.bring("a", beat())
        task = await daemon.world.add("one")
        (sent,) = await daemon.sent(1)
        strange = Received(sent.ended("success", None), None, "b")
        await arrives(daemon, strange, result, Received(HOME.read(b"\xff" + b"x" * 5000)[1]), result)
        assert daemon.cable.acked == ["beat"]
        garbage, foreign, mine = sorted(await dead(daemon), key=lambda one: str(one.body["from"]))
        assert [one.destination for one in (foreign, garbage, mine)] == ["link/cable"] * 3
        assert (foreign.body["from"], foreign.body["message"]) == ("b", "result")
        assert foreign.problem is not None
        assert "its attempt is none of b's" in foreign.problem.what
        assert (garbage.body["from"], garbage.body["bytes"], garbage.body["text"]) == ("", 5001, "�" + "x" * 1023)
        assert (mine.body["from"], mine.body["message"], mine.kind) == ("gpu", "result", "message")
        assert mine.problem is not None
        assert "its signature is wrong" in mine.problem.what
        with pytest.raises(Rejected) as caught:
            await views.retry(PERSON, DeadRef(id=mine.id))
        assert caught.value.code == "nothing_to_retry"
        assert "link cable" in caught.value.what
        await views.drop(PERSON, DeadRef(id=mine.id))
        assert len(await dead(daemon)) == 2
        assert (await daemon.task(task)).state == "executing"


@pytest.mark.anyio
async def test_beyond_their_number_the_oldest_go_and_that_is_counted(daemon: DaemonBench) -> None:
    world = daemon.world
    world.context.config = msgspec.structs.replace(
        world.context.config, outbox=msgspec.structs.replace(world.context.config.outbox, rows_max=3)
    )
    async with daemon.runs():
        for load in (0.1, 0.2):
            said = msgspec.structs.replace(beat(), load=load)
            await arrives(daemon, poisoned(said, GPU, HOME))
        for number in range(4):
            await arrives(daemon, poisoned(command(number).ended("success", None), GPU, HOME))
    rows = await dead(daemon)
    assert ["a1" in one.body["text"] for one in rows] == [True, False, False]
    (queue,) = await world.store.read(OutboxViews(world.context).waiting)
    assert (queue.destination, queue.waiting, queue.dead, queue.dropped) == ("link/cable", 0, 3, 2)


@pytest.mark.anyio
async def test_what_can_not_be_written_down_stays_at_the_broker(
    daemon: DaemonBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with daemon.runs():
        buried = anyio.Event()

        async def closed(*_: object) -> None:
            buried.set()
            raise Retryable("store_closed")

        monkeypatch.setattr(daemon.context.store, "write", closed)
        daemon.cable._come.append(poisoned(beat(), GPU, HOME))
        daemon.cable._bell.set()
        await buried.wait()
        await anyio.wait_all_tasks_blocked()
        assert (daemon.cable.refused, daemon.cable.acked) == ([], [])
