"""The connection that keeps a link open: backoff, its reset, one line per outage, and what becomes of what has come."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from io import StringIO
from typing import Any, Self

import anyio
import pytest
from anyio.lowlevel import checkpoint

from omnid.errors import Rejected, Retryable
from omnid.link import connection
from omnid.link.connection import Connection
from omnid.link.interface import LinkDown, LinkFull, Message, Received
from omnid.log import Log
from omnid.model import Cancel
from omnid.settings_links import Link as Section
from tests.fakes.clock import FakeClock

pytestmark = pytest.mark.anyio

SECTION = Section(name="cable", url="redis://nowhere", retry_base_s=1, retry_max_s=8, stable_s=30, slow_s=0.5)


def down(detail: str = "it was pulled out") -> LinkDown:
    return LinkDown("link_down", link="cable", detail=detail)


def taken() -> LinkDown:
    return LinkDown("name_taken", name="r", link="cable", holder="elsewhere")


class FakeLink:
    """A link that the test breaks; it answers pings at once unless `ping_takes_s`."""

    name_s = 25.0

    def __init__(self, bench: "Bench") -> None:
        self.bench = bench
        self.sent: list[Message] = []
        self.acked: list[Received] = []
        self.refused: list[Received] = []
        self.come: list[Received] = []
        self.filled = anyio.Event()
        self.error: Exception | None = None
        self.full = self.taken = False
        self.broken = anyio.Event()

    async def __aenter__(self) -> Self:
        if self.bench.problems:
            raise self.bench.problems.pop(0)
        self.bench.up = self
        return self

    async def __aexit__(self, *_: object) -> None:
        self.bench.closed += 1

    def pull(self) -> None:
        self.error = down()
        self.filled.set()

    def bring(self, *received: Received) -> None:
        self.come += received
        self.filled.set()

    async def send(self, to: str, batch: Sequence[Message]) -> None:
        await checkpoint()
        if self.full:
            raise LinkFull("link_full", link="cable", detail="no memory")
        if to in self.bench.occupied:
            raise Retryable("delivery_failed", destination=to, detail="it is another program's")
        if self.error is not None:
            raise self.error
        self.sent += batch

    async def receive(self) -> list[Received]:
        while not self.come:
            if self.error is not None:
                raise self.error
            self.filled = anyio.Event()
            await self.filled.wait()
        came, self.come = self.come, []
        return came

    async def ack(self, received: Sequence[Received]) -> None:
        self.acked += received

    async def refuse(self, received: Received, why: str) -> None:
        self.refused.append(received)

    async def ping(self) -> None:
        await checkpoint()
        self.bench.pings += 1
        self.bench.clock.now_s += self.bench.ping_takes_s
        if self.taken:
            raise taken()
        if self.full:
            raise LinkFull("link_full", link="cable", detail="no memory")


class Bench:
    """A connection over fake links, on a clock that only sleeping moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = FakeClock()
        self.logged = StringIO()
        self.problems: list[Exception] = []
        self.slept: list[float] = []
        self.up: FakeLink | None = None
        self.closed = self.pings = self.changes = 0
        self.ping_takes_s = 0.0
        self.patient = False
        """Whether the wait for the next dial has no end of its own."""
        self.occupied: set[str] = set()
        self.awake, self.changed = anyio.Event(), anyio.Event()
        log = Log(self.clock, lambda text: text, stream=self.logged).logger()
        self.moved = anyio.Event()
        self.connection = Connection(SECTION, self._dial, self.clock, log, self._changed, moves=self._network)
        monkeypatch.setattr(connection.anyio, "sleep", self._sleep)

    async def _dial(self) -> Any:
        return FakeLink(self)

    async def _network(self) -> AsyncGenerator[None]:
        while True:
            await self.moved.wait()
            self.moved = anyio.Event()
            yield

    def _changed(self) -> None:
        self.changes += 1
        self.changed.set()

    async def _sleep(self, delay_s: float) -> None:
        if delay_s == SECTION.ping_every_s:
            self.awake = anyio.Event()
            await self.awake.wait()
        else:
            self.slept.append(delay_s)
            await (anyio.sleep_forever() if self.patient else checkpoint())
        self.clock.now_s += delay_s

    async def link(self) -> FakeLink:
        """Waits until a link is up."""
        while self.connection.problem is not None:
            self.changed = anyio.Event()
            await self.changed.wait()
        assert self.up is not None
        return self.up

    def lines(self, event: str) -> int:
        return self.logged.getvalue().count(f'"event":"{event}"')

    async def during(self, do: Callable[[], Awaitable[None]]) -> None:
        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                group.start_soon(self.connection.run)
                await do()
                group.cancel_scope.cancel()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


async def test_before_it_is_up_a_send_fails_at_once_and_says_why(bench: Bench, anyio_backend: str) -> None:
    with pytest.raises(LinkDown) as caught:
        await bench.connection.send("r", [Cancel("a")])
    assert "hasn't been dialled" in caught.value.what
    assert bench.connection.problem is not None


