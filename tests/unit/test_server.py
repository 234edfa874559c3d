"""Servers under a supervisor: they talk to the daemon and end with it."""

import os
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import anyio
import pytest

from omnid.clock import SystemClock
from omnid.errors import Retryable
from omnid.executor.records import is_held
from omnid.executor.supervised import Supervised
from tests.contract.executors import KILL_GRACE_S, LIMITS
from tests.fakes import holder
from tests.fakes.signals import WAIT_S, Fifo, gone, lives, open_descriptors

ENVIRONMENT = {"PATH": os.environ["PATH"]}
STUBBORN = "trap '' TERM; setsid sleep 600 & echo $$ $! > \"$0\"; while :; do sleep 1; done"


@pytest.fixture
def fifo(tmp_path: Path) -> Generator[Fifo]:
    made = Fifo(tmp_path / "fifo")
    yield made
    made.close()


@pytest.fixture
def supervised(tmp_path: Path) -> Supervised:
    return Supervised(tmp_path / "spool", SystemClock(), LIMITS, KILL_GRACE_S)


async def test_talks_both_ways_and_more_than_a_pipe_holds(supervised: Supervised) -> None:
    server = await supervised.start_server("echo", ["cat"], "/", ENVIRONMENT)
    sent, received = bytes(range(256)) * 2000, bytearray()
    with anyio.fail_after(WAIT_S):
        async with anyio.create_task_group() as group:
            group.start_soon(server.send, sent)
            while len(received) < len(sent):
                received += await server.receive()
    assert received == sent
    assert server.pid is not None
    before = open_descriptors()
    await server.terminate()
    await server.terminate()
    assert open_descriptors() == before - 3
    assert not lives(server.pid)
    with pytest.raises(anyio.EndOfStream):
        await server.receive()
    with pytest.raises(anyio.BrokenResourceError):
        await server.send(b"x")


async def test_end_of_a_server_is_seen_and_told(supervised: Supervised) -> None:
    server = await supervised.start_server("short", ["sh", "-c", "echo sorry >&2; exit 3"], "/", ENVIRONMENT)
    with anyio.fail_after(WAIT_S), pytest.raises(anyio.EndOfStream):
        await server.receive()
    with anyio.fail_after(WAIT_S):
        assert await server.wait_closed() == "it ended with exit code 3"
    assert await server.log_tail() == "sorry\n"
    await server.terminate()


@pytest.mark.parametrize(
    ("argv", "cwd", "said"),
    [
        (["/nowhere/at/all"], "/", "(exec)"),
        (["true"], "/nowhere", "(chdir)"),
        (["/etc/passwd"], "/", "Permission denied"),
    ],
)
async def test_server_that_can_not_start(supervised: Supervised, argv: list[str], cwd: str, said: str) -> None:
    server = await supervised.start_server("broken", argv, cwd, ENVIRONMENT)
    with anyio.fail_after(WAIT_S):
        ended = await server.wait_closed()
    assert ended.startswith("it could not be started: ")
    assert said in ended
    await server.terminate()


async def test_closed_input_is_broken(supervised: Supervised) -> None:
    server = await supervised.start_server("deaf", ["sh", "-c", "exec <&-; echo deaf; sleep 600"], "/", ENVIRONMENT)
    with anyio.fail_after(WAIT_S):
        assert await server.receive() == b"deaf\n"
        with pytest.raises(anyio.BrokenResourceError):
            await server.send(b"hello")
        await server.terminate()


async def test_terminate_frees_those_who_wait(supervised: Supervised) -> None:
    server = await supervised.start_server("mute", ["sleep", "600"], "/", ENVIRONMENT)
    seen: list[type[Exception]] = []

    async def hear() -> None:
        try:
            await server.receive()
        except anyio.EndOfStream as error:
            seen.append(type(error))

    async def say() -> None:
        try:
            await server.send(bytes(1 << 20))
        except anyio.BrokenResourceError as error:
            seen.append(type(error))

    with anyio.fail_after(WAIT_S):
        async with anyio.create_task_group() as group:
            group.start_soon(hear)
            group.start_soon(say)
            await anyio.wait_all_tasks_blocked()
            await server.terminate()
    assert set(seen) == {anyio.EndOfStream, anyio.BrokenResourceError}


