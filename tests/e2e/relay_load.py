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
RELAY = (sys.executable, "-m", "omnid", "mcp")


class Peer:
    """A client at the other end of a relay of its own: `ask` and forget; what comes back is counted."""

    def __init__(self, home: Home, name: str, *, modern: bool) -> None:
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
                RELAY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err, env=home.environ, cwd=home.root
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
                "io.modelcontextprotocol/clientCapabilities": {"extensions": {EXTENSION: {}}},
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
        """Request id -> title of the task that it submits: no two submits have the same."""
        self.stopping = threading.Event()
        self._chance = chance
        self._listening: int | None = None
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
        title = f"{self.peer.name}-{len(self.titles)}"
        request_id = self.peer.tool("task_submit", argv=["true", title, LARGE[:size]])
        self.titles[request_id] = title
        return request_id

    def listen(self) -> None:
        """Follows the task that is watched, anew where the last subscription has ended."""
        if self._listening is None or self.peer.answers[self._listening]:
            self._listening = self.peer.ask("subscriptions/listen", notifications={"taskIds": [self.watched]})

    def _step(self) -> None:
        peer, chance = self.peer, self._chance
        if peer.modern:
            self.listen()
        match chance.choices(("submit", "large", "wait", "get", "list", "status", "cancel"), (6, 1, 3, 3, 2, 2, 1))[0]:
            case "submit":
                self.submit()
            case "large":
                self.submit(chance.randrange(len(LARGE)))
            case "wait":
                peer.tool("task_get", token="t", task=self.watched, wait_s=round(chance.uniform(0, WAIT_S_MAX), 2))
            case "get":
                peer.ask("tasks/get", taskId=self.watched)
            case "list":
                peer.ask(chance.choice(("tools/list", "prompts/list", "resources/templates/list")))
            case "status":
                peer.tool("status")
            case _:
                peer.cancel(peer.tool("task_get", task=self.watched, wait_s=50))
