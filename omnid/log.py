"""The daemon's log: JSON lines in a bounded set of files, and on a terminal lines for people.

Nothing here is global: loggers come from a `Log` that is handed in. Only what libraries say through the standard
`logging` is collected at its root, from `Log.__enter__` to `Log.__exit__`.
"""

import logging
import os
import threading
from collections.abc import Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal, Self, TextIO, cast

import msgspec
import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor

from omnid.clock import Clock
from omnid.secrets import is_key_name

Logger = FilteringBoundLogger
Level = Literal["debug", "info", "warning", "error"]

VALUE_CHARS_MAX = 16 * 1024
DEPTH_MAX = 8
HIDDEN = "[hidden]"


class Log:
    """Writes log lines to `path` (at most `files_max` files of `bytes_max`) and to `stream`; either may be None.

    `redact` takes known secrets out of a text. A context manager: inside it, warnings of libraries are written too.
    """

    def __init__(
        self,
        clock: Clock,
        redact: Callable[[str], str],
        *,
        level: Level = "info",
        path: str | None = None,
        bytes_max: int = 10 << 20,
        files_max: int = 5,
        stream: TextIO | None = None,
    ) -> None:
        self._clock = clock
        self._redact = redact
        self._level = logging.getLevelNamesMapping()[level.upper()]
        self._sink = _Sink(RotatingFile(path, bytes_max, files_max) if path else None, stream)
        self._bridge = _Bridge(self.logger(source="library"))

    def logger(self, **context: object) -> Logger:
        """Gives a logger whose lines all carry the context."""
        processors: list[Processor] = [
            structlog.processors.add_log_level,
            self._stamp,
            structlog.processors.format_exc_info,
            self._clean,
        ]
        wrapper = structlog.make_filtering_bound_logger(self._level)
        logger = structlog.wrap_logger(self._sink, processors=processors, wrapper_class=wrapper)
        return cast(Logger, logger.bind(**context))

    def close(self) -> None:
        """Closes the file; lines that come later are dropped."""
        self._sink.close()

    def __enter__(self) -> Self:
        logging.getLogger().addHandler(self._bridge)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        logging.getLogger().removeHandler(self._bridge)
        self.close()

    def _stamp(self, _logger: Any, _method: str, event: EventDict) -> EventDict:
        moment = datetime.fromtimestamp(self._clock.wall_ms() / 1000, UTC)
        level, name = event.pop("level"), event.pop("event")
        return {"time": moment.isoformat(timespec="milliseconds"), "level": level, "event": name, **event}

    def _clean(self, _logger: Any, _method: str, event: EventDict) -> EventDict:
        return {key: self._safe(key, value, DEPTH_MAX) for key, value in event.items()}

    def _safe(self, key: str, value: object, depth: int) -> Any:
        """Gives the value without secrets, in types that JSON has, and no longer than a line should be."""
        if is_key_name(key):
            return HIDDEN
        if value is None or isinstance(value, bool | int | float):
            return value
        if depth > 0 and isinstance(value, Mapping):
            items = cast(Mapping[object, object], value).items()
            return {str(name): self._safe(str(name), inner, depth - 1) for name, inner in items}
        if depth > 0 and isinstance(value, list | tuple | set | frozenset):
            return [self._safe(key, inner, depth - 1) for inner in cast(list[object], value)]
        # Redacted first: cut in its middle, a secret would no longer be recognised.
        text = self._redact(str(value))
        return text if len(text) <= VALUE_CHARS_MAX else f"{text[:VALUE_CHARS_MAX]}... ({len(text)} characters)"


class RotatingFile:
    """Appends lines to a file; a full one becomes ``path.1``, that one ``path.2``, and the last is dropped.

    Readable by its owner alone. Raises OSError where a line can't be written.
    """

    def __init__(self, path: str, bytes_max: int, files_max: int) -> None:
        self._path = path
        self._bytes_max = bytes_max
        self._files_max = files_max
        self._descriptor = self._open()
        self._size_bytes = os.fstat(self._descriptor).st_size

    def write(self, line: bytes) -> None:
        """Appends one line, which brings its newline with it."""
        if self._size_bytes and self._size_bytes + len(line) > self._bytes_max:
            self._rotate()
        while line:
            written_bytes = os.write(self._descriptor, line)
            self._size_bytes += written_bytes
            line = line[written_bytes:]

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)

    def _rotate(self) -> None:
        for number in range(self._files_max - 1, 0, -1):
            source = f"{self._path}.{number - 1}" if number > 1 else self._path
            if os.path.exists(source):
                os.replace(source, f"{self._path}.{number}")
        if self._files_max == 1:
            os.unlink(self._path)
        fresh = self._open()
        os.close(self._descriptor)
        self._descriptor, self._size_bytes = fresh, 0

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


class _Sink:
    """Where finished lines go. A log that can't be written must not stop the work, so lost lines are counted instead.

    Threads share it; each of structlog's levels is a method of the same name.
    """

    def __init__(self, file: RotatingFile | None, stream: TextIO | None) -> None:
        self.stream = stream
        self._file = file
        self._lost = 0
        self._lock = threading.Lock()
        colors = stream is not None and stream.isatty() and not os.environ.get("NO_COLOR")
        self._console = structlog.dev.ConsoleRenderer(colors=colors)

    def write(self, **event: Any) -> None:
        """Writes one event to the file and to the stream."""
        with self._lock:
            if self._lost:
                event["lost_lines"] = self._lost
            try:
                if self._file is not None:
                    self._file.write(msgspec.json.encode(event) + b"\n")
                if self.stream is not None:
                    self.stream.write(self._line(event) + "\n")
                    self.stream.flush()
            except (OSError, ValueError):
                self._lost += 1
            else:
                self._lost = 0

    debug = info = warning = error = critical = write

    def close(self) -> None:
        """Closes the file; the stream belongs to whoever handed it in."""
        with self._lock:
            if self._file is not None:
                self._file.close()
            self._file = self.stream = None

    def _line(self, event: MutableMapping[str, Any]) -> str:
        if self.stream is not None and self.stream.isatty():
            return str(self._console(None, "", {"timestamp": event.pop("time"), **event}))
        return msgspec.json.encode(event).decode()


class _Bridge(logging.Handler):
    """Hands what libraries log through the standard `logging` to our log."""

    def __init__(self, logger: Logger) -> None:
        super().__init__(logging.WARNING)
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`; a record that can't be formatted is logged as it is."""
        try:
            message = record.getMessage()
        except (TypeError, ValueError):
            message = str(record.msg)
        level = min(record.levelno, logging.ERROR)
        self._logger.log(level, message, library=record.name, exc_info=record.exc_info)
