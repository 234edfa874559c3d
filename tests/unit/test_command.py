"""The command executor: what it takes, what commands get, and how their ends become results."""

import json
import os
import signal
import sys
import time
from io import StringIO
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnid.clock import SystemClock
from omnid.errors import Rejected, Retryable
from omnid.executor import command as module
from omnid.executor import reading
from omnid.executor.command import CommandExecutor
from omnid.executor.interface import Found
from omnid.executor.spool import Spool, excerpt, printable
from omnid.executor.supervised import Supervised
from omnid.executor.template import fill
from omnid.log import Log
from omnid.model import Result, Work
from omnid.secrets import Secrets
from omnid.settings import CommandExecutor as Section
from omnid.settings import Limits, ResultMapping
from omnid.worker import supervisor
from tests.contract.executors import KILL_GRACE_S, LIMITS, Ports, command_of, commands
from tests.fakes.signals import WAIT_S

MAPPING = ResultMapping(output="result", error="errors.0.message", is_error="is_error", cost_usd="usage.cost")


async def run(executor: CommandExecutor, *argv: str, **fields: Any) -> Result:
    with anyio.fail_after(WAIT_S):
        return await executor.run(command_of(Work(argv=argv, **fields)), Ports())


async def reported(tmp_path: Path, document: Any, code: int = 0, mapping: ResultMapping = MAPPING) -> Result:
    """Runs a command that prints the document on its standard output, and chatter beside it."""
    executor = commands(tmp_path, Section(name="command", result=mapping))
    text = document if isinstance(document, str) else json.dumps(document)
    return await run(executor, "sh", "-c", 'echo chatter >&2; printf %s "$0"; exit "$1"', text, str(code))


# What it takes.


@pytest.mark.parametrize(
    ("work", "code"),
    [
        (Work(), "nothing_to_do"),
        (Work(prompt="fix it"), "wrong_executor"),
        (Work(tool="t", server="s"), "wrong_executor"),
        (Work(argv=()), "nothing_to_do"),
        (Work(argv=("",)), "nothing_to_do"),
        (Work(argv=("a\0b",)), "bad_request"),
        (Work(argv=("true", "\ud800")), "bad_request"),
        (Work(argv=("true",), check=()), None),
        (Work(argv=("true",), check=("",)), "bad_request"),
        (Work(argv=("true",), env=("A=B",)), "bad_request"),
        (Work(argv=("true",), env=("",)), "bad_request"),
        (Work(argv=("true",), cwd="relative"), "bad_cwd"),
        (Work(argv=("true",), cwd="/nowhere"), "bad_cwd"),
        (Work(argv=("true",), cwd="/etc/passwd"), "bad_cwd"),
        (Work(argv=("true", ""), cwd="/tmp", check=("true",), env=("A",)), None),
    ],
)
def test_accepts(tmp_path: Path, work: Work, code: str | None) -> None:
    executor = commands(tmp_path)
    if code is None:
        executor.accepts(work)
    else:
        with pytest.raises(Rejected) as caught:
            executor.accepts(work)
        assert caught.value.code == code


# What commands get.


async def test_environment_is_small_and_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environ = {"PATH": os.environ["PATH"], "HOME": "/", "LC_ALL": "C", "SECRET": "s3cret", "A": "1", "B": "2", "C": "3"}
    section = Section(name="command", env=("A",), env_set={"SET": "x", "KEY": "env:SECRET", "A": "9"})
    supervised = Supervised(tmp_path / "spool", SystemClock(), LIMITS, KILL_GRACE_S)
    log = Log(SystemClock(), str, stream=StringIO()).logger()
    executor = CommandExecutor(section, supervised, Secrets(environ), environ, log=log)
    command = command_of(Work(argv=("env",), env=("B",)))
    result = await executor.run(command, Ports())
    assert dict(line.partition("=")[::2] for line in (result.output or "").splitlines()) == {
        "PATH": os.environ["PATH"],
        "HOME": "/",
        "LC_ALL": "C",
        "A": "9",
        "B": "2",
        "SET": "x",
        "KEY": "s3cret",
        "OMNID_TASK": command.task_id,
        "OMNID_ATTEMPT": command.attempt_id,
    }


