"""What a runner does with what comes: slots, limits of executors, what comes twice, heartbeats for those who ask."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import anyio
import msgspec
import pytest
from anyio.lowlevel import checkpoint

from omnid.errors import Retryable
from omnid.executor.interface import Found, Ports
from omnid.flow import remote
from omnid.flow.keep import keep
from omnid.flow.remote import Place, Remote
from omnid.link.interface import LinkDown, Message, Received
from omnid.model import Cancel, Command, Heartbeat, Watch, Work
from omnid.store import outbox
from omnid.store.ledger import Ledger
from tests.fakes.clock import FakeClock
from tests.fakes.executor import InProcessExecutor
from tests.fakes.world import World

pytestmark = pytest.mark.anyio


class Cable:
    """A link in the hands of the test."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Message]] = []
        self.acked: list[Any] = []
        self.refused: list[Any] = []
        self.down = self.nameless = False
        self._come: list[Received] = []
        self._filled = anyio.Event()

    def bring(self, *messages: Message, tag: Any = None, sender: str = "home") -> None:
        self._come += [Received(message, tag, sender) for message in messages]
        self._filled.set()

    def _fail(self) -> None:
        if self.down:
            raise LinkDown("link_down", link="cable", detail="down")

    async def keep_name(self) -> None:
        await checkpoint()
        if self.nameless:
            raise LinkDown("name_taken", name="r", link="cable", holder="elsewhere")

    async def send(self, to: str, batch: Sequence[Message]) -> None:
        self._fail()
        self.sent += [(to, message) for message in batch]

    async def receive(self) -> list[Received]:
        while not self._come:
            self._filled = anyio.Event()
            await self._filled.wait()
        came, self._come = self._come, []
        return came

    async def ack(self, received: Sequence[Received]) -> None:
        self._fail()
        self.acked += [one.tag or key(one.message) for one in received]

    async def refuse(self, received: Received, why: str) -> None:
        self._fail()
        self.refused.append(key(received.message))


def key(message: Message) -> Any:
    return getattr(message, "attempt_id", type(message).__name__)


def command(number: int, executor: str = "command") -> Command:
    return Command(f"a{number}", f"i{number}", 1, f"t{number}", executor, Work(argv=(str(number),)), 5.0)


class Deaf(InProcessExecutor):
    """An executor that hears no cancel (`deaf`), or fails with it (`broken`); an earlier attempt of it never ran."""

    deaf = broken = False

    async def recover(self, command: Command, ports: Ports) -> Found:
        return Found.NEVER_RAN

    async def cancel(self, attempt_id: str) -> None:
        if self.broken:
            raise OSError("the pipe is gone")
        if not self.deaf:
            await super().cancel(attempt_id)


class Bench:
    """A runner with two slots, whose commands end when the test says so."""

    def __init__(self, world: World, clock: FakeClock) -> None:
        self.world, self.clock = world, clock
        self.cable = Cable()
        self.started: list[str] = []
        self.gates: dict[str, anyio.Event] = {}
        self.down = False
        executors = {name: Deaf(name, self._do) for name in ("command", "single")}
        executors["single"].concurrency = 1
        self.executor = executors["command"]
        world.context.take_executors(executors)
        self.again()

    def again(self) -> None:
        """Has the next runner begin where the last has ended."""
        self.ledger = Ledger(self.world.store, self.world.context.log)
        self.cable.acked.clear()
        self.remote = Remote(self.world.context, self.ledger, self.cable, Place(2, ("gpu",), 5.0))

    async def _do(self, argv: tuple[str, ...]) -> Any:
        if self.down:
            raise Retryable("executor_down", executor="command", detail="no")
        self.started.append(argv[0])
        await self.gates.setdefault(argv[0], anyio.Event()).wait()
        return "success", b"done"

    def let(self, number: int) -> None:
        self.gates.setdefault(str(number), anyio.Event()).set()

    @asynccontextmanager
    async def runs(self) -> AsyncIterator[None]:
        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                await self.remote.recover(group)
                for loop in (self.remote.take, lambda: self.remote.start(group), self.remote.beat):
                    group.start_soon(partial(keep, "loop", loop, clock=self.clock, log=self.world.context.log))
                yield
                group.cancel_scope.cancel()

    async def owed(self) -> list[tuple[str, str]]:
        rows = await self.world.store.read(lambda reader: outbox.peek(reader, "home", 100))
        return [(row.body["attempt_id"], row.body["outcome"]) for row in rows]


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


async def test_who_leaves_does_not_wait_for_ever_for_who_is_away(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "LINGER_S", 0.0)
    monkeypatch.setattr(remote, "HEARD_S_MAX", 0.01)
    async with bench.runs():
        bench.cable.bring(Watch(60.0))
        await anyio.wait_all_tasks_blocked()
        await bench.remote.leave()


@pytest.mark.parametrize("nameless", [False, True], ids=["named", "another-has-its-name"])
async def test_what_the_broker_may_bring_again_is_given_back_at_the_next_start_and_never_runs(
    bench: Bench, nameless: bool
) -> None:
    async with bench.runs():
        bench.cable.bring(*map(command, range(3)))
        await anyio.wait_all_tasks_blocked()
        bench.cable.down = True
        await bench.remote.leave()
        assert (await bench.owed(), bench.remote.given_back) == ([], 0)
    bench.cable.down = False
    bench.again()
    async with bench.runs():
        bench.cable.nameless = nameless
        await anyio.wait_all_tasks_blocked()
        bench.cable.bring(command(2), Cancel("a2"), tag="again")  # A person has decided about it meanwhile.
        await anyio.wait_all_tasks_blocked()
        assert bench.cable.acked == ["again", "again"]
        assert sorted(await bench.owed()) == [(f"a{number}", "unstarted") for number in range(3)]
        assert bench.started == ["0", "1"]


async def test_who_may_have_lost_its_name_gives_nothing_back(bench: Bench) -> None:
    async with bench.runs():
        bench.cable.bring(*map(command, range(3)))
        await anyio.wait_all_tasks_blocked()
        bench.cable.nameless = True
        await bench.remote.leave()
        assert [one.begun.command.attempt_id for one in await bench.ledger.open()] == ["a0", "a1"]
        assert (bench.cable.acked, await bench.owed()) == (["a0", "a1"], [])


async def test_no_more_is_held_than_memory_is_meant_to_take(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "HELD_MIN", 2)
    monkeypatch.setattr(remote, "WATCHERS_MAX", 0)
    async with bench.runs():
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
        assert bench.started == ["0", "1"]
        assert sorted(await bench.owed()) == [("a0", "unstarted"), ("a1", "cancelled"), ("a2", "cancelled")]


async def test_what_it_had_begun_is_not_given_back_where_its_executor_is_offered_no_more(bench: Bench) -> None:
    async with bench.runs():
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
