"""REST at `/api/v1`: addresses for operations of the one table, with the envelope ``{status, data, message}``.

Whoever comes in is an agent (`http_gate.Guest`), and sees what an agent sees over MCP, uncut. Plain ASGI 3.0.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast
from urllib.parse import parse_qsl

import anyio
import msgspec
from anyio import CancelScope
from msgspec import Struct, inspect

from omnid.api.http_gate import API, Receive, Scope, Send, answer, answer_json, guest_of, header
from omnid.api.mcp_tools import HIDDEN, visible
from omnid.api.methods import METHODS, Api, Method
from omnid.api.schedule_views import SCHEDULED
from omnid.api.shapes import Log, LogPart
from omnid.api.texts import refuse_nul
from omnid.errors import Fatal, OmnidError, Rejected, Retryable
from omnid.flow.caller import Caller
from omnid.log import Logger
from omnid.model import AGENT_ORIGIN, Submitted

T = TypeVar("T")

OPENAPI = "/openapi.json"
RETRY_AFTER_S = 5
"""When a client is told to try again what may work later."""
KEY_CHARS_MAX = 200
STREAM_WAIT_S = 20.0

STATUS: Mapping[str, int] = {
    **dict.fromkeys(("bad_request", "bad_cursor"), 400),
    **dict.fromkeys(("not_allowed", "other_origin", "executor_closed", "shows_all", "not_approved"), 403),
    **dict.fromkeys(("unknown_task", "unknown_attempt"), 404),
    **dict.fromkeys(("key_reused", "busy_key", "not_in_state", "ambiguous_task", "dependency_failed"), 409),
    "input_too_large": 413,
    "loop": 429,
    "internal": 500,
}
"""The statuses of errors; what isn't here is 503 where it may work later, and 422 where it never will."""


class Route(NamedTuple):
    """One address and verb for an operation."""

    verb: str
    path: str
    method: Method
    summary: str
    fixed: Mapping[str, Any] = {}
    """Parameters that the address itself stands for."""
    takes: frozenset[str] | None = None
    """Which of the others a client may give; None: all that an agent may."""

    @property
    def given(self) -> list[inspect.Field]:
        """The parameters that come in the query (GET) or in the body."""
        kind = cast("inspect.StructType", inspect.type_info(self.method.params))
        taken = {*self.fixed, *re.findall(r"\{(\w+)\}", self.path), *HIDDEN.get(kind.cls.__name__, ())}
        if self.takes is not None:
            return [field for field in kind.fields if field.name in self.takes]
        return [field for field in kind.fields if field.name not in taken]


def _control(action: str, summary: str, *takes: str) -> Route:
    path = f"/tasks/{{task}}/{action}"
    return Route("POST", path, METHODS["task.control"], summary, {"action": action}, frozenset(takes))


ROUTES: tuple[Route, ...] = (
    Route("POST", "/tasks", METHODS["task.submit"], "Hands over a task; answered when it is on the disk."),
    Route("GET", "/tasks", METHODS["task.list"], "Lists tasks, the newest first; or the inbox."),
    Route("GET", "/tasks/{task}/log", METHODS["task.log"], "Gives a piece of a task's output."),
    Route("GET", "/tasks/{task}", METHODS["task.get"], "Gives a task, after waiting for its end where that is asked."),
    _control("cancel", "Cancels a task."),
    _control("retry", "Runs a task again that failed or was cancelled."),
    _control("complete", "Ends a task by hand, where its origin has the right to.", "output"),
    Route("GET", "/status", METHODS["status"], "Says how omnid is doing."),
    Route("GET", "/offline/status", METHODS["mode.show"], "Says what omnid can reach."),
    Route("GET", "/offline/operations", METHODS["operations"], "Gives the history of the caller's own tasks."),
)


class _Address(NamedTuple):
    """A route, ready to be held against requests."""

    route: Route
    pattern: re.Pattern[str]
    given: Mapping[str, bool]
    """The parameters that a client may give, and whether they may be given several times."""


