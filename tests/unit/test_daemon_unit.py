"""The daemon as a whole, in this process: it starts, runs tasks, takes a changed config over, and ends."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from omnid import config, platform
from omnid.daemon import Daemon, main
from omnid.errors import Fatal, OmnidError
from omnid.flow import intake
from omnid.flow.caller import Caller
from omnid.model import Submit
from omnid.store import journal
from omnid.store.interface import COLLECTIONS
from tests.fakes.executor import InProcessExecutor
from tests.fakes.home import Home
from tests.fakes.world import nothing

pytestmark = pytest.mark.anyio
WAIT_S = 20


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


async def submit(daemon: Daemon, *argv: str, **fields: Any) -> str:
    params = Submit(argv=argv, **fields)
    done = await daemon.store.write(intake.plan(daemon.context, Caller(), [params]))
    daemon.context.wake()
    return done[0].id


async def state(daemon: Daemon, id: str, until: Callable[[str], bool]) -> str:
    while True:
        event = daemon.context.watch.event(id)
        task = await daemon.store.read(lambda reader: journal.need_task(reader, id))
        if until(task.state):
            return task.state
        await event.wait()


async def test_a_task_runs_from_its_submit_to_its_end(home: Home) -> None:
    async with home.daemon() as daemon:
        id = await submit(daemon, "x", executor="mine")
        assert await state(daemon, id, lambda now: now == "completed")
        assert daemon.clients() == 0
        assert Path(daemon.context.config.socket.path).is_socket()
    assert not Path(daemon.context.config.socket.path).exists()
    assert '"stopped"' in home.logged.getvalue()


async def test_what_an_earlier_daemon_left_open_is_settled_before_anything_starts(home: Home) -> None:
    hang = anyio.Event()

    async def forever(argv: tuple[str, ...]) -> Any:
        hang.set()
        await anyio.sleep_forever()

    home.executors["mine"] = InProcessExecutor("mine", forever)
    async with home.daemon() as daemon:
        id = await submit(daemon, "x", executor="mine")
        await hang.wait()
    home.executors["mine"] = InProcessExecutor("mine", nothing)
    async with home.daemon() as daemon:
        assert await state(daemon, id, lambda now: now != "executing") == "uncertain"
    assert '"recovered":1' in home.logged.getvalue().replace(" ", "")


async def test_a_changed_config_is_taken_over_whole_or_not_at_all(home: Home) -> None:
    async with home.daemon() as daemon:
        home.file.write_text('[[executor]]\nname = "sh"\nkind = "command"\nargv = ["sh"]\n[retry]\nattempts_max = 7\n')
        assert await daemon.reload() == []
        assert set(daemon.context.executors) == {*config.BUILT_IN, "sh", "mine"}
        assert daemon.context.config.retry.attempts_max == 7
        kept = daemon.context.executors["sh"]
        home.file.write_text("[retry]\nattempts_max = 8\nodd = 1\n")
        (problem,) = await daemon.reload()
        assert problem.code == "config_unknown_key"
        assert daemon.config_problem() == problem
        assert daemon.config_problems() == [problem]
        assert daemon.context.config.retry.attempts_max == 7
        home.file.write_text("[socket]\nclients_max = 3\n")
        (problem,) = await daemon.reload()
        assert "only a restart" in problem.what
        home.file.write_text('[[executor]]\nname = "sh"\nkind = "command"\nargv = ["sh"]\n')
        assert await daemon.reload() == []
        assert daemon.config_problem() is None
        assert daemon.context.executors["sh"] is kept, "what did not change goes on"
        home.file.write_text("")
        assert await daemon.reload() == []
        assert "sh" not in daemon.context.executors
        path, rows = daemon.config_rows()
        assert path == str(home.file)
        assert ("retry.attempts_max", 3, "default") in [tuple(row) for row in rows]


async def test_an_executor_that_left_the_config_is_closed_with_its_last_attempt(home: Home) -> None:
    class Old(InProcessExecutor):
        async def aclose(self) -> None:
            closed.set()

    closed, go_on = anyio.Event(), anyio.Event()

    async def slow(argv: tuple[str, ...]) -> Any:
        await go_on.wait()
        return "success", b""

    async with home.daemon() as daemon:
        old = Old("old", slow)
        daemon.context.active |= {"a": old, "b": old}
        async with anyio.create_task_group() as group:
            group.start_soon(daemon._retire, old)
            for attempt in ("a", "b"):
                await anyio.wait_all_tasks_blocked()
                assert not closed.is_set()
                daemon.context.let_go(attempt)
        assert closed.is_set()
        await daemon._retire(old)
        assert not daemon.context._retiring


async def test_executors_are_checked_at_the_start_and_when_the_config_brings_them(home: Home) -> None:
    lacks = '[[executor]]\nname = "{}"\nkind = "command"\nargv = ["no-such-program"]\n'
    keyless = '[[executor]]\nname = "keyless"\nkind = "command"\nenv_set = { A = "env:OF_NO_SUCH_NAME" }\n'
    server = '[[executor]]\nname = "{}"\nkind = "mcp"\nargv = ["no-such-program"]\n'
    home.file.write_text(lacks.format("first") + server.format("server"))
    async with home.daemon() as daemon:
        while daemon.gates.closed() != {"first", "server"}:  # noqa: ASYNC110 - a gate has no signal.
            await anyio.sleep(0.01)
        home.file.write_text(lacks.format("first") + keyless + server.format("server") + server.format("second"))
        assert await daemon.reload() == []
        wrong = {"first", "keyless", "server", "second"}
        while daemon.gates.closed() != wrong:  # noqa: ASYNC110 - a gate has no signal.
            await anyio.sleep(0.01)
        assert daemon.gates.login("keyless") is not None
        assert daemon.gates.login("first") is None
        gate = daemon.gates.of("second")
        assert gate is not None
        assert gate.problem is not None
        assert "No such file or directory" in gate.problem.what


async def test_a_prompt_for_an_executor_that_comes_in_an_outage_waits_for_its_end(home: Home) -> None:
    channel = '[[channel]]\nname = "p1"\nbase_url = "http://127.0.0.1:9/v1"\nmodels = ["m"]\n'
    home.file.write_text(channel)
    async with home.daemon() as daemon:
        await daemon.mode.hold("brainstem")
        home.file.write_text(channel + '[[executor]]\nname = "terse"\nkind = "model"\n')
        assert await daemon.reload() == []
        while daemon.gates.closed() != {"model", "terse"}:  # noqa: ASYNC110 - a gate has no signal.
            await anyio.sleep(0.01)
        done = await daemon.store.write(
            intake.plan(daemon.context, Caller(), [Submit(prompt="hello", executor="terse")])
        )
        daemon.context.wake()
        # One that is behind it in the queue has run: this one was looked at and left.
        other = await submit(daemon, "x", executor="mine")
        await state(daemon, other, lambda now: now == "completed")
        task = await daemon.store.read(lambda reader: journal.need_task(reader, done[0].id))
        assert (task.state, task.attempt) == ("idle", 0)


async def test_after_a_start_of_the_machine_the_database_is_checked(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with home.daemon():
        pass
    assert "database_checked" not in home.logged.getvalue()
    monkeypatch.setattr(platform, "boot_id", lambda: "another")
    async with home.daemon() as daemon:
        while "database_checked" not in home.logged.getvalue():  # noqa: ASYNC110 - the log has no signal.
            await anyio.sleep(0.01)
        assert "database_damaged" not in home.logged.getvalue()
        read = daemon.store.read

        async def damaged(fn: Any) -> Any:
            await read(fn)
            return [("row 7 missing from index task_key",)]

        monkeypatch.setattr(daemon.store, "read", damaged)
        await daemon._check_database()
        monkeypatch.undo()
        assert [problem.code for problem in daemon.context.damage] == ["database_damaged"] * (len(COLLECTIONS) + 2)
        assert "row 7 missing" in daemon.context.damage[0].what
    assert home.logged.getvalue().count("database_damaged") == len(COLLECTIONS) + 2


def test_the_command_takes_no_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--fast"]) == 2
    assert "takes no arguments" in capsys.readouterr().err


def test_a_daemon_that_can_not_start_says_what_why_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o755)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OMNID_STATE", str(tmp_path / "state"))
    assert main([]) == 1
    said = capsys.readouterr().err
    assert "can be entered by other users" in said
    assert "\n  why: " in said
    assert "\n  do:  chmod 700" in said


@pytest.mark.parametrize(
    ("error", "code"), [(Fatal("store_io", path="/", detail="x"), "store_io"), (ValueError("odd"), "internal")]
)
def test_what_ends_the_daemon_is_told_as_one_error(error: Exception, code: str) -> None:
    from omnid.flow.guard import first
    from omnid.process import of_omnid, say

    found = of_omnid(first(ExceptionGroup("", [ExceptionGroup("", [error])])))
    assert isinstance(found, OmnidError)
    assert found.code == code
    assert say(found) == 1
