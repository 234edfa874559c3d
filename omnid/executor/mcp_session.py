"""A session with one running MCP server: its start, its tools, its calls, and how it ends.

The official SDK speaks the protocol, in both of its eras; this file is its transport, over a process that is ours.
Notifications never reach the SDK: it would start a task for each, and a server may send them without end. Importing
this module imports the SDK, which takes about a second and 40 MB: it is done in a thread, when the first server starts.
"""

import contextlib
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from typing import Any, Literal, cast

import anyio
import anyio.lowlevel
import mcp_types as types
import msgspec
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp import Client, ClientSession
from mcp.shared.exceptions import MCPError
from mcp.shared.message import SessionMessage
from msgspec import Struct
from pydantic import TypeAdapter, ValidationError

from omnid import __version__
from omnid.errors import Rejected, Retryable
from omnid.executor import mcp_listing
from omnid.executor.supervised import Server
from omnid.log import Logger
from omnid.wire import LineSplitter

MESSAGE_BYTES_MAX = 4 << 20
"""The longest line that a server may send."""
DISCOVER_S = 2.0
"""How long a server may take to answer ``server/discover``, which servers of the older era may ignore."""
PAGES_MAX = 100
"""How many pages of tools/list are read."""
GARBAGE_MAX = 1000
"""How many lines that are no messages a server may send before it counts as broken."""
LINES_PER_S_MAX = 1000
"""How many lines beside answers are read a second; a server that sends more is slowed down by its full pipe."""
UNSENT_MAX = 512
"""How many messages may wait for a server that doesn't read; one that asks on and on ends there."""
TEXT_CHARS_MAX = 4096
DETAIL_CHARS_MAX = 500
FAREWELL_S = 2.0
"""How long a server that has closed its output may take to end, to learn its exit code."""

Streams = tuple[MemoryObjectReceiveStream[SessionMessage | Exception], MemoryObjectSendStream[SessionMessage]]

_ANSWER: TypeAdapter[types.CallToolResult | types.InputRequiredResult] = TypeAdapter(
    types.CallToolResult | types.InputRequiredResult
)


class Tool(Struct, frozen=True):
    """What is known of a tool before it is called."""

    name: str
    schema: dict[str, Any]
    repeatable: bool
    """Its annotations say that calling it again does no harm: it only reads, or is idempotent."""


class Answer(Struct, frozen=True):
    """What came of a call: `done`, `error` (the tool says so), `refused` (bad arguments), `unknown` (nobody knows)."""

    kind: Literal["done", "error", "refused", "unknown"]
    text: str
    value: Any = None


class _Envelope(Struct):
    """As much of a message as tells where it goes."""

    method: str | None = None
    id: int | str | None = None
    params: msgspec.Raw = msgspec.Raw(b"{}")


class _Progress(Struct):
    progressToken: int | str  # noqa: N815 - the protocol's name.
    progress: float
    total: float | None = None
    message: str | None = None


class _LogMessage(Struct):
    level: str
    data: Any
    logger: str | None = None


