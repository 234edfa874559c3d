"""MCP over streamable HTTP: a request for each message, answered by one JSON message or a stream of events.

Each request stands alone: what breaks one of them (a cut connection, garbage, a flood) ends that one only. What may
have reached the server is never sent again; a broken stream of events is taken up where it ended, which repeats
nothing. Redirects are followed within the server's own origin alone, because the token goes along.
Source: the transport of MCP 2025-11-25 and 2026-07-28.
"""

import contextlib
import ssl
from collections.abc import AsyncGenerator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urljoin, urlsplit

import anyio
import msgspec
from anyio.abc import TaskGroup
from msgspec import Struct

from omnid import __version__, platform
from omnid.executor.mcp_transport import MESSAGE_BYTES_MAX, Broken, Flow, Id, Inbox, Outgoing, Trouble
from omnid.executor.sse import EventReader, EventTooLargeError
from omnid.log import Logger
from omnid.worker.gateway_signs import chained, trouble_of

if TYPE_CHECKING:
    import httpcore2

CONNECTIONS_MAX = 256
KEPT_S = 2.0
"""How long an unused connection is kept: less than any server does, as one that it closes meanwhile may cost a call."""
WRITE_S = 30.0
"""How long a piece of a request may take to leave."""
TELL_S = 10.0
"""How long a server may take to confirm a message that is no request."""
TOLD_MAX = 32
"""How many of these may be under way; the answers to requests of a server that doesn't take them are left out then."""
GOODBYE_S = 2.0
REDIRECTS_MAX = 3
RESUMES_MAX = 5
"""How often in a row a stream of events is taken up again without bringing anything new."""
RESUME_S, RESUME_S_MIN, RESUME_S_MAX = 1.0, 0.1, 30.0
"""The wait before that: unless the server says otherwise, and the bounds of what it may say."""
ERROR_BYTES_MAX = 64 * 1024
SAID_CHARS_MAX = 300
ID_CHARS_MAX = 1024
SESSION, VERSION = "mcp-session-id", "mcp-protocol-version"

_DOWN = frozenset({401, 403, 404, 405, 407, 408, 421, 429, 503})
"""Statuses of a server (or what stands before it) that takes no request now, whichever it is."""
_WORDS = {
    "dns": "its name can't be resolved",
    "refused": "it refuses the connection",
    "unreachable": "there is no way to it",
    "tls": "TLS with it fails",
    "connect_timeout": "it didn't take the connection in time",
    "silence": "it stopped reading",
    "cut": "the connection to it broke",
    "garbage": "it doesn't speak HTTP",
    "unsendable": "it can't be sent what the config says",
}


class Endpoint(NamedTuple):
    """Where a server is reached, and with what; it holds secrets, and is never shown."""

    url: str
    headers: list[tuple[str, str]]
    tls: ssl.SSLContext | None
    """None: that of the library."""
    connect_timeout_s: float


class _Said(Struct):
    """As much of an answer as tells whether it is a JSON-RPC error."""

    error: dict[str, Any]
    id: int | str | None = None


class _Post:
    """A request under way."""

    def __init__(self, message: Outgoing, id: Id) -> None:
        self.message = message
        self.id = id
        self.scope = anyio.CancelScope()
        self.flow = Flow(id)
        self.event_id = ""
        self.retry_s = RESUME_S
        self.sent = False

    async def trace(self, event: str, _: Mapping[str, Any]) -> None:
        """Hears from the library when the request begins to leave."""
        if event == "http11.send_request_headers.started":
            self.sent = True


