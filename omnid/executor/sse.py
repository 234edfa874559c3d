"""Server-sent events, read piece by piece within a limit. Source: WHATWG HTML, section 9.2.6.

Lines end with LF or CRLF; a bare CR, which the source allows too, no provider of models sends.
"""

from collections.abc import Iterator

RETRY_BYTES_MAX = 20


class EventTooLargeError(Exception):
    """An event has more bytes than the limit."""


class EventReader:
    """Turns pieces of a stream into the data of its events, in time linear in the bytes."""

    def __init__(self, event_bytes_max: int) -> None:
        self._limit_bytes = event_bytes_max
        self._line = bytearray()
        self._data: list[bytes] = []
        self._bytes = 0
        self._first = True
        self.last_id = ""
        """The id of the latest event that had one; a stream that broke can be taken up behind it."""
        self.retry_ms: int | None = None
        """How long the server wants its client to wait before that."""

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Yields the data of the events that the piece completes; raises `EventTooLargeError`.

        The iterator must be used up before the next call.
        """
        lines = piece.split(b"\n")
        rest = lines.pop()
        for line in lines:
            self._line += line
            whole = bytes(self._line)
            self._line.clear()
            data = self._take(whole.removesuffix(b"\r"))
            if data is not None:
                yield data
        self._line += rest
        self._check()

    def _take(self, line: bytes) -> bytes | None:
        if self._first:
            line = line.removeprefix(b"\xef\xbb\xbf")
            self._first = False
        if not line:
            data, self._data, self._bytes = self._data, [], 0
            return b"\n".join(data) if data else None
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
            self._bytes += len(line)
            self._check()
        elif line.startswith(b"id:") and b"\0" not in line:
            self.last_id = line[3:].removeprefix(b" ").decode(errors="replace")
        elif line.startswith(b"retry:") and len(line) <= RETRY_BYTES_MAX and line[6:].strip().isdigit():
            self.retry_ms = int(line[6:])
        # Comments keep a connection awake; what an event is called stands in its data too.
        return None

    def _check(self) -> None:
        if self._bytes + len(self._line) > self._limit_bytes:
            raise EventTooLargeError