class McpSession:
    """One server from its start to its end. `serve` runs it; the others are called meanwhile, from any task.

    It is `usable` once it has started, until it breaks, idles or is retired; `why_ended` then tells why.
    """

    def __init__(self, name: str, server: Server, log: Logger, *, legacy: bool = False) -> None:
        """`legacy`: the server is known to ignore ``server/discover``, so the session begins with ``initialize``."""
        self.name = name
        self.legacy = legacy
        self.tools: dict[str, Tool] = {}
        self.unusable: dict[str, str] = {}
        """Tools that the server describes in a way that the protocol doesn't allow, and what is wrong with them."""
        self.started = anyio.Event()
        self.why_ended: str | None = None
        self.broken = False
        """It ended by a fault of the server, so that the next start waits."""
        self._server = server
        self._log = log
        self._retired: str | None = None
        self._calls: dict[str, Callable[[str], None]] = {}
        """The open calls by their progress tokens, and what takes their progress and log notices."""
        self._changed = anyio.Event()
        self._inward, self._to_client = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        self._from_client, self._outward = anyio.create_memory_object_stream[SessionMessage](0)
        self._client: ClientSession | None = None
        self._discover_id: int | str | None = None
        self._discovering, self._discovered = anyio.Event(), anyio.Event()
        self._listings: set[int | str] = set()
        self._garbage = 0
        self._unpaced, self._paced_at_s = 0, 0.0

    @property
    def usable(self) -> bool:
        """Whether new calls can be made."""
        return self.started.is_set() and self.why_ended is None and self._retired is None

    async def serve(self, start_timeout_s: float, idle_s: float) -> None:
        """Starts the session and keeps it until it breaks, is retired, or nobody has called for `idle_s`.

        Returns with `why_ended` set; never raises for what the server does.
        """
        async with anyio.create_task_group() as group:
            group.start_soon(self._read)
            group.start_soon(self._write)
            group.start_soon(self._bound_discover)
            with anyio.CancelScope(deadline=anyio.current_time() + start_timeout_s) as starting:
                try:
                    async with Client(
                        self._transport(),
                        mode="legacy" if self.legacy else "auto",
                        log_level="info",
                        cache=None,
                        client_info=types.Implementation(name="omnid", version=__version__),
                    ) as client:
                        self._client = client.session
                        await self.list_tools()
                        starting.deadline = float("inf")
                        self.started.set()
                        await self._until_over(idle_s)
                except Exception as error:  # noqa: BLE001 - Whatever a server makes the SDK raise ends this session only.
                    self._break(f"it can't be talked to: {_leaf(error)}")
            if starting.cancelled_caught:
                self._break(await self._with_last_words(f"it didn't answer within {start_timeout_s:g} s of its start"))
            group.cancel_scope.cancel()

    @contextlib.contextmanager
    def held(self, token: str, notice: Callable[[str], None]) -> Generator[None]:
        """Keeps the session while a call is prepared and made; `notice` takes what the server says meanwhile."""
        self._calls[token] = notice
        self._ring()
        try:
            yield
        finally:
            del self._calls[token]
            self._ring()

    async def list_tools(self) -> None:
        """Reads the server's tools anew, page by page; raises Retryable ``executor_down`` where that fails."""
        tools: dict[str, Tool] = {}
        self.unusable = {}
        cursor: str | None = None
        try:
            for _ in range(PAGES_MAX):
                page = await self._session.list_tools(params=types.PaginatedRequestParams(cursor=cursor))
                tools |= {tool.name: _tool(tool) for tool in page.tools}
                cursor = page.next_cursor
                if cursor is None:
                    self.tools = tools
                    return
        except (MCPError, ValidationError) as error:
            raise self._down(self.why_ended or f"its tools can't be listed: {_leaf(error)}") from error
        raise self._down(f"its list of tools has more than {PAGES_MAX} pages")

    async def call(self, tool: str, arguments: dict[str, Any], token: str) -> Answer:
        """Calls a tool; the token is one of `held`. Cancelled, it tells the server (``notifications/cancelled``)."""
        params = types.CallToolRequestParams(name=tool, arguments=arguments, _meta={"progressToken": token})
        try:
            # Not call_tool: that checks results against the server's own schemas, unbounded, inside the loop.
            result = await self._session.send_request(types.CallToolRequest(params=params), _ANSWER)
        except MCPError as error:
            if error.code == types.CONNECTION_CLOSED:
                # However it ended, by an answer that breaks its reader too: nobody knows how far the call came.
                return Answer("unknown", self.why_ended or "the connection to it ended before it answered")
            kind = "refused" if error.code == types.INVALID_PARAMS else "error"
            return Answer(kind, f"{_short(error.error.message)} (JSON-RPC error {error.code})")
        except ValidationError as error:
            return Answer("unknown", f"its answer is no result of a tool: {_leaf(error)}")
        if isinstance(result, types.InputRequiredResult):
            return Answer("error", "it asks for further input, which omnid doesn't give")
        return Answer("error" if result.is_error else "done", _text(result.content), result.structured_content)

    async def answers(self, grace_s: float) -> bool:
        """Tells whether the server still answers, within the grace and a few seconds to tell it so."""
        with anyio.move_on_after(grace_s):
            try:
                await self._session.list_tools()
            except (MCPError, ValidationError):
                # An error is an answer too, unless the connection has ended.
                return self.why_ended is None
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
        self._inward.close()
        self._ring()

    @property
    def _session(self) -> ClientSession:
        if self._client is None:
            raise self._down(self.why_ended or "it has not started")
        return self._client

    async def _until_over(self, idle_s: float) -> None:
        while self.why_ended is None:
            idle = not self._calls
            if idle and self._retired is not None:
                self.why_ended = self._retired
                return
            self._changed = anyio.Event()
            with anyio.move_on_after(idle_s if idle else None):
                await self._changed.wait()
                continue
            self.retire(f"nobody has used it for {idle_s:g} s")

    @contextlib.asynccontextmanager
    async def _transport(self) -> AsyncGenerator[Streams]:
        """Gives the SDK its ends of the streams: what a transport of the SDK is."""
        async with self._to_client, self._from_client:
            yield self._to_client, self._from_client

    async def _read(self) -> None:
        splitter = LineSplitter(MESSAGE_BYTES_MAX)
        async with self._inward:
            try:
                while self.why_ended is None:
                    for line in splitter.feed(await self._server.receive()):
                        await self._take(line)
                    # What is always ready to be read must not keep all others from running.
                    await anyio.lowlevel.checkpoint()
            except anyio.EndOfStream:
                self._break(await self._farewell())
            except Rejected:
                self._break(f"it sent a line of more than {MESSAGE_BYTES_MAX} bytes")
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                # The SDK has let go, so the session is over already.
                self._ring()

    async def _write(self) -> None:
        async with self._outward:
            async for message in self._outward:
                if isinstance(message.message, types.JSONRPCRequest):
                    self._asks(message.message)
                line = message.message.model_dump_json(by_alias=True, exclude_unset=True)
                try:
                    await self._server.send(line.encode() + b"\n")
                except anyio.BrokenResourceError:
                    self._break(await self._farewell())
                    return

    async def _take(self, line: bytes) -> None:
        """Hands an answer or a request on to the SDK, and a notice to its call."""
        try:
            envelope = msgspec.json.decode(line, type=_Envelope)
            if envelope.method is not None:
                await self._pace()
                if envelope.id is None:
                    self._notice(envelope)
                    return
        except ValueError:
            # It may still be an answer: Python's own json writes numbers (NaN) that only the SDK reads.
            await self._pace()
        try:
            message = types.jsonrpc_message_adapter.validate_json(line, by_name=False)
        except ValueError:
            self._count_garbage(line)
            return
        if isinstance(message, types.JSONRPCResponse | types.JSONRPCError):
            message = self._answered(message)
        if isinstance(message, types.JSONRPCNotification):
            self._count_garbage(line)
        elif self._from_client.statistics().tasks_waiting_send > UNSENT_MAX:
            self._break("it asks on and on without reading the answers")
        else:
            await self._inward.send(SessionMessage(message))

    def _asks(self, request: types.JSONRPCRequest) -> None:
        """Remembers requests whose answers are looked at before the SDK gets them."""
        if request.method == "server/discover" and self._discover_id is None:
            self._discover_id = request.id
            self._discovering.set()
        elif request.method == mcp_listing.METHOD:
            self._listings.add(request.id)

    def _answered(self, message: types.JSONRPCResponse | types.JSONRPCError) -> types.JSONRPCMessage:
        """Looks at an answer; from a list of tools those go that can't be used, or the SDK would refuse all of it."""
        if message.id is not None and message.id == self._discover_id:
            self._discovered.set()
        if message.id not in self._listings:
            return message
        self._listings.remove(message.id)
        version = self._client.protocol_version if self._client is not None else None
        if isinstance(message, types.JSONRPCError) or version is None:
            return message
        result, faults = mcp_listing.usable(message.result, version)
        for name, fault in faults.items():
            self.unusable[name] = _leaf(fault)
            self._log.warning("mcp_tool_refused", server=self.name, tool=name, why=self.unusable[name])
        return message.model_copy(update={"result": result})

    @property
    def ignores_discover(self) -> bool:
        """Whether the server has left ``server/discover`` without an answer, as servers of the older era may."""
        return self._discovering.is_set() and not self._discovered.is_set()

    async def _bound_discover(self) -> None:
        """Answers ``server/discover`` for a server that doesn't: the SDK would wait ten seconds before it goes on.

        It then sends ``initialize``; a server that was only slow to start answers both, and the SDK finds its era.
        """
        await self._discovering.wait()
        with anyio.move_on_after(DISCOVER_S):
            await self._discovered.wait()
        if self.ignores_discover:
            nothing = types.ErrorData(code=types.METHOD_NOT_FOUND, message=f"no answer within {DISCOVER_S:g} s")
            error = types.JSONRPCError(jsonrpc="2.0", id=self._discover_id, error=nothing)
            with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                await self._inward.send(SessionMessage(error))

    def _notice(self, envelope: _Envelope) -> None:
        """Gives progress to its call; a log notice names no call, so that it goes to all that are open."""
        if envelope.method == "notifications/progress":
            progress = msgspec.json.decode(envelope.params, type=_Progress)
            of = "" if progress.total is None else f"/{progress.total:g}"
            notice = self._calls.get(str(progress.progressToken))
            if notice is not None:
                notice(f"[progress {progress.progress:g}{of}] {_short(progress.message or '', TEXT_CHARS_MAX)}\n")
        elif envelope.method == "notifications/message":
            said = msgspec.json.decode(envelope.params, type=_LogMessage)
            data = said.data if isinstance(said.data, str) else msgspec.json.encode(said.data).decode()
            line = f"[{_short(said.level, 20)}] {_short(data, TEXT_CHARS_MAX)}\n"
            for notice in self._calls.values():
                notice(line)

    async def _pace(self) -> None:
        self._unpaced += 1
        if self._unpaced >= LINES_PER_S_MAX:
            await anyio.sleep(max(0.0, self._paced_at_s + 1.0 - anyio.current_time()))
            self._unpaced, self._paced_at_s = 0, anyio.current_time()

    def _count_garbage(self, line: bytes) -> None:
        self._garbage += 1
        if self._garbage == 1:
            self._log.warning("mcp_garbage", server=self.name, line=_short(repr(line)))
        if self._garbage > GARBAGE_MAX:
            self._break(f"it sent more than {GARBAGE_MAX} lines that are no JSON-RPC messages")

    async def _farewell(self) -> str:
        """Says how the server ended."""
        how = "it closed its connection"
        with anyio.move_on_after(FAREWELL_S):
            how = await self._server.wait_closed()
        return await self._with_last_words(how)

    async def _with_last_words(self, how: str) -> str:
        tail = (await self._server.log_tail(DETAIL_CHARS_MAX)).strip()
        return f"{how}; its last words were: {tail}" if tail else how

    def _break(self, why: str) -> None:
        """Ends the session by a fault of the server."""
        if self.why_ended is None:
            self.broken = True
            self.end(self._retired or why)

    def _ring(self) -> None:
        self._changed.set()

    def _down(self, detail: str) -> Retryable:
        return Retryable("executor_down", executor=self.name, detail=detail)


