"""Every error that a person can meet is provoked, and says what happened, why, and what to do.

`SHARED` and `ALONE` provoke an error for real and give what was printed or answered; `ELSEWHERE` names the test that
does, where another one has what it takes; `FAULTS` are those that only a fault in omnid could show.
"""

import contextlib
import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from omnid.api.client import Client
from omnid.errors import OmnidError
from omnid.messages import CATALOGUE
from tests.e2e.error_places import ELSEWHERE
from tests.e2e.harness import FAKES, OMNICTL, WAIT_S, Home, assert_says, home_at, until

WIDE = {"COLUMNS": "1000"}
FILE_BYTES_MAX = 65_536
SESSION = "01a1fc6f-0dd0-7b21-bc59-25941ffffc1f"
CONFIG = f"""
[socket]
message_bytes_max = 65536
clients_max = 12
[limits]
input_bytes_max = 4096
labels_max = 2
spool_bytes_max = 1024
[task]
kill_grace_s = 0.5
[[executor]]
name = "server"
kind = "mcp"
argv = ['{sys.executable}', '{FAKES / "mcp_server.py"}', '{{}}']
restart_max_s = 1.0
[[executor]]
name = "absent"
kind = "mcp"
argv = ["/no/such/server"]
[[origin]]
name = "bounded"
executors = ["server"]
labels = []
[[executor]]
name = "mapped"
kind = "command"
result = {{ error = "error" }}
"""

Provoke = Callable[[Home], str]


def ctl(*argv: str, stdin: str = "") -> Provoke:
    """Runs omnictl, which must fail."""

    def provoke(home: Home) -> str:
        said = home.ctl(*argv, stdin=stdin, environ=WIDE)
        assert said.code not in (0, 75, 124), said
        return said.err

    return provoke


def shown(script: str = "true", **fields: Any) -> Provoke:
    """Submits a task that comes to a bad end, and looks at it."""

    def provoke(home: Home) -> str:
        given = {"attempts_max": 1, **fields}
        return show(home, home.submit(**given) if "server" in fields or "argv" in fields else home.sh(script, **given))

    return provoke


def show(home: Home, task: str) -> str:
    view = until(
        lambda: (view := home.client.get(task))["task"]["state"] in ("failed", "cancelled", "uncertain") and view,
        lambda: home.client.why(task)["text"],
    )
    assert view["task"]["problem"]
    said = home.ctl("show", task, environ=WIDE)
    assert said.code == 0, said
    return said.out


def tool(name: str, **arguments: Any) -> Provoke:
    return shown(server="server", tool=name, arguments=arguments)


def answered(client: Client, method: str, **params: Any) -> str:
    """Gives the error that the daemon answers with."""
    with pytest.raises(OmnidError) as refused:
        client.call(method, params)
    return str(refused.value)


def asked(method: str, **params: Any) -> Provoke:
    return lambda home: answered(home.client, method, **params)


def not_allowed(home: Home) -> str:
    with closing(home.agent("bot")) as agent:
        return answered(agent, "omnid/gate.pause")


def other_origin(home: Home) -> str:
    task = home.submit(["true"], not_before_ms=1 << 45)
    with closing(home.agent("bot")) as agent:
        return answered(agent, "omnid/task.control", task=task, action="cancel")


def bounded(method: str, **params: Any) -> Provoke:
    """Asks as an origin that the config gives bounds."""

    def provoke(home: Home) -> str:
        with closing(home.agent("bounded")) as agent:
            return answered(agent, method, **params)

    return provoke


def ambiguous_task(home: Home) -> str:
    with closing(home.agent("one")) as one, closing(home.agent("two")) as two:
        name = one.submit(argv=["true"], cwd="/")["name"].partition("/")[2]
        two.submit(argv=["true"], cwd="/")
        with closing(home.agent("three")) as three:
            return answered(three, "omnid/task.get", task=name)


