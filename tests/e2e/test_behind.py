"""omnid behind omnid: a task of one is a task of the other, and a kill of either loses and repeats nothing."""

import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import FAKES, Home, home_at, until
from tests.fakes.mcp_server import QUESTION

TOKEN = "correct-horse-battery"
SCRIPT = "touch begun; read x < go; echo once >> ledger; echo finished"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Pair:
    """Two daemons; the outer one reaches the inner one through its relay, or over HTTP."""

    def __init__(self, outer: Home, inner: Home, transport: str) -> None:
        self.outer, self.inner, self.transport = outer, inner, transport
        listens = ""
        if transport == "http":
            port = free_port()
            (inner.root / "token").write_text(TOKEN)
            listens = f'[http]\nlisten = "127.0.0.1:{port}"\ntoken = "file:{inner.root}/token"\n'
            reach = f'url = "http://127.0.0.1:{port}/mcp"\ntoken = "file:{inner.root}/token"\n'
        else:
            names = ("OMNID_STATE", "OMNID_CONFIG", "PYTHONPATH", "HOME")
            environ = ", ".join(f"{name} = {json.dumps(inner.environ[name])}" for name in names)
            reach = f'argv = ["{sys.executable}", "-m", "omnid", "mcp"]\nenv_set = {{ {environ} }}\n'
        (inner.work / "tasks").mkdir()
        options = {"era": "new", "tasks": str(inner.work / "tasks"), "ledger": str(inner.work / "far.ledger")}
        far = json.dumps([sys.executable, "-I", "-S", str(FAKES / "mcp_server.py"), json.dumps(options)])
        far = f'[[executor]]\nname = "far"\nkind = "mcp"\ntool = "job"\nargv = {far}\n'
        inner.configure(f'{listens}[agents]\nallow = ["command", "far"]\n{far}')
        outer.configure(f'[[executor]]\nname = "inner"\nkind = "mcp"\ntool = "task_submit"\n{reach}')
        inner.start()
        outer.start()

    def submit(self) -> str:
        """Submits what waits at the gate, and waits until it does, and the outer daemon knows it as a task."""
        arguments = {"argv": ["/bin/sh", "-c", SCRIPT], "cwd": str(self.inner.work)}
        name = self.outer.submit(server="inner", arguments=arguments)
        self.inner.file("begun")
        log = self.outer.state / "omnid.log"
        until(lambda: '"event":"mcp_task"' in log.read_text().replace(" ", ""), "the note of the task")
        return name

    def ask(self) -> str:
        """Submits what the inner daemon hands on to a server, which asks; gives the task once the question is here."""
        name = self.outer.submit(server="inner", arguments={"server": "far", "arguments": {}})
        tasks = self.inner.work / "tasks"
        path = until(lambda: next(tasks.glob("task-*[0-9]"), None), "the task of the server")
        asking = {**json.loads(path.read_text()), "status": "input_required", "inputRequests": {"who": QUESTION}}
        path.with_suffix(".new").write_text(json.dumps(asking))
        path.with_suffix(".new").rename(path)
        self.outer.wait(name, "input_required")
        return name

    def kill(self, victim: str) -> None:
        """Kills one of them, which comes back; the relay sees to that by itself."""
        home = self.outer if victim == "outer" else self.inner
        home.kill()
        if victim == "outer" or self.transport == "http":
            home.start()


@pytest.fixture
def pair(tmp_path: Path, transport: str) -> Iterator[Pair]:
    for name in ("outer", "inner"):
        (tmp_path / name).mkdir()
    with home_at(tmp_path / "outer") as outer, home_at(tmp_path / "inner") as inner:
        yield Pair(outer, inner, transport)


@pytest.mark.parametrize("transport", ["stdio", "http"])
@pytest.mark.parametrize("victim", ["outer", "inner"])
def test_one_effect_and_the_result_arrives(pair: Pair, victim: str) -> None:
    with pair.inner.gate() as gate:
        name = pair.submit()
        pair.kill(victim)
        gate.let(2)
        view = pair.outer.wait(name)
    assert view["task"]["state"] == "completed", view["why"]
    (attempt,) = view["attempts"]
    assert attempt["value"]["attempts"][0]["output"] == "finished\n"
    assert pair.inner.lines("ledger") == ["once"]
    assert "[task " in pair.outer.ctl("logs", name).out


@pytest.mark.parametrize("transport", ["http"])
def test_a_cancel_is_passed_on(pair: Pair) -> None:
    with pair.inner.gate():
        name = pair.submit()
        pair.outer.client.control(name, "cancel")
        assert pair.outer.wait(name)["task"]["state"] == "cancelled"
    (task,) = pair.inner.client.call("omnid/task.list", {})["tasks"]
    assert task["state"] == "cancelled"
    assert pair.inner.lines("ledger") == []


@pytest.mark.parametrize(("transport", "victim"), [("http", "outer"), ("stdio", "inner")])
def test_a_question_comes_out_and_its_answer_goes_in(pair: Pair, victim: str) -> None:
    name = pair.ask()
    pair.kill(victim)
    pair.outer.wait(name, "input_required")
    said = pair.outer.ctl("answer", name, "Ada")
    assert said.code == 0, said
    view = pair.outer.wait(name)
    assert view["task"]["state"] == "completed", view["why"]
    inner = view["attempts"][0]["value"]
    assert json.loads(inner["attempts"][0]["output"]) == {"who": {"action": "accept", "content": {"name": "Ada"}}}
    assert len(view["attempts"]) == len(inner["attempts"]) == 1
