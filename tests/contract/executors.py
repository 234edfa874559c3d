"""The executors that the contract suite holds to account; another one joins by an entry in `HARNESSES`."""

import os
import sys
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, Protocol, TextIO

import anyio

from omnid.clock import SystemClock
from omnid.executor.command import CommandExecutor
from omnid.executor.interface import Executor
from omnid.executor.supervised import Supervised
from omnid.log import Log
from omnid.model import Command, InputRequest, InputResponse, Outcome, Work
from omnid.secrets import Secrets
from omnid.settings import CommandExecutor as Section
from omnid.settings import Limits
from tests.contract import mcp_harness
from tests.fakes.executor import Crash, InProcessExecutor

HALF_BYTES = 4096
LIMITS = Limits(output_head_bytes=HALF_BYTES, output_tail_bytes=HALF_BYTES, spool_bytes_max=1 << 20)
KILL_GRACE_S = 0.3
HUGE_BYTES = 300_000
BINARY = bytes(range(256)) * 4


class Harness(Protocol):
    """An executor together with work that makes it do what a test needs.

    What there is: ``success`` (says hello), ``failure`` (says goodbye, then fails), ``huge`` (prints `HUGE_BYTES`),
    ``binary`` (prints `BINARY`), ``hang`` (writes a line to the FIFO, then never ends), ``crash``, ``slow_start`` (is
    ready after a second, then says hello), ``no_start``.
    """

    executor: Executor

    def work(self, what: str, fifo: str) -> Work: ...


class Ports:
    """Notes in memory, and a person who answers what `answer` says."""

    def __init__(self, answer: InputResponse | None = None) -> None:
        self._notes: list[tuple[str, str, Any]] = []
        self._answer = answer
        self.asked: dict[str, InputRequest] = {}
        self.withdrawn: list[str] = []
        self.may_be_asking: set[str] = set()

    async def note(self, attempt_id: str, kind: str, body: Any) -> None:
        self._notes.append((attempt_id, kind, body))

    async def notes(self, attempt_id: str, kind: str) -> list[Any]:
        return [body for attempt, of_kind, body in self._notes if (attempt, of_kind) == (attempt_id, kind)]

    async def ask(self, attempt_id: str, requests: Mapping[str, InputRequest]) -> dict[str, InputResponse]:
        self.asked |= requests
        if self._answer is None:
            await anyio.sleep_forever()
        assert self._answer is not None
        return dict.fromkeys(requests, self._answer)

    def may_ask(self, attempt_id: str, *, may: bool) -> None:
        (self.may_be_asking.add if may else self.may_be_asking.discard)(attempt_id)

    async def withdraw(self, attempt_id: str, names: Collection[str]) -> None:
        self.withdrawn += names


class CommandHarness:
    """Small shell and Python programs."""

    def __init__(self, executor: CommandExecutor) -> None:
        self.executor = executor

    def work(self, what: str, fifo: str) -> Work:
        programs: dict[str, tuple[str, ...]] = {
            "success": ("echo", "hello"),
            "failure": ("sh", "-c", "echo goodbye >&2; exit 7"),
            "huge": ("head", "-c", str(HUGE_BYTES), "/dev/zero"),
            "binary": (sys.executable, "-S", "-c", f"import os; os.write(1, {BINARY!r})"),
            "hang": ("sh", "-c", 'echo here > "$0"; exec sleep 600', fifo),
            "crash": ("sh", "-c", "kill -SEGV $$"),
            "slow_start": ("sh", "-c", "sleep 1; echo hello"),
            "no_start": ("/nowhere/to/be/found",),
        }
        return Work(argv=programs[what])


def commands(
    tmp_path: Path, section: Section | None = None, limits: Limits = LIMITS, logged: TextIO | None = None
) -> CommandExecutor:
    """Makes a command executor whose spool lies under the path."""
    clock = SystemClock()
    supervised = Supervised(tmp_path / "spool", clock, limits, KILL_GRACE_S)
    log = Log(clock, str, stream=logged or StringIO()).logger()
    return CommandExecutor(section or Section(name="command"), supervised, Secrets(os.environ), os.environ, log=log)


def command_of(work: Work, timeout_s: float = 60.0, attempt: str | None = None) -> Command:
    """Makes an attempt out of work."""
    clock = SystemClock()
    return Command(attempt or clock.uuid(), clock.uuid(), 1, "t1", "command", work, timeout_s)


class InProcessHarness:
    """Functions of this process."""

    def __init__(self) -> None:
        self.executor = InProcessExecutor("in_process", self._do, HALF_BYTES)

    def work(self, what: str, fifo: str) -> Work:
        return Work(argv=(what, fifo))

    async def _do(self, argv: tuple[str, ...]) -> tuple[Outcome, bytes]:
        what, fifo = argv
        if what == "hang":
            await anyio.Path(fifo).write_text("here\n")
            await anyio.sleep_forever()
        if what == "crash":
            raise Crash("it fell over")
        if what == "no_start":
            raise FileNotFoundError(what)
        await anyio.sleep(0.1 if what == "slow_start" else 0)
        printed = {"failure": b"goodbye\n", "huge": bytes(HUGE_BYTES), "binary": BINARY}
        return ("failure" if what == "failure" else "success"), printed.get(what, b"hello\n")


@asynccontextmanager
async def _command(tmp_path: Path) -> AsyncGenerator[Harness]:
    executor = commands(tmp_path)
    yield CommandHarness(executor)
    await executor.aclose()


@asynccontextmanager
async def _in_process(tmp_path: Path) -> AsyncGenerator[Harness]:
    harness = InProcessHarness()
    yield harness
    await harness.executor.aclose()


HARNESSES: dict[str, Callable[[Path], AbstractAsyncContextManager[Harness]]] = {
    "command": _command,
    "in_process": _in_process,
    "mcp": partial(mcp_harness.harness, limits=LIMITS),
    "mcp_http": partial(mcp_harness.http_harness, limits=LIMITS, events=True),
    "mcp_http_json": partial(mcp_harness.http_harness, limits=LIMITS, events=False),
}
