"""What omnid costs an MCP client, against servers of the same SDK that do nothing else."""

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from bench.footprint import FIRST_LINE
from bench.latency import BareCommit
from bench.report import Report
from bench.world import BIN, START_S, Connection, environ, memory_mb, real_daemon, scratch
from omnid.api.spawn import holder

BLOCKS, TURNS = 20, 25
STARTS, COLD_STARTS = 20, 5
RELAYS = 16
REST_S = 2.0
HTTP_CLIENTS, HTTP_ROUNDS, HTTP_REQUESTS = 64, 5, 3_000
LISTENERS, CHANGES = 100, 40
ANSWER_S = 60.0
EXTENSION = "io.modelcontextprotocol/tasks"
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "bench", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {"extensions": {EXTENSION: {}}},
}


class Talk:
    """A client on a program's standard streams: one line out, one line back."""

    def __init__(self, argv: list[str], env: dict[str, str]) -> None:
        here = str(Path(__file__).parent.parent)
        self.process = subprocess.Popen(argv, env=env, cwd=here, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def exchange(self, line: bytes) -> bytes:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line)
        self.process.stdin.flush()
        return self.process.stdout.readline()

    def close(self) -> None:
        self.process.communicate(timeout=START_S)


def line(method: str, params: dict[str, Any]) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode() + b"\n"


def submits() -> Iterator[bytes]:
    """Gives calls of `task_submit` of which no two are the same."""
    number = 0
    while True:
        number += 1
        arguments = {"argv": ["true"], "key": f"{number:032x}"}
        message = {"jsonrpc": "2.0", "id": number, "method": "tools/call"}
        yield json.dumps({**message, "params": {"name": "task_submit", "arguments": arguments}}).encode() + b"\n"


def result_of(answer: bytes) -> dict[str, Any]:
    """Gives the result in an answer; raises RuntimeError where it is none, or one that says that it failed."""
    result = json.loads(answer).get("result")
    if result is None or result.get("isError"):
        raise RuntimeError(f"it answered {answer!r}")
    return result


def _times_ms(exchange: Callable[[bytes], bytes], lines: Iterator[bytes]) -> Iterator[float]:
    for one in lines:
        since_ns = time.monotonic_ns()
        answer = exchange(one)
        yield (time.monotonic_ns() - since_ns) / 1e6
        result_of(answer)


def _side_by_side(*ways: Iterator[float]) -> list[float]:
    """Gives the median of each way, block by block in turns."""
    taken: list[list[float]] = [[] for _ in ways]
    for block in range(BLOCKS + 1):
        for way, times in zip(ways, taken, strict=True):
            times += [next(way) for _ in range(TURNS)]
            if block == 0:
                times.clear()
    return [median(times) for times in taken]


def _calls(report: Report, directory: Path, env: dict[str, str], daemon: Connection) -> None:
    """One submit at a time, and what its way is made of."""
    relay = Talk([str(BIN / "omnid"), "mcp"], env)
    bare = Talk([sys.executable, "-m", "bench.mcp_bare", "stdio", str(directory / "bare.db")], env)
    direct = Connection(daemon.path)
    commit = BareCommit(directory / "commit.db")
    for exchange in (relay.exchange, bare.exchange, direct.exchange):
        result_of(exchange(FIRST_LINE))
    lines = submits()
    pings = iter(lambda: line("ping", {}), None)

    def plain() -> Iterator[bytes]:
        for one in lines:
            arguments = json.loads(one)["params"]["arguments"]
            yield line("omnid/task.submit", arguments)

    def commits() -> Iterator[float]:
        while True:
            yield commit.take_ms()

    ours, theirs, straight, own, ping, bare_ping, committed = _side_by_side(
        _times_ms(relay.exchange, lines),
        _times_ms(bare.exchange, lines),
        _times_ms(direct.exchange, lines),
        _times_ms(daemon.exchange, plain()),
        _times_ms(relay.exchange, pings),
        _times_ms(bare.exchange, pings),
        commits(),
    )
    report.add("task_submit over stdio, relay and daemon, p50", ours, "ms")
    report.add("the same tool on the SDK's stdio server, p50", theirs, "ms")
    report.add("task_submit against that", ours / theirs, "x", "<=", 1.3)
    report.add("without the relay: at the daemon's socket, p50", straight, "ms")
    report.add("without MCP: omnid's own method at the socket, p50", own, "ms")
    report.add("a ping through relay and daemon, p50", ping, "ms")
    report.add("a ping at the SDK's stdio server, p50", bare_ping, "ms")
    report.add("a bare durable commit, p50", committed, "ms")
    direct.close()
    relay.close()
    bare.close()


