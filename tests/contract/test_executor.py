"""What every executor keeps, whatever it calls."""

import contextlib
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import anyio
import pytest

from omnid.errors import Rejected, Retryable
from omnid.executor.interface import Found
from omnid.model import Command, Result, Work
from tests.contract.executors import BINARY, HALF_BYTES, HARNESSES, HUGE_BYTES, Harness, Ports, command_of
from tests.fakes.signals import WAIT_S, Fifo


@pytest.fixture(params=sorted(HARNESSES))
async def harness(request: pytest.FixtureRequest, anyio_backend: str, tmp_path: Path) -> AsyncGenerator[Harness]:
    async with HARNESSES[request.param](tmp_path) as made:
        yield made


@pytest.fixture
def fifo(tmp_path: Path) -> Generator[Fifo]:
    made = Fifo(tmp_path / "fifo")
    yield made
    made.close()


async def run(harness: Harness, command: Command) -> Result:
    """Runs an attempt; what every result must say is checked here."""
    with anyio.fail_after(WAIT_S):
        result = await harness.executor.run(command, Ports())
    assert (result.attempt_id, result.task_id, result.number) == (command.attempt_id, command.task_id, command.number)
    assert (result.problem is None) == (result.outcome == "success")
    if result.problem is not None:
        assert all(sentence and "{" not in sentence for sentence in (result.problem.what, result.problem.why))
        assert result.problem.do
    assert result.cost_usd is None
    return result


async def test_success(harness: Harness, fifo: Fifo) -> None:
    work = harness.work("success", fifo.path)
    harness.executor.accepts(work)
    result = await run(harness, command_of(work))
    assert result.outcome == "success"
    assert (result.output or "").strip() == "hello"


async def test_failure_keeps_what_was_said(harness: Harness, fifo: Fifo) -> None:
    result = await run(harness, command_of(harness.work("failure", fifo.path)))
    assert result.outcome == "failure"
    assert "goodbye" in (result.output or "")


async def test_huge_output_is_cut_in_the_middle(harness: Harness, fifo: Fifo) -> None:
    result = await run(harness, command_of(harness.work("huge", fifo.path)))
    assert result.outcome == "success"
    assert result.output is not None
    assert len(result.output) < 2 * 4 * HALF_BYTES + 200
    assert f"[{HUGE_BYTES - 2 * HALF_BYTES} bytes are left out here]" in result.output
    assert result.output_bytes == HUGE_BYTES


async def test_binary_output_becomes_text(harness: Harness, fifo: Fifo) -> None:
    result = await run(harness, command_of(harness.work("binary", fifo.path)))
    assert result.outcome == "success"
    assert result.output is not None
    assert "\0" not in result.output
    assert r"\x00" in result.output
    assert r"\xff" in result.output
    assert result.output.encode()
    assert result.output_bytes == len(BINARY)


async def test_timeout(harness: Harness, fifo: Fifo) -> None:
    result = await run(harness, command_of(harness.work("hang", fifo.path), timeout_s=0.5))
    assert result.outcome == "timeout"
    assert result.problem is not None
    assert result.problem.code == "attempt_timeout"


async def test_cancel_ends_what_runs(harness: Harness, fifo: Fifo) -> None:
    command = command_of(harness.work("hang", fifo.path))
    results: list[Result] = []

    async def keep() -> None:
        results.append(await run(harness, command))

    async with anyio.create_task_group() as group:
        group.start_soon(keep)
        assert await fifo.line() == "here"
        await harness.executor.cancel(command.attempt_id)
    assert [result.outcome for result in results] == ["cancelled"]


async def test_cancel_before_the_start_is_heard(harness: Harness, fifo: Fifo) -> None:
    command = command_of(harness.work("hang", fifo.path))
    results: list[Result] = []

    async def keep() -> None:
        results.append(await run(harness, command))

    async with anyio.create_task_group() as group:
        group.start_soon(keep)
        await anyio.wait_all_tasks_blocked()
        await harness.executor.cancel(command.attempt_id)
    assert [result.outcome for result in results] == ["cancelled"]


async def test_cancel_of_an_unknown_attempt_does_nothing(harness: Harness) -> None:
    await harness.executor.cancel("01980000-0000-7000-8000-000000000000")


async def test_crash_is_no_success(harness: Harness, fifo: Fifo) -> None:
    result = await run(harness, command_of(harness.work("crash", fifo.path)))
    assert result.outcome in {"failure", "lost"}


async def test_slow_start_is_waited_for(harness: Harness, fifo: Fifo) -> None:
    result = await run(harness, command_of(harness.work("slow_start", fifo.path)))
    assert result.outcome == "success"
    assert (result.output or "").strip() == "hello"


async def test_no_start_is_permanent_or_the_executors_own(harness: Harness, fifo: Fifo) -> None:
    outcome = "executor_down"
    with contextlib.suppress(Retryable):
        outcome = (await run(harness, command_of(harness.work("no_start", fifo.path)))).outcome
    assert outcome in {"executor_down", "rejected"}


async def test_nothing_to_do_is_refused(harness: Harness) -> None:
    with pytest.raises(Rejected):
        harness.executor.accepts(Work())


async def test_an_attempt_that_left_nothing_never_ran(harness: Harness, fifo: Fifo) -> None:
    command = command_of(harness.work("success", fifo.path))
    assert await harness.executor.recover(command, Ports()) is Found.NEVER_RAN


async def test_attempts_run_side_by_side(harness: Harness, fifo: Fifo) -> None:
    outcomes: list[str] = []

    async def one(what: str) -> None:
        outcomes.append((await run(harness, command_of(harness.work(what, fifo.path)))).outcome)

    async with anyio.create_task_group() as group:
        for what in ("success", "failure") * 4:
            group.start_soon(one, what)
    assert sorted(outcomes) == ["failure"] * 4 + ["success"] * 4


async def test_probe_of_a_working_executor_is_quiet(harness: Harness) -> None:
    with anyio.fail_after(WAIT_S):
        await harness.executor.probe()
