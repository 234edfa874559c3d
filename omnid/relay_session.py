"""What a relay keeps of one MCP session, so that a daemon that comes back can go on where the last one left off.

No I/O, no clock; standard library only.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

from omnid import __version__, wire
from omnid.errors import OmnidError, Rejected, Retryable

OPEN_MAX = 256
OPEN_BYTES_MAX = 16 << 20
BUFFER_BYTES_MAX = 1 << 20
"""What may wait to be written to one side before the other side is no longer read."""

MESSAGE_BYTES_MAX = 4 << 20
"""What the daemon takes in one line, until it says so itself."""

ASKED_MAX = 256
REPLAYS_MAX = 256
SENDS_MAX = 20
"""How often a request is sent to daemons that die soon: one that brings the daemon down must not do so for ever."""

CALM_S = 10.0
"""After how long a daemon's end is no longer put down to the requests that it had."""

_HELLO_ID = "omnid-hello"
_SUBSCRIBE, _UNSUBSCRIBE, _LISTEN = "resources/subscribe", "resources/unsubscribe", "subscriptions/listen"
_ACKNOWLEDGED, _UPDATED = "notifications/subscriptions/acknowledged", "notifications/resources/updated"
_SUBSCRIPTION = "io.modelcontextprotocol/subscriptionId"
_INITIALIZE, _INITIALIZED, _CANCELLED = "initialize", "notifications/initialized", "notifications/cancelled"
_OTHER_VERSION = frozenset({"bad_request", "unknown_method"})
"""With what a daemon refuses a hello that it can't understand."""


class _Request:
    """A request of the client that has no answer yet."""

    __slots__ = ("acknowledged", "at_s", "id", "line", "method", "sends", "sent_s")

    def __init__(self, request_id: int | str, method: str, line: bytes, at_s: float) -> None:
        self.id = request_id
        self.method = method
        self.line = line
        self.at_s = at_s
        self.sends = 0
        self.sent_s = at_s
        self.acknowledged = False
        """Of a subscription: whether the client knows what it gets."""


