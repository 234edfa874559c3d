"""What the socket's handler makes of a request: whatever comes, the answer is a result or an error of the catalogue."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import Raw

from omnid import __version__
from omnid.api.handler import SocketHandler
from omnid.api.methods import METHODS, Api
from omnid.api.socket import Request
from omnid.errors import OmnidError, Rejected
from omnid.flow.caller import Caller
from omnid.flow.control import Cancelling
from omnid.model import AGENT_ORIGIN
from omnid.settings import Origin
from omnid.store.interface import Outcome
from tests.fakes.clock import FakeClock
from tests.fakes.world import World

pytestmark = pytest.mark.anyio
SESSION = "019a0000-0000-7000-8000-000000000001"


class Mcp:
    def __init__(self) -> None:
        self.preloaded = 0
        self.served: list[Any] = []

    async def preload(self) -> None:
        self.preloaded += 1

    async def serve(self, *args: Any) -> None:
        self.served.append(args)


class Host:
    """The daemon around the operations."""

    started_at_ms = 1
    pid = 7
    stopped = False

    def clients(self) -> int:
        return 2

    def config_rows(self) -> Any:
        return "/omnid.toml", [("daemon.slots_max", 4, "default")]

    def config_remarks(self) -> list[Any]:
        return []

    def config_problems(self) -> list[Any]:
        return []

    async def reload(self) -> list[Any]:
        return []

    def config_problem(self) -> None:
        return None

    def stop(self) -> None:
        self.stopped = True


class Client:
    """A connection with the handler behind it."""

    def __init__(self, world: World) -> None:
        self.world, self.host, self.mcp = world, Host(), Mcp()
        api = Api(world.context, world.gates, Cancelling(world.context), self.host)
        self.handler = SocketHandler(api, self.mcp, pid=7, incarnation=3, message_bytes_max=99)
        self.started: list[Any] = []
        tasks = SimpleNamespace(start_soon=self.started.append)
        self.connection: Any = SimpleNamespace(
            role="person", origin=None, session=None, parent=None, above=(), tools=None, read_only=False, tasks=tasks
        )
        self._id = 0

    async def raw(self, method: str, params: bytes, id: bytes | None = None) -> Any:
        self._id += 1
        request = Request(jsonrpc="2.0", method=method, id=Raw(id or b"%d" % self._id), params=Raw(params))
        begun: list[Outcome[bytes]] = []
        if self.handler.begin(self.connection, request, begun.append):
            return json.loads(begun[0].outcome())
        return json.loads(await self.handler.call(self.connection, request))

    async def call(self, method: str, _id: int | None = None, **params: Any) -> Any:
        return await self.raw(f"omnid/{method}", json.dumps(params).encode(), b"%d" % _id if _id else None)


@pytest.fixture
def client(world: World) -> Client:
    return Client(world)


async def test_a_submit_needs_no_task_and_whatever_else_does(client: Client) -> None:
    def begins(method: str, params: bytes) -> bool:
        request = Request(jsonrpc="2.0", method=method, id=Raw(b"1"), params=Raw(params))
        return client.handler.begin(client.connection, request, begun.append)

    begun: list[Outcome[bytes]] = []
    assert begins("omnid/task.submit", b'{"argv":["x"],"key":"k"}')
    assert begins("omnid/task.submit", b'{"argv":["x"],"key":"k"}')
    assert begins("omnid/task.submit", b'{"argv":["y"],"key":"k"}')
    first, again = (json.loads(one.outcome()) for one in begun[:2])
    assert (first["id"], first["created"], again["created"]) == (again["id"], True, False)
    with pytest.raises(Rejected, match="k"):
        begun[2].outcome()
    # What is wrong with these is for `call` to say.
    for method, params in (
        ("omnid/task.submit", b"{}"),
        ("omnid/task.submit", b'{"argv":7}'),
        ("omnid/task.submit", b"no json"),
        ("omnid/status", b"{}"),
        ("omnid/none", b"{}"),
    ):
        assert not begins(method, params)
    assert len(begun) == 3


async def test_hello_says_who_is_there(client: Client) -> None:
    welcome = await client.call("hello", session=SESSION, role="agent", origin="claude")
    assert welcome == {"version": __version__, "pid": 7, "incarnation": 3, "message_bytes_max": 99}
    connection = client.connection
    assert (connection.role, connection.origin, connection.session) == ("agent", "claude", SESSION)
    assert client.started == [client.mcp.preload]


async def test_what_is_submitted_from_inside_an_attempt_has_its_task_as_parent(client: Client) -> None:
    outer = await client.world.add("outer")
    (command,) = await client.world.claim()
    await client.call("hello", session=SESSION, attempt=command.attempt_id)
    task = await client.world.task((await client.call("task.submit", argv=["inner"]))["id"])
    assert task.parent == outer.id
    (batch,) = (await client.call("task.submit_batch", tasks=[{"argv": ["inner"]}]))["tasks"]
    assert (await client.world.task(batch["id"])).parent == outer.id
    view = await client.call("task.get", task=task.id)
    assert view["parent"] == "t1"
    assert view["why"].startswith("t2 (submitted by t1) waits ")
    await client.world.finish(command, "success")
    await client.call("hello", session=SESSION, attempt=command.attempt_id)
    assert client.connection.parent == outer.id, "what an attempt left behind is its own still"


async def test_no_name_wins_rights_inside_of_a_task_of_an_origin_that_has_less(client: Client) -> None:
    world = client.world
    world.context.config = msgspec.structs.replace(
        world.context.config, origin=(Origin(name="ci", executors=("safe",), labels=()),)
    )
    world.set("agents", allow=("safe",))
    hidden = await world.add("x", not_before_ms=1 << 45)
    await world.add("x", caller=Caller("agent", "ci"), executor="safe")
    for depth in range(1, 4):
        (command,) = await world.claim()
        await client.call("hello", role="agent", origin=f"free-{depth}", attempt=command.attempt_id)
        for refused, params in (
            ("task.submit", {"argv": ["x"], "executor": "command"}),
            ("task.get", {"task": hidden.id}),
        ):
            with pytest.raises(Rejected) as caught:
                await client.call(refused, **params)
            assert caught.value.code in ("executor_closed", "unknown_task")
        assert (await client.call("task.submit", argv=["x"], executor="safe"))["created"]
    await client.call("hello", role="agent", origin="free-1")
    assert (await client.call("task.get", task=hidden.id))["task"]["id"] == hidden.id


@pytest.mark.parametrize("attempt", [None, SESSION, "t1", ""])
async def test_an_attempt_that_is_not_known_has_no_task(client: Client, attempt: str | None) -> None:
    await client.call("hello", **({} if attempt is None else {"attempt": attempt}))
    done = await client.call("task.submit", argv=["x"])
    assert (await client.world.task(done["id"])).parent is None


async def test_an_agent_can_not_pass_for_a_person(client: Client) -> None:
    await client.call("hello", role="agent", origin="user")
    assert client.connection.origin == AGENT_ORIGIN
    with pytest.raises(Rejected) as caught:
        await client.call("hello", role="person")
    assert caught.value.code == "not_allowed"
    assert client.connection.role == "agent"
    assert (await client.call("task.submit", argv=["x"], origin="user"))["name"] == "agent/t1"


async def test_who_speaks_mcp_is_an_agent(client: Client) -> None:
    await client.handler.serve_mcp(client.connection, None, None)
    assert client.connection.role == "agent"
    assert len(client.mcp.served) == 1


@pytest.mark.parametrize(
    ("method", "params", "code", "says"),
    [
        ("omnid/nothing", b"{}", "unknown_method", "omnid/nothing"),
        ("tools/list", b"{}", "unknown_method", "tools/list"),
        ("omnid/hello", b'{"session": "x"}', "bad_request", "UUID"),
        ("omnid/hello", b'{"role": "god"}', "bad_request", "role"),
        ("omnid/task.submit", b'{"argv": ["x"], "prio": 1}', "bad_request", "prio"),
        ("omnid/task.submit", b'{"argv": ["x"], "priority": 11}', "bad_request", "priority"),
        ("omnid/task.submit", b'{"argv": "x"}', "bad_request", "argv"),
        ("omnid/task.submit", b"[", "bad_request", "omnid/task.submit"),
        ("omnid/task.submit", b"[" * 100_000, "bad_request", "omnid/task.submit"),
        ("omnid/task.submit", b'{"argv": ["\xff"]}', "bad_request", "omnid/task.submit"),
        ("omnid/task.get", b"", "bad_request", "task"),
        ("omnid/status", b"[]", "bad_request", "omnid/status"),
    ],
)
async def test_what_can_not_be_read_is_refused_and_says_where(
    client: Client, method: str, params: bytes, code: str, says: str
) -> None:
    with pytest.raises(Rejected) as caught:
        await client.raw(method, params)
    assert caught.value.code == code
    assert says in str(caught.value)


EDGES = [2**53, 2**62, 2**63 - 1, 2**63, 2**64, 2**70, -1, -(2**63), -(2**63) - 1]
NUMBERED = [
    ("task.submit", {"argv": ["x"]}, "not_before_ms"),
    ("task.submit", {"argv": ["x"]}, "deadline_ms"),
    ("operations", {}, "since"),
    ("operations", {}, "since_ms"),
    ("replay", {}, "until_seq"),
    ("replay", {}, "until_ms"),
    ("task.list", {}, "since_ms"),
    ("task.log", {"task": "t1"}, "attempt"),
    ("task.log", {"task": "t1", "attempt": 1}, "offset_bytes"),
]


@pytest.mark.parametrize("number", EDGES)
async def test_a_number_that_no_database_holds_is_refused(client: Client, world: World, number: int) -> None:
    await client.call("task.submit", argv=["x"])
    await world.claim()
    for method, params, name in NUMBERED:
        try:
            await client.call(method, **params, **{name: number})
        except OmnidError as error:
            assert error.code in ("bad_request", "deadline_passed", "unknown_attempt", "unknown_task"), (name, error)


async def test_a_request_of_a_session_is_done_once(client: Client, world: World) -> None:
    await client.call("hello", session=SESSION)
    first = await client.call("task.submit", _id=7, argv=["x"])
    assert await client.call("task.submit", _id=7, argv=["x"]) == first
    assert sum(world.store.tally.values()) == 1
    with pytest.raises(Rejected) as caught:
        await client.call("task.submit", _id=7, argv=["y"])
    assert caught.value.code == "busy_key"
    assert (await client.call("task.submit", _id=8, argv=["x"]))["name"] == "t2"


async def test_without_a_session_every_request_counts(client: Client, world: World) -> None:
    for _ in range(2):
        await client.call("task.submit", _id=7, argv=["x"])
    assert sum(world.store.tally.values()) == 2


async def test_what_waits_gets_a_task_of_its_own(world: World) -> None:
    handler = Client(world).handler
    waits = {name for name in METHODS if handler.waits(Request(jsonrpc="2.0", method=f"omnid/{name}"))}
    assert {name for name in waits if not name.startswith("workspace.")} == {
        "task.answer",
        "task.get",
        "task.list",
        "task.log",
        "task.receipt",
        "away",
        "operations",
        "replay",
        "doctor",
        "mode.hold",
        "channel.check",
        "executor.check",
        "model.rehearse",
        "state.ask",
    }
    assert len(waits) == 18
    assert not handler.waits(Request(jsonrpc="2.0", method="omnid/nothing"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NUMBERS = st.sampled_from([0, 1, -1, 50, 2**31, 2**53, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64, 10**30, 0.5])
TEXTS = st.sampled_from(["t1", "user/t1", "x", "", "\0", "\ud800", "é" * 70, "*", "command", "safe", "cancel", "idle"])


def likely(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Gives values that mostly fit a field, and lie at the edges of what fits."""
    plain = NUMBERS | TEXTS | st.booleans() | JSON
    return plain | st.lists(TEXTS, max_size=3) | st.dictionaries(TEXTS, plain, max_size=2)


