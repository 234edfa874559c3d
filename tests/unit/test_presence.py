"""Presence: an origin whose last client went while its work goes on is away, and back when it returns."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from omnid.flow import presence
from omnid.flow.caller import Caller
from omnid.flow.presence import Presence
from omnid.model import Schedule, Scheduled
from omnid.store import schedules
from omnid.store.interface import Tx
from tests.fakes.world import World

pytestmark = pytest.mark.anyio

CLAUDE = Caller("agent", "claude")


@asynccontextmanager
async def watching(world: World, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Presence]:
    monkeypatch.setattr(presence, "GRACE_S", 0.0)
    world.context.paused_starts = False
    made = Presence(world.context)
    async with anyio.create_task_group() as group:
        group.start_soon(made.run)
        yield made
        group.cancel_scope.cancel()


async def listen(world: World, *events: str) -> None:
    """Makes a schedule of that name for each event."""

    def put(tx: Tx) -> None:
        for event in events:
            one = Scheduled(event, event, "user", "person", Schedule(on=(event,)), {}, {}, True, 0)
            schedules.put(tx, one)

    await world.write(put)


async def rung(world: World) -> list[str]:
    now_ms = world.clock.wall_ms()
    return sorted(one.name for one in await world.store.read(lambda reader: schedules.due(reader, now_ms, 9)))


async def outages(world: World) -> list[tuple[object, ...]]:
    await anyio.wait_all_tasks_blocked()
    return await world.rows("SELECT cause, subject, parked, ended_at_ms IS NULL FROM outage")


async def test_the_last_client_of_an_origin_with_work_is_missed_until_it_returns(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.add(caller=CLAUDE)
    await world.add(caller=CLAUDE)
    await listen(world, "client.away", "client.away:claude", "client.away:other", "client.back:claude")
    async with watching(world, monkeypatch) as made:
        made.came("claude", 1)
        made.came("claude", 2)
        made.went("claude", 1)
        assert await outages(world) == []
        made.went("claude", 2)
        assert await outages(world) == [("client", "claude", 2, 1)]
        assert await rung(world) == ["client.away", "client.away:claude"]
        made.came("claude", 3)
        assert await outages(world) == [("client", "claude", 2, 0)]
        assert await rung(world) == ["client.away", "client.away:claude", "client.back:claude"]


async def test_who_leaves_no_work_or_is_a_person_is_not_missed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.add()
    async with watching(world, monkeypatch) as made:
        for origin in ("claude", "user"):
            made.came(origin, 1)
            made.went(origin, 1)
        made.went("nobody", 9)
        assert await outages(world) == []


async def test_one_that_is_started_anew_or_a_daemon_that_stops_is_no_absence(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.add(caller=CLAUDE)
    async with watching(world, monkeypatch) as made:
        made.came("claude", 1)
        made.went("claude", 1)
        made.came("claude", 2)
        assert await outages(world) == []
        world.context.paused_starts = True
        made.went("claude", 2)
        assert await outages(world) == []
