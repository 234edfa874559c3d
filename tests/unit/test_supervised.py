"""What survives what: supervisors, commands and daemons are killed at every moment that matters."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import anyio
import pytest

from omnid.errors import Retryable
from omnid.executor import launch, supervised
from omnid.executor.command import CommandExecutor
from omnid.executor.interface import Found
from omnid.executor.records import Spec, Trace, is_held, read_started
from omnid.executor.spool import ASIDE, ERRORS
from omnid.executor.workers import argv_of
from omnid.model import Result, Work
from omnid.worker import supervisor
from tests.contract.executors import Ports, command_of, commands
from tests.fakes import disk, dying_supervisor, holder
from tests.fakes.signals import WAIT_S, Fifo, gone, lives, open_descriptors, zombies

ATTEMPT = "01980000-0000-7000-8000-000000000001"
EFFECT = 'echo effect >> "$0"'
HANG = 'echo $$ > "$0"; exec sleep 600'
PORTS = Ports()


@pytest.fixture
def fifo(tmp_path: Path) -> Generator[Fifo]:
    made = Fifo(tmp_path / "fifo")
    yield made
    made.close()


@asynccontextmanager
async def daemon(tmp_path: Path, what: str, name: str, *argv: str) -> AsyncGenerator["subprocess.Popen[bytes]"]:
    """A process that holds an attempt or a server, killed at the end."""
    process = subprocess.Popen(  # noqa: ASYNC220 - it is killed, and anyio's own would be waited for.
        [sys.executable, holder.__file__, str(tmp_path), what, name, *argv], stdout=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def result_of(executor: CommandExecutor, argv: tuple[str, ...], check: tuple[str, ...] | None = None) -> Result:
    with anyio.fail_after(WAIT_S):
        return await executor.run(command_of(Work(argv=argv, check=check), attempt=ATTEMPT), PORTS)


def dies(monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    monkeypatch.setattr(launch, "SUPERVISOR", (sys.executable, dying_supervisor.__file__, moment))


def supervisor_of(pid: int) -> int:
    """Finds the parent of a supervised command."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


# Supervisors killed at a moment.


async def test_killed_before_started_never_ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    dies(monkeypatch, "before started")
    executor, effect = commands(tmp_path), tmp_path / "effect"
    with pytest.raises(Retryable) as caught:
        await result_of(executor, ("sh", "-c", EFFECT, str(effect)))
    assert caught.value.code == "executor_down"
    assert await executor.recover(command_of(Work(), attempt=ATTEMPT), PORTS) is Found.NEVER_RAN
    assert not effect.exists()
    monkeypatch.undo()
    assert (await result_of(executor, ("sh", "-c", EFFECT, str(effect)))).outcome == "success"
    assert effect.read_text() == "effect\n"


