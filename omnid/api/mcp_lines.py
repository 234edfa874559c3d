"""A client's lines as the MCP SDK's messages, and back: what is too much or can't be read is answered here.

Imported with `mcp_session`, in a thread.
"""

from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import anyio
import mcp_types as types
import msgspec
from anyio import CancelScope
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream
from mcp.shared.message import ServerMessageMetadata, SessionMessage
from msgspec import UNSET, Raw, Struct, UnsetType
from pydantic import ValidationError

from omnid import wire
from omnid.errors import Fatal, Rejected, Retryable

Send = Callable[[bytes], Awaitable[None]]

AHEAD_MAX = 8
"""How many messages before the first request are kept."""


class Client(Protocol):
    """What a client said of itself before it spoke MCP."""

    @property
    def origin(self) -> str | None:
        """Under which name its tasks go; None: under the one that it gives in MCP."""
        ...

    @property
    def session(self) -> str | None:
        """Its session, within which a repeat is answered and not done again; None: it has none."""
        ...

    @property
    def parent(self) -> str | None:
        """The task from inside which it comes."""
        ...

    @property
    def above(self) -> tuple[str, ...]:
        """The origins of that task and of those above it."""
        ...

    @property
    def tools(self) -> frozenset[str] | None:
        """The tools that it gets; None: all."""
        ...

    @property
    def read_only(self) -> bool:
        """Whether it asked for what changes nothing alone."""
        ...


class Stranger(NamedTuple):
    """A client that has said nothing of itself: one that came over HTTP."""

    origin: str | None = None
    session: str | None = None
    parent: str | None = None
    above: tuple[str, ...] = ()
    tools: frozenset[str] | None = None
    read_only: bool = False


class Session:
    """What the handlers know of the connection that a request came over."""

    def __init__(self, connection: Client, requests_max: int) -> None:
        self.connection = connection
        self.requests_max = requests_max
        self.requests_open = 0
        self.scope = CancelScope()
        self.group: TaskGroup
        """Where what outlasts a request lives: subscriptions."""
        self.fatal: Fatal | None = None
        self.tell: Send | None = None
        """Sends a line that answers nothing; None: notifications are not lines here, and the SDK sends them."""


class _Envelope(Struct):
    """The members that tell what kind of message a line is."""

    id: int | str | UnsetType | None = UNSET
    method: str | UnsetType = UNSET
    result: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET


class Lines:
    """A client's lines as the SDK's messages; what can't be read is answered here."""

    def __init__(self, session: Session, lines: MemoryObjectReceiveStream[bytes], send: Send) -> None:
        self._session = session
        self._lines = lines
        self._send = send
        self._ahead: deque[SessionMessage] = deque()
        """What was looked at and is still to be received."""

    async def opening(self) -> types.JSONRPCRequest | None:
        """Waits for the client's first request, which it leaves there to be received; None: it went without one.

        Of what comes before, which means nothing yet, the SDK keeps as much.
        """
        while True:
            try:
                message = await self._next()
            except anyio.EndOfStream:
                return None
            if isinstance(message.message, types.JSONRPCRequest):
                self._ahead.append(message)
                return message.message
            if len(self._ahead) < AHEAD_MAX:
                self._ahead.append(message)

    async def receive(self) -> SessionMessage | Exception:
        """Waits for the next message; raises EndOfStream when the client has gone."""
        return self._ahead.popleft() if self._ahead else await self._next()

    async def _next(self) -> SessionMessage:
        while True:
            line = await self._lines.receive()
            message = parsed(line)
            if isinstance(message, types.JSONRPCRequest) and self._session.requests_open >= self._session.requests_max:
                message = wire.error_answer(wire.id_json(message.id), _too_many(self._session.requests_max))
            if isinstance(message, bytes):
                await self._send(message)
            elif isinstance(message, types.JSONRPCRequest):
                self._session.requests_open += 1
                return SessionMessage(message, ServerMessageMetadata(on_request_unanswered=self._unanswered))
            elif message is not None:
                return SessionMessage(message)

    async def _unanswered(self) -> None:
        self._session.requests_open -= 1

    async def aclose(self) -> None:
        """Ends the stream."""
        await self._lines.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        await self.aclose()


