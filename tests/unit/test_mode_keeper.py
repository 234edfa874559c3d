"""When the network changes, the cloud is looked for at once; a single look without an answer proves nothing then."""

import contextlib
from collections.abc import AsyncGenerator, Iterator
from typing import Any, cast

import anyio
import pytest
from msgspec import structs

from omnid.channels import whole
from omnid.executor.brainstem import BrainstemState
from omnid.executor.model_errors import Failure
from omnid.flow import mode as mode_module
from omnid.flow.mode import ModeKeeper, Shared
from omnid.secrets import Secrets
from omnid.settings import Channel
from tests.fakes.world import World

WAIT_S = 10


class Cloud:
    """Answers probes as it is told to, and tells when it was asked."""

    def __init__(self) -> None:
        self.answers: Iterator[bool] = iter(())
        self.last = True
        self.probes = 0
        self.asked = anyio.Event()

    async def probe(self, channel: Channel, key: str, timeout_s: float) -> Failure | None:
        self.probes += 1
        self.last = next(self.answers, self.last)
        asked, self.asked = self.asked, anyio.Event()
        asked.set()
        return None if self.last else Failure("cloud", "there is no way to it")


class Asleep:
    def wake(self) -> None:
        pass

    async def kill(self) -> None:
        pass

    def state(self) -> BrainstemState:
        return BrainstemState("none")


class Place:
    def __init__(self, world: World) -> None:
        self.world = world
        self.modes = world.context.modes
        self.cloud = Cloud()
        self.send, self._receive = anyio.create_memory_object_stream[None](10)
        shared = Shared(cast(Any, None), cast(Any, self.cloud), cast(Any, Asleep()))
        self.keeper = ModeKeeper(world.context, lambda: shared, Secrets({}), self._links)
        world.context.config = structs.replace(
            world.context.config, channel=(whole(Channel(name="p1", profile="ollama", models=("m",), local=False)),)
        )

    async def _links(self) -> AsyncGenerator[None]:
        async for change in self._receive:
            yield change

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
    place.cloud.last = True
    before = place.cloud.probes
    for number in range(2):
        await place.send.send(None)
        await place.until_asked(before + number + 1)
    await place.until("normal")
