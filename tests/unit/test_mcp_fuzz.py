"""MCP messages in any order and any shape, in both eras, from several clients of a daemon in this process.

The clients are of two origins whose rights show neither anything of the other's. Tasks end, hang, or ask; who is asked
answers at once, late, wrongly, or not at all, and the other origin tries to.

`OMNID_FUZZ` says how many runs there are, with a new seed each time; without it a few are always the same.
"""

import contextlib
import http.client
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from omnid.api.mcp_session import OTHER_ERA
from omnid.model import InputRequest
from tests.fakes.executor import InProcessExecutor, asks
from tests.fakes.home import Home
from tests.unit.mcp_fuzz_kit import ANSWER_S, ORIGINS, Client, assert_no_leak, meta_of

RUNS = int(os.environ.get("OMNID_FUZZ", "20"))
STEPS = 30
CLIENTS_MAX = 5
LINE_BYTES_MAX = 64 << 10
TOOLS = ("task_submit", "task_get", "task_search", "task_control", "status", "", "eat")
METHODS = (
    *("tools/list", "prompts/list", "resources/list", "resources/templates/list", "ping", "server/discover"),
    *("tasks/get", "tasks/cancel", "tasks/update", "tasks/list", "tasks/result"),
    *("resources/read", "prompts/get", "completion/complete", "logging/setLevel", "subscriptions/listen"),
    *("resources/subscribe", "resources/unsubscribe", "initialize", "omnid/hello", "omnid/task.purge", "no/such"),
)
KINDS = ("done", "hang", "ask")
"""How a task goes."""
FORM = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
CONFIG = f"""
[agents]
allow = ["mine"]
[[executor]]
name = "mine"
kind = "command"
[[origin]]
name = "amber"
token = "env:AMBER"
labels = []
[[origin]]
name = "blue"
token = "env:BLUE"
labels = []
[socket]
message_bytes_max = {LINE_BYTES_MAX}
[limits]
waiting_tasks_max = 100000
[daemon]
slots_max = 100000
[http]
listen = "127.0.0.1:0"
"""

TOKENS = {"amber": "a" * 32, "blue": "b" * 32}
RESPONSES = st.one_of(
    st.just("fits"),
    st.sampled_from(({"action": "decline"}, {"action": "cancel"}, {"action": "accept"}, {"action": 7}, {}, None)),
)
"""Answers to a question, most of which don't fit it."""


def _tool(name: str, **arguments: Any) -> tuple[str, dict[str, Any]]:
    return "tools/call", {"name": name, "arguments": arguments}


OTHERS: dict[str, Callable[[str, str], tuple[str, dict[str, Any]]]] = {
    "tasks/get": lambda task, _: ("tasks/get", {"taskId": task}),
    "tasks/cancel": lambda task, _: ("tasks/cancel", {"taskId": task}),
    "tasks/result": lambda task, _: ("tasks/result", {"taskId": task}),
    "tasks/update": lambda task, mark: (
        "tasks/update",
        {"taskId": task, "inputResponses": {"q1": {"action": "accept", "content": {"name": mark}}}},
    ),
    "resources/read": lambda task, _: ("resources/read", {"uri": f"omnid://task/{task}"}),
    "log": lambda task, _: ("resources/read", {"uri": f"omnid://task/{task}/log"}),
    "task_get": lambda task, _: _tool("task_get", task=task),
    "cancel": lambda task, _: _tool("task_control", task=task, action="cancel"),
    "answer": lambda task, mark: _tool("task_control", task=task, action="answer", text=mark),
}
"""What is done to a task, by its UUID; who doesn't see it is refused."""

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


class Work:
    """What tasks do, and by whose word those that asked went on."""

    def __init__(self) -> None:
        self.answers: list[tuple[str, Any]] = []

    async def __call__(self, argv: tuple[str, ...]) -> Any:
        mark, kind = argv
        if kind == "hang":
            await anyio.sleep_forever()
        if kind == "ask":
            question = InputRequest("elicitation/create", {"message": f"{mark}?", "requestedSchema": FORM})
            answer = (await asks.get()({"who": question}))["who"]
            self.answers.append((mark, answer.content))
        return "success", mark.encode()


