"""The mcp executor against real servers: one that misbehaves on demand, and one made with the official SDK."""

import json
import os
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from omnid.clock import SystemClock
from omnid.errors import Rejected, Retryable
from omnid.executor import mcp
from omnid.executor.interface import Found
from omnid.executor.mcp import McpExecutor
from omnid.executor.mcp_schema import check_arguments
from omnid.executor.mcp_transport import MESSAGES_PER_S_MAX
from omnid.executor.supervised import Supervised
from omnid.log import Log
from omnid.model import Command, InputResponse, Result, Work
from omnid.settings import Limits
from tests.contract.executors import Ports, command_of
from tests.contract.mcp_harness import argv, executors
from tests.fakes import mcp_sdk_server
from tests.fakes.signals import WAIT_S, Fifo

LIMITS = Limits(output_head_bytes=1024, output_tail_bytes=1024, spool_bytes_max=1 << 16)

Run = Callable[..., Awaitable[Result]]


class Bench:
    """An executor, its ports, and what its server and its log wrote down."""

    def __init__(self, executor: McpExecutor, tmp_path: Path) -> None:
        self.executor = executor
        self.ports = Ports()
        self._path = tmp_path

    async def run(self, tool: str, timeout_s: float = WAIT_S, **arguments: Any) -> Result:
        return await self.attempt(self.command(tool, timeout_s, **arguments))

    def command(self, tool: str, timeout_s: float = WAIT_S, **arguments: Any) -> Command:
        work = Work(server="fake", tool=tool, arguments=arguments)
        self.executor.accepts(work)
        return command_of(work, timeout_s)

    async def attempt(self, command: Command) -> Result:
        with anyio.fail_after(2 * WAIT_S):
            return await self.executor.run(command, self.ports)

    async def printed(self, result: Result) -> str:
        spool = self.executor._supervised.spool
        return (await spool.read(result.attempt_id, 0, 1 << 20)).decode()

    def ledger(self, what: str) -> list[Any]:
        path = self._path / "ledger"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [line[what] for line in lines if what in line]

    def log(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (self._path / "log").read_text().splitlines()]
        return [line for line in lines if line["event"] == event]


@asynccontextmanager
async def bench(
    tmp_path: Path, options: dict[str, Any] | None = None, limits: Limits = LIMITS, **section: Any
) -> AsyncGenerator[Bench]:
    options = {"ledger": str(tmp_path / "ledger"), **(options or {})}
    log = Log(SystemClock(), str, path=str(tmp_path / "log"))
    async with executors(tmp_path, limits, log, **{"argv": argv(**options), **section}) as executor:
        yield Bench(executor, tmp_path)
    log.close()


@pytest.fixture
async def fake(anyio_backend: str, tmp_path: Path) -> AsyncGenerator[Bench]:
    async with bench(tmp_path) as made:
        yield made


@pytest.fixture
def fifo(tmp_path: Path) -> Any:
    made = Fifo(tmp_path / "fifo")
    yield made
    made.close()


def problem(result: Result) -> tuple[str, str, str]:
    assert result.problem is not None
    return result.outcome, result.problem.code, result.problem.what


async def test_success_gives_text_value_and_one_log_line(fake: Bench) -> None:
    result = await fake.run("add", a=1, b=2)
    assert (result.outcome, result.output, result.value) == ("success", "3", {"sum": 3})
    assert await fake.printed(result) == "3\n"
    (line,) = fake.log("mcp_call")
    assert (line["server"], line["tool"], line["outcome"], line["task"]) == ("fake", "add", "success", "t1")
    assert line["ms"] >= 0


async def test_the_call_is_noted_before_it_is_made(fake: Bench) -> None:
    command = fake.command("echo")
    await fake.attempt(command)
    assert await fake.ports.notes(command.attempt_id, "called") == [{"server": "fake", "tool": "echo"}]
    assert await fake.ports.notes(command.attempt_id, "idempotent") == []


async def test_a_call_that_can_not_be_noted_is_not_made(fake: Bench) -> None:
    class Full(Ports):
        async def note(self, attempt_id: str, kind: str, body: Any) -> None:
            raise Retryable("disk_full", detail="no room", path="/state")

    with pytest.raises(Retryable):
        await fake.executor.run(fake.command("echo"), Full())
    await fake.run("add", a=1, b=1)
    assert fake.ledger("called") == ["add"]