class Answers:
    """The SDK's messages as lines to the client."""

    def __init__(self, session: Session, send: Send) -> None:
        self._session = session
        self._send = send
        session.tell = self._tell

    async def _tell(self, line: bytes) -> None:
        if self._session.fatal is None:
            await self._send(line)

    async def send(self, item: SessionMessage) -> None:
        """Sends a message, and waits until the client has taken it."""
        message = item.message
        interrupted = isinstance(message, types.JSONRPCError) and message.error.code == types.CONNECTION_CLOSED
        if interrupted or self._session.fatal is not None:
            # So the SDK answers what a stop interrupts. A relay would take it for the answer, and not ask again.
            return
        try:
            await self._send(_line(message))
        finally:
            if isinstance(message, types.JSONRPCResponse | types.JSONRPCError):
                self._session.requests_open -= 1

    async def aclose(self) -> None:
        """Does nothing: the connection belongs to the socket."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        await self.aclose()


def _line(message: types.JSONRPCMessage) -> bytes:
    if isinstance(message, types.JSONRPCResponse):
        # Its result is made of JSON's own types by now.
        return b'{"jsonrpc":"2.0","id":%b,"result":%b}\n' % (
            wire.id_json(message.id),
            msgspec.json.encode(message.result),
        )
    return message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n"


def parsed(line: bytes) -> types.JSONRPCMessage | bytes | None:
    """Reads a line: a message, or the line that refuses it, or None where it is an answer that can't be read."""
    try:
        envelope = msgspec.json.decode(line, type=_Envelope)
        if envelope.result is not UNSET or envelope.error is not UNSET:
            return _answer_to_us(line)
        message = types.jsonrpc_message_adapter.validate_json(line, by_name=False)
    except (msgspec.ValidationError, ValidationError) as error:
        detail = str(error).replace("`", "") if isinstance(error, msgspec.ValidationError) else "it is no JSON-RPC 2.0"
        return _refused(line, detail, wire.INVALID_REQUEST)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # A relay, whose JSON is another, may have read it, and waits for an answer with its id.
        return _refused(line, wire.why_unreadable(line, error), wire.PARSE_ERROR)
    if isinstance(message, types.JSONRPCRequest):
        return message
    if isinstance(message, types.JSONRPCNotification) and envelope.id is UNSET:
        return message
    # The SDK takes a request whose id it can't read for a notification, and would never answer it.
    return wire.error_answer(b"null", _unreadable("its id is neither a string nor an integer"), wire.INVALID_REQUEST)


def _answer_to_us(line: bytes) -> types.JSONRPCMessage | None:
    """Reads an answer to what the daemon has asked; the SDK drops those to what nobody asked."""
    try:
        message = types.jsonrpc_message_adapter.validate_json(line, by_name=False)
    except ValidationError:
        return None
    return message if isinstance(message, types.JSONRPCResponse | types.JSONRPCError) else None


def _refused(line: bytes, detail: str, number: int) -> types.JSONRPCMessage | bytes | None:
    """Refuses a request that can't be read; an answer to us that can't be counts as an error."""
    seen = wire.Glimpse.of(line)
    if seen.answered_id is None:
        return wire.error_answer(wire.id_json(seen.request_id), _unreadable(detail), number)
    return _answer_to_us(wire.error_answer(wire.id_json(seen.answered_id), _unreadable(detail), number))


def _unreadable(detail: str) -> Rejected:
    return Rejected("bad_request", detail=detail, where="the line")


def _too_many(limit: int) -> Retryable:
    return Retryable("too_many", count=limit + 1, things="open requests", limit=limit, setting="socket.requests_max")
