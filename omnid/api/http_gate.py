"""What stands in front of every HTTP request: how often it may come, under which name, from which page, and who asks.

Plain ASGI 3.0. Loopback is no protection from a browser: any page can send requests to it, and by rebinding a name of
its own (DNS rebinding) read the answers. So the Host must be one of ours, and an Origin one that the config names.
"""

import hmac
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, NamedTuple

import anyio
import msgspec

from omnid import platform, wire
from omnid.clock import Clock
from omnid.errors import OmnidError, Rejected
from omnid.log import Logger
from omnid.settings import Http as Settings

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

API = "/api/v1"
"""Where REST is served; what is answered there has its envelope."""

ADDRESSES_MAX = 4096
DRAIN_BYTES_MAX, DRAIN_S = 16 << 20, 1.0
"""How much of a body that is too large is still read, and for how long."""
WRONG_TOKEN_COST = 100
"""As how many requests a wrong token counts."""

_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
_UNAUTHORIZED, _FORBIDDEN, _TIMEOUT, _TOO_LARGE, _MISDIRECTED, _TOO_MANY = 401, 403, 408, 413, 421, 429


class Guest(NamedTuple):
    """What a request's token says of who asks."""

    origin: str | None = None
    """The origin that it names; None: it is the token for all."""
    closed: frozenset[str] = frozenset()
    """Origins that have a token of their own, so that nobody is one of them without it."""


_GUEST = "omnid.guest"


def guest_of(scope: Scope) -> Guest:
    """Gives what the token of a request says; where no token is asked for, it says nothing."""
    guest = scope.get(_GUEST)
    return guest if isinstance(guest, Guest) else Guest()


class Rates:
    """How many requests each address may still send: a bucket for each, filled steadily and as large as a second."""

    def __init__(self, per_s: int, clock: Clock) -> None:
        self._per_s = per_s
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, address: str, count: int = 1) -> float:
        """Takes `count` from an address's bucket; gives 0, or the seconds until there is one again."""
        now_s = self._clock.monotonic_s()
        left, at_s = self._buckets.pop(address, (float(self._per_s), now_s))
        left = min(self._per_s, left + (now_s - at_s) * self._per_s)
        wait_s = 0.0 if left >= 1 else (1 - left) / self._per_s
        self._buckets[address] = (left if wait_s else max(left - count, -float(self._per_s)), now_s)
        if len(self._buckets) > ADDRESSES_MAX:
            self._buckets.popitem(last=False)
        return wait_s


class Gate:
    """Lets requests through to `app` that may come in, and bounds how long their bodies take."""

    def __init__(self, settings: Settings, names: frozenset[str], rates: Rates, log: Logger, app: App) -> None:
        self._settings = settings
        self._names = names
        self._rates = rates
        self._log = log
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            return
        wait_s = self._rates.take(_address(scope))
        if wait_s:
            await answer(scope, send, _TOO_MANY, _too_often(), (b"retry-after", b"%d" % (wait_s + 1)))
            return
        host, origin = header(scope, b"host"), header(scope, b"origin")
        if host is None or not self._is_ours(host):
            await answer(scope, send, _MISDIRECTED, _foreign_host(host))
        elif origin is not None and not self._is_welcome(scope, origin, host):
            await answer(scope, send, _FORBIDDEN, _foreign_origin(origin))
        else:
            await self._pass(scope, _Bounded(receive, self._settings), _Watched(send))

    def _is_ours(self, host: str) -> bool:
        name, colon, port = host.rpartition(":")
        bare = name if colon and port.isdecimal() else host
        return host.lower() in self._names or bare.lower() in self._names

    def _is_welcome(self, scope: Scope, origin: str, host: str) -> bool:
        """Tells whether a page may call: one that the config names, or one that this server itself would serve."""
        return origin in self._settings.origins or origin == f"{scope['scheme']}://{host}"

    async def _pass(self, scope: Scope, receive: "_Bounded", send: "_Watched") -> None:
        try:
            length = header(scope, b"content-length") or ""
            if length.isdecimal() and int(length) > self._settings.body_bytes_max:
                raise TooLarge  # Before any of it is read.
            await self._app(scope, receive, send)
        except TimeoutError:
            if not receive.late or send.begun:
                raise
            await answer(scope, send, _TIMEOUT, _slow(self._settings.body_s))
        except TooLarge:
            if not send.begun:
                problem = Rejected("body_too_large", limit_bytes=self._settings.body_bytes_max)
                close = [] if await receive.drained() else [(b"connection", b"close")]
                await answer(scope, send, _TOO_LARGE, problem, *close)
        except Exception as error:  # noqa: BLE001 - a fault in one request must not end up in a library's log.
            self._log.error("http_failed", path=scope["path"], exc_info=error)
            if not send.begun:
                problem = Rejected("internal", detail=f"the request broke off ({type(error).__name__})")
                await answer(scope, send, 500, problem)


