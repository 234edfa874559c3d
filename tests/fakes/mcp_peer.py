"""A connection to the MCP server without a socket: the client's end as raw lines, over operations that are made up."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from msgspec import Struct

from omnid.api import shapes
from omnid.api.mcp_server import McpServer
from omnid.flow.caller import Caller
from omnid.model import Submitted

WAIT_S = 10.0

BRIEF = shapes.TaskBrief(
    id="01931e3c-0000-7000-8000-000000000001",
    name="tester/t1",
    origin="tester",
    state="executing",
    reason=None,
    wake_at_ms=None,
    title="make test",
    executor="command",
    priority=0,
    lane=None,
    kind="general",
    labels=(),
    attempt=1,
    created_at_ms=1_000,
    started_at_ms=2_000,
    finished_at_ms=None,
    problem=None,
)
ATTEMPT = shapes.AttemptView("a", 1, "command", 2_000, None, None, None, None, None, None, None, None)


def view(*attempts: shapes.AttemptView, timed_out: bool = False) -> shapes.TaskView:
    return shapes.TaskView(
        task=BRIEF,
        why="It runs.",
        work={"argv": ["make", "test"]},
        key=None,
        assignee=None,
        parent=None,
        not_before_ms=None,
        deadline_ms=None,
        approval=None,
        after=[],
        attempts=list(attempts),
        attempts_total=len(attempts),
        timed_out=timed_out,
    )


RESULTS: dict[str, Struct] = {
    "task.submit": Submitted(BRIEF.id, BRIEF.name, "idle", True),
    "task.get": view(ATTEMPT),
    "task.list": shapes.Page([BRIEF], None),
    "task.control": shapes.Controlled(BRIEF, "It ends when its attempt has ended."),
    "status": shapes.Status(
        version="0.1.0",
        pid=1,
        mode="normal",
        started_at_ms=1,
        now_ms=2,
        state_dir="/x",
        tasks={"idle": 1},
        reasons={},
        running=0,
        slots=4,
        executors=[shapes.ExecutorView("command", "command", 0, None, False)],
        gates=[shapes.GateView("lane:x", "lane", "x", 1, None, None, "")],
        needs_you=[],
        needs_you_total=0,
        next_wake_at_ms=None,
        clients=1,
        problems=[],
        config_problem=None,
    ),
}


class Clock:
    """A clock that stands still until somebody moves it."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def wall_ms(self) -> int:
        return 0

    def monotonic_s(self) -> float:
        return self.now_s

    def boottime_s(self) -> float:
        return self.monotonic_s()

    def uuid(self) -> str:
        return BRIEF.id

    def uniform(self, low: float, high: float) -> float:
        return (low + high) / 2


class Log:
    """Keeps what was logged as an error."""

    def __init__(self) -> None:
        self.errors: list[dict[str, Any]] = []

    def error(self, event: str, **fields: Any) -> None:
        self.errors.append({"event": event, **fields})

    def warning(self, event: str, **fields: Any) -> None:
        """Nobody looks at these."""


class Connection:
    def __init__(self, origin: str | None = None, session: str | None = None) -> None:
        self.origin = origin
        self.session = session
        self.parent: str | None = None
        self.above: tuple[str, ...] = ()
        self.tools: frozenset[str] | None = None
        self.read_only = False


Do = Callable[[str, Struct], Awaitable[Struct]]


class Inbox:
    async def line(self, origin: str) -> str | None:
        return None


class Api:
    """Answers with `RESULTS`, or as `do` says; keeps who called what."""

    def __init__(self, do: Do | None = None) -> None:
        self.calls: list[tuple[Caller, str, Struct]] = []
        self._do = do
        self.inbox = Inbox()

    async def call(self, caller: Caller, name: str, params: Struct) -> Struct:
        self.calls.append((caller, name, params))
        return await self._do(name, params) if self._do else RESULTS[name]

    @contextmanager
    def change_of(self, task_id: str) -> Iterator[anyio.Event]:
        yield anyio.Event()

    def kept_ms(self) -> int:
        return 1_000


class Peer:
    """The client's end of a connection, as raw lines."""

    def __init__(
        self, lines: MemoryObjectSendStream[bytes], answers: MemoryObjectReceiveStream[bytes] | None = None
    ) -> None:
        self.lines = lines
        self.answers = answers

    async def send(self, message: Any) -> None:
        await self.lines.send(message if isinstance(message, bytes) else json.dumps(message).encode())

    async def call(self, request_id: Any, method: str, params: dict[str, Any] | None = None) -> None:
        await self.send({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params or {}})

    async def tool(self, request_id: Any, name: str, **arguments: Any) -> None:
        await self.call(request_id, "tools/call", {"name": name, "arguments": arguments})

    async def answer(self) -> dict[str, Any]:
        assert self.answers is not None
        with anyio.fail_after(WAIT_S):
            line = await self.answers.receive()
        assert line.endswith(b"\n")
        assert line.count(b"\n") == 1
        return json.loads(line)

    async def greet(self, name: str = "tester") -> dict[str, Any]:
        hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": name, "version": "1"}}
        await self.call("hello", "initialize", hello)
        answer = await self.answer()
        await self.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
        return answer["result"]


@asynccontextmanager
async def served(
    api: Api,
    connection: Connection | None = None,
    *,
    clock: Clock | None = None,
    log: Log | None = None,
    requests_max: int = 8,
) -> AsyncIterator[Peer]:
    """A connection that is served; leaving closes it and waits for its end."""
    server = McpServer(api, "0.1.0", clock or Clock(), log or Log(), requests_max=requests_max)
    lines, received = anyio.create_memory_object_stream[bytes](64)
    answers, answered = anyio.create_memory_object_stream[bytes](64)
    with lines, received, answers, answered:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, connection or Connection(), received, answers.send)
            yield Peer(lines, answered)
            with anyio.fail_after(WAIT_S):
                lines.close()
                await anyio.lowlevel.checkpoint()


class Held:
    """Operations that hold until they are let go, or cancelled."""

    def __init__(self) -> None:
        self.begun = anyio.Event()
        self.ended = anyio.Event()
        self.release = anyio.Event()
        self.finished = 0

    async def do(self, name: str, _params: Struct) -> Struct:
        self.begun.set()
        try:
            await self.release.wait()
            self.finished += 1
        finally:
            self.ended.set()
        return RESULTS[name]


async def bounded(event: anyio.Event) -> None:
    with anyio.fail_after(WAIT_S):
        await event.wait()
