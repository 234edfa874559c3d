"""How agents of a demo reach its daemon, over the socket and over HTTP, and are cut in the middle of a call."""

import http.client
import json
import socket
from collections.abc import Mapping
from typing import Any, Protocol, cast
from urllib.parse import urlencode

from omnid import wire
from omnid.api.client import Client, connect
from omnid.errors import OmnidError, Retryable

ANSWER_S = 20.0
WAIT_S = 40.0
"""The wait in the middle of which one is cut."""

Fields = Mapping[str, Any]


class Gone(Exception):
    """The daemon doesn't answer now; nobody knows whether it has done what was asked."""


class Way(Protocol):
    """What an agent does; its key makes a submit that is sent again the same task."""

    def submit(self, fields: Fields) -> dict[str, Any]:
        """Submits a task (`model.Submit`), and gives the answer. Raises Gone."""
        ...

    def results(self, cursor: str | None, limit: int) -> dict[str, Any]:
        """Gives a page of the inbox; the cursor acknowledges the one before. Raises Gone."""
        ...

    def cut(self, fields: Fields, share: float) -> None:
        """Sends a submit, or that share of it, and is gone before the answer. Raises Gone."""
        ...

    def cut_wait(self, task: str) -> None:
        """Is gone while it waits for the end of a task. Raises Gone."""
        ...

    def close(self) -> None:
        """Lets go of the connection; the next call makes a new one."""
        ...


class SocketWay:
    """Over the socket, with omnid's own client."""

    def __init__(self, path: str, origin: str) -> None:
        self._hello = {"role": "agent", "origin": origin}
        self._client = Client(path, ANSWER_S)
        self._greeted = False

    def submit(self, fields: Fields) -> dict[str, Any]:
        """See `Way.submit`."""
        return self._call("omnid/task.submit", fields)

    def results(self, cursor: str | None, limit: int) -> dict[str, Any]:
        """See `Way.results`."""
        return self._call("omnid/task.list", {"inbox": True, "limit": limit, "cursor": cursor})

    def _call(self, method: str, params: Fields) -> dict[str, Any]:
        try:
            if not self._greeted:
                self._client.call("omnid/hello", self._hello)
                self._greeted = True
            return self._client.call(method, params)
        except Retryable as error:
            self.close()
            raise Gone from error

    def cut(self, fields: Fields, share: float) -> None:
        """See `Way.cut`."""
        self._leave("omnid/task.submit", fields, share)

    def cut_wait(self, task: str) -> None:
        """See `Way.cut_wait`."""
        self._leave("omnid/task.get", {"task": task, "wait_s": WAIT_S}, 1.0)

    def _leave(self, method: str, params: Fields, share: float) -> None:
        self.close()
        request = wire.request(2, method, params)
        try:
            with connect(self._client.path) as connection:
                connection.sendall(wire.request(1, "omnid/hello", self._hello) + request[: round(share * len(request))])
        except (OmnidError, OSError) as error:
            raise Gone from error

    def close(self) -> None:
        """See `Way.close`."""
        self._client.close()
        self._greeted = False


class HttpWay:
    """Over HTTP, as a program that knows REST; its origin is the one whose token it has."""

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._head = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)

    def submit(self, fields: Fields) -> dict[str, Any]:
        """See `Way.submit`."""
        return self._call("POST", "/api/v1/tasks", json.dumps(fields))

    def results(self, cursor: str | None, limit: int) -> dict[str, Any]:
        """See `Way.results`."""
        asked = {"inbox": "true", "limit": limit, **({} if cursor is None else {"cursor": cursor})}
        return self._call("GET", f"/api/v1/tasks?{urlencode(asked)}")

    def _call(self, verb: str, path: str, body: str | None = None) -> dict[str, Any]:
        try:
            self._connection.request(verb, path, body, self._head)
            answer = self._connection.getresponse()
            said = cast("dict[str, Any]", json.loads(answer.read()))
        except (OSError, ValueError, http.client.HTTPException) as error:
            self.close()
            raise Gone from error
        if answer.status >= http.client.INTERNAL_SERVER_ERROR:
            raise Gone
        if said["status"] != "ok":
            raise Retryable("demo_failed", detail=str(said["message"]).rstrip("."))
        return cast("dict[str, Any]", said["data"])

    def cut(self, fields: Fields, share: float) -> None:
        """See `Way.cut`."""
        self._leave("POST /api/v1/tasks", json.dumps(fields), share)

    def cut_wait(self, task: str) -> None:
        """See `Way.cut_wait`."""
        self._leave(f"GET /api/v1/tasks/{task}?wait_s={WAIT_S:.0f}", "", 1.0)

    def _leave(self, what: str, body: str, share: float) -> None:
        self.close()
        head = {"Host": f"127.0.0.1:{self._port}", **self._head, "Content-Length": str(len(body))}
        lines = [f"{what} HTTP/1.1", *(f"{name}: {text}" for name, text in head.items()), "", body]
        request = "\r\n".join(lines).encode()
        try:
            with socket.create_connection(("127.0.0.1", self._port), ANSWER_S) as connection:
                connection.sendall(request[: round(share * len(request))])
        except OSError as error:
            raise Gone from error

    def close(self) -> None:
        """See `Way.close`."""
        self._connection.close()