class HttpTransport:
    """Implements `Transport` for one session with a server somewhere else."""

    remote = True

    def __init__(self, name: str, endpoint: Endpoint, log: Logger) -> None:
        self._name = name
        self._endpoint = endpoint
        self._log = log
        self._url = endpoint.url
        self._pool: httpcore2.AsyncConnectionPool | None = None
        self._group: TaskGroup | None = None
        self._inbox: Inbox | None = None
        self._ready = anyio.Event()
        self._posts: dict[Id, _Post] = {}
        self._told, self._left_out = 0, False
        self._session = ""
        self._version = ""
        self._modern = False

    async def run(self, inbox: Inbox) -> None:
        """See `Transport.run`."""
        import httpcore2

        limit_s = self._endpoint.connect_timeout_s
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=self._endpoint.tls,
            max_connections=CONNECTIONS_MAX,
            keepalive_expiry=KEPT_S,
            socket_options=platform.watchful(limit_s),
        )
        async with anyio.create_task_group() as group:
            self._inbox, self._group = inbox, group
            self._ready.set()
            await anyio.sleep_forever()

    async def send(self, message: Outgoing) -> None:
        """See `Transport.send`; what becomes of a request, its inbox is told."""
        await self._ready.wait()
        group = self._group
        if group is None:
            raise anyio.BrokenResourceError
        if message.method == "initialize":
            self._version = ""
        elif VERSION in message.headers:
            self._version, self._modern = message.headers[VERSION], message.modern
        if message.method is not None and message.id is not None:
            post = self._posts[message.id] = _Post(message, message.id)
            group.start_soon(self._ask, post)
        elif message.cancels is not None:
            self._cancel(group, message, self._posts.get(message.cancels))
        elif message.method == "notifications/initialized":
            # What comes next may only come when this has arrived.
            await self._tell(message)
        else:
            group.start_soon(self._tell, message)

    async def farewell(self) -> str:
        """See `Transport.farewell`."""
        return "the connection to it ended"

    async def with_last_words(self, how: str) -> str:
        """See `Transport.with_last_words`; there are none."""
        return how

    async def close(self) -> None:
        """See `Transport.close`: takes leave of a server that keeps a session."""
        if self._pool is None:
            return
        with anyio.move_on_after(GOODBYE_S, shield=True):
            if self._session:
                await self._tell(Outgoing(b"", None, None, {}, modern=False), "DELETE")
            await self._pool.aclose()

    def _cancel(self, group: TaskGroup, message: Outgoing, post: _Post | None) -> None:
        """Cancels a request: from 2026-07-28 on by hanging up; before, the server is told, and then hung up on."""
        if post.message.modern if post is not None else self._modern:
            if post is not None:
                post.scope.cancel()
            return
        group.start_soon(self._let_go, message, post)

    async def _let_go(self, message: Outgoing, post: _Post | None) -> None:
        await self._tell(message)
        if post is not None:
            post.scope.cancel()

    async def _tell(self, message: Outgoing, method: str = "POST") -> None:
        """Sends a message that has no answer; one that gets lost is as one that the server ignores."""
        if self._told >= TOLD_MAX:
            if not self._left_out:
                self._log.warning(
                    "mcp_not_told", server=self._name, method=message.method, why="it takes none of these"
                )
            self._left_out = True
            return
        self._told += 1
        why = f"it didn't confirm it in {TELL_S:g} s"
        try:
            with anyio.move_on_after(TELL_S):
                async with self._stream(method, message, _nothing) as response:
                    # Read to its end, so that the connection can be used again.
                    await _whole(response, ERROR_BYTES_MAX)
                    why = f"it answered {response.status}" if response.status >= 300 else ""
        except Exception as error:  # noqa: BLE001 - Whatever the library raises here ends this message only.
            why = _words(error)
        finally:
            self._told -= 1
        if why and method == "POST":
            self._log.info("mcp_not_told", server=self._name, method=message.method or "an answer", why=why)

    async def _ask(self, post: _Post) -> None:
        """Makes a request and hands on what comes of it; one that is cancelled nobody waits for."""
        trouble = None
        try:
            with post.scope:
                trouble = await self._exchange(post)
                if trouble is not None and self._inbox is not None:
                    await self._inbox.fail(post.id, trouble)
        finally:
            if self._posts.get(post.id) is post:
                del self._posts[post.id]

    async def _exchange(self, post: _Post) -> Trouble | None:
        """Makes a request, and takes its stream up again where it breaks and the server has said how."""
        trouble = await self._once(post, "POST")
        barren = 0
        while trouble is not None and trouble.kind == "unknown" and post.event_id and barren < RESUMES_MAX:
            seen = post.event_id
            await anyio.sleep(post.retry_s)
            again = await self._once(post, "GET")
            if again is None:
                return None
            # The first request has been taken, whatever becomes of those for its stream.
            trouble = Trouble("unknown", f"{trouble.why}; then {again.why}" if again.kind != "unknown" else again.why)
            barren = 0 if post.event_id != seen else barren + 1
        return trouble

    async def _once(self, post: _Post, method: str) -> Trouble | None:
        """Makes one HTTP request for a message and reads what it brings; None: the answer."""
        try:
            for _ in range(REDIRECTS_MAX):
                post.sent = False
                async with self._stream(method, post.message, post.trace, post.event_id) as response:
                    moved = self._moved(response)
                    if moved is None:
                        return await self._read(post, response)
                self._url = moved
        except (Broken, EventTooLargeError) as error:
            return Trouble("unknown", str(error) or f"it sent an event of more than {MESSAGE_BYTES_MAX} bytes")
        except Exception as error:  # noqa: BLE001 - Whatever the library or the system raises here ends this request only.
            # Not the error itself: what it says of a header that can't be written holds the token.
            return Trouble("unknown" if post.sent else "down", _words(error))
        return Trouble("down", "it redirects on and on")

    @contextlib.asynccontextmanager
    async def _stream(
        self, method: str, message: Outgoing, trace: Any, event_id: str = ""
    ) -> "AsyncGenerator[httpcore2.Response]":
        if self._pool is None:
            raise anyio.ClosedResourceError
        limit_s = self._endpoint.connect_timeout_s
        headers = [("user-agent", f"omnid/{__version__}"), *self._endpoint.headers]
        if method == "POST":
            headers += [("accept", "application/json, text/event-stream"), ("content-type", "application/json")]
        else:
            headers += [("accept", "text/event-stream")] + ([("last-event-id", event_id)] if event_id else [])
        headers += [(name, value) for name, value in ((SESSION, self._session), (VERSION, self._version)) if value]
        headers += [(name, value) for name, value in message.headers.items() if name.lower() != VERSION]
        async with self._pool.stream(
            method,
            self._url,
            headers=headers,
            content=message.body if method == "POST" else None,
            extensions={"timeout": {"pool": limit_s, "connect": limit_s, "write": WRITE_S}, "trace": trace},
        ) as response:
            yield response

    def _moved(self, response: "httpcore2.Response") -> str | None:
        """Gives where the server wants the same request to go, if that is at its own origin."""
        if response.status not in (307, 308):
            return None
        to = urljoin(self._url, _header(response, "location"))
        return to if _origin(to) == _origin(self._url) and "@" not in urlsplit(to).netloc else None

    async def _read(self, post: _Post, response: "httpcore2.Response") -> Trouble | None:
        """Hands on what a response brings."""
        status, inbox = response.status, self._inbox
        if inbox is None:
            raise anyio.ClosedResourceError
        if 300 <= status < 400:
            to = _origin(urljoin(self._url, _header(response, "location")))
            return Trouble("down", f"it redirects to {to}, where omnid doesn't take what is meant for {self._origin}")
        if status >= 400:
            return await self._turned_down(post, response, inbox)
        if post.message.method == "initialize":
            self._session = _id(_header(response, SESSION))
        kind = _header(response, "content-type").partition(";")[0].strip().lower()
        if kind == "application/json":
            body = await _whole(response, MESSAGE_BYTES_MAX + 1)
            if len(body) > MESSAGE_BYTES_MAX:
                return Trouble("unknown", f"it sent an answer of more than {MESSAGE_BYTES_MAX} bytes")
            if not await inbox.take(body, post.flow):
                return Trouble("unknown", "what it answered is no answer")
            return None
        if kind == "text/event-stream":
            return await self._events(post, response, inbox)
        what = f"{kind[:100]}, which is neither JSON nor a stream of events" if kind else "nothing"
        return Trouble("unknown", f"it answered {status} with {what}")

    async def _events(self, post: _Post, response: "httpcore2.Response", inbox: Inbox) -> Trouble | None:
        reader = EventReader(MESSAGE_BYTES_MAX)
        async with contextlib.aclosing(response.aiter_stream()) as pieces:
            async for piece in pieces:
                await post.flow.pace()
                for data in reader.feed(piece):
                    # An empty event gives the stream its first id.
                    if data and await inbox.take(data, post.flow):
                        return None
                post.event_id = _id(reader.last_id) or post.event_id
                if reader.retry_ms is not None:
                    post.retry_s = min(max(reader.retry_ms / 1000, RESUME_S_MIN), RESUME_S_MAX)
        return Trouble("unknown", "its stream of events ended without an answer")

    async def _turned_down(self, post: _Post, response: "httpcore2.Response", inbox: Inbox) -> Trouble | None:
        """Says what a status of an error means; a JSON-RPC error in it is an answer like any other."""
        status = response.status
        said = _error_in(await _whole(response, ERROR_BYTES_MAX))
        own = said is not None and said.id == post.id
        # Some answer an unknown session with 400, and an error that belongs to no request.
        if self._session and not own and (status == 404 or (status == 400 and said is not None)):
            return Trouble("ended", f"it has forgotten the session (it answered {status})")
        words = f"it answered {status}"
        if said is not None and isinstance(message := said.error.get("message"), str):
            words += f": {message[:SAID_CHARS_MAX]}"
        if status in (401, 403, 429, 503) or (status in _DOWN and said is None):
            return Trouble("down", words)
        if said is not None:
            answer = {"jsonrpc": "2.0", "id": post.id, "error": said.error}
            if await inbox.take(msgspec.json.encode(answer), post.flow):
                return None
        return Trouble("unknown" if status >= 500 else "refused", words)

    @property
    def _origin(self) -> str:
        return _origin(self._url)


