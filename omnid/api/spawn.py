"""Starting the daemon detached, for whoever finds it not running: the relay, ``omnictl up`` and the demo.

Standard library only, and without `subprocess`: the relay stays small even when it has to start a daemon.
"""

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Mapping
from typing import NamedTuple, NoReturn

from omnid import platform
from omnid.errors import Rejected, Retryable

START_DEADLINE_S = 30.0
"""How long a start may take; recovery comes before the socket."""

OUTPUT_NAME = "start.log"
"""File in the state directory that takes what the last daemon wrote to stdout and stderr; each start begins it anew."""

LOG_NAME = "omnid.log"
"""File in the state directory that holds the daemon's log."""

_START_LOCK_NAME = "start.lock"
_DAEMON_LOCK_NAME = "lock"
"""What the daemon holds as long as it lives; `omnid.store.statedir` takes it."""

_DELAY_S_MIN, _DELAY_S_MAX = 0.005, 0.1
_TAIL_BYTES_MAX = 2000
_LOG_TAIL_BYTES_MAX = 64 << 10
_LOCK_BYTES_MAX = 8192
_DESCRIPTORS_MAX = 65_536


def start_daemon(environ: Mapping[str, str], deadline_s: float = START_DEADLINE_S) -> bool:
    """Starts ``omnid run`` in a session of its own where no daemon answers, and returns when one does.

    Of many that call this at the same time one starts the daemon, the others wait for it. The daemon gets `environ`
    without ``OMNID_ATTEMPT``: it must not be taken for what is left of an attempt, whoever starts it.
    Gives True where it was this call that started it.
    Raises Retryable(`daemon_no_start`) where no daemon answers within `deadline_s` or the new one ends before it does,
    and Rejected(`state_unwritable`) where there is no place for its files.
    """
    path = platform.socket_path(environ)
    state_dir = platform.locate(environ).state_dir
    until_s = time.monotonic() + deadline_s
    lock = _open(os.path.join(state_dir, _START_LOCK_NAME), os.O_RDWR | os.O_CREAT)
    try:
        delay_s = _DELAY_S_MIN
        while not answers(path):
            if _locked(lock):
                return _start(environ, path, state_dir, until_s)
            if time.monotonic() >= until_s:
                raise _no_start(state_dir, "another process is starting it and has not come to an end")
            time.sleep(delay_s)
            delay_s = min(delay_s * 2, _DELAY_S_MAX)
        return False
    finally:
        os.close(lock)


