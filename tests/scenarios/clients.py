"""Two agents that submit commands and read their results, over the socket and over HTTP; both can be cut in a call."""

import http.client
import json
import random
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlencode

from omnid import wire
from omnid.api.client import Client, connect
from omnid.errors import OmnidError, Retryable
from tests.e2e.harness import LOOK_S

ANSWER_S = 20.0
PAGE = 100
READ_EVERY_S = 0.05
WAIT_S = 40.0
"""The wait in the middle of which a client is cut."""
URGENT_SHARE = 0.1
SLOW_SHARE = 0.1
SCRIPT = 'echo "{key} $OMNID_ATTEMPT" >> started; {work}echo "{key} $OMNID_ATTEMPT" >> done'

Fields = Mapping[str, Any]


class Gone(Exception):
    """The other side doesn't answer now; nobody knows whether it has done what was asked."""


class Way(Protocol):
    """How an agent reaches the daemon."""

    def submit(self, fields: Fields) -> dict[str, Any]: ...

    def results(self, cursor: str | None) -> dict[str, Any]: ...

    def cut(self, fields: Fields, share: float) -> None:
        """Sends a submit, or a part of it, and is gone before the answer."""
        ...

    def cut_wait(self, task: str) -> None:
        """Is gone while it waits for a task."""
        ...

    def close(self) -> None: ...


class SocketWay:
    """Over the socket, as omnid's own client."""

    def __init__(self, path: str, origin: str) -> None:
        self._hello = {"role": "agent", "origin": origin}
        self._client = Client(path, ANSWER_S)
        self._greeted = False

    def submit(self, fields: Fields) -> dict[str, Any]:
        return self._call("omnid/task.submit", fields)

    def results(self, cursor: str | None) -> dict[str, Any]:
        return self._call("omnid/task.list", {"inbox": True, "limit": PAGE, "cursor": cursor})

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
        self._leave("omnid/task.submit", fields, share)

    def cut_wait(self, task: str) -> None:
        self._leave("omnid/task.get", {"task": task, "wait_s": WAIT_S}, 1.0)

    def _leave(self, method: str, params: Fields, share: float) -> None:
        self.close()
        try:
            with connect(self._client.path) as connection:
                request = wire.request(2, method, params)
                connection.sendall(wire.request(1, "omnid/hello", self._hello) + request[: round(share * len(request))])
        except (OmnidError, OSError) as error:
            raise Gone from error

    def close(self) -> None:
        self._client.close()
        self._greeted = False


class HttpWay:
    """Over HTTP, as a program that knows REST."""

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._head = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)

    def submit(self, fields: Fields) -> dict[str, Any]:
        return self._call("POST", "/api/v1/tasks", json.dumps(fields))

    def results(self, cursor: str | None) -> dict[str, Any]:
        asked = {"inbox": "true", "limit": PAGE, **({} if cursor is None else {"cursor": cursor})}
        return self._call("GET", f"/api/v1/tasks?{urlencode(asked)}")

    def _call(self, verb: str, path: str, body: str | None = None) -> dict[str, Any]:
        try:
            self._connection.request(verb, path, body, self._head)
            answer = self._connection.getresponse()
            said = json.loads(answer.read())
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise Gone from error
        if answer.status >= 500:
            raise Gone(said["message"])
        assert said["status"] == "ok", said
        data: dict[str, Any] = said["data"]
        return data

    def cut(self, fields: Fields, share: float) -> None:
        self._leave("POST /api/v1/tasks", json.dumps(fields), share)

    def cut_wait(self, task: str) -> None:
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
        self._connection.close()


class Took(NamedTuple):
    """How long a submit took, and whether the broker was there meanwhile."""

    s: float
    broker_away: bool