async def _whole(response: "httpcore2.Response", bytes_max: int) -> bytes:
    """Reads a body, or as much of it as is wanted."""
    body = bytearray()
    async with contextlib.aclosing(response.aiter_stream()) as pieces:
        async for piece in pieces:
            body += piece[: bytes_max - len(body)]
            if len(body) >= bytes_max:
                break
    return bytes(body)


async def _nothing(_event: str, _info: Mapping[str, Any]) -> None:
    """Hears from the library, and does nothing with it."""


def _header(response: "httpcore2.Response", name: str) -> str:
    wanted = name.encode()
    return next((value.decode("latin-1") for key, value in response.headers if key.lower() == wanted), "")


def _id(id: str) -> str:
    """Gives an id that may be sent back, of a session or an event: visible ASCII, as the protocol has it."""
    return id if len(id) <= ID_CHARS_MAX and all("!" <= letter <= "~" for letter in id) else ""


def _origin(url: str) -> str:
    """Gives scheme, host and port of a URL; what comes behind them, or stands before the host, may be a secret."""
    parts = urlsplit(url)
    try:
        port = parts.port or {"https": 443}.get(parts.scheme, 80)
    except ValueError:
        port = 0
    return f"{parts.scheme}://{parts.hostname}:{port}"


def _error_in(body: bytes) -> _Said | None:
    try:
        return msgspec.json.decode(body, type=_Said)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _words(error: BaseException) -> str:
    """Says in words what broke a request: what kind of trouble it is, and what the system says of it."""
    what, _ = trouble_of(error)
    detail = ""
    for link in chained(error):
        if isinstance(link, ssl.SSLCertVerificationError):
            detail = link.verify_message
        elif isinstance(link, OSError) and link.strerror and not detail:
            detail = link.strerror
    words = _WORDS.get(what, f"the request broke off ({type(error).__name__})")
    return f"{words} ({detail})" if detail else words
