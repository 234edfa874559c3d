"""A real daemon on a temporary state directory: started as its own process, watched, stopped, looked for afterwards.

Every process of a test is found by the directory of its home, which stands in the command line of its supervisors and,
as HOME or OMNID_STATE, in the environment of all others. So nothing is ever ended by its name.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from omnid.api.client import Client
from omnid.errors import OmnidError
from omnid.messages import CATALOGUE

WAIT_S = 30.0
LOOK_S = 0.01
OMNID = (sys.executable, "-m", "omnid", "run")
OMNICTL = (sys.executable, "-c", "import sys; from omnid.ctl.main import main; sys.exit(main())")
FAKES = Path(__file__).parents[1] / "fakes"

TOLD = """
[notify]
to = ["told"]
group_s = 0
[[destination]]
name = "told"
kind = "command"
argv = ["/bin/sh", "-c", "cat >> {told}; echo >> {told}"]
"""
"""A config by which people are told things in a file, a line each."""

T = TypeVar("T")


class Home:
    """The directories of one daemon, and the processes that run on them; `close` leaves none."""

    def __init__(self, root: Path, *, covered: bool = True) -> None:
        """Uses `root`, which must be empty; without `covered`, the daemons don't measure their coverage."""
        self.root = root
        self.config = root / "config.toml"
        self.said = root / "said"
        self.work = root / "work"
        self.work.mkdir()
        self.configure("")
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith("OMNID_")}
        if not covered:
            self.environ = {name: value for name, value in self.environ.items() if not name.startswith("COVERAGE_")}
        self.environ |= {
            "HOME": str(root),
            "OMNID_CONFIG": str(self.config),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.through: tuple[str, ...] = ()
        """A command that runs the daemons in another place and becomes them."""
        self.use(root / "state")

    def use(self, state: Path) -> None:
        """Makes this the state directory of the daemons from here on."""
        self.state = state
        self.socket = state / "omnid.sock"
        self.environ["OMNID_STATE"] = str(state)
        self.client = Client(str(self.socket))

    def agent(self, origin: str) -> Client:
        """Connects as an agent."""
        client = Client(str(self.socket))
        client.call("omnid/hello", {"role": "agent", "origin": origin})
        return client

    def configure(self, text: str) -> None:
        """Writes the config."""
        self.config.write_text(text)

    def spawn(self, environ: Mapping[str, str] | None = None) -> "subprocess.Popen[bytes]":
        """Starts a daemon and waits for nothing."""
        with self.said.open("ab") as said:
            return subprocess.Popen(
                (*self.through, *OMNID),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env={**self.environ, **(environ or {})},
                cwd=self.root,
                start_new_session=True,
            )

    def start(self) -> int:
        """Starts a daemon, waits until it answers, and gives its pid."""
        self.process = process = self.spawn()
        until(lambda: self.answers(process), "an answer of the daemon")
        return process.pid

    def answers(self, process: "subprocess.Popen[bytes]") -> bool:
        """Tells whether this daemon answers; fails where it has ended."""
        if process.poll() is not None:
            raise AssertionError(f"omnid ended with {process.returncode}: {self.said.read_text()}")
        try:
            return bool(self.client.status()["pid"] == process.pid)
        except OmnidError:
            return False

    def stop(self) -> None:
        """Ends the daemon as a service manager does; it must end well."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            code, self.process = self.process.wait(WAIT_S), None
            assert code == 0, self.said.read_text()

    def kill(self) -> None:
        """Ends the daemon with SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(WAIT_S)
            self.process = None
        self.client.close()

    def processes(self) -> dict[int, str]:
        """Gives the processes that belong to this home: pid -> command line."""
        mark = os.fsencode(self.root)
        found: dict[int, str] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    line = (entry / "cmdline").read_bytes()
                    # An environment alone may be that of a shell in which somebody looks at the test.
                    if line and (mark in line or mark in (entry / "environ").read_bytes()):
                        found[int(entry.name)] = line.replace(b"\0", b" ").decode(errors="replace").strip()
        return found

    def supervisors(self) -> list[int]:
        """Gives the supervisors that live now."""
        return [pid for pid, line in self.processes().items() if "worker/supervisor.py" in line]

    def refuses(self, environ: Mapping[str, str] | None = None) -> str:
        """Starts a daemon that must end by itself with exit code 1, and gives what it said."""
        before = self.said.stat().st_size if self.said.exists() else 0
        process = self.spawn(environ)
        try:
            code = process.wait(WAIT_S)
        finally:
            process.kill()
            process.wait()
        said = self.said.read_bytes()[before:].decode()
        assert code == 1, said
        return said

    def close(self) -> None:
        """Ends whatever still runs here, by its pid; gives the processes no second life."""
        self.client.close()
        self.kill()
        deadline_s = time.monotonic() + WAIT_S
        while (left := self.processes()) and time.monotonic() < deadline_s:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(LOOK_S)

    def assert_nothing_left(self) -> None:
        """Fails where a process of this home is still there a moment after the daemon's end."""
        until(lambda: not self.processes(), lambda: f"the end of {self.processes()}")

    def ctl(self, *argv: str, stdin: str = "", environ: Mapping[str, str] | None = None) -> "Said":
        """Runs omnictl without a terminal."""
        done = subprocess.run(
            [*OMNICTL, *argv],
            input=stdin.encode(),
            capture_output=True,
            env={**self.environ, **(environ or {})},
            cwd=self.work,
            timeout=WAIT_S,
            check=False,
        )
        return Said(done.returncode, done.stdout.decode(), done.stderr.decode())

    def submit(self, argv: Sequence[str] | None = None, **fields: Any) -> str:
        """Submits a task and gives its name."""
        if argv is not None:
            fields |= {"argv": list(argv)}
            fields.setdefault("cwd", str(self.work))
        return str(self.client.submit(**fields)["name"])

    def sh(self, script: str, **fields: Any) -> str:
        """Submits a shell script and gives the task's name."""
        return self.submit(["/bin/sh", "-c", script], **fields)

    def wait(self, task: str, *states: str) -> dict[str, Any]:
        """Waits until the task is in one of the states (without any: until it has ended), and gives its view."""
        if not states:
            view = self.client.wait(task, WAIT_S)
            assert not view["timed_out"], view["why"]
            return view
        return until(
            lambda: (view := self.client.get(task))["task"]["state"] in states and view,
            lambda: f"{task} to be {states}: {self.client.get(task)['why']}",
        )

    def waiting(self, task: str, reason: str) -> dict[str, Any]:
        """Waits until the task waits for this reason, and gives its view."""
        return until(
            lambda: (view := self.client.get(task))["task"]["reason"] == reason and view,
            lambda: f"{task} to wait for {reason}: {self.client.get(task)['why']}",
        )

    def states(self, *tasks: str) -> list[str]:
        """Gives the states of tasks as they are now."""
        return [self.client.get(task)["task"]["state"] for task in tasks]

    def problem(self, task: str) -> str:
        """Waits for the end of a task, which must be a failure, and gives the code of its problem."""
        view = self.wait(task)
        assert view["task"]["state"] == "failed", view
        return str(view["task"]["problem"]["code"])

    def file(self, name: str) -> Path:
        """Waits until a command has made this file in the directory of its work."""
        path = self.work / name
        until(path.exists, f"{path}")
        return path

    def lines(self, name: str) -> list[str]:
        """Gives the lines that commands have appended to a file in the directory of their work."""
        path = self.work / name
        return path.read_text().splitlines() if path.exists() else []

    def gate(self, name: str = "go") -> "Gate":
        """Makes a gate in the directory of the commands' work, at which `read x < go` waits."""
        return Gate(self.work / name)


def assert_says(code: str, text: str) -> None:
    """Fails where a text doesn't hold what, why and do of the error with that code, or looks like a fault."""
    assert "Traceback" not in text, text
    flat = " ".join(text.split())
    for sentence in CATALOGUE[code]:
        parts = [
            " ".join(part.split()) for part in re.split(r"\{\w+\}", sentence.replace("{{", "{").replace("}}", "}"))
        ]
        position = 0
        for part in parts:
            found = flat.find(part, position)
            assert found >= 0, f"{code}: {part!r} is not in {text}"
            position = found + len(part)


class Gate:
    """A named pipe at which commands wait until they are let through, one for each line."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    def let(self, count: int = 1) -> None:
        """Lets so many commands through, now or when they come."""
        os.write(self._descriptor, b"go\n" * count)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        os.close(self._descriptor)


class Said:
    """What a program printed, and its exit code."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    def __repr__(self) -> str:
        return f"exit {self.code}\n{self.out}\n{self.err}"

    def json(self) -> Any:
        """Gives the result in what omnictl printed with --json."""
        return json.loads(self.out)["result"]


@contextlib.contextmanager
def home_at(root: Path, *, covered: bool = True) -> Iterator[Home]:
    """Gives a home, and leaves no process of it."""
    home = Home(root, covered=covered)
    try:
        yield home
    finally:
        home.close()


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def until(look: Callable[[], T], what: str | Callable[[], str], limit_s: float = WAIT_S) -> T:
    """Looks again and again until there is something (that is true), and gives it."""
    deadline_s = time.monotonic() + limit_s
    while not (found := look()):
        if time.monotonic() > deadline_s:
            raise AssertionError(f"waited {limit_s} s in vain for {what if isinstance(what, str) else what()}")
        time.sleep(LOOK_S)
    return found
