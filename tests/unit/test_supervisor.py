"""What a supervised command sees of the world, and what the supervisor keeps of what it does."""

import ast
import os
import signal
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import anyio
import pytest

import omnid
from omnid.clock import SystemClock
from omnid.executor import launch
from omnid.executor import supervised as supervised_module
from omnid.executor.records import Exit, Spec
from omnid.executor.supervised import Supervised
from omnid.executor.workers import argv_of
from omnid.worker import supervisor
from tests.contract.executors import KILL_GRACE_S, LIMITS
from tests.fakes import measured_supervisor
from tests.fakes.signals import WAIT_S, Fifo, lives

ATTEMPT = "01980000-0000-7000-8000-000000000001"


@pytest.fixture(autouse=True)
def _measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where coverage is measured, it is measured inside the supervisors of this file too."""
    config = os.environ.get("COVERAGE_PROCESS_CONFIG")
    if config is not None:
        monkeypatch.setattr(launch, "SUPERVISOR", (sys.executable, measured_supervisor.__file__, config))


@pytest.fixture
def fifo(tmp_path: Path) -> Generator[Fifo]:
    made = Fifo(tmp_path / "fifo")
    yield made
    made.close()


@pytest.fixture
def supervised(tmp_path: Path) -> Supervised:
    return Supervised(tmp_path / "spool", SystemClock(), LIMITS, KILL_GRACE_S)


async def ended(
    supervised: Supervised,
    *argv: str,
    check: tuple[str, ...] | None = None,
    env: dict[str, str] | None = None,
    stdin: str | None = None,
    stdout: bool = False,
    bytes_max: int = 100_000,
    timeout_s: float = WAIT_S,
) -> tuple[Exit, str]:
    """Runs a command; gives its exit record and its output."""
    spec = Spec(
        attempt=ATTEMPT,
        executor="command",
        argv=argv,
        cwd="/tmp",
        timeout_s=timeout_s,
        kill_grace_s=KILL_GRACE_S,
        spool_bytes_max=bytes_max,
        check=check,
        stdout=stdout,
    )
    with anyio.fail_after(WAIT_S):
        await supervised.start(spec, {"PATH": os.environ["PATH"], **(env or {})}, stdin)
        trace = await supervised.wait(ATTEMPT, timeout_s)
    assert trace.exit is not None
    return trace.exit, (await supervised.spool.read(ATTEMPT, 0, 10_000_000)).decode()


def test_stands_by_itself() -> None:
    """The file runs without site packages, so it may import the standard library only, and nothing of omnid."""
    tree = ast.parse(Path(supervisor.__file__).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names


async def test_environment_is_exactly_what_was_given(supervised: Supervised) -> None:
    _, output = await ended(supervised, "env", env={"A": "1", "UMLAUT": "äöü", "PYTHONPATH": "/nowhere"})
    given = {"PATH": os.environ["PATH"], "A": "1", "UMLAUT": "äöü", "PYTHONPATH": "/nowhere", supervisor.MARK: ATTEMPT}
    assert dict(line.partition("=")[::2] for line in output.splitlines()) == given


async def test_the_verb_of_the_one_binary_is_a_supervisor_too(
    supervised: Supervised, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    binary = tmp_path / "omnid"
    path = Path(omnid.__file__).parents[1]
    binary.write_text(f'#!/bin/sh\nPYTHONPATH={path} exec {sys.executable} -m omnid "$@"\n')
    binary.chmod(0o700)
    monkeypatch.setattr(launch, "SUPERVISOR", (str(binary), *argv_of(supervisor, frozen=True)[1:]))
    done, output = await ended(supervised, "sh", "-c", "echo $PYTHONPATH; cat; exit 3", stdin="said")
    assert (done.code, output) == (3, "\nsaid")


@pytest.fixture
def unfriendly_signals(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Lets the daemon ignore one signal and its threads block another."""

    def launching(*arguments: Any) -> Any:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            return original(*arguments)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    original = supervised_module.launch
    monkeypatch.setattr(supervised_module, "launch", launching)
    before = signal.signal(signal.SIGQUIT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGQUIT, before)


@pytest.mark.usefixtures("unfriendly_signals")
async def test_command_inherits_no_blocked_and_no_ignored_signal(supervised: Supervised) -> None:
    _, output = await ended(supervised, "grep", "-E", "SigIgn|SigBlk", "/proc/self/status")
    blocked, ignored = (int(word, 16) for word in output.split()[1::2])
    assert blocked == 0
    # The signals 32 and 33 belong to the C library, which lets no program change them: they are as the tests got them.
    assert ignored & ~(0b11 << 31) == 0


async def test_command_inherits_no_descriptor_and_the_directory(supervised: Supervised) -> None:
    _, output = await ended(supervised, "sh", "-c", "ls /proc/$$/fd; pwd")
    assert output.split() == ["0", "1", "2", "/tmp"]


async def test_command_has_a_session_of_its_own(supervised: Supervised) -> None:
    _, output = await ended(supervised, "sh", "-c", "cut -d' ' -f1,5,6 /proc/$$/stat; cut -d' ' -f6 /proc/$PPID/stat")
    pid, group, session, of_supervisor = output.split()
    assert pid == group == session
    assert of_supervisor not in {session, str(os.getsid(0))}


