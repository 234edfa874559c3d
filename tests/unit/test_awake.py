"""Keeping the machine awake: one helper while something runs, none otherwise, and no trouble where there is none."""

import sys
from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest

from omnid.flow import awake
from omnid.flow.awake import Awake, helper
from tests.fakes.signals import WAIT_S, Fifo
from tests.fakes.world import World


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(awake, "SETTLE_S", 0.0)


def test_the_helper_is_the_systems() -> None:
    def has(*names: str):
        return lambda name: f"/usr/bin/{name}" if name in names else None

    assert helper("darwin", 7, has("caffeinate")) == ("caffeinate", "-i", "-w", "7")
    inhibit = helper("linux", 7, has("systemd-inhibit"))
    assert inhibit is not None
    assert inhibit[:2] == ("systemd-inhibit", "--what=idle:sleep")
    assert helper("linux", 7, has()) is helper("darwin", 7, has()) is None


def script(fifo: Fifo) -> Sequence[str]:
    """Says when it is there, and when the daemon lets it go."""
    return ("sh", "-c", 'trap "echo over > $0; exit" TERM; echo there > "$0"; while :; do sleep 0.01; done', fifo.path)


async def test_one_helper_from_the_first_attempt_to_the_last(world: World, tmp_path: Path) -> None:
    fifo = Fifo(tmp_path / "fifo")
    context = world.context
    with anyio.fail_after(WAIT_S):
        async with anyio.create_task_group() as group:
            group.start_soon(Awake(context, script(fifo)).run)
            for _ in range(2):
                context.take_on("a", "command")
                assert await fifo.line() == "there"
                context.take_on("b", "command")
                context.let_go("a")
                await anyio.wait_all_tasks_blocked()
                context.let_go("b")
                assert await fifo.line() == "over"
            context.take_on("c", "command")
            assert await fifo.line() == "there"
            group.cancel_scope.cancel()
    assert await fifo.line() == "over", "it ends with the daemon"
    fifo.close()


async def test_the_config_may_say_no(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.set("daemon", keep_awake=False)
    started: list[object] = []
    keeper = Awake(world.context, ("true",))
    monkeypatch.setattr(keeper, "_start", started.append)
    async with anyio.create_task_group() as group:
        group.start_soon(keeper.run)
        world.context.take_on("a", "command")
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    assert started == []


@pytest.mark.parametrize("command", [("/no/such/helper",), (sys.executable, "-c", "raise SystemExit(3)")])
async def test_a_helper_that_fails_is_told_once(world: World, command: Sequence[str]) -> None:
    with anyio.fail_after(WAIT_S):
        async with anyio.create_task_group() as group:
            group.start_soon(Awake(world.context, command).run)
            for name in ("a", "b"):
                world.context.take_on(name, "command")
                while "not_kept_awake" not in world.logged.getvalue():  # noqa: ASYNC110 - the log has no signal.
                    await anyio.sleep(0.01)
                world.context.let_go(name)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
    assert world.logged.getvalue().count("not_kept_awake") == 1


async def test_without_a_helper_nothing_is_done(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(awake, "helper", lambda *_: None)
    with anyio.fail_after(WAIT_S):
        await Awake(world.context).run()