class Machine(RuleBasedStateMachine):
    """Clients of two origins, of which neither may see or move what is the other's."""

    path = ""
    port = 0
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
            # A call that asks its user is answered once they have decided, or won't.
            client.dismiss()
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
    @rule(pick=PICKS, kind=st.sampled_from(KINDS))
    def submits(self, pick: int, kind: str) -> None:
        self._submit(self._one(pick), kind)

    def _submit(self, client: Client, kind: str) -> str | None:
        arguments = {"argv": [client.mark, kind], "executor": "mine"}
        answer = client.answer(client.ask("tools/call", {"name": "task_submit", "arguments": arguments}))
        made = answer.get("result", {})
        task = made.get("taskId") or made.get("structuredContent", {}).get("id")
        if task:
            self.tasks[task] = self.owners[task] = client.origin
        return task

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
            arguments = {"inbox": arguments.get("inbox", own)}
        if tool == "status":
            arguments = {}
        client.ask("tools/call", {"name": tool, "arguments": arguments})

    @precondition(lambda self: self.clients)
    @rule(pick=PICKS, wait_s=st.sampled_from((0, 0.05, 50.5, -1, "x", None)))
    def waits(self, pick: int, wait_s: Any) -> None:
        client = self._one(pick)
        arguments = {"task": self._ref(client, pick, "t1"), "wait_s": wait_s}
        client.ask("tools/call", {"name": "task_get", "arguments": arguments})

    @precondition(lambda self: self.clients)
    @rule(pick=PICKS)
    def lists_its_own(self, pick: int) -> None:
        client = self._one(pick)
        answer = client.answer(client.ask("tasks/list", {}))
        for task in answer.get("result", {}).get("tasks", ()):
            assert self.owners.get(task["taskId"], client.origin) == client.origin

    @precondition(lambda self: self.clients)
    @rule(pick=PICKS, how=st.sampled_from([*OTHERS]))
    def another_s_is_not_there(self, pick: int, how: str) -> None:
        client = self._one(pick)
        others = [task for task, origin in self.tasks.items() if origin != client.origin]
        if not others:
            return
        task = others[pick % len(others)]
        if how in ("tasks/update", "tasks/result"):
            # Each belongs to one era; the other one has no such method.
            how = "tasks/update" if client.modern else "tasks/result"
        method, params = OTHERS[how](task, client.mark)
        answer = client.answer(client.ask(method, params))
        refused = "error" in answer or answer.get("result", {"isError": True}).get("isError")
        assert refused or client.ended, answer

    @precondition(lambda self: self.clients)
    @rule(pick=PICKS, response=RESPONSES, by_tool=st.booleans())
    def answers(self, pick: int, response: Any, *, by_tool: bool) -> None:
        """Answers what one of its own tasks may ask; the server tells whether that fits."""
        client = self._one(pick)
        task = self._ref(client, pick, "t1")
        if response == "fits":
            response = {"action": "accept", "content": {"name": client.mark}}
        if by_tool:
            arguments = {"task": task, "action": "answer", "text": client.mark}
            client.ask("tools/call", {"name": "task_control", "arguments": arguments})
        else:
            client.ask("tasks/update", {"taskId": task, "inputResponses": {"q1": response}})

    @precondition(lambda self: self.clients)
    @rule(pick=PICKS, by=PICKS)
    def is_asked_and_answers(self, pick: int, by: int) -> None:
        """Has a task ask, and answers once any client has tried to, which counts where it is of the same origin."""
        client, other = self._one(pick), self._one(by)
        task = self._submit(client, "ask")
        if task is None:
            return
        until_s = time.monotonic() + ANSWER_S
        while not client.ended:
            assert time.monotonic() < until_s, "it doesn't ask"
            method, params = OTHERS["task_get"](task, "")
            view = client.answer(client.ask(method, params)).get("result", {}).get("structuredContent", {})
            if view.get("questions"):
                break
        done = False
        for one in (other, client):
            method, params = OTHERS["answer"](task, one.mark)
            answer = one.answer(one.ask(method, params))
            if client.ended or one.ended or answer.get("error", {}).get("message") == OTHER_ERA:
                # Nobody saw whether it asks; or the `initialize` of an earlier step has tied it to the other era.
                continue
            own = one.origin == client.origin
            assert answer.get("result", {"isError": True}).get("isError", False) is (done or not own), answer
            done |= own

    @precondition(lambda self: self.clients)
    @rule(pick=PICKS, response=RESPONSES)
    def replies(self, pick: int, response: Any) -> None:
        """Answers what the server has asked, at once or long after."""
        client = self._one(pick)
        client.read(0.01)
        if not client.questions:
            return
        request_id = [*client.questions][pick % len(client.questions)]
        del client.questions[request_id]
        if response == "fits":
            response = {"action": "accept", "content": {"name": client.mark}}
        client.put({"jsonrpc": "2.0", "id": request_id, "result": response})

    @rule(origin=st.sampled_from(ORIGINS), pick=PICKS, how=st.sampled_from([*OTHERS, "task_search", "status"]))
    def over_http(self, origin: str, pick: int, how: str) -> None:
        """Asks once with the token of an origin, about any task."""
        task = [*self.tasks][pick % len(self.tasks)] if self.tasks else "t1"
        search = ("tools/call", {"name": how, "arguments": {}})
        method, params = OTHERS[how](task, f"{origin}-0-") if how in OTHERS else search
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {"_meta": meta_of(origin), **params}}
        headers = {
            "authorization": f"Bearer {TOKENS[origin]}",
            "content-type": "application/json",
            "accept": "application/json, text/event-stream",
            "mcp-protocol-version": "2026-07-28",
            "mcp-method": method,
        }
        if "name" in params:
            headers["mcp-name"] = params["name"]
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_S)) as connection:
            connection.request("POST", "/mcp", json.dumps(body), headers)
            said = connection.getresponse().read()
        assert_no_leak(origin, said)
        assert b'"jsonrpc":"2.0"' in said.replace(b" ", b""), said
        if self.tasks.get(task, origin) != origin:
            assert b'"error"' in said or b'"isError":true' in said or how not in OTHERS, said

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
    home.environ |= {origin.upper(): token for origin, token in TOKENS.items()}
    home.file.write_text(CONFIG)
    return home


@pytest.mark.timeout(60 + RUNS * 5)
def test_no_message_breaks_the_server_or_reaches_another(home: Home) -> None:
    work = Work()
    home.executors = {"mine": InProcessExecutor("mine", work)}
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(home.daemon(limit_s=60 + RUNS * 5)) as daemon,
    ):
        Machine.path = daemon.context.config.socket.path
        assert daemon.http is not None
        Machine.port = daemon.http.port
        Machine.numbers, Machine.owners = iter(range(1 << 30)), {}
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=RUNS,
                stateful_step_count=STEPS,
                deadline=None,
                database=None,
                derandomize="OMNID_FUZZ" not in os.environ,
                phases=(Phase.generate,),
                suppress_health_check=list(HealthCheck),
            ),
        )
    for mark, content in work.answers:
        assert content is None or content["name"].split("-")[0] == mark.split("-")[0], "another origin has answered"
    assert work.answers, "nothing was asked"
    assert '"level":"error"' not in home.logged.getvalue(), home.logged.getvalue()[-3000:]