async def test_both_outputs_keep_their_order(supervised: Supervised) -> None:
    script = "for i in 1 2 3 4 5; do echo out $i; echo err $i >&2; done"
    _, output = await ended(supervised, "sh", "-c", script)
    assert output.split("\n")[:-1] == [f"{name} {i}" for i in range(1, 6) for name in ("out", "err")]


async def test_standard_output_by_itself_where_it_is_needed(supervised: Supervised) -> None:
    ending, output = await ended(supervised, "sh", "-c", "echo out; echo err >&2", stdout=True)
    assert sorted(output.split()) == ["err", "out"]
    assert (supervised.spool.directory(ATTEMPT) / supervisor.STDOUT).read_text() == "out\n"
    assert (ending.total_bytes, ending.dropped_bytes) == (8, 0)


async def test_standard_input_is_what_was_given_or_empty(supervised: Supervised) -> None:
    assert (await ended(supervised, "cat", stdin="grüße\n"))[1] == "grüße\n"
    await supervised.spool.remove(ATTEMPT)
    assert (await ended(supervised, "cat"))[1] == ""


async def test_output_over_its_limit_is_drained_and_counted(supervised: Supervised) -> None:
    ending, output = await ended(supervised, "head", "-c", "1000000", "/dev/zero", bytes_max=10_000)
    assert (ending.code, len(output)) == (0, 10_000)
    assert (ending.total_bytes, ending.dropped_bytes) == (1_000_000, 990_000)


async def test_grandchild_that_holds_the_pipe_delays_the_end_a_little_only(supervised: Supervised, fifo: Fifo) -> None:
    script = 'sh -c "echo \\$\\$ > $0; exec sleep 600" & echo done'
    began_s = time.monotonic()
    _, output = await ended(supervised, "sh", "-c", script, fifo.path)
    pid = int(await fifo.line())
    assert output == "done\n"
    assert supervisor.DRAIN_S <= time.monotonic() - began_s < WAIT_S / 2
    # What a command leaves in the background on purpose is not ours to end.
    assert lives(pid)
    os.kill(pid, signal.SIGKILL)


async def test_timeout_sends_term_first(supervised: Supervised) -> None:
    script = "trap 'echo bye; exit 4' TERM; while :; do sleep 0.05; done"
    ending, output = await ended(supervised, "sh", "-c", script, timeout_s=0.3)
    assert (ending.ended_by, ending.code) == ("timeout", 4)
    assert output.endswith("bye\n")


async def test_timeout_kills_the_stubborn_and_what_hides(supervised: Supervised, fifo: Fifo) -> None:
    stubborn = "trap '' TERM; echo $$ > \"$0\"; while :; do sleep 0.05; done"
    script = 'setsid sleep 600 & echo $! > "$0"; ' + stubborn
    ending, _ = await ended(supervised, "sh", "-c", script, fifo.path, timeout_s=0.5)
    assert (ending.ended_by, ending.signal) == ("timeout", signal.SIGKILL)
    assert not any([lives(int(await fifo.line())), lives(int(await fifo.line()))])


async def test_check_has_its_own_output_and_shares_the_timeout(supervised: Supervised) -> None:
    check = ("sh", "-c", "echo looking; exit 9")
    ending, output = await ended(supervised, "echo", "done", check=check)
    assert ending.check is not None
    assert (ending.code, ending.check.code, output) == (0, 9, "done\n")
    assert await supervised.spool.read(ATTEMPT, 0, 100, check=True) == b"looking\n"
    await supervised.spool.remove(ATTEMPT)
    ending, _ = await ended(supervised, "true", check=("sleep", "600"), timeout_s=0.5)
    assert ending.check is not None
    assert (ending.ended_by, ending.check.ended_by) == (None, "timeout")


async def test_check_is_left_out_after_a_failure(supervised: Supervised, tmp_path: Path) -> None:
    ending, _ = await ended(supervised, "false", check=("touch", str(tmp_path / "checked")))
    assert (ending.code, ending.check) == (1, None)
    assert not (tmp_path / "checked").exists()


async def test_cancel_that_comes_after_the_end_changes_nothing(supervised: Supervised, fifo: Fifo) -> None:
    """The supervisor still drains the output of a command that has ended; its success stands."""
    script = 'sleep 600 & echo $! > "$0"; exit 0'
    results: list[Exit] = []

    async def keep() -> None:
        results.append((await ended(supervised, "sh", "-c", script, fifo.path))[0])

    async with anyio.create_task_group() as group:
        group.start_soon(keep)
        pid = int(await fifo.line())
        await anyio.sleep(supervisor.DRAIN_S / 2)
        await supervised.cancel(ATTEMPT)
    assert (results[0].code, results[0].ended_by) == (0, None)
    os.kill(pid, signal.SIGKILL)


def test_records_of_another_format_are_refused(tmp_path: Path) -> None:
    (tmp_path / supervisor.EXIT).write_text('{"v": 99}')
    with pytest.raises(ValueError, match="format 99"):
        supervisor.read_record(supervisor.EXIT, str(tmp_path))
    assert supervisor.read_record(supervisor.STARTED, str(tmp_path)) is None


def test_identity_tells_a_process_from_a_later_one_of_its_number() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    assert supervisor.process_start(child) != supervisor.process_start(1)
    os.waitpid(child, 0)
    assert supervisor.process_start(child) is None