def params_of(name: str) -> st.SearchStrategy[dict[str, Any]]:
    fields = msgspec.structs.fields(METHODS[name].params)
    optional = {field.encode_name: likely({}) for field in fields}
    fixed = {"task": TEXTS, "argv": st.lists(TEXTS, min_size=1, max_size=3), "wait_s": st.just(0)}
    optional |= {key: value for key, value in fixed.items() if key in optional}
    optional |= {"action": st.sampled_from(["cancel", "pause", "assign", "priority"])} if "action" in optional else {}
    return st.fixed_dictionaries({}, optional=optional)


def test_whatever_comes_the_answer_is_a_result_or_an_error_of_the_catalogue(tmp_path: Path) -> None:
    requests = st.sampled_from(sorted(METHODS)).flatmap(lambda name: st.tuples(st.just(name), params_of(name)))
    with start_blocking_portal("asyncio") as portal:
        client = portal.call(lambda: Client(World(tmp_path, FakeClock())))
        portal.call(partial(client.call, "task.submit", argv=["x"]))

        @settings(max_examples=300)
        @given(requests)
        @example(("outage.list", {"since_ms": 1 << 63}))
        def answers(request: tuple[str, dict[str, Any]]) -> None:
            name, params = request
            try:
                portal.call(client.raw, f"omnid/{name}", json.dumps(params).encode())
            except OmnidError as error:
                assert error.code != "internal"

        answers()
        portal.call(client.world.close)


