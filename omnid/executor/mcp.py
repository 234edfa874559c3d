"""The mcp executor: calls tools of one MCP server, as tasks of that server where it has them."""

from collections.abc import Awaitable, Callable, Mapping
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import msgspec
from anyio.abc import TaskGroup
from msgspec import structs

from omnid.clock import Clock
from omnid.errors import Rejected, Retryable
from omnid.executor.allowance import Allowance
from omnid.executor.attempt_log import AttemptLog
from omnid.executor.interface import Found, Ports
from omnid.executor.mcp_follow import Follower, ignore
from omnid.executor.mcp_keeper import Keeper
from omnid.executor.mcp_questions import Questions, UnanswerableError
from omnid.executor.mcp_schema import check_arguments
from omnid.executor.mcp_shapes import Answer, Asked, Reply, Tool
from omnid.executor.mcp_tasks import RemoteTask, TaskGoneError
from omnid.executor.spool import excerpt
from omnid.executor.supervised import Supervised
from omnid.executor.template import fill
from omnid.log import Logger
from omnid.model import Command, Problem, Result, Work
from omnid.secrets import Secrets
from omnid.settings import PROMPT, Limits
from omnid.settings import McpExecutor as Section

if TYPE_CHECKING:
    from omnid.executor.mcp_session import McpSession

