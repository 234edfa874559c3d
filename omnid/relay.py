"""`omnid mcp`: copies MCP lines between stdio and the daemon's socket, starts the daemon, and outlives it.

Standard library only and one thread, because every session of every agent keeps one of these running.
"""

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable, Mapping, Sequence

from omnid import platform, wire
from omnid.errors import OmnidError, Rejected, Retryable
from omnid.relay_session import BUFFER_BYTES_MAX, Session

REPOSITORY = "@repository"
AWAY_S = 600.0
"""How long a request waits for a daemon that is away, unless ``OMNID_RELAY_AWAY_S`` says otherwise."""

AWAY_S_MAX = 10_000_000
"""What still fits into a wait of select(2)."""

LINE_BYTES_MAX = 32 << 20
"""What is kept of one line; a longer one is passed over, and whoever waits for it is told."""

GREETING_S = 30.0
HAND_OVER_S = 30.0
ANSWER_GRACE_S = 1.0
"""How long answers are waited for after the end of stdin: the daemon drops the requests of a closed connection."""

_READ_BYTES = 64 << 10
_DIAL_S_MIN, _DIAL_S_MAX = 0.02, 2.0
_START_S_MIN, _START_S_MAX = 1.0, 30.0


class Relay:
    """Moves bytes between two descriptors and the daemon's socket until the first of them ends."""

    def __init__(self, session: Session, path: str, start: Callable[[], None], stdin: int = 0, stdout: int = 1) -> None:
        """`start` starts the daemon and raises OmnidError where it can't."""
        self._session = session
        self._path = path
        self._start = start
        self._stdin = stdin
        self._stdout = stdout
        self._from_client = wire.LenientSplitter(LINE_BYTES_MAX)
        self._from_daemon = wire.LenientSplitter(LINE_BYTES_MAX)
        self._socket: socket.socket | None = None
        self._dial_at_s = 0.0
        self._dial_delay_s = _DIAL_S_MIN
        self._start_at_s = 0.0
        self._start_delay_s = _START_S_MIN
        self._greet_until_s = 0.0
        self._ended_at_s: float | None = None
        self._handed_on_at_s: float | None = None

    def run(self) -> int:
        """Relays until stdin ends and what came over it is handed on; gives the exit code."""
        session = self._session
        while True:
            now_s = time.monotonic()
            session.expire(now_s)
            self._care_for_connection(now_s)
            code = self._exit_code(now_s)
            if code is not None:
                return code
            self._move(self._timeout_s(now_s))

    def _care_for_connection(self, now_s: float) -> None:
        session = self._session
        if self._socket is not None and session.phase == "away":
            self._hang_up(now_s)
        if self._socket is not None and session.phase != "up" and now_s >= self._greet_until_s:
            session.problem = Retryable("answer_timeout", seconds_s=GREETING_S)
            self._hang_up(now_s)
        # A client that doesn't read would have its answers pile up here, one set for each connection.
        if self._socket is None and now_s >= self._dial_at_s and len(session.to_client) < BUFFER_BYTES_MAX:
            self._dial(now_s)

    def _dial(self, now_s: float) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            connection.connect(self._path)
        except OSError as error:
            connection.close()
            busy = isinstance(error, BlockingIOError)  # Its backlog is full: somebody is there.
            if not busy and self._session.wanted and now_s >= self._start_at_s:
                self._start_daemon(now_s)
            # Spread out, because all relays of a daemon lose it at the same moment.
            self._dial_at_s = now_s + self._dial_delay_s * (0.5 + os.urandom(1)[0] / 512)
            self._dial_delay_s = min(self._dial_delay_s * 2, _DIAL_S_MAX)
            return
        self._socket = connection
        self._from_daemon = wire.LenientSplitter(LINE_BYTES_MAX)
        self._greet_until_s = now_s + GREETING_S
        self._session.connected()

    def _start_daemon(self, now_s: float) -> None:
        self._start_at_s = now_s + self._start_delay_s
        self._start_delay_s = min(self._start_delay_s * 2, _START_S_MAX)
        try:
            self._start()
        except OmnidError as error:
            if self._session.problem is None or self._session.problem.code != error.code:
                note(str(error))
            self._session.problem = error

    def _hang_up(self, now_s: float) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._session.lost(now_s)
        self._dial_at_s = now_s + self._dial_delay_s

    def _exit_code(self, now_s: float) -> int | None:
        """Tells whether it is over: the client has gone, and the daemon has what it sent."""
        session = self._session
        if self._ended_at_s is None:
            return None
        if session.handed_on:
            if not session.open and not session.to_client:
                return 0
            if self._handed_on_at_s is None:
                self._handed_on_at_s = now_s
            return 0 if now_s >= self._handed_on_at_s + ANSWER_GRACE_S else None
        self._handed_on_at_s = None
        if now_s >= self._ended_at_s + HAND_OVER_S:
            note(f"{len(session.open)} requests could not be handed on: {session.problem or 'no daemon answers'}")
            return 1
        return None

    def _timeout_s(self, now_s: float) -> float | None:
        """Tells how long nothing has to be done; None: until something can be read or written."""
        moments_s = [self._session.deadline_s()]
        if self._socket is None and len(self._session.to_client) < BUFFER_BYTES_MAX:
            moments_s.append(self._dial_at_s)
        elif self._socket is not None and self._session.phase != "up":
            moments_s.append(self._greet_until_s)
        if self._handed_on_at_s is not None:
            moments_s.append(self._handed_on_at_s + ANSWER_GRACE_S)
        elif self._ended_at_s is not None:
            moments_s.append(self._ended_at_s + HAND_OVER_S)
        known_s = [moment_s for moment_s in moments_s if moment_s is not None]
        return max(0.0, min(known_s) - now_s) if known_s else None

    def _move(self, timeout_s: float | None) -> None:
        session = self._session
        readers: list[int | socket.socket] = []
        writers: list[int | socket.socket] = []
        if self._ended_at_s is None and not session.full:
            readers.append(self._stdin)
        if session.to_client:
            writers.append(self._stdout)
        if self._socket is not None:
            if len(session.to_client) < BUFFER_BYTES_MAX:
                readers.append(self._socket)
            if session.to_daemon:
                writers.append(self._socket)
        # select(2) takes files and terminals too, on macOS as well; there are never more than three descriptors.
        readable, writable, _ = select.select(readers, writers, [], timeout_s)
        now_s = time.monotonic()
        if self._stdin in readable:
            self._read_client(now_s)
        if self._socket is not None and self._socket in readable:
            self._read_daemon(self._socket, now_s)
        # What has just been read is written without a turn of its own; a socket that is full says so.
        if self._socket is not None and (self._socket in writable or session.to_daemon):
            self._write_daemon(self._socket)
        # The client's descriptor would block, so it is asked first; a turn of its own would take longer.
        if self._stdout in writable or (session.to_client and select.select([], [self._stdout], [], 0)[1]):
            self._write_client(now_s)

    def _read_client(self, now_s: float) -> None:
        try:
            data = os.read(self._stdin, _READ_BYTES)
        except OSError:
            data = b""
        if not data:
            self._ended_at_s = now_s
        wanted = self._session.wanted
        # The last line may lack its newline.
        for line in self._from_client.feed(data or b"\n"):
            self._session.from_client(line, now_s)
        if self._session.wanted and not wanted:
            self._dial_at_s = now_s

    def _read_daemon(self, connection: socket.socket, now_s: float) -> None:
        try:
            data = connection.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            # What has come of a line that isn't whole is no answer.
            self._hang_up(now_s)
            return
        for line in self._from_daemon.feed(data):
            self._session.from_daemon(line, now_s)
        if self._session.phase == "up":
            self._dial_delay_s = _DIAL_S_MIN
            self._start_at_s, self._start_delay_s = 0.0, _START_S_MIN

    def _write_daemon(self, connection: socket.socket) -> None:
        try:
            sent = connection.send(self._session.to_daemon[:_READ_BYTES])
        except BlockingIOError:
            return
        except OSError:
            # What it said last, perhaps why, is still to be read; the end of file comes behind it.
            self._session.to_daemon.clear()
            return
        del self._session.to_daemon[:sent]

    def _write_client(self, now_s: float) -> None:
        # A descriptor that is ready takes this much without blocking, so the mode that it shares with others stays.
        try:
            sent = os.write(self._stdout, self._session.to_client[: select.PIPE_BUF])
        except OSError:
            # Nobody reads any more, so nobody writes either.
            self._ended_at_s = self._ended_at_s or now_s
            self._session.to_client.clear()
            return
        del self._session.to_client[:sent]


