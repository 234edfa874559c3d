"""An executor inside the process: the second implementation of the interface, for tests that need no processes."""

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import anyio

from omnid.errors import Rejected
from omnid.executor.allowance import Allowance
from omnid.executor.interface import Found, Ports
from omnid.executor.spool import excerpt
from omnid.model import Command, InputRequest, InputResponse, Outcome, Problem, Result, Work

asks: ContextVar[Callable[[dict[str, InputRequest]], Awaitable[dict[str, InputResponse]]]] = ContextVar("asks")
"""What work calls to ask a person."""


class Crash(Exception):
    """Raised by work that breaks off."""


class InProcessExecutor:
    """Calls `do(argv)`, which gives the outcome and what it printed; nothing of it outlives the process."""

    kind = "in_process"

    def __init__(
        self, name: str, do: Callable[[tuple[str, ...]], Awaitable[tuple[Outcome, bytes]]], half_bytes_max: int = 65536
    ) -> None:
        self.name = name
        self.concurrency: int | None = None
        self.idempotent = False
        self.takes_prompts = False
        self._do = do
        self._half_bytes_max = half_bytes_max
        self._scopes: dict[str, anyio.CancelScope] = {}

    def accepts(self, work: Work) -> None:
        if not work.argv or not work.argv[0]:
            raise Rejected("nothing_to_do", detail="no program")

    def exact(self, work: Work) -> Work:
        return work

    async def probe(self) -> None:
        pass

    async def run(self, command: Command, ports: Ports) -> Result:
        allowance = Allowance(command.timeout_s)

        async def ask(requests: dict[str, InputRequest]) -> Any:
            with allowance.held():
                return await ports.ask(command.attempt_id, requests)

        asks.set(ask)
        output, problem = b"", None
        outcome: Outcome = "timeout"
        cancelled = self._scopes[command.attempt_id] = anyio.CancelScope()
        try:
            with allowance.scope, cancelled:
                outcome, output = await self._do(command.work.argv or ())
        except FileNotFoundError as error:
            outcome, problem = (
                "rejected",
                Problem.make("command_not_found", program=str(error), detail="It isn't known."),
            )
        except Crash as error:
            outcome = "failure"
            problem = Problem.make("executor_crashed", executor=self.name, detail=str(error), task=command.name)
        finally:
            del self._scopes[command.attempt_id]
        if cancelled.cancelled_caught:
            outcome, problem = "cancelled", Problem.make("cancelled", detail="It was cut off.")
        elif outcome == "timeout":
            problem = Problem.make("attempt_timeout", timeout_s=command.timeout_s)
        elif outcome == "failure" and problem is None:
            problem = Problem.make("exit_code", code=1, detail="It said so.", task=command.name)
        half, left_out = self._half_bytes_max, max(0, len(output) - 2 * self._half_bytes_max)
        text = excerpt(output[:half], left_out, output[half + left_out :])
        return Result(
            command.attempt_id,
            command.task_id,
            command.number,
            outcome,
            problem,
            output=text,
            output_bytes=len(output),
        )

    async def recover(self, command: Command, ports: Ports) -> Found:
        return Found.LOST if command.recover else Found.NEVER_RAN

    async def adopt(self, command: Command, ports: Ports) -> Result:
        raise NotImplementedError

    async def cancel(self, attempt_id: str) -> None:
        if attempt_id in self._scopes:
            self._scopes[attempt_id].cancel()

    async def settled(self, attempt_id: str) -> None:
        """Nothing was kept."""

    async def aclose(self) -> None:
        for scope in self._scopes.values():
            scope.cancel()