async def test_what_may_not_be_run_hides_nothing_that_comes_later_in_path(tmp_path: Path) -> None:
    (tmp_path / "bin" / "sh").mkdir(parents=True)
    for name in ("closed", "echo"):
        (tmp_path / "bin" / name).write_text("no program, whoever asks")
    executor = commands(tmp_path, Section(name="command", env_set={"PATH": f"{tmp_path}/bin:/bin:/usr/bin"}))
    result = await run(executor, "closed")
    assert result.problem is not None
    assert (result.outcome, result.problem.code) == ("rejected", "command_not_found")
    assert "may not be run" in result.problem.why
    assert (await run(executor, "echo", "a")).output == "a\n"
    assert (await run(executor, "sh", "-c", "echo b")).output == "b\n"


async def test_missing_secret_closes_the_executor(tmp_path: Path) -> None:
    executor = commands(tmp_path, Section(name="command", env_set={"KEY": "env:OF_NO_SUCH_NAME"}))
    with pytest.raises(Retryable) as caught:
        await run(executor, "true")
    assert caught.value.code == "secret_missing"
    assert "KEY of executor command" in caught.value.what


async def test_packed_libraries_are_not_passed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/packed")
    show = ("sh", "-c", "echo ${LD_LIBRARY_PATH-none}")
    assert (await run(commands(tmp_path), *show, env=("LD_LIBRARY_PATH",))).output == "/packed\n"
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert (await run(commands(tmp_path), *show, env=("LD_LIBRARY_PATH",))).output == "none\n"


async def test_prefix_of_the_config_is_a_template_and_the_tasks_words_are_not(tmp_path: Path) -> None:
    executor = commands(tmp_path, Section(name="command", argv=("echo", "{task.id}", "{attempt.number}", "{x}")))
    command = command_of(Work(argv=("{task.id}",)))
    result = await executor.run(command, Ports())
    assert result.output == f"{command.task_id} 1 {{x}} {{task.id}}\n"


async def test_wrong_template_is_permanent(tmp_path: Path) -> None:
    result = await run(commands(tmp_path, Section(name="command", argv=("echo", "{task.colour}"))), "x")
    assert result.outcome == "rejected"
    assert result.problem is not None
    assert result.problem.code == "bad_template"


# How it ends.


@pytest.mark.parametrize(
    ("argv", "cwd", "outcome", "code"),
    [
        (("no-such-program",), None, "rejected", "command_not_found"),
        (("/etc/passwd",), None, "rejected", "command_no_start"),
        (("true", "x" * 200_000), None, "rejected", "command_no_start"),
        (("true",), "/nowhere", "rejected", "bad_cwd"),
        (("sh", "-c", "exit 5"), None, "failure", "exit_code"),
        (("sh", "-c", "kill -TERM $$"), None, "failure", "killed_by_signal"),
    ],
)
async def test_ends_that_are_no_success(
    tmp_path: Path, argv: tuple[str, ...], cwd: str | None, outcome: str, code: str
) -> None:
    result = await run(commands(tmp_path), *argv, cwd=cwd)
    assert result.problem is not None
    assert (result.outcome, result.problem.code) == (outcome, code)


