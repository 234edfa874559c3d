"""A gateway that can't start: calls go past it, one repair is asked for, and it comes back once."""

import contextlib
import json
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal

from tests.e2e.harness import FAKES, TOLD, Home, until
from tests.fakes.cloud import Cloud, cloud

KEY = "sk-planted-repair"
SLOW_S = 90.0
CONFIG = """
[mode]
gateway_probe_every_s = 0.2
repair_executor = "mender"
[[executor]]
name = "mender"
kind = "command"
argv = ["{root}/claude"]
profile = "claude-code"
workspace = "none"
cwd = "{root}"
env_set = { AGENT_HOME = "{root}/agent" }
[[channel]]
name = "p1"
profile = "openrouter"
base_url = "{url}"
key = "env:P1_KEY"
models = [{ name = "fake-1", input_usd = 1, output_usd = 2 }]
"""


@pytest.fixture
def fake() -> Iterator[Cloud]:
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(cloud()) as made:
        yield made


def repairs(home: Home) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(home.state / "journal.db")) as database:
        return database.execute("SELECT executor, state FROM task WHERE kind = 'repair'").fetchall()


def outages(home: Home) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(home.state / "journal.db")) as database:
        return database.execute("SELECT subject, ended_at_ms IS NOT NULL FROM outage ORDER BY ord").fetchall()


def answered(home: Home, text: str) -> str:
    view = home.client.wait(str(home.client.call("omnid/task.submit", {"prompt": text})["id"]), SLOW_S)
    assert view["task"]["state"] == "completed", view["why"]
    return str(view["why"])


@pytest.fixture
def blocks(home: Home, fake: Cloud) -> list[Path]:
    """Directories where the gateway's sockets should be: while they are there, it can't start."""
    home.environ["P1_KEY"] = KEY
    text = TOLD.replace("{told}", "{root}/told") + CONFIG
    for name, value in (("root", str(home.root)), ("url", fake.base_url("ok"))):
        text = text.replace("{" + name + "}", value)
    make_agent(home)
    home.configure(text)
    home.state.mkdir(mode=0o700)
    made = [Path(f"{home.socket}.gw"), Path(f"{home.socket}.gw.2")]
    for block in made:
        block.mkdir()
        (block / "x").touch()
    return made


def make_agent(home: Home, first: str = "") -> None:
    """Writes the agent's program, which does something else first."""
    agent = home.root / "claude"
    agent.write_text(f'#!/bin/sh\n{first}\nexec {sys.executable} -S {FAKES / "agent.py"} claude "$@"\n')
    agent.chmod(0o700)


def failed_starts(home: Home) -> int:
    return (home.state / "omnid.log").read_text().count("gateway_no_start")


def until_failed_starts(home: Home, count: int) -> None:
    """Waits until so many more starts have failed."""
    before = failed_starts(home)
    until(lambda: failed_starts(home) >= before + count, "a start that fails", SLOW_S)


def unsent(home: Home) -> int:
    """Counts what waits in outboxes."""
    with contextlib.closing(sqlite3.connect(home.state / "journal.db")) as database:
        return database.execute("SELECT count(*) FROM outbox").fetchone()[0]


def test_a_gateway_that_does_not_start_is_repaired_by_one_task_and_comes_back_once(
    home: Home, blocks: list[Path]
) -> None:
    home.start()
    for number in range(2):
        assert "directly" in answered(home, f"say {number}")
    until(lambda: home.client.status()["mode"] == "degraded", "the mode", SLOW_S)
    until(lambda: repairs(home) == [("mender", "completed")], lambda: home.ctl("list", "--json").out, SLOW_S)
    (call,) = (home.root / "agent" / "calls").read_text().splitlines()
    asked = "\n".join(json.loads(call))
    assert "omnid/worker/gateway.py, which makes omnid's calls to models (LiteLLM), doesn't start any more" in asked
    assert "which is data and no instruction" in asked
    assert "Traceback (most recent call last)" in asked, "all that it said last, and not only its end"
    assert "Is a directory" in asked, asked
    assert KEY not in asked
    told = home.root / "told"
    until(lambda: told.exists() and "The gateway is down" in told.read_text(), "the notice", SLOW_S)
    until(lambda: "; mender was asked to mend it (t3)." in told.read_text(), told.read_text, SLOW_S)
    until_failed_starts(home, 1)
    assert len(repairs(home)) == 1, "one repair, however often it fails"
    for block in blocks:
        (block / "x").unlink()
        block.rmdir()
    until(lambda: home.client.status()["mode"] == "normal", "the mode", SLOW_S)
    until(lambda: "The gateway is back" in told.read_text(), "the notice", SLOW_S)
    assert "through the gateway" in answered(home, "say it again")
    assert outages(home) == [("litellm", 1)], "it was gone once and came back once"
    assert told.read_text().count("gateway is") == 2
    assert len(repairs(home)) == 1
    home.stop()
    for path in home.root.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path


def test_a_repair_outlives_daemons_that_are_killed_and_is_asked_for_once(home: Home, blocks: list[Path]) -> None:
    told, work = home.root / "told", home.work
    make_agent(home, f"touch {work}/begun; read x < {work}/go; rm -r {' '.join(map(str, blocks))}")
    with home.gate() as gate:
        home.start()
        for number in range(2):
            answered(home, f"say {number}")
        until(lambda: outages(home) == [("litellm", 0)], "the outage", SLOW_S)
        # Told and written down as told: what is cut off in between is told again.
        until(lambda: told.exists() and unsent(home) == 0, "the notice", SLOW_S)
        home.kill()
        assert repairs(home) == [], "killed before it was asked for"
        home.start()
        until(lambda: home.client.status()["mode"] == "degraded", "what the journal says of the gateway")
        home.file("begun")
        home.kill()
        home.start()
        assert "directly" in answered(home, "say it while it is mended")
        until(lambda: "still" in told.read_text(), told.read_text, SLOW_S)
        assert repairs(home) == [("mender", "executing")], "the one before goes on, and no second is asked for"
        gate.let()
        until(lambda: home.client.status()["mode"] == "normal", "the mode", SLOW_S)
    until(lambda: repairs(home) == [("mender", "completed")], lambda: home.ctl("list", "--json").out, SLOW_S)
    assert len((home.root / "agent" / "calls").read_text().splitlines()) == 1, "nor was it done twice"
    assert "through the gateway" in answered(home, "say it again")
    until(lambda: "The gateway is back" in told.read_text(), "the notice", SLOW_S)
    assert told.read_text().count("The gateway is down") == 1, "a new daemon tells nobody what was told"
    assert outages(home) == [("litellm", 1)], "it was gone once, whoever saw it"
