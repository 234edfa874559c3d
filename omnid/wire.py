"""JSON-RPC 2.0, one message a line: the framing with its limit, and how errors cross the wire.

Standard library only, because the relay and ``omnictl`` import it. Source: the JSON-RPC 2.0 specification (2013).
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, cast

from omnid.errors import Fatal, OmnidError, Rejected, Retryable

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
OMNID_ERROR = -32000
"""All of omnid's own errors; `data` tells them apart: ``{code, what, why, do, kind}``."""

_SHOWN_CHARS = 24

_NUMBERS = {"unknown_method": METHOD_NOT_FOUND, "bad_request": INVALID_PARAMS, "internal": INTERNAL_ERROR}
_KINDS: dict[str, type[OmnidError]] = {
    "retryable": Retryable,
    "rejected": Rejected,
    "fatal": Fatal,
}


class LineSplitter:
    """Cuts a stream of bytes into lines, in time linear in the bytes and memory bounded by the limit."""

    def __init__(self, limit_bytes: int) -> None:
        """Takes lines of at most `limit_bytes`, their newline not counted."""
        self.limit_bytes = limit_bytes
        self._begun = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yields the lines that `data` completes, without their newlines; blank ones are skipped.

        Raises Rejected(`message_too_large`) behind the last line before one that is too long. What comes after that
        can't be told apart any more, so the connection has to end. The iterator must be used up before the next call.
        """
        lines = data.split(b"\n")
        rest = lines.pop()
        if lines and self._begun:
            lines[0] = bytes(self._begun) + lines[0]
            self._begun.clear()
        for line in lines:
            if len(line) > self.limit_bytes:
                raise Rejected("message_too_large", limit_bytes=self.limit_bytes)
            if line and not line.isspace():
                yield line
        if len(self._begun) + len(rest) > self.limit_bytes:
            raise Rejected("message_too_large", limit_bytes=self.limit_bytes)
        self._begun += rest


def line(message: Mapping[str, Any]) -> bytes:
    """Gives a message as one line, with its newline; raises TypeError or ValueError where JSON can't say it."""
    return json.dumps(message, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def request(request_id: int | str, method: str, params: Mapping[str, Any]) -> bytes:
    """Gives the line of a request; raises TypeError or ValueError where JSON in UTF-8 can't say it."""
    return utf8({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}) + b"\n"


def utf8(value: Mapping[str, Any]) -> bytes:
    """Gives a value as JSON in UTF-8, which the daemon can surely read; raises TypeError or ValueError where it can't.

    `line` escapes half a surrogate pair, as Python makes of a file's name that is no UTF-8.
    """
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        before = error.object[max(0, error.start - _SHOWN_CHARS) : error.end]
        raise ValueError(f"what ends with {before!r} is no UTF-8") from error


def unreadable(line: bytes, error: Exception) -> bytes:
    """Gives the line that answers one which a strict reader has refused; with the request's id, where it holds one.

    JavaScript writes half a surrogate pair where a text was cut in the middle of one, and numbers may be beyond all
    doubles: who asked waits for an answer all the same.
    """
    own_id = id_of(line)
    detail = f"the line is no JSON ({error})"
    if own_id != b"null":
        detail = "the line holds what is neither text nor number: half a surrogate pair, say, as of a text cut short"
    return error_answer(own_id, Rejected("bad_request", detail=detail, where="the line"), PARSE_ERROR)


def id_of(line: bytes) -> bytes:
    """Gives the id of a request, as JSON, also where only a lenient reader can read it; ``null`` where it has none."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return b"null"
    request_id = _mapping(message).get("id")
    known = isinstance(request_id, int | str) and not isinstance(request_id, bool)
    return json.dumps(request_id).encode() if known else b"null"


def error_answer(id_json: bytes, error: OmnidError, number: int | None = None) -> bytes:
    """Gives the line that answers the request with that id (as JSON; ``null`` where it isn't known) with an error.

    `number` is the JSON-RPC code; without one it follows from the error's own code.
    """
    body = json.dumps(error_object(error, number), separators=(",", ":")).encode()
    return b'{"jsonrpc":"2.0","id":' + id_json + b',"error":' + body + b"}\n"


def error_object(error: OmnidError, number: int | None = None) -> dict[str, Any]:
    """Gives the ``error`` member of an answer; its message is all three sentences, as many clients show only that."""
    return {
        "code": _NUMBERS.get(error.code, OMNID_ERROR) if number is None else number,
        "message": str(error),
        "data": {**error.as_dict(), "kind": _kind(error)},
    }


def error_from(error_object: object) -> OmnidError:
    """Rebuilds the error that the ``error`` member of an answer holds, of the class that its kind names.

    The sentences are the sender's, also where the catalogue here knows no such code. What doesn't come from omnid
    becomes Rejected(`internal`) with the message it has.
    """
    fields = _mapping(error_object)
    data = _mapping(fields.get("data"))
    texts = [data.get(name) for name in ("code", "what", "why", "do")]
    kind = _KINDS.get(str(data.get("kind")))
    if kind is None or not all(isinstance(text, str) for text in texts):
        return Rejected("internal", detail=f"{fields.get('message')} (JSON-RPC error {fields.get('code')})")
    error = kind.__new__(kind)
    error.code, error.what, error.why, error.do = (str(text) for text in texts)
    error.fields = {}
    Exception.__init__(error, error.what)
    return error


def _kind(error: OmnidError) -> str:
    return next(name for name, kind in _KINDS.items() if isinstance(error, kind))


def _mapping(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}
