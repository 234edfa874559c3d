"""Tasks of MCP servers: called once, written down before anybody waits, and followed by whichever daemon there is."""

from typing import Any

import anyio
import pytest

from omnid.errors import Rejected, Retryable
from omnid.executor import mcp_follow
from omnid.executor.interface import Found
from omnid.executor.mcp_tasks import read_task
from omnid.model import Command, Result
from omnid.retry import Backoff
from tests.contract.executors import Ports
from tests.fakes.mcp_http_server import Exchange
from tests.fakes.signals import WAIT_S
from tests.unit.mcp_kit import DONE, Kit, each_way, each_way_of_http, left_behind
from tests.unit.test_mcp_executor import problem

pytestmark = pytest.mark.anyio

SAID = {"code": -32000, "message": "it is raining"}


@each_way
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


@each_way
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


@each_way
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


@each_way
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


@each_way
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


@each_way
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


@each_way
async def test_a_success_that_came_first_stands(kit: Kit) -> None:
    command, id = await left_behind(kit)
    kit.set(id, **DONE)
    async with kit.daemon() as fake:
        await fake.executor.recover(command, kit.ports)
        await fake.executor.cancel(command.attempt_id)
        with anyio.fail_after(WAIT_S):
            assert (await fake.executor.adopt(command, kit.ports)).output == "done"


@each_way
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


@each_way_of_http
async def test_a_look_that_is_not_answered_is_given_up_and_done_again(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omnid.executor.mcp_session.LOOK_S", 0.3)
    monkeypatch.setattr(mcp_follow, "AWAY", Backoff(base_s=0.05, max_s=0.1))
    hung: list[bool] = []

    def hook(exchange: Exchange, message: dict[str, Any]) -> bool:
        if message.get("method") != "tasks/get" or hung:
            return False
        hung.append(True)
        exchange.until_hung_up()
        return True

    assert kit.server is not None
    kit.server.hooks.append(hook)
    assert (await kit.ended(kit.job(), DONE)).output == "done"
    assert hung
    assert len(kit.fake.log("mcp_task_waits")) == 1


@each_way
@pytest.mark.parametrize(
    "error",
    [
        Retryable("disk_full", detail="no room", path="/state"),
        Rejected("too_many", count=9, things="notes of one attempt", limit=8, setting="limits.notes_max"),
    ],
    ids=["disk", "notes"],
)
async def test_a_task_that_can_not_be_noted_is_followed_all_the_same(kit: Kit, error: Exception) -> None:
    class Full(Ports):
        async def note(self, attempt_id: str, kind: str, body: Any) -> None:
            if kind == "remote_task":
                raise error

    kit.fake.ports = Full()
    assert (await kit.ended(kit.job(), DONE)).output == "done"
    assert len(kit.fake.log("mcp_task_not_noted")) == 1


@each_way
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
    async with anyio.create_task_group() as group:
        group.start_soon(call)
        (kit.tasks / await kit.fifo.line()).unlink()
    assert (answers[1].kind, "knows its task no more" in answers[1].text) == ("unknown", True)


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
