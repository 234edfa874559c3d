"""What lies in the directory of a supervised process: its lock, its spec and its records, as the daemon reads them."""

import contextlib
import errno
import fcntl
import os
import signal
from pathlib import Path
from typing import Any

import anyio
import msgspec
from msgspec import Struct

from omnid.executor.spool import CONTROL, LIFE, LOCK
from omnid.worker import supervisor

SETTLE_S, SETTLE_S_MAX = 0.002, 0.5


class Agent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the reading of an agent's output needs, as it was when the agent was started."""

    profile: str
    session: str | None = None
    """The session that it was told to begin or to go on with."""
    resume: bool = False
    resumable: bool = False
    """Whether a later attempt can go on with its session."""
    structured: bool = True
    """Whether it prints JSON."""


class Spec(Struct, frozen=True, kw_only=True):
    """What a supervisor shall run; it lies in the spool, so that it holds names of variables and never their values."""

    attempt: str
    executor: str
    argv: tuple[str, ...]
    cwd: str
    timeout_s: float | None
    kill_grace_s: float
    spool_bytes_max: int
    check: tuple[str, ...] | None = None
    success_exit_codes: tuple[int, ...] = (0,)
    mapping: dict[str, str] = {}
    """Where a JSON result keeps its parts (`settings.ResultMapping`); with any, standard output is kept by itself."""
    env: tuple[str, ...] = ()
    stdin: bool = False
    stdout: bool = False
    server: bool = False
    agent: Agent | None = None
    """What was started is a run of an agent; None also in specs of before there were agents."""
    v: int = supervisor.FORMAT


class How(Struct, frozen=True):
    """How a process ended: with a code, by a signal, or it never started (the step that failed, and its errno)."""

    code: int | None
    signal: int | None
    no_start: tuple[str, int] | None
    ended_by: str | None
    """`cancel`, `timeout` or `outside` (somebody ended the supervisor) where it was ended; None: by itself."""


class Exit(How, frozen=True):
    """How an attempt ended, as its supervisor wrote it down."""

    total_bytes: int
    """All that it printed, with what was dropped."""
    dropped_bytes: int
    check: How | None
    ended_at_ms: int


class Trace(Struct, frozen=True):
    """What an attempt has left once its lock is free."""

    began: bool
    ran: bool
    """The command has ended well and its check has not: the check can be run again."""
    exit: Exit | None


def describe(how: How) -> str:
    """Says in words how a process ended, to follow "it"."""
    if how.no_start is not None:
        step, number = how.no_start
        return f"it could not be started: {os.strerror(number)} ({step})"
    if how.signal is not None:
        return f"it was ended by {signal_name(how.signal)}"
    return "it never started" if how.code is None else f"it ended with exit code {how.code}"


def signal_name(number: int) -> str:
    """Gives a signal's name, or its number where it has none (those for real-time use)."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def is_held(directory: Path) -> bool:
    """Tells whether a supervisor lives in the directory; lookers take a shared lock and don't see each other."""
    try:
        lock = os.open(directory / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(lock)


async def until_free(directory: Path) -> None:
    """Waits until no supervisor lives in the directory; the caller sets the deadline."""
    pause_s = SETTLE_S
    while is_held(directory):
        await _until_life_ends(directory)
        # Who starts has the lock before the writing end of `life`, and who ends may lose the one or the other first.
        await anyio.sleep(pause_s)
        pause_s = min(2 * pause_s, SETTLE_S_MAX)


async def _until_life_ends(directory: Path) -> None:
    """Waits for the end of file on `life`; a poll doesn't report what came before the open, a read does."""
    try:
        life = os.open(directory / LIFE, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        os.read(life, 1)
    except BlockingIOError:
        await anyio.wait_readable(life)
    finally:
        os.close(life)


def read_trace(directory: Path) -> Trace:
    """Reads the records of an attempt whose lock is free; one of another format tells only that something began."""
    try:
        began = supervisor.read_record(supervisor.STARTED, str(directory))
        ran = supervisor.read_record(supervisor.RAN, str(directory))
        ended = supervisor.read_record(supervisor.EXIT, str(directory))
        exit_record = None if ended is None else msgspec.convert(ended, Exit)
    except (ValueError, msgspec.ValidationError):
        return Trace(began=True, ran=False, exit=None)
    return Trace(began=began is not None, ran=ran is not None, exit=exit_record)


def read_started(directory: Path) -> dict[str, Any] | None:
    """Reads who was started in the directory; None where nobody was, or in another format."""
    try:
        return supervisor.read_record(supervisor.STARTED, str(directory))
    except ValueError:
        return None


def read_spec(directory: Path) -> Spec | None:
    """Reads what the process was started with; None where there is no spec, or one of another format."""
    try:
        spec = msgspec.json.decode((directory / supervisor.SPEC).read_bytes(), type=Spec)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
    return spec if spec.v == supervisor.FORMAT else None


def tell(directory: Path) -> None:
    """Writes a line to `control`; without a reader there is nobody left to tell."""
    try:
        control = os.open(directory / CONTROL, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENOENT):
            return
        raise
    try:
        # A pipe that is full has told it often enough.
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(control, b"cancel\n")
    finally:
        os.close(control)