def _start_ms(env: dict[str, str]) -> float:
    since_s = time.monotonic()
    relay = Talk([str(BIN / "omnid"), "mcp"], env)
    answer = relay.exchange(FIRST_LINE)
    taken_ms = (time.monotonic() - since_s) * 1000
    result_of(answer)
    relay.close()
    return taken_ms


def _cold(env: dict[str, str]) -> Iterator[float]:
    """Starts relays where no daemon runs."""
    for _ in range(COLD_STARTS):
        yield _start_ms(env)
        daemon = holder(env["OMNID_STATE"])
        if daemon is None:
            raise RuntimeError("the relay started no daemon")
        os.kill(daemon.pid, signal.SIGTERM)
        until_s = time.monotonic() + START_S
        while holder(env["OMNID_STATE"]) is not None and time.monotonic() < until_s:
            time.sleep(0.01)


def _many(report: Report, env: dict[str, str], pid: int) -> None:
    relays = [Talk([str(BIN / "omnid"), "mcp"], env) for _ in range(RELAYS)]
    for relay in relays:
        result_of(relay.exchange(FIRST_LINE))
    time.sleep(REST_S)
    report.add(
        f"{RELAYS} relays, the largest, RSS", max(memory_mb(one.process.pid)["rss"] for one in relays), "MB", "<=", 13
    )
    report.add(f"the daemon with {RELAYS} relays, RSS", memory_mb(pid)["rss"], "MB", "<=", 130)
    for relay in relays:
        relay.close()


@contextmanager
def _bare_http(env: dict[str, str]) -> Iterator[int]:
    argv = [sys.executable, "-m", "bench.mcp_bare", "http"]
    here = str(Path(__file__).parent.parent)
    with subprocess.Popen(argv, env=env, cwd=here, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def _post(port: int, method: str, name: str, params: dict[str, Any]) -> bytes:
    body = line(method, {**params, "_meta": META})
    head = (
        f"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        "Accept: application/json, text/event-stream\r\nMcp-Protocol-Version: 2026-07-28\r\n"
        f"Mcp-Method: {method}\r\nMcp-Name: {name}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class HttpLoad:
    """Connections that are kept alive, each with one request open at a time."""

    def __init__(self, port: int, request: bytes) -> None:
        self._request = request
        self._selector = selectors.DefaultSelector()
        self._sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(HTTP_CLIENTS)]
        for connection in self._sockets:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(connection, selectors.EVENT_READ, bytearray())

    def per_s(self, count: int) -> float:
        """Sends so many requests and gives how many a second were answered; raises RuntimeError for a refusal."""
        since_s = time.perf_counter()
        for connection in self._sockets:
            connection.sendall(self._request)
        sent, left = HTTP_CLIENTS, count
        while left:
            ready = self._selector.select(ANSWER_S)
            if not ready:
                raise TimeoutError
            for key, _ in ready:
                connection, buffer = key.fileobj, key.data
                assert isinstance(connection, socket.socket)
                data = connection.recv(1 << 16)
                if not data:
                    raise RuntimeError("it hung up")
                buffer += data
                if not self._whole(buffer):
                    continue
                buffer.clear()
                left -= 1
                if sent < count:
                    sent += 1
                    connection.sendall(self._request)
        return count / (time.perf_counter() - since_s)

    def close(self) -> None:
        self._selector.close()
        for connection in self._sockets:
            connection.close()

    @staticmethod
    def _whole(buffer: bytearray) -> bool:
        head, end, body = bytes(buffer).partition(b"\r\n\r\n")
        if not end:
            return False
        if not head.startswith(b"HTTP/1.1 200") or b'"error"' in body:
            raise RuntimeError(f"it answered {bytes(buffer)!r}")
        return len(body) == int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])


