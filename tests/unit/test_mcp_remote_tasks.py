"""Tasks of MCP servers: called once, written down before anybody waits, and followed by whichever daemon there is."""

import json
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from omnid.errors import Retryable
from omnid.executor import mcp_follow
from omnid.executor.interface import Found
from omnid.executor.mcp_tasks import read_task
from omnid.model import Command, Result
from omnid.retry import Backoff
from tests.contract.executors import Ports
from tests.contract.mcp_harness import argv
from tests.fakes.mcp_http_server import McpHttpServer
from tests.fakes.signals import WAIT_S, Fifo
from tests.unit.test_mcp_executor import Bench, bench, problem

pytestmark = pytest.mark.anyio

DONE = {"status": "completed", "result": {"content": [{"type": "text", "text": "done"}]}}
SAID = {"code": -32000, "message": "it is raining"}


class Noted(Ports):
    """Ports that tell when a task was noted."""

    def __init__(self) -> None:
        super().__init__()
        self.noted = anyio.Event()

    async def note(self, attempt_id: str, kind: str, body: Any) -> None:
        await super().note(attempt_id, kind, body)
        if kind == "remote_task":
            self.noted.set()


class Kit:
    """A server that has tasks, over one of the transports, and an executor for it; both can go and come back."""

    def __init__(self, path: Path, era: str, transport: str) -> None:
        self.path, self.era, self.transport = path, era, transport
        self.tasks = path / "tasks"
        self.tasks.mkdir()
        self.fifo = Fifo(path / "fifo")
        self.ports = Noted()
        self.server: McpHttpServer | None = None
        self.fake: Bench

    @property
    def options(self) -> dict[str, Any]:
        return {"ledger": str(self.path / "ledger"), "era": self.era, "tasks": str(self.tasks)}

    def listen(self, port: int = 0) -> McpHttpServer:
        self.server = McpHttpServer(port=port, **self.options)
        return self.server

    @asynccontextmanager
    async def daemon(self) -> AsyncGenerator[Bench]:
        """An executor like that of one daemon; leaving ends it, and what was under way is left to the next one."""
        section = {"argv": (), "url": self.server.url} if self.server else {"argv": argv(**self.options)}
        async with bench(self.path, restart_base_s=0.01, **section) as self.fake:
            self.fake.ports = self.ports
            yield self.fake

    def set(self, id: str, **fields: Any) -> None:
        path = self.tasks / id
        task = {**json.loads(path.read_text()), **fields}
        path.with_suffix(".new").write_text(json.dumps(task))
        path.with_suffix(".new").rename(path)

    def job(self, tool: str = "job", timeout_s: float = WAIT_S, **task: Any) -> Command:
        return self.fake.command(tool, timeout_s, fifo=self.fifo.path, task=task)

    async def ended(self, command: Command, *fields: dict[str, Any]) -> Result:
        """Runs an attempt, and goes on with its task in steps."""
        results: list[Result] = []

        async def run() -> None:
            results.append(await self.fake.attempt(command))

        async with anyio.create_task_group() as group:
            group.start_soon(run)
            id = await self.fifo.line()
            for step in fields:
                self.set(id, **step)
        return results[0]


WAYS = [("asyncio", "old", "stdio"), ("trio", "new", "stdio"), ("trio", "old", "http"), ("asyncio", "new", "http")]
"""Backend, era and transport, each with each, but not all with all."""


@pytest.fixture(params=WAYS, ids=["-".join(way) for way in WAYS])
def way(request: pytest.FixtureRequest) -> tuple[str, str, str]:
    return request.param


@pytest.fixture
def anyio_backend(way: tuple[str, str, str]) -> str:
    return way[0]


@pytest.fixture
async def kit(way: tuple[str, str, str], tmp_path: Path) -> AsyncGenerator[Kit]:
    made = Kit(tmp_path, *way[1:])
    async with AsyncExitStack() as stack:
        if made.transport == "http":
            stack.enter_context(made.listen())
        await stack.enter_async_context(made.daemon())
        yield made
    made.fifo.close()