OBEY_S = 2.0
"""How long a server that was told to stop a call has to show that it still answers."""
PROBE_S = 10.0
"""How long a server elsewhere may take to answer a probe."""
KNOWN_MAX = 20
VALUE_BYTES_MAX = 1 << 20
"""The largest structured result that is kept; a larger one stays in the attempt's log."""
DETAIL_CHARS_MAX = 300
KEEP_MS = 86_400_000
"""How much longer than the attempt may last a task of the server should be kept: the daemon may be away meanwhile."""
ROUNDS_MAX = 20
"""How often one call may ask before it is done."""
CALLED, TASK = "called", "remote_task"
"""The kinds of notes that say that the server was called, and which task of its own it made of the call."""


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
        self._tasks = tasks
        self._clock = clock
        self._log = log
        self._limits = limits
        self._keeper = Keeper(
            section, supervised, secrets, environ, tasks=tasks, clock=clock, log=log, nameless=self._one_at_a_time
        )
        self._follower = Follower(section.name, self._keeper, clock, log)
        self._attempts: dict[str, _Attempt] = {}
        self._outside = 0
        """Calls that are made outside of attempts."""

    def asks_nobody(self) -> None:
        """Says that what the server asks reaches nobody: it is told so at its next start."""
        self._keeper.asks = False

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

    @property
    def awake(self) -> bool:
        """Whether a session is there, or about to be."""
        return self._keeper.awake

    def rest(self) -> None:
        """Ends the session, unless somebody uses it or waits for it; the next call begins another."""
        if not self._attempts and not self._outside:
            self._keeper.rest()

    async def probe(self) -> None:
        """See `Executor.probe`: begins a session, unless there is one; a server elsewhere is asked in any case."""
        session = await self._keeper.session()
        if self._section.url and not await session.answers(PROBE_S):
            session.fault(f"it didn't answer within {PROBE_S:g} s")
            raise self._down(session.why_over)

    async def run(self, command: Command, ports: Ports) -> Result:
        """See `Executor.run`."""
        attempt = self._attempts[command.attempt_id] = self._attempt(command, ports)
        ended = await self._attend(attempt, self._do)
        if isinstance(ended, Retryable):
            raise ended
        return ended

    async def recover(self, command: Command, ports: Ports) -> Found:
        """See `Executor.recover`: a call is lost with its session, unless the server has made a task of it.

        Raises Retryable ``executor_down`` where an old server of ours doesn't end.
        """
        await self._keeper.clear_old()
        if not await ports.notes(command.attempt_id, CALLED):
            return Found.NEVER_RAN
        made = await ports.notes(command.attempt_id, TASK)
        if not made:
            return Found.LOST
        # Known from here on, as it may be cancelled before it is adopted.
        attempt = self._attempts[command.attempt_id] = self._attempt(command, ports)
        attempt.called, attempt.task_id = True, made[-1]["id"]
        return Found.RUNNING

    async def adopt(self, command: Command, ports: Ports) -> Result:  # noqa: ARG002 - `recover` has kept them.
        """See `Executor.adopt`: waits for the server's task; it gets the attempt's whole time again."""
        ended = await self._attend(self._attempts[command.attempt_id], self._follow)
        return ended if isinstance(ended, Result) else _unknown(command, ended.what, repeatable=command.idempotent)

    async def call_tool(self, tool: str, arguments: dict[str, Any], id: str) -> "Answer":
        """Calls a tool outside of any attempt, starting the server if need be; `id` names the call.

        Raises Retryable(`executor_down`). Whoever calls it has a deadline.
        """
        self._outside += 1
        try:
            return await self._called(tool, arguments, id)
        finally:
            self._outside -= 1

    async def _called(self, tool: str, arguments: dict[str, Any], id: str) -> "Answer":
        session = await self._keeper.session()
        with session.held(id, ignore):
            answer = await session.call(tool, arguments, id)
        try:
            if isinstance(answer, RemoteTask):
                answer = await self._follower.follow(answer.id, id, ignore)
        except TaskGoneError as error:
            return Answer("unknown", f"the server knows its task no more: {error}")
        except UnanswerableError as error:
            return Answer("error", f"it asks for {error}, which nobody here can give")
        if isinstance(answer, Asked):
            return Answer("error", "it asks for more, which nobody here can give")
        if answer.kind == "unsent":
            raise self._down(answer.text)
        return answer

    async def cancel(self, attempt_id: str) -> None:
        """See `Executor.cancel`."""
        attempt = self._attempts.get(attempt_id)
        if attempt is not None:
            attempt.cancelled = True
            attempt.allowance.scope.cancel()

    async def settled(self, attempt_id: str) -> None:
        """See `Executor.settled`: nothing was kept for a recovery."""

    async def aclose(self) -> None:
        """See `Executor.aclose`: ends the sessions, and with them the open calls; tasks of the server go on."""
        await self._keeper.aclose()

    def _one_at_a_time(self) -> None:
        """Hears that the server asks without saying in which call: two that are open couldn't be told apart."""
        if self.concurrency != 1:
            self.concurrency = 1
            self._log.info("mcp_one_at_a_time", server=self.name)

    def _attempt(self, command: Command, ports: Ports) -> "_Attempt":
        timeout_s = min(command.timeout_s, self._section.call_timeout_s or command.timeout_s)
        notices = AttemptLog(self._supervised.spool, command.attempt_id, self._log)
        attempt = _Attempt(command, ports, timeout_s, notices, self._log)
        attempt.tool = command.work.tool or self._section.tool or ""
        attempt.repeatable = command.idempotent or self.idempotent
        return attempt

    async def _attend(self, attempt: "_Attempt", work: "Callable[[_Attempt], Awaitable[Result]]") -> Result | Retryable:
        """Does work for an attempt, with its log, and gives what it came to; Retryable: nothing was begun."""
        command, began_s = attempt.command, self._clock.monotonic_s()
        self._tasks.start_soon(attempt.notices.write)
        try:
            ended = await self._guarded(attempt, work)
        finally:
            del self._attempts[command.attempt_id]
            attempt.notices.close()
        await attempt.notices.flush()
        outcome = ended.outcome if isinstance(ended, Result) else ended.code
        took_ms = round(1000 * (self._clock.monotonic_s() - began_s))
        self._log.info("mcp_call", server=self.name, tool=attempt.tool, ms=took_ms, outcome=outcome, task=command.name)
        return ended

    async def _guarded(
        self, attempt: "_Attempt", work: "Callable[[_Attempt], Awaitable[Result]]"
    ) -> Result | Retryable:
        """Does the work within the attempt's deadline."""
        command = attempt.command
        try:
            with attempt.allowance.scope:
                return await work(attempt)
        except (Retryable, Rejected) as error:
            if attempt.called:
                return _unknown(command, error.what, repeatable=attempt.repeatable)
            return error if isinstance(error, Retryable) else command.ended("rejected", Problem.of(error))
        except UnanswerableError as error:
            return await self._unanswerable(attempt, str(error))
        except TaskGoneError as error:
            detail = f"the server knows its task {attempt.task_id} no more: {error}"
            return _unknown(command, detail, repeatable=attempt.repeatable)
        return await self._given_up(attempt)

    async def _do(self, attempt: "_Attempt") -> Result:
        command = attempt.command
        arguments = fill({**self._section.arguments, **(command.work.arguments or {})}, command)
        answer = await self._call(attempt, arguments)
        if not isinstance(answer, RemoteTask) and answer.kind == "unsent":
            # Its session was over, and a new one can have better luck.
            answer = await self._call(attempt, arguments)
        if isinstance(answer, RemoteTask):
            await self._keep_task(attempt, answer)
            return await self._follow(attempt)
        if answer.kind == "unsent":
            raise self._down(answer.text)
        return self._result(attempt, answer)

    async def _call(self, attempt: "_Attempt", arguments: dict[str, Any]) -> "Answer | RemoteTask":
        command, note = attempt.command, attempt.ports.note
        attempt.session = session = await self._keeper.session()
        with session.held(
            command.attempt_id, attempt.notices.add, attempt.questions.of_call, may_ask=attempt.questions.may_ask
        ):
            tool = await self._tool(session, attempt.tool, arguments)
            attempt.repeatable = attempt.repeatable or tool.repeatable
            if attempt.repeatable and not command.idempotent:
                await note(command.attempt_id, "idempotent", True)
            await note(command.attempt_id, CALLED, {"server": self.name, "tool": tool.name})
            attempt.called = True
            keep_ms = round(1000 * attempt.timeout_s) + KEEP_MS
            answer = await self._in_rounds(
                attempt, partial(session.call, tool.name, arguments, command.attempt_id, keep_ms=keep_ms)
            )
        if isinstance(answer, Answer) and answer.kind == "unsent":
            attempt.called = False
        return answer

    async def _in_rounds(
        self, attempt: "_Attempt", call: Callable[..., Awaitable[Answer | Asked | RemoteTask]]
    ) -> Answer | RemoteTask:
        """Makes a call, again and again with the answers to what it asks: it is done when it asks nothing."""
        answer = await call()
        for _ in range(ROUNDS_MAX):
            if not isinstance(answer, Asked):
                return answer
            reply = Reply(await attempt.questions.of_call(answer.requests), answer.state)
            answer = await call(reply=reply)
        raise UnanswerableError("more and more")

    async def _keep_task(self, attempt: "_Attempt", task: RemoteTask) -> None:
        """Writes down what the server has made of the call, before anybody waits for it."""
        command = attempt.command
        attempt.task_id = task.id
        try:
            await attempt.ports.note(command.attempt_id, TASK, {"server": self.name, "id": task.id})
        except (Retryable, Rejected) as error:
            # It can be waited for all the same; only a daemon that is killed meanwhile would know nothing of it.
            self._log.warning("mcp_task_not_noted", server=self.name, task=command.name, **error.as_dict())
        self._log.info("mcp_task", server=self.name, tool=attempt.tool, id=task.id, task=command.name)
        attempt.notices.add(f"[task {task.id} of {self.name}] {task.said}\n")

    async def _follow(self, attempt: "_Attempt") -> Result:
        """Waits for the end of the server's task."""
        answer = await self._follower.follow(
            attempt.task_id or "", attempt.command.attempt_id, attempt.notices.add, attempt.questions
        )
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

    async def _unanswerable(self, attempt: "_Attempt", what: str) -> Result:
        """Ends an attempt whose server asks for what nobody here can give."""
        if attempt.task_id is not None:
            await self._follower.end(attempt.task_id, attempt.command.attempt_id)
        return self._result(attempt, Answer("error", f"it asks for {what}, which omnid doesn't give"))

    async def _given_up(self, attempt: "_Attempt") -> Result:
        """Ends an attempt whose time is over or that was cancelled; the server has been told.

        Whether it obeys can't be seen of a call, as it doesn't answer a cancelled one; whether it still lives can. Of
        a task of its own it can be seen.
        """
        session = attempt.session
        if attempt.task_id is not None:
            return await self._ended_there(attempt, attempt.task_id)
        if attempt.called and session is not None and session.usable and not await session.answers(OBEY_S):
            session.fault("it was stuck after a call that it was told to stop")
        told = "The server was told to stop." if attempt.called else "The server had not been called."
        detail = f"no answer came in {attempt.timeout_s:g} s; the server was told to stop, and may have done it"
        return self._stopped(attempt, told, None if attempt.repeatable or not attempt.called else detail)

    async def _ended_there(self, attempt: "_Attempt", task_id: str) -> Result:
        """Ends the server's task with the attempt; what it came to in the end stands."""
        status, answer = await self._follower.end(task_id, attempt.command.attempt_id) or (None, None)
        if status == "completed" and answer is not None:
            return self._result(attempt, answer)
        if status is not None:
            return self._stopped(attempt, f"So was the server's task {task_id}.", None)
        detail = f"its task {task_id} wasn't done in {attempt.timeout_s:g} s, and it hasn't confirmed that it stops it"
        told = f"The server was told to end its task {task_id}, and hasn't confirmed it."
        return self._stopped(attempt, told, None if attempt.repeatable else detail)

    def _stopped(self, attempt: "_Attempt", told: str, unknown: str | None) -> Result:
        """Gives what an attempt came to that was ended; `unknown` says why nobody knows how far a call came."""
        command = attempt.command
        if attempt.cancelled:
            return command.ended("cancelled", Problem.make("cancelled", detail=told))
        if unknown is not None:
            return _unknown(command, unknown, repeatable=False)
        problem = Problem.make("attempt_timeout", timeout_s=f"{attempt.timeout_s:g}")
        return command.ended("timeout", problem)

    def _result(self, attempt: "_Attempt", answer: "Answer") -> Result:
        command = attempt.command
        detail = answer.text.strip()[:DETAIL_CHARS_MAX] or "it gave no reason"
        if answer.kind == "unknown":
            return _unknown(command, detail, repeatable=attempt.repeatable)
        self._keeper.worked()
        if answer.kind == "refused":
            return command.ended("rejected", Problem.make("bad_arguments", tool=attempt.tool, detail=detail))
        if answer.kind == "stopped":
            problem = Problem.make("reported_error", executor=self.name, detail=detail, task=command.name)
            return command.ended("rejected", problem)
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

    def _down(self, detail: str) -> Retryable:
        return Retryable("executor_down", executor=self.name, detail=detail)


class _Attempt:
    """One attempt in progress, and how far it came."""

    def __init__(self, command: Command, ports: Ports, timeout_s: float, notices: "AttemptLog", log: Logger) -> None:
        self.command = command
        self.ports = ports
        self.timeout_s = timeout_s
        self.allowance = Allowance(timeout_s)
        self.notices = notices
        self.questions = Questions(command.attempt_id, ports, self.allowance, log)
        self.session: McpSession | None = None
        self.tool = ""
        self.task_id: str | None = None
        """The task that the server has made of the call."""
        self.cancelled = False
        self.called = False
        self.repeatable = False


def _unknown(command: Command, detail: str, *, repeatable: bool) -> Result:
    """Makes the result of a call that nobody knows the end of: only what may be repeated counts as failed."""
    if repeatable:
        problem = Problem.make("executor_crashed", executor=command.executor, detail=detail, task=command.name)
        return command.ended("failure", problem)
    problem = Problem.make("uncertain", executor=command.executor, detail=detail, task=command.name)
    return command.ended("lost", problem)