async def test_it_is_dialled_with_backoff_and_an_outage_is_one_line(bench: Bench) -> None:
    bench.problems = [
        down(),
        down("no route"),
        Rejected("link_refused", link="cable", detail="a wrong password"),
        down(),
    ]

    async def do() -> None:
        await bench.link()
        assert bench.slept == [1, 2, 8, 8]
        assert bench.connection.problem is None
        assert (bench.lines("link_down"), bench.lines("link_up")) == (1, 1)
        assert '"down_s":19' in bench.logged.getvalue()

    await bench.during(do)


async def test_a_link_that_breaks_soon_waits_longer_each_time_and_one_that_held_does_not(bench: Bench) -> None:
    async def do() -> None:
        for _ in range(2):
            (await bench.link()).pull()
            await anyio.wait_all_tasks_blocked()
        assert bench.slept == [1, 2]
        link = await bench.link()
        bench.clock.now_s += SECTION.stable_s
        link.pull()
        await anyio.wait_all_tasks_blocked()
        assert bench.slept == [1, 2, 1]
        assert (bench.lines("link_down"), bench.lines("link_up")) == (3, 4)
        assert bench.closed == 3

    await bench.during(do)


async def test_when_the_network_changes_it_is_dialled_at_once_and_a_failure_waits_longer_still(bench: Bench) -> None:
    bench.problems, bench.patient = [down() for _ in range(4)], True

    async def do() -> None:
        for count in range(1, 4):
            await anyio.wait_all_tasks_blocked()
            assert bench.slept == [1, 2, 4, 8][:count]
            bench.moved.set()
        await anyio.wait_all_tasks_blocked()
        assert (bench.slept, bench.up) == ([1, 2, 4, 8], None)
        assert bench.connection.next_try_at_ms == bench.clock.wall_ms() + 8_000
        bench.moved.set()
        await bench.link()
        assert (bench.connection.next_try_at_ms, bench.lines("link_down")) == (None, 1)
        bench.moved.set()
        await anyio.wait_all_tasks_blocked()
        assert bench.connection.problem is None, "a link that is up is left alone"

    await bench.during(do)


async def test_a_change_in_the_midst_of_a_dial_counts(bench: Bench) -> None:
    bench.patient, dials = True, 0

    async def dial() -> Any:
        nonlocal dials
        dials += 1
        if dials == 1:
            bench.moved.set()
            await anyio.wait_all_tasks_blocked()
            raise down()
        return FakeLink(bench)

    bench.connection._dial = dial

    async def do() -> None:
        await bench.link()
        assert dials == 2

    await bench.during(do)


@pytest.mark.parametrize("failures", [0, 2])
async def test_an_outage_that_began_earlier_goes_on_and_is_as_long_as_it_was(bench: Bench, failures: int) -> None:
    bench.problems = [down()] * failures
    bench.connection.was_down(100.0)

    async def do() -> None:
        await bench.link()
        assert (bench.lines("link_down"), bench.lines("link_up")) == (min(1, failures), 1)
        assert f'"down_s":{100.0 + sum(bench.slept)}' in bench.logged.getvalue()

    await bench.during(do)


async def test_a_send_that_fails_ends_the_link(bench: Bench) -> None:
    async def do() -> None:
        link = await bench.link()
        link.error = down()
        with pytest.raises(LinkDown):
            await bench.connection.send("r", [Cancel("a")])
        await anyio.wait_all_tasks_blocked()
        assert await bench.link() is not link
        await bench.connection.send("r", [Cancel("a")])
        assert bench.up is not None
        assert bench.up.sent == [Cancel("a")]
        assert bench.changes == 3

    await bench.during(do)


async def test_what_comes_is_handed_on_and_what_nobody_took_comes_again_with_the_next_link(bench: Bench) -> None:
    one, two, three = (Received(Cancel(name)) for name in ("1", "2", "3"))

    async def do() -> None:
        link = await bench.link()
        link.bring(one)
        received = await bench.connection.receive()
        assert messages(received) == [one.message]
        await bench.connection.ack(received)
        await bench.connection.refuse(received[0], "no")
        assert (link.acked, link.refused) == ([one], [one])
        link.bring(two)
        await anyio.wait_all_tasks_blocked()
        link.pull()
        with pytest.raises(LinkDown):
            await bench.connection.send("r", [Cancel("a")])
        await anyio.wait_all_tasks_blocked()
        again = await bench.link()
        assert again is not link
        again.bring(three)
        assert messages(await bench.connection.receive()) == [three.message]
        await bench.connection.ack(received)  # It is none of this link's.
        await bench.connection.refuse(received[0], "no")
        assert (again.acked, again.refused) == ([], [])

    await bench.during(do)


def messages(received: Sequence[Received]) -> list[Message]:
    return [one.message for one in received]


