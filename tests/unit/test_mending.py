"""A gateway that doesn't start: one repair is asked for in a while, and people hear of whatever stands in its way."""

import json
from typing import Any, cast

import anyio
import pytest
from msgspec import structs

from omnid.errors import Rejected, Retryable
from omnid.flow import outages
from omnid.flow.mending import GATEWAY, Mender
from omnid.model import Work
from tests.fakes.clock import FakeClock
from tests.fakes.world import World


@pytest.fixture
def mended(world: World) -> World:
    """A world in which `safe` mends the gateway."""
    world.set("mode", repair_executor="safe", repair_every_s=3600.0)
    world.set("notify", to=("told",))
    mender = cast(Any, world.context.executors["safe"])
    mender.takes_prompts, mender.accepts = True, lambda work: None
    return world


async def ask(world: World, said: str = "") -> None:
    await Mender(world.context, lambda: None)._ask_for_repair("it has no litellm", said)


async def told(world: World) -> list[dict[str, str]]:
    rows = await world.rows("SELECT body FROM outbox WHERE destination = 'notice/told' ORDER BY ord")
    return [json.loads(row[0]) for row in rows]


async def repairs(world: World) -> int:
    return int((await world.rows("SELECT count(*) FROM task WHERE kind = 'repair'"))[0][0])


async def test_it_is_asked_for_once_in_a_while_also_by_the_next_daemon(mended: World, clock: FakeClock) -> None:
    for _ in range(2):
        await ask(mended)
        clock.now_ms += 1_800_000
        await mended.restart()
    assert await repairs(mended) == 1
    still = {"executor": "safe", "task": "t1", "said": "it has no litellm"}
    assert [one["mode"] for one in await told(mended)] == ["repair", "unmended_still"]
    assert (await told(mended))[1] == {"event": "mode", "mode": "unmended_still", **still}
    clock.now_ms += 1_800_000
    await ask(mended)
    assert await repairs(mended) == 2


async def test_where_nobody_is_named_to_mend_it_people_are_told(mended: World) -> None:
    mended.set("mode", repair_executor="")
    await ask(mended)
    assert await told(mended) == [{"event": "mode", "mode": "unmended", "said": "it has no litellm"}]
    assert await repairs(mended) == 0


async def test_where_the_repair_is_refused_people_are_told_why(mended: World) -> None:
    def refuse(_: Work) -> None:
        raise Rejected("nothing_to_do", detail="no program")

    cast(Any, mended.context.executors["safe"]).accepts = refuse
    await ask(mended)
    (notice,) = await told(mended)
    assert (notice["mode"], notice["executor"]) == ("unasked", "safe")
    assert "no program" in notice["said"]
    assert "repair_not_asked" in mended.logged.getvalue()
    assert await repairs(mended) == 0


async def test_a_full_disk_loses_no_repair(mended: World, monkeypatch: pytest.MonkeyPatch) -> None:
    write, tries = mended.store.write, iter((True, True, False))
    waited: list[float] = []

    async def full(*args: Any, **more: Any) -> Any:
        if next(tries, False):
            raise Retryable("disk_full", path="/", detail="no room")
        return await write(*args, **more)

    async def wait(delay_s: float) -> None:
        waited.append(delay_s)

    monkeypatch.setattr(mended.store, "write", full)
    monkeypatch.setattr(anyio, "sleep", wait)
    await ask(mended)
    assert await repairs(mended) == 1
    assert (len(waited), mended.logged.getvalue().count("mode_waits")) == (2, 1)


class Well:
    """A gateway that starts whenever it is asked to."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.modes: list[tuple[str, int]] = []
        """What the mode was, and since when, at each start."""

    async def restart(self) -> None:
        modes = self.world.context.modes
        self.modes.append((modes.mode, modes.since_ms))

    async def probe(self, _timeout_s: float) -> object:
        return self


@pytest.mark.parametrize("has_channels", [True, False])
async def test_what_was_gone_when_a_daemon_ended_is_mended_by_the_next(
    mended: World, clock: FakeClock, has_channels: bool
) -> None:
    mended.set("mode", gateway_probe_every_s=0.01)
    gone_at_ms, gateway = clock.now_ms, Well(mended)
    gate = structs.replace(GATEWAY, closed_at_ms=gone_at_ms)
    await mended.write(lambda tx: outages.began(tx, gate, "0"))
    clock.now_ms += 60_000
    mender = Mender(mended.context, lambda: cast(Any, gateway) if has_channels else None)
    await mender._go_on()
    assert gateway.modes == ([("degraded", gone_at_ms)] if has_channels else [])
    assert [one["mode"] for one in await told(mended)] == (["gateway_back"] if has_channels else [])
    assert mended.context.modes.mode == "normal"
    assert await mended.rows("SELECT ended_at_ms IS NULL FROM outage") == [(0,)]
    await mender._go_on()
    assert len(gateway.modes) <= 1, "what is over isn't begun again"