def busy_key(home: Home) -> str:
    # Each connection counts its requests anew, so both submits have the same id in the same session.
    with closing(Client(str(home.socket))) as first, closing(Client(str(home.socket))) as second:
        for client in (first, second):
            client.call("omnid/hello", {"session": SESSION})
        first.call("omnid/task.submit", {"argv": ["true"], "cwd": "/"})
        return answered(second, "omnid/task.submit", argv=["false"], cwd="/")


def too_many_clients(home: Home) -> str:
    with contextlib.ExitStack() as opened:

        def refusal() -> str:
            for _ in range(12):
                connection = opened.enter_context(socket.socket(socket.AF_UNIX))
                connection.connect(str(home.socket))
            said = home.ctl("status", environ=WIDE)
            return said.err if said.code else ""

        return until(refusal, "a refusal")  # Connections of earlier tests may count while they are being closed.


def key_reused(home: Home) -> str:
    home.submit(["true"], key="mine")
    return ctl("add", "--key", "mine", "--", "false")(home)


def dependency_failed(home: Home) -> str:
    with home.gate("dependency") as gate:
        first = home.sh("read x < dependency; exit 1", attempts_max=1)
        second = home.sh("true", after=[first])
        gate.let()
        text = show(home, second)
    assert_says("dependency_failed", ctl("add", "--after", first, "--", "true")(home))
    return text


def not_in_state(home: Home) -> str:
    return ctl("resolve", home.wait(home.sh("true"))["task"]["name"], "--done")(home)


def output_failed(home: Home) -> str:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*OMNICTL, "status"], stdout=full, stderr=subprocess.PIPE, env=home.environ, timeout=WAIT_S, check=False
        )
    assert done.returncode == 1
    return done.stderr.decode()


def cancelled(home: Home) -> str:
    task = home.sh("sleep 60")
    home.wait(task, "executing")
    assert home.ctl("cancel", task).code == 0
    return show(home, task)


def deadline_passed(home: Home) -> str:
    return ctl("add", "--deadline", "2020-01-01", "--", "true")(home)


def executor_down(home: Home) -> str:
    task = home.submit(server="absent", tool="x")
    until(lambda: "is down" in home.client.why(task)["text"], "the gate")
    gates = home.client.status()["gates"]
    home.client.control(task, "cancel")
    (problem,) = [gate["problem"] for gate in gates if gate["subject"] == "absent"]
    return f"{problem['what']} {problem['why']} {problem['do']}"


def supervisor_lost(home: Home) -> str:
    task = home.sh(": > lost; sleep 60")
    home.file("lost")
    attempt = home.client.get(task)["attempts"][0]["id"]
    (supervisor,) = [
        pid for pid, line in home.processes().items() if "worker/supervisor.py" in line and attempt in line
    ]
    os.kill(supervisor, signal.SIGKILL)
    return show(home, task)


def not_approved(home: Home) -> str:
    with closing(home.agent("bot")) as agent:
        task = agent.submit(argv=["true"], cwd="/")["name"]
    assert home.ctl("deny", task).code == 0
    return show(home, task)


def unreadable_file(home: Home) -> str:
    (home.work / "binary").write_bytes(b"\xff\xfe\0")
    return ctl("add", "-f", "binary")(home)


def unknown_attempt(home: Home) -> str:
    return ctl("logs", home.submit(["true"]), "--attempt", "9")(home)


