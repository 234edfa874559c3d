"""One MCP connection: the SDK's dual-era loop between a client's lines and the tools.

This module imports the MCP SDK, which takes most of a second and about 40 MB: only `mcp_server` imports it, in a
thread. The loop speaks 2026-07-28 (stateless) and 2025-11-25 (initialize) and takes the era of the first request.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import anyio
import mcp_types as types
import msgspec
from anyio import CancelScope
from anyio.streams.memory import MemoryObjectReceiveStream
from mcp.server.caching import CacheableMethod, CacheHint
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.runner import serve_dual_era_loop, serve_loop
from mcp.shared.exceptions import MCPError
from msgspec import Struct
from pydantic import ValidationError

from omnid import wire
from omnid.api.http_gate import App, Guest, guest_of
from omnid.api.mcp_asks import Asks
from omnid.api.mcp_calls import Calls, is_modern, unfit
from omnid.api.mcp_completions import Completions
from omnid.api.mcp_follow import Follow
from omnid.api.mcp_http import serving
from omnid.api.mcp_lines import Answers, Lines, Send, Session, Stranger
from omnid.api.mcp_looks import Looks
from omnid.api.mcp_resources import Resources
from omnid.api.mcp_subscriptions import Subscriptions
from omnid.api.mcp_tasks import Tasks
from omnid.api.mcp_tools import INSTRUCTIONS, TOOLS, Tool, shown
from omnid.api.methods import Api
from omnid.api.schedule_views import SCHEDULED
from omnid.api.shapes import Get, TaskView
from omnid.clock import Clock
from omnid.errors import Fatal, OmnidError, Rejected
from omnid.flow.caller import Caller
from omnid.log import Logger
from omnid.model import AGENT_ORIGIN, USER_ORIGIN, Submitted
from omnid.settings import Http
from omnid.states import TERMINAL

PROGRESS_S = 5.0
"""How often a wait reports progress to a client that asked for it."""

TOOLS_TTL_MS = 300_000
"""How long a client may keep the list of tools; it changes only with the program."""

_FIXED = CacheHint(ttl_ms=TOOLS_TTL_MS, scope="public")
CACHE_HINTS: Mapping[CacheableMethod, CacheHint] = {
    "tools/list": _FIXED,
    "prompts/list": _FIXED,
    "resources/list": _FIXED,
    "resources/templates/list": _FIXED,
    "resources/read": CacheHint(ttl_ms=0, scope="private"),
}
BEGIN = "Send initialize first, or say the version in the request's _meta (2026-07-28)."
ORIGIN_CHARS_MAX = 100
OTHER_ERA = "This connection was opened without the _meta of 2026-07-28, so that no request on it may carry it."


Context = ServerRequestContext[Session, Any]


class ToolServer(Calls):
    """The tools and tasks on the SDK's server; one serves all connections."""

    def __init__(self, api: Api, version: str, clock: Clock, log: Logger) -> None:
        self._api = api
        self._clock = clock
        self._log = log
        self._listed = types.ListToolsResult(tools=[_listed(tool) for tool in TOOLS.values()])
        self.server: Server[Any] = Server(
            "omnid",
            version=version,
            title="omnid",
            instructions=INSTRUCTIONS,
            cache_hints=CACHE_HINTS,
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
        )
        # The SDK's own makes a span of each request, for which nobody here collects any.
        self.server.middleware[:] = [self._keep_to_era]
        self._asks = Asks(api, self, log)
        looks = Looks(api, self)
        follow = Follow(api, self, looks)
        self._tasks = Tasks(api, self, self._asks, looks, follow, clock)
        self._tasks.install(self.server)
        Resources(self).install(self.server)
        Completions(self).install(self.server)
        Subscriptions(follow).install(self.server)
        self.server.middleware.append(self._greet)

    async def serve(self, session: Session, lines: MemoryObjectReceiveStream[bytes], send: Send) -> None:
        """Answers the client's lines until they end; raises what is Fatal."""
        reading, writing = Lines(session, lines, send), Answers(session, send)
        with session.scope:
            async with anyio.create_task_group() as session.group:
                opening = await reading.opening()
                if opening is None or _is_legacy(opening):
                    # The loop for both eras would hand each message through one more stream and task.
                    await serve_loop(self.server, reading, writing, lifespan_state=session)
                else:
                    await serve_dual_era_loop(self.server, reading, writing, lifespan_state=session)
                session.group.cancel_scope.cancel()
        if session.fatal is not None:
            raise session.fatal

    @asynccontextmanager
    async def over_http(self, settings: Http) -> AsyncGenerator[App]:
        """Gives what answers requests over HTTP; raises what is Fatal when the context ends."""
        session = Session(Stranger(), settings.connections_max)

        @asynccontextmanager
        async def lifespan(_server: Server[Any]) -> AsyncGenerator[Session]:
            yield session

        self.server.lifespan = lifespan
        with session.scope:
            async with anyio.create_task_group() as session.group:
                async with serving(self.server, settings) as app:
                    yield app
                session.group.cancel_scope.cancel()
        if session.fatal is not None:
            raise session.fatal

    async def _keep_to_era(self, ctx: Context, call_next: CallNext) -> HandlerResult:
        """Refuses a request of the later era on a connection that was opened in the earlier one.

        The SDK does so where it finds out the era by itself; over HTTP each request says it.
        """
        if ctx.request is None and not is_modern(ctx) and _has_envelope(ctx.params) and ctx.method != "initialize":
            raise MCPError(
                types.INVALID_REQUEST, OTHER_ERA, {"method": ctx.method, "do": "Open another connection for it."}
            )
        return await call_next(ctx)

    async def _greet(self, ctx: Context, call_next: CallNext) -> HandlerResult:
        """Says at the greeting what ended while the client was away, and of a request what is wrong with it."""
        try:
            result = await call_next(ctx)
        except ValidationError as error:
            raise unfit(ctx.method, error) from error
        except MCPError as error:
            if error.error.data != "":
                raise
            # Of the SDK's own: it tells nothing of a request that comes before its session.
            data = {"method": ctx.method, "do": BEGIN}
            raise MCPError(error.error.code, error.error.message, data) from error
        if ctx.method not in ("initialize", "server/discover") or not isinstance(result, dict):
            return result
        line = await self._api.inbox.line(_origin_of(ctx))
        return {**result, "instructions": f"{INSTRUCTIONS} {line}"} if line else result

    def offers(self, context: Context, name: str) -> bool:
        """See `Calls.offers`."""
        tools = context.lifespan_context.connection.tools
        return tools is None or name in tools

    async def _list_tools(
        self, context: Context, _params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        if context.lifespan_context.connection.tools is None:
            return self._listed
        return types.ListToolsResult(
            tools=[tool for tool in self._listed.tools if self.offers(context, tool.name)],
            ttl_ms=TOOLS_TTL_MS,
            cache_scope="private",
        )

    async def do(self, context: Context, name: str, params: Struct, part: str = "") -> Struct:
        """See `Calls.do`."""
        caller = _caller(context)
        if part:
            caller = msgspec.structs.replace(caller, request_id=f"{caller.request_id}/{part}")
        try:
            return await self._api.call(caller, name, params)
        except Fatal as error:
            # The SDK would answer it like any error; it has to end the daemon.
            context.lifespan_context.fatal = error
            context.lifespan_context.scope.cancel()
            raise

    def caller(self, context: Context) -> Caller:
        """See `Calls.caller`."""
        return _caller(context)

    async def _call_tool(self, context: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        """Does a call. What a model can mend comes back as the tool's result, so that the model gets to read it."""
        tool = TOOLS.get(params.name)
        if tool is None or not self.offers(context, params.name):
            known = [name for name in TOOLS if self.offers(context, name)]
            raise MCPError(types.INVALID_PARAMS, f"Unknown tool: {params.name[:100]}", {"tools": known})
        try:
            asked = tool.parse(params.arguments or {})
            done = (
                await self._get(context, asked, params)
                if isinstance(asked, Get)
                else await self._do(context, tool, asked)
            )
            if isinstance(done, dict):
                return cast("types.CallToolResult", done)
            if (
                isinstance(done, Submitted)
                and done.state != SCHEDULED
                and (task := await self._tasks.made(context, done.id))
            ):
                return cast("types.CallToolResult", task)
            result = shown(done)
        except (Fatal, MCPError):
            raise
        except OmnidError as error:
            return _failed(error)
        except Exception as error:  # noqa: BLE001 - a fault in one call must not end the client's other requests.
            self._log.error("mcp_call_failed", tool=tool.name, exc_info=error)
            return _failed(Rejected("internal", detail=f"{tool.name} broke off ({type(error).__name__})"))
        # The text is for clients that know no structured content.
        text = {"type": "text", "text": msgspec.json.encode(result).decode()}
        told = {"resultType": "complete", "content": [text], "structuredContent": result, "isError": False}
        return cast("types.CallToolResult", told)

    async def _do(self, context: Context, tool: Tool, params: Struct) -> Struct:
        if tool.read_only:
            return await self.do(context, tool.method.name, params)
        # A mutation that has begun is brought to its end whatever becomes of the client, so that its answer is there
        # when the client asks again.
        with CancelScope(shield=True):
            return await self.do(context, tool.method.name, params)
        raise AssertionError("nobody cancels this scope")

    async def _get(self, context: Context, params: Get, call: types.CallToolRequestParams) -> TaskView | dict[str, Any]:
        """Gives a task; while the client waits for its end, its user is asked what the task asks."""
        if call.input_responses and self.offers(context, "task_control"):
            await self._asks.take(context, params.task, call.input_responses)
        begun_s, asked = self._clock.monotonic_s(), set[str]()
        waited_s = 0.0
        while True:
            view = await self._wait(context, params, waited_s)
            if not params.wait_s:
                return view
            rounds = self._asks.round(context, view, call.request_state)
            if rounds is not None:
                return rounds
            if not await self._asks.elicit(context, view, asked):
                return view
            waited_s = self._clock.monotonic_s() - begun_s

    async def _wait(self, context: Context, params: Get, before_s: float) -> TaskView:
        """Waits for the end of a task, and says meanwhile how it stands where the client wants to hear that."""
        says = params.wait_s > PROGRESS_S and "progress_token" in (context.meta or {})
        begun_s, waited_s = self._clock.monotonic_s(), before_s
        while True:
            left_s = max(0.0, params.wait_s - waited_s)
            part = msgspec.structs.replace(params, wait_s=min(PROGRESS_S, left_s) if says else left_s)
            view = cast("TaskView", await self.do(context, TOOLS["task_get"].method.name, part))
            waited_s = before_s + self._clock.monotonic_s() - begun_s
            if not left_s and params.wait_s:
                return msgspec.structs.replace(view, timed_out=view.task.state not in TERMINAL)
            if not view.timed_out or not says or waited_s >= params.wait_s:
                return view
            await context.session.report_progress(waited_s, params.wait_s, f"{view.task.name} is {view.task.state}")


def _is_legacy(opening: types.JSONRPCRequest) -> bool:
    """Tells whether a connection begins as those before 2026-07-28 do: see `serve_dual_era_loop`."""
    return opening.method == "initialize" or not _has_envelope(opening.params)


def _has_envelope(params: Mapping[str, Any] | None) -> bool:
    meta: Any = (params or {}).get("_meta")
    return isinstance(meta, dict) and types.PROTOCOL_VERSION_META_KEY in meta


def _listed(tool: Tool) -> types.Tool:
    return types.Tool(
        name=tool.name,
        title=tool.title,
        description=tool.description,
        input_schema=tool.input_schema(),
        output_schema=tool.output_schema(),
        annotations=types.ToolAnnotations(
            read_only_hint=tool.read_only,
            destructive_hint=tool.destructive,
            idempotent_hint=tool.idempotent,
            open_world_hint=tool.open_world,
        ),
    )


def _failed(error: OmnidError) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(type="text", text=str(error))], is_error=True)