def _open_standard_streams() -> None:
    """Puts /dev/null where 0, 1 or 2 is closed: else the daemon's socket would become the client's input."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def main(environ: Mapping[str, str], argv: Sequence[str] = ()) -> int:
    """Relays between stdin, stdout and the daemon that the environment and the config name; gives the exit code.

    `argv` may hold ``--readonly``, ``--origin NAME`` and ``--expose TOOL,...``: what the client is and gets. The origin
    `REPOSITORY` is the name of the git repository around the current directory; outside of one the client's own name.
    """
    _open_standard_streams()
    asked = _asked(argv)
    if asked is None:
        note("it takes --readonly, --origin NAME and --expose TOOL,TOOL; nothing else.")
        return 2
    away_s = _away_s(environ.get("OMNID_RELAY_AWAY_S") or str(AWAY_S))
    if away_s is None:
        note(f"OMNID_RELAY_AWAY_S is no number of seconds from 0 to {AWAY_S_MAX}.")
        return 1
    path = platform.socket_path(environ)
    try:
        away_s = float(environ.get("OMNID_RELAY_AWAY_S") or AWAY_S)
    except ValueError:
        note("OMNID_RELAY_AWAY_S is no number of seconds.")
        return 1
    try:
        length = len(os.fsencode(path))
        if length > platform.SOCKET_PATH_BYTES_MAX:
            raise Rejected("path_too_long", path=path, length=length, limit=platform.SOCKET_PATH_BYTES_MAX)
        attempt = platform.attempt_of(environ)
        session = Session(_session_id(os.urandom(16)), path, away_s, note, time.monotonic(), attempt, asked=asked)
        return Relay(session, path, lambda: _start_daemon(environ)).run()
    except OmnidError as error:
        note(str(error))
    except KeyboardInterrupt:
        return 130
    return 1


def note(text: str) -> None:
    """Says something to the person behind the client; stdout is for the protocol alone."""
    # Without a stderr there is nobody to tell.
    with contextlib.suppress(OSError):
        os.write(2, f"omnid mcp: {text}\n".encode(errors="replace"))


def _away_s(text: str) -> float | None:
    try:
        away_s = float(text)
    except ValueError:
        return None
    # No number at all (nan) fails both.
    return away_s if 0 <= away_s <= AWAY_S_MAX else None


def _asked(argv: Sequence[str]) -> dict[str, object] | None:
    """Gives what the hello says of the client; None where the arguments can't be understood."""
    asked: dict[str, object] = {}
    rest = list(argv)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        if option == "--readonly" and not equals:
            asked["readonly"] = True
            continue
        if option not in ("--origin", "--expose") or not (equals or rest):
            return None
        value = value if equals else rest.pop(0)
        if not value:
            return None
        value = _text(value)
        asked[option[2:]] = value if option == "--origin" else value.split(",")
    if asked.get("origin") == REPOSITORY:
        name = _repository(os.getcwd())
        asked["origin"] = name
        if not name:
            del asked["origin"]
    return asked


def _repository(directory: str) -> str:
    """Gives the name of the git repository that a directory lies in; "" where it lies in none."""
    while not os.path.exists(os.path.join(directory, ".git")):
        directory, below = os.path.dirname(directory), directory
        if directory == below:
            return ""
    return _text(os.path.basename(directory))


def _text(name: str) -> str:
    """Gives a name as text that can be sent, where the system's bytes are no UTF-8."""
    return os.fsencode(name).decode(errors="replace")


def _start_daemon(environ: Mapping[str, str]) -> None:
    # It costs memory, and most relays find the daemon running.
    from omnid.api.spawn import start_daemon

    start_daemon(environ)


def _session_id(random: bytes) -> str:
    """Makes a UUIDv4 (RFC 9562 section 5.4); the uuid module would cost a megabyte."""
    value = int.from_bytes(random) & ~(0xF000 << 64) & ~(0xC000 << 48) | 0x4000 << 64 | 0x8000 << 48
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
