"""Relay and daemon of different versions: it works, or each side says clearly what is wrong and what to do."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import omnid
from omnid import __version__
from omnid.api.spawn import holder
from tests.e2e.harness import Home, home_at, until
from tests.e2e.relay_load import Peer

TREE = str(Path(omnid.__file__).parents[1])
OTHER = "0.0.9"
ERAS = pytest.mark.parametrize("modern", [True, False])


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    root = tmp_path / "h"
    root.mkdir(mode=0o700)
    with home_at(root, covered=False) as home:
        home.configure('[agents]\nallow = ["command"]\n')
        yield home


def version(root: Path, *changes: tuple[str, str, str]) -> str:
    """Makes an omnid of another version, with changes (file, from, to); gives its directory."""
    tree = root / "other"
    package = tree / "omnid"
    shutil.copytree(Path(omnid.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    for file, before, after in (("__init__.py", f'"{__version__}"', f'"{OTHER}"'), *changes):
        text = (package / file).read_text()
        assert before in text, (file, before)
        (package / file).write_text(text.replace(before, after))
    return str(tree)


# What this version's daemon knows of a hello that one before `--readonly` and `--expose` didn't.
BEFORE_READONLY = (
    ("api/shapes.py", "    readonly: bool = False\n", "    readonly_: bool = False\n"),
    ("api/handler.py", "hello.readonly", "hello.readonly_"),
)
LATER_HELLO = ("relay_session.py", '"role": "agent", ', '"role": "agent", "of_later": 1, ')
LATER_WELCOME = (
    (
        "api/shapes.py",
        "    incarnation: int\n    message_bytes_max: int\n",
        "    incarnation: int\n    message_bytes_max: int\n    of_later: str = 'x'\n",
    ),
)
LATER_SCHEMA = "CREATE TABLE of_later (id TEXT PRIMARY KEY) STRICT;\n"


def use(home: Home, tree: str) -> None:
    """Makes this the version of what is started from here on."""
    home.environ["PYTHONPATH"] = tree


def submitted(peer: Peer) -> str:
    result = peer.result(peer.tool("task_submit", argv=["true"]))["result"]
    return result.get("taskId") or result["structuredContent"]["id"]


@ERAS
@pytest.mark.parametrize("older", ["daemon", "relay"])
def test_another_version_that_speaks_the_same_works(home: Home, older: str, *, modern: bool) -> None:
    other = version(home.root, *LATER_WELCOME)
    use(home, other if older == "daemon" else TREE)
    home.start()
    assert home.client.status()["version"] == (OTHER if older == "daemon" else __version__)
    use(home, TREE if older == "daemon" else other)
    peer = Peer(home, "skew", modern=modern)
    try:
        peer.greet()
        task = submitted(peer)
        assert home.wait(task)["task"]["state"] == "completed"
        assert peer.result(peer.ask("tasks/get", taskId=task))["result"]["status"] == "completed"
    finally:
        assert peer.close() == 0


@ERAS
def test_a_session_outlives_the_change_of_the_version(home: Home, *, modern: bool) -> None:
    use(home, version(home.root))
    home.start()
    use(home, TREE)
    peer = Peer(home, "skew", modern=modern)
    try:
        peer.greet()
        task = submitted(peer)
        home.kill()
        again = peer.result(peer.ask("tasks/get", taskId=task))["result"]
        assert again["taskId"] == task
        assert home.client.status()["version"] == __version__
    finally:
        assert peer.close() == 0
        stop(home)


@ERAS
def test_a_daemon_that_is_too_old_for_what_is_asked_is_named_with_what_to_do(home: Home, *, modern: bool) -> None:
    use(home, version(home.root, *BEFORE_READONLY))
    home.start()
    use(home, TREE)
    peer = Peer(home, "skew", "--readonly", modern=modern)
    try:
        refused(peer, "readonly")
        # The daemon is brought up to date, and the session goes on.
        home.stop()
        home.start()
        peer.greet()
        listed = peer.result(peer.ask("tools/list"))["result"]["tools"]
        assert "task_submit" not in {tool["name"] for tool in listed}
    finally:
        peer.close()


@ERAS
def test_a_relay_that_is_too_new_for_the_daemon_says_so(home: Home, *, modern: bool) -> None:
    home.start()
    use(home, version(home.root, LATER_HELLO))
    peer = Peer(home, "skew", modern=modern)
    try:
        refused(peer, "of_later")
    finally:
        peer.close()
    assert home.client.status()["tasks"] == {}, "nothing was changed"


def refused(peer: Peer, what: str) -> None:
    """Fails unless both sides' versions and what to do are in the answer to the first request."""
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}
    asked = peer.ask("server/discover") if peer.modern else peer.ask("initialize", **hello)
    error = peer.result(asked)["error"]
    assert (error["code"], error["data"]["code"]) == (-32000, "daemon_differs")
    assert what in error["message"]
    assert {"what", "why", "do"} <= error["data"].keys()
    assert "omnictl" in error["data"]["do"]


def test_a_daemon_that_is_older_than_its_journal_is_named_with_why(home: Home) -> None:
    other = version(home.root)
    later = Path(other) / "omnid" / "store" / "schema" / "0099_later.sql"
    later.write_text(LATER_SCHEMA)
    use(home, other)
    home.start()
    home.stop()
    use(home, TREE)
    # So it is told why soon; otherwise the relay waits for ten minutes.
    home.environ["OMNID_RELAY_AWAY_S"] = "5"
    peer = Peer(home, "skew", modern=True)
    try:
        error = peer.result(peer.tool("task_submit", argv=["true"]))["error"]
        assert error["data"]["code"] == "daemon_down"
        assert "newer" in error["message"], error
    finally:
        peer.close()


def stop(home: Home) -> None:
    """Ends a daemon that a relay has started."""
    daemon: Any = holder(str(home.state))
    if daemon is not None:
        os.kill(daemon.pid, signal.SIGTERM)
        until(lambda: holder(str(home.state)) is None, "the daemon's end")
