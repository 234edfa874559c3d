"""A session with one running MCP server: its start, its tools, its calls and tasks, and how it ends.

The official SDK speaks the protocol, in both of its eras; `mcp_transport` and `mcp_http` carry its messages.
Notifications never reach the SDK: it would start a task for each, and a server may send them without end. Importing
this module imports the SDK, which takes about a second and 40 MB: it is done in a thread, when the first server starts.
"""

import contextlib
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from typing import Any

import anyio
import mcp_types as types
from mcp import Client, ClientSession
from mcp.client import advertise
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import TypeAdapter, ValidationError

from omnid import __version__
from omnid.errors import Retryable
from omnid.executor.mcp_inbox import SAID, SessionInbox, Streams
from omnid.executor.mcp_messages import Anything, OfTask, answer_of, leaf, outgoing, short, tool_of
from omnid.executor.mcp_shapes import Answer, Ask, Asked, Doubt, Party, Reply, Tool
from omnid.executor.mcp_tasks import (
    ERA_OF_TASKS,
    EXTENSION,
    RemoteTask,
    TaskGoneError,
    read_task,
)
from omnid.executor.mcp_transport import Broken, Transport, Trouble
from omnid.log import Logger

AUTO, LEGACY = "auto", "legacy"
LOOK_S = 30.0
"""How long a server may take to tell of a task."""
PAGES_MAX = 100
"""How many pages of tools/list are read."""
_RESPONSES: TypeAdapter[types.InputResponses] = TypeAdapter(types.InputResponses)
_ANSWER: TypeAdapter[types.CallToolResult | types.InputRequiredResult] = TypeAdapter(
    types.CallToolResult | types.InputRequiredResult
)