class Rest:
    """Answers what comes in below `/api/v1`."""

    def __init__(self, api: Api, log: Logger, fatal: Callable[[Fatal], None]) -> None:
        """`fatal` is told what has to end the daemon."""
        self._api = api
        self._log = log
        self._fatal = fatal
        self._addresses = [_address(route) for route in ROUTES]
        self._document: bytes | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        try:
            await self._serve(scope, receive, send)
        except Fatal as error:
            self._fatal(error)
            await answer(scope, send, 500, error)
        except _Gone:
            return
        except OmnidError as error:
            after = [(b"retry-after", b"%d" % RETRY_AFTER_S)] if isinstance(error, Retryable) else []
            await answer(scope, send, status_of(error), error, *after)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(API)
        if path == OPENAPI and scope["method"] == "GET":
            await answer_json(send, 200, self._described())
            return
        found = [(one, match) for one in self._addresses if (match := one.pattern.fullmatch(path)) is not None]
        # The first address that fits is meant: what comes after it is less exact.
        same = [(one, match) for one, match in found if one.route.path == found[0][0].route.path]
        chosen = next((pair for pair in same if pair[0].route.verb == scope["method"]), None)
        if chosen is None:
            await self._refuse(scope, send, [one.route.verb for one, _ in same] or (["GET"] if path == OPENAPI else []))
            return
        address, match = chosen
        body = _Body(receive)
        asked = await self._asked(address, match.groupdict(), scope, body)
        if isinstance(asked[1], Log) and "text/plain" in (header(scope, b"accept") or ""):
            await body.unless_gone(partial(self._stream, *asked, send))
            return
        result = await self._do(address.route.method, *asked, body)
        status, headers = 200, list[tuple[bytes, bytes]]()
        if isinstance(result, Submitted) and result.created:
            status = 201
            if result.state != SCHEDULED:
                headers = [(b"location", f"{API}/tasks/{result.id}".encode())]
        text = msgspec.json.encode({"status": "ok", "data": visible(result), "message": _said(result)})
        await answer_json(send, status, text, *headers)

    async def _refuse(self, scope: Scope, send: Send, verbs: list[str]) -> None:
        """Says that there is nothing at the address, or nothing with this verb."""
        allow = [(b"allow", ", ".join(verbs).encode())] if verbs else []
        await answer(scope, send, 405 if verbs else 404, _nowhere(scope, verbs), *allow)

    def _described(self) -> bytes:
        if self._document is None:
            from omnid.api.openapi import document

            self._document = msgspec.json.encode(document())
        return self._document

    async def _asked(
        self, address: _Address, named: dict[str, str], scope: Scope, body: "_Body"
    ) -> tuple[Caller, Struct]:
        """Makes the caller and the parameters of a request; raises Rejected where they can't be."""
        route = address.route
        origin = guest_of(scope).origin or AGENT_ORIGIN
        caller = Caller("agent", origin)
        where = f"{route.verb} {API}{route.path}"
        if route.verb == "GET":
            given = _query(scope, address.given, where)
            return caller, _converted(route, {**given, **named, **route.fixed}, where, strict=False)
        given = await body.read(where)
        for name in given.keys() - address.given.keys():
            raise _unreadable(f"Object contains unknown field `{name[:100]}`", where)
        key = _key(scope, where)
        if key is not None and route.method.params is METHODS["task.submit"].params:
            if given.setdefault("key", key) != key:
                raise _unreadable("the Idempotency-Key is another one than `key`", where)
        elif key is not None:
            # Submits are repeatable by their tasks' keys; all others by the answer that is kept.
            caller = msgspec.structs.replace(caller, session=f"http/{origin}", request_id=key)
        return caller, _converted(route, {**given, **named, **route.fixed}, where, strict=True)

    async def _do(self, method: Method, caller: Caller, params: Struct, body: "_Body") -> Struct:
        call = partial(self._api.call, caller, method.name, params)
        if method.waits:
            return await body.unless_gone(call)
        # What has begun is brought to its end whatever becomes of the client: a repeat finds it.
        with CancelScope(shield=True):
            return await call()
        raise AssertionError("nobody cancels this scope")

    async def _stream(self, caller: Caller, params: Log, send: Send) -> None:
        """Sends an attempt's output as it comes, to its end. What goes wrong on the way cuts the answer off."""
        part = await self._piece(caller, params)
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while True:
            await send({"type": "http.response.body", "body": part.text.encode(), "more_body": not part.ended})
            if part.ended:
                return
            at, attempt = part.next_offset_bytes, part.attempt
            params = msgspec.structs.replace(params, offset_bytes=at, attempt=attempt, wait_s=STREAM_WAIT_S)
            try:
                part = await self._piece(caller, params)
            except OmnidError as error:
                self._log.warning("stream_cut", **error.as_dict())
                raise _Gone from error

    async def _piece(self, caller: Caller, params: Log) -> LogPart:
        return cast("LogPart", await self._api.call(caller, "task.log", params))