async def test_killed_between_started_and_exec_counts_as_begun_and_has_no_effect(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dies(monkeypatch, "after started")
    executor, effect = commands(tmp_path), tmp_path / "effect"
    argv = ("sh", "-c", EFFECT, str(effect))
    result = await result_of(executor, argv)
    assert result.outcome == "lost"
    assert result.problem is not None
    assert result.problem.code == "supervisor_lost"
    monkeypatch.undo()
    assert await executor.recover(command_of(Work(), attempt=ATTEMPT), PORTS) is Found.LOST
    assert (await result_of(executor, argv)).outcome == "lost"
    started = read_started(tmp_path / "spool" / ATTEMPT)
    assert started is not None
    await gone(started["pid"])
    assert not effect.exists()


async def test_killed_while_it_runs_ends_the_remains(tmp_path: Path, fifo: Fifo) -> None:
    executor = commands(tmp_path)
    # A grandchild in a session of its own, and one that has cleared its environment and leads nothing.
    script = f'setsid sh -c "echo \\$\\$ > {fifo.path}; exec sleep 600" & {HANG}'
    results: list[Result] = []

    async def keep() -> None:
        results.append(await result_of(executor, ("sh", "-c", script, fifo.path)))

    async with anyio.create_task_group() as group:
        group.start_soon(keep)
        pids = [int(await fifo.line()), int(await fifo.line())]
        started = read_started(tmp_path / "spool" / ATTEMPT)
        assert started is not None
        assert started["pid"] in pids
        os.kill(supervisor_of(started["pid"]), signal.SIGKILL)
    assert [result.outcome for result in results] == ["lost"]
    assert not any(lives(pid) for pid in pids)


async def test_remains_that_cleared_their_environment_are_found_by_their_record(tmp_path: Path, fifo: Fifo) -> None:
    executor = commands(tmp_path)
    argv = ("env", "-i", "/bin/sh", "-c", HANG, fifo.path)
    async with anyio.create_task_group() as group:
        group.start_soon(result_of, executor, argv)
        pid = int(await fifo.line())
        os.kill(supervisor_of(pid), signal.SIGKILL)
    assert not lives(pid)


async def test_killed_before_exit_is_lost(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    dies(monkeypatch, "before exit")
    assert (await result_of(commands(tmp_path), ("true",))).outcome == "lost"


@pytest.mark.parametrize(("moment", "checks"), [("after ran", 1), ("before exit", 2)])
async def test_killed_around_the_check_repeats_the_check_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, moment: str, checks: int
) -> None:
    dies(monkeypatch, moment)
    executor = commands(tmp_path)
    start = executor._supervised.start

    async def start_well_again(*arguments: Any, **named: Any) -> None:
        await start(*arguments, **named)
        monkeypatch.setattr(launch, "SUPERVISOR", original)

    original = argv_of(supervisor, site=False)
    monkeypatch.setattr(executor._supervised, "start", start_well_again)
    argv, check = (("sh", "-c", EFFECT, str(tmp_path / name)) for name in ("effect", "checked"))
    result = await result_of(executor, argv, check)
    assert result.outcome == "success"
    assert (tmp_path / "effect").read_text() == "effect\n"
    assert (tmp_path / "checked").read_text() == checks * "effect\n"


async def test_supervisor_told_to_stop_ends_the_command_in_order(tmp_path: Path, fifo: Fifo) -> None:
    results: list[Result] = []

    async def keep() -> None:
        results.append(await result_of(commands(tmp_path), ("sh", "-c", HANG, fifo.path)))

    async with anyio.create_task_group() as group:
        group.start_soon(keep)
        pid = int(await fifo.line())
        os.kill(supervisor_of(pid), signal.SIGTERM)
    assert [result.outcome for result in results] == ["lost"]
    assert not lives(pid)


async def test_stuck_supervisor_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fifo: Fifo) -> None:
    monkeypatch.setattr("omnid.executor.supervised.SLACK_S", 0.2)
    executor, results = commands(tmp_path), list[Result]()

    async def keep() -> None:
        command = command_of(Work(argv=("sh", "-c", HANG, fifo.path)), timeout_s=1, attempt=ATTEMPT)
        results.append(await executor.run(command, PORTS))

    async with anyio.create_task_group() as group:
        group.start_soon(keep)
        pid = int(await fifo.line())
        os.kill(supervisor_of(pid), signal.SIGSTOP)
    assert [result.outcome for result in results] == ["lost"]
    assert not lives(pid)


async def test_command_killed_is_a_failure_that_names_the_signal(tmp_path: Path, fifo: Fifo) -> None:
    results: list[Result] = []

    async def keep() -> None:
        results.append(await result_of(commands(tmp_path), ("sh", "-c", HANG, fifo.path)))

    async with anyio.create_task_group() as group:
        group.start_soon(keep)
        os.kill(int(await fifo.line()), signal.SIGKILL)
    assert results[0].outcome == "failure"
    assert results[0].problem is not None
    assert "SIGKILL" in results[0].problem.what


# Daemons killed.


async def test_adopted_after_the_daemons_death_and_cancelled(tmp_path: Path, fifo: Fifo) -> None:
    async with daemon(tmp_path, "attempt", ATTEMPT, "sh", "-c", HANG, fifo.path):
        pid = int(await fifo.line())
    executor, command = commands(tmp_path), command_of(Work(argv=("other",)), attempt=ATTEMPT)
    assert lives(pid)
    assert await executor.recover(command, PORTS) is Found.RUNNING
    results: list[Result] = []

    async def keep() -> None:
        results.append(await executor.adopt(command, PORTS))

    async with anyio.create_task_group() as group:
        group.start_soon(keep)
        await anyio.wait_all_tasks_blocked()
        await executor.cancel(ATTEMPT)
    assert [result.outcome for result in results] == ["cancelled"]
    assert not lives(pid)


