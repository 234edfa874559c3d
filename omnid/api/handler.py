"""What the socket does with a request: decodes its parameters, does the operation, and encodes the result."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import msgspec
from anyio.streams.memory import MemoryObjectReceiveStream
from msgspec import Raw

from omnid import __version__
from omnid.api.mcp_server import McpServer
from omnid.api.mcp_tools import TOOLS
from omnid.api.methods import METHODS, Api, Method
from omnid.api.shapes import Hello, Welcome
from omnid.api.socket import PREFIX, Connection, Request
from omnid.api.texts import NUL_IN_JSON, refuse_nul
from omnid.clock import is_uuid
from omnid.errors import Rejected
from omnid.flow.caller import Caller
from omnid.flow.presence import Presence
from omnid.model import AGENT_ORIGIN, USER_ORIGIN
from omnid.patterns import said
from omnid.store.interface import Outcome

T = TypeVar("T")

HELLO = f"{PREFIX}hello"


class Operation:
    """A method with its decoder, made once."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.decode = msgspec.json.Decoder(method.params).decode


class SocketHandler:
    """See `socket.Handler`."""

    def __init__(
        self,
        api: Api,
        mcp: McpServer,
        *,
        pid: int,
        incarnation: int,
        message_bytes_max: int,
        presence: Presence | None = None,
    ) -> None:
        self._api = api
        self._mcp = mcp
        self._presence = presence
        self._pid = pid
        self._incarnation = incarnation
        self._message_bytes_max = message_bytes_max
        self._operations = {f"{PREFIX}{name}": Operation(method) for name, method in METHODS.items()}
        self._hello = msgspec.json.Decoder(Hello).decode
        self._encode = msgspec.json.Encoder().encode

    def waits(self, request: Request) -> bool:
        """See `socket.Handler.waits`."""
        operation = self._operations.get(request.method)
        return operation is not None and operation.method.waits

    def begin(self, connection: Connection, request: Request, done: Callable[[Outcome[bytes]], None]) -> bool:
        """See `socket.Handler.begin`."""
        operation = self._operations.get(request.method)
        if operation is None or operation.method.begin is None or connection.tools is not None:
            return False
        try:
            params = _decoded(operation.decode, request.params, request.method)
        except Rejected:
            return False  # `call` says what is wrong with them.
        return self._api.begin(_caller(connection, request), operation.method, params, self._encode, done)

    async def call(self, connection: Connection, request: Request) -> bytes:
        """See `socket.Handler.call`; raises Rejected(`unknown_method`, `bad_request`) and what the operation raises."""
        operation = self._operations.get(request.method)
        if operation is None:
            if request.method == HELLO:
                return await self._welcome(connection, request)
            raise Rejected("unknown_method", method=request.method, version=__version__, hint="")
        if connection.tools is not None:
            # It asked for some of the tools, and what lies beside them isn't there for it either.
            hint = " to a client that gets tools alone"
            raise Rejected("unknown_method", method=request.method, version=__version__, hint=hint)
        params = _decoded(operation.decode, request.params, request.method)
        result = await self._api.call(_caller(connection, request), operation.method.name, params)
        return self._encode(result)

    async def serve_mcp(
        self,
        connection: Connection,
        lines: MemoryObjectReceiveStream[bytes],
        send: Callable[[bytes], Awaitable[None]],
    ) -> None:
        """See `socket.Handler.serve_mcp`."""
        connection.role = "agent"
        await self._mcp.serve(connection, lines, send)

    async def _welcome(self, connection: Connection, request: Request) -> bytes:
        hello: Hello = _decoded(self._hello, request.params, request.method)
        if hello.session is not None and not is_uuid(hello.session):
            raise Rejected("bad_request", detail="session is a UUID", where=request.method)
        if connection.role == "agent" and hello.role == "person":
            raise Rejected("not_allowed", method=HELLO, role="agent")
        tools = _tools(hello)
        connection.role = hello.role
        if tools is not None:
            # What a connection has given up it doesn't get back.
            connection.tools = tools if connection.tools is None else tools & connection.tools
        connection.read_only |= hello.readonly
        self._move(connection, _origin(hello))
        connection.session = hello.session
        inside = (None, ()) if hello.attempt is None else await self._api.inside_of(hello.attempt)
        connection.parent, connection.above = inside
        if hello.role == "agent":
            connection.tasks.start_soon(self._mcp.preload)
        return self._encode(Welcome(__version__, self._pid, self._incarnation, self._message_bytes_max))

    def _move(self, connection: Connection, origin: str | None) -> None:
        """Sets whose the client is, and has it missed when it goes."""
        before, presence = connection.origin, self._presence
        connection.origin = origin
        if presence is None or before == origin:
            return
        if before is not None:
            presence.went(before, connection.id)
        if origin is not None:
            presence.came(origin, connection.id)
        connection.gone = partial(presence.went, origin, connection.id) if origin is not None else None


def _tools(hello: Hello) -> frozenset[str] | None:
    """Gives the MCP tools that a client wants, None for all; raises Rejected(`bad_request`) for unknown ones."""
    if hello.expose is None and not hello.readonly:
        return None
    wanted = frozenset(TOOLS if hello.expose is None else hello.expose)
    unknown = wanted - TOOLS.keys()
    if unknown:
        detail = f"there is no tool {min(unknown)} (there are: {', '.join(TOOLS)})"
        raise Rejected("bad_request", detail=detail, where="expose")
    return frozenset(name for name in wanted if TOOLS[name].read_only or not hello.readonly)


def _origin(hello: Hello) -> str | None:
    """Gives the origin of a hello; people's own is never an agent's, so that its tasks can't pass for theirs."""
    return AGENT_ORIGIN if hello.role == "agent" and hello.origin == USER_ORIGIN else hello.origin


def _caller(connection: Connection, request: Request) -> Caller:
    origin = connection.origin or (USER_ORIGIN if connection.role == "person" else AGENT_ORIGIN)
    if connection.session is None:
        return Caller(connection.role, origin, parent=connection.parent, above=connection.above)
    request_id = bytes(request.id).decode(errors="replace")
    return Caller(connection.role, origin, connection.session, request_id, connection.parent, connection.above)


def _decoded(decode: Callable[[bytes | Raw], T], params: Raw, method: str) -> T:
    text = bytes(params)
    try:
        value = decode(text or b"{}")
    except msgspec.ValidationError as error:
        raise Rejected("bad_request", detail=said(error), where=f"the parameters of {method}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Rejected("bad_request", detail=str(error), where=f"the parameters of {method}") from error
    if NUL_IN_JSON in text:
        refuse_nul(value, f"the parameters of {method}")
    return value