class _Gone(Exception):
    """The client has gone away, so there is nobody to answer."""


class _Body:
    """The body of a request, and what comes after it: that the client goes away."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive

    async def read(self, where: str) -> dict[str, Any]:
        """Gives the JSON object of the body, an empty one where there is none; raises Rejected."""
        whole = bytearray()
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise _Gone
            whole += message.get("body", b"")
            more = message.get("more_body", False)
        try:
            return msgspec.json.decode(whole, type=dict[str, Any]) if whole else {}
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _unreadable(str(error), where) from error

    async def unless_gone(self, call: Callable[[], Awaitable[T]]) -> T:
        """Waits for an answer as long as the client does; raises `_Gone` where it has gone."""
        results: list[T] = []
        failed: list[Exception] = []
        async with anyio.create_task_group() as group:

            async def work() -> None:
                try:
                    results.append(await call())
                except (OmnidError, _Gone, TimeoutError) as error:
                    failed.append(error)
                group.cancel_scope.cancel()

            group.start_soon(work)
            while (await self._receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()
        if failed:
            raise failed[0]
        if not results:
            raise _Gone
        return results[0]


def status_of(error: OmnidError) -> int:
    """Gives the HTTP status of an error."""
    known = STATUS.get(error.code)
    return known if known is not None else 422 if isinstance(error, Rejected) else 503


def _address(route: Route) -> _Address:
    # An origin's name stands before its task's with a slash between them.
    pattern = route.path.replace("{task}", r"(?P<task>[^/]+(?:/t[0-9]+)?)")
    given = {field.name: _is_many(field.type) for field in route.given}
    return _Address(route, re.compile(pattern), given)


def _is_many(kind: inspect.Type) -> bool:
    if isinstance(kind, inspect.UnionType):
        return any(_is_many(one) for one in kind.types)
    if isinstance(kind, inspect.Metadata):
        return _is_many(kind.type)
    return isinstance(kind, inspect.VarTupleType | inspect.ListType)


def _query(scope: Scope, known: Mapping[str, bool], where: str) -> dict[str, Any]:
    """Reads the query; raises Rejected for what it may not hold."""
    given: dict[str, Any] = {}
    try:
        pairs = parse_qsl(scope["query_string"].decode("ascii"), keep_blank_values=True, errors="strict")
    except ValueError as error:
        raise _unreadable(f"the query is no text ({error})", where) from error
    for name, value in pairs:
        if name not in known:
            raise _unreadable(f"there is no parameter {name[:100]}", where)
        if known[name]:
            given.setdefault(name, []).append(value)
        elif name in given:
            raise _unreadable(f"{name} is given twice", where)
        else:
            given[name] = value
    return given


def _key(scope: Scope, where: str) -> str | None:
    """Gives the Idempotency-Key: in quotes, as its draft standard has it, or without, as most clients send it."""
    text = header(scope, b"idempotency-key")
    if text is None:
        return None
    key = text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text
    if not 0 < len(key) <= KEY_CHARS_MAX:
        raise _unreadable(f"the Idempotency-Key has 1 to {KEY_CHARS_MAX} characters, and is given once", where)
    return key


def _converted(route: Route, given: dict[str, Any], where: str, *, strict: bool) -> Struct:
    try:
        params = msgspec.convert(given, route.method.params, strict=strict)
    except msgspec.ValidationError as error:
        raise _unreadable(str(error), where) from error
    refuse_nul(params, where)
    return params


def _said(result: Struct) -> str:
    """Gives the sentence of a result that has one."""
    return str(getattr(result, "why", ""))


def _unreadable(detail: str, where: str) -> Rejected:
    return Rejected("bad_request", detail=detail, where=where)


def _nowhere(scope: Scope, verbs: list[str]) -> Rejected:
    path = scope["path"][:200]
    detail = f"{path} takes {' and '.join(verbs)}, not {scope['method'][:20]}" if verbs else f"there is no {path}"
    return Rejected(
        "http_refused",
        detail=detail,
        why=f"{API}{OPENAPI} lists every address with its verbs.",
        do="Correct the address or the verb.",
    )