async def test_adopted_with_its_output_from_before_and_after(tmp_path: Path, fifo: Fifo) -> None:
    go = tmp_path / "go"
    os.mkfifo(go)
    script = 'echo before; echo $$ > "$0"; read line < "$1"; echo after'
    async with daemon(tmp_path, "attempt", ATTEMPT, "sh", "-c", script, fifo.path, str(go)):
        await fifo.line()
    executor, command = commands(tmp_path), command_of(Work(), attempt=ATTEMPT)
    assert await executor.recover(command, PORTS) is Found.RUNNING
    await anyio.Path(go).write_text("go\n")
    with anyio.fail_after(WAIT_S):
        result = await executor.adopt(command, PORTS)
    assert (result.outcome, result.output) == ("success", "before\nafter\n")
    # What has ended is found as it was left, again and again, until its result is committed.
    assert await executor.recover(command, PORTS) is Found.RUNNING
    assert await executor.adopt(command, PORTS) == result


async def test_adopting_what_never_began_runs_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    executor, effect = commands(tmp_path), tmp_path / "effect"
    command = command_of(Work(argv=("sh", "-c", EFFECT, str(effect))), attempt=ATTEMPT)
    assert (await executor.adopt(command, PORTS)).outcome == "success"
    assert effect.read_text() == "effect\n"


async def test_what_cant_be_looked_at_is_looked_at_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("omnid.executor.command.INSIST_S", 0.001)
    logged = StringIO()
    executor, effect = commands(tmp_path, logged=logged), tmp_path / "effect"
    command = command_of(Work(argv=("sh", "-c", EFFECT, str(effect))), attempt=ATTEMPT)
    look, failures = supervised.read_trace, [errno.EMFILE, errno.EIO, errno.EMFILE]

    def looked(directory: Path) -> Trace:
        if failures:
            raise OSError(failures.pop(), "not now")
        return look(directory)

    monkeypatch.setattr(supervised, "read_trace", looked)
    result = await executor.run(command, PORTS)
    assert (result.outcome, failures) == ("success", [])
    waits, read = map(json.loads, logged.getvalue().splitlines())
    assert (waits["event"], waits["attempt"], waits["code"]) == ("end_waits", ATTEMPT, "executor_down")
    assert (read["event"], read["attempt"], read["tries"]) == ("end_read", ATTEMPT, 4)
    failures.append(errno.EMFILE)
    with pytest.raises(Retryable, match="not now"):
        await executor.recover(command, PORTS)
    assert await executor.recover(command, PORTS) is Found.RUNNING
    failures.append(errno.EMFILE)
    assert await executor.adopt(command, PORTS) == result
    assert effect.read_text() == "effect\n"


async def test_two_daemons_race_for_one_attempt_and_it_begins_once(tmp_path: Path) -> None:
    effect, outcomes = tmp_path / "effect", list[str]()

    async def one() -> None:
        outcomes.append((await result_of(commands(tmp_path), ("sh", "-c", EFFECT, str(effect)))).outcome)

    async with anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(one)
    assert outcomes == ["success"] * 8
    assert effect.read_text() == "effect\n"


async def test_cancelling_run_leaves_the_command_to_its_supervisor(tmp_path: Path, fifo: Fifo) -> None:
    executor = commands(tmp_path)
    async with anyio.create_task_group() as group:
        group.start_soon(result_of, executor, ("sh", "-c", HANG, fifo.path))
        pid = int(await fifo.line())
        group.cancel_scope.cancel()
    assert lives(pid)
    command = command_of(Work(), attempt=ATTEMPT)
    assert await executor.recover(command, PORTS) is Found.RUNNING
    await executor.cancel(ATTEMPT)
    with anyio.fail_after(WAIT_S):
        assert (await executor.adopt(command, PORTS)).outcome == "cancelled"


# What is left behind.


async def test_many_cycles_leave_no_zombie_and_no_descriptor(tmp_path: Path) -> None:
    executor, limiter = commands(tmp_path), anyio.CapacityLimiter(8)

    async def one() -> None:
        async with limiter:
            assert (await executor.run(command_of(Work(argv=("true",))), PORTS)).outcome == "success"

    await one()
    before = open_descriptors()
    async with anyio.create_task_group() as group:
        for _ in range(200):
            group.start_soon(one)
    assert open_descriptors() <= before
    assert zombies() == []