async def test_reported_errors_are_failures(fake: Bench) -> None:
    result = await fake.run("fail")
    assert problem(result)[:2] == ("failure", "reported_error")
    assert result.output == "goodbye"
    assert problem(await fake.run("rpc_error"))[:2] == ("failure", "reported_error")


async def test_arguments_are_checked_before_the_call(fake: Bench) -> None:
    assert problem(await fake.run("add", a=1)) == (
        "rejected",
        "bad_arguments",
        "The arguments don't fit the tool add: 'b' is a required property.",
    )
    assert problem(await fake.run("bad_schema"))[:2] == ("rejected", "bad_arguments")
    assert fake.ledger("called") == []
    assert problem(await fake.run("refuse"))[:2] == ("rejected", "bad_arguments")


async def test_an_unknown_tool_is_rejected(fake: Bench) -> None:
    outcome, code, what = problem(await fake.run("ecko"))
    assert (outcome, code) == ("rejected", "unknown_tool")
    assert "did you mean echo?" in what


async def test_templates_and_defaults_are_filled_in(anyio_backend: str, tmp_path: Path) -> None:
    section = {"tool": "echo", "arguments": {"text": "{task.id}/{attempt.number}", "other": 1}}
    async with bench(tmp_path, **section) as fake:
        command = command_of(Work(arguments={"other": 2}))
        assert (await fake.attempt(command)).output == f"{command.task_id}/1"
        assert fake.ledger("arguments") == [{"text": f"{command.task_id}/1", "other": 2}]
        wrong = command_of(Work(arguments={"text": "{task.color}"}))
        assert problem(await fake.attempt(wrong))[:2] == ("rejected", "bad_template")


async def test_notices_go_to_the_log_of_the_task(fake: Bench) -> None:
    result = await fake.run("notices")
    assert (await fake.printed(result)).splitlines() == [
        "[progress 1/3] step 1",
        "[progress 2/3] step 2",
        "[progress 3/3] step 3",
        "[info] all is well",
        "done",
    ]


async def test_what_is_no_text_is_described(fake: Bench) -> None:
    assert (await fake.run("contents")).output == (
        "first\n[image: image/png, 5 bytes]\n[resource: file:///a]\ninside\n[resource: file:///c, 5 bytes]"
    )
    assert (await fake.run("nan")).value == {"value": None}


async def test_long_texts_are_cut_in_the_middle(fake: Bench) -> None:
    result = await fake.run("huge", bytes=5000)
    assert result.output_bytes == 5000
    assert "[2952 bytes are left out here]" in (result.output or "")


async def test_garbage_second_answers_and_wrong_ids_do_no_harm(fake: Bench) -> None:
    assert (await fake.run("garbage")).output == "hello"
    assert (await fake.run("twice")).output == "first"
    assert (await fake.run("echo", text="and on")).output == "and on"
    assert len(fake.ledger("started")) == 1
    assert len(fake.log("mcp_garbage")) == 1


async def test_requests_of_the_server_are_answered(fake: Bench) -> None:
    fake.ports = Ports(InputResponse("accept", {"name": "Ada"}))
    assert (await fake.run("ask")).output == "asked"
    assert fake.ledger("error")[0] is None
    assert [type(code) for code in fake.ledger("error")[1:5]] == [int, int, type(None), int]
    assert fake.ledger("answered") == [f"q{number}" for number in range(5)]
    assert fake.ledger("result")[-1] == {"action": "accept", "content": {"name": "Ada"}}
    (request,) = fake.ports.asked.values()
    assert (request.method, request.params["message"]) == ("elicitation/create", "who?")


@pytest.mark.parametrize("tool", ["garbage_forever", "endless_line", "ask_forever"])
async def test_a_server_that_breaks_the_protocol_is_ended(fake: Bench, tool: str) -> None:
    assert problem(await fake.run(tool))[:2] == ("lost", "uncertain")
    assert (await fake.run("echo", text="again")).output == "again"
    assert len(fake.ledger("started")) == 2


