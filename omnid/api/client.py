"""The blocking client: what `omnictl` and other people's programs talk to the daemon with.

Standard library only, and cheap to import.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self, cast

from omnid import __version__, platform, wire
from omnid.errors import OmnidError, Rejected, Retryable

BUSY_PAUSE_S = 0.02
TIMEOUT_S = 30.0
WAIT_S_MAX = 50.0
"""The longest wait that the daemon takes in one request."""

ANSWER_BYTES_MAX = 256 << 20
_HELLO_ID = "hello"
_READ_BYTES = 64 << 10


class Client:
    """One connection to the daemon, made when first needed and again after it was lost. Not for use by two threads.

    Every method raises the error that the daemon answered with (Rejected, Retryable), Retryable(`daemon_down`)
    where nobody listens, Retryable(`daemon_lost`) where the connection ended before the answer,
    Retryable(`answer_timeout`) after `timeout_s`, and Rejected(`bad_request`) where JSON can't say what is asked. What
    is submitted from inside an attempt (``OMNID_ATTEMPT`` in the environment) is a child of its task. Parameters and
    results are those of omnid/api/shapes.py as dicts.
    """

    def __init__(
        self,
        path: str | None = None,
        timeout_s: float = TIMEOUT_S,
        *,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Talks to the socket at `path`, or where the environment and the config put it."""
        self.path = path or platform.socket_path(os.environ)
        self.timeout_s = timeout_s
        self._monotonic_s = monotonic_s
        self._socket: socket.socket | None = None
        self._id = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection; the next call makes a new one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def call(self, method: str, params: Mapping[str, Any], timeout_s: float | None = None) -> dict[str, Any]:
        """Sends one request and gives its result; `timeout_s` stands in for the client's own where it is given."""
        self._id += 1
        try:
            message = wire.request(self._id, method, params)
        except (TypeError, ValueError) as error:
            raise Rejected("bad_request", detail=str(error), where="what it says") from error
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        until_s = self._monotonic_s() + timeout_s
        attempt = platform.attempt_of(os.environ)
        if attempt is not None and self._socket is None:
            # Its answer needn't be waited for: it comes before the one that is.
            message = wire.request(_HELLO_ID, "omnid/hello", {"attempt": attempt, "version": __version__}) + message
        connection = self._connected()
        try:
            answer = self._answer(connection, message, until_s)
        except TimeoutError as error:
            # The late answer would come before the next one, so the connection is of no more use.
            self.close()
            raise Retryable("answer_timeout", seconds_s=timeout_s) from error
        except OSError as error:
            self.close()
            raise Retryable("daemon_lost", detail=f"The connection broke ({error.strerror or error}).") from error
        except BaseException:
            self.close()
            raise
        if answer.get("id") is None:
            # It is about the connection, which the daemon closes now.
            self.close()
        if "error" in answer:
            raise wire.error_from(answer["error"])
        return cast("dict[str, Any]", answer["result"])

    def submit(self, **fields: Any) -> dict[str, Any]:
        """Submits a task (the fields of `shapes.Submit`); it is durable on return.

        Where the daemon is lost in between, it is sent once more: the same idempotency key makes it the same task.
        """
        # From the system, as any other key: two clients must never make the same one.
        fields.setdefault("key", os.urandom(16).hex())
        try:
            return self.call("omnid/task.submit", fields)
        except Retryable as error:
            if error.code != "daemon_lost":
                raise
        return self.call("omnid/task.submit", fields)

    def wait(self, task: str, timeout_s: float) -> dict[str, Any]:
        """Waits at most `timeout_s` for the end of a task and gives its view; `timed_out` there: it goes on.

        A task that only a key or a login helps on (reason `login`) is not waited for.
        """
        until_s = self._monotonic_s() + timeout_s
        while True:
            wait_s = min(WAIT_S_MAX, max(0.0, until_s - self._monotonic_s()))
            view = self.get(task, wait_s=wait_s)
            if not view["timed_out"] or self._monotonic_s() >= until_s:
                return view

    def get(self, task: str, **fields: Any) -> dict[str, Any]:
        """Gives a task with its attempts (`shapes.TaskView`)."""
        wait_s = float(fields.get("wait_s", 0.0))
        return self.call("omnid/task.get", {"task": task, **fields}, self.timeout_s + wait_s)

    def list(self, **fields: Any) -> dict[str, Any]:
        """Gives a page of tasks (`shapes.Page`); the fields are those of `shapes.Search`."""
        return self.call("omnid/task.list", fields)

    def logs(self, task: str, **fields: Any) -> dict[str, Any]:
        """Gives a piece of an attempt's output (`shapes.LogPart`); the fields are those of `shapes.Log`."""
        wait_s = float(fields.get("wait_s", 0.0))
        return self.call("omnid/task.log", {"task": task, **fields}, self.timeout_s + wait_s)

    def control(self, task: str, action: str, **fields: Any) -> dict[str, Any]:
        """Does something with a task (`shapes.Control`)."""
        return self.call("omnid/task.control", {"task": task, "action": action, **fields})

    def status(self) -> dict[str, Any]:
        """Tells how the daemon is doing (`shapes.Status`)."""
        return self.call("omnid/status", {})

    def why(self, task: str) -> dict[str, Any]:
        """Tells in one sentence why a task is where it is (`shapes.WhyAnswer`)."""
        return self.call("omnid/task.why", {"task": task})

    def _connected(self) -> socket.socket:
        if self._socket is None:
            self._socket = connect(self.path)
        return self._socket

    def _answer(self, connection: socket.socket, message: bytes, until_s: float) -> dict[str, Any]:
        """Sends the message and reads up to its answer; raises OSError where the connection ends before."""
        connection.settimeout(self._left_s(until_s))
        # A daemon that refuses the connection says why before it closes it: that can still be read.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(message)
        splitter = wire.LineSplitter(ANSWER_BYTES_MAX)
        while True:
            connection.settimeout(self._left_s(until_s))
            data = connection.recv(_READ_BYTES)
            if not data:
                raise ConnectionResetError(0, "the daemon closed it")
            for line in splitter.feed(data):
                answer = _decoded(line)
                # An error without an id means the connection: too many clients, a line too long.
                if answer.get("id") == self._id or (answer.get("id") is None and "error" in answer):
                    return answer

    def _left_s(self, until_s: float) -> float:
        left_s = until_s - self._monotonic_s()
        if left_s <= 0:
            raise TimeoutError
        return left_s