class Agent(threading.Thread):
    """Submits its commands in order, so that at most `open_max` have no result yet, and reads the results."""

    def __init__(self, name: str, way: Way, count: int, chance: random.Random, cwd: str, open_max: int) -> None:
        super().__init__(name=name, daemon=True)
        self._way = way
        self._chance = chance
        self._cwd = cwd
        self._fields = [self._command(f"{name}-{number}") for number in range(count)]
        self._names: dict[str, str] = {}
        """Task -> key, of what was acknowledged."""
        self._cursor: str | None = None
        self._cut = threading.Event()
        self._back = threading.Event()
        self._ended = threading.Event()
        self._open_max = open_max
        self._more = 0
        """How many may be open beyond that, while the broker is away."""
        self.submitted: list[str] = []
        self._read_ids: list[str] = []
        self.batches: list[int] = []
        """How many results came at once."""
        self.took: list[Took] = []
        self.error: BaseException | None = None

    def _command(self, key: str) -> dict[str, Any]:
        work = f"sleep {self._chance.uniform(0.05, 0.3):.3f}; " if self._chance.random() < SLOW_SHARE else ""
        argv = ["/bin/sh", "-c", SCRIPT.format(key=key, work=work)]
        priority = 5 if self._chance.random() < URGENT_SHARE else 0
        return {"argv": argv, "executor": "afar", "cwd": self._cwd, "key": key, "priority": priority}

    def run(self) -> None:
        try:
            while not self._ended.is_set():
                try:
                    self._step()
                except Gone:
                    self._ended.wait(LOOK_S)
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread of the scenario.
            self.error = error
        finally:
            self._way.close()

    def _step(self) -> None:
        if self._cut.is_set():
            self._leave()
        elif len(self.submitted) < len(self._fields) and self.open < self._open_max + self._more:
            self._submit()
        elif not self._read():
            self._ended.wait(READ_EVERY_S)

    @property
    def open(self) -> int:
        """How many have no result yet that it has read."""
        return len(self.submitted) - len(self._read_ids)

    @property
    def read(self) -> list[str]:
        """The keys of the results, as they came; of those whose submit was never answered, the ids."""
        return [self._names.get(id, id) for id in self._read_ids]

    @property
    def has_all(self) -> bool:
        return len(self.submitted) == len(self._fields) and not self.open

    def _submit(self) -> None:
        fields, away, since_s = self._fields[len(self.submitted)], self._more > 0, time.monotonic()
        # The same key until it is acknowledged: the daemon may have taken it and died before its answer.
        task = self._way.submit(fields)
        self.took.append(Took(time.monotonic() - since_s, away and self._more > 0))
        self._names[task["id"]] = fields["key"]
        self.submitted.append(fields["key"])

    def _read(self) -> bool:
        page = self._way.results(self._cursor)
        ended = [task for task in page["tasks"] if task["state"] in ("completed", "failed", "cancelled")]
        assert all(task["state"] == "completed" for task in ended), ended
        self._read_ids += [task["id"] for task in ended]
        if page.get("next") is not None:
            self._cursor = page["next"]
            self.batches.append(len(ended))
        return bool(page["tasks"])

    def _leave(self) -> None:
        """Is cut in the middle of a call, and stays away until it may come back."""
        try:
            if len(self.submitted) < len(self._fields) and self._chance.random() < 0.7:
                share = self._chance.choice([1.0, self._chance.random()])
                self._way.cut(self._fields[len(self.submitted)], share)
            elif self._names:
                self._way.cut_wait(self._chance.choice(list(self._names)))
        except Gone:
            pass  # The daemon is away too.
        self._cut.clear()
        self._back.wait()

    def go(self) -> None:
        """Has it cut in its next call."""
        self._back.clear()
        self._cut.set()

    def come(self) -> None:
        """Lets it come back."""
        self._back.set()

    def broker_gone(self, more: int) -> None:
        """Has it submit so many more than it would, because nothing is done meanwhile."""
        self._more = more

    def broker_back(self) -> None:
        """Has it submit as before."""
        self._more = 0

    def end(self) -> None:
        """Ends it, and raises what has ended it before."""
        self._ended.set()
        self._back.set()
        self.join(2 * ANSWER_S)
        if self.error is not None:
            raise self.error