class Bearer:
    """Lets requests through that carry one of the tokens (RFC 6750, section 2.1), and notes whose it is."""

    def __init__(self, tokens: Mapping[str, str | None], rates: Rates, app: App) -> None:
        """`tokens` gives the origin that each token names; None: it is the one for all."""
        closed = frozenset(origin for origin in tokens.values() if origin is not None)
        self._guests = [(token.encode(), Guest(origin, closed)) for token, origin in tokens.items()]
        self._rates = rates
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        scheme, _, given = (header(scope, b"authorization") or "").partition(" ")
        guest = self._guest(given.strip().encode("latin-1")) if scheme.lower() == "bearer" else None
        if guest is not None:
            scope[_GUEST] = guest
            await self._app(scope, receive, send)
            return
        self._rates.take(_address(scope), WRONG_TOKEN_COST)
        challenge = (b"www-authenticate", b'Bearer realm="omnid"')
        await answer(scope, send, _UNAUTHORIZED, _no_token(given=bool(given)), challenge)

    def _guest(self, given: bytes) -> Guest | None:
        """Finds whose token it is, in the same time wherever it stands."""
        found = [guest for token, guest in self._guests if hmac.compare_digest(given, token)]
        return found[0] if found else None


class TooLarge(Exception):
    """A request's body is larger than the config allows; `Gate` answers it."""


class _Bounded:
    """A request's body, all of which must be there within some seconds, and not be larger than is allowed."""

    def __init__(self, receive: Receive, settings: Settings) -> None:
        self._receive = receive
        self._until = anyio.current_time() + settings.body_s
        self._left_bytes = settings.body_bytes_max
        self._whole = False
        self.late = False

    async def __call__(self) -> MutableMapping[str, Any]:
        if self._whole:
            return await self._receive()
        try:
            with anyio.fail_after(self._until - anyio.current_time()):
                message = await self._receive()
        except TimeoutError:
            self.late = True
            raise
        self._left_bytes -= len(message.get("body", b""))
        if self._left_bytes < 0:
            raise TooLarge
        self._whole = not message.get("more_body", False)
        return message

    async def drained(self) -> bool:
        """Reads on for a moment, as a client that is cut off may miss the answer; tells whether that was all of it."""
        left_bytes = DRAIN_BYTES_MAX
        with anyio.move_on_after(DRAIN_S):
            while not self._whole and left_bytes > 0:
                message = await self._receive()
                left_bytes -= len(message.get("body", b""))
                self._whole = not message.get("more_body", False)
        return self._whole


class _Watched:
    """Knows whether an answer has begun."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        self.begun = True
        await self._send(message)


def names_of(settings: Settings) -> frozenset[str]:
    """Gives the names that a Host may give: those of the config, and the address that is listened at."""
    host, _ = platform.host_port(settings.listen) or ("", 0)
    own = {f"[{host}]" if ":" in host else host} - {"", "0.0.0.0", "[::]"}  # noqa: S104 - these are left out.
    if platform.is_loopback(host):
        own |= _LOOPBACK_NAMES
    return frozenset(name.lower() for name in {*settings.hosts, *own})


async def answer(scope: Scope, send: Send, status: int, problem: OmnidError, *headers: tuple[bytes, bytes]) -> None:
    """Answers with an error of omnid's: in REST's envelope, else as the JSON-RPC error of a request not looked at."""
    rest = scope["path"].startswith(f"{API}/")
    await answer_json(send, status, envelope_of(problem) if rest else wire.error_answer(b"null", problem), *headers)


def envelope_of(problem: OmnidError) -> bytes:
    """Gives an error as REST says it."""
    return msgspec.json.encode({"status": "error", "data": problem.as_dict(), "message": str(problem)})


async def answer_json(send: Send, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    """Answers with JSON, which nobody is to keep."""
    content = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": [*content, *headers]})
    await send({"type": "http.response.body", "body": body})


async def answer_empty(send: Send, status: int) -> None:
    """Answers without a body."""
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


def header(scope: Scope, name: bytes) -> str | None:
    """Gives a header; None where there is none, and nothing that fits where there are several."""
    values = [value.decode("latin-1") for key, value in scope["headers"] if key == name]
    return values[0] if len(values) == 1 else "" if values else None


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return client[0] if client else ""


def _too_often() -> Rejected:
    return Rejected(
        "http_refused",
        detail="too many came from this address",
        why="http.requests_per_s_max bounds what one address may send.",
        do="Wait for the seconds in Retry-After, or raise http.requests_per_s_max in the config.",
    )


def _foreign_host(host: str | None) -> Rejected:
    return Rejected(
        "http_refused",
        detail=f"its Host is {(host or 'missing')[:100]}",
        why="A name that isn't the server's own may be a web page's that points here.",
        do="Call it by the address in http.listen, or add the name to http.hosts in the config.",
    )


def _foreign_origin(origin: str) -> Rejected:
    return Rejected(
        "http_refused",
        detail=f"it comes from a page of {origin[:100] or 'several origins'}",
        why="Any web page can send requests to this machine, and only those in the config may.",
        do="Add the origin to http.origins in the config, if the page is yours.",
    )


def _no_token(*, given: bool) -> Rejected:
    return Rejected(
        "http_refused",
        detail="its token is wrong" if given else "it has no token",
        why="The config asks for a token (http.token, or that of an [[origin]]), and whoever has it may come in.",
        do="Send the header `Authorization: Bearer TOKEN`.",
    )


def _slow(body_s: float) -> Rejected:
    return Rejected(
        "http_refused",
        detail=f"its body took more than {body_s} s",
        why="http.body_s bounds how long a request may be on its way.",
        do="Send it again, or raise http.body_s in the config.",
    )
