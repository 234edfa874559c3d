"""MCP messages in any order and any shape, in both eras, from several clients of a daemon in this process.

`OMNID_FUZZ` says how many runs there are.
"""

import contextlib
import json
import os
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from tests.fakes.home import Home
from tests.fakes.mcp_talk import EXTENSION

RUNS = int(os.environ.get("OMNID_FUZZ", "20"))
STEPS = 30
ANSWER_S = 15.0
CLIENTS_MAX = 5
LINE_BYTES_MAX = 64 << 10
ORIGINS = ("amber", "blue")
TOOLS = ("task_submit", "task_get", "task_search", "task_control", "status", "", "eat")
METHODS = (
    *("tools/list", "prompts/list", "resources/list", "resources/templates/list", "ping", "server/discover"),
    *("tasks/get", "tasks/cancel", "tasks/update", "tasks/list", "tasks/result"),
    *("resources/read", "prompts/get", "completion/complete", "logging/setLevel", "subscriptions/listen"),
    *("resources/subscribe", "resources/unsubscribe", "initialize", "omnid/hello", "omnid/task.purge", "no/such"),
)
ENDLESS = frozenset({"subscriptions/listen", "tasks/result"})
"""What may be answered late, or never."""

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
NAMES = st.sampled_from(
    ("task", "taskId", "argv", "wait_s", "action", "states", "cursor", "inbox", "uri", "name", "_meta", "notifications")
)
PARAMS = st.dictionaries(NAMES | st.text(max_size=5), VALUES, max_size=4)
REFS = st.sampled_from(("t1", "t2", "amber/t1", "blue/t1", "user/t1", "*", "", "t99999999999999999999"))
PICKS = st.integers(0, 999)
JUNK = st.one_of(
    st.binary(max_size=60).filter(lambda data: b"\n" not in data),
    st.sampled_from((b"{", b"[]", b'{"jsonrpc":"2.0","id":1}', b"[" * 5000, b'{"id":{}}', b"\xff\xfe", b"null")),
    VALUES.map(lambda value: json.dumps(value).encode()),
)


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
            hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": info}
            self.answer(self.ask("initialize", hello))
            self.put({"jsonrpc": "2.0", "method": "notifications/initialized"})

    def ask(self, method: str, params: Any, request_id: Any = None) -> Any:
        """Sends a request and gives its id: one that was never used, unless another one is given."""
        if request_id is None:
            request_id = f"{self.mark}{len(self.asked)}"
        if self.modern and isinstance(params, dict):
            params = {
                "_meta": {
                    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                    "io.modelcontextprotocol/clientInfo": {"name": self.origin, "version": "1"},
                    "io.modelcontextprotocol/clientCapabilities": {"extensions": {EXTENSION: {}}},
                },
                **params,
            }
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

    def close(self) -> None:
        self._socket.close()

    def _take(self, line: bytes) -> None:
        for other in ORIGINS:
            assert other == self.origin or f"{other}-".encode() not in line, f"{self.origin} was told {line!r}"
        message = json.loads(line)
        assert message["jsonrpc"] == "2.0", line
        if "method" in message:
            assert "id" not in message, f"nothing is asked of a client: {line!r}"
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


