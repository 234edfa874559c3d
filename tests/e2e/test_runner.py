"""A runner as its own process, on real brokers: what comes is done once and answered, whoever dies in between."""

import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import pytest
from anyio.lowlevel import checkpoint

from omnid.link.interface import Link
from omnid.model import Cancel, Command, Heartbeat, Result, Watch, Work
from tests.contract.links import WAIT_S, Kit, take
from tests.e2e.harness import until as harness_until
from tests.e2e.runners import Host
from tests.fakes import mcp_asking_server

pytestmark = pytest.mark.anyio
only_redis = pytest.mark.parametrize("kit", ["redis"], indirect=True)
"""Where the test is about what Redis does, or about what no broker has a part in."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def daemon(kit: Kit) -> AsyncIterator[Link]:
    async with kit.daemon() as link:
        yield link


def sh(number: int, script: str, cwd: Path, **fields: Any) -> Command:
    command = Command(
        f"019b0000-0000-7000-8000-{number:012x}",
        f"019b0000-0000-7000-9000-{number:012x}",
        1,
        f"t{number}",
        "command",
        Work(argv=("sh", "-c", script), cwd=str(cwd)),
        30.0,
    )
    return msgspec.structs.replace(command, **fields)


async def results(daemon: Link, count: int) -> list[Result]:
    """Takes that many results, and acknowledges them."""
    found: list[Result] = []
    while len(found) < count:
        received = await take(daemon, 1)
        await daemon.ack(received)
        found += [one.message for one in received if isinstance(one.message, Result)]
    return found


async def until(holds: Callable[[], bool]) -> None:
    await anyio.to_thread.run_sync(harness_until, holds, "what the test waits for")


async def acknowledged(kit: Kit) -> None:
    """Waits until the broker has nothing left for the runner: an acknowledgement may come after the result."""
    with anyio.fail_after(WAIT_S):
        while await kit.broker.held(kit.runner_name):
            await checkpoint()


async def test_commands_are_done_once_and_answered_and_whoever_asks_hears_how_it_is(
    kit: Kit, daemon: Link, host: Host
) -> None:
    host.link(kit)
    done = host.work / "done"
    commands = [sh(number, f"echo {number} >> {done}; echo said {number}", host.work) for number in range(5)]
    # All of them twice, and before there is a runner.
    await daemon.send(kit.runner_name, [*commands, *commands, Watch(60.0)])
    host.run()
    heard = await take(daemon, 1)
    while not any(isinstance(one.message, Heartbeat) for one in heard):
        heard += await take(daemon, 1)
    (beat, *_) = [one.message for one in heard if isinstance(one.message, Heartbeat)]
    assert heard[0].sender == kit.runner_name
    assert beat.labels == ("gpu",)
    assert beat.executors == {"command": beat.slots}
    await daemon.ack(heard)
    found = [one.message for one in heard if isinstance(one.message, Result)]
    found += await results(daemon, 5 - len(found))
    assert {(result.attempt_id, result.outcome, result.output) for result in found} == {
        (command.attempt_id, "success", f"said {number}\n") for number, command in enumerate(commands)
    }
    await daemon.send(kit.runner_name, [commands[0], sh(9, "true", host.work)])
    assert [result.attempt_id for result in await results(daemon, 1)] == [sh(9, "", host.work).attempt_id]
    assert sorted(done.read_text().split()) == ["0", "1", "2", "3", "4"]
    health = json.loads(host.call("--health").stdout)
    assert (health["name"], health["up"], health["pid"]) == (kit.runner_name, True, host.runner and host.runner.pid)
    await acknowledged(kit)
    assert host.end() == 0
    assert host.call("--health").returncode == 1


async def test_a_killed_runner_adopts_what_it_had_begun(kit: Kit, daemon: Link, host: Host) -> None:
    host.link(kit)
    begun, go, done = host.work / "begun", host.work / "go", host.work / "done"
    os.mkfifo(go)
    command = sh(1, f"echo x >> {begun}; read line < {go}; echo x >> {done}", host.work)
    host.run()
    await daemon.send(kit.runner_name, [command])
    await until(begun.exists)
    host.end(signal.SIGKILL)
    host.run()
    await daemon.send(kit.runner_name, [command])  # As a daemon does that never heard of the confirmation.
    await until(lambda: host.logged("runner_started")[-1]["recovered"] == 1)
    await anyio.to_thread.run_sync(go.write_text, "\n")
    (result,) = await results(daemon, 1)
    assert (result.attempt_id, result.outcome) == (command.attempt_id, "success")
    assert (begun.read_text(), done.read_text()) == ("x\n", "x\n")
    await acknowledged(kit)


@only_redis
async def test_what_it_holds_without_a_name_begins_once_there_is_room_for_the_name(kit: Kit, host: Host) -> None:
    host.link(kit, "ping_every_s = 0.2\n")
    begun = host.work / "begun"
    async with kit.runner(), kit.daemon() as daemon:  # So that both are known there.
        await daemon.send(kit.runner_name, [sh(1, f"echo x >> {begun}", host.work)])
    async with kit.daemon() as daemon:
        kit.broker.fill()
        try:
            host.run()
            await until(lambda: bool(host.logged("link_full")))
            assert not begun.exists()
        finally:
            kit.broker.clear()
        (result,) = await results(daemon, 1)
        assert (result.outcome, begun.read_text()) == ("success", "x\n")


@pytest.mark.parametrize("left", ["in the config", "nowhere"])
async def test_what_runs_on_an_executor_that_is_not_offered_any_more_is_adopted_all_the_same(
    kit: Kit, host: Host, left: str
) -> None:
    # A name of its own: the one before was killed, and has its name for a while.
    kit = Kit(kit.kind, kit.broker, f"left-{left.replace(' ', '-')}")
    other, third = (f'[[executor]]\nname = "{name}"\nkind = "command"\n' for name in ("other", "third"))
    host.link(kit, other + third)
    begun, go = host.work / "begun", host.work / "go"
    os.mkfifo(go)
    command = sh(1, f"echo x >> {begun}; read line < {go}", host.work, executor="other")
    async with kit.daemon() as daemon:
        host.run()
        await daemon.send(kit.runner_name, [command])
        await until(begun.exists)
        host.end(signal.SIGKILL)
        host.link(kit, third + (other if left == "in the config" else ""))
        host.config.write_text(host.config.read_text().replace('labels = ["gpu"]', 'executors = ["third"]'))
        host.run()
        again = msgspec.structs.replace(command, attempt_id=command.attempt_id[:-1] + "2", number=2)
        await daemon.send(kit.runner_name, [again, Watch(60.0)])
        heard = await take(daemon, 2)
        assert {type(one.message) for one in heard} == {Result, Heartbeat}
        for one in heard:
            match one.message:
                case Result(attempt_id, outcome=outcome):
                    assert (attempt_id, outcome) == (again.attempt_id, "unstarted")
                case Heartbeat(executors=executors, running=running):
                    assert (set(executors), running) == ({"third"}, 1)
        await daemon.ack(heard)
        await anyio.to_thread.run_sync(go.write_text, "\n")
        assert [(one.attempt_id, one.outcome) for one in await results(daemon, 1)] == [(command.attempt_id, "success")]
        await kit.broker.dead(kit.runner_name)


async def test_a_stop_leaves_what_runs_to_the_next_one(kit: Kit, host: Host) -> None:
    host.link(kit)
    host.drain(0.3)
    async with kit.daemon() as daemon:
        go = await begun_by(host, kit, daemon)
        began_s = time.monotonic()
        host.tell()
        await leaving(kit, daemon)
        assert await anyio.to_thread.run_sync(host.ended) == 0
        assert time.monotonic() - began_s < 10.0
        assert drained(host) == (0, 1, 0)
        await anyio.to_thread.run_sync(go.write_text, "\n")  # It ends while no runner is there.
        host.run()
        assert [result.outcome for result in await results(daemon, 1)] == ["success"]


async def begun_by(host: Host, kit: Kit, daemon: Link) -> Path:
    """Starts a runner and has it begin a command, which ends once a line is written to the file that this gives."""
    begun, go = host.work / "begun", host.work / "go"
    os.mkfifo(go)
    host.run()
    await daemon.send(kit.runner_name, [sh(1, f"echo x >> {begun}; read line < {go}", host.work), Watch(60.0)])
    await until(begun.exists)
    return go


async def leaving(kit: Kit, daemon: Link) -> list[Result]:
    """Waits until the runner has said that it leaves, and answers; gives the results that came before."""
    found: list[Result] = []
    beats: list[Heartbeat] = []
    while not (beats and beats[-1].leaving):
        received = await take(daemon, 1)
        await daemon.ack(received)
        beats += [one.message for one in received if isinstance(one.message, Heartbeat)]
        found += [one.message for one in received if isinstance(one.message, Result)]
    await daemon.send(kit.runner_name, [Watch(60.0, heard_leaving=True)])
    return found


def drained(host: Host) -> tuple[int, int, int]:
    (line,) = host.logged("drained")
    return line["given_back"], line["running"], line["unsent"]


async def test_a_stop_gives_back_what_has_not_begun_and_lets_out_what_ends_meanwhile(
    kit: Kit, daemon: Link, host: Host
) -> None:
    host.link(kit, "[daemon]\nslots_max = 1\n")
    host.drain(60.0)
    begun, go = host.work / "begun", host.work / "go"
    os.mkfifo(go)
    commands = [sh(number, f"echo {number} >> {begun}; read line < {go}", host.work) for number in range(4)]
    host.run()
    await daemon.send(kit.runner_name, [*commands[:3], Watch(60.0)])
    await until(begun.exists)
    host.tell()
    back = await leaving(kit, daemon)
    back += await results(daemon, 2 - len(back))
    await daemon.send(kit.runner_name, [commands[3]])  # By a daemon that has not heard of it yet.
    back += await results(daemon, 1)
    assert [(one.attempt_id, one.outcome) for one in back] == [(one.attempt_id, "unstarted") for one in commands[1:]]
    assert {one.problem and one.problem.code for one in back} == {"runner_left"}
    await until(lambda: health(host)["leaving"])
    await acknowledged(kit)
    await anyio.to_thread.run_sync(go.write_text, "\n")
    assert [(one.attempt_id, one.outcome) for one in await results(daemon, 1)] == [(commands[0].attempt_id, "success")]
    assert await anyio.to_thread.run_sync(host.ended) == 0
    assert drained(host) == (3, 0, 0)
    assert begun.read_text() == "0\n"


async def test_a_second_stop_ends_it_at_once(kit: Kit, host: Host) -> None:
    host.link(kit)
    host.drain(3600.0)
    async with kit.daemon() as daemon:
        go = await begun_by(host, kit, daemon)
        host.tell()
        await leaving(kit, daemon)
        assert host.end() == 0
        assert drained(host) == (0, 1, 0)
        host.run()
        await anyio.to_thread.run_sync(go.write_text, "\n")
        assert [result.outcome for result in await results(daemon, 1)] == ["success"]


async def test_what_ends_while_the_broker_is_away_is_answered_when_it_is_back(kit: Kit, host: Host) -> None:
    host.link(kit)
    begun, go = host.work / "begun", host.work / "go"
    os.mkfifo(go)
    async with kit.daemon() as daemon:
        host.run()
        await daemon.send(kit.runner_name, [sh(1, f"echo x >> {begun}; read line < {go}", host.work)])
        await until(begun.exists)
    kit.broker.kill()
    await until(lambda: bool(host.logged("link_down")))
    await anyio.to_thread.run_sync(go.write_text, "\n")
    await until(lambda: health(host)["owed"] == 1)
    assert health(host)["up"] is False
    await anyio.to_thread.run_sync(kit.broker.start)
    async with kit.daemon() as daemon:
        assert [result.outcome for result in await results(daemon, 1)] == ["success"]
    # It may be said after the result was sent.
    await until(lambda: len(host.logged("link_up")) == 2)
    assert len(host.logged("link_down")) == 1
    await until(lambda: health(host)["owed"] == 0)


def health(host: Host) -> dict[str, Any]:
    path = host.state / "runner" / "health"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@only_redis
async def test_a_health_line_that_can_not_be_written_is_logged_once_and_stops_nothing(kit: Kit, host: Host) -> None:
    host.link(kit)
    obstacle = host.state / "runner" / "health.new"
    obstacle.mkdir(parents=True)
    obstacle.parent.chmod(0o700)
    host.run()
    async with kit.daemon() as daemon:
        await daemon.send(kit.runner_name, [sh(1, "true", host.work)])
        assert [result.outcome for result in await results(daemon, 1)] == ["success"]
        assert host.call("--health").returncode == 1
        (line,) = host.logged("loop_waits")
        assert (line["loop"], line["code"], host.logged("loop_failed")) == ("health", "state_unwritable", [])
        obstacle.rmdir()
        await until(lambda: host.call("--health").returncode == 0)


async def test_a_cancel_reaches_what_runs_and_what_waits(kit: Kit, host: Host) -> None:
    host.link(kit, "[daemon]\nslots_max = 1\n")
    begun = host.work / "begun"
    running, waiting = sh(1, f"echo x >> {begun}; exec sleep 60", host.work), sh(2, f"echo y >> {begun}", host.work)
    host.run()
    async with kit.daemon() as daemon:
        await daemon.send(kit.runner_name, [running, waiting])
        await until(begun.exists)
        await daemon.send(kit.runner_name, [Cancel(waiting.attempt_id), Cancel(running.attempt_id), Cancel("unknown")])
        found = await results(daemon, 2)
    assert [(result.attempt_id, result.outcome) for result in found] == [
        (waiting.attempt_id, "cancelled"),
        (running.attempt_id, "cancelled"),
    ]
    assert begun.read_text() == "x\n"


async def test_what_it_does_not_offer_is_set_aside_and_told(kit: Kit, host: Host) -> None:
    host.link(kit, '[[executor]]\nname = "other"\nkind = "command"\n')
    host.config.write_text(host.config.read_text().replace('labels = ["gpu"]', 'executors = ["other"]'))
    host.run()
    async with kit.daemon() as daemon:
        await daemon.send(
            kit.runner_name,
            [
                sh(1, "true", host.work),
                sh(2, "true", host.work, executor="other"),
                sh(3, "true", host.work, executor="codex"),
            ],
        )
        found = {result.attempt_id[-1]: result for result in await results(daemon, 3)}
    assert {id: result.outcome for id, result in found.items()} == {"1": "unstarted", "2": "success", "3": "unstarted"}
    problem = found["3"].problem
    assert problem is not None
    assert "doesn't offer its executor codex" in problem.what
    await until(lambda: len(host.logged("message_set_aside")) == 2)
    assert len(await kit.broker.dead(kit.runner_name)) == 2


@only_redis
async def test_a_server_on_a_runner_is_told_that_nobody_can_be_asked(kit: Kit, host: Host) -> None:
    argv = json.dumps([sys.executable, mcp_asking_server.__file__])
    host.link(kit, f'[[executor]]\nname = "forms"\nkind = "mcp"\nargv = {argv}\n')
    host.run()
    async with kit.daemon() as daemon:
        work = Work(server="forms", tool="greet")
        await daemon.send(kit.runner_name, [sh(1, "", host.work, executor="forms", work=work)])
        (result,) = await results(daemon, 1)
    assert result.problem is not None
    assert (result.outcome, result.problem.code, "elicitation" in result.problem.what) == (
        "failure",
        "reported_error",
        True,
    ), result
    assert host.logged("mcp_not_asked") == []
