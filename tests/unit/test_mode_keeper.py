"""When the network changes, the cloud is looked for at once; a single look without an answer proves nothing then."""

import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any, cast

import anyio
import pytest
from msgspec import structs

from omnid.channels import whole
from omnid.executor.brainstem import BrainstemState
from omnid.executor.model import ModelExecutor
from omnid.executor.model_errors import Failure
from omnid.flow import mode as mode_module
from omnid.flow.mode import ModeKeeper, Shared
from omnid.model import Gate, Schedule
from omnid.secrets import Secrets
from omnid.settings import Channel
from omnid.store import journal
from omnid.store.schedules import Scheduled, put
from tests.fakes.clock import FakeClock
from tests.fakes.world import World

WAIT_S = 10


class Cloud:
    """Answers probes as it is told to, and tells when it was asked."""

    def __init__(self) -> None:
        self.answers: Iterator[bool] = iter(())
        self.last = True
        self.probes = 0
        self.asked = anyio.Event()
        self.meanwhile: Callable[[], None] = lambda: None
        """What happens between a probe and its answer."""
        self.silent: frozenset[str] = frozenset()
        """The channels that never answer."""
        self.away: frozenset[str] = frozenset()
        self.let_go = 0
        """How many probes were not waited for."""

    async def probe(self, channel: Channel, key: str, timeout_s: float) -> Failure | None:
        self.probes += 1
        answers = self.last = next(self.answers, self.last)
        self.meanwhile()
        asked, self.asked = self.asked, anyio.Event()
        asked.set()
        if channel.name in self.silent:
            try:
                await anyio.sleep_forever()
            finally:
                self.let_go += 1
        answers = answers and channel.name not in self.away
        return None if answers else Failure("cloud", "there is no way to it")


class Asleep:
    """A local model that is woken and killed by word alone."""

    def __init__(self) -> None:
        self.ends = anyio.Event()
        self.ends.set()
        self.kills = 0

    def wake(self) -> None:
        pass

    async def kill(self) -> None:
        self.kills += 1
        await self.ends.wait()

    def state(self) -> BrainstemState:
        return BrainstemState("none")


class Cloudy(ModelExecutor):
    """Stands for calls to the cloud: the gate goes by its name."""

    def __init__(self, name: str = "model") -> None:
        self.name = name
        self.parks = 0

    async def park(self) -> None:
        self.parks += 1


class Place:
    def __init__(self, world: World) -> None:
        self.world = world
        self.modes = world.context.modes
        self.cloud = Cloud()
        self.send, self._receive = anyio.create_memory_object_stream[None](10)
        self.local = Asleep()
        shared = Shared(cast(Any, None), cast(Any, self.cloud), cast(Any, self.local))
        self.keeper = ModeKeeper(world.context, lambda: shared, Secrets({}), self._links)
        self.channels("p1")
        world.context.executors = {**world.context.executors, "model": Cloudy()}

    def channels(self, *names: str, relays: frozenset[str] = frozenset()) -> None:
        made = tuple(
            whole(Channel(name=name, profile="ollama", models=("m",), local=False, relay=name in relays))
            for name in names
        )
        self.world.context.config = structs.replace(self.world.context.config, channel=made)

    async def _links(self) -> AsyncGenerator[None]:
        async for change in self._receive:
            yield change

    async def shut(self) -> bool:
        """Tells whether the gate of the cloud is closed in the journal."""
        return bool(await self.world.rows("SELECT id FROM gate WHERE cause = 'cloud'"))

    async def until_asked(self, times: int) -> None:
        with anyio.fail_after(WAIT_S):
            while self.cloud.probes < times:
                await self.cloud.asked.wait()
            await anyio.wait_all_tasks_blocked()

    async def until(self, mode: str) -> None:
        with anyio.fail_after(WAIT_S):
            while self.modes.mode != mode:
                await anyio.wait_all_tasks_blocked()


@pytest.fixture
async def place(world: World, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Place]:
    monkeypatch.setattr(mode_module, "SOON_S", 0.01)
    made = Place(world)
    async with anyio.create_task_group() as group:
        group.start_soon(made.keeper.watch_cloud)
        group.start_soon(made.keeper.watch_links)
        yield made
        group.cancel_scope.cancel()
    with contextlib.suppress(anyio.ClosedResourceError):
        made.send.close()
        made._receive.close()


async def test_a_link_that_moved_while_the_cloud_is_there_is_one_look(place: Place) -> None:
    await place.send.send(None)
    await place.until_asked(1)
    assert place.modes.mode == "normal"
    assert place.cloud.probes == 1


async def test_one_look_without_an_answer_proves_nothing(place: Place) -> None:
    place.cloud.answers = iter([False, True])
    await place.send.send(None)
    await place.until_asked(2)
    assert place.modes.mode == "normal"