async def test_terminate_ends_the_stubborn_and_what_they_left(supervised: Supervised, fifo: Fifo) -> None:
    server = await supervised.start_server("stubborn", ["sh", "-c", STUBBORN, fifo.path], "/", ENVIRONMENT)
    pids = [int(pid) for pid in (await fifo.line()).split()]
    assert server.pid == pids[0]
    with anyio.fail_after(WAIT_S):
        await server.terminate()
        assert await server.wait_closed() == "it was ended by SIGKILL"
    assert not any(lives(pid) for pid in pids)


async def test_server_ends_with_the_daemon(supervised: Supervised, fifo: Fifo, tmp_path: Path) -> None:
    argv = [sys.executable, holder.__file__, tmp_path, "server", "held", "sh", "-c", STUBBORN, fifo.path]
    with subprocess.Popen(argv) as daemon:  # noqa: ASYNC220 - it is killed, and anyio's own would be waited for.
        pids = [int(pid) for pid in (await fifo.line()).split()]
        daemon.kill()
    # The next daemon waits for it, and only then starts its own.
    with anyio.fail_after(WAIT_S):
        server = await supervised.start_server("held", ["cat"], "/", ENVIRONMENT)
    assert not any(lives(pid) for pid in pids)
    await server.terminate()


async def test_leftover_of_a_killed_supervisor_is_ended_first(
    supervised: Supervised, fifo: Fifo, tmp_path: Path
) -> None:
    argv = [sys.executable, holder.__file__, tmp_path, "server", "held", "sh", "-c", STUBBORN, fifo.path]
    with subprocess.Popen(argv) as daemon:  # noqa: ASYNC220 - it is killed, and anyio's own would be waited for.
        pid = int((await fifo.line()).split()[0])
        parent = int((await anyio.Path(f"/proc/{pid}/stat").read_text()).rpartition(")")[2].split()[1])
        os.kill(parent, signal.SIGKILL)
        daemon.kill()
    await gone(parent)
    assert lives(pid)
    with anyio.fail_after(WAIT_S):
        await supervised.clear_server("held")
    assert not lives(pid)


async def test_second_server_of_a_name_is_refused_while_the_first_lives(
    monkeypatch: pytest.MonkeyPatch, supervised: Supervised
) -> None:
    server = await supervised.start_server("one", ["cat"], "/", ENVIRONMENT)
    monkeypatch.setattr("omnid.executor.supervised.supervisor.end_remains", lambda *_: None)
    monkeypatch.setattr("omnid.executor.supervised.SLACK_S", 0.1)
    with pytest.raises(Retryable) as caught:
        await supervised.start_server("one", ["cat"], "/", ENVIRONMENT)
    assert caught.value.code == "executor_down"
    monkeypatch.undo()
    assert server.pid is not None
    assert lives(server.pid)
    await server.terminate()
    assert not is_held(supervised.spool.directory("server-one"))


async def test_log_keeps_the_newest_lines_within_its_limit(
    monkeypatch: pytest.MonkeyPatch, supervised: Supervised
) -> None:
    monkeypatch.setattr("omnid.executor.supervised.SERVER_LOG_BYTES_MAX", 20_000)
    script = "i=0; while [ $i -lt 5000 ]; do i=$((i+1)); echo line $i; done >&2"
    server = await supervised.start_server("chatty", ["sh", "-c", script], "/", ENVIRONMENT)
    with anyio.fail_after(WAIT_S):
        await server.wait_closed()
    tail = await server.log_tail(15_000)
    assert tail.endswith("line 4999\nline 5000\n")
    assert "line 4500\n" in tail
    logs = [path.stat().st_size for path in supervised.spool.directory("server-chatty").glob("log*")]
    assert len(logs) == 2
    assert sum(logs) <= 20_000
    assert await supervised.spool.attempts() == []
    await server.terminate()