def _tool(tool: types.Tool) -> Tool:
    hints = tool.annotations
    repeatable = hints is not None and (hints.read_only_hint is True or hints.idempotent_hint is True)
    return Tool(tool.name, tool.input_schema, repeatable)


def _text(content: Sequence[types.ContentBlock]) -> str:
    """Writes the content of an answer as text; what is no text is described."""
    return "\n".join(_block(block) for block in content)


def _block(block: types.ContentBlock) -> str:
    match block:
        case types.TextContent():
            return block.text
        case types.ImageContent() | types.AudioContent():
            return f"[{block.type}: {block.mime_type}, {_decoded_bytes(block.data)} bytes]"
        case types.ResourceLink():
            return f"[resource: {block.uri}]"
        case types.EmbeddedResource():
            resource = block.resource
            if isinstance(resource, types.TextResourceContents):
                return resource.text
            return f"[resource: {resource.uri}, {_decoded_bytes(resource.blob)} bytes]"


def _decoded_bytes(base64: str) -> int:
    return len(base64) * 3 // 4 - base64[-2:].count("=")


def _leaf(error: BaseException) -> str:
    """Gives the text of an error, or of the first one inside a group."""
    if isinstance(error, BaseExceptionGroup):
        return _leaf(cast("BaseExceptionGroup[BaseException]", error).exceptions[0])
    if isinstance(error, Retryable):
        return str(error.fields["detail"])
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        return _short(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}")
    return _short(str(error) or type(error).__name__)


def _short(text: str, chars_max: int = DETAIL_CHARS_MAX) -> str:
    return text if len(text) <= chars_max else f"{text[:chars_max]}..."
