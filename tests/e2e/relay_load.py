"""MCP clients on real relays that never stop asking, in both eras, and keep count of what they are answered."""

import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from tests.e2e.harness import WAIT_S, Home
from tests.fakes.mcp_talk import EXTENSION

OPEN_MAX = 6
"""How many requests a client has open at once."""
PAUSE_S_MAX = 0.04
WAIT_S_MAX = 0.2
"""Less than a daemon lives, as a wait begins anew with the next one."""
LARGE = "x" * 150_000
RESOURCES = ("omnid://status", "omnid://inbox")
ASKERS_MAX = 8
"""How many tasks that ask a client submits."""
QUESTION = {
    "method": "elicitation/create",
    "params": {"message": "who?", "requestedSchema": {"type": "object", "properties": {"name": {"type": "string"}}}},
}
RELAY = (sys.executable, "-m", "omnid", "mcp")


class Peer:
    """A client at the other end of a relay of its own: `ask` and forget; what comes back is counted."""

    def __init__(self, home: Home, name: str, *options: str, modern: bool) -> None:
        self.name = name
        self.modern = modern
        self.asked: dict[int, str] = {}
        """Request id -> what was asked, of all requests."""
        self.answers: Counter[Any] = Counter()
        self.results: dict[Any, dict[str, Any]] = {}
        self.cancelled: set[int] = set()
        self.heard: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._writing = threading.Lock()
        with open(home.root / f"{name}.err", "wb") as err:
            self._relay = subprocess.Popen(
                (*RELAY, *options),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=err,
                env=home.environ,
                cwd=home.root,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def close(self) -> int:
        """Ends as a client does, by closing its end; gives the relay's exit code."""
        assert self._relay.stdin is not None
        self._relay.stdin.close()
        try:
            return self._relay.wait(WAIT_S)
        finally:
            self._relay.kill()
            self._reader.join(WAIT_S)
            assert self._relay.stdout is not None
            self._relay.stdout.close()

    def ask(self, method: str, **params: Any) -> int:
        """Sends a request and gives its id."""
        if self.modern:
            params["_meta"] = {
                **params.get("_meta", {}),
                "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                "io.modelcontextprotocol/clientInfo": {"name": self.name, "version": "1"},
                "io.modelcontextprotocol/clientCapabilities": {"extensions": {EXTENSION: {}}, "elicitation": {}},
            }
        with self._writing:
            request_id = len(self.asked)
            self.asked[request_id] = method
            self._write({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})
        return request_id

    def tool(self, name: str, token: str | None = None, **arguments: Any) -> int:
        """Calls a tool and gives the request's id."""
        meta = {} if token is None else {"_meta": {"progressToken": token}}
        return self.ask("tools/call", name=name, arguments=arguments, **meta)

    def notify(self, method: str, **params: Any) -> None:
        with self._writing:
            self._write({"jsonrpc": "2.0", "method": method, "params": params})

    def cancel(self, request_id: int) -> None:
        """Takes a request back: it may have been answered, but from now on it need not be."""
        self.cancelled.add(request_id)
        self.notify("notifications/cancelled", requestId=request_id)

    def greet(self) -> None:
        """Opens the session, where the era has sessions."""
        if not self.modern:
            info = {"name": self.name, "version": "1"}
            self.result(self.ask("initialize", protocolVersion="2025-11-25", capabilities={}, clientInfo=info))
            self.notify("notifications/initialized")

    def result(self, request_id: int) -> dict[str, Any]:
        """Waits for the answer to a request."""
        self.until(lambda: request_id in self.results, lambda: f"the answer to {self.asked[request_id]}")
        return self.results[request_id]

    def until(self, look: Callable[[], Any], what: Callable[[], str], limit_s: float = 2 * WAIT_S) -> None:
        """Looks whenever something has come, until it is there."""
        with self._changed:
            assert self._changed.wait_for(look, limit_s), f"{self.name} waited {limit_s} s in vain for {what()}"

    def open(self) -> list[int]:
        """Gives the requests that have no answer and were not taken back."""
        return [one for one in self.asked if not self.answers[one] and one not in self.cancelled]

    def pause(self) -> None:
        """Waits until there is room for another request, or a moment has passed."""
        with self._changed:
            self._changed.wait_for(lambda: len(self.open()) < OPEN_MAX, 1.0)

    def _write(self, message: dict[str, Any]) -> None:
        assert self._relay.stdin is not None
        self._relay.stdin.write(json.dumps(message).encode() + b"\n")
        self._relay.stdin.flush()

    def _read(self) -> None:
        assert self._relay.stdout is not None
        for line in self._relay.stdout:
            message = json.loads(line)
            with self._changed:
                if "method" in message:
                    self.heard.append(message)
                else:
                    self.answers[message["id"]] += 1
                    self.results[message["id"]] = message
                self._changed.notify_all()


class Load(threading.Thread):
    """Has a peer ask one thing after the other, as chance says, until it is told to stop."""

    def __init__(self, peer: Peer, chance: random.Random) -> None:
        super().__init__(daemon=True)
        self.peer = peer
        self.titles: dict[int, str] = {}
        """Request id -> label of the task that it submits: no two submits have the same."""
        self.changes: dict[str, list[tuple[int, str, Any]]] = {}
        """Its tasks, and what it does with each (request id, action, value), one after the answer to the other."""
        self.pages: list[int] = []
        """Requests for a page of its inbox."""
        self.answered: dict[int, tuple[str, str]] = {}
        """Requests that answer what a task asks: the task, and the key of its question."""
        self.stopping = threading.Event()
        self._chance = chance
        self._listening: int | None = None
        self._askers: dict[int, int | None] = {}
        """The submits of tasks that ask, and the request that looked at the task last."""
        self._subscribed: set[str] = set()
        self.watched = ""
        """The task that it listens to."""

    def run(self) -> None:
        while not self.stopping.is_set():
            self.peer.pause()
            if len(self.peer.open()) < OPEN_MAX:
                self._step()
            time.sleep(self._chance.uniform(0, PAUSE_S_MAX))

    def submit(self, size: int = 0) -> int:
        """Submits a task that nobody runs, named after the request."""
        return self._submit(argv=["true", LARGE[:size]])

    def _submit(self, **work: Any) -> int:
        title = f"{self.peer.name}-{len(self.titles)}"
        request_id = self.peer.tool("task_submit", labels=[title], **work)
        self.titles[request_id] = title
        return request_id

    def listen(self) -> None:
        """Follows the task that is watched, anew where the last subscription has ended."""
        if self._listening is None or self.peer.answers[self._listening]:
            asked = {"taskIds": [self.watched], "resourceSubscriptions": [f"omnid://task/{self.watched}", *RESOURCES]}
            self._listening = self.peer.ask("subscriptions/listen", notifications=asked)

    def _step(self) -> None:
        """Does one thing, some more often than others."""
        if self.peer.modern:
            self.listen()
        steps = {
            self.submit: 6,
            self._large: 1,
            self._wait: 3,
            self._get: 3,
            self._list: 2,
            self._status: 2,
            self._take_back: 1,
            self._change: 3,
            self._end: 3,
            self.read_inbox: 2,
            self._ask: 4,
            self._subscribe: 2,
        }
        self._chance.choices([*steps], [*steps.values()])[0]()

    def _large(self) -> None:
        self.submit(self._chance.randrange(len(LARGE)))

    def _wait(self) -> None:
        wait_s = round(self._chance.uniform(0, WAIT_S_MAX), 2)
        self.peer.tool("task_get", token="t", task=self.watched, wait_s=wait_s)

    def _get(self) -> None:
        self.peer.ask("tasks/get", taskId=self.watched)

    def _list(self) -> None:
        self.peer.ask(self._chance.choice(("tools/list", "prompts/list", "resources/templates/list")))

    def _status(self) -> None:
        self.peer.tool("status")

    def _take_back(self) -> None:
        self.peer.cancel(self.peer.tool("task_get", task=self.watched, wait_s=50))

    def _done(self, request_id: int) -> dict[str, Any] | None:
        """Gives what a request was answered with, or None."""
        return self.peer.results.get(request_id, {}).get("result")

    def _made(self, request_id: int) -> str | None:
        """Gives the task that a submit has made, once that is known."""
        result = self._done(request_id) or {}
        return result.get("taskId") or _structured(result).get("id")

    def _idle(self) -> list[str]:
        """Gives its open tasks of which no change waits for its answer."""
        for request_id in self.titles.keys() - self._askers.keys():
            task = self._made(request_id)
            if task is not None and task != self.watched:
                self.changes.setdefault(task, [])
        return [
            task
            for task, done in self.changes.items()
            if not done or (done[-1][1] != "cancel" and self.peer.answers[done[-1][0]])
        ]

    def _change(self) -> None:
        """Gives a task another priority, or pauses it, or lets it go on."""
        tasks = self._idle()
        if not tasks:
            return
        task = self._chance.choice(tasks)
        paused = [action for _, action, _ in self.changes[task] if action in ("pause", "resume")][-1:] == ["pause"]
        action = self._chance.choice(("priority", "resume" if paused else "pause"))
        value = self._chance.randint(-10, 10) if action == "priority" else None
        more = {} if value is None else {"priority": value}
        self.changes[task].append((self.peer.tool("task_control", task=task, action=action, **more), action, value))

    def _end(self) -> None:
        """Cancels a task, in one way or the other, while it may be waiting for its end."""
        tasks = self._idle()
        if not tasks:
            return
        task, peer = self._chance.choice(tasks), self.peer
        if self._chance.random() < 0.5:
            peer.tool("task_get", token="t", task=task, wait_s=50)
        if not peer.modern and self._chance.random() < 0.5:
            peer.ask("tasks/result", taskId=task)
        by_tool = self._chance.random() < 0.5
        asked = (
            peer.tool("task_control", task=task, action="cancel") if by_tool else peer.ask("tasks/cancel", taskId=task)
        )
        self.changes[task].append((asked, "cancel", None))

    def read_inbox(self) -> int:
        """Reads its inbox on from the last page that it has, which acknowledges that one."""
        cursors = [page["next"] for one in self.pages if "next" in (page := self.page(one))]
        asked = self.peer.tool("task_search", inbox=True, limit=5, **({"cursor": cursors[-1]} if cursors else {}))
        self.pages.append(asked)
        return asked

    def page(self, request_id: int) -> dict[str, Any]:
        """Gives what a request for a page of its inbox was answered with."""
        return _structured(self._done(request_id) or {})

    def _ask(self) -> None:
        """Submits a task that asks, looks at one, or answers what it asks."""
        peer, chance = self.peer, self._chance
        if len(self._askers) < ASKERS_MAX and chance.random() < 0.2:
            task = {"status": "input_required", "inputRequests": {"who": QUESTION}}
            self._askers[self._submit(server="asker", tool="job_safe", arguments={"task": task})] = None
            return
        tasks = {one: task for one in self._askers if (task := self._made(one)) is not None}
        if not tasks:
            return
        one = chance.choice([*tasks])
        task, look = tasks[one], self._askers[one]
        found = {} if look is None else self._done(look) or {}
        asked = [*found.get("inputRequests", ()), *(q["key"] for q in _structured(found).get("questions", ()))]
        keys = [key for key in asked if (task, key) not in self.answered.values()]
        if not keys:
            self._askers[one] = peer.ask("tasks/get", taskId=task) if peer.modern else peer.tool("task_get", task=task)
        elif peer.modern and chance.random() < 0.5:
            answer = {keys[0]: {"action": "accept", "content": {"name": "Ada"}}}
            self.answered[peer.ask("tasks/update", taskId=task, inputResponses=answer)] = task, keys[0]
        else:
            how = {"action": "answer", "key": keys[0], "content": {"name": "Ada"}}
            self.answered[peer.tool("task_control", task=task, **how)] = task, keys[0]

    def _subscribe(self) -> None:
        """Subscribes to a resource, or ends that, where the era has it; the relay keeps it over the daemons."""
        if self.peer.modern:
            return
        uri = self._chance.choice((*RESOURCES, f"omnid://task/{self.watched}", f"omnid://task/{self.watched}/log"))
        self.peer.ask("resources/unsubscribe" if uri in self._subscribed else "resources/subscribe", uri=uri)
        self._subscribed ^= {uri}


def _structured(result: dict[str, Any]) -> dict[str, Any]:
    return result.get("structuredContent") or {}
