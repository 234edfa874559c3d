"""The daily notice: once a day, over restarts, clocks that jump, and the nights in which they are changed."""

from datetime import UTC, datetime, time
from typing import Any
from zoneinfo import ZoneInfo

import anyio
import pytest

from omnid.api.night import Night
from omnid.api.views import Views
from omnid.flow.daily import Daily
from omnid.flow.wakeup import Wakeup
from omnid.store import outbox
from omnid.times import last_ms
from tests.fakes.clock import FakeClock
from tests.fakes.world import World

HOUR_MS = 3_600_000
BERLIN = "Europe/Berlin"


def at(text: str) -> int:
    """Gives a time in Berlin in Unix milliseconds."""
    return round(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(BERLIN)).timestamp() * 1000)


def daily(world: World) -> Daily:
    context, gates = world.context, world.gates
    return Daily(context, Night(context, gates, Views(context, gates)).line)


def wish(world: World, digest_at: str = "08:00") -> None:
    world.set("notify", to=("phone",), digest_at=digest_at)
    world.set("daemon", zone=BERLIN)
    world.context.take_executors(world.context.executors)


async def told(world: World) -> list[str]:
    found = await world.store.read(lambda reader: outbox.peek(reader, "notice/phone", 100))
    return [str(notice.body["text"]) for notice in found if notice.body["event"] == "digest"]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(at("2026-11-25T22:00"))


async def test_it_is_sent_once_a_day_and_tells_what_has_happened_since(world: World, clock: FakeClock) -> None:
    wish(world)
    loop = daily(world)
    await loop.send_due()
    assert world.context.alarms.next_ms() == at("2026-11-26T08:00")
    clock.now_ms += 60_000
    for _ in range(2):
        await world.add("x")
        (command,) = await world.claim(1)
        await world.finish(command, "success")
    clock.now_ms = at("2026-11-26T07:59")
    await loop.send_due()
    assert await told(world) == []
    clock.now_ms = at("2026-11-26T08:00")
    await loop.send_due()
    await loop.send_due()
    assert await told(world) == ["2 done."]
    assert world.context.alarms.next_ms() == at("2026-11-27T08:00")
    clock.now_ms = at("2026-11-27T08:00") + 30_000
    await loop.send_due()
    assert await told(world) == ["2 done.", "nothing happened."]


async def test_a_daemon_that_was_away_makes_up_for_it_once(world: World, clock: FakeClock) -> None:
    wish(world)
    await daily(world).send_due()
    clock.now_ms = at("2026-11-29T11:00")
    await world.restart()
    await daily(world).send_due()
    await world.restart()
    await daily(world).send_due()
    assert len(await told(world)) == 1
    assert world.context.alarms.next_ms() == at("2026-11-30T08:00")


async def test_two_loops_at_the_same_time_tell_it_once(world: World, clock: FakeClock) -> None:
    wish(world)
    await daily(world).send_due()
    clock.now_ms = at("2026-11-26T08:00")
    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(daily(world).send_due)
    assert len(await told(world)) == 1


@pytest.mark.parametrize(
    ("day", "time", "sent"),
    [
        ("2026-03-29", "02:30", "2026-03-29T03:00"),
        ("2026-10-25", "02:30", "2026-10-25T02:30"),
    ],
)
async def test_when_the_clocks_change_it_comes_once(
    world: World, clock: FakeClock, day: str, time: str, sent: str
) -> None:
    wish(world, time)
    clock.now_ms = at(f"{day}T00:30")
    loop = daily(world)
    await loop.send_due()
    for minute in range(1, 6 * 60, 5):
        clock.now_ms = at(f"{day}T00:30") + minute * 60_000
        before = len(await told(world))
        await loop.send_due()
        if len(await told(world)) > before:
            assert before == 0
            assert 0 <= clock.now_ms - at(sent) < 5 * 60_000
    assert len(await told(world)) == 1


async def test_a_clock_that_is_set_back_tells_nothing_twice(world: World, clock: FakeClock) -> None:
    wish(world)
    loop = daily(world)
    await loop.send_due()
    for now in ("2026-11-26T08:00", "2026-11-26T07:30", "2026-11-26T08:00"):
        clock.now_ms = at(now)
        await loop.send_due()
    assert len(await told(world)) == 1
    clock.now_ms = at("2031-01-01T09:00")
    await loop.send_due()
    clock.now_ms = at("2026-11-26T09:00")
    await loop.send_due()
    clock.now_ms = at("2026-11-27T08:00")
    await loop.send_due()
    assert len(await told(world)) == 3


async def test_who_wishes_for_it_anew_hears_nothing_of_the_time_before(world: World, clock: FakeClock) -> None:
    wish(world)
    loop = daily(world)
    await loop.send_due()
    wish(world, "")
    await loop.send_due()
    assert world.context.alarms.next_ms() is None
    clock.now_ms = at("2027-11-26T09:00")
    wish(world)
    await loop.send_due()
    assert await told(world) == []
    assert world.context.alarms.next_ms() == at("2027-11-27T08:00")


async def test_the_one_timer_wakes_it_and_a_changed_config_does(world: World, clock: FakeClock) -> None:
    loop = daily(world)
    looked: list[str] = []
    rounds = loop.send_due
    done = anyio.Event()

    async def send_due() -> None:
        nonlocal done
        await rounds()
        looked.append(world.context.config.notify.digest_at)
        done.set()

    loop.send_due = send_due

    async def after(act: Any) -> None:
        nonlocal done
        done = anyio.Event()
        await act
        with anyio.fail_after(10):
            await done.wait()

    async def change() -> None:
        wish(world)
        loop.look()

    async def wake() -> None:
        clock.now_ms = at("2026-11-26T08:00")
        clock.now_s += 36_000
        await world.store.read(lambda reader: None)
        await timer.work_off()

    timer = Wakeup(world.context, world.gates, None)
    async with anyio.create_task_group() as group:
        group.start_soon(loop.run)
        with anyio.fail_after(10):
            await done.wait()
        await after(change())
        assert await timer.nap_s() <= 30
        await after(wake())
        group.cancel_scope.cancel()
    assert looked == ["", "08:00", "08:00"]
    assert len(await told(world)) == 1


def test_the_last_time_is_the_last_one() -> None:

    zone = ZoneInfo(BERLIN)
    eight = time(8)
    assert last_ms(at("2026-11-26T08:00"), eight, zone) == at("2026-11-26T08:00")
    assert last_ms(at("2026-11-26T08:00") - 1, eight, zone) == at("2026-11-25T08:00")
    assert last_ms(at("2026-03-29T12:00"), time(2, 30), zone) == at("2026-03-29T03:00")
    assert datetime.fromtimestamp(last_ms(at("2026-10-25T12:00"), time(2, 30), zone) / 1000, UTC).hour == 0