async def test_a_flood_of_notices_is_slowed_down_and_harms_nobody_else(anyio_backend: str, tmp_path: Path) -> None:
    beats = 0
    async with bench(tmp_path, limits=Limits()) as fake:
        await fake.executor.probe()
        command = fake.command("flood", timeout_s=1.5)
        async with anyio.create_task_group() as group:
            group.start_soon(fake.attempt, command)
            with anyio.move_on_after(1.0):
                while True:
                    await anyio.sleep(0.01)
                    beats += 1
        (line,) = fake.log("mcp_call")
        notices = (await fake.executor._supervised.spool.read(command.attempt_id, 0, 1 << 24)).splitlines()
    assert beats > 30
    assert line["outcome"] == "lost"
    assert 0 < len(notices) < 5 * MESSAGES_PER_S_MAX


async def test_the_log_of_a_task_is_bounded(anyio_backend: str, tmp_path: Path) -> None:
    async with bench(
        tmp_path, limits=Limits(output_head_bytes=1024, output_tail_bytes=1024, spool_bytes_max=2048)
    ) as fake:
        result = await fake.run("huge", bytes=5000)
        assert result.outcome == "success"
        assert len(await fake.printed(result)) == 2048


async def test_an_unreadable_answer_leaves_it_open_what_happened(fake: Bench) -> None:
    assert problem(await fake.run("bad_result"))[:2] == ("lost", "uncertain")
    assert (await fake.run("echo")).outcome == "success"


async def test_death_in_mid_call_is_uncertain_unless_it_may_be_repeated(fake: Bench) -> None:
    outcome, code, what = problem(await fake.run("die"))
    assert (outcome, code) == ("lost", "uncertain")
    assert "exit code 9; its last words were: out of cheese" in what
    for tool in ("die_reading", "die_again"):
        command = fake.command(tool)
        assert problem(await fake.attempt(command))[:2] == ("failure", "executor_crashed")
        assert await fake.ports.notes(command.attempt_id, "idempotent") == [True]
    assert (await fake.run("echo")).outcome == "success"
    assert len(fake.ledger("started")) == 4
    assert [line["failures"] for line in fake.log("mcp_ended")] == [1, 2, 3]


async def test_the_config_may_declare_all_tools_idempotent(anyio_backend: str, tmp_path: Path) -> None:
    async with bench(tmp_path, idempotent=True) as fake:
        command = fake.command("die")
        assert problem(await fake.attempt(command))[:2] == ("failure", "executor_crashed")
        assert await fake.ports.notes(command.attempt_id, "idempotent") == [True]


async def test_death_takes_along_only_the_calls_of_that_server(fake: Bench, fifo: Fifo, tmp_path: Path) -> None:
    outcomes: list[str] = []

    async def one(bench: Bench, tool: str, **arguments: Any) -> None:
        outcomes.append((await bench.run(tool, **arguments)).outcome)

    (tmp_path / "other").mkdir()
    async with bench(tmp_path / "other", name="other") as other:
        await other.executor.probe()
        async with anyio.create_task_group() as group:
            group.start_soon(partial(one, other, "slow", s=1))
            group.start_soon(partial(one, fake, "hang_safe", fifo=fifo.path))
            await fifo.line()
            group.start_soon(one, fake, "die")
    assert sorted(outcomes) == ["failure", "lost", "success"]


