"""Presence: an origin whose last client went while its work goes on is away, and back when it returns."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from omnid.flow import presence
from omnid.flow.caller import Caller
from omnid.flow.presence import Presence
from omnid.model import Schedule, Scheduled
from omnid.store import schedules
from omnid.store.interface import Tx
from tests.fakes.clock import FakeClock
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


async def test_clients_that_go_one_after_the_other_are_missed_too(
    world: World, monkeypatch: pytest.MonkeyPatch, clock: FakeClock
) -> None:
    await world.add(caller=CLAUDE)
    async with watching(world, monkeypatch) as made:
        made.came("claude", 1)
        made.came("claude", 2)
        made.went("claude", 1)
        await anyio.wait_all_tasks_blocked()
        clock.now_s += 3600.0
        made.went("claude", 2)
        assert await outages(world) == [("client", "claude", 1, 1)]


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


async def test_who_asks_now_and_then_is_there_in_between_but_not_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch, clock: FakeClock
) -> None:
    await world.add(caller=CLAUDE)
    async with watching(world, monkeypatch) as made:
        made.came("claude", -1)
        assert await outages(world) == []
        for request in (-2, -3):
            made.came("claude", request)
            made.went("claude", request + 1, 60.0)
        made.went("claude", -3, 60.0)
        made.came("claude", 1)
        made.went("claude", 1)  # From the socket, which has a shorter grace.
        clock.now_s += 59.0
        made.came("claude", -4)
        made.went("claude", -4, 60.0)
        clock.now_s += 59.0
        made._bell.ring()
        assert await outages(world) == []
        clock.now_s += 1.0
        made._bell.ring()
        assert await outages(world) == [("client", "claude", 1, 1)]


async def test_who_comes_while_its_absence_is_written_down_has_returned(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.add(caller=CLAUDE)
    async with watching(world, monkeypatch) as made:
        write = world.store.write

        async def slowly(fn: Any, **given: Any) -> Any:
            monkeypatch.setattr(world.store, "write", write)
            made.came("claude", 2)
            return await write(fn, **given)

        made.came("claude", 1)
        await anyio.wait_all_tasks_blocked()
        monkeypatch.setattr(world.store, "write", slowly)
        made.went("claude", 1)
        assert await outages(world) == [("client", "claude", 1, 0)]
