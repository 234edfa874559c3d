import json
from io import StringIO

import anyio
import pytest

from omnid.clock import SystemClock
from omnid.errors import Fatal, Rejected, Retryable
from omnid.flow.guard import first, guard
from omnid.log import Log, Logger

pytestmark = pytest.mark.anyio


@pytest.fixture
def stream() -> StringIO:
    return StringIO()


@pytest.fixture
def log(stream: StringIO) -> Logger:
    return Log(SystemClock(), lambda text: text, stream=stream).logger()


def lines(stream: StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


async def fail(error: BaseException) -> None:
    await anyio.lowlevel.checkpoint()
    raise error


async def test_it_ends_alone_and_is_logged_once(log: Logger, stream: StringIO) -> None:
    went_on = anyio.Event()

    async def neighbour() -> None:
        await anyio.wait_all_tasks_blocked()
        went_on.set()

    async def client() -> None:
        await guard("client 7", fail, Rejected("unknown_task", task="t7", hint=""), log=log)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client)
        tasks.start_soon(neighbour)
    assert went_on.is_set()
    (line,) = lines(stream)
    assert (line["event"], line["name"], line["level"]) == ("guard_ended", "client 7", "error")
    assert line["problem"]["code"] == "unknown_task"


async def test_a_fault_is_logged_with_its_traceback(log: Logger, stream: StringIO) -> None:
    await guard("x", fail, ValueError("odd"), log=log)
    (line,) = lines(stream)
    assert "ValueError: odd" in str(line["exception"])


@pytest.mark.parametrize("deep", [False, True])
async def test_fatal_passes(log: Logger, stream: StringIO, deep: bool) -> None:
    fatal = Fatal("store_io", path="/x", detail="EIO")
    error = ExceptionGroup("", [ValueError(), ExceptionGroup("", [fatal])]) if deep else fatal
    with pytest.raises(Fatal):
        await guard("x", fail, error, log=log)
    assert lines(stream) == []


async def test_cancellation_passes_without_a_line(log: Logger, stream: StringIO) -> None:
    with anyio.move_on_after(0) as scope:
        await guard("x", anyio.sleep_forever, log=log)
    assert scope.cancelled_caught
    assert lines(stream) == []


async def test_an_error_beside_a_cancellation_is_logged_and_the_cancellation_goes_on(
    log: Logger, stream: StringIO
) -> None:
    async def both() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(last_word)
            await anyio.sleep_forever()

    async def last_word() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("while it ended")

    with anyio.move_on_after(0.01):
        await guard("x", both, log=log)
    (line,) = lines(stream)
    assert "while it ended" in str(line["exception"])


def test_the_error_that_decides_is_found_in_a_group() -> None:
    full, gone = Retryable("disk_full", path="/x", detail="y"), Rejected("unknown_task", task="t7", hint="")
    fault, fatal = ValueError("odd"), Fatal("store_io", path="/x", detail="EIO")
    assert first(fault) is fault
    assert first(ExceptionGroup("", [full, gone])) is full
    assert first(ExceptionGroup("", [full, ExceptionGroup("", [gone, fault])])) is fault
    assert first(ExceptionGroup("", [fault, ExceptionGroup("", [fatal, full])])) is fatal
    assert first(BaseExceptionGroup("", [KeyboardInterrupt(), full])) is full
