"""Clients that keep count, for tests with MCP messages of any shape: one answer to each request, nothing of others."""

import json
import socket
import time
from collections import Counter
from typing import Any

from tests.fakes.mcp_talk import EXTENSION

ANSWER_S = 15.0
ORIGINS = ("amber", "blue")
ENDLESS = frozenset({"subscriptions/listen", "tasks/result"})
"""What may be answered late, or never."""


class Client:
    """A client's end of a connection: what it asked, and what it was told."""

    def __init__(self, path: str, origin: str, number: int, *, modern: bool) -> None:
        self.origin = origin
        self.modern = modern
        self.mark = f"{origin}-{number}-"
        self.asked: Counter[Any] = Counter()
        self.methods: dict[Any, str] = {}
        self.answers: Counter[Any] = Counter()
        self.results: dict[Any, dict[str, Any]] = {}
        self.cancelled: set[Any] = set()
        self.questions: dict[Any, str] = {}
        """What the server has asked and not been answered, by the ids of its requests."""
        self.ended = False
        self._buffer = b""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(ANSWER_S)
        self._socket.connect(path)
        # An agent's connection, as a relay opens it: otherwise omnid's own methods are a person's here.
        self.put({"jsonrpc": "2.0", "id": "hello", "method": "omnid/hello", "params": {"role": "agent"}})
        self.answer("hello")
        if not modern:
            info = {"name": origin, "version": "1"}
            hello = {"protocolVersion": "2025-11-25", "capabilities": {"elicitation": {}}, "clientInfo": info}
            self.answer(self.ask("initialize", hello))
            self.put({"jsonrpc": "2.0", "method": "notifications/initialized"})

    def ask(self, method: str, params: Any, request_id: Any = None) -> Any:
        """Sends a request and gives its id: one that was never used, unless another one is given."""
        if request_id is None:
            request_id = f"{self.mark}{len(self.asked)}"
        if self.modern and isinstance(params, dict):
            params = {"_meta": meta_of(self.origin), **params}
        self.methods[request_id] = method
        self.put({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})
        return request_id

    def put(self, message: dict[str, Any] | bytes) -> None:
        """Sends a line; a daemon that has hung up is to have said why."""
        if isinstance(message, dict):
            if "method" in message and "id" in message:
                self.asked[message["id"]] += 1
            message = json.dumps(message).encode()
        elif b'"id":1}' in message:
            self.asked[1] += 1  # It is no request, and yet it gets its id back.
        try:
            self._socket.sendall(message + b"\n")
        except OSError:
            self.ended = True

    def read(self, limit_s: float) -> bool:
        """Takes what comes within the limit; tells whether something came."""
        self._socket.settimeout(limit_s)
        try:
            data = self._socket.recv(1 << 16)
        except (TimeoutError, BlockingIOError):
            return False
        except OSError:
            data = b""
        if not data:
            self.ended = True
            return False
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._take(line)
        return True

    def answer(self, request_id: Any) -> dict[str, Any]:
        """Waits for the answer to a request; gives nothing where the connection has ended."""
        until_s = time.monotonic() + ANSWER_S
        while request_id not in self.results and not self.ended:
            assert time.monotonic() < until_s, f"{self.methods.get(request_id)} hangs"
            self.read(until_s - time.monotonic() + 0.01)
        return self.results.get(request_id, {})

    def owed(self) -> list[Any]:
        """Gives the requests that must have been answered by now."""
        return [
            one
            for one, method in self.methods.items()
            if not self.answers[one] and one not in self.cancelled and method not in ENDLESS
        ]

    def dismiss(self) -> None:
        """Answers each question of the server as a user who decides nothing."""
        while self.questions:
            request_id, _ = self.questions.popitem()
            self.put({"jsonrpc": "2.0", "id": request_id, "result": {"action": "cancel"}})

    def close(self) -> None:
        self._socket.close()

    def _take(self, line: bytes) -> None:
        assert_no_leak(self.origin, line)
        message = json.loads(line)
        assert message["jsonrpc"] == "2.0", line
        if "id" in message and "method" in message:
            assert (message["method"], self.modern) == ("elicitation/create", False), line
            self.questions[message["id"]] = message["params"]["message"]
            return
        if "method" in message:
            if message["method"] == "notifications/cancelled":
                self.questions.pop(message["params"].get("requestId"), None)
            return
        assert ("result" in message) != ("error" in message), line
        if "error" in message:
            assert isinstance(message["error"]["code"], int), line
            assert message["error"]["message"], line
        request_id = message["id"]
        if request_id is None:
            return
        self.answers[request_id] += 1
        self.results[request_id] = message
        assert self.answers[request_id] <= self.asked[request_id], f"answered unasked: {line!r}"
        text = str(message.get("result", message.get("error")))
        assert "failed inside" not in text, f"{self.methods[request_id]}: {text}"


def meta_of(origin: str) -> dict[str, Any]:
    return {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": origin, "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {"extensions": {EXTENSION: {}}, "elicitation": {}},
    }


def assert_no_leak(origin: str, said: bytes) -> None:
    """Fails where an origin is told what the other has submitted: it is in the task, its output and its question."""
    for other in ORIGINS:
        assert other == origin or f"{other}-".encode() not in said, f"{origin} was told {said!r}"