def answers(path: str) -> bool:
    """Tells whether somebody accepts connections at the socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except BlockingIOError:
            return True  # Its backlog is full: somebody is there, and busy.
        except OSError:
            return False
    return True


def wait_for_socket(path: str, deadline_s: float, gone: int | None = None) -> bool:
    """Waits until the socket answers; False after `deadline_s`, or once `gone` (a pipe) tells that nobody will."""
    until_s = time.monotonic() + deadline_s
    delay_s = _DELAY_S_MIN
    ended = False
    while not answers(path):
        if ended or time.monotonic() >= until_s:
            return False
        # The socket is asked once more after the end, because the one that ended may have found another at work.
        ended = bool(select.select([] if gone is None else [gone], [], [], delay_s)[0])
        delay_s = min(delay_s * 2, _DELAY_S_MAX)
    return True


class Holder(NamedTuple):
    """A daemon that lives and holds its state directory."""

    pid: int
    start: str
    """When it started, as `platform.process_start` tells it."""
    socket: str
    """Where it listens, or did, or will."""


def holder(state_dir: str) -> Holder | None:
    """Gives the daemon that holds the state directory, by what it wrote into the lock; None where there is none."""
    try:
        lock = os.open(os.path.join(state_dir, _DAEMON_LOCK_NAME), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        lines = os.fsdecode(os.pread(lock, _LOCK_BYTES_MAX, 0)).splitlines()
        said = dict(line.split(" ", 1) for line in lines if " " in line)
        pid, start = said.get("pid", ""), said.get("start", "")
        # A pid alone may belong to another process by now. The lock is tried last, so that nobody who starts meets it.
        if not pid.isdecimal() or platform.process_start(int(pid)) != start or _locked(lock, fcntl.LOCK_SH):
            return None
        return Holder(int(pid), start, said.get("socket", ""))
    finally:
        os.close(lock)


def last_error(state_dir: str) -> str | None:
    """Gives the error with which the last daemon ended, by its log; None where it ended in another way, or none did."""
    try:
        with open(os.path.join(state_dir, LOG_NAME), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_TAIL_BYTES_MAX))
            last = json.loads(file.read().splitlines()[-1])
        return last["detail"] if last["event"] == "ended" else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def terminate(daemon: Holder) -> None:
    """Sends SIGTERM to a daemon, where it still is the one that was found."""
    with contextlib.suppress(ProcessLookupError):
        if platform.IS_MACOS:
            if platform.process_start(daemon.pid) == daemon.start:
                os.kill(daemon.pid, signal.SIGTERM)
            return
        descriptor = os.pidfd_open(daemon.pid)
        try:
            # From here on the pid can't pass to another process unseen.
            if platform.process_start(daemon.pid) == daemon.start:
                signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        finally:
            os.close(descriptor)


def wait_for_end(state_dir: str, deadline_s: float) -> bool:
    """Waits until no daemon uses the state directory; False after `deadline_s`."""
    until_s = time.monotonic() + deadline_s
    try:
        lock = os.open(os.path.join(state_dir, _DAEMON_LOCK_NAME), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        while not _locked(lock):
            if time.monotonic() >= until_s:
                return False
            time.sleep(_DELAY_S_MAX / 2)
    finally:
        os.close(lock)
    return True


def _start(environ: Mapping[str, str], path: str, state_dir: str, until_s: float) -> bool:
    if answers(path):
        return False
    output = _open(os.path.join(state_dir, OUTPUT_NAME), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    gone, alive = os.pipe()
    try:
        child = os.fork()
        if child == 0:
            _become_daemon(environ, output, alive)
        os.waitpid(child, 0)
        os.close(alive)
        alive = -1
        if not wait_for_socket(path, until_s - time.monotonic(), gone):
            ended = bool(select.select([gone], [], [], 0)[0])
            raise _no_start(state_dir, "it ended at once" if ended else "its socket doesn't answer in time")
        return True
    finally:
        for descriptor in (output, gone, alive):
            if descriptor >= 0:
                os.close(descriptor)


def _become_daemon(environ: Mapping[str, str], output: int, alive: int) -> NoReturn:
    """Goes on as the daemon, in a child of the child: init reaps it, and no terminal can come back to it.

    The daemon holds the writing end of the pipe as descriptor 3, so that its end is seen without being its parent.
    """
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        kept = _for_the_daemon(environ)
        os.chdir("/")
        # Out of the way of 0 to 3 first, because any of them may be closed here and thus in use for these two.
        output, alive = (fcntl.fcntl(descriptor, fcntl.F_DUPFD, 10) for descriptor in (output, alive))
        null = fcntl.fcntl(os.open(os.devnull, os.O_RDONLY), fcntl.F_DUPFD, 10)
        for target, source in enumerate((null, output, output, alive)):
            os.dup2(source, target)
        os.closerange(4, min(os.sysconf("SC_OPEN_MAX"), _DESCRIPTORS_MAX))
        argv = _argv()
        os.execve(argv[0], argv, kept)
    finally:
        # Only a failed exec comes here; the parent sees the end of the pipe.
        os._exit(127)


def _for_the_daemon(environ: Mapping[str, str]) -> dict[str, str]:
    """Gives the environment without the mark of an attempt, and with paths that mean the same from every directory."""
    kept = {name: value for name, value in environ.items() if name != "OMNID_ATTEMPT"}
    for name in ("HOME", "OMNID_CONFIG", "OMNID_STATE", "OMNID_SOCKET"):
        if kept.get(name) and not kept[name].startswith("~"):
            kept[name] = os.path.abspath(kept[name])
    return kept


def _argv() -> list[str]:
    return [*omnid_argv(), "run"]


def omnid_argv() -> list[str]:
    """Gives what starts this omnid's own program, for its arguments to follow."""
    if getattr(sys, "frozen", False):
        return [os.path.join(os.path.dirname(sys.executable), "omnid")]
    return [sys.executable, "-m", "omnid"]


def _open(path: str, flags: int) -> int:
    try:
        platform.make_private(os.path.dirname(path))
        return os.open(path, flags | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Rejected("state_unwritable", path=os.path.dirname(path), detail=error.strerror) from error


def _locked(lock: int, how: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _no_start(state_dir: str, detail: str) -> Retryable:
    """Says why it didn't start: in the daemon's own words, where an error was the last that it wrote."""
    path = os.path.join(state_dir, OUTPUT_NAME)
    try:
        with open(path, "rb") as file:
            lines = file.read()[-_TAIL_BYTES_MAX:].decode(errors="replace").strip().splitlines()[-3:]
    except OSError:
        lines = []
    own = [line.partition(begin) for line, begin in zip(lines, ("omnid: ", "  why: ", "  do:  "), strict=False)]
    if len(own) == len(lines) == 3 and all(begin and not before for before, begin, _ in own):
        what, why, do = (text for _, _, text in own)
        return Retryable("daemon_no_start", detail=what, why=why, do=do)
    why = f"The last that it said (in {path}): {' / '.join(lines) or 'nothing'}"
    do = "Run `omnid run` in a terminal to see it fail, and correct what it names."
    return Retryable("daemon_no_start", detail=detail, why=why, do=do)