async def test_a_pulled_cable_is_seen_and_a_plugged_one_is_looked_at_at_once(place: Place) -> None:
    place.cloud.last = False
    await place.send.send(None)
    await place.until_asked(3)
    await place.until("brainstem")
    await anyio.wait_all_tasks_blocked()
    every_ms = round(1000 * place.world.context.config.mode.cloud_probe_every_s)
    assert place.modes.probe_at_ms == place.world.clock.wall_ms() + every_ms
    place.cloud.last = True
    before = place.cloud.probes
    for number in range(2):
        await place.send.send(None)
        await place.until_asked(before + number + 1)
    await place.until("normal")
    await anyio.wait_all_tasks_blocked()
    assert place.modes.probe_at_ms is None


async def test_a_machine_that_sleeps_between_a_probe_and_its_answer_has_not_lost_the_cloud(
    place: Place, clock: FakeClock
) -> None:
    def sleep() -> None:
        clock.now_ms += 3_600_000  # Only the wall clock goes on.

    place.cloud.last = False
    place.cloud.meanwhile = sleep
    await place.send.send(None)
    await place.until_asked(3)
    assert place.modes.mode == "normal"
    place.cloud.meanwhile = lambda: None
    clock.now_ms, clock.now_s = clock.now_ms + 31_000, clock.now_s + 31
    await place.send.send(None)
    await place.until("brainstem")


async def test_of_three_channels_one_that_answers_is_enough_and_no_other_is_waited_for(place: Place) -> None:
    place.channels("fails", "hangs", "answers")
    place.cloud.away, place.cloud.silent = frozenset({"fails"}), frozenset({"hangs"})
    await place.send.send(None)
    await place.until_asked(3)
    assert (place.modes.mode, place.cloud.probes, place.cloud.let_go) == ("normal", 3, 1)
    place.cloud.away, place.cloud.silent = frozenset({"fails", "hangs", "answers"}), frozenset()
    await place.send.send(None)
    await place.until("brainstem")
    place.cloud.away, place.cloud.silent = frozenset({"fails"}), frozenset({"hangs"})
    for number in range(2):
        before = place.cloud.probes
        await place.send.send(None)
        await place.until_asked(before + 3)
        assert place.cloud.let_go == number + 2
    await place.until("normal")


async def test_a_relay_that_answers_does_not_keep_the_cloud_there(place: Place) -> None:
    relays = frozenset({"proxy"})
    place.channels("proxy", "p2", relays=relays)
    place.cloud.away = frozenset({"p2"})
    await place.send.send(None)
    await place.until("brainstem")
    place.cloud.away = frozenset()
    for number in range(2):
        before = place.cloud.probes
        await place.send.send(None)
        await place.until_asked(before + 1)
        assert place.cloud.probes == before + 1, number  # The proxy isn't asked.
    await place.until("normal")


async def test_relays_are_all_there_is_to_ask_where_the_config_has_nothing_else(place: Place) -> None:
    place.channels("proxy", "other", relays=frozenset({"proxy", "other"}))
    place.cloud.away = frozenset({"other"})
    await place.send.send(None)
    await place.until_asked(1)
    assert place.modes.mode == "normal"
    place.cloud.last = False
    await place.send.send(None)
    await place.until("brainstem")