async def test_program_that_is_being_written_may_be_tried_again(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(Path("/bin/true").read_bytes())
    program.chmod(0o755)
    with program.open("ab"):
        result = await run(commands(tmp_path), str(program))
    assert result.problem is not None
    assert (result.outcome, result.problem.code) == ("failure", "command_no_start")


async def test_failure_says_what_was_said_last(tmp_path: Path) -> None:
    result = await run(commands(tmp_path), "sh", "-c", "echo first; echo out of cheese >&2; exit 5")
    assert result.problem is not None
    assert "5" in result.problem.what
    assert "out of cheese" in result.problem.why
    assert "t1" in result.problem.do
    assert result.exit_code == 5


async def test_other_codes_may_be_successes(tmp_path: Path) -> None:
    executor = commands(tmp_path, Section(name="command", success_exit_codes=(0, 3)))
    assert (await run(executor, "sh", "-c", "exit 3")).outcome == "success"
    checked = await run(executor, "sh", "-c", "exit 3", check=("false",))
    assert checked.problem is not None
    assert (checked.outcome, checked.problem.code) == ("failure", "check_failed")


async def test_failed_check_is_explained(tmp_path: Path) -> None:
    result = await run(commands(tmp_path), "echo", "done", check=("sh", "-c", "echo 2 tests failed; exit 1"))
    assert result.problem is not None
    assert "exit code 1" in result.problem.what
    assert "2 tests failed" in result.problem.what
    assert result.output == "done\n"
    assert (await run(commands(tmp_path), "true", check=("test", "-d", "/"))).outcome == "success"


async def test_cancelled_check_cancels(tmp_path: Path) -> None:
    executor, command = commands(tmp_path), command_of(Work(argv=("true",), check=("sleep", "600")))
    results: list[Result] = []

    async def keep() -> None:
        results.append(await executor.run(command, Ports()))

    ran = anyio.Path(tmp_path / "spool" / command.attempt_id / supervisor.RAN)
    with anyio.fail_after(WAIT_S):
        async with anyio.create_task_group() as group:
            group.start_soon(keep)
            while not await ran.exists():  # noqa: ASYNC110 - another process makes it.
                await anyio.sleep(0.01)
            await executor.cancel(command.attempt_id)
    assert [result.outcome for result in results] == ["cancelled"]


async def test_dropped_output_is_told(tmp_path: Path) -> None:
    executor = commands(tmp_path, limits=msgspec.structs.replace(LIMITS, spool_bytes_max=1024))
    result = await run(executor, "head", "-c", "5000", "/dev/zero")
    assert result.outcome == "success"
    assert "[3976 more bytes were dropped" in (result.output or "")
    assert result.output_bytes == 5000


# Results in JSON.


async def test_mapped_result(tmp_path: Path) -> None:
    document = {"result": "All done.", "is_error": False, "usage": {"cost": 0.25}}
    result = await reported(tmp_path, document)
    assert (result.outcome, result.output, result.value, result.cost_usd) == ("success", "All done.", document, 0.25)


async def test_mapped_output_that_is_no_text_stays_json(tmp_path: Path) -> None:
    assert (await reported(tmp_path, {"result": {"a": [1]}})).output == '{"a":[1]}'


@pytest.mark.parametrize("cost", [None, "1", True, -1])
async def test_unknown_cost_is_none(tmp_path: Path, cost: Any) -> None:
    result = await reported(tmp_path, {"result": "x", "usage": {"cost": cost}})
    assert (result.outcome, result.cost_usd) == ("success", None)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"is_error": True, "errors": [{"message": "no credit"}]}, "no credit"),
        ({"is_error": True, "result": "it says so here"}, "it says so here"),
        ({"is_error": True, "result": ""}, "it doesn't say what"),
    ],
)
async def test_error_inside_a_success_is_a_failure(tmp_path: Path, document: Any, said: str) -> None:
    result = await reported(tmp_path, document)
    assert result.problem is not None
    assert (result.outcome, result.problem.code) == ("failure", "reported_error")
    assert said in result.problem.what


async def test_error_field_alone_is_a_failure_too(tmp_path: Path) -> None:
    mapping = ResultMapping(error="error")
    assert (await reported(tmp_path, {"error": "bad"}, mapping=mapping)).outcome == "failure"
    assert (await reported(tmp_path, {"error": None}, mapping=mapping)).outcome == "success"


async def test_exit_code_is_explained_by_the_reported_error(tmp_path: Path) -> None:
    result = await reported(tmp_path, {"is_error": True, "errors": [{"message": "not logged in"}]}, code=1)
    assert result.problem is not None
    assert result.problem.code == "exit_code"
    assert "not logged in" in result.problem.why


@pytest.mark.parametrize("document", ["", "no JSON", "[" * 100_000, '{"a": NaN}', '{"result": "cut o'])
async def test_unreadable_result_is_a_failure(tmp_path: Path, document: str) -> None:
    result = await reported(tmp_path, document)
    assert result.problem is not None
    assert (result.outcome, result.problem.code) == ("failure", "bad_result")


async def test_result_over_its_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(reading, "RESULT_BYTES_MAX", 1000)
    result = await reported(tmp_path, {"result": "x" * 1000})
    assert result.problem is not None
    assert "1000 bytes" in result.problem.what


async def test_result_that_did_not_fit_the_spool_says_so(tmp_path: Path) -> None:
    limits = msgspec.structs.replace(LIMITS, spool_bytes_max=1024)
    executor = commands(tmp_path, Section(name="command", result=MAPPING), limits)
    result = await run(executor, "sh", "-c", "printf '\"'; head -c 5000 /dev/zero | tr '\\0' x; printf '\"'")
    assert result.problem is not None
    assert result.problem.code == "spool_full"


async def test_attempt_follows_the_spec_it_was_started_with(tmp_path: Path) -> None:
    old = commands(tmp_path, Section(name="command", result=MAPPING, success_exit_codes=(4,)))
    command = command_of(Work(argv=("sh", "-c", 'echo "{\\"result\\": \\"mapped\\"}"; exit 4')))
    await old.run(command, Ports())
    new = commands(tmp_path)
    result = await new.adopt(command, Ports())
    assert (result.outcome, result.output) == ("success", "mapped")


