import json
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from omnid import __version__, wire
from omnid.api.client import Client
from omnid.errors import Rejected, Retryable

Answer = Callable[[dict[str, Any]], bytes | None]
"""What a scripted daemon answers to a request: a line (or a part of one), or None for the end of the connection."""


class Last(bytes):
    """An answer behind which the connection ends."""


class Daemon:
    """Answers one request after the other as scripted; the last script stands for all that come after."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.scripts: list[Answer] = []
        self.requests: list[dict[str, Any]] = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(10)

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as lines:
                for line in lines:
                    self.requests.append(json.loads(line))
                    script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
                    answer = script(self.requests[-1])
                    if answer is None:
                        break
                    connection.sendall(answer)
                    if isinstance(answer, Last):
                        break


@pytest.fixture
def path() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as directory:
        yield os.path.join(directory, "s")


@pytest.fixture
def daemon(path: str) -> Iterator[Daemon]:
    daemon = Daemon(path)
    yield daemon
    daemon.close()


@pytest.fixture
def client(path: str) -> Iterator[Client]:
    with Client(path, timeout_s=10) as client:
        yield client


def result(value: dict[str, Any]) -> Answer:
    return lambda request: wire.line({"jsonrpc": "2.0", "id": request["id"], "result": value})


def lost(request: dict[str, Any]) -> None:
    return None


def test_calls_give_results_over_one_connection(daemon: Daemon, client: Client) -> None:
    daemon.scripts = [result({"a": 1}), result({"b": "ü" * 100_000})]
    assert client.call("omnid/x", {"p": [1]}) == {"a": 1}
    assert client.status() == {"b": "ü" * 100_000}
    assert [(sent["method"], sent["params"]) for sent in daemon.requests] == [
        ("omnid/x", {"p": [1]}),
        ("omnid/status", {}),
    ]


def test_from_inside_an_attempt_it_says_so_on_every_connection(
    daemon: Daemon, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = "019a0000-0000-7000-8000-000000000001"
    monkeypatch.setenv("OMNID_ATTEMPT", attempt)
    hello = ("omnid/hello", {"attempt": attempt, "version": __version__})
    daemon.scripts = [result({}), result({"a": 1}), lost, result({}), result({"b": 2})]
    assert client.call("omnid/x", {}) == {"a": 1}
    with pytest.raises(Retryable):
        client.call("omnid/x", {})
    assert client.call("omnid/x", {}) == {"b": 2}
    x = ("omnid/x", {})
    assert [(sent["method"], sent["params"]) for sent in daemon.requests] == [hello, x, x, hello, x]
    daemon.scripts = [
        lambda request: wire.error_answer(b'"hello"', Rejected("bad_request", detail="x", where="y")),
        result({"c": 3}),
    ]
    client.close()
    assert client.call("omnid/x", {}) == {"c": 3}, "an old daemon's refusal of it harms nothing"


@pytest.mark.parametrize(
    ("call", "method", "params"),
    [
        (lambda client: client.get("t7"), "omnid/task.get", {"task": "t7"}),
        (lambda client: client.list(states=["idle"]), "omnid/task.list", {"states": ["idle"]}),
        (lambda client: client.logs("t7", offset_bytes=5), "omnid/task.log", {"task": "t7", "offset_bytes": 5}),
        (lambda client: client.control("t7", "cancel"), "omnid/task.control", {"task": "t7", "action": "cancel"}),
        (lambda client: client.why("t7"), "omnid/task.why", {"task": "t7"}),
    ],
)
def test_helpers_name_their_methods(
    daemon: Daemon, client: Client, call: Callable[[Client], object], method: str, params: dict[str, Any]
) -> None:
    daemon.scripts = [result({})]
    call(client)
    assert (daemon.requests[0]["method"], daemon.requests[0]["params"]) == (method, params)


def test_the_daemon_s_error_is_raised_and_the_connection_lives(daemon: Daemon, client: Client) -> None:
    error = Rejected("unknown_task", task="t9", hint="")
    daemon.scripts = [lambda request: wire.error_answer(str(request["id"]).encode(), error), result({"ok": True})]
    with pytest.raises(Rejected) as caught:
        client.get("t9")
    assert caught.value.as_dict() == error.as_dict()
    assert client.status() == {"ok": True}


def test_an_error_about_the_connection_is_raised_and_ends_it(daemon: Daemon, client: Client) -> None:
    error = Retryable("too_many_clients", clients_max=1)
    daemon.scripts = [lambda request: wire.error_answer(b"null", error), result({"ok": True})]
    with pytest.raises(Retryable, match="already serves 1"):
        client.status()
    assert client._socket is None
    assert client.status() == {"ok": True}


def test_a_daemon_that_refuses_the_connection_says_why(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener, Client(path, timeout_s=10) as client:
        listener.bind(path)
        listener.listen()

        def refuse() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(wire.error_answer(b"null", Retryable("too_many_clients", clients_max=1)))

        thread = threading.Thread(target=refuse)
        thread.start()
        with pytest.raises(Retryable, match="already serves 1"):
            client.call("omnid/task.submit", {"argv": ["x" * (4 << 20)]})
        thread.join(10)


def test_submit_is_sent_again_with_its_key(daemon: Daemon, client: Client) -> None:
    daemon.scripts = [lost, result({"id": "x"})]
    assert client.submit(argv=["true"]) == {"id": "x"}
    first, second = (sent["params"] for sent in daemon.requests)
    assert first == second
    assert len(first["key"]) == 32


def test_a_key_of_the_caller_is_kept_and_others_differ(daemon: Daemon, client: Client) -> None:
    daemon.scripts = [result({})]
    client.submit(argv=["true"], key="mine")
    client.submit(argv=["true"])
    client.submit(argv=["true"])
    keys = [sent["params"]["key"] for sent in daemon.requests]
    assert keys[0] == "mine"
    assert len(set(keys)) == 3


def test_submit_gives_up_after_the_second_time(daemon: Daemon, client: Client) -> None:
    daemon.scripts = [lost]
    with pytest.raises(Retryable) as caught:
        client.submit(argv=["true"])
    assert caught.value.code == "daemon_lost"
    assert len(daemon.requests) == 2


@pytest.mark.parametrize("part", [b'{"jsonrpc":"2.0",', b"no json\n"])
def test_half_an_answer_is_none(daemon: Daemon, client: Client, part: bytes) -> None:
    daemon.scripts = [lambda request: Last(part)]
    with pytest.raises(Retryable) as caught:
        client.status()
    assert caught.value.code == "daemon_lost"


def test_a_late_answer_is_not_taken_for_the_next(daemon: Daemon, path: str) -> None:
    late = threading.Event()

    def wait(request: dict[str, Any]) -> bytes | None:
        late.wait(10)
        return None

    daemon.scripts = [wait, result({"ok": True})]
    with Client(path, timeout_s=0.05) as client:
        with pytest.raises(Retryable) as caught:
            client.status()
        assert caught.value.code == "answer_timeout"
        late.set()
        client.timeout_s = 10
        assert client.status() == {"ok": True}


def test_answers_to_others_are_passed_over(daemon: Daemon, client: Client) -> None:
    def noise(request: dict[str, Any]) -> bytes:
        event = wire.line({"jsonrpc": "2.0", "method": "omnid/event", "params": {}})
        other = wire.line({"jsonrpc": "2.0", "id": 999, "result": {"no": 1}})
        return event + other + wire.line({"jsonrpc": "2.0", "id": request["id"], "result": {"yes": 1}})

    daemon.scripts = [noise]
    assert client.status() == {"yes": 1}


def test_wait_asks_until_the_end(daemon: Daemon, client: Client) -> None:
    daemon.scripts = [result({"timed_out": True}), result({"timed_out": True}), result({"timed_out": False})]
    assert client.wait("t7", timeout_s=1000) == {"timed_out": False}
    assert [sent["params"]["wait_s"] for sent in daemon.requests] == [50.0, 50.0, 50.0]


def test_wait_ends_in_time(daemon: Daemon, path: str) -> None:
    now_s = 0.0

    def answer(request: dict[str, Any]) -> bytes:
        nonlocal now_s
        now_s += request["params"]["wait_s"]
        return wire.line({"jsonrpc": "2.0", "id": request["id"], "result": {"timed_out": True}})

    daemon.scripts = [answer]
    with Client(path, timeout_s=10, monotonic_s=lambda: now_s) as client:
        assert client.wait("t7", timeout_s=70) == {"timed_out": True}
    assert [sent["params"]["wait_s"] for sent in daemon.requests] == [50.0, 20.0]


@pytest.mark.parametrize("value", ["caf\udce9", float("nan"), {1, 2}], ids=["bytes", "nan", "set"])
def test_what_json_cant_say_is_refused_and_not_sent(daemon: Daemon, value: object) -> None:
    daemon.scripts = [result({"ok": True})]
    with Client(daemon.path) as client:
        with pytest.raises(Rejected) as caught:
            client.submit(argv=["x"], labels=[value])
        assert caught.value.code == "bad_request"
        assert client.status() == {"ok": True}
    assert [sent["method"] for sent in daemon.requests] == ["omnid/status"]


def test_nobody_is_there(path: str) -> None:
    with Client(path) as client, pytest.raises(Retryable) as caught:
        client.status()
    assert caught.value.code == "daemon_down"
    assert "no socket" in caught.value.why


def test_the_daemon_has_died(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with Client(path) as client, pytest.raises(Retryable) as caught:
        client.status()
    assert caught.value.code == "daemon_down"
    assert "died" in caught.value.why


def test_a_file_is_no_daemon_that_died(path: str) -> None:
    with open(path, "w") as file:
        file.write("mine")
    with Client(path) as client, pytest.raises(Retryable) as caught:
        client.status()
    assert "no socket is there" in caught.value.why


def test_the_path_is_too_long(path: str) -> None:
    with Client(path * 10) as client, pytest.raises(Rejected) as caught:
        client.status()
    assert caught.value.code == "path_too_long"


def test_the_path_comes_from_the_environment(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNID_SOCKET", daemon.path)
    daemon.scripts = [result({"ok": True})]
    with Client() as client:
        assert client.status() == {"ok": True}