class McpSession:
    """One server from its start to its end. `serve` runs it; the others are called meanwhile, from any task.

    It is `usable` once it has started, until it breaks, idles or is retired; `why_ended` then tells why.
    """

    def __init__(
        self, name: str, transport: Transport, log: Logger, nameless: Callable[[], None] | None, mode: str = AUTO
    ) -> None:
        """`nameless` hears of questions that name no call; None: the server is told that nobody can be asked.

        `mode` says in which era the session begins: see `era`.
        """
        self.name = name
        self._mode = mode
        self._unreached = False
        self.tools: dict[str, Tool] = {}
        self.started = anyio.Event()
        self.why_ended: str | None = None
        self.broken = False
        """It ended by a fault of the server, so that the next start waits."""
        self._transport = transport
        self._log = log
        self._retired: str | None = None
        self._changed = anyio.Event()
        self._client: ClientSession | None = None
        self._asks = nameless is not None
        self._inbox = SessionInbox(
            name, log, lambda: self._client.protocol_version if self._client else None, nameless or (lambda: None)
        )

    @property
    def usable(self) -> bool:
        """Whether new calls can be made."""
        return self.started.is_set() and self.why_ended is None and self._retired is None

    @property
    def unusable(self) -> Mapping[str, str]:
        """See `SessionInbox.unusable`."""
        return self._inbox.unusable

    @property
    def era(self) -> str:
        """How the next session with the same server begins.

        One that ignores ``server/discover`` needn't be asked again, and one elsewhere that is known to be of the newer
        era isn't taken for an older one because it is slow. A start that fails ends that, unless it wasn't reached.
        """
        if not self.started.is_set():
            return self._mode if self._unreached else AUTO
        if self._transport.remote:
            version = self._session.protocol_version
            return version if version is not None and version in MODERN_PROTOCOL_VERSIONS else AUTO
        return LEGACY if self._mode == LEGACY or self._inbox.ignores_discover else AUTO

    @property
    def why_over(self) -> str:
        """Why new calls can't be made; empty while they can."""
        return self.why_ended or self._retired or ""

    async def serve(self, start_timeout_s: float, idle_s: float) -> None:
        """Starts the session and keeps it until it breaks, is retired, or nobody has called for `idle_s`.

        Returns with `why_ended` set; never raises for what the server does.
        """
        async with anyio.create_task_group() as group:
            group.start_soon(self._read)
            group.start_soon(self._write)
            if not self._transport.remote:
                # Over HTTP there is always an answer, and one that takes its time comes from a server that starts.
                group.start_soon(self._inbox.bound_discover)
            with anyio.CancelScope(deadline=anyio.current_time() + start_timeout_s) as starting:
                try:
                    async with Client(
                        self._streams(),
                        mode=self._mode,
                        log_level="info",
                        cache=None,
                        client_info=types.Implementation(name="omnid", version=__version__),
                        extensions=[advertise(EXTENSION)],
                        elicitation_callback=self._inbox.elicit if self._asks else None,
                    ) as client:
                        self._client = client.session
                        await self.list_tools()
                        starting.deadline = float("inf")
                        self.started.set()
                        await self._until_over(idle_s)
                except Exception as error:  # noqa: BLE001 - Whatever a server makes the SDK raise ends this session only.
                    self._break(f"it can't be talked to: {leaf(error)}")
            if starting.cancelled_caught:
                self._break(
                    await self._transport.with_last_words(f"it didn't answer within {start_timeout_s:g} s of its start")
                )
            group.cancel_scope.cancel()

    @contextlib.contextmanager
    def held(
        self,
        token: str,
        notice: Callable[[str], None],
        ask: Ask | None = None,
        task_id: str | None = None,
        may_ask: Doubt | None = None,
    ) -> Generator[None]:
        """Keeps the session while a call is prepared and made, or its task is followed.

        `notice` takes what the server says meanwhile, `ask` what it asks; without it nobody can be asked. `may_ask`
        is entered while one is held back that may be this call's.
        """
        self._inbox.parties[token] = Party(notice, ask, task_id, may_ask)
        self._ring()
        try:
            yield
        finally:
            self._inbox.leave(token)
            self._ring()

    async def list_tools(self) -> None:
        """Reads the server's tools anew, page by page; raises Retryable ``executor_down`` where that fails."""
        tools: dict[str, Tool] = {}
        self._inbox.unusable.clear()
        cursor: str | None = None
        try:
            for _ in range(PAGES_MAX):
                page = await self._session.list_tools(params=types.PaginatedRequestParams(cursor=cursor))
                tools |= {tool.name: tool_of(tool) for tool in page.tools}
                cursor = page.next_cursor
                if cursor is None:
                    self.tools = tools
                    return
        except MCPError as error:
            self._trouble(error)
            raise self._down(self.why_ended or f"its tools can't be listed: {leaf(error)}") from error
        except ValidationError as error:
            raise self._down(f"its tools can't be listed: {leaf(error)}") from error
        raise self._down(f"its list of tools has more than {PAGES_MAX} pages")

    async def call(
        self,
        name: str,
        arguments: dict[str, Any],
        token: str,
        *,
        keep_ms: int | None = None,
        reply: Reply | None = None,
    ) -> Answer | Asked | RemoteTask:
        """Calls a tool, as a task where the server has them; the token is one of `held`.

        `keep_ms` is how long a task should be kept; `reply` answers what the call asked before. Cancelled, it tells the
        server (``notifications/cancelled``).
        """
        tool = self.tools.get(name)
        as_task = keep_ms is not None and tool is not None and tool.tasks and self.has_tasks
        params = types.CallToolRequestParams(
            name=name,
            arguments=arguments,
            task=types.TaskMetadata(ttl=keep_ms) if as_task else None,
            input_responses=_RESPONSES.validate_python(reply.answers) if reply is not None else None,
            request_state=reply.state if reply is not None else None,
            _meta={"progressToken": token},
        )
        try:
            # Not call_tool: that checks results against the server's own schemas, unbounded, inside the loop.
            result = await self._session.send_request(types.CallToolRequest(params=params), _ANSWER)
            made = self._inbox.made.pop(token, None)
            return answer_of(result) if made is None else read_task(made)
        except MCPError as error:
            return self._answer_to(error)
        except ValueError as error:
            # pydantic's and msgspec's errors are of this kind.
            return Answer("unknown", f"its answer is no result of a tool: {leaf(error)}")
        finally:
            self._inbox.forget(token)

    async def look(self, task_id: str) -> RemoteTask:
        """Asks how a task is; raises TaskGoneError, or Retryable ``executor_down`` where it can't be asked now."""
        return self._task(await self._of_task("tasks/get", task_id))

    async def cancel_task(self, task_id: str) -> None:
        """Asks the server to end a task; raises as `look` does."""
        # One that has ended by itself meanwhile can't be cancelled (2025-11-25), which `look` will tell.
        with contextlib.suppress(TaskGoneError):
            await self._of_task("tasks/cancel", task_id)

    async def answer_task(self, task_id: str, answers: Mapping[str, Any]) -> None:
        """Answers what a task has asked; raises as `look` does."""
        await self._of_task("tasks/update", task_id, inputResponses=answers)

    async def result_of(self, task: RemoteTask) -> Answer:
        """Gives what the call would have answered that became a task, once that has ended; raises as `look` does."""
        if task.error is not None:
            return Answer("error", short(str(task.error.get("message") or "it failed")))
        if task.status == "cancelled":
            return Answer("stopped", f"its task {task.id} was cancelled there: {short(task.said) or 'it says no more'}")
        raw = task.result
        if raw is None and self.has_tasks:
            raw = await self._of_task("tasks/result", task.id, failed=task.status != "completed")
        try:
            said = answer_of(types.CallToolResult.model_validate(raw, by_name=False))
            return said if isinstance(said, Answer) else Answer("unknown", "")
        except ValidationError as error:
            return Answer("unknown", f"what its task came to is no result of a tool: {leaf(error)}")

    async def answers(self, grace_s: float) -> bool:
        """Tells whether the server still answers, within the grace and a few seconds to tell it so."""
        with anyio.move_on_after(grace_s):
            try:
                await self._session.list_tools()
            except MCPError as error:
                # An error is an answer too, unless the connection has ended.
                return self.why_ended is None and self._trouble(error) is None
            except ValidationError:
                return True
            return True
        return False

    def retire(self, why: str) -> None:
        """Takes no new calls, and ends the session with its last one."""
        self._retired = self._retired or why
        self._ring()

    def fault(self, why: str) -> None:
        """Retires the session by a fault of the server."""
        self.broken = True
        self.retire(why)

    def end(self, why: str) -> None:
        """Ends the session now; calls that are open learn that nobody will answer."""
        self.why_ended = self.why_ended or why
        self._inbox.inward.close()
        self._ring()

    @property
    def _session(self) -> ClientSession:
        if self._client is None:
            raise self._down(self.why_ended or "it has not started")
        return self._client

    @property
    def has_tasks(self) -> bool:
        """Whether calls may be made as tasks of the protocol itself, which came and went with 2025-11-25."""
        session = self._session
        greeting = session.initialize_result
        offered = greeting.capabilities.tasks if greeting is not None else None
        requests = offered.requests if offered is not None else None
        return session.protocol_version == ERA_OF_TASKS and requests is not None and requests.tools is not None

    async def _of_task(self, method: str, task_id: str, *, failed: bool = False, **more: Any) -> dict[str, Any]:
        """Makes a request about a task; where that can have `failed`, an error is its result."""
        try:
            request = OfTask(method=method, params={"taskId": task_id, **more})
            # A result may be waited for as long as the attempt lasts; all else is answered at once.
            limit_s = None if method == "tasks/result" else LOOK_S
            return (await self._session.send_request(request, Anything, limit_s)).model_dump(by_alias=True)
        except MCPError as error:
            if self._trouble(error) is not None or self.why_ended is not None:
                raise self._down(self.why_ended or error.error.message) from error
            if failed:
                text = types.TextContent(text=short(error.error.message))
                return types.CallToolResult(content=[text], is_error=True).model_dump(by_alias=True)
            if error.code in (types.INVALID_PARAMS, types.METHOD_NOT_FOUND):
                raise TaskGoneError(short(error.error.message)) from error
            raise self._down(f"it can't tell of its task: {short(error.error.message)}") from error
        except ValidationError as error:
            raise self._down(f"it can't tell of its task: {leaf(error)}") from error

    def _task(self, raw: Mapping[str, Any]) -> RemoteTask:
        try:
            return read_task(raw)
        except ValueError as error:
            raise self._down(f"what it tells of its task can't be read: {short(str(error))}") from error

    def _trouble(self, error: MCPError) -> Trouble | None:
        """Gives why a request got no answer; where the session is of no more use, it takes no new calls."""
        trouble: object = error.error.data
        if not isinstance(trouble, Trouble):
            closed = error.code == types.CONNECTION_CLOSED and trouble is not SAID
            return Trouble("unknown", self.why_ended or "") if closed else None
        if trouble.kind == "down":
            self._unreached = True
            self.fault(trouble.why)
        elif trouble.kind == "ended":
            self.retire(trouble.why)
        return trouble

    def _answer_to(self, error: MCPError) -> Answer:
        """Gives what a call has come to that ended with an error."""
        trouble = self._trouble(error)
        if trouble is None:
            kind = "refused" if error.code == types.INVALID_PARAMS else "error"
            return Answer(kind, f"{short(error.error.message)} (JSON-RPC error {error.code})")
        if trouble.kind in ("down", "ended"):
            return Answer("unsent", trouble.why)
        if trouble.kind == "refused":
            return Answer("error", trouble.why)
        # However it ended, by an answer that breaks its reader too: nobody knows how far the call came.
        return Answer("unknown", trouble.why or "the connection to it ended before it answered")

    async def _until_over(self, idle_s: float) -> None:
        while self.why_ended is None:
            idle = not self._inbox.parties
            if idle and self._retired is not None:
                self.why_ended = self._retired
                return
            self._changed = anyio.Event()
            with anyio.move_on_after(idle_s if idle else None):
                await self._changed.wait()
                continue
            self.retire(f"nobody has used it for {idle_s:g} s")

    @contextlib.asynccontextmanager
    async def _streams(self) -> AsyncGenerator[Streams]:
        """Gives the SDK its ends of the streams: what a transport of the SDK is."""
        async with self._inbox.to_client, self._inbox.from_client:
            yield self._inbox.to_client, self._inbox.from_client

    async def _read(self) -> None:
        async with self._inbox.inward:
            try:
                await self._transport.run(self._inbox)
            except Broken as error:
                self._break(str(error))
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                # The SDK has let go, so the session is over already.
                self._ring()

    async def _write(self) -> None:
        async with self._inbox.outward:
            async for message in self._inbox.outward:
                if isinstance(message.message, types.JSONRPCRequest):
                    self._inbox.asks(message.message)
                try:
                    await self._transport.send(outgoing(message))
                except anyio.BrokenResourceError:
                    self._break(await self._transport.farewell())
                    return

    def _break(self, why: str) -> None:
        """Ends the session by a fault of the server."""
        if self.why_ended is None:
            self.broken = True
            self.end(self._retired or why)

    def _ring(self) -> None:
        self._changed.set()

    def _down(self, detail: str) -> Retryable:
        return Retryable("executor_down", executor=self.name, detail=detail)