class Session:
    """One MCP session across any number of connections to the daemon: each request is answered once.

    It keeps what a new daemon must hear again: the initialize of the client, its live subscriptions, and the requests
    without an answer. `to_client` and `to_daemon` are what has to be written; the caller takes it away from the front.
    """

    def __init__(
        self,
        session: str,
        path: str,
        away_s: float,
        note: Callable[[str], None],
        now_s: float,
        attempt: str | None = None,
        *,
        asked: Mapping[str, object] | None = None,
    ) -> None:
        """`attempt` is the one from inside which the client works, if any; `asked` goes into the hello."""
        self._asked_for = dict(asked or {})
        self.to_client = bytearray()
        self.to_daemon = bytearray()
        self.open: dict[int | str, _Request] = {}
        self.phase: Literal["away", "greeting", "initializing", "up"] = "away"
        self.problem: OmnidError | None = None
        """Why the daemon can't be had, as far as it is known."""
        self._session = session
        self._attempt = attempt
        self._path = path
        self._away_s = away_s
        self._note = note
        self._away_since_s = now_s
        self._open_bytes = 0
        self._limit_bytes = MESSAGE_BYTES_MAX
        self._replays: dict[str, _Request] = {}
        self._initialized = b""
        self._dialled = 0
        self._asked: dict[str, Any] = {}
        """Requests of the daemon without an answer: the ids that the client saw, and the daemon's own."""

    @property
    def full(self) -> bool:
        """Whether no more can be taken from the client for now."""
        return (
            len(self.open) >= OPEN_MAX
            or self._open_bytes >= OPEN_BYTES_MAX
            or len(self.to_daemon) >= BUFFER_BYTES_MAX
            or len(self.to_client) >= BUFFER_BYTES_MAX
        )

    @property
    def wanted(self) -> bool:
        """Whether the client waits for something; a subscription alone is no reason to start a daemon."""
        return any(request.method != _LISTEN for request in self.open.values())

    @property
    def handed_on(self) -> bool:
        """Whether the daemon has everything that it must have although the client goes."""
        return not (self.to_daemon if self.phase == "up" else self.wanted)

    def connected(self) -> None:
        """Begins to talk to a daemon."""
        self.phase = "greeting"
        self._dialled += 1
        hello = {"session": self._session, "role": "agent", "version": __version__, **self._asked_for}
        if self._attempt is not None:
            hello["attempt"] = self._attempt
        self.to_daemon += wire.request(_HELLO_ID, "omnid/hello", hello)

    def lost(self, now_s: float) -> None:
        """Forgets the connection; what is open will be sent again."""
        if self.phase == "up":
            self._away_since_s = now_s
            for request in self.open.values():
                if now_s >= request.sent_s + CALM_S:
                    request.sends = min(request.sends, 1)
        self.phase = "away"
        self.to_daemon.clear()
        for own_id in self._asked:
            # Nobody waits for the answer any more; what is still to be asked, the next daemon asks anew.
            params = {"requestId": own_id, "reason": "omnid has gone away"}
            self.to_client += wire.line({"jsonrpc": "2.0", "method": _CANCELLED, "params": params})
        self._asked.clear()

    def expire(self, now_s: float) -> None:
        """Answers the requests for which the daemon has been away for too long."""
        while (deadline_s := self.deadline_s()) is not None and deadline_s <= now_s:
            request = next(iter(self.open.values()))
            self._close(request)
            detail = f"It has been away for {self._away_s:g} s. {self.problem or ''}".rstrip()
            if request.sends:
                self._refuse(request.id, Retryable("daemon_lost", detail=detail))
            else:
                self._refuse(request.id, Retryable("daemon_down", path=self._path, detail=detail))

    def deadline_s(self) -> float | None:
        """Tells when `expire` has something to do: the oldest request comes first."""
        if self.phase == "up" or not self.open:
            return None
        return max(next(iter(self.open.values())).at_s, self._away_since_s) + self._away_s

    def from_client(self, line: bytes | wire.Glimpse, now_s: float) -> None:
        """Takes a line of the client."""
        if isinstance(line, wire.Glimpse):
            self._drop(line, self._too_large())
            return
        try:
            message = _decoded(line)
        except (ValueError, RecursionError) as error:
            self._drop(wire.Glimpse.of(line), _unreadable(f"it is no JSON ({error})"), wire.PARSE_ERROR)
            return
        if not isinstance(message, dict):
            self._refuse(None, _unreadable("it is no object; send one message a line"), wire.INVALID_REQUEST)
            return
        fields = cast("dict[str, Any]", message)
        method, message_id = fields.get("method"), fields.get("id")
        if not isinstance(method, str):
            self._reply(fields)
        elif "id" not in fields:
            self._notification(method, fields, line)
        elif isinstance(message_id, int | str) and not isinstance(message_id, bool):
            self._request(_Request(message_id, method, line, now_s))
        else:
            self._refuse(None, _unreadable("its id is neither a string nor an integer"), wire.INVALID_REQUEST)

    def from_daemon(self, line: bytes | wire.Glimpse, now_s: float) -> None:
        """Takes a line of the daemon; only what the client waits for, asked for or must know goes on to it."""
        if isinstance(line, wire.Glimpse):
            self._note("the daemon sent a line that is too long; it was dropped")
            request_id = line.answered_id
            if request_id is not None and request_id in self.open:
                self._close(self.open[request_id])
                self._refuse(request_id, Rejected("internal", detail="the answer is longer than a relay takes"))
            return
        try:
            message = cast("dict[str, Any]", _decoded(line))
            method, message_id = message.get("method"), message.get("id")
        except (ValueError, RecursionError, AttributeError):
            self._note("the daemon sent a line that is no JSON object; it was dropped")
            return
        if isinstance(method, str):
            self._pass_to_client(method, message, line)
        elif self.phase == "greeting":
            self._greeted(message, now_s)
        elif isinstance(message_id, int | str) and message_id in self.open:
            request = self.open[message_id]
            self._close(request)
            self.to_client += line + b"\n"
            if "error" not in message:
                self._remember(request)
        elif self.phase == "initializing" and message_id == self._replays[_INITIALIZE].id:
            if "error" in message:
                self._note(f"the daemon took the session over with an error: {message['error']}")
            self._go_up(now_s)
        elif message_id is None:
            self.problem = wire.error_from(message.get("error"))
            self._note(f"the daemon reports: {self.problem}")

    def _drop(self, line: wire.Glimpse, problem: OmnidError, number: int | None = None) -> None:
        """Says of a line that can't be kept or read that it was dropped, to whoever waits for what it was."""
        if line.answered_id is not None:
            self._reply({"jsonrpc": "2.0", "id": line.answered_id, "error": wire.error_object(problem, number)})
        elif (request_id := line.request_id) is None or request_id not in self.open:
            self._refuse(request_id, problem, number)
        else:
            self._note_id_in_use(request_id)

    def _too_large(self) -> Rejected:
        return Rejected("message_too_large", limit_bytes=self._limit_bytes)

    def _note_id_in_use(self, request_id: int | str) -> None:
        # The first one's answer will be the answer; a second one couldn't be told from it.
        self._note(f"the request id {request_id!r} is in use already; the second request was dropped")

    def _request(self, request: _Request) -> None:
        if request.id in self.open:
            self._note_id_in_use(request.id)
            return
        self.open[request.id] = request
        self._open_bytes += len(request.line)
        if self.phase == "up":
            self._send(request, request.at_s)

    def _send(self, request: _Request, now_s: float) -> None:
        if len(request.line) > self._limit_bytes:
            self._close(request)
            self._refuse(request.id, self._too_large())
            return
        if request.sends >= SENDS_MAX:
            self._close(request)
            detail = f"It has gone away {SENDS_MAX} times while it worked on this request."
            self._refuse(request.id, Retryable("daemon_lost", detail=detail))
            return
        request.sends += 1
        request.sent_s = now_s
        self.to_daemon += request.line + b"\n"

    def _close(self, request: _Request) -> None:
        del self.open[request.id]
        self._open_bytes -= len(request.line)

    def _notification(self, method: str, message: dict[str, Any], line: bytes) -> None:
        if method == _INITIALIZED:
            self._initialized = line
        elif method == _CANCELLED:
            request_id = _params(message).get("requestId")
            if isinstance(request_id, int | str) and request_id in self.open:
                self._close(self.open[request_id])
        # A daemon that is away misses the other notifications, as MCP allows: a new one starts with what is replayed.
        if self.phase == "up":
            self._pass_on(line + b"\n")

    def _reply(self, message: dict[str, Any]) -> None:
        """Passes on the client's answer to a request of the daemon; what an earlier daemon asked is dropped."""
        own_id = message.get("id")
        if not isinstance(own_id, str) or own_id not in self._asked:
            return
        asked_id = self._asked.pop(own_id)
        try:
            answer = wire.line({**message, "id": asked_id})
        except ValueError as error:  # A number beyond what JSON can say here, such as 1e999.
            answer = wire.error_answer(wire.id_json(asked_id), _unreadable(str(error)))
        if len(answer) > self._limit_bytes:
            answer = wire.error_answer(wire.id_json(asked_id), self._too_large())
        self.to_daemon += answer

    def _pass_on(self, line: bytes) -> None:
        if len(line) <= self._limit_bytes:
            self.to_daemon += line
        else:
            self._note(f"a message of more than {self._limit_bytes} bytes was dropped")

    def _pass_to_client(self, method: str, message: dict[str, Any], line: bytes) -> None:
        """Passes on a request or a notification. Every daemon counts its requests anew, so they get ids of our own."""
        if "id" in message:
            own_id = f"{self._dialled}:{json.dumps(message['id'])}"
            self._asked[own_id] = message["id"]
            if len(self._asked) > ASKED_MAX:
                del self._asked[next(iter(self._asked))]
            self.to_client += wire.line({**message, "id": own_id})
        elif method == _CANCELLED and "requestId" in _params(message):
            own_id = f"{self._dialled}:{json.dumps(_params(message)['requestId'])}"
            self._asked.pop(own_id, None)
            self.to_client += wire.line({**message, "params": {**_params(message), "requestId": own_id}})
        elif method == _ACKNOWLEDGED and self._acknowledged_before(message):
            meta = _params(message).get("_meta")
            for uri in _mapping(_params(message).get("notifications")).get("resourceSubscriptions") or ():
                self._say_updated({"uri": uri, "_meta": meta})
        else:
            self.to_client += line + b"\n"

    def _acknowledged_before(self, message: dict[str, Any]) -> bool:
        """Tells whether an earlier daemon has acknowledged a subscription already, which the client hears once.

        It is cleared of the suspicion that it brings daemons down: this one has taken it and goes on.
        """
        request_id = _mapping(_params(message).get("_meta")).get(_SUBSCRIPTION)
        request = self.open.get(request_id) if isinstance(request_id, int | str) else None
        if request is None:
            return False
        request.sends = 1
        before, request.acknowledged = request.acknowledged, True
        return before

    def _say_updated(self, params: dict[str, Any]) -> None:
        """Says of a resource that it may have changed while no daemon was there to tell."""
        self.to_client += wire.line({"jsonrpc": "2.0", "method": _UPDATED, "params": params})

    def _greeted(self, message: dict[str, Any], now_s: float) -> None:
        if "result" not in message:
            self.problem = wire.error_from(message.get("error"))
            if self.problem.code in _OTHER_VERSION:
                self._give_up(Rejected("daemon_differs", version=__version__, detail=self.problem.what))
            self._note(f"the daemon refused: {self.problem}")
            self.lost(now_s)
            return
        limit_bytes = _mapping(message["result"]).get("message_bytes_max")
        if isinstance(limit_bytes, int):
            self._limit_bytes = limit_bytes
        self.problem = None
        initialize = self._replays.get(_INITIALIZE)
        if initialize is None:
            self._go_up(now_s)
        else:
            self.phase = "initializing"
            self.to_daemon += initialize.line + b"\n"

    def _give_up(self, problem: OmnidError) -> None:
        """Answers all that is open: this daemon will not take it, however long the client waits."""
        self.problem = problem
        for request in list(self.open.values()):
            self._close(request)
            self._refuse(request.id, problem)

    def _go_up(self, now_s: float) -> None:
        self.phase = "up"
        if _INITIALIZE in self._replays and self._initialized:
            self.to_daemon += self._initialized + b"\n"
        for key, request in self._replays.items():
            # Their ids are no longer open, so the answers go nowhere.
            if key != _INITIALIZE:
                self.to_daemon += request.line + b"\n"
            if request.method == _SUBSCRIBE:
                self._say_updated({"uri": _params(_decoded(request.line)).get("uri")})
        for request in list(self.open.values()):
            self._send(request, now_s)

    def _remember(self, request: _Request) -> None:
        """Keeps what was agreed and has to be said again to another daemon."""
        if request.method in {_INITIALIZE, "logging/setLevel"}:
            self._replays[request.method] = request
        elif request.method in {_SUBSCRIBE, _UNSUBSCRIBE}:
            key = f"{_SUBSCRIBE} {_params(_decoded(request.line)).get('uri')}"
            self._replays.pop(key, None)
            if request.method == _SUBSCRIBE and len(self._replays) < REPLAYS_MAX:
                self._replays[key] = request

    def _refuse(self, request_id: int | str | None, error: OmnidError, number: int | None = None) -> None:
        self.to_client += wire.error_answer(wire.id_json(request_id), error, number)


def _decoded(line: bytes) -> object:
    """Reads JSON as strictly as the daemon does, so that it can read whatever is sent to it."""
    return _DECODER.decode(str(line, "utf-8"))


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)
"""Made once: `json.loads` makes a new one for each text where it is told anything."""


def _params(message: object) -> Mapping[str, Any]:
    return _mapping(_mapping(message).get("params"))


def _mapping(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def _unreadable(detail: str) -> Rejected:
    return Rejected("bad_request", detail=detail, where="the line")