class Machine(RuleBasedStateMachine):
    """Clients of two origins, of which neither may see or move what is the other's."""

    path = ""
    numbers: Iterator[int]
    owners: dict[str, str]
    """Task -> the origin that submitted it, of all runs."""

    def __init__(self) -> None:
        super().__init__()
        self.clients: list[Client] = []
        self.tasks: dict[str, str] = {}
        """The same of this run."""

    def teardown(self) -> None:
        for client in self.clients:
            self._settle(client)
            client.close()

    def _settle(self, client: Client) -> None:
        """Fails where the client isn't served any more, or is owed an answer."""
        if client.ended:
            return
        client.answer(client.ask("tools/list", {}))
        until_s = time.monotonic() + ANSWER_S
        while client.owed() and not client.ended:
            assert time.monotonic() < until_s, [client.methods[one] for one in client.owed()]
            client.read(until_s - time.monotonic() + 0.01)

    def _one(self, pick: int) -> Client:
        return self.clients[pick % len(self.clients)]

    def _ref(self, client: Client, pick: int, ref: Any) -> Any:
        """A task of the client's own origin; where it has none, what was drawn."""
        own = [task for task, origin in self.tasks.items() if origin == client.origin]
        return own[pick % len(own)] if own else ref

    # What is drawn depends on nothing that the server does: Hypothesis couldn't repeat it.

    @precondition(lambda self: len(self.clients) < CLIENTS_MAX)
    @rule(origin=st.sampled_from(ORIGINS), modern=st.booleans())
    def opens(self, origin: str, *, modern: bool) -> None:
        self.clients.append(Client(self.path, origin, next(self.numbers), modern=modern))

    @precondition(lambda self: self.clients)
    @rule(pick=PICKS)
    def submits(self, pick: int) -> None:
        client = self._one(pick)
        arguments = {"argv": [client.mark], "executor": "mine"}
        answer = client.answer(client.ask("tools/call", {"name": "task_submit", "arguments": arguments}))
        made = answer.get("result", {})
        task = made.get("taskId") or made.get("structuredContent", {}).get("id")
        if task:
            self.tasks[task] = self.owners[task] = client.origin

    @precondition(lambda self: self.clients)
    @rule(pick=PICKS, method=st.sampled_from(METHODS), params=PARAMS | VALUES, own=st.booleans(), ref=REFS | VALUES)
    def asks(self, pick: int, method: str, params: Any, ref: Any, *, own: bool) -> None:
        client = self._one(pick)
        if isinstance(params, dict):
            params = {**params, "taskId": self._ref(client, pick, ref) if own else ref}
        client.ask(method, params)

    @precondition(lambda self: self.clients)
    @rule(pick=PICKS, tool=st.sampled_from(TOOLS), arguments=PARAMS, own=st.booleans(), ref=REFS | VALUES)
    def calls(self, pick: int, tool: str, arguments: dict[str, Any], ref: Any, *, own: bool) -> None:
        client = self._one(pick)
        arguments = {"task": self._ref(client, pick, ref) if own else ref, "action": "pause", **arguments}
        for name in ("argv", "wait_s"):
            arguments.pop(name, None)
        if tool == "task_search":
            # Whoever searches sees the tasks of all.
            arguments = {"origin": client.origin, "inbox": arguments.get("inbox", own)}
        if tool != "status":
            client.ask("tools/call", {"name": tool, "arguments": arguments})

    @precondition(lambda self: self.clients)
    @rule(pick=PICKS, wait_s=st.sampled_from((0, 0.05, 50.5, -1, "x", None)))
    def waits(self, pick: int, wait_s: Any) -> None:
        client = self._one(pick)
        # With the origin before it: the bare name may be the only one of the other, which everybody may read.
        arguments = {"task": self._ref(client, pick, f"{client.origin}/t1"), "wait_s": wait_s}
        client.ask("tools/call", {"name": "task_get", "arguments": arguments})

    @precondition(lambda self: self.clients)
    @rule(pick=PICKS)
    def lists_its_own(self, pick: int) -> None:
        client = self._one(pick)
        answer = client.answer(client.ask("tasks/list", {}))
        for task in answer.get("result", {}).get("tasks", ()):
            assert self.owners.get(task["taskId"], client.origin) == client.origin

    @precondition(lambda self: self.clients)
    @rule(pick=PICKS, tasks=st.booleans())
    def can_not_move_another_s(self, pick: int, *, tasks: bool) -> None:
        client = self._one(pick)
        others = [task for task, origin in self.tasks.items() if origin != client.origin]
        if not others:
            return
        task = others[pick % len(others)]
        if tasks:
            answer = client.answer(client.ask("tasks/cancel", {"taskId": task}))
            assert "error" in answer or client.ended, answer
        else:
            arguments = {"task": task, "action": "cancel"}
            answer = client.answer(client.ask("tools/call", {"name": "task_control", "arguments": arguments}))
            assert answer.get("result", {"isError": True}).get("isError"), answer

    @precondition(lambda self: self.clients)
    @rule(pick=PICKS, other=VALUES, known=st.booleans())
    def cancels(self, pick: int, other: Any, *, known: bool) -> None:
        client = self._one(pick)
        asked = list(client.methods)
        request_id = asked[pick % len(asked)] if known and asked else other
        if isinstance(request_id, str | int):
            client.cancelled.add(request_id)
        client.put({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": request_id}})

    @precondition(lambda self: self.clients)
    @rule(pick=PICKS, method=st.sampled_from(METHODS))
    def repeats_an_id(self, pick: int, method: str) -> None:
        client = self._one(pick)
        asked = list(client.methods)
        if asked:
            client.ask(method, {}, asked[pick % len(asked)])

    @precondition(lambda self: self.clients)
    @rule(pick=PICKS, junk=JUNK)
    def says_junk(self, pick: int, junk: bytes) -> None:
        self._one(pick).put(junk)

    @precondition(lambda self: self.clients)
    @rule(pick=PICKS, name=st.sampled_from(("notifications/initialized", "notifications/x", "")), params=VALUES)
    def notifies(self, pick: int, name: str, params: Any) -> None:
        self._one(pick).put({"jsonrpc": "2.0", "method": name, "params": params})

    @precondition(lambda self: self.clients)
    @rule(pick=PICKS, size=st.sampled_from((LINE_BYTES_MAX // 2, LINE_BYTES_MAX - 500, 2 * LINE_BYTES_MAX)))
    def says_much(self, pick: int, size: int) -> None:
        client = self._one(pick)
        client.ask("tools/call", {"name": "task_get", "arguments": {"task": "x" * size}})
        if size > LINE_BYTES_MAX:
            while not client.ended:
                assert client.read(ANSWER_S) or client.ended, "a line that is too long ends the connection"

    @precondition(lambda self: self.clients)
    @rule(pick=PICKS)
    def settles(self, pick: int) -> None:
        self._settle(self._one(pick))

    @precondition(lambda self: self.clients)
    @rule(pick=PICKS)
    def goes(self, pick: int) -> None:
        client = self._one(pick)
        self.clients.remove(client)
        client.close()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    home.file.write_text(
        f'[agents]\nallow = ["mine"]\n[[executor]]\nname = "mine"\nkind = "command"\n'
        f"[socket]\nmessage_bytes_max = {LINE_BYTES_MAX}\n[limits]\nwaiting_tasks_max = 100000\n"
    )
    return home


@pytest.mark.timeout(60 + RUNS * 5)
def test_no_message_breaks_the_server_or_reaches_another(home: Home) -> None:
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(home.daemon(limit_s=60 + RUNS * 5)) as daemon,
    ):
        Machine.path = daemon.context.config.socket.path
        Machine.numbers, Machine.owners = iter(range(1 << 30)), {}
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as person:
            person.connect(Machine.path)
            person.sendall(b'{"jsonrpc":"2.0","id":1,"method":"omnid/gate.pause","params":{"executor":"mine"}}\n')
            assert b'"result"' in person.recv(1 << 16)
            run_state_machine_as_test(
                Machine,
                settings=settings(
                    max_examples=RUNS,
                    stateful_step_count=STEPS,
                    deadline=None,
                    database=None,
                    phases=(Phase.generate,),
                    suppress_health_check=list(HealthCheck),
                ),
            )
    assert '"level":"error"' not in home.logged.getvalue(), home.logged.getvalue()[-3000:]