def _http(report: Report, env: dict[str, str], task_id: str, port: int) -> None:
    with _bare_http(env) as bare_port, ExitStack() as closing:
        ours = HttpLoad(port, _post(port, "tasks/get", task_id, {"taskId": task_id}))
        theirs = HttpLoad(bare_port, _post(bare_port, "tools/call", "trivial", {"name": "trivial", "arguments": {}}))
        closing.callback(ours.close)
        closing.callback(theirs.close)
        got: list[float] = []
        called: list[float] = []
        for _ in range(HTTP_ROUNDS + 1):
            got.append(ours.per_s(HTTP_REQUESTS))
            called.append(theirs.per_s(HTTP_REQUESTS))
    got, called = got[1:], called[1:]
    report.add(f"tasks/get over HTTP, {HTTP_CLIENTS} clients", median(got), "/s")
    report.add("a trivial tool on the bare SDK, the same clients", median(called), "/s")
    ratio = median(one / other for one, other in zip(got, called, strict=True))
    report.add("tasks/get against that", ratio, "x", ">=", 0.7)


def _listeners(report: Report, daemon: Connection, task_id: str) -> None:
    """Changes a task that many listen to, and takes the time until each has been told."""
    selector = selectors.DefaultSelector()
    listen = line("subscriptions/listen", {"notifications": {"taskIds": [task_id]}, "_meta": META})
    sockets = [socket.socket(socket.AF_UNIX) for _ in range(LISTENERS)]
    for connection in sockets:
        connection.connect(daemon.path)
        connection.sendall(listen)
        selector.register(connection, selectors.EVENT_READ, bytearray())

    def heard() -> Iterator[float]:
        """Gives the time at which each listener had a notification of the task."""
        waiting = set(range(LISTENERS))
        by_socket = {connection: number for number, connection in enumerate(sockets)}
        while waiting:
            ready = selector.select(ANSWER_S)
            if not ready:
                raise TimeoutError
            for key, _ in ready:
                assert isinstance(key.fileobj, socket.socket)
                data = key.fileobj.recv(1 << 16)
                if not data:
                    raise RuntimeError("it hung up")
                key.data.extend(data)
                if b'"notifications/tasks"' in key.data and key.data.endswith(b"\n"):
                    key.data.clear()
                    waiting.discard(by_socket[key.fileobj])
                    yield time.monotonic()

    list(heard())  # They are told how it stands, first of all.
    times_ms: list[float] = []
    for number in range(CHANGES):
        since_s = time.monotonic()
        daemon.call("task.control", {"task": task_id, "action": ("pause", "resume")[number % 2]})
        times_ms += [(at_s - since_s) * 1000 for at_s in heard()]
    report.add(f"a change reaches {LISTENERS} listeners, p50", median(times_ms), "ms")
    report.add("the same, p99", quantiles(times_ms, n=100)[98], "ms", "<=", 100)
    selector.close()
    for connection in sockets:
        connection.close()


def run(report: Report) -> None:
    with scratch() as directory:
        port = _free_port()
        env = environ(
            directory, http__listen=f"127.0.0.1:{port}", http__requests_per_s_max=1_000_000, agents__allow='["command"]'
        )
        with real_daemon(env):
            pass  # The first start writes bytecode and makes the database.
        report.add("relay, cold: the daemon started by it, p50", median(_cold(env)), "ms", "<=", 1_500)
        with real_daemon(env) as (process, client):
            client.call("gate.pause", {"executor": "*"})
            _calls(report, directory, env, client)
            times_ms = [_start_ms(env) for _ in range(STARTS)]
            report.add("relay, warm: from its start to initialize answered, p50", median(times_ms), "ms", "<=", 60)
            _many(report, env, process.pid)
            task_id = client.call("task.submit", {"argv": ["true"]})["id"]
            _http(report, env, task_id, port)
            _listeners(report, client, task_id)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]