async def test_a_timeout_is_passed_on_and_the_server_stays(fake: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    # On a busy machine it may take its time to start, and to show that it obeys.
    monkeypatch.setattr(mcp, "OBEY_S", WAIT_S)
    await fake.executor.probe()
    assert problem(await fake.run("hang_safe", timeout_s=0.5))[:2] == ("timeout", "attempt_timeout")
    assert problem(await fake.run("hang", timeout_s=0.5))[:2] == ("lost", "uncertain")
    assert fake.ledger("notified").count("notifications/cancelled") == 2
    assert (await fake.run("echo")).outcome == "success"
    assert len(fake.ledger("started")) == 1


async def test_a_stuck_server_is_started_again(fake: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp, "OBEY_S", 0.2)
    assert (await fake.run("deaf", timeout_s=0.5)).outcome == "lost"
    assert (await fake.run("echo", text="hi")).output == "hi"
    assert len(fake.ledger("started")) == 2


async def test_cancel_is_passed_on(fake: Bench, fifo: Fifo) -> None:
    command = fake.command("hang", fifo=fifo.path)
    results: list[Result] = []

    async def keep() -> None:
        results.append(await fake.attempt(command))

    async with anyio.create_task_group() as group:
        group.start_soon(keep)
        assert await fifo.line() == "here"
        await fake.executor.cancel(command.attempt_id)
    assert problem(results[0])[:2] == ("cancelled", "cancelled")
    assert fake.ledger("notified").count("notifications/cancelled") == 1


async def test_calls_share_one_server(fake: Bench) -> None:
    outputs: list[str | None] = []

    async def one(number: int) -> None:
        outputs.append((await fake.run("echo", text=str(number))).output)

    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(one, number)
    assert sorted(outputs, key=str) == sorted(map(str, range(20)))
    assert len(fake.ledger("started")) == 1


@pytest.mark.parametrize("era", ["old", "new"])
async def test_both_eras_and_paged_lists(anyio_backend: str, tmp_path: Path, era: str) -> None:
    async with bench(tmp_path, {"era": era, "pages": 4}) as fake:
        assert (await fake.run("add", a=2, b=3)).value == {"sum": 5}
        assert ("notifications/initialized" in fake.ledger("notified")) == (era == "old")


async def test_an_endless_list_of_tools_is_refused(anyio_backend: str, tmp_path: Path) -> None:
    async with bench(tmp_path, {"pages": 1000}) as fake:
        with pytest.raises(Retryable, match="more than 100 pages"):
            await fake.run("echo")


async def test_a_slow_start_is_waited_for(anyio_backend: str, tmp_path: Path) -> None:
    async with bench(tmp_path, {"start_s": 1}) as fake:
        assert (await fake.run("echo", text="late")).output == "late"


async def test_a_server_that_does_not_start_says_why(anyio_backend: str, tmp_path: Path) -> None:
    async with bench(tmp_path, {"exit": 3}) as fake:
        with pytest.raises(Retryable, match="exit code 3; its last words were: no license was found"):
            await fake.run("echo")
        with pytest.raises(Retryable, match="no license"):
            await fake.executor.probe()
        assert [line["outcome"] for line in fake.log("mcp_call")] == ["executor_down"]


async def test_a_program_that_is_not_there_says_so(anyio_backend: str, tmp_path: Path) -> None:
    async with bench(tmp_path, argv=("/nowhere/server",)) as fake:
        with pytest.raises(Retryable, match="could not be started"):
            await fake.executor.probe()


async def test_a_server_that_never_answers_is_given_up(anyio_backend: str, tmp_path: Path) -> None:
    async with bench(tmp_path, {"mute": True}, start_timeout_s=0.5) as fake:
        with pytest.raises(Retryable, match=r"didn't answer within 0.5 s"):
            await fake.executor.probe()


async def test_the_next_start_waits_longer_after_each_failure(anyio_backend: str, tmp_path: Path) -> None:
    async with bench(tmp_path, {"exit": 3}, start_timeout_s=5, restart_base_s=60, restart_max_s=600) as fake:
        with pytest.raises(Retryable, match="exit code 3"):
            await fake.executor.probe()
        with anyio.fail_after(2), pytest.raises(Retryable, match="failed 1 times in a row, and is started again in"):
            await fake.executor.probe()
        assert len(fake.ledger("started")) == 1


async def test_an_idle_server_is_closed_and_started_when_needed(anyio_backend: str, tmp_path: Path) -> None:
    async with bench(tmp_path, idle_s=0.2) as fake:
        await fake.run("echo")
        host = fake.executor._keeper._host
        assert host is not None
        with anyio.fail_after(WAIT_S):
            await host.gone.wait()
        assert fake.log("mcp_ended")[0]["why"] == "nobody has used it for 0.2 s"
        assert (await fake.run("slow", s=0.5)).output == "hello"
        assert fake.log("mcp_ended")[-1]["failures"] == 0


async def test_close_ends_the_server_and_its_calls(fake: Bench, fifo: Fifo) -> None:
    results: list[Result] = []

    async def keep() -> None:
        results.append(await fake.run("hang", fifo=fifo.path))

    async with anyio.create_task_group() as group:
        group.start_soon(keep)
        await fifo.line()
        await fake.executor.aclose()
    assert problem(results[0])[:2] == ("lost", "uncertain")
    (pid,) = fake.ledger("started")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(Retryable, match="being closed"):
        await fake.executor.probe()


async def test_a_server_that_an_older_daemon_left_is_ended_first(anyio_backend: str, tmp_path: Path) -> None:
    # A supervised server of another Supervised over the same spool: what a killed daemon leaves behind.
    old = await Supervised(tmp_path / "spool", SystemClock(), LIMITS, 0.3).start_server(
        "fake", argv(ledger=str(tmp_path / "ledger")), "/", dict(os.environ)
    )
    async with bench(tmp_path) as fake:
        with anyio.fail_after(WAIT_S):
            await old.send(b'{"jsonrpc": "2.0", "id": 1, "method": "tools/list"}\n')
            await old.receive()
        (pid,) = fake.ledger("started")
        os.close(old._hold)  # What the kernel does for a daemon that was killed.
        old._hold = None
        command = fake.command("echo", text="mine")
        assert await fake.executor.recover(command, fake.ports) is Found.NEVER_RAN
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        assert (await fake.attempt(command)).output == "mine"
        assert await fake.executor.recover(command, fake.ports) is Found.LOST
        assert (await fake.run("echo", text="still there")).output == "still there"
        assert len(fake.ledger("started")) == 2
    await old.terminate()


async def test_kill_of_the_server_from_outside_is_noticed_at_once(fake: Bench, fifo: Fifo) -> None:
    results: list[Result] = []

    async def keep() -> None:
        results.append(await fake.run("hang_safe", fifo=fifo.path))

    with anyio.fail_after(WAIT_S):
        async with anyio.create_task_group() as group:
            group.start_soon(keep)
            await fifo.line()
            os.kill(fake.ledger("started")[0], signal.SIGKILL)
    outcome, code, what = problem(results[0])
    assert (outcome, code) == ("failure", "executor_crashed")
    assert "SIGKILL" in what


async def test_a_server_of_the_official_sdk(anyio_backend: str, tmp_path: Path) -> None:
    async with bench(tmp_path, argv=(sys.executable, mcp_sdk_server.__file__)) as fake:
        result = await fake.run("add", a=1, b=2)
        assert (result.outcome, result.output, result.value) == ("success", "3", {"result": 3})
        assert "[progress 1/2] half of it" in await fake.printed(await fake.run("report"))
        assert problem(await fake.run("broken"))[:2] == ("failure", "reported_error")
        assert problem(await fake.run("add", a="x", b=2))[:2] == ("rejected", "bad_arguments")


def test_only_tool_calls_are_accepted(tmp_path: Path) -> None:
    async def body() -> None:
        async with bench(tmp_path) as fake:
            for work, code in (
                (Work(argv=("ls",)), "wrong_executor"),
                (Work(prompt="hi"), "wrong_executor"),
                (Work(server="fake"), "nothing_to_do"),
                (Work(tool="a", check=("true",)), "bad_request"),
                (Work(tool="a", stdin="x"), "bad_request"),
            ):
                with pytest.raises(Rejected) as caught:
                    fake.executor.accepts(work)
                assert caught.value.code == code

    anyio.run(body)


def doubling(depth: int) -> dict[str, Any]:
    made = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(depth)}
    return {"$defs": {**made, f"d{depth}": {}}, "$ref": "#/$defs/d0"}


@pytest.mark.parametrize(
    ("schema", "detail"),
    [
        (doubling(40), "takes more than"),
        ({"$ref": "#"}, "can't be used"),
        ({"$ref": "https://example.com/schema"}, "can't be used"),
        ({"type": "nonsense"}, "can't be used"),
        ({"$schema": 5}, "can't be used"),
        ({"description": "x" * 300_000}, "has more than"),
        ({"properties": {"a": {"maximum": 1}}}, "a: 2 is greater"),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "required": ["b"]}, "'b' is a required"),
    ],
)
def test_schemas_that_do_not_hold(schema: dict[str, Any], detail: str) -> None:
    with pytest.raises(Rejected, match=detail):
        check_arguments("tool", schema, {"a": 2})


def test_patterns_are_left_to_the_server() -> None:
    evil = "(a+)+$"
    schema = {"properties": {"a": {"pattern": evil}}, "allOf": [{"patternProperties": {evil: {}}}]}
    arguments = {"a": "a" * 40 + "b", "a" * 40 + "b": 1}
    check_arguments("tool", {**schema, "additionalProperties": False, "unevaluatedProperties": False}, arguments)