async def test_a_call_becomes_a_task_that_is_noted_and_followed(kit: Kit) -> None:
    command = kit.job(status="working", statusMessage="warming up")
    result = await kit.ended(command, DONE)
    assert (result.outcome, result.output) == ("success", "done")
    (id,) = kit.fake.ledger("made")
    assert await kit.ports.notes(command.attempt_id, "remote_task") == [{"server": "fake", "id": id}]
    assert "warming up" in await kit.fake.printed(result)
    (asked,) = kit.fake.ledger("asked")
    assert asked == ({"ttl": 86_400_000 + 1000 * WAIT_S} if kit.era == "old" else None)
    assert kit.fake.ledger("of_task")[-1] == ("tasks/result" if kit.era == "old" else "tasks/get")
    assert (await kit.fake.run("echo", text="no task")).output == "no task"


@pytest.mark.parametrize(
    ("fields", "outcome", "code", "says"),
    [
        ({"status": "failed", "error": SAID}, "failure", "reported_error", "it is raining"),
        (
            {"status": "completed", "result": {"content": [{"type": "text", "text": "no"}], "isError": True}},
            "failure",
            "reported_error",
            "no",
        ),
        ({"status": "cancelled", "statusMessage": "by Ada"}, "rejected", "reported_error", "cancelled there: by Ada"),
        ({"status": "completed", "result": {"content": 5}}, "lost", "uncertain", "is no result of a tool"),
    ],
)
async def test_what_a_task_comes_to(kit: Kit, fields: dict[str, Any], outcome: str, code: str, says: str) -> None:
    result = await kit.ended(kit.job(), fields)
    assert problem(result)[:2] == (outcome, code)
    assert says in problem(result)[2]


@pytest.mark.parametrize("tool", ["job", "job_safe"])
async def test_a_task_that_the_server_has_forgotten(kit: Kit, tool: str) -> None:
    command, results = kit.job(tool), list[Result]()

    async def run() -> None:
        results.append(await kit.fake.attempt(command))

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        id = await kit.fifo.line()
        (kit.tasks / id).unlink()
    outcome, code, what = problem(results[0])
    assert (outcome, code) == (("lost", "uncertain") if tool == "job" else ("failure", "executor_crashed"))
    assert f"the server knows its task {id} no more: there is no such task" in what


async def left_behind(kit: Kit) -> tuple[Command, str]:
    """Leaves a task to the next daemon."""
    command = kit.job()
    async with anyio.create_task_group() as group:
        group.start_soon(kit.fake.executor.run, command, kit.ports)
        id = await kit.fifo.line()
        await kit.ports.noted.wait()
        group.cancel_scope.cancel()
    with anyio.CancelScope(shield=True):
        await kit.fake.executor.aclose()
    return command, id


async def test_the_next_daemon_goes_on_and_calls_nothing_again(kit: Kit) -> None:
    command, id = await left_behind(kit)
    kit.set(id, **DONE)
    async with kit.daemon() as fake:
        assert await fake.executor.recover(command, kit.ports) is Found.RUNNING
        with anyio.fail_after(WAIT_S):
            result = await fake.executor.adopt(command, kit.ports)
        assert (result.outcome, result.output, fake.ledger("called")) == ("success", "done", ["job"])
        other = fake.command("job")
        await kit.ports.note(other.attempt_id, "called", {})
        assert await fake.executor.recover(other, kit.ports) is Found.LOST, "it was never told of the task"


async def test_a_cancel_before_the_adoption_is_passed_on(kit: Kit) -> None:
    command, _ = await left_behind(kit)
    async with kit.daemon() as fake:
        await fake.executor.recover(command, kit.ports)
        await fake.executor.cancel(command.attempt_id)
        with anyio.fail_after(WAIT_S):
            result = await fake.executor.adopt(command, kit.ports)
        assert problem(result)[:2] == ("cancelled", "cancelled")
        assert fake.ledger("of_task").count("tasks/cancel") == 1


async def cancelled(kit: Kit, command: Command, **fields: Any) -> Result:
    results: list[Result] = []

    async def run() -> None:
        results.append(await kit.fake.attempt(command))

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        id = await kit.fifo.line()
        kit.set(id, **fields)
        await kit.fake.executor.cancel(command.attempt_id)
    return results[0]