SHARED: dict[str, Provoke] = {
    "unknown_schedule": ctl("schedule", "show", "nightly"),
    "bad_schedule": ctl("schedule", "add", "nightly", "--cron", "at night", "--", "true"),
    "bad_request": ctl("add", "--priority", "99", "--", "true"),
    "unknown_method": asked("omnid/nothing"),
    "not_allowed": not_allowed,
    "other_origin": other_origin,
    "executor_closed": bounded("omnid/task.submit", argv=["true"], cwd="/"),
    "shows_all": bounded("omnid/spend"),
    "message_too_large": ctl("add", "--stdin", "--", "cat", stdin="x" * 70_000),
    "too_many_clients": too_many_clients,
    "input_too_large": ctl("add", "--", "echo", "x" * 5000),
    "too_many": ctl("add", "--label", "a", "--label", "b", "--label", "c", "--", "true"),
    "nothing_to_do": ctl("add", "--prompt", "hello", "--", "true"),
    "kind_missing": ctl("add", "--tool", "echo"),
    "unknown_executor": ctl("add", "--executor", "nobody", "--", "true"),
    "wrong_executor": ctl("add", "--executor", "server", "--", "true"),
    "bad_cwd": ctl("add", "--cwd", "/no/such/directory", "--", "true"),
    "bad_answer": lambda home: ctl("reply", home.sh("true"), "maybe")(home),
    "key_reused": key_reused,
    "unknown_task": ctl("show", "t9999"),
    "unknown_attempt": unknown_attempt,
    "ambiguous_task": ambiguous_task,
    "dependency_cycle": ctl(
        "add",
        "-",
        stdin='{"argv":["true"],"ref":"a","after":["b"]}\n{"argv":["true"],"ref":"b","after":["a"]}\n',
    ),
    "dependency_failed": dependency_failed,
    "not_in_state": not_in_state,
    "busy_key": busy_key,
    "batch_task": asked(
        "omnid/task.submit_batch", tasks=[{"argv": ["true"], "executor": "nobody"}, {"argv": ["true"]}]
    ),
    "duplicate_ref": ctl("add", "-", stdin='{"argv":["true"],"ref":"a"}\n{"argv":["true"],"ref":"a"}\n'),
    "bad_cursor": ctl("list", "--cursor", "here"),
    "bad_time": ctl("add", "--not-before", "soonish", "--", "true"),
    "bad_usage": ctl("shwo"),
    "bad_line": ctl("add", "-", stdin='{"argv":["true"]}\n{"argv":\n'),
    "bad_file": unreadable_file,
    "output_failed": output_failed,
    "command_not_found": shown(argv=["no-such-program"]),
    "command_no_start": shown(argv=["/etc/passwd"]),
    "exit_code": shown("echo so; exit 3"),
    "killed_by_signal": shown("kill -9 $$"),
    "attempt_timeout": shown("sleep 60", timeout_s=0.2),
    "deadline_passed": deadline_passed,
    "spool_full": shown("head -c 5000 /dev/zero | tr '\\0' x", executor="mapped"),
    "check_failed": shown(check=["false"]),
    "reported_error": shown("""echo '{"error": "out of cheese"}'""", executor="mapped"),
    "bad_result": shown("echo no", executor="mapped"),
    "cancelled": cancelled,
    "executor_down": executor_down,
    "executor_crashed": tool("die_reading"),
    "unknown_tool": tool("dance"),
    "bad_arguments": tool("add", a="one"),
    "bad_template": tool("echo", text="{task.color}"),
    "uncertain": tool("die"),
    "supervisor_lost": supervisor_lost,
    "not_approved": not_approved,
}


@contextlib.contextmanager
def answering(home: Home, answer: bytes) -> Iterator[None]:
    """Something else at the socket's path, which gives everybody this answer and hangs up."""
    home.state.mkdir(mode=0o700, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(home.socket))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join(WAIT_S)


def ctl_fault(home: Home) -> str:
    with answering(home, b'{"jsonrpc":"2.0","id":1,"result":{"odd":1}}\n'):
        return ctl("status")(home)


def daemon_lost(home: Home) -> str:
    with answering(home, b""):
        return ctl("status")(home)


def answer_timeout(home: Home) -> str:
    os.kill(home.start(), signal.SIGSTOP)
    with closing(Client(str(home.socket), timeout_s=0.3)) as client:
        return answered(client, "omnid/status")


def daemon_unheard(home: Home) -> str:
    home.start()
    home.socket.unlink()
    return ctl("status")(home)


def not_stopped(home: Home) -> str:
    home.start()
    # It takes longer than that, whatever there is to be stopped.
    return ctl("down", "--timeout", "0s")(home)


def too_many_waiting(home: Home) -> str:
    home.configure("[limits]\nwaiting_tasks_max = 1")
    home.start()
    home.submit(["true"], not_before_ms=1 << 45)
    return ctl("add", "--", "true")(home)


