"""Load on a socket from one process: many connections, each with one request open at a time."""

import selectors
import socket
import time
from collections.abc import Iterator

STALL_S = 60.0


class Load:
    """Keeps `clients` connections open over several rounds."""

    def __init__(self, path: str, clients: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._sockets = [socket.socket(socket.AF_UNIX) for _ in range(clients)]
        for connection in self._sockets:
            connection.connect(path)
            self._selector.register(connection, selectors.EVENT_READ)

    def run(self, messages: Iterator[bytes]) -> float:
        """Sends all messages, each connection the next one when its answer is there; gives the seconds it took.

        Raises RuntimeError for an answer that is an error, and TimeoutError where none comes.
        """
        since_s = time.perf_counter()
        left = 0
        for connection, message in zip(self._sockets, messages, strict=False):
            connection.sendall(message)
            left += 1
        while left:
            ready = self._selector.select(STALL_S)
            if not ready:
                raise TimeoutError
            for key, _ in ready:
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                line = connection.recv(4096)
                # Answers are far smaller than what one read takes, and the next one has not been asked for.
                if not line.endswith(b"\n") or b'"error"' in line:
                    raise RuntimeError(f"the daemon answered {line!r}")
                message = next(messages, None)
                if message is None:
                    left -= 1
                else:
                    connection.sendall(message)
        return time.perf_counter() - since_s

    def close(self) -> None:
        self._selector.close()
        for connection in self._sockets:
            connection.close()
