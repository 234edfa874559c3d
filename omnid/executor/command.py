"""The command executor: programs under a supervisor, which go on while the daemon is away."""

import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import anyio
import anyio.to_thread
import msgspec

from omnid.errors import Rejected, Retryable
from omnid.executor.environment import gather, names_for
from omnid.executor.interface import Found, Ports
from omnid.executor.records import Exit, How, Spec, describe, signal_name
from omnid.executor.supervised import Supervised
from omnid.executor.template import fill
from omnid.executor.workspace import Workspaces, uses
from omnid.model import Command, Outcome, Problem, Result, Work
from omnid.secrets import Secrets
from omnid.settings import CommandExecutor as Section
from omnid.worker import supervisor

TASK = "OMNID_TASK"
RESULT_BYTES_MAX = 1 << 20
"""The largest JSON result that is read."""
DETAIL_CHARS_MAX = 300
PROBE_TIMEOUT_S = 10.0
ROOM = {"workspace_full", "workspace_down"}
MENDED = {"setup_failed"}
"""What may be over at the next attempt, though nothing but an attempt finds that out."""
TRANSIENT = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ETXTBSY, errno.EIO, errno.ENOSPC}
"""Why a program may not start now and yet start later; all else is as permanent as the command."""


class CommandExecutor:
    """Implements `interface.Executor` for one ``[[executor]]`` section of kind ``command``.

    `environ` is the daemon's environment, of which commands get little. Without `workspaces` all tasks run where they
    are.
    """

    kind = "command"

    def __init__(
        self,
        section: Section,
        supervised: Supervised,
        secrets: Secrets,
        environ: Mapping[str, str],
        workspaces: Workspaces | None = None,
    ) -> None:
        self.name = section.name
        self.concurrency = section.concurrency
        self.idempotent = section.idempotent
        self._section = section
        self._supervised = supervised
        self._secrets = secrets
        self._environ = environ
        self._workspaces = workspaces
        self._cancelled: dict[str, bool] = {}
        """The attempts that `run` works on, and whether a cancel came for them."""

    def accepts(self, work: Work) -> None:
        """See `Executor.accepts`."""
        if work.tool is not None or work.server is not None or work.prompt is not None:
            wanted = "a tool call" if work.tool is not None else "a prompt"
            raise Rejected("wrong_executor", executor=self.name, kind=self.kind, wanted=wanted)
        argv = (*self._section.argv, *(work.argv or ()))
        if not argv or not argv[0]:
            raise Rejected("nothing_to_do", detail="no program")
        for where, texts in (("argv", argv), ("check", work.check or ("true",)), ("env", work.env)):
            if not all(_is_plain(text) for text in texts) or (where == "check" and not texts[0]):
                raise Rejected("bad_request", detail=f"{where} holds an empty or unreadable text", where=where)
        if any("=" in name or not name for name in work.env):
            raise Rejected("bad_request", detail="env holds more than names of variables", where="env")
        if work.cwd is not None:
            _check_cwd(work.cwd)

    def exact(self, work: Work) -> Work:
        """See `Executor.exact`: the config's argv before the task's, and the directory."""
        argv = (*self._section.argv, *(work.argv or ()))
        return msgspec.structs.replace(work, argv=argv, cwd=self._cwd(work))

    async def probe(self) -> None:
        """See `Executor.probe`: runs the config's probe, or else looks for the config's program."""
        environment = await self._environment(self._names())
        if self._section.probe:
            await self._run_probe(environment)
        elif self._section.argv and shutil.which(self._section.argv[0], path=environment.get("PATH")) is None:
            raise self._down(f"{self._section.argv[0]} was not found in PATH")
        if self._workspaces is not None and uses(self._section):
            await self._workspaces.check()

    async def run(self, command: Command, ports: Ports) -> Result:  # noqa: ARG002 - the records tell all.
        """See `Executor.run`. An attempt that has begun before isn't begun again; its result is given."""
        attempt = command.attempt_id
        self._cancelled[attempt] = False
        try:
            environment = await self._environment((*self._names(), *command.work.env))
            try:
                spec = self._spec(command, await self._place(command))
            except Rejected as error:
                return _ended(command, "failure" if error.code in MENDED else "rejected", Problem.of(error))
            except Retryable as error:
                if error.code not in ROOM or uses(self._section):
                    raise
                # The executor's other tasks need no workspace, so only this one waits.
                return _ended(command, "unstarted", Problem.of(error))
            if self._cancelled[attempt]:
                return _ended(command, "cancelled", Problem.make("cancelled", detail="It had not started."))
            await self._supervised.start(spec, environment | {TASK: command.task_id}, command.work.stdin)
            if self._cancelled[attempt]:
                await self._supervised.cancel(attempt)
            result = await self._finish(command)
        finally:
            del self._cancelled[attempt]
        if result is not None and self._lacks_own_program(result):
            # Not the task's fault: it waits until the program is there again (while it is upgraded, say).
            await self._supervised.spool.remove(attempt)
            raise self._down(f"{self._section.argv[0]} was not found")
        if result is None and not self._supervised.spool.directory(attempt).exists():
            detail = "Its directory in the spool was removed while it ran, and with it all that was known."
            return _ended(command, "lost", Problem.make("supervisor_lost", detail=detail))
        if result is None:
            raise self._down(f"its supervisor ended before it began: {self._supervised.last_error(attempt)}")
        return result

    async def recover(self, command: Command, ports: Ports) -> Found:  # noqa: ARG002 - the records tell all.
        """See `Executor.recover`."""
        return await self._supervised.look(command.attempt_id)

    async def adopt(self, command: Command, ports: Ports) -> Result:
        """See `Executor.adopt`; what was found running and turns out not to have begun is run."""
        return await self._finish(command) or await self.run(command, ports)

    async def cancel(self, attempt_id: str) -> None:
        """See `Executor.cancel`."""
        if attempt_id in self._cancelled:
            self._cancelled[attempt_id] = True
        await self._supervised.cancel(attempt_id)

    async def settled(self, attempt_id: str) -> None:
        """See `Executor.settled`: the control files go, the output stays."""
        await self._supervised.spool.forget_control_files(attempt_id)

    async def aclose(self) -> None:
        """See `Executor.aclose`: there is nothing to let go of, as supervised commands go on by themselves."""

    async def _finish(self, command: Command) -> Result | None:
        """Waits for the attempt's end and reads its result; None where it never began.

        It goes by the spec in the spool, because the config may have changed since the start.
        """
        supervised, attempt = self._supervised, command.attempt_id
        trace = await supervised.wait(attempt, command.timeout_s)
        spec = supervised.spec(attempt)
        if trace.ran and trace.exit is None and spec is not None:
            environment = await self._environment(spec.env)
            await supervised.start(spec, environment | {TASK: command.task_id})
            trace = await supervised.wait(attempt, command.timeout_s)
        if trace.exit is not None and spec is not None:
            result = await _Reading(supervised, command, spec, trace.exit).result()
            return result if self._workspaces is None else await self._workspaces.leave(command, result)
        if not trace.began:
            return None
        detail = "It left no record of an end, and nobody knows how far the command came."
        return _ended(command, "lost", Problem.make("supervisor_lost", detail=detail))

    async def _place(self, command: Command) -> str:
        """Gives the directory that the attempt runs in; see `Workspaces.enter`."""
        directory = self._cwd(command.work)
        if self._workspaces is None:
            return directory
        return await self._workspaces.enter(command, self._section, directory)

    def _spec(self, command: Command, place: str) -> Spec:
        work = command.work
        mapping = {key: path for key, path in msgspec.structs.asdict(self._section.result).items() if path is not None}
        return Spec(
            attempt=command.attempt_id,
            executor=self.name,
            argv=(*fill(self._section.argv, command), *(work.argv or ())),
            cwd=place,
            timeout_s=command.timeout_s,
            kill_grace_s=self._supervised.kill_grace_s,
            spool_bytes_max=self._supervised.spool.bytes_max,
            check=work.check,
            success_exit_codes=self._section.success_exit_codes,
            mapping=mapping,
            stdout=bool(mapping),
        )

    def _cwd(self, work: Work) -> str:
        return work.cwd or self._section.cwd or self._environ.get("HOME") or "/"

    def _lacks_own_program(self, result: Result) -> bool:
        return bool(self._section.argv) and result.problem is not None and result.problem.code == "command_not_found"

    def _names(self) -> tuple[str, ...]:
        return names_for(self._section, self._environ)

    async def _environment(self, names: Iterable[str]) -> dict[str, str]:
        return await gather(self._section, names, self._environ, self._secrets)

    async def _run_probe(self, environment: dict[str, str]) -> None:
        try:
            process = await anyio.open_process(
                self._section.probe,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=self._section.cwd,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise self._down(f"its probe can't be started: {error}") from error
        async with process:
            try:
                with anyio.fail_after(PROBE_TIMEOUT_S):
                    code = await process.wait()
            except TimeoutError:
                raise self._down(f"its probe took longer than {PROBE_TIMEOUT_S} s") from None
            finally:
                if process.returncode is None:
                    os.killpg(process.pid, signal.SIGKILL)
        if code != 0:
            raise self._down(f"its probe ended with exit code {code}")

    def _down(self, detail: str) -> Retryable:
        return Retryable("executor_down", executor=self.name, detail=detail)


class _Reading:
    """Turns what a supervisor wrote down into a result."""

    def __init__(self, supervised: Supervised, command: Command, spec: Spec, ended: Exit) -> None:
        self._spool = supervised.spool
        self._command = command
        self._spec = spec
        self._exit = ended
        self._value: Any = None
        self._output = ""
        self._cost_usd: float | None = None

    async def result(self) -> Result:
        """Reads the output, decides the outcome, and says why."""
        self._output = await self._spool.excerpt(self._command.attempt_id)
        if self._exit.dropped_bytes:
            self._output += f"\n[{self._exit.dropped_bytes} more bytes were dropped: no room in the spool]\n"
        outcome, problem = self._ended() or await self._finished()
        return msgspec.structs.replace(
            _ended(self._command, outcome, problem),
            exit_code=self._exit.code,
            output=self._output,
            output_bytes=self._exit.total_bytes,
            value=self._value,
            cost_usd=self._cost_usd,
        )

    def _ended(self) -> tuple[Outcome, Problem] | None:
        """Decides where the attempt was ended from outside or never started; None where the command ended by itself."""
        ended, check = self._exit, self._exit.check
        ended_by = ended.ended_by or (check.ended_by if check else None)
        if ended_by == "cancel":
            return "cancelled", Problem.make("cancelled", detail=_sentence(describe(check or ended)))
        if ended_by == "timeout":
            return "timeout", Problem.make("attempt_timeout", timeout_s=self._spec.timeout_s)
        if ended_by is not None:
            return "lost", Problem.make("supervisor_lost", detail="The system was shut down, or somebody sent SIGTERM.")
        if ended.no_start is not None:
            step, number = ended.no_start
            problem = _no_start(self._spec, step, number, os.strerror(number))
            return ("failure" if number in TRANSIENT else "rejected"), problem
        if ended.signal is not None:
            return "failure", Problem.make(
                "killed_by_signal", signal=signal_name(ended.signal), task=self._command.name
            )
        return None

    async def _finished(self) -> tuple[Outcome, Problem | None]:
        """Decides where the command ended by itself: by its code, its own word, and the check."""
        reported = bad = None
        if self._spec.mapping:
            reported, bad = await self._read_mapped()
        if self._exit.code not in self._spec.success_exit_codes:
            detail = _sentence(f"it said last: {reported or _last_line(self._output)}")
            return "failure", Problem.make("exit_code", code=self._exit.code, detail=detail, task=self._command.name)
        if bad is not None:
            return "failure", bad
        if reported is not None:
            task, executor = self._command.name, self._spec.executor
            return "failure", Problem.make("reported_error", executor=executor, detail=reported, task=task)
        return await self._checked(self._exit.check)

    async def _checked(self, check: How | None) -> tuple[Outcome, Problem | None]:
        if check is None or check.code == 0:
            return "success", None
        printed = await self._spool.excerpt(self._command.attempt_id, check=True)
        detail = f"{describe(check)} and said last: {_last_line(printed)}"
        return "failure", Problem.make("check_failed", detail=detail, task=self._command.name)

    async def _read_mapped(self) -> tuple[str | None, Problem | None]:
        """Takes value, output and cost out of a JSON result; gives the error that it reports, or why it is none."""
        path = self._spool.directory(self._command.attempt_id) / supervisor.STDOUT
        try:
            self._value = await anyio.to_thread.run_sync(_read_json, path)
        except ValueError as error:
            if self._exit.dropped_bytes:
                return None, Problem.make("spool_full", limit_bytes=self._spec.spool_bytes_max)
            return None, Problem.make("bad_result", executor=self._spec.executor, detail=str(error))
        output, error, is_error, cost = (self._at(key) for key in ("output", "error", "is_error", "cost_usd"))
        if output is not None:
            self._output = output if isinstance(output, str) else msgspec.json.encode(output).decode()
        if isinstance(cost, int | float) and not isinstance(cost, bool) and cost >= 0:
            self._cost_usd = float(cost)
        if is_error is True or (error and "is_error" not in self._spec.mapping):
            text = error if isinstance(error, str) and error else self._output
            return _shortened(text) or "it doesn't say what", None
        return None, None

    def _at(self, key: str) -> Any:
        path = self._spec.mapping.get(key)
        return None if path is None else _find(self._value, path)


def _ended(command: Command, outcome: Outcome, problem: Problem | None) -> Result:
    return Result(command.attempt_id, command.task_id, command.number, outcome, problem)


def _check_cwd(cwd: str) -> None:
    why = None
    if not _is_plain(cwd) or not os.path.isabs(cwd):
        why = "It is not an absolute path."
    elif not os.path.isdir(cwd):
        why = "It is not there, or it is no directory."
    if why is not None:
        raise Rejected("bad_cwd", cwd=cwd, why=why)


def _is_plain(text: str) -> bool:
    """Tells whether the system takes the text as an argument: no NUL, and nothing that UTF-8 can't say."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


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


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _last_line(text: str) -> str:
    lines = text.rstrip().splitlines()
    return _shortened(lines[-1]) if lines else "nothing"


def _shortened(text: str) -> str:
    text = text.strip()
    return text if len(text) <= DETAIL_CHARS_MAX else f"{text[:DETAIL_CHARS_MAX]}..."


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


def _find(value: Any, path: str) -> Any:
    """Follows a dotted path through objects and, by position, lists; None where it leads nowhere."""
    for part in path.split("."):
        if isinstance(value, dict):
            value = cast(dict[str, Any], value).get(part)
        elif isinstance(value, list):
            items = cast(list[Any], value)
            value = items[int(part)] if part.isdecimal() and int(part) < len(items) else None
        else:
            return None
    return value
