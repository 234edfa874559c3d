"""Where the demo happens: a temporary directory with two daemons and a ledger, which ends without leaving anything."""

import contextlib
import fcntl
import glob
import json
import os
import shutil
import signal
import site
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from types import FrameType
from typing import Any, NamedTuple, Self

from omnid import platform
from omnid.api.client import Client
from omnid.api.spawn import start_daemon, wait_for_end
from omnid.ctl import demo_tasks
from omnid.errors import Retryable

END_S = 20.0
"""How long a killed daemon, and then what ran under its supervisors, may take to be gone."""

_LOOK_S = 0.05
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_FIRST = """\
[daemon]
slots_max = 8
[task]
kill_grace_s = 1.0
[[executor]]
name = "second"
kind = "mcp"
argv = {argv}
env = ["PYTHONPATH", "PYTHONUSERBASE"]
env_set = {{ {variables} }}
tool = "task_submit"
# The same key makes it the same task however often it is handed over: that is why it may be declared idempotent.
arguments = {{ key = "{{task.id}}" }}
idempotent = true
"""
_SECOND = '[agents]\nallow = ["command"]\n'


class Interrupted(Exception):
    """The demo was asked to end, by the signal of this number."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """Notes the signals that end the demo, so that it ends between two steps and never in the middle of a start."""

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._number = 0

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            # What the caller has chosen to ignore (nohup) stays ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._number = number

    def check(self) -> None:
        """Raises Interrupted once a signal has come."""
        if self._number:
            raise Interrupted(self._number)


class Daemon:
    """A throw-away daemon, with all that it knows below one directory."""

    def __init__(self, directory: str, config: str, environ: Mapping[str, str]) -> None:
        os.mkdir(directory, 0o700)
        self.state_dir = os.path.join(directory, "state")
        path = os.path.join(directory, "config.toml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(config)
        self.variables = _variables(directory)
        self._environ = {**environ, **self.variables}
        self.client = Client(self.variables["OMNID_SOCKET"])

    def start(self) -> int:
        """Starts it, waits until it answers, and gives its pid."""
        start_daemon(self._environ)
        return int(self.client.status()["pid"])

    def kill(self) -> None:
        """Ends it with SIGKILL, where it runs; what it has started goes on."""
        self.client.close()
        until_s = time.monotonic() + END_S
        while not wait_for_end(self.state_dir, 0):
            if time.monotonic() >= until_s:
                raise Retryable("demo_failed", detail=f"the daemon that uses {self.state_dir} doesn't end")
            with open(os.path.join(self.state_dir, "lock"), encoding="ascii") as file:
                # Whoever takes the lock writes "pid 4711" into it, a moment later.
                pid = file.readline().removeprefix("pid ")
            # It may end by itself in between.
            with contextlib.suppress(ProcessLookupError):
                if pid:
                    os.kill(int(pid), signal.SIGKILL)
            time.sleep(_LOOK_S / 5)

    def wait_for_supervisors(self) -> None:
        """Waits for the end of what runs under the supervisors of this daemon, after its own end."""
        until_s = time.monotonic() + END_S
        for path in glob.glob(os.path.join(glob.escape(self.state_dir), "spool", "*", "lock")):
            while _held(path):
                if time.monotonic() >= until_s:
                    raise Retryable("demo_failed", detail=f"the supervisor that holds {path} doesn't end")
                time.sleep(_LOOK_S)


class Place:
    """The temporary directory, the daemons in it, and the ledger that the tasks write."""

    def __init__(self, root: str, environ: Mapping[str, str]) -> None:
        self.work = os.path.join(root, "work")
        os.mkdir(self.work)
        demo_tasks.lay_out(self.work)
        outside = {name: value for name, value in environ.items() if not name.startswith(("OMNID_", "XDG_"))}
        # Another home must not hide an omnid that is installed for this user alone.
        outside |= {"HOME": root, "PYTHONUSERBASE": environ.get("PYTHONUSERBASE") or site.getuserbase()}
        outside.setdefault("PATH", os.defpath)
        self.second = Daemon(os.path.join(root, "second"), _SECOND, outside)
        variables = ", ".join(f"{name} = {_toml(value)}" for name, value in self.second.variables.items())
        config = _FIRST.format(argv=_toml([sys.executable, "-m", "omnid", "mcp"]), variables=variables)
        self.first = Daemon(os.path.join(root, "first"), config, outside)

    def wait_until(self, found: Callable[[], bool], limit_s: float, signals: Signals) -> bool:
        """Looks again and again; False when there was nothing within `limit_s`. Raises Interrupted."""
        until_s = time.monotonic() + limit_s
        while not found():
            signals.check()
            if time.monotonic() >= until_s:
                return False
            time.sleep(_LOOK_S)
        return True

    def begun(self, job: str) -> bool:
        """Tells whether a held task is in the middle of its work."""
        return os.path.exists(os.path.join(self.work, f"{job}.begun"))

    def open_door(self) -> None:
        """Lets the held tasks go on."""
        with open(os.path.join(self.work, demo_tasks.DOOR), "w", encoding="ascii"):
            pass

    def ledger(self) -> list[str]:
        """Reads the ledger: the names of the tasks that had their effect, in that order."""
        try:
            with open(os.path.join(self.work, demo_tasks.LEDGER), encoding="utf-8") as file:
                return file.read().splitlines()
        except FileNotFoundError:
            return []

    def close(self) -> None:
        """Ends all that runs here: both daemons, then what their supervisors still hold.

        Raises Retryable(`demo_failed`) where something doesn't end.
        """
        self.first.kill()
        self.open_door()
        # With it ends the relay, so nothing can start the second daemon again.
        self.first.wait_for_supervisors()
        self.second.kill()
        self.second.wait_for_supervisors()


@contextlib.contextmanager
def place(environ: Mapping[str, str]) -> Generator[Place]:
    """Gives a place, and leaves neither a process nor a file of it, whatever happens.

    Raises Retryable(`demo_failed`) where there is no room for it, or something of it doesn't end.
    """
    try:
        root = tempfile.mkdtemp(prefix="omnid-demo-", dir=_directory())
    except OSError as error:
        raise Retryable("demo_failed", detail=f"there is no place for its files ({error.strerror})") from error
    try:
        try:
            made = Place(root, environ)
        except OSError as error:
            raise Retryable("demo_failed", detail=f"its files can't be written ({error.strerror})") from error
        try:
            yield made
        finally:
            made.close()
    finally:
        shutil.rmtree(root, ignore_errors=True)
    if os.path.exists(root):
        raise Retryable("demo_failed", detail=f"its files in {root} can't be removed")


class Count(NamedTuple):
    """What the ledger adds up to."""

    done: int
    lost: int
    twice: int

    @classmethod
    def of(cls, ledger: Iterable[str], names: Iterable[str]) -> Self:
        """Counts: each name belongs into the ledger once, and nothing else does."""
        lines, wanted = Counter(ledger), set(names)
        done = len(wanted & lines.keys())
        return cls(done, len(wanted) - done, lines.total() - done)

    def __str__(self) -> str:
        return f"{self.done} done, {self.lost} lost, {self.twice} done twice"

    @property
    def good(self) -> bool:
        """Whether nothing was lost and nothing was done twice."""
        return self.lost == self.twice == 0


def _variables(directory: str) -> dict[str, str]:
    names = {"OMNID_STATE": "state", "OMNID_CONFIG": "config.toml", "OMNID_SOCKET": "sock"}
    return {name: os.path.join(directory, file) for name, file in names.items()}


def _directory() -> str | None:
    """Chooses where the directory goes: the usual place, unless the path of a socket there would be too long."""
    longest = os.path.join(tempfile.gettempdir(), "omnid-demo-12345678", "second", "sock")
    fits = len(os.fsencode(longest)) <= platform.SOCKET_PATH_BYTES_MAX
    return None if fits else "/tmp"  # noqa: S108 - mkdtemp makes what lies there private.


def _toml(value: object) -> str:
    """Writes a text or a list of texts, in what TOML and JSON have in common."""
    return json.dumps(value, ensure_ascii=False)


def _held(path: str) -> bool:
    try:
        lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False