def connect(path: str) -> socket.socket:
    """Connects to the daemon's socket; raises Retryable(`daemon_down`) or Rejected(`path_too_long`)."""
    length = len(os.fsencode(path))
    if length > platform.SOCKET_PATH_BYTES_MAX:
        raise Rejected("path_too_long", path=path, length=length, limit=platform.SOCKET_PATH_BYTES_MAX)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(TIMEOUT_S)
    until_s = time.monotonic() + TIMEOUT_S
    while True:
        try:
            connection.connect(path)
        except BlockingIOError as error:
            # Very many connect at this moment; Unix sockets don't wait for their turn by themselves.
            if time.monotonic() > until_s:
                connection.close()
                raise _down(path, error) from error
            time.sleep(BUSY_PAUSE_S)
        except OSError as error:
            connection.close()
            raise _down(path, error) from error
        else:
            return connection


def _down(path: str, error: OSError) -> OmnidError:
    if isinstance(error, FileNotFoundError):
        detail = "There is no socket."
    elif isinstance(error, ConnectionRefusedError) and os.path.isfile(path):
        detail = "A file that is no socket is there."
    elif isinstance(error, ConnectionRefusedError):
        detail = "There is a socket, but nobody listens: the daemon has died."
    else:
        detail = f"Connecting failed: {error.strerror or error}."
    return Retryable("daemon_down", path=path, detail=detail)


def _decoded(line: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(line)
    except ValueError as error:
        raise ConnectionError(0, "what it answered is no JSON") from error
    return cast("dict[str, Any]", answer) if isinstance(answer, dict) else {}
