"""omnid behind omnid: a task of one is a task of the other, and a kill of either loses and repeats nothing."""

import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import Home, home_at, until

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
        inner.configure(f'{listens}[agents]\nallow = ["command"]\n')
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

    def kill(self, victim: str) -> None:
        """Kills one of them, which comes back; the relay sees to that by itself."""
        home = self.outer if victim == "outer" else self.inner
        home.kill()
        if victim == "outer" or self.transport == "http":
            home.start()


@pytest.fixture(params=["stdio", "http"])
def pair(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Pair]:
    for name in ("outer", "inner"):
        (tmp_path / name).mkdir()
    with home_at(tmp_path / "outer") as outer, home_at(tmp_path / "inner") as inner:
        yield Pair(outer, inner, request.param)


@pytest.mark.parametrize("victim", ["nobody", "outer", "inner"])
def test_one_effect_and_the_result_arrives(pair: Pair, victim: str) -> None:
    with pair.inner.gate() as gate:
        name = pair.submit()
        if victim != "nobody":
            pair.kill(victim)
        gate.let(2)
        view = pair.outer.wait(name)
    assert view["task"]["state"] == "completed", view["why"]
    (attempt,) = view["attempts"]
    assert attempt["value"]["attempts"][0]["output"] == "finished\n"
    assert pair.inner.lines("ledger") == ["once"]
    assert "[task " in pair.outer.ctl("logs", name).out


def test_a_cancel_is_passed_on(pair: Pair) -> None:
    with pair.inner.gate():
        name = pair.submit()
        pair.outer.client.control(name, "cancel")
        assert pair.outer.wait(name)["task"]["state"] == "cancelled"
    (task,) = pair.inner.client.call("omnid/task.list", {})["tasks"]
    assert task["state"] == "cancelled"
    assert pair.inner.lines("ledger") == []