def _caller(context: Context) -> Caller:
    """Names who calls: over MCP always an agent, whoever holds the other end."""
    connection = context.lifespan_context.connection
    client = context.session.client_params
    return Caller(
        role="agent",
        origin=_named(context, client.client_info.name if client else None),
        session=connection.session,
        # As JSON, because the ids 1 and "1" are two.
        request_id=wire.id_json(context.request_id).decode(),
        parent=connection.parent,
        above=connection.above,
        read_only=connection.read_only,
    )


def _origin_of(context: Context) -> str:
    """Gives the origin of a client that greets: at `initialize` the session doesn't know its name yet."""
    info: Any = (context.params or {}).get("clientInfo")
    name: Any = cast("dict[str, Any]", info).get("name") if isinstance(info, dict) else None
    if context.method == "initialize" and isinstance(name, str):
        return _named(context, name)
    return _caller(context).origin


def _named(context: Context, client: str | None) -> str:
    """Gives the origin of a request: the one that its token names, else what its relay or client said.

    An origin with a token of its own is nobody's who comes over HTTP without it.
    """
    guest = Guest() if context.request is None else guest_of(context.request.scope)
    if guest.origin is not None:
        return guest.origin
    origin = origin_of(context.lifespan_context.connection.origin, client)
    return AGENT_ORIGIN if origin in guest.closed else origin


def origin_of(hello: str | None, client: str | None) -> str:
    """Gives the origin of an agent's tasks: what its relay said, else its client's name, made fit for ``origin/t7``.

    The origin of people's own tasks is never an agent's.
    """
    text = hello or "".join(char if char.isalnum() or char in "-_." else "-" for char in client or "")
    text = text[:ORIGIN_CHARS_MAX].strip("-")
    return AGENT_ORIGIN if text in ("", USER_ORIGIN) else text
