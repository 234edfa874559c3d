"""Tasks that ask: a tool of a server made with the SDK, the daemon, and a person at omnictl; through kills too."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Home, home_at, until
from tests.fakes import mcp_asking_server

SERVER = f'[[executor]]\nname = "forms"\nkind = "mcp"\nargv = ["{sys.executable}", "{mcp_asking_server.__file__}"]\n'


@pytest.fixture
def asking(home: Home) -> Home:
    home.configure(f"[retry]\nbackoff_base_s = 0.01\n{SERVER}")
    home.start()
    return home


def question(home: Home, task: str, key: str = "q1") -> dict[str, Any]:
    """Waits until a task asks under that key."""

    def look() -> dict[str, Any] | None:
        found = home.client.call("omnid/task.get", {"task": task})["questions"]
        return found[0] if found and found[0]["key"] == key else None

    return until(look, f"the question {key} of {task}")


def output(home: Home, task: str) -> str:
    view = home.wait(task)
    assert view["task"]["state"] == "completed", view["why"]
    return view["attempts"][-1]["output"]


def test_the_answer_of_a_person_goes_back_to_the_tool(asking: Home) -> None:
    task = asking.submit(server="forms", tool="greet")
    shown = question(asking, task)
    assert shown["params"]["message"] == "Who are you?"
    assert "As in your passport" in asking.ctl("answer", task).out
    assert asking.ctl("answer", task, "--json").json()["questions"] == [shown]
    assert f"omnictl answer {task}" in asking.ctl("status").out
    assert "Who are you?" in asking.ctl("why", task).out
    for wrong, why in (
        (["--field", "name=Ada", "--field", "age=old"], "age is an integer, not 'old'"),
        (["--content", '{"age": 36}'], "'name' is a required property"),
        (["--key", "q7", "Ada"], "no open question q7"),
    ):
        refused = asking.ctl("answer", task, *wrong)
        assert (refused.code, why in refused.err) == (1, True), refused
    assert asking.ctl("answer", task, "--field", "name=Ada", "--field", "age=36").code == 0
    assert output(asking, task) == "Hello, Ada, 36."
    assert asking.ctl("answer", task, "Bob").code == 1


@pytest.mark.parametrize(("how", "said"), [("--decline", "decline"), ("--cancel", "cancel")])
def test_a_refusal_goes_back_too(asking: Home, how: str, said: str) -> None:
    task = asking.submit(server="forms", tool="greet")
    question(asking, task)
    assert asking.ctl("answer", task, how).code == 0
    assert output(asking, task) == f"No greeting: {said}."


def test_a_cancel_ends_a_task_that_asks(asking: Home) -> None:
    task = asking.submit(server="forms", tool="greet")
    question(asking, task)
    assert asking.ctl("cancel", task).code == 0
    assert asking.wait(task)["task"]["state"] == "cancelled"
    assert asking.ctl("answer", task, "Ada").code == 1


def test_a_server_that_is_gone_with_its_daemon_asks_anew(asking: Home) -> None:
    task = asking.submit(server="forms", tool="greet")
    question(asking, task)
    asking.kill()
    asking.start()
    # Another attempt asks another question; the key of the first is never used again.
    question(asking, task, "q2")
    assert asking.ctl("answer", task, "--key", "q1", "Bob").code == 1
    assert asking.ctl("answer", task, "Ada").code == 0
    assert output(asking, task) == "Hello, Ada, 18."


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[tuple[Home, Home]]:
    """An outer daemon, and the inner one that it reaches through a relay."""
    for name in ("outer", "inner"):
        (tmp_path / name).mkdir()
    with home_at(tmp_path / "outer") as outer, home_at(tmp_path / "inner") as inner:
        names = ("OMNID_STATE", "OMNID_CONFIG", "PYTHONPATH", "HOME")
        environ = ", ".join(f"{name} = {json.dumps(inner.environ[name])}" for name in names)
        argv = f'argv = ["{sys.executable}", "-m", "omnid", "mcp"]\nenv_set = {{ {environ} }}\n'
        inner.configure(f'[agents]\nallow = ["forms"]\n{SERVER}')
        outer.configure(f'[[executor]]\nname = "inner"\nkind = "mcp"\ntool = "task_submit"\n{argv}')
        inner.start()
        outer.start()
        yield outer, inner


def test_the_question_of_a_task_behind_a_task_outlives_the_kill(chain: tuple[Home, Home]) -> None:
    outer, inner = chain
    task = outer.submit(server="inner", arguments={"server": "forms", "tool": "greet"})
    question(outer, task)
    outer.kill()
    outer.start()
    # The attempt goes on, and so does its question.
    assert question(outer, task)["params"]["message"] == "Who are you?"
    assert outer.ctl("answer", task, "Ada").code == 0
    view = outer.wait(task)
    assert view["task"]["state"] == "completed", view["why"]
    assert view["attempts"][-1]["value"]["attempts"][0]["output"] == "Hello, Ada, 18."
    (inside,) = inner.client.call("omnid/task.list", {})["tasks"]
    assert (inside["state"], inside["attempt"]) == ("completed", 1)
