"""The mcp executor: tools of one MCP server over stdio, started when first needed and kept while it is used."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import msgspec
from anyio.abc import TaskGroup
from msgspec import structs

from omnid.clock import Clock
from omnid.errors import Rejected, Retryable
from omnid.executor.attempt_log import AttemptLog
from omnid.executor.environment import gather, names_for
from omnid.executor.interface import Found, Ports
from omnid.executor.mcp_schema import check_arguments
from omnid.executor.spool import excerpt
from omnid.executor.supervised import Supervised
from omnid.executor.template import fill
from omnid.log import Logger
from omnid.model import Command, Problem, Result, Work
from omnid.retry import Backoff, FailureCount
from omnid.secrets import Secrets
from omnid.settings import PROMPT, Limits
from omnid.settings import McpExecutor as Section

if TYPE_CHECKING:
    from omnid.executor.mcp_session import Answer, McpSession, Tool

OBEY_S = 2.0
"""How long a server that was told to stop a call has to show that it still answers."""
KNOWN_MAX = 20
VALUE_BYTES_MAX = 1 << 20
"""The largest structured result that is kept; a larger one stays in the attempt's log."""
DETAIL_CHARS_MAX = 300
START_SLACK_S, STOP_SLACK_S = 2.0, 5.0


class McpExecutor:
    """Implements `interface.Executor` for one ``[[executor]]`` section of kind ``mcp``.

    The server lives in `tasks`, as it outlasts the attempt that starts it. `environ` is the daemon's environment.
    """

    kind = "mcp"

    def __init__(
        self,
        section: Section,
        supervised: Supervised,
        secrets: Secrets,
        environ: Mapping[str, str],
        *,
        tasks: TaskGroup,
        clock: Clock,
        log: Logger,
        limits: Limits,
    ) -> None:
        self.name = section.name
        self.concurrency = section.concurrency
        self.idempotent = section.idempotent
        self.takes_prompts = PROMPT in repr(section.arguments)
        self._section = section
        self._supervised = supervised
        self._secrets = secrets
        self._environ = environ
        self._tasks = tasks
        self._clock = clock
        self._log = log
        self._limits = limits
        self._host: _Host | None = None
        self._failures = FailureCount()
        self._backoff = Backoff(section.restart_base_s, section.restart_max_s)
        self._next_start_s = 0.0
        self._closed = False
        self._legacy = False
        """Whether the server is known to ignore ``server/discover``."""
        self._clearing, self._cleared = anyio.Lock(), False
        self._attempts: dict[str, _Attempt] = {}

    def accepts(self, work: Work) -> None:
        """See `Executor.accepts`; whether the tool is there and the arguments fit is known once the server runs."""
        if work.argv is not None or (work.prompt is not None and not self.takes_prompts):
            wanted = "a prompt" if work.argv is None else "a command"
            raise Rejected("wrong_executor", executor=self.name, kind=self.kind, wanted=wanted)
        if work.tool is None and self._section.tool is None:
            raise Rejected("nothing_to_do", detail="no tool")
        for where, given in (("stdin", work.stdin), ("check", work.check)):
            if given is not None:
                raise Rejected("bad_request", detail=f"a tool call takes no {where}", where=where)

    def exact(self, work: Work) -> Work:
        """See `Executor.exact`: the config's tool and arguments where the task names none."""
        arguments = {**self._section.arguments, **(work.arguments or {})}
        return structs.replace(work, server=self.name, tool=work.tool or self._section.tool, arguments=arguments)

    async def probe(self) -> None:
        """See `Executor.probe`: starts the server, unless it runs."""
        await self._session()

    async def run(self, command: Command, ports: Ports) -> Result:
        """See `Executor.run`."""
        began_s = self._clock.monotonic_s()
        timeout_s = min(command.timeout_s, self._section.call_timeout_s or command.timeout_s)
        notices = AttemptLog(self._supervised.spool, command.attempt_id, self._log)
        attempt = _Attempt(command, timeout_s, notices)
        self._attempts[command.attempt_id] = attempt
        self._tasks.start_soon(attempt.notices.write)
        try:
            ended = await self._guarded(attempt, ports)
        finally:
            del self._attempts[command.attempt_id]
            attempt.notices.close()
        await attempt.notices.flush()
        outcome = ended.outcome if isinstance(ended, Result) else ended.code
        took_ms = round(1000 * (self._clock.monotonic_s() - began_s))
        tool = attempt.tool_name(self._section)
        self._log.info("mcp_call", server=self.name, tool=tool, ms=took_ms, outcome=outcome, task=command.name)
        if isinstance(ended, Retryable):
            raise ended
        return ended

    async def recover(self, command: Command, ports: Ports) -> Found:
        """See `Executor.recover`: what was called is lost, once the old server has surely ended.

        Raises Retryable ``executor_down`` where that server doesn't end.
        """
        await self._clear_old()
        return Found.LOST if await ports.notes(command.attempt_id, "called") else Found.NEVER_RAN

    async def adopt(self, command: Command, ports: Ports) -> Result:  # noqa: ARG002 - there is nothing to wait for.
        """See `Executor.adopt`: servers end with their daemon, so `recover` never finds an attempt running."""
        return _unknown(command, "servers end with their daemon", repeatable=command.idempotent)

    async def call_tool(self, tool: str, arguments: dict[str, Any], id: str) -> "Answer":
        """Calls a tool outside of any attempt, starting the server if need be; `id` names the call.

        Raises Retryable(`executor_down`). Whoever calls it has a deadline.
        """
        session = await self._session()
        with session.held(id, lambda _: None):
            return await session.call(tool, arguments, id)

    async def cancel(self, attempt_id: str) -> None:
        """See `Executor.cancel`."""
        attempt = self._attempts.get(attempt_id)
        if attempt is not None:
            attempt.cancelled = True
            attempt.scope.cancel()

    async def settled(self, attempt_id: str) -> None:
        """See `Executor.settled`: nothing was kept for a recovery."""

    async def aclose(self) -> None:
        """See `Executor.aclose`: ends the server, and with it the calls that are open."""
        self._closed = True
        host = self._host
        if host is not None:
            if host.session is not None:
                host.session.end("it was closed")
            host.scope.cancel()
            await host.gone.wait()

    async def _guarded(self, attempt: "_Attempt", ports: Ports) -> Result | Retryable:
        """Does the attempt within its deadline, and gives what it came to."""
        command = attempt.command
        try:
            with attempt.scope:
                return await self._do(attempt, ports)
        except Retryable as error:
            if not attempt.called:
                return error
            return _unknown(command, error.what, repeatable=attempt.repeatable)
        except Rejected as error:
            return command.ended("rejected", Problem.of(error))
        return await self._given_up(attempt)

    async def _do(self, attempt: "_Attempt", ports: Ports) -> Result:
        command = attempt.command
        attempt.repeatable = command.idempotent or self.idempotent
        arguments = fill({**self._section.arguments, **(command.work.arguments or {})}, command)
        attempt.session = session = await self._session()
        with session.held(command.attempt_id, attempt.notices.add):
            tool = await self._tool(session, attempt.tool_name(self._section), arguments)
            attempt.repeatable = attempt.repeatable or tool.repeatable
            if attempt.repeatable and not command.idempotent:
                await ports.note(command.attempt_id, "idempotent", True)
            await ports.note(command.attempt_id, "called", {"server": self.name, "tool": tool.name})
            attempt.called = True
            answer = await session.call(tool.name, arguments, command.attempt_id)
        if answer.kind != "unknown":
            self._failures = self._failures.succeeded()
        return self._result(attempt, answer)

    async def _tool(self, session: "McpSession", name: str, arguments: dict[str, Any]) -> "Tool":
        """Gives the tool once the arguments fit it; a server may have changed its tools, so it is asked again once."""
        try:
            return await self._fitting(session, name, arguments)
        except Rejected:
            await session.list_tools()
            return await self._fitting(session, name, arguments)

    async def _fitting(self, session: "McpSession", name: str, arguments: dict[str, Any]) -> "Tool":
        tool = session.tools.get(name)
        if tool is None and name in session.unusable:
            raise Rejected("bad_tool", server=self.name, tool=name, detail=session.unusable[name])
        if tool is None:
            near = get_close_matches(name, session.tools, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            known = ", ".join(sorted(session.tools)[:KNOWN_MAX]) or "none"
            raise Rejected("unknown_tool", server=self.name, tool=name, hint=hint, known=known)
        await anyio.to_thread.run_sync(check_arguments, name, tool.schema, arguments)
        return tool

    async def _given_up(self, attempt: "_Attempt") -> Result:
        """Ends an attempt whose time is over or that was cancelled; the server has been told.

        Whether it obeys can't be seen, as it doesn't answer a cancelled call; whether it still lives can.
        """
        command, session = attempt.command, attempt.session
        if attempt.called and session is not None and session.usable and not await session.answers(OBEY_S):
            session.fault("it was stuck after a call that it was told to stop")
        if attempt.cancelled:
            told = "The server was told to stop." if attempt.called else "The server had not been called."
            return command.ended("cancelled", Problem.make("cancelled", detail=told))
        if attempt.called and not attempt.repeatable:
            detail = f"no answer came in {attempt.timeout_s:g} s; the server was told to stop, and may have done it"
            return _unknown(command, detail, repeatable=False)
        problem = Problem.make("attempt_timeout", timeout_s=f"{attempt.timeout_s:g}")
        return command.ended("timeout", problem)

    def _result(self, attempt: "_Attempt", answer: "Answer") -> Result:
        command = attempt.command
        detail = answer.text.strip()[:DETAIL_CHARS_MAX] or "it gave no reason"
        if answer.kind == "unknown":
            return _unknown(command, detail, repeatable=attempt.repeatable)
        if answer.kind == "refused":
            tool = attempt.tool_name(self._section)
            return command.ended("rejected", Problem.make("bad_arguments", tool=tool, detail=detail))
        value = msgspec.json.encode(answer.value)
        text = answer.text if answer.text or answer.value is None else value.decode()
        attempt.notices.add(text + "\n")
        data = text.encode(errors="backslashreplace")
        head_bytes, tail_bytes = self._limits.output_head_bytes, self._limits.output_tail_bytes
        left_out_bytes = max(0, len(data) - head_bytes - tail_bytes)
        output = excerpt(data[:head_bytes], left_out_bytes, data[head_bytes + left_out_bytes :])
        problem = None
        if answer.kind == "error":
            problem = Problem.make("reported_error", executor=self.name, detail=detail, task=command.name)
        return structs.replace(
            command.ended("success" if problem is None else "failure", problem),
            output=output,
            output_bytes=len(data),
            # Decoded anew, because a server's numbers may be none of JSON (NaN), and they become null.
            value=msgspec.json.decode(value) if len(value) <= VALUE_BYTES_MAX else None,
        )

    async def _session(self) -> "McpSession":
        """Gives the session, and starts the server where none runs; raises Retryable as `Executor.probe` does."""
        with anyio.move_on_after(self._section.start_timeout_s + START_SLACK_S):
            while not self._closed:
                host = self._host
                if host is None:
                    await self._wait_out()
                    # Another attempt may have started it meanwhile.
                    if self._host is None:
                        self._host = _Host()
                        self._tasks.start_soon(self._keep, self._host)
                elif host.session is not None and host.session.usable:
                    return host.session
                elif host.ready.is_set():
                    await host.gone.wait()
                else:
                    await host.ready.wait()
                    if host.why is not None:
                        raise host.lacks or self._down(host.why)
            raise self._down("it is being closed")
        raise self._down(f"it was not ready within {self._section.start_timeout_s:g} s")

    async def _wait_out(self) -> None:
        """Waits for the time of the next start; raises Retryable ``executor_down`` where that is far."""
        wait_s = self._next_start_s - self._clock.monotonic_s()
        if wait_s >= self._section.start_timeout_s:
            count = self._failures.failures
            raise self._down(f"it failed {count} times in a row, and is started again in {wait_s:.0f} s")
        if wait_s > 0:
            await anyio.sleep(wait_s)

    async def _keep(self, host: "_Host") -> None:
        """Keeps one server from its start to its end, and never raises for it: other executors share the group."""
        broken, why = False, "it was closed"
        try:
            with host.scope:
                broken, why = await self._serve(host)
        except Retryable as error:
            broken, why = True, str(error.fields.get("detail", error.what))
            if error.code == "secret_missing":
                # The server is not at fault, so it is started as soon as somebody asks again.
                broken, host.lacks = False, error
        except Exception as error:  # noqa: BLE001 - It is logged, and must not end what else lives in the group.
            self._log.exception("mcp_fault", server=self.name)
            broken, why = True, f"{type(error).__name__}: {error}"
        finally:
            if broken:
                self._failures = self._failures.failed(self._clock.monotonic_s())
                delay_s = self._backoff.delay_s(self._failures.failures, self._clock.uniform)
                self._next_start_s = self._clock.monotonic_s() + delay_s
            self._host = None
            host.fail(why)
            host.gone.set()
            self._log.info("mcp_ended", server=self.name, why=why, failures=self._failures.failures)

    async def _serve(self, host: "_Host") -> tuple[bool, str]:
        """Starts the server and gives whether it broke, and why it ended."""
        environment = await gather(self._section, names_for(self._section, self._environ), self._environ, self._secrets)
        session_type = await anyio.to_thread.run_sync(_load)
        cwd = self._section.cwd or self._environ.get("HOME") or "/"
        await self._clear_old()
        server = await self._supervised.start_server(self.name, self._section.argv, cwd, environment)
        try:
            host.session = session = session_type(self.name, server, self._log, legacy=self._legacy)
            async with anyio.create_task_group() as group:
                group.start_soon(self._announce, host, session)
                await session.serve(self._section.start_timeout_s, self._section.idle_s)
                group.cancel_scope.cancel()
            # What it ignored once needn't be asked again, until a start fails for that.
            self._legacy = session.started.is_set() and (session.legacy or session.ignores_discover)
            why = session.why_ended or "it was retired"
            # Those who wait for the start need not wait for the end.
            host.fail(why)
            return session.broken, why
        finally:
            with anyio.move_on_after(2 * self._supervised.kill_grace_s + STOP_SLACK_S, shield=True):
                await server.terminate()

    async def _clear_old(self) -> None:
        """Ends what an earlier daemon left, once: later on, the server that runs is this daemon's own."""
        async with self._clearing:
            if not self._cleared:
                await self._supervised.clear_server(self.name)
                self._cleared = True

    async def _announce(self, host: "_Host", session: "McpSession") -> None:
        await session.started.wait()
        self._log.info("mcp_started", server=self.name, tools=len(session.tools))
        host.ready.set()

    def _down(self, detail: str) -> Retryable:
        return Retryable("executor_down", executor=self.name, detail=detail)


class _Host:
    """Where one server lives: what starts with it, and how those that wait for it learn of its start and end."""

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self.session: McpSession | None = None
        self.why: str | None = None
        self.lacks: Retryable | None = None
        """The error where it lacks a secret, which only a person can provide."""
        self.ready = anyio.Event()
        self.gone = anyio.Event()

    def fail(self, why: str) -> None:
        """Tells those who wait for the start why there is none; what has started before is ending."""
        self.why = why
        self.ready.set()


class _Attempt:
    """One attempt in progress, and how far it came."""

    def __init__(self, command: Command, timeout_s: float, notices: "AttemptLog") -> None:
        self.command = command
        self.timeout_s = timeout_s
        self.scope = anyio.CancelScope(deadline=anyio.current_time() + timeout_s)
        self.notices = notices
        self.session: McpSession | None = None
        self.cancelled = False
        self.called = False
        self.repeatable = False

    def tool_name(self, section: Section) -> str:
        """Gives the tool that the task names, or else the config."""
        return self.command.work.tool or section.tool or ""


def _load() -> "type[McpSession]":
    """Imports the SDK; in a thread, because it takes about a second."""
    from omnid.executor.mcp_session import McpSession

    return McpSession


def _unknown(command: Command, detail: str, *, repeatable: bool) -> Result:
    """Makes the result of a call that nobody knows the end of: only what may be repeated counts as failed."""
    if repeatable:
        problem = Problem.make("executor_crashed", executor=command.executor, detail=detail, task=command.name)
        return command.ended("failure", problem)
    problem = Problem.make("uncertain", executor=command.executor, detail=detail, task=command.name)
    return command.ended("lost", problem)
