import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnid import wire
from omnid.relay import LINE_BYTES_MAX, _session_id

FAKE = Path(__file__).parents[1] / "fakes" / "daemon.py"
DEADLINE_S = 30.0
INITIALIZE = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {"protocolVersion": "2025-11-25"}}
INITIALIZED = {"jsonrpc": "2.0", "method": "notifications/initialized"}


def call(request_id: int | str, **arguments: Any) -> dict[str, Any]:
    params = {"name": "t", "arguments": arguments}
    return {"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": params}


class Harness:
    """A relay as a child process, and fake daemons that come and go."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = str(directory / "s")
        self.daemons: list[subprocess.Popen[bytes]] = []
        self.relay: subprocess.Popen[bytes]
        self._received = bytearray()

    def start_daemon(self, *, wait: bool = True) -> None:
        self.daemons.append(subprocess.Popen([sys.executable, FAKE, self.path, str(self.directory)]))
        pid = str(self.daemons[-1].pid)
        until_s = time.monotonic() + DEADLINE_S
        while wait and pid not in self.file("pid").split():
            assert time.monotonic() < until_s
            time.sleep(0.005)

    def start_relay(self, **environ: str) -> None:
        # Config and state are those of the test; a start that fails at once stands in for no daemon at all.
        known = {"OMNID_SOCKET": self.path, "OMNID_STATE": str(self.directory / "state")}
        self.relay = subprocess.Popen(
            [sys.executable, "-c", RELAY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **known, **environ},
        )

    def send(self, *messages: dict[str, Any] | bytes) -> None:
        assert self.relay.stdin is not None
        for message in messages:
            self.relay.stdin.write(message if isinstance(message, bytes) else wire.line(message))
        self.relay.stdin.flush()

    def receive(self) -> dict[str, Any]:
        assert self.relay.stdout is not None
        until_s = time.monotonic() + DEADLINE_S
        while b"\n" not in self._received:
            ready, _, _ = select.select([self.relay.stdout], [], [], max(0.0, until_s - time.monotonic()))
            assert ready, "the relay said nothing in time"
            data = os.read(self.relay.stdout.fileno(), 1 << 16)
            assert data, "the relay has ended"
            self._received += data
        end = self._received.index(b"\n")
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return json.loads(line)

    def initialize(self) -> None:
        self.send(INITIALIZE)
        assert self.receive()["id"] == 0
        self.send(INITIALIZED)

    def end(self) -> tuple[int, list[dict[str, Any]], str]:
        """Closes stdin and gives the exit code, what was still said, and what was said to the person."""
        out, err = self.relay.communicate(timeout=DEADLINE_S)
        return self.relay.returncode, [json.loads(line) for line in (self._received + out).splitlines()], err.decode()

    def file(self, name: str) -> str:
        path = self.directory / name
        return path.read_text() if path.exists() else ""

    def heard(self) -> list[dict[str, Any]]:
        """What all the daemons have received."""
        return [json.loads(line) for line in self.file("log").splitlines()]

    def close(self) -> None:
        for process in [*self.daemons, self.relay]:
            process.kill()
            process.wait()
        for pipe in (self.relay.stdin, self.relay.stdout, self.relay.stderr):
            if pipe is not None:
                pipe.close()


RELAY = """
import os, sys
from omnid import relay
from omnid.errors import Retryable

def no_start(environ):
    if os.environ.get("TEST_START"):
        import subprocess

        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.Popen([sys.executable, *os.environ["TEST_START"].split()], **quiet)
    else:
        raise Retryable("daemon_no_start", detail="not in this test", why="It is so.", do="Wait.")