async def test_control_files_go_and_output_stays(tmp_path: Path) -> None:
    executor = commands(tmp_path)
    await result_of(executor, ("echo", "hello"), check=("echo", "fine"))
    spool = executor._supervised.spool
    await spool.forget_control_files(ATTEMPT)
    assert sorted(os.listdir(spool.directory(ATTEMPT))) == ["check_output", "output"]
    assert await spool.read(ATTEMPT, 2, 100) == b"llo\n"
    assert await spool.read(ATTEMPT, 0, 100, check=True) == b"fine\n"
    assert await spool.attempts() == [ATTEMPT]
    assert await spool.total_bytes() == len("hello\nfine\n")
    await spool.remove(ATTEMPT)
    assert await spool.attempts() == []


async def test_unknown_attempt_is_ended_and_set_aside(tmp_path: Path, fifo: Fifo) -> None:
    async with daemon(tmp_path, "attempt", ATTEMPT, "sh", "-c", f"echo kept; {HANG}", fifo.path):
        pid = int(await fifo.line())
    supervised = commands(tmp_path)._supervised
    await supervised.set_aside(ATTEMPT)
    assert not lives(pid)
    assert await supervised.spool.attempts() == []
    (aside,) = (tmp_path / "spool" / ASIDE).iterdir()
    assert (aside / supervisor.OUTPUT).read_text() == "kept\n"


async def test_spool_is_private(tmp_path: Path) -> None:
    await result_of(commands(tmp_path), ("true",))
    directory = tmp_path / "spool" / ATTEMPT
    assert [path.stat().st_mode & 0o777 for path in (directory.parent, directory)] == [0o700, 0o700]
    assert all(path.stat().st_mode & 0o077 == 0 for path in directory.iterdir())


async def test_secrets_reach_the_command_and_no_file(tmp_path: Path) -> None:
    supervised = commands(tmp_path)._supervised
    spec = Spec(
        attempt=ATTEMPT,
        executor="command",
        argv=("sh", "-c", 'echo ${#TOKEN}; tr "\\0" "\\n" < /proc/$PPID/cmdline | grep -c hush'),
        cwd="/",
        timeout_s=10,
        kill_grace_s=1,
        spool_bytes_max=1000,
    )
    await supervised.start(spec, {"TOKEN": "hush-hush", "PATH": os.environ["PATH"]})
    trace = await supervised.wait(ATTEMPT, 10)
    assert trace.exit is not None
    assert await supervised.spool.read(ATTEMPT, 0, 100) == b"9\n0\n"
    for path in supervised.spool.directory(ATTEMPT).iterdir():
        assert path.is_fifo() or b"hush-hush" not in path.read_bytes()


# A full disk.


@pytest.fixture
def small_disk(tmp_path: Path) -> Generator[Path]:
    """A file system of 256 KiB."""
    with disk.small_disk(tmp_path / "small", "size=256k") as path:
        yield path


async def test_disk_full_while_it_prints_drops_output_and_keeps_the_end(small_disk: Path) -> None:
    result = await result_of(commands(small_disk), ("sh", "-c", "head -c 900000 /dev/zero; exit 3"))
    assert (result.outcome, result.exit_code, result.output_bytes) == ("failure", 3, 900_000)
    assert "more bytes were dropped" in (result.output or "")


async def test_disk_full_before_the_start_begins_nothing(small_disk: Path, tmp_path: Path) -> None:
    with (small_disk / "filler").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))
    effect = tmp_path / "effect"
    with pytest.raises(Retryable) as caught:
        await result_of(commands(small_disk), ("sh", "-c", EFFECT, str(effect)))
    assert caught.value.code == "disk_full"
    (small_disk / "filler").unlink()
    assert (await result_of(commands(small_disk), ("sh", "-c", EFFECT, str(effect)))).outcome == "success"
    assert effect.read_text() == "effect\n"


async def test_supervisor_that_can_not_start_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(launch, "SUPERVISOR", (sys.executable, "-c", "import nothing_of_that_name"))
    executor = commands(tmp_path)
    with pytest.raises(Retryable) as caught:
        await result_of(executor, ("true",))
    assert "nothing_of_that_name" in caught.value.what
    assert (tmp_path / "spool" / ATTEMPT / ERRORS).exists()
    monkeypatch.setattr(launch, "SUPERVISOR", ("/nowhere/python",))
    with pytest.raises(Retryable) as caught:
        await result_of(executor, ("true",))
    assert caught.value.code == "executor_down"
    assert not is_held(tmp_path / "spool" / ATTEMPT)