async def test_cancel_and_timeout_end_the_task_too(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    result = await cancelled(kit, kit.job())
    assert result.problem is not None
    assert result.problem.code == "cancelled"
    if result.problem.why != "The server was told to stop.":  # It came before the answer.
        assert "So was the server's task" in result.problem.why
    assert problem(await kit.ended(kit.job(timeout_s=1)))[:2] == ("timeout", "attempt_timeout")
    monkeypatch.setattr(mcp_follow, "END_S", 0.5)
    outcome, code, what = problem(await kit.ended(kit.job(timeout_s=1, obeys=False)))
    assert (outcome, code) == ("lost", "uncertain")
    assert "it hasn't confirmed that it stops it" in what
    assert problem(await kit.ended(kit.job("job_safe", timeout_s=1, obeys=False)))[:2] == ("timeout", "attempt_timeout")


async def test_a_success_that_came_first_stands(kit: Kit) -> None:
    command, id = await left_behind(kit)
    kit.set(id, **DONE)
    async with kit.daemon() as fake:
        await fake.executor.recover(command, kit.ports)
        await fake.executor.cancel(command.attempt_id)
        with anyio.fail_after(WAIT_S):
            assert (await fake.executor.adopt(command, kit.ports)).output == "done"


async def test_a_server_that_is_away_meanwhile_is_waited_for(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp_follow, "AWAY", Backoff(base_s=0.05, max_s=0.1))
    command, results, ended = kit.job(), list[Result](), anyio.Event()

    async def run() -> None:
        results.append(await kit.fake.attempt(command))
        ended.set()

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        id = await kit.fifo.line()
        await kit.ports.noted.wait()
        if kit.server is None:
            await kit.fake.run("die")
            kit.set(id, **DONE)
        else:
            port = kit.server.server_port
            kit.server.__exit__()
            kit.server.__exit__ = lambda *_: None
            await anyio.sleep(0.3)
            kit.set(id, **DONE)
            with kit.listen(port):
                await ended.wait()
    assert results[0].output == "done"
    assert kit.fake.ledger("called").count("job") == 1


async def test_a_task_that_can_not_be_noted_is_followed_all_the_same(kit: Kit) -> None:
    class Full(Ports):
        async def note(self, attempt_id: str, kind: str, body: Any) -> None:
            if kind == "remote_task":
                raise Retryable("disk_full", detail="no room", path="/state")

    kit.fake.ports = Full()
    assert (await kit.ended(kit.job(), DONE)).output == "done"
    assert len(kit.fake.log("mcp_task_not_noted")) == 1


async def test_a_call_outside_of_attempts_may_become_a_task_too(kit: Kit) -> None:
    answers: list[Any] = []

    async def call() -> None:
        answers.append(await kit.fake.executor.call_tool("job", {"fifo": kit.fifo.path}, "a call"))

    if kit.era == "old":
        assert (await kit.fake.executor.call_tool("add", {"a": 1, "b": 1}, "a call")).text == "2"
        return
    async with anyio.create_task_group() as group:
        group.start_soon(call)
        kit.set(await kit.fifo.line(), **DONE)
    assert answers[0].text == "done"


@pytest.mark.parametrize(
    ("told", "poll_s"),
    [
        ({}, 1.0),
        ({"pollIntervalMs": 0}, 0.2),
        ({"pollIntervalMs": 5000}, 5.0),
        ({"pollInterval": 10**9}, 60.0),
        ({"pollInterval": float("nan")}, 1.0),
        ({"pollIntervalMs": 50_000, "ttlMs": 20_000}, 10.0),
    ],
)
def test_how_often_a_task_is_looked_at(told: dict[str, Any], poll_s: float) -> None:
    assert read_task({"taskId": "x", "status": "working", **told}).poll_s == poll_s


@pytest.mark.parametrize("told", [{}, {"status": "asleep"}, {"taskId": ""}, {"taskId": "x" * 2000}, {"ttlMs": "long"}])
def test_what_is_no_task(told: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_task({"task": {"taskId": "x", "status": "working", **told}} if told else {})