NUL = "a\0b"


@pytest.mark.parametrize(
    ("method", "params", "names"),
    [
        *(
            ("task.submit", {"argv": ["x"], name: value}, name)
            for name, value in {
                "lane": NUL,
                "labels": ["a", NUL],
                "key": NUL,
                "kind": NUL,
                "assignee": NUL,
                "origin": NUL,
                "executor": NUL,
                "cwd": NUL,
                "check": [NUL],
                "env": [NUL],
                "after": [NUL],
                "reply_to": {"channel": "c", "target": NUL},
            }.items()
        ),
        ("task.submit", {"argv": ["x", NUL]}, "argv[1]"),
        ("task.submit", {"server": "s", "tool": "t", "arguments": {NUL: 1}}, "a name in arguments"),
        ("task.submit_batch", {"tasks": [{"argv": ["x"]}, {"argv": ["x"], "lane": NUL}]}, "tasks[1].lane"),
        ("task.control", {"task": "t1", "action": "assign", "assignee": NUL}, "assignee"),
        ("task.control", {"task": "t1", "action": "complete", "output": NUL}, "output"),
        ("task.list", {"text": NUL}, "text"),
        ("hello", {"origin": NUL}, "origin"),
    ],
)
async def test_nul_is_refused_wherever_text_enters(
    client: Client, method: str, params: dict[str, Any], names: str
) -> None:
    with pytest.raises(Rejected) as caught:
        await client.call(method, **params)
    assert caught.value.code == "bad_request"
    assert names in caught.value.what
    assert "NUL" in caught.value.what
    assert await client.world.rows("SELECT count(*) FROM task") == [(0,)]


async def test_standard_input_may_hold_nul_and_any_text_a_backslash(client: Client) -> None:
    await client.call("task.submit", argv=["x", "\\u0000"], stdin=NUL)
    task = await client.world.task((await client.world.rows("SELECT id FROM task"))[0][0])
    assert (task.work.argv, task.work.stdin) == (("x", "\\u0000"), NUL)
