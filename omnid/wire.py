"""JSON-RPC 2.0, one message a line: the framing with its limit, and how errors cross the wire.

Standard library only, because the relay and ``omnictl`` import it. Source: the JSON-RPC 2.0 specification (2013).
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Self, cast

from omnid.errors import Fatal, OmnidError, Rejected, Retryable

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
OMNID_ERROR = -32000
"""All of omnid's own errors; `data` tells them apart: ``{code, what, why, do, kind}``."""

HEAD_BYTES, TAIL_BYTES = 4096, 1024
"""How much is looked at of the beginning and of the end of a line that can't be read."""

_ANSWERS = frozenset({"result", "error"})
_DECODER = json.JSONDecoder()
_OPENS, _NAMES, _ENDS = re.compile(r"\s*\{\s*"), re.compile(r"\s*:\s*"), re.compile(r"\s*[,}]\s*")
_LAST_ID = re.compile(rb'[,{]\s*"id"\s*:\s*(-?[0-9]+|"(?:[^"\\]|\\.)*")\s*\}\s*\Z')
"""An id at the end of the line's object: no text of JSON can look like it, as its quotes would have to be escaped."""

_SHOWN_CHARS = 24

_NUMBERS = {"unknown_method": METHOD_NOT_FOUND, "bad_request": INVALID_PARAMS, "internal": INTERNAL_ERROR}
_KINDS: dict[str, type[OmnidError]] = {
    "retryable": Retryable,
    "rejected": Rejected,
    "fatal": Fatal,
}


class Glimpse(NamedTuple):
    """What is seen of a line that is too long or can't be read: enough to tell what it was, and whom to tell."""

    head: bytes
    tail: bytes

    @classmethod
    def of(cls, line: bytes) -> Self:
        """Looks at a line that is there."""
        return cls(line[:HEAD_BYTES], line[-TAIL_BYTES:])

    @property
    def request_id(self) -> int | str | None:
        """The id of the request that it was; None where it isn't found, or it was an answer."""
        members = self._members()
        return None if _ANSWERS & members.keys() else self._id(members)

    @property
    def answered_id(self) -> int | str | None:
        """The id of the request that it answered; None where it isn't found, or it was no answer."""
        members = self._members()
        return self._id(members) if _ANSWERS & members.keys() else None

    def _members(self) -> dict[str, object]:
        """Reads the members of the object as far as the head goes; the value of the last may be unknown (None)."""
        text = self.head.decode(errors="replace")
        found: dict[str, object] = {}
        at = _matched(_OPENS, text, 0)
        try:
            while at is not None:
                name, at = _DECODER.raw_decode(text, at)
                found[str(name)] = None
                at = _matched(_NAMES, text, at)
                if at is None:
                    break
                value, at = _DECODER.raw_decode(text, at)
                at = _matched(_ENDS, text, at)
                # Without what comes behind it, a number may go on.
                found[str(name)] = value if at is not None else None
        except (ValueError, RecursionError):
            pass  # The head ends here, or it is no JSON.
        return found

    def _id(self, members: dict[str, object]) -> int | str | None:
        """Gives the id, which many clients write last."""
        found = members.get("id")
        if found is None and (match := _LAST_ID.search(self.tail)):
            try:
                found = json.loads(match[1])
            except ValueError:
                return None
        return found if isinstance(found, int | str) and not isinstance(found, bool) else None


class LenientSplitter:
    """Cuts a stream of bytes into lines, in time linear in the bytes and memory bounded by the limit.

    What is left of a line that is too long comes in its place, and the lines behind it are whole again.
    """

    def __init__(self, limit_bytes: int) -> None:
        """Takes lines of at most `limit_bytes`, their newline not counted."""
        self.limit_bytes = limit_bytes
        self._begun = bytearray()
        self._head: bytes | None = None
        """The beginning of the line that is being passed over."""

    @property
    def passes_over(self) -> bool:
        """Whether the line that has begun is too long already."""
        return self._head is not None

    def feed(self, data: bytes) -> Iterator[bytes | Glimpse]:
        """Yields the lines that `data` completes, without their newlines; blank ones are skipped.

        The iterator must be used up before the next call.
        """
        lines = data.split(b"\n")
        rest = lines.pop()
        for line in lines:
            whole = line
            if self._begun or len(line) > self.limit_bytes:
                self._add(line)
                if self._head is not None:
                    yield Glimpse(self._head, bytes(self._begun))
                whole = b"" if self._head is not None else bytes(self._begun)
                self._begun.clear()
                self._head = None
            if whole and not whole.isspace():
                yield whole
        self._add(rest)

    def _add(self, part: bytes) -> None:
        self._begun += part
        if self._head is None and len(self._begun) > self.limit_bytes:
            self._head = bytes(self._begun[:HEAD_BYTES])
        if self._head is not None:
            del self._begun[:-TAIL_BYTES]


class LineSplitter:
    """Cuts a stream as `LenientSplitter` does, up to a line that is too long."""

    def __init__(self, limit_bytes: int) -> None:
        """Takes lines of at most `limit_bytes`, their newline not counted."""
        self._lines = LenientSplitter(limit_bytes)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yields the lines that `data` completes; raises Rejected(`message_too_large`) behind the last good one.

        The connection has to end then. The iterator must be used up before the next call.
        """
        for line in self._lines.feed(data):
            if isinstance(line, Glimpse):
                raise self._too_large()
            yield line
        if self._lines.passes_over:
            raise self._too_large()

    def _too_large(self) -> Rejected:
        return Rejected("message_too_large", limit_bytes=self._lines.limit_bytes)


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


def why_unreadable(line: bytes, error: Exception) -> str:
    """Says why a strict reader has refused a line.

    JavaScript writes half a surrogate pair where a text was cut in the middle of one, and numbers may be beyond all
    doubles: to a lenient reader both are JSON.
    """
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return f"the line is no JSON ({error})"
    return "the line holds what is neither text nor number: half a surrogate pair, say, as of a text cut short"


def id_json(request_id: int | str | None) -> bytes:
    """Gives a request's id as JSON: 1 and "1" are two."""
    return json.dumps(request_id).encode()


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


def _matched(pattern: re.Pattern[str], text: str, at: int) -> int | None:
    match = pattern.match(text, at)
    return None if match is None else match.end()


def _mapping(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}