# Probes.


async def test_probe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "PROBE_TIMEOUT_S", 0.3)

    async def detail(**fields: Any) -> str:
        with pytest.raises(Retryable) as caught:
            await commands(tmp_path, Section(name="command", **fields)).probe()
        return caught.value.what

    await commands(tmp_path, Section(name="command", probe=("true",))).probe()
    await commands(tmp_path, Section(name="command", argv=("sh", "-c"))).probe()
    assert "not found in PATH" in await detail(argv=("no-such-program",))
    assert "exit code 1" in await detail(probe=("false",))
    assert "can't be started" in await detail(probe=("no-such-program",))
    began_s = time.monotonic()
    assert "took longer" in await detail(probe=("sh", "-c", "trap '' TERM; sleep 600 & sleep 600"))
    assert time.monotonic() - began_s < WAIT_S / 2


# Text.


@given(st.binary(max_size=200))
def test_printable_can_be_stored_and_keeps_text(data: bytes) -> None:
    text = printable(data)
    assert "\0" not in text
    assert text.encode().decode() == text
    if b"\0" not in data:
        assert text == data.decode(errors="backslashreplace")


@given(st.text(alphabet="aé€😀", min_size=10, max_size=60), st.integers(1, 20), st.integers(1, 20))
def test_cut_falls_between_characters(text: str, head: int, tail: int) -> None:
    data = text.encode()
    if len(data) <= head + tail:
        return
    cut = excerpt(data[:head], len(data) - head - tail, data[-tail:])
    before, line, after = cut.partition("\n[")
    count, _, after = after.partition(" bytes are left out here]\n")
    assert line
    assert text.startswith(before)
    assert text.endswith(after)
    assert len(before.encode()) + int(count) + len(after.encode()) == len(data)


# In place of an executor that left the config.


async def test_it_begins_nothing_in_place_of_an_executor_that_is_gone(tmp_path: Path) -> None:
    made = tmp_path / "made"
    command = msgspec.structs.replace(command_of(Work(argv=("touch", str(made)))), executor="sandbox", recover=True)
    executor = commands(tmp_path)
    assert await executor.recover(command, Ports()) is Found.NEVER_RAN
    for step in (executor.run, executor.adopt):
        result = await step(command, Ports())
        assert (result.outcome, result.problem and result.problem.code) == ("unstarted", "executor_down")
    assert not made.exists()


async def test_what_another_kind_of_executor_may_have_begun_is_lost_with_it(tmp_path: Path) -> None:
    command = msgspec.structs.replace(command_of(Work(prompt="x")), executor="model", recover=True)
    assert await commands(tmp_path).recover(command, Ports()) is Found.LOST


@given(
    st.recursive(
        st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_template_leaves_everything_else_alone(value: Any) -> None:
    command = command_of(Work())
    if "{task." not in repr(value) and "{attempt." not in repr(value):
        assert fill(value, command) == value


async def test_template_fills_nested_texts() -> None:
    command = command_of(Work())
    filled = fill({"key": ["{task.id}-{attempt.number}", {"{task.id}": "{task.name}"}], "n": 1}, command)
    assert filled == {"key": [f"{command.task_id}-1", {"{task.id}": "t1"}], "n": 1}


# The log of work without a supervisor.


async def test_log_is_bounded(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", Limits(spool_bytes_max=1024))
    await spool.append_log("a", "first\n")
    await spool.append_log("a", "x" * 2000)
    await spool.append_log("a", "more")
    assert await spool.read("a", 0, 5000) == b"first\n" + b"x" * 1018
    assert await spool.read("b", 0, 10) == b""
    assert await spool.excerpt("b") == ""
    assert await spool.attempts() == ["a"]


def test_signal_names() -> None:
    from omnid.executor.records import signal_name

    assert signal_name(signal.SIGKILL) == "SIGKILL"
    assert signal_name(60) == "signal 60"


async def test_an_attempt_is_removed_while_its_control_files_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, unlink = Spool(tmp_path / "spool", LIMITS), os.unlink
    (spool.directory("a")).mkdir(parents=True)
    for name in ("spec", "exit", "output"):
        (spool.directory("a") / name).touch()

    def gone_already(path: Any, **options: Any) -> None:
        monkeypatch.undo()
        unlink(path, **options)
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", gone_already)
    await spool.remove("a")
    assert not spool.directory("a").exists()