async def test_a_broker_that_answers_late_is_slow_and_stays_up(bench: Bench) -> None:
    async def do() -> None:
        await bench.link()
        await anyio.wait_all_tasks_blocked()
        assert (bench.pings, bench.connection.quality) == (1, "up")
        for takes_s, slow in ((0.6, True), (0.7, True), (0.1, False)):
            bench.ping_takes_s = takes_s
            bench.awake.set()
            await anyio.wait_all_tasks_blocked()
            assert bench.connection.beats.latency_s == pytest.approx(takes_s)
            assert bench.connection.quality == ("degraded" if slow else "up")
        assert (bench.lines("link_slow"), bench.lines("link_quick"), bench.lines("link_down")) == (1, 1, 0)

    await bench.during(do)


@pytest.mark.parametrize("found_by", ["send", "ping"])
async def test_one_that_is_full_stays_up_and_sends_nothing_until_it_has_room(bench: Bench, found_by: str) -> None:
    one = Received(Cancel("1"))

    async def do() -> None:
        link = await bench.link()
        await anyio.wait_all_tasks_blocked()
        link.full, changes = True, bench.changes
        if found_by == "send":
            with pytest.raises(LinkFull):
                await bench.connection.send("r", [Cancel("a")])
        else:
            bench.awake.set()
            await anyio.wait_all_tasks_blocked()
        assert (bench.connection.problem, bench.changes) == (None, changes + 1)
        assert bench.connection.full is not None
        assert bench.connection.quality == "degraded"
        assert "no memory" in bench.connection.full.what
        pings = bench.pings
        with pytest.raises(LinkFull):
            await bench.connection.send("r", [Cancel("a")])
        link.bring(one)
        await bench.connection.ack(await bench.connection.receive())
        assert (link.acked, bench.pings) == ([one], pings)
        for link.full in (True, False):
            bench.awake.set()
            await anyio.wait_all_tasks_blocked()
        assert (bench.connection.full, bench.changes) == (None, changes + 2)
        await bench.connection.send("r", [Cancel("a")])
        assert (link.sent, await bench.link()) == ([Cancel("a")], link)
        assert (bench.lines("link_full"), bench.lines("link_has_room"), bench.lines("link_down")) == (1, 1, 0)

    await bench.during(do)


async def test_a_destination_that_can_take_nothing_holds_up_no_other_and_is_tried_again(bench: Bench) -> None:
    async def do() -> None:
        link = await bench.link()
        await anyio.wait_all_tasks_blocked()
        bench.occupied, changes = {"x"}, bench.changes
        for _ in range(2):
            with pytest.raises(Retryable):
                await bench.connection.send("x", [Cancel("a")])
        await bench.connection.send("y", [Cancel("b")])
        assert bench.lines("destination_down") == 1
        for now in (1, 2):
            bench.awake.set()
            await anyio.wait_all_tasks_blocked()
            assert bench.changes == changes + now
        bench.occupied = set()
        await bench.connection.send("x", [Cancel("a")])
        bench.awake.set()
        await anyio.wait_all_tasks_blocked()
        assert bench.changes == changes + 2
        assert (link.sent, await bench.link()) == ([Cancel("b"), Cancel("a")], link)

    await bench.during(do)


async def test_a_fault_ends_it_and_is_told(bench: Bench) -> None:
    async def do() -> None:
        link = await bench.link()
        link.error = RuntimeError("a fault of a library")
        link.filled.set()
        await anyio.sleep_forever()

    with pytest.raises(ExceptionGroup):
        await bench.during(do)
    assert bench.connection.problem is not None
    assert "its log says" in bench.connection.problem.what
    assert (bench.changes, bench.closed, bench.lines("link_down")) == (2, 1, 1)


async def test_who_was_let_in_without_a_name_has_none_until_there_is_room(bench: Bench) -> None:
    async def do() -> None:
        link = await bench.link()
        bench.clock.now_s += 25.0
        link.full, link.name_s = True, 0.0
        for _ in range(2):
            with pytest.raises(LinkFull):
                await bench.connection.keep_name()
        assert await bench.link() == link
        link.full, link.name_s = False, 25.0
        await bench.connection.keep_name()

    await bench.during(do)


async def test_who_stood_still_for_longer_than_a_lease_asks_first_whether_the_name_is_its_own(bench: Bench) -> None:
    async def do() -> None:
        link = await bench.link()
        while bench.pings < 1:
            await checkpoint()
        bench.clock.now_s += 24.9
        await bench.connection.keep_name()
        assert bench.pings == 1, "it was shown lately"
        for full in (False, True):
            bench.clock.now_s += 25.0
            link.full = full
            await bench.connection.keep_name()
            await bench.connection.keep_name()
        assert bench.pings == 3
        bench.ping_takes_s = 25.0
        bench.clock.now_s += 25.0
        await bench.connection.keep_name()
        link.taken = True
        bench.problems = [taken()] * 100
        with pytest.raises(LinkDown, match="elsewhere"):
            await bench.connection.keep_name()
        while len(bench.problems) > 90:
            await checkpoint()
        with pytest.raises(LinkDown, match="elsewhere"):
            await bench.connection.send("r", [Cancel("a")])

    await bench.during(do)
