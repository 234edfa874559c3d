"""The real Claude Code under a real daemon, against a model on loopback that counts what it is told.

`make agents` installs it; no key and no network are needed.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Home, until
from tests.fakes.model_endpoint import Asked, ModelEndpoint

PACKAGES = Path(__file__).parents[1] / "agents" / "node_modules" / "@anthropic-ai"
LONG_S = 90.0
DONE = {"type": "text", "text": "All done."}
CONFIG = """
[daemon]
slots_max = 4
[[executor]]
name = "claude-code"
kind = "command"
argv = ["{program}"]
env = ["ANTHROPIC_BASE_URL", "CLAUDE_CODE_OAUTH_TOKEN", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC"]
"""


def claude() -> Path:
    """Finds the program for this machine among the packages."""
    found = [path for path in PACKAGES.glob("claude-code-*/claude") if os.access(path, os.X_OK)]
    assert found, "`make agents` installs it"
    return found[0]


@pytest.fixture
def endpoint(home: Home) -> Iterator[ModelEndpoint]:
    """A model for the home's Claude Code."""
    with ModelEndpoint(lambda asked: DONE) as endpoint:
        home.configure(CONFIG.format(program=claude()))
        home.environ |= {
            "ANTHROPIC_BASE_URL": endpoint.url,
            "CLAUDE_CODE_OAUTH_TOKEN": "sk-ant-oat01-of-no-use",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        }
        yield endpoint


def kill_all(home: Home) -> None:
    """Ends the daemon and all that it started, as the end of the machine does."""
    home.kill()
    for pid in home.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    home.assert_nothing_left()


def outcomes(view: dict[str, Any]) -> list[str]:
    return [attempt["outcome"] for attempt in view["attempts"]]


def ended(home: Home, task: str) -> Callable[[], Any]:
    return lambda: (view := home.client.get(task))["task"]["finished_at_ms"] and view


def test_killed_in_the_middle_with_the_daemon_it_goes_on_in_its_session(home: Home, endpoint: ModelEndpoint) -> None:
    file = home.work / "login.py"
    edit = {"type": "tool_use", "id": "toolu_1", "name": "Write"}
    edit |= {"input": {"file_path": str(file), "content": "fixed = True\n"}}
    reached, released = threading.Event(), threading.Event()

    def reply(asked: Asked) -> dict[str, Any]:
        if asked.results == 0:
            return edit
        if not reached.is_set():
            reached.set()
            released.wait(LONG_S)
        return DONE

    endpoint.reply = reply
    home.start()
    task = home.submit(["claude", "-p", "fix the login bug"])
    assert reached.wait(LONG_S), home.client.why(task)
    kill_all(home)
    released.set()
    home.start()
    view = until(ended(home, task), lambda: home.client.why(task)["text"], LONG_S)
    assert (view["task"]["state"], view["task"]["executor"]) == ("completed", "claude-code"), view
    assert outcomes(view) == ["lost", "success"]
    assert file.read_text() == "fixed = True\n"
    assert endpoint.openings() == ["fix the login bug"]
    assert endpoint.asked[-1].texts[-1].strip() == "continue"
    assert len(list(home.root.glob(".claude/projects/*/*.jsonl"))) == 1, "one session"
    last = view["attempts"][-1]
    assert (last["output"], last["value"]["permission_denials"]) == ("All done.", [])
    assert last["cost_usd"] is not None
    assert last["value"]["session_id"] in "".join(path.name for path in home.root.glob(".claude/projects/*/*"))


def test_three_in_flight_hit_a_limit_and_all_of_them_finish(home: Home, endpoint: ModelEndpoint) -> None:
    limited = threading.Event()
    limited.set()
    together = threading.Barrier(3)

    def reply(asked: Asked) -> dict[str, Any] | int:
        if limited.is_set():
            together.wait(LONG_S)
            return 429
        return DONE

    endpoint.reply = reply
    home.start()
    prompts = [f"mend number {number}" for number in range(3)]
    tasks = [home.submit(["claude", "-p", prompt]) for prompt in prompts]
    for task in tasks:
        until(lambda task=task: "parked" in outcomes(home.client.get(task)), f"the limit of {task}", LONG_S)
    limited.clear()
    (gate,) = home.client.status()["gates"]
    assert gate["id"] == "rate_limit:claude-code"
    assert "You've hit your" in gate["text"]
    view = home.client.get(tasks[0])
    assert (view["task"]["state"], view["task"]["reason"]) == ("idle", "rate_limit")
    assert "one task tries it at" in view["why"]
    for task in tasks:
        view = until(ended(home, task), lambda task=task: home.client.why(task)["text"], LONG_S)
        assert view["task"]["state"] == "completed", view
        assert outcomes(view) == ["parked", "success"]
    assert sorted(endpoint.openings()) == prompts, "no first prompt was repeated"
    assert home.client.status()["gates"] == []


def test_without_a_login_it_asks_for_one_and_goes_on_after(home: Home, endpoint: ModelEndpoint) -> None:
    token = home.environ.pop("CLAUDE_CODE_OAUTH_TOKEN")
    home.start()
    task = home.submit(["claude", "-p", "hello"])
    home.waiting(task, "login")
    said = home.ctl("wait", task)
    assert said.code == 4, said
    (needs,) = home.client.status()["needs_you"]
    assert "Not logged in" in needs["title"]
    home.stop()
    home.environ["CLAUDE_CODE_OAUTH_TOKEN"] = token
    home.start()
    assert home.ctl("resume", "--executor", "claude-code").code == 0
    view = until(ended(home, task), lambda: home.client.why(task)["text"], LONG_S)
    assert view["task"]["state"] == "completed", view
