"""What omnid makes of each agent, whatever it prints; the agents are stand-ins that print what the real ones print."""

import json
import os
import signal
import sys
from collections.abc import Generator
from datetime import datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import anyio
import msgspec
import pytest

from omnid.clock import SystemClock
from omnid.errors import Rejected, Retryable
from omnid.executor.command import TURNS, CommandExecutor
from omnid.executor.interface import Found
from omnid.executor.profiles.calls import session_of
from omnid.executor.profiles.known import PROFILES
from omnid.executor.supervised import Supervised
from omnid.log import Log
from omnid.model import Command, Result, Work
from omnid.secrets import Secrets
from omnid.settings import CommandExecutor as Section
from omnid.settings import Limits
from tests.contract import mcp_harness
from tests.contract.executors import KILL_GRACE_S, Ports, command_of
from tests.fakes.signals import WAIT_S, Fifo

AGENT = Path(__file__).parents[1] / "fakes" / "agent.py"
LIMITS = Limits(output_head_bytes=4096, output_tail_bytes=4096, spool_bytes_max=8 << 20)
FIRST = "first prompt"


class Agent:
    """The executor of one profile over its stand-in, and what the stand-in was started with."""

    def __init__(self, root: Path, name: str, **section: Any) -> None:
        self.name, self.program = name, PROFILES[name].program
        self.home = root / "home"
        self.home.mkdir()
        script = root / "bin" / self.program
        script.parent.mkdir()
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -S {AGENT} {self.program} "$@"\n')
        script.chmod(0o755)
        self.fifo = Fifo(root / "fifo")
        self.spool = root / "spool"
        later = datetime.now(ZoneInfo("America/New_York")) + timedelta(hours=3)
        self.resets = later.replace(minute=0, second=0, microsecond=0)
        self.environ = {
            "PATH": f"{script.parent}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "AGENT_HOME": str(self.home),
            "AGENT_FIFO": self.fifo.path,
            "AGENT_RESET": f"resets {f'{self.resets:%I%p}'.lower()} (America/New_York)",
        }
        self.section = Section(name=name, profile=name, env=("AGENT_HOME", "AGENT_FIFO", "AGENT_RESET"), **section)
        self.ports = Ports()
        self.executor = self.another()

    def another(self) -> CommandExecutor:
        """Makes the executor of the next daemon."""
        clock, zone = SystemClock(), ZoneInfo("Europe/Berlin")
        supervised = Supervised(self.spool, clock, LIMITS, KILL_GRACE_S)
        log, secrets = Log(clock, str, stream=StringIO()).logger(), Secrets(self.environ)
        return CommandExecutor(self.section, supervised, secrets, self.environ, log=log, zone=lambda: zone)

    def command(self, work: Work, **fields: Any) -> Command:
        clock = SystemClock()
        return Command(clock.uuid(), clock.uuid(), 1, "t1", self.name, work, 60.0, **fields)

    def next(self, command: Command, **fields: Any) -> Command:
        """Makes the next attempt of the same task."""
        attempt, number = SystemClock().uuid(), command.number + 1
        noted = [body for _, kind, body in self.ports._notes if kind == "session"]
        fields = {"begun_before": command.number, "session": noted[-1] if noted else None, **fields}
        return msgspec.structs.replace(command, attempt_id=attempt, number=number, **fields)

    async def run(self, command: Command) -> Result:
        with anyio.fail_after(WAIT_S):
            return await self.executor.run(command, self.ports)

    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.home / "calls").read_text().splitlines()]

    def prompts(self) -> list[list[str]]:
        """Gives what each session was told."""
        sessions = sorted((self.home / "sessions").iterdir(), key=lambda path: path.stat().st_mtime)
        return [path.read_text().splitlines() for path in sessions]

    def idempotent(self) -> list[Any]:
        return [body for _, kind, body in self.ports._notes if kind == "idempotent"]