relay._start_daemon = no_start
sys.exit(relay.main(os.environ))
"""


@pytest.fixture
def harness() -> Iterator[Harness]:
    with tempfile.TemporaryDirectory() as directory:
        harness = Harness(Path(directory))
        yield harness
        harness.close()


def test_it_relays_and_says_who_it_is(harness: Harness) -> None:
    harness.start_daemon()
    harness.start_relay()
    harness.initialize()
    harness.send({"jsonrpc": "2.0", "id": "l", "method": "tools/list"}, call(1, text="ü" * 10_000))
    assert {harness.receive()["id"], harness.receive()["id"]} == {"l", 1}
    hello = harness.heard()[0]
    assert hello["method"] == "omnid/hello"
    assert hello["params"]["role"] == "agent"
    assert len(hello["params"]["session"]) == 36
    assert harness.end() == (0, [], "")


@pytest.mark.parametrize("once", ["die", "half", "after", "cut"])
def test_a_daemon_that_dies_in_the_middle_is_not_noticed(harness: Harness, once: str) -> None:
    harness.start_daemon()
    harness.start_relay()
    harness.initialize()
    harness.send(call(1, text="a", delay_s=0.2), call(2, text="b", once=once), call("1", text="c", delay_s=0.1))
    if once != "cut":
        harness.daemons[0].wait(DEADLINE_S)
        harness.start_daemon()
    answers = [harness.receive() for _ in range(3)]
    assert {answer["id"]: answer["result"]["text"] for answer in answers} == {1: "a", 2: "b", "1": "c"}
    code, rest, _ = harness.end()
    assert (code, rest) == (0, [])
    # The new daemon heard the same session, then the handshake, then what had no answer, each once.
    heard = harness.heard()
    second = max(at for at, message in enumerate(heard) if message["method"] == "omnid/hello")
    assert heard[second]["params"]["session"] == heard[0]["params"]["session"]
    assert heard[second + 1 : second + 3] == [INITIALIZE, INITIALIZED]
    again = [message["id"] for message in heard[second + 3 :]]
    assert again == ([1, "1"] if once == "after" else [1, 2, "1"])


def test_each_request_is_answered_once_however_often_the_daemon_is_killed(harness: Harness) -> None:
    harness.start_daemon()
    harness.start_relay()
    harness.initialize()
    answered: list[Any] = []
    for number in range(10):
        harness.send(*(call(f"{number}.{part}", text="x" * 5000, delay_s=part * 0.003) for part in range(5)))
        time.sleep(number * 0.002)
        harness.daemons[-1].kill()
        harness.daemons[-1].wait()
        harness.start_daemon(wait=False)
        answered += [harness.receive()["id"] for _ in range(5)]
    code, rest, _ = harness.end()
    assert (code, rest) == (0, [])
    assert sorted(answered) == sorted(f"{number}.{part}" for number in range(10) for part in range(5))


def test_what_the_client_did_not_ask_for_is_dropped(harness: Harness) -> None:
    harness.start_daemon()
    harness.start_relay()
    harness.send(call(1, once="garbage"), call(2, once="twice"))
    assert {harness.receive()["id"], harness.receive()["id"]} == {1, 2}
    code, rest, said = harness.end()
    assert (code, rest) == (0, [])
    assert said.count("no JSON") == 2


def test_an_answer_to_an_earlier_daemon_is_dropped(harness: Harness) -> None:
    harness.start_daemon()
    harness.start_relay()
    harness.initialize()
    harness.send(call(1, once="ask"))
    first = harness.receive()
    harness.daemons[0].kill()
    harness.start_daemon()
    assert harness.receive()["params"]["requestId"] == first["id"], "nobody waits for its answer any more"
    second = harness.receive()
    assert first["method"] == second["method"] == "elicitation/create"
    assert first["id"] != second["id"]
    harness.send({"jsonrpc": "2.0", "id": first["id"], "result": {"text": "late"}})
    harness.send({"jsonrpc": "2.0", "id": second["id"], "result": {"text": "right"}})
    assert harness.receive()["result"]["text"] == "right"
    code, rest, _ = harness.end()
    assert (code, rest) == (0, [])


def test_a_daemon_is_started_for_a_request_only(harness: Harness) -> None:
    harness.start_relay(TEST_START=f"{FAKE} {harness.path} {harness.directory}")
    time.sleep(0.3)
    assert harness.file("pid") == ""
    harness.initialize()
    (first,) = harness.file("pid").split()
    os.kill(int(first), signal.SIGKILL)
    harness.send(call(1, text="a"))
    answer = harness.receive()["result"]
    os.kill(answer["pid"], signal.SIGKILL)
    assert harness.file("pid").split() == [first, str(answer["pid"])]
    assert harness.end()[:2] == (0, [])


def test_a_daemon_that_stays_away_is_explained(harness: Harness) -> None:
    harness.start_relay(OMNID_RELAY_AWAY_S="0.3")
    harness.send(call(1), call(2))
    errors = [harness.receive()["error"]["data"] for _ in range(2)]
    assert {error["code"] for error in errors} == {"daemon_down"}
    assert "did not start: not in this test" in errors[0]["why"]
    assert "omnictl up" in errors[0]["do"]
    code, rest, said = harness.end()
    assert (code, rest) == (0, [])
    assert said.count("did not start") == 1


def test_what_a_daemon_had_and_lost_is_explained_differently(harness: Harness) -> None:
    harness.start_daemon()
    harness.start_relay(OMNID_RELAY_AWAY_S="0.3")
    harness.send(call(1, once="die"))
    assert harness.receive()["error"]["data"]["code"] == "daemon_lost"


def test_what_stdin_has_delivered_is_handed_on_before_the_end(harness: Harness) -> None:
    harness.start_relay()
    harness.send(call(1, text="a"), json.dumps(call(2, text="b")).encode())
    assert harness.relay.stdin is not None
    harness.relay.stdin.close()
    harness.start_daemon()
    assert {harness.receive()["id"], harness.receive()["id"]} == {1, 2}
    assert harness.relay.wait(DEADLINE_S) == 0


def test_it_ends_soon_though_an_answer_takes_longer(harness: Harness) -> None:
    harness.start_daemon()
    harness.start_relay()
    harness.initialize()
    harness.send(call(1, delay_s=20))
    begun_s = time.monotonic()
    assert harness.end()[:2] == (0, [])
    assert time.monotonic() - begun_s < 10


def test_a_daemon_that_is_lost_while_the_relay_ends_gets_everything_again(harness: Harness) -> None:
    harness.start_daemon()
    harness.start_relay()
    harness.send(call(1, delay_s=0.2, once="die"))
    assert harness.relay.stdin is not None
    harness.relay.stdin.close()
    harness.daemons[0].wait(DEADLINE_S)
    harness.start_daemon()
    assert harness.receive()["id"] == 1
    assert harness.relay.wait(DEADLINE_S) == 0


def test_nothing_is_kept_waiting_for_a_subscription(harness: Harness) -> None:
    harness.start_relay()
    harness.send({"jsonrpc": "2.0", "id": 1, "method": "subscriptions/listen", "params": {}})
    begun_s = time.monotonic()
    assert harness.end() == (0, [], "")
    assert time.monotonic() - begun_s < 10


def test_a_line_that_is_too_long_is_answered_and_takes_no_memory(harness: Harness) -> None:
    harness.start_daemon()
    harness.start_relay()
    harness.initialize()
    before = peak_bytes(harness.relay.pid)
    for begun, ended in ((b'"id":1,', b""), (b"", b',"id":2')):
        harness.send(b'{"jsonrpc":"2.0",' + begun + b'"method":"tools/call","params":{"name":"')
        for _ in range(40):
            harness.send(b"x" * (1 << 20))
        harness.send(b'"}' + ended + b"}\n")
    for request_id in (1, 2):
        answer = harness.receive()
        assert (answer["id"], answer["error"]["data"]["code"]) == (request_id, "message_too_large")
    harness.send(call(3))
    assert harness.receive()["id"] == 3
    # What is kept of a line, and as much again while it is cut.
    assert peak_bytes(harness.relay.pid) - before < 2.5 * LINE_BYTES_MAX
    assert harness.end()[0] == 0
    assert len(harness.heard()) == 4


def peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        *(({"OMNID_RELAY_AWAY_S": text}, "no number of seconds") for text in ("soon", "nan", "inf", "-1", "1e12")),
        ({"OMNID_SOCKET": "/" + "x" * 200}, "has 201 bytes"),
    ],
)
def test_what_it_cant_work_with_is_explained(harness: Harness, environ: dict[str, str], said: str) -> None:
    harness.start_relay(**environ)
    code, out, err = harness.end()
    assert (code, out) == (1, [])
    assert said in err
    assert "Traceback" not in err


def test_it_ends_when_nobody_reads(harness: Harness) -> None:
    harness.start_daemon()
    harness.start_relay()
    harness.initialize()
    assert harness.relay.stdout is not None
    harness.relay.stdout.close()
    harness.send(call(1))
    assert harness.relay.wait(DEADLINE_S) == 0
    assert call(1) in harness.heard()


def test_a_client_that_only_sends_is_not_kept_in_memory(harness: Harness) -> None:
    harness.start_daemon()
    harness.start_relay()
    assert harness.relay.stdin is not None
    os.set_blocking(harness.relay.stdin.fileno(), False)
    sent = 0
    idle_since_s = time.monotonic()
    while time.monotonic() - idle_since_s < 1.0:
        assert sent < 64 << 20, "it takes everything"
        try:
            sent += os.write(harness.relay.stdin.fileno(), b"no json\n" * 4000)
            idle_since_s = time.monotonic()
        except BlockingIOError:
            time.sleep(0.01)
    resident = subprocess.run(["ps", "-o", "rss=", "-p", str(harness.relay.pid)], capture_output=True, check=True)
    assert int(resident.stdout) < 32 << 10


@given(st.binary(max_size=16))
def test_session_ids_are_uuids(random: bytes) -> None:
    made = uuid.UUID(_session_id(random.ljust(16, b"\xff")))
    assert (made.version, made.variant) == (4, uuid.RFC_4122)
