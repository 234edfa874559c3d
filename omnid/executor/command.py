"""The command executor: programs under a supervisor, which go on while the daemon is away."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterable, Mapping
from zoneinfo import ZoneInfo

import anyio
import msgspec

from omnid.errors import Rejected, Retryable
from omnid.executor.agent_reading import read_report
from omnid.executor.environment import gather, names_for
from omnid.executor.interface import CHANGES, Found, Ports
from omnid.executor.launch import readable
from omnid.executor.profiles.known import PROFILES, profile_of
from omnid.executor.profiles.plan import Plan, exact_words, plan
from omnid.executor.reading import Reading
from omnid.executor.records import Spec
from omnid.executor.supervised import Supervised
from omnid.executor.template import fill
from omnid.executor.workspace import Workspaces
from omnid.executor.workspace_kind import uses
from omnid.log import Logger
from omnid.model import Command, Outcome, Problem, Result, Work
from omnid.secrets import Secrets
from omnid.settings import CommandExecutor as Section

TASK = "OMNID_TASK"
PROBE_TIMEOUT_S = 10.0
INSIST_S = 1.0
ROOM = {"workspace_full", "workspace_down"}
MENDED = {"setup_failed"}
"""What may be over at the next attempt, though nothing but an attempt finds that out."""
TURNS = {"session_gone": False, "session_taken": True}
"""What an agent says of its session, and whether the attempt then goes on with it or begins it."""


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
        *,
        log: Logger,
        zone: Callable[[], ZoneInfo] = lambda: ZoneInfo("UTC"),
        workspaces: Workspaces | None = None,
    ) -> None:
        """`zone` gives the zone of the times that agents tell without one."""
        self.name = section.name
        self.concurrency = section.concurrency
        self.idempotent = section.idempotent
        self._section = section
        self._profile = profile_of(section)
        self.takes_prompts = self._profile is not None
        self._zone = zone
        self._supervised = supervised
        self._secrets = secrets
        self._environ = environ
        self._log = log
        self._workspaces = workspaces
        self._cancelled: dict[str, bool] = {}
        """The attempts that `run` works on, and whether a cancel came for them."""

    def accepts(self, work: Work) -> None:
        """See `Executor.accepts`."""
        prompted = work.prompt is not None
        if work.tool is not None or work.server is not None or (prompted and self._profile is None):
            wanted = "a prompt" if prompted else "a tool call"
            raise Rejected("wrong_executor", executor=self.name, kind=self.kind, wanted=wanted)
        argv = exact_words(self._profile, self._section, work)
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
        """See `Executor.exact`: the config's words and the task's, an agent's flags, and the directory."""
        argv = exact_words(self._profile, self._section, work)
        return msgspec.structs.replace(work, argv=argv, prompt=None, cwd=self._cwd(work))

    async def probe(self) -> None:
        """See `Executor.probe`: runs the config's probe, or else looks for the config's program."""
        environment = await self._environment(self._names())
        program = self._own_program()
        if self._section.probe:
            await self._run_probe(environment)
        elif program is not None and shutil.which(program, path=environment.get("PATH")) is None:
            raise self._down(f"{program} was not found in PATH")
        if self._workspaces is not None and uses(self._section):
            await self._workspaces.check()

    async def run(self, command: Command, ports: Ports) -> Result:
        """See `Executor.run`. An attempt that has begun before isn't begun again; its result is given.

        An agent goes on with the session of an earlier attempt. Where its session turns out not to be there, or to be
        there already, the same attempt does the other thing: neither of these had an effect.
        """
        attempt = command.attempt_id
        self._cancelled[attempt] = False
        try:
            result = await self._run(command, ports, resume=command.begun_before > 0)
        finally:
            del self._cancelled[attempt]
        if result is not None and self._lacks_own_program(command, result):
            # Not the task's fault: it waits until the program is there again (while it is upgraded, say).
            await self._supervised.spool.remove(attempt)
            raise self._down(f"{self._own_program()} was not found")
        if result is None and not self._supervised.spool.directory(attempt).exists():
            detail = "Its directory in the spool was removed while it ran, and with it all that was known."
            return command.ended("lost", Problem.make("supervisor_lost", detail=detail))
        if result is None:
            raise self._down(f"its supervisor ended before it began: {self._supervised.last_error(attempt)}")
        return result

    async def _run(self, command: Command, ports: Ports, *, resume: bool) -> Result | None:
        """Starts the attempt and waits for its end; None where it never began."""
        result = await self._start(command, ports, resume=resume)
        turn = None if result is None else _turn(result)
        if result is None or turn is None:
            return result
        if command.lost_before and not turn:
            return await self._without_session(command, ports, result)
        await self._supervised.spool.remove(command.attempt_id)
        return await self._start(command, ports, resume=turn)

    async def _start(self, command: Command, ports: Ports, *, resume: bool) -> Result | None:
        attempt = command.attempt_id
        if self._stands_in(command):
            # Its words, its directory or its sandbox were those of an executor that is not there any more.
            detail = "it is not in the config any more"
            return _unbegun(
                command, "unstarted", Problem.make("executor_down", executor=command.executor, detail=detail)
            )
        environment = await self._environment((*self._names(), *command.work.env))
        try:
            start = self._plan(command, resume=resume)
            spec = self._spec(command, start, await self._place(command))
        except Rejected as error:
            return _unbegun(command, "failure" if error.code in MENDED else "rejected", Problem.of(error))
        except Retryable as error:
            if error.code not in ROOM or uses(self._section):
                raise
            # The executor's other tasks need no workspace, so only this one waits.
            return _unbegun(command, "unstarted", Problem.of(error))
        if start.agent is not None and start.agent.resumable and not self.idempotent:
            # What a crash cuts off is gone on with in its session: that repeats nothing (promise 3).
            await ports.note(attempt, "idempotent", True)
        if self._cancelled[attempt]:
            return _unbegun(command, "cancelled", Problem.make("cancelled", detail="It had not started."))
        await self._supervised.start(spec, environment | {TASK: command.task_id}, start.stdin)
        if self._cancelled[attempt]:
            await self._supervised.cancel(attempt)
        return await self._insist(command, ports)

    async def recover(self, command: Command, ports: Ports) -> Found:
        """See `Executor.recover`.

        In place of an executor that left the config: without a directory in the spool, work other than a command may
        have been begun by another kind of executor, and nobody knows how far it came.
        """
        with readable(command.executor, self._supervised.spool.root):
            found = await self._supervised.look(command.attempt_id)
        there = self._supervised.spool.directory(command.attempt_id).exists()
        if found is Found.NEVER_RAN and self._stands_in(command) and not command.work.argv and not there:
            return Found.LOST
        if found is Found.LOST:
            await self._keep_session(command, ports, lost=True)
        return found

    async def adopt(self, command: Command, ports: Ports) -> Result:
        """See `Executor.adopt`; what was found running and turns out not to have begun is run."""
        result = await self._insist(command, ports)
        if result is None or _turn(result) is not None:
            # It has ended, so that it begins nothing anew but tells once more what its session lacked.
            return await self.run(command, ports)
        return result

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

    async def _insist(self, command: Command, ports: Ports) -> Result | None:
        """Does `_finish` until it can be done: were what has ended taken back, its work would be done twice."""
        attempt, failures = command.attempt_id, 0
        while True:
            try:
                with readable(command.executor, self._supervised.spool.root):
                    result = await self._finish(command, ports)
            except Retryable as error:
                if error.code == "store_closed":
                    raise
                failures += 1
                if failures == 1:
                    self._log.warning("end_waits", attempt=attempt, **error.as_dict())
            else:
                if failures:
                    self._log.info("end_read", attempt=attempt, tries=failures + 1)
                return result
            await anyio.sleep(INSIST_S)

    async def _finish(self, command: Command, ports: Ports) -> Result | None:
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
            result = await Reading(supervised.spool, command, spec, trace.exit, self._zone()).result()
            if self._workspaces is not None:
                await self._leave(self._workspaces, command, ports, result)
        elif not trace.began:
            return None
        else:
            detail = "It left no record of an end, and nobody knows how far the command came."
            result = command.ended("lost", Problem.make("supervisor_lost", detail=detail))
        await self._keep_session(command, ports, lost=result.outcome == "lost")
        return result

    async def _leave(self, workspaces: Workspaces, command: Command, ports: Ports, result: Result) -> None:
        """Settles the workspace, and notes what has changed in it so far: once it is merged, nothing else tells."""
        await workspaces.leave(command, result)
        changes = await workspaces.changes(command.task_id)
        if changes:
            await ports.note(command.attempt_id, CHANGES, changes)

    async def _keep_session(self, command: Command, ports: Ports, *, lost: bool) -> None:
        """Notes the session that an agent has named itself; what was lost before it named one can't be gone on with."""
        spec = self._supervised.spec(command.attempt_id)
        agent = None if spec is None else spec.agent
        profile = None if agent is None else PROFILES.get(agent.profile)
        if agent is None or profile is None or profile.sessions.by == "us" or not agent.resumable:
            return
        found = await read_report(profile, self._supervised.spool, command.attempt_id)
        session = agent.session or (found and found.session)
        if session:
            await ports.note(command.attempt_id, "session", session)
        elif lost:
            await ports.note(command.attempt_id, "idempotent", False)

    async def _without_session(self, command: Command, ports: Ports, result: Result) -> Result:
        """Gives up on an attempt that should go on with one that was lost, and whose session went with it."""
        await ports.note(command.attempt_id, "idempotent", False)
        return msgspec.structs.replace(result, outcome="lost")

    def _plan(self, command: Command, *, resume: bool) -> Plan:
        """Plans what runs; raises Rejected where the config's words can't be filled in."""
        before = tuple(fill(self._section.argv, command))
        if self._profile is None:
            argv = (*before, *(command.work.argv or ()))
            if not argv:
                raise Rejected("nothing_to_do", detail="no program")
            return Plan(argv, command.work.stdin, None)
        return plan(self._profile, self._section, before, command, resume=resume)

    async def _place(self, command: Command) -> str:
        """Gives the directory that the attempt runs in; see `Workspaces.enter`."""
        directory = self._cwd(command.work)
        if self._workspaces is None:
            return directory
        return await self._workspaces.enter(command, self._section, directory)

    def _spec(self, command: Command, start: Plan, place: str) -> Spec:
        work = command.work
        mapping = {key: path for key, path in msgspec.structs.asdict(self._section.result).items() if path is not None}
        return Spec(
            attempt=command.attempt_id,
            executor=self.name,
            argv=start.argv,
            cwd=place,
            timeout_s=command.timeout_s,
            kill_grace_s=self._supervised.kill_grace_s,
            spool_bytes_max=self._supervised.spool.bytes_max,
            check=work.check,
            success_exit_codes=self._section.success_exit_codes,
            mapping=mapping if start.agent is None else {},
            stdout=bool(mapping) or start.agent is not None,
            agent=start.agent,
        )

    def _stands_in(self, command: Command) -> bool:
        """Tells whether it looks after an attempt of an executor that left the config: it then begins nothing."""
        return command.recover and command.executor != self.name

    def _cwd(self, work: Work) -> str:
        return work.cwd or self._section.cwd or self._environ.get("HOME") or "/"

    def _own_program(self) -> str | None:
        """Gives the program that the executor brings itself; None: each task brings its own."""
        if self._section.argv:
            return self._section.argv[0]
        return None if self._profile is None else self._profile.program

    def _lacks_own_program(self, command: Command, result: Result) -> bool:
        own = bool(self._section.argv) or command.work.prompt is not None
        return own and result.problem is not None and result.problem.code == "command_not_found"

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


def _unbegun(command: Command, outcome: Outcome, problem: Problem) -> Result:
    """Makes the result of an attempt that began nothing, and so has cost nothing where it could have cost something."""
    cost_usd = None if command.cost_max_usd is None else 0.0
    return command.ended(outcome, problem, cost_usd=cost_usd)


def _turn(result: Result) -> bool | None:
    """Tells whether the session is to be gone on with or begun after all; None: the result stands."""
    return None if result.problem is None else TURNS.get(result.problem.code)


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