@pytest.fixture(params=sorted(PROFILES))
def agent(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[Agent]:
    made = Agent(tmp_path, request.param)
    yield made
    made.fifo.close()


def prompt(*turns: str) -> Work:
    return Work(prompt=" ".join([*turns, FIRST]))


def code(result: Result) -> tuple[str, str | None]:
    return result.outcome, result.problem and result.problem.code


async def test_a_prompt_is_answered(agent: Agent) -> None:
    work = prompt("success")
    agent.executor.accepts(work)
    result = await agent.run(agent.command(work))
    assert (code(result), result.output) == (("success", None), "All done.")
    assert result.cost_usd == (0.25 if agent.name in ("claude-code", "openclaw") else None)
    assert agent.prompts() == [["success first prompt"]]
    assert agent.idempotent() == [True], "what a crash cuts off is gone on with, so that it need not be asked about"


async def test_the_task_names_the_session_in_all_its_attempts(agent: Agent) -> None:
    command = agent.command(prompt("error", "error"))
    for _ in range(3):
        await agent.run(command)
        command = agent.next(command)
    (told,) = agent.prompts()
    assert told == ["error error first prompt", "continue", "continue"]
    if PROFILES[agent.name].sessions.by == "us":
        session = session_of(command.task_id, agent.name)
        assert (agent.home / "sessions" / session).exists()
        assert all(session in call for call in agent.calls())


async def test_an_error_inside_is_a_failure(agent: Agent) -> None:
    result = await agent.run(agent.command(prompt("error")))
    assert result.outcome == "failure"
    assert result.problem is not None
    assert result.problem.code in ("exit_code", "reported_error")
    assert "nothing" not in result.problem.why


async def test_a_limit_parks_until_it_lifts(agent: Agent) -> None:
    result = await agent.run(agent.command(prompt("limit")))
    assert code(result) == ("parked", "agent_limit")
    assert result.park is not None
    assert result.park.cause == "rate_limit"
    assert result.problem is not None
    assert "limit" in result.problem.what or "quota" in result.problem.what
    now_ms = SystemClock().wall_ms()
    if agent.name == "openclaw":
        assert result.park.wake_at_ms is None
    elif agent.name == "claude-code":
        assert result.park.wake_at_ms is not None
        assert result.park.wake_at_ms == round(agent.resets.timestamp() * 1000)
    else:
        assert abs((result.park.wake_at_ms or 0) - now_ms - 190 * 60_000) < 20_000


@pytest.mark.parametrize(("turn", "cause"), [("overload", "rate_limit"), ("login", "login")])
async def test_an_overload_and_a_missing_login_park(agent: Agent, turn: str, cause: str) -> None:
    result = await agent.run(agent.command(prompt(turn)))
    assert result.outcome == "parked"
    assert result.park is not None
    assert (result.park.cause, result.park.wake_at_ms) == (cause, None)
    assert result.problem is not None
    assert result.problem.code == ("agent_login" if cause == "login" else "agent_limit")
    if cause == "login":
        assert f"omnictl resume --executor {agent.name}" in result.problem.do


async def test_what_was_parked_goes_on_in_its_session(agent: Agent) -> None:
    command = agent.command(prompt("limit"))
    assert (await agent.run(command)).outcome == "parked"
    assert (await agent.run(agent.next(command))).outcome == "success"
    assert agent.prompts() == [["limit first prompt", "continue"]]


@pytest.mark.parametrize(
    ("turn", "problem"), [("half", "bad_result"), ("nothing", "agent_silent"), ("crash", "exit_code")]
)
async def test_no_answer_is_a_failure_that_says_so(agent: Agent, turn: str, problem: str) -> None:
    assert code(await agent.run(agent.command(prompt(turn)))) == ("failure", problem)


async def test_a_huge_answer_is_bounded(agent: Agent) -> None:
    result = await agent.run(agent.command(prompt("huge")))
    # Codex says in a line of its own that it is done.
    assert code(result) == (("success", None) if agent.name == "codex" else ("failure", "bad_result"))
    assert len(result.output or "") < 20_000


async def test_one_that_is_killed_goes_on_in_its_session(agent: Agent) -> None:
    command = agent.command(prompt("hang"))
    results: list[Result] = []

    async def keep() -> None:
        results.append(await agent.run(command))

    async with anyio.create_task_group() as group:
        group.start_soon(keep)
        os.kill(int(await agent.fifo.line()), signal.SIGKILL)
    assert [code(result) for result in results] == [("failure", "killed_by_signal")]
    assert (await agent.run(agent.next(command))).outcome == "success"
    assert agent.prompts() == [["hang first prompt", "continue"]]


async def test_one_that_the_next_daemon_adopts_is_read_by_its_spec(agent: Agent) -> None:
    command = agent.command(prompt("limit"))
    await agent.run(command)
    agent.section = Section(name=agent.name, profile="none")
    other = agent.another()
    assert await other.recover(command, agent.ports) is Found.RUNNING
    adopted = await other.adopt(command, agent.ports)
    assert code(adopted) == ("parked", "agent_limit")


async def test_a_session_that_is_not_there_is_begun_in_the_same_attempt(agent: Agent) -> None:
    command = agent.command(prompt("success"), begun_before=1, session="22222222-2222-4222-8222-222222222222")
    result = await agent.run(command)
    assert result.outcome == "success"
    if agent.name != "openclaw":
        assert [told[0] for told in agent.prompts()] == ["success first prompt"]
        assert len(agent.calls()) == 2


@pytest.mark.parametrize("name", ["claude-code", "codex", "gemini"])
async def test_a_session_that_was_lost_with_the_machine_is_asked_about(tmp_path: Path, name: str) -> None:
    agent = Agent(tmp_path, name)
    fields = {"begun_before": 1, "session": "22222222-2222-4222-8222-222222222222", "lost_before": True}
    result = await agent.run(agent.command(prompt("success"), **fields))
    assert code(result) == ("lost", "session_gone")
    assert agent.idempotent()[-1] is False
    assert not any(agent.home.joinpath("sessions").iterdir()), "the first prompt is not repeated blindly"
    agent.fifo.close()


@pytest.mark.parametrize("name", ["claude-code", "gemini"])
async def test_a_session_that_is_there_already_is_gone_on_with(tmp_path: Path, name: str) -> None:
    agent = Agent(tmp_path, name)
    command = agent.command(prompt("success", "success"))
    await agent.run(command)
    again = msgspec.structs.replace(agent.next(command), begun_before=0)
    assert (await agent.run(again)).outcome == "success"
    assert agent.prompts() == [["success success first prompt", "continue"]]
    assert (TURNS["session_taken"], len(agent.calls())) == (True, 3), (
        "it was told that the session is taken, and went on"
    )
    agent.fifo.close()


async def test_what_codex_lost_before_it_named_its_session_is_asked_about(tmp_path: Path) -> None:
    agent = Agent(tmp_path, "codex")
    command = agent.command(prompt("nothing"))
    await agent.run(command)
    (agent.spool / command.attempt_id / "exit").unlink()
    assert await agent.another().recover(command, agent.ports) is Found.LOST
    assert agent.idempotent() == [True, False]
    agent.fifo.close()


# Words.


CLAUDE_TOOLS = "Read,Glob,Grep,Edit,Write,NotebookEdit,Bash(git status *),Bash(git diff *),Bash(git log *)"


async def test_what_was_never_begun_has_cost_nothing(tmp_path: Path) -> None:
    agent = Agent(tmp_path, "codex", argv=("codex", "{task.colour}"))
    command = agent.command(prompt("success"), cost_max_usd=5.0)
    result = await agent.run(command)
    assert (code(result), result.cost_usd) == (("rejected", "bad_template"), 0.0)
    agent.fifo.close()


async def test_what_has_ended_is_not_taken_back_because_it_can_not_be_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omnid.executor.command.INSIST_S", 0.001)
    agent = Agent(tmp_path, "codex")
    write, refused = agent.ports.note, ["session", "session"]

    async def full(attempt_id: str, kind: str, body: Any) -> None:
        if kind in refused:
            refused.remove(kind)
            raise Retryable("disk_full", detail="x", path="y")
        await write(attempt_id, kind, body)

    monkeypatch.setattr(agent.ports, "note", full)
    command = agent.command(prompt("success"))
    result = await agent.run(command)
    assert (code(result), refused) == (("success", None), [])
    # Nor when the next daemon reads it.
    refused.append("session")
    assert await agent.another().adopt(command, agent.ports) == result
    assert refused == []
    assert agent.prompts() == [["success first prompt"]]
    agent.fifo.close()


async def test_a_persons_own_words_get_the_profile(tmp_path: Path) -> None:
    agent = Agent(tmp_path, "claude-code")
    words = ("claude", "-p", "success", "--model", "opus", "--allowedTools", "Edit", "Bash(make *)")
    command = agent.command(Work(argv=words), cost_max_usd=1.5)
    assert (await agent.run(command)).outcome == "success"
    session = session_of(command.task_id, "claude-code")
    assert agent.calls() == [
        [
            *("claude", "-p", "--model", "opus", "--allowedTools", "Edit", "Bash(make *)", "--output-format", "json"),
            *("--permission-mode", "acceptEdits", "--max-budget-usd", "1.500000", "--session-id", session),
            *("--", "success"),
        ]
    ]
    agent.fifo.close()


def test_what_is_shown_and_approved_are_the_words_with_their_defaults(tmp_path: Path) -> None:
    agent = Agent(tmp_path, "claude-code")
    shown = ("-p", "--output-format", "json", "--permission-mode", "acceptEdits", "--allowedTools", CLAUDE_TOOLS)
    assert agent.executor.exact(prompt()).argv == ("claude", *shown, "--", FIRST)
    assert agent.executor.exact(Work(argv=("/opt/claude", "-p", "x"))).argv == ("/opt/claude", *shown, "--", "x")
    assert agent.executor.exact(Work(argv=("claude", "mcp", "list"))).argv == ("claude", "mcp", "list")
    agent.section = msgspec.structs.replace(agent.section, permission_mode="plan", allowed_tools=("Read",))
    exact = agent.another().exact(prompt()).argv
    assert exact is not None
    assert exact[4:8] == ("--permission-mode", "plan", "--allowedTools", "Read")
    agent.fifo.close()


async def test_what_keeps_no_session_is_never_gone_on_with(tmp_path: Path) -> None:
    agent = Agent(tmp_path, "claude-code")
    words = ("claude", "-p", "--no-session-persistence", "error")
    command = agent.command(Work(argv=words))
    for _ in range(2):
        await agent.run(command)
        command = agent.next(command)
    assert agent.idempotent() == []
    assert [call[-1] for call in agent.calls()] == ["error", "error"]
    agent.fifo.close()


async def test_a_prompt_on_standard_input_is_given_once(tmp_path: Path) -> None:
    agent = Agent(tmp_path, "claude-code")
    command = agent.command(Work(argv=("claude", "-p"), stdin="error"))
    await agent.run(command)
    (call,) = agent.calls()
    assert "--" not in call
    await agent.run(agent.next(command))
    assert agent.calls()[-1][-2:] == ["--", "continue"]
    agent.fifo.close()


async def test_a_denied_tool_is_named_unless_a_check_knows_better(tmp_path: Path) -> None:
    agent = Agent(tmp_path, "claude-code")
    result = await agent.run(agent.command(prompt("denied")))
    assert code(result) == ("rejected", "agent_denied")
    assert result.problem is not None
    assert "use Bash." in result.problem.what
    checked = msgspec.structs.replace(prompt("denied"), check=("true",))
    assert (await agent.run(agent.command(checked))).outcome == "success"
    agent.fifo.close()


@pytest.mark.parametrize("format", ["stream-json", "text"])
async def test_other_formats_of_claude_are_read_too(tmp_path: Path, format: str) -> None:
    agent = Agent(tmp_path, "claude-code")
    words = ("claude", "-p", "--output-format", format)
    result = await agent.run(agent.command(Work(argv=(*words, "success"))))
    assert (result.outcome, (result.output or "").strip()) == ("success", "All done.")
    assert result.cost_usd == (0.25 if format == "stream-json" else None)
    parked = await agent.run(agent.command(Work(argv=(*words, "limit"))))
    assert code(parked) == ("parked", "agent_limit")
    agent.fifo.close()


async def test_a_program_that_is_not_there_closes_the_executor(tmp_path: Path) -> None:
    agent = Agent(tmp_path, "codex")
    (tmp_path / "bin" / "codex").unlink()
    for attempt in (agent.run(agent.command(prompt("success"))), agent.executor.probe()):
        with pytest.raises(Retryable, match="codex was not found"):
            await attempt
    agent.fifo.close()


async def test_an_mcp_server_takes_a_prompt_where_its_arguments_have_a_place_for_it(tmp_path: Path) -> None:
    work = Work(prompt="mend {task.id}")
    async with mcp_harness.executors(tmp_path, LIMITS, tool="echo", arguments={"text": "{task.prompt}!"}) as executor:
        executor.accepts(work)
        with anyio.fail_after(WAIT_S):
            result = await executor.run(command_of(work), Ports())
        assert (result.outcome, result.output) == ("success", "mend {task.id}!")
    async with mcp_harness.executors(tmp_path, LIMITS, tool="echo") as executor:
        assert not executor.takes_prompts
        with pytest.raises(Rejected, match="a prompt"):
            executor.accepts(work)
