"""The kill test of the relay: the daemon dies at random in the middle of what clients ask, and none of them notices.

`OMNID_RELAY_KILLS` says how often it is killed; `OMNID_SEED` repeats the choices of an earlier run (not its timing).
"""

import contextlib
import os
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from omnid.api.spawn import holder
from tests.e2e.harness import Home, home_at, until
from tests.e2e.relay_load import Load, Peer
from tests.fakes.mcp_http_server import McpHttpServer

KILLS = int(os.environ.get("OMNID_RELAY_KILLS", "20"))
SEED = int(os.environ.get("OMNID_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
PEERS = {"old-1": False, "old-2": False, "new-1": True, "new-2": True}
EARLY_SHARE = 0.25
"""Which part of the daemons dies before it has answered anybody, some while they start."""
EARLY_S_MAX, LATE_S_MAX = 1.0, 0.4
END_S = 90.0
CONFIG = """
[agents]
allow = ["command", "asker"]
[daemon]
slots_max = 40
[[executor]]
name = "asker"
kind = "mcp"
url = "{url}"
concurrency = 40
"""
"""The executor's server is the test's, and its tasks outlive the daemons as its own do."""


class Killer:
    """Kills whatever daemon holds the state directory; the relays start the next one."""

    def __init__(self, home: Home, peers: list[Peer], chance: random.Random) -> None:
        self._state = str(home.state)
        self._peers = peers
        self._chance = chance
        self.kills = 0

    def once(self) -> None:
        """Waits for a daemon, gives it a random while, as a rule beginning with its first answers, and kills it."""
        before = self._answered()
        daemon = until(lambda: holder(self._state), "a daemon that a relay starts")
        if self._chance.random() < EARLY_SHARE:
            time.sleep(self._chance.uniform(0, EARLY_S_MAX))
        else:
            until(lambda: self._answered() > before or self._is_gone(daemon.pid), "an answer of the daemon")
            time.sleep(self._chance.uniform(0, LATE_S_MAX))
        with contextlib.suppress(ProcessLookupError):
            os.kill(daemon.pid, signal.SIGKILL)
            self.kills += 1
        until(lambda: self._is_gone(daemon.pid), "the daemon's end")

    def _answered(self) -> int:
        return sum(len(peer.results) for peer in self._peers)

    def _is_gone(self, pid: int) -> bool:
        return (now := holder(self._state)) is None or now.pid != pid


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    root = tmp_path / "h"
    root.mkdir(mode=0o700)
    with home_at(root, covered=False) as home:
        asker = root / "asker"
        asker.mkdir()
        with McpHttpServer(era="new", tasks=str(asker)) as server:
            home.configure(CONFIG.format(url=server.url))
            yield home


@pytest.mark.timeout(KILLS * 6 + 240)
def test_every_request_is_answered_once(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\nrelay kill test: seed {SEED}")
    chance = random.Random(SEED)
    home.start()
    # What is submitted stays, so that the machine's time goes to the messages; but for the tasks that ask.
    home.client.call("omnid/gate.pause", {"executor": "command"})
    home.process, daemon = None, home.process
    peers = [Peer(home, name, modern=modern) for name, modern in PEERS.items()]
    loads = [Load(peer, random.Random(f"{SEED} {peer.name}")) for peer in peers]
    try:
        for load in loads:
            load.peer.greet()
            watched = load.peer.result(load.submit())["result"]
            load.watched = watched.get("taskId") or watched["structuredContent"]["id"]
        for load in loads:
            load.start()
        killer = Killer(home, peers, chance)
        while killer.kills < KILLS:
            killer.once()
        for load in loads:
            load.stopping.set()
            load.join()
        settle(peers)
        empty_inboxes(loads)
        assert_notifications_go_on(home, loads)
        settle(peers)
        ends = {task: home.wait(task) for load in loads for task, _ in load.answered.values()}
    finally:
        codes = [peer.close() for peer in peers]
        assert daemon is not None
        daemon.wait()
    judged = judge(home, loads, ends)
    with capsys.disabled():
        print(
            f"{killer.kills} kills, {sum(len(peer.asked) for peer in peers)} requests, {len(judged['unanswered'])} "
            f"unanswered, {len(judged['answered twice'])} answered twice, {len(judged['tasks twice'])} tasks twice; "
            f"{counted(loads)}"
        )
    assert not any(judged.values()), judged
    assert codes == [0] * len(peers)


def settle(peers: list[Peer]) -> None:
    """Waits until all is answered but what has no end, or for long enough."""
    deadline_s = time.monotonic() + END_S
    while any(left(peer) for peer in peers) and time.monotonic() < deadline_s:
        time.sleep(0.05)


def empty_inboxes(loads: list[Load]) -> None:
    """Reads on until each inbox is empty."""
    for load in loads:
        while load.peer.result(one := load.read_inbox())["result"]["structuredContent"]["tasks"]:
            assert load.page(one)["next"]


def counted(loads: list[Load]) -> str:
    """Says how much was changed, so that a load that does nothing shows."""
    changes = [action for load in loads for done in load.changes.values() for _, action, _ in done]
    answers, pages = sum(len(load.answered) for load in loads), sum(len(load.pages) for load in loads)
    return f"{len(changes)} changes ({changes.count('cancel')} cancels), {answers} answers, {pages} pages of inboxes"


def left(peer: Peer) -> list[int]:
    return [one for one in peer.open() if peer.asked[one] != "subscriptions/listen"]


def assert_notifications_go_on(home: Home, loads: list[Load]) -> None:
    """Fails where what a client follows falls silent when the daemon has been killed once more."""
    waits: dict[str, list[int]] = {}
    for load in loads:
        if load.peer.modern:
            load.listen()
        else:
            wait = load.peer.tool("task_get", token="last", task=load.watched, wait_s=50)
            waits[load.peer.name] = [wait, load.peer.ask("tasks/result", taskId=load.watched)]
    until(lambda: all(said(load, "working") for load in loads), "the state of the tasks that are followed")
    daemon = until(lambda: holder(str(home.state)), "a daemon")
    marks = {load.peer.name: len(load.peer.heard) for load in loads}
    os.kill(daemon.pid, signal.SIGKILL)
    home.client.close()
    for load in loads:
        peer, mark = load.peer, marks[load.peer.name]
        peer.until(lambda load=load, mark=mark: said(load, "working", mark), lambda: "its subscription")
        if not peer.modern:
            peer.until(lambda peer=peer, mark=mark: progressed(peer, mark), lambda: "progress")
        home.client.control(load.watched, "cancel")
        if peer.modern:
            peer.until(lambda load=load, mark=mark: said(load, "cancelled", mark), lambda: "the end of its task")
        for wait in waits.get(peer.name, ()):
            peer.result(wait)


def said(load: Load, status: str, mark: int = 0) -> bool:
    """Tells whether a client has heard, since the mark, that the task which it follows has this status."""
    return any(
        message["method"] in ("notifications/tasks", "notifications/tasks/status")
        and (message["params"]["taskId"], message["params"]["status"]) == (load.watched, status)
        for message in load.peer.heard[mark:]
    )


def progressed(peer: Peer, mark: int) -> bool:
    return any(message["params"].get("progressToken") == "last" for message in peer.heard[mark:])


def judge(home: Home, loads: list[Load], ends: dict[str, Any]) -> dict[str, list[str]]:
    """Compares what was asked with what was answered, and with the tasks that there are."""
    found: dict[str, list[str]] = {
        "unanswered": [],
        "answered twice": [],
        "answered unasked": [],
        "refused": [],
        "tasks twice": [],
        "tasks lost": [],
        "changes lost": [],
        "not in the inbox": [],
        "answers lost": [task for task, view in ends.items() if "Ada" not in (view["attempts"][-1]["output"] or "")],
    }
    tasks = {id: (state, priority) for id, state, priority in stored(home, "SELECT id, state, priority FROM task")}
    titles = Counter(label for (label,) in stored(home, "SELECT label FROM label"))
    found["tasks twice"] = [title for title, count in titles.items() if count > 1]
    for load in loads:
        peer = load.peer
        found["unanswered"] += [f"{peer.name} {one} {peer.asked[one]}" for one in left(peer)]
        found["answered twice"] += [f"{peer.name} {one}" for one, count in peer.answers.items() if count > 1]
        found["answered unasked"] += [f"{peer.name} {one}" for one in peer.answers if one not in peer.asked]
        for one, answer in peer.results.items():
            # A subscription that has met too many kills is given back, and then begun anew.
            if "error" in answer and peer.asked[one] != "subscriptions/listen":
                found["refused"].append(f"{peer.name} {peer.asked[one]}: {answer['error']['message']}")
            elif answer.get("result", {}).get("isError") and peer.asked[one] != "tasks/result":
                found["refused"].append(f"{peer.name} {peer.asked[one]}: {answer['result']['content']}")
        acknowledged = [title for one, title in load.titles.items() if "result" in peer.results.get(one, {})]
        found["tasks lost"] += [title for title in acknowledged if title not in titles]
        found["changes lost"] += changes_lost(load, tasks)
        read = {task["id"] for one in load.pages for task in load.page(one).get("tasks", ())}
        cancelled = {task for task, done in load.changes.items() if done and done[-1][1] == "cancel"}
        found["not in the inbox"] += cancelled - read
    return found


def changes_lost(load: Load, tasks: dict[str, tuple[str, int]]) -> Iterator[str]:
    """Gives the tasks that are not as the last change that was answered has them."""
    for task, changes in load.changes.items():
        done = {action: value for one, action, value in changes if "result" in load.peer.results.get(one, {})}
        state, priority = tasks[task]
        if ("cancel" in done) != (state == "cancelled") or priority != done.get("priority", 0):
            yield f"{load.peer.name} {task} {state} {priority}: {changes}"


def stored(home: Home, query: str) -> list[Any]:
    """Gives rows of the journal."""
    with contextlib.closing(sqlite3.connect(home.state / "journal.db")) as journal:
        return journal.execute(query).fetchall()
