"""Turns what a supervisor wrote down into a result: how the command ended, what it said, and what its check found."""

import errno
import os
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import anyio
import anyio.to_thread
import msgspec

from omnid.executor.agent_reading import AgentReading
from omnid.executor.ends import bad_result, exit_problem, last_line, reported_problem, sentence, shortened
from omnid.executor.profiles.answers import find
from omnid.executor.profiles.known import PROFILES
from omnid.executor.records import Exit, How, Spec, describe, signal_name
from omnid.executor.spool import Spool
from omnid.model import Command, Outcome, Park, Problem, Result
from omnid.worker import supervisor

RESULT_BYTES_MAX = 1 << 20
"""The largest JSON result that is read."""
TRANSIENT = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ETXTBSY, errno.EIO, errno.ENOSPC}
"""Why a program may not start now and yet start later; all else is as permanent as the command."""


class Reading:
    """The reading of one attempt that has ended. It goes by the spec, because the config may have changed since."""

    def __init__(self, spool: Spool, command: Command, spec: Spec, ended: Exit, zone: ZoneInfo) -> None:
        self._spool = spool
        self._command = command
        self._spec = spec
        self._exit = ended
        self._value: Any = None
        self._output = ""
        self._cost_usd: float | None = None
        self._park: Park | None = None
        profile = None if spec.agent is None else PROFILES.get(spec.agent.profile)
        self.agent = None if profile is None else AgentReading(profile, command, spec, ended, zone)

    async def result(self) -> Result:
        """Reads the output, decides the outcome, and says why."""
        self._output = await self._spool.excerpt(self._command.attempt_id)
        if self._exit.dropped_bytes:
            self._output += f"\n[{self._exit.dropped_bytes} more bytes were dropped: no room in the spool]\n"
        if self.agent is not None:
            await self.agent.read(self._spool, self._output)
        outcome, problem = self._ended() or await self._finished()
        if self.agent is not None:
            self._take_agent(self.agent)
        return msgspec.structs.replace(
            self._command.ended(outcome, problem),
            exit_code=self._exit.code,
            output=self._output,
            output_bytes=self._exit.total_bytes,
            value=self._value,
            cost_usd=self._cost_usd,
            park=self._park,
        )

    def _take_agent(self, agent: AgentReading) -> None:
        self._park = agent.park
        self._value, self._cost_usd = agent.reported.document, agent.reported.cost_usd
        if agent.reported.output is not None:
            self._output = agent.reported.output

    def _ended(self) -> tuple[Outcome, Problem] | None:
        """Decides where the attempt was ended from outside or never started; None where the command ended by itself."""
        end, check = self._exit, self._exit.check
        ended_by = end.ended_by or (check.ended_by if check else None)
        if ended_by == "cancel":
            return "cancelled", Problem.make("cancelled", detail=sentence(describe(check or end)))
        if ended_by == "timeout":
            return "timeout", Problem.make("attempt_timeout", timeout_s=self._spec.timeout_s)
        if ended_by is not None:
            return "lost", Problem.make("supervisor_lost", detail="The system was shut down, or somebody sent SIGTERM.")
        if end.no_start is not None:
            step, number = end.no_start
            problem = _no_start(self._spec, step, number, os.strerror(number))
            return ("failure" if number in TRANSIENT else "rejected"), problem
        if end.signal is not None:
            return "failure", Problem.make("killed_by_signal", signal=signal_name(end.signal), task=self._command.name)
        return None

    async def _finished(self) -> tuple[Outcome, Problem | None]:
        """Decides where the command ended by itself: by its code, its own word, and the check."""
        if self.agent is not None:
            return self.agent.verdict() or await self._checked(self._exit.check)
        reported = bad = None
        if self._spec.mapping:
            reported, bad = await self._read_mapped()
        if self._exit.code not in self._spec.success_exit_codes:
            return "failure", exit_problem(self._command, self._exit, reported or last_line(self._output))
        if bad is not None:
            return "failure", bad
        if reported is not None:
            return "failure", reported_problem(self._command, self._spec, reported)
        return await self._checked(self._exit.check)

    async def _checked(self, check: How | None) -> tuple[Outcome, Problem | None]:
        if check is None or check.code == 0:
            return "success", None
        printed = await self._spool.excerpt(self._command.attempt_id, check=True)
        detail = f"{describe(check)} and said last: {last_line(printed)}"
        return "failure", Problem.make("check_failed", detail=detail, task=self._command.name)

    async def _read_mapped(self) -> tuple[str | None, Problem | None]:
        """Takes value, output and cost out of a JSON result; gives the error that it reports, or why it is none."""
        path = self._spool.directory(self._command.attempt_id) / supervisor.STDOUT
        try:
            self._value = await anyio.to_thread.run_sync(_read_json, path)
        except ValueError as error:
            return None, bad_result(self._spec, self._exit, str(error))
        output, error, is_error, cost = (self._at(key) for key in ("output", "error", "is_error", "cost_usd"))
        if output is not None:
            self._output = output if isinstance(output, str) else msgspec.json.encode(output).decode()
        if isinstance(cost, int | float) and not isinstance(cost, bool) and cost >= 0:
            self._cost_usd = float(cost)
        if is_error is True or (error and "is_error" not in self._spec.mapping):
            text = error if isinstance(error, str) and error else self._output
            return shortened(text) or "it doesn't say what", None
        return None, None

    def _at(self, key: str) -> Any:
        path = self._spec.mapping.get(key)
        return None if path is None else find(self._value, path)


def _no_start(spec: Spec, step: str, number: int, said: str) -> Problem:
    if step == "chdir":
        return Problem.make("bad_cwd", cwd=spec.cwd, why=f"The system says: {said}.")
    if number == errno.EACCES and "/" not in spec.argv[0]:
        detail = "What is there in the directories of PATH may not be run by this user."
        return Problem.make("command_not_found", program=spec.argv[0], detail=detail)
    if number == errno.ENOENT:
        where = "It, or the interpreter that its first line names, is not there"
        detail = f"{where}." if "/" in spec.argv[0] else f"{where} in the directories of PATH."
        return Problem.make("command_not_found", program=spec.argv[0], detail=detail)
    return Problem.make("command_no_start", program=spec.argv[0], detail=said)


def _read_json(path: Path) -> Any:
    """Reads a JSON file; raises ValueError where it is none, or too large."""
    with path.open("rb") as file:
        content = file.read(RESULT_BYTES_MAX + 1)
    if len(content) > RESULT_BYTES_MAX:
        raise ValueError(f"it has more than {RESULT_BYTES_MAX} bytes")
    try:
        return msgspec.json.decode(content)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(str(error)) from error