class Blocked:
    """A store whose writes wait until they may go on."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.may_go_on, self.waits = anyio.Event(), anyio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def write(self, *args: Any, **more: Any) -> Any:
        self.waits.set()
        await self.may_go_on.wait()
        return await self._store.write(*args, **more)


async def test_a_hold_that_comes_while_the_gate_is_being_shut_opens_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = Blocked(place.world.store)
    monkeypatch.setattr(place.world.context, "store", blocked)
    place.cloud.last = False
    await place.send.send(None)
    with anyio.fail_after(WAIT_S):
        await blocked.waits.wait()
        async with anyio.create_task_group() as group:
            group.start_soon(place.keeper.hold, "normal")
            await anyio.wait_all_tasks_blocked()
            blocked.may_go_on.set()
    assert (place.modes.mode, await place.shut()) == ("normal", False)


async def test_a_hold_that_nobody_waits_for_any_more_still_shuts_the_gate(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = Blocked(place.world.store)
    monkeypatch.setattr(place.world.context, "store", blocked)
    with anyio.fail_after(WAIT_S):
        async with anyio.create_task_group() as group:
            group.start_soon(place.keeper.hold, "brainstem")
            await blocked.waits.wait()
            group.cancel_scope.cancel()
        blocked.may_go_on.set()
        await place.keeper.hold("brainstem")
    assert (place.modes.mode, await place.shut()) == ("brainstem", True)


async def test_the_cloud_is_watched_while_the_local_model_ends(place: Place) -> None:
    place.local.ends = anyio.Event()
    with anyio.fail_after(WAIT_S):
        await place.keeper.hold("brainstem")
        await place.keeper.hold("auto")
    await anyio.wait_all_tasks_blocked()
    assert (place.local.kills, await place.shut()) == (1, False)
    place.cloud.last = False
    await place.send.send(None)
    await place.until("brainstem")
    with anyio.fail_after(WAIT_S):
        await place.keeper.hold("brainstem")
    assert await place.shut()
    place.local.ends.set()


@pytest.mark.parametrize("waiting", [1, 40])
async def test_an_outage_writes_a_few_rows_however_many_tasks_wait_for_its_end(place: Place, waiting: int) -> None:
    world, cloudy = place.world, Cloudy("safe")
    for _ in range(waiting):
        await world.add("true", executor="safe")
    world.context.executors = {"safe": cloudy}

    async def changes() -> list[str]:
        return [row[0] for row in await world.rows("SELECT collection FROM change ORDER BY seq")]

    before = len(await changes())
    with anyio.fail_after(WAIT_S):
        await place.keeper.hold("brainstem")
        assert world.gates.closed() == {"safe"}
        await place.keeper.hold("normal")
    assert world.gates.closed() == set()
    assert (await changes())[before:] == ["gate", "outage", "outbox"] * 2


async def test_the_gates_follow_executors_that_come_and_go_in_an_outage(place: Place) -> None:
    world, terse = place.world, Cloudy("safe")
    before = world.context.executors
    await world.add("true", executor="safe")
    with anyio.fail_after(WAIT_S):
        await place.keeper.hold("brainstem")
        assert world.gates.closed() == {"model"}
        world.context.executors = {**before, "safe": terse}
        await place.keeper.hold("brainstem")
        assert world.gates.closed() == {"model", "safe"}
        assert terse.parks == 1
        assert await world.claim() == []
        world.context.executors = before
        await place.keeper.hold("brainstem")
    assert world.gates.closed() == {"model"}
    assert len(await world.claim()) == 1
    outages = "SELECT subject, ended_at_ms IS NULL FROM outage WHERE cause = 'cloud' ORDER BY subject"
    assert await world.rows(outages) == [("model", 1), ("safe", 0)]
    told = "SELECT count(*) FROM change WHERE collection = 'outbox'"
    assert await world.rows(told) == [(1,)]  # The mode is what it was: nobody is told anything.


async def test_no_event_says_that_the_cloud_is_back_when_an_executor_goes(place: Place) -> None:
    world = place.world
    on = ("cloud.up", "cloud.up:safe")
    one = Scheduled("s1", "hello", "user", "person", Schedule(on=on), {}, {}, enabled=True, created_at_ms=1)
    await world.write(lambda tx: put(tx, one))
    before = world.context.executors
    world.context.executors = {**before, "safe": Cloudy("safe")}
    with anyio.fail_after(WAIT_S):
        await place.keeper.hold("brainstem")
        world.context.executors = before
        await place.keeper.hold("brainstem")
    assert world.gates.closed() == {"model"}
    due = "SELECT next_at_ms IS NULL FROM schedule"
    assert await world.rows(due) == [(1,)]
    with anyio.fail_after(WAIT_S):
        await place.keeper.hold("normal")
    assert await world.rows(due) == [(0,)]


async def test_a_daemon_that_begins_in_an_outage_shuts_what_its_config_has_got_since(world: World) -> None:
    made = Place(world)
    made.cloud.last = False
    for name in ("model", "gone"):
        await world.write(
            lambda tx, name=name: journal.close_gate(tx, Gate(f"cloud:{name}", "cloud", name, 1000, None))
        )
    await world.gates.load()
    world.context.executors = {**world.context.executors, "fresh": Cloudy("fresh")}
    async with anyio.create_task_group() as group:
        group.start_soon(made.keeper.watch_cloud)
        await made.until("brainstem")
        with anyio.fail_after(WAIT_S):
            await made.keeper.hold("auto")
        assert world.gates.closed() == {"model", "fresh"}
        assert made.modes.since_ms == 1000
        group.cancel_scope.cancel()
    await made.send.aclose()
    made._receive.close()


async def test_a_daemon_that_begins_in_an_outage_knows_since_when(world: World) -> None:
    made = Place(world)
    made.cloud.last = False
    await world.write(lambda tx: journal.close_gate(tx, Gate("cloud:model", "cloud", "model", 1000, None)))
    async with anyio.create_task_group() as group:
        group.start_soon(made.keeper.watch_cloud)
        await made.until("brainstem")
        assert made.modes.since_ms == 1000
        group.cancel_scope.cancel()
    await made.send.aclose()
    made._receive.close()
