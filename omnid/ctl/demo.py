"""What all demos have in common: a temporary directory with daemons that leaves nothing behind, and a voice."""

import contextlib
import fcntl
import glob
import io
import json
import os
import shutil
import signal
import site
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from types import FrameType
from typing import Any, NamedTuple, Self, TypeVar

from omnid import platform
from omnid.api.client import Client
from omnid.api.spawn import start_daemon, wait_for_end
from omnid.ctl.context import Context
from omnid.ctl.main import load
from omnid.ctl.options import parse
from omnid.ctl.render import Cell
from omnid.errors import Retryable

END_S = 20.0
"""How long a killed daemon, and then what ran under its supervisors, may take to be gone."""

_LOOK_S = 0.05
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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
        self.variables = _variables(directory)
        self.configure(config)
        self._environ = {**environ, **self.variables}
        self.client = Client(self.variables["OMNID_SOCKET"])

    def configure(self, config: str) -> None:
        """Writes its config, which it reads at its next start or when it is told to."""
        with open(self.variables["OMNID_CONFIG"], "w", encoding="utf-8") as file:
            file.write(config)

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
        wait_for_supervisors(self.state_dir)


class Place(ABC):
    """A temporary directory with the work of a demo and its daemons."""

    def __init__(self, root: str, environ: Mapping[str, str]) -> None:
        self.root = root
        self.work = os.path.join(root, "work")
        os.mkdir(self.work)
        outside = {name: value for name, value in environ.items() if not name.startswith(("OMNID_", "XDG_"))}
        # Another home must not hide an omnid that is installed for this user alone.
        outside |= {"HOME": root, "PYTHONUSERBASE": environ.get("PYTHONUSERBASE") or site.getuserbase()}
        outside.setdefault("PATH", os.defpath)
        self.outside = outside
        """The environment of what is started here."""

    @abstractmethod
    def close(self) -> None:
        """Ends all that runs here; raises Retryable(`demo_failed`) where something doesn't end."""


P = TypeVar("P", bound=Place)


@contextlib.contextmanager
def place(environ: Mapping[str, str], make: Callable[[str, Mapping[str, str]], P]) -> Generator[P]:
    """Gives a place, and leaves neither a process nor a file of it, whatever happens.

    Raises Retryable(`demo_failed`) where there is no room for it, or something of it doesn't end.
    """
    try:
        root = tempfile.mkdtemp(prefix="omnid-demo-", dir=_directory())
    except OSError as error:
        raise Retryable("demo_failed", detail=f"there is no place for its files ({error.strerror})") from error
    try:
        try:
            made = make(root, environ)
        except OSError as error:
            raise Retryable("demo_failed", detail=f"its files can't be written ({error.strerror})") from error
        try:
            yield made
        finally:
            made.close()
    finally:
        _remove(root)
    if os.path.exists(root):
        raise Retryable("demo_failed", detail=f"its files in {root} can't be removed")


class End(NamedTuple):
    """How a demo has ended: what it adds up to, as facts and as its last line."""

    facts: Mapping[str, Any]
    line: str
    good: bool
    """Whether nothing was lost and nothing was done twice."""


class Teller:
    """Tells what happens while it happens; with ``--json`` it happens in silence."""

    def __init__(self, context: Context, signals: Signals) -> None:
        self._context = context
        self.signals = signals

    def chapter(self, title: str) -> None:
        """Begins a chapter."""
        self.say("")
        if not self._context.json:
            self._context.screen.put(Cell(title, "bold"))

    def say(self, text: str, indent: int = 0) -> None:
        """Writes a paragraph at once, so that a pipe sees the story while it happens."""
        if not self._context.json:
            self._context.screen.paragraph("", text, indent)
            self._context.world.stdout.flush()

    def table(self, rows: Sequence[tuple[str, str, str]]) -> None:
        """Writes a table of the tasks: short name, name, and what it is."""
        if not self._context.json:
            cells = [(Cell(task, "bold"), Cell(name), Cell(about, "dim")) for task, name, about in rows]
            self._context.screen.table((), cells, indent="  ")

    def wait(self, found: Callable[[], bool], limit_s: float, what: str) -> bool:
        """Looks again and again; False when there was nothing within `limit_s`. Raises Interrupted."""
        self._context.screen.progress(f"waits for {what} ...")
        until_s = time.monotonic() + limit_s
        try:
            while not found():
                self.signals.check()
                if time.monotonic() >= until_s:
                    return False
                time.sleep(_LOOK_S)
            return True
        finally:
            self._context.screen.progress("")

    def need(self, found: Callable[[], bool], limit_s: float, what: str) -> None:
        """Waits as `wait` does; raises Retryable(`demo_failed`) where it was in vain."""
        if not self.wait(found, limit_s, what):
            raise Retryable("demo_failed", detail=f"it waited {limit_s:.0f} s in vain for {what}")

    def omnictl(self, daemon: Daemon, *argv: str) -> None:
        """Runs a verb against a daemon of the demo, and shows it as if it had been typed."""
        if self._context.json:
            return
        screen = self._context.screen
        screen.put(Cell(f"  $ omnictl {' '.join(argv)}", "bold"))
        said = io.StringIO()
        environ = {**self._context.world.environ, "COLUMNS": str(screen.columns - 2)}
        world = self._context.world._replace(environ=environ, stdout=said, stderr=said, connect=lambda: daemon.client)
        verb = load(argv[0])
        verb.run(Context(parse(argv[0], verb, argv[1:]), world))
        for line in said.getvalue().splitlines():
            screen.put("  ", line)
        self._context.world.stdout.flush()


def wait_for_supervisors(state_dir: str) -> None:
    """Waits for the end of what runs under the supervisors of a state directory."""
    until_s = time.monotonic() + END_S
    for path in glob.glob(os.path.join(glob.escape(state_dir), "spool", "*", "lock")):
        while _held(path):
            if time.monotonic() >= until_s:
                raise Retryable("demo_failed", detail=f"the supervisor that holds {path} doesn't end")
            time.sleep(_LOOK_S)


def _variables(directory: str) -> dict[str, str]:
    names = {"OMNID_STATE": "state", "OMNID_CONFIG": "config.toml", "OMNID_SOCKET": "sock"}
    return {name: os.path.join(directory, file) for name, file in names.items()}


def _directory() -> str | None:
    """Chooses where the directory goes: the usual place, unless the path of a socket there would be too long."""
    longest = os.path.join(tempfile.gettempdir(), "omnid-demo-12345678", "second", "sock")
    fits = len(os.fsencode(longest)) <= platform.SOCKET_PATH_BYTES_MAX
    return None if fits else "/tmp"  # noqa: S108 - mkdtemp makes what lies there private.


def _remove(root: str) -> None:
    """Removes the directory; a program that a killed daemon had just started may write there for a moment yet."""
    until_s = time.monotonic() + END_S
    while os.path.exists(root) and time.monotonic() < until_s:
        shutil.rmtree(root, ignore_errors=True)


def night_zone(hour: int) -> str:
    """Gives a zone where it is between one and two in the night, so that no day ends in the middle of a demo.

    `hour` is that of UTC now.
    """
    east = (1 - hour + 11) % 24 - 11
    # The names of these zones count to the west.
    return "Etc/UTC" if east == 0 else f"Etc/GMT{-east:+d}"


def toml(value: object) -> str:
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