def demo_failed(home: Home) -> str:
    environ = {name: value for name, value in home.environ.items() if not name.startswith("COVERAGE_")} | WIDE
    done = subprocess.run(
        ["/bin/sh", "-c", 'ulimit -f 0; exec "$@"', "sh", *OMNICTL, "demo"],
        capture_output=True,
        env=environ,
        timeout=WAIT_S,
        check=False,
    )
    assert done.returncode == 1, done
    return done.stderr.decode()


def store_busy(home: Home) -> str:
    home.start()
    with closing(sqlite3.connect(home.state / "journal.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        return ctl("add", "--", "true")(home)


def store_io(home: Home) -> str:
    # Its own measuring would fail with it at the end, and say so where the error stands.
    home.environ = {name: value for name, value in home.environ.items() if not name.startswith("COVERAGE_")}
    home.start()
    assert home.process
    # From here on, the system refuses what it writes behind this place of a file.
    resource.prlimit(home.process.pid, resource.RLIMIT_FSIZE, (FILE_BYTES_MAX, FILE_BYTES_MAX))
    with contextlib.suppress(OmnidError):
        home.submit(["true"], stdin="x" * 100_000)
    assert home.process.wait(WAIT_S) == 1
    home.process = None
    return home.said.read_text()


def replay_mismatch(home: Home) -> str:
    home.start()
    home.wait(home.sh("true"))
    with closing(sqlite3.connect(home.state / "journal.db")) as other:
        other.execute("DELETE FROM change WHERE kind = (SELECT kind FROM change ORDER BY seq LIMIT 1)")
        other.commit()
    assert home.ctl("doctor").code == 1
    return ctl("replay", "--until", "1000000")(home)


def configured(text: str) -> Provoke:
    """Starts a daemon with this config, and asks omnictl about the same file."""

    def provoke(home: Home) -> str:
        home.configure(text)
        return home.refuses()

    return provoke


def daemon_no_start(home: Home) -> str:
    home.configure("no config")
    return ctl("up")(home)


ALONE: dict[str, Provoke] = {
    "too_many_waiting": too_many_waiting,
    "ctl_fault": ctl_fault,
    "not_stopped": not_stopped,
    "demo_failed": demo_failed,
    "store_busy": store_busy,
    "store_io": store_io,
    "replay_mismatch": replay_mismatch,
    "config_unreadable": configured("no config"),
    "config_unknown_key": configured("[daemon]\nslot_max = 3"),
    "config_bad_value": configured("[daemon]\nslots_max = -1"),
    "secret_plain": configured(
        '[[executor]]\nname = "x"\nkind = "command"\nenv_set = { API_KEY = "abcdefgh12345678" }'
    ),
    "daemon_down": ctl("status"),
    "daemon_unheard": daemon_unheard,
    "daemon_lost": daemon_lost,
    "answer_timeout": answer_timeout,
    "daemon_no_start": daemon_no_start,
}

FAULTS = {"bad_event", "executor_fault", "internal"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    root = tmp_path_factory.mktemp("h")
    root.chmod(0o700)
    with home_at(root) as home:
        home.configure(CONFIG)
        home.start()
        yield home
        home.stop()


@pytest.mark.parametrize("code", SHARED)
def test_it_says_what_why_and_what_to_do(shared: Home, code: str) -> None:
    assert_says(code, SHARED[code](shared))


@pytest.mark.parametrize("code", ALONE)
def test_it_says_what_why_and_what_to_do_when_all_is_lost(home: Home, code: str) -> None:
    assert_says(code, ALONE[code](home))


def test_every_error_is_provoked_somewhere() -> None:
    named = [*SHARED, *ALONE, *ELSEWHERE, *FAULTS]
    assert set(named) ^ CATALOGUE.keys() == set()
    assert len(named) == len(set(named))
    for code, place in ELSEWHERE.items():
        path, _, name = place.partition("::")
        text = (Path(__file__).parents[2] / path).read_text()
        assert f'"{code}"' in text, place
        assert not name or f"def {name}(" in text, place
