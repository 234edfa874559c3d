"""How a supervisor is started: its files, its descriptors, its environment. It blocks, so it runs in a thread."""

import contextlib
import errno
import fcntl
import os
import subprocess
from collections.abc import Generator
from pathlib import Path

import anyio
import msgspec

from omnid.errors import Retryable
from omnid.executor.records import Spec, read_trace
from omnid.executor.spool import CONTROL, ERRORS, LIFE, LOCK, make_directory
from omnid.executor.workers import argv_of
from omnid.worker import supervisor

SUPERVISOR = argv_of(supervisor, site=False)
REAP_S_MAX, REAP_PAUSE_S = 10.0, 0.002


class Spawned:
    """A supervisor that this process started, and for a server the daemon's ends of its pipes."""

    def __init__(self, process: "subprocess.Popen[bytes]", pipes: "Pipes") -> None:
        self._pid = process.pid
        # Supervisors may outlive the daemon, and it waits for them by their locks; without this, subprocess would
        # complain of a child that nobody has waited for.
        process.returncode = 0
        self.stdin, self.stdout, self.hold = pipes.daemon_ends()

    async def reap(self) -> None:
        """Takes the exit status of a supervisor whose lock is free, so that no zombie stays."""
        with anyio.move_on_after(REAP_S_MAX):
            while not self._reaped():  # noqa: ASYNC110 - the kernel has no event for it here.
                await anyio.sleep(REAP_PAUSE_S)

    def _reaped(self) -> bool:
        try:
            return os.waitpid(self._pid, os.WNOHANG)[0] != 0
        except ChildProcessError:
            # It was reaped before.
            return True


class Pipes:
    """The pipes between the daemon and a server; for an attempt there are none."""

    def __init__(self, *, server: bool) -> None:
        self._all = [os.pipe() for _ in range(3)] if server else []

    def supervisor_ends(self) -> tuple[int, int, int] | None:
        """Gives what the supervisor gets: its standard input and output, and what ends when the daemon does."""
        if not self._all:
            return None
        return self._all[0][0], self._all[1][1], self._all[2][0]

    def daemon_ends(self) -> tuple[int | None, int | None, int | None]:
        """Gives the daemon's ends of the same, and closes the others."""
        ends = self.supervisor_ends()
        if ends is None:
            return None, None, None
        for end in ends:
            os.close(end)
        stdin, stdout, hold = self._all[0][1], self._all[1][0], self._all[2][1]
        os.set_blocking(stdin, False)
        os.set_blocking(stdout, False)
        return stdin, stdout, hold

    def close(self) -> None:
        """Closes all ends, where the supervisor could not be started."""
        for pair in self._all:
            for end in pair:
                os.close(end)


def launch(directory: Path, spec: Spec, environment: dict[str, str], stdin: str | None) -> Spawned | None:
    """Takes the lock and starts a supervisor that inherits it; None where the attempt has begun already."""
    make_directory(directory.parent)
    make_directory(directory)
    lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        if spec.server:
            _wipe(directory)
        trace = read_trace(directory)
        if trace.exit is not None or (trace.began and not trace.ran):
            return None
        if not trace.ran:
            _prepare(directory, spec, stdin)
        pipes = Pipes(server=spec.server)
        try:
            return _spawn(directory, lock, environment, pipes)
        except BaseException:
            pipes.close()
            raise
    finally:
        # The supervisor holds it by now, or nobody does.
        os.close(lock)


def _prepare(directory: Path, spec: Spec, stdin: str | None) -> None:
    """Makes all files that the supervisor needs, so that a full disk is met before anything begins."""
    _write(directory / supervisor.SPEC, msgspec.json.encode(spec))
    if stdin is not None:
        _write(directory / supervisor.STDIN, stdin.encode(errors="surrogateescape"))
    for name in (supervisor.STARTED, supervisor.EXIT, *([supervisor.RAN] if spec.check else [])):
        _write(directory / (name + supervisor.NEW), bytes(supervisor.RECORD_BYTES))
    for name in (supervisor.OUTPUT, *([supervisor.STDOUT] if spec.stdout else [])):
        _write(directory / name, b"")
    for name in (LIFE, *([] if spec.server else [CONTROL])):
        if not (directory / name).exists():
            os.mkfifo(directory / name, 0o600)
    # The supervisor syncs what is in the directory; that the directory itself is found again is seen to here.
    for path in (directory.parent, directory.parent.parent):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            supervisor.sync(descriptor)
        finally:
            os.close(descriptor)


def _spawn(directory: Path, lock: int, environment: dict[str, str], pipes: Pipes) -> Spawned:
    """Starts the supervisor in a session of its own; it gets the lock, `life` and its control, and nothing else."""
    with contextlib.ExitStack() as opened:

        def open_file(name: str, flags: int) -> int:
            descriptor = os.open(directory / name, flags | os.O_CLOEXEC, 0o600)
            opened.callback(os.close, descriptor)
            return descriptor

        errors = open_file(ERRORS, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        # A FIFO can be opened for writing only while somebody reads.
        open_file(LIFE, os.O_RDONLY | os.O_NONBLOCK)
        life = open_file(LIFE, os.O_WRONLY)
        ends = pipes.supervisor_ends()
        if ends is None:
            stdin = stdout = subprocess.DEVNULL
            # Opened here, so that a cancel finds a reader from the start.
            control = open_file(CONTROL, os.O_RDONLY | os.O_NONBLOCK)
        else:
            stdin, stdout, control = ends
        process = subprocess.Popen(
            [*SUPERVISOR, str(directory), str(lock), str(life), str(control)],
            stdin=stdin,
            stdout=stdout,
            stderr=errors,
            pass_fds=(lock, life, control),
            start_new_session=True,
            cwd="/",
            env=environment,
        )
    return Spawned(process, pipes)


def _wipe(directory: Path) -> None:
    """Takes away what an older server left; the lock stays, because it is held."""
    for name in set(os.listdir(directory)) - {LOCK}:
        (directory / name).unlink()


def _write(path: Path, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), "wb") as file:
        file.write(content)


@contextlib.contextmanager
def readable(executor: str, directory: Path) -> Generator[None]:
    """Maps what the system says when the spool can't be used: Retryable ``disk_full``, else ``executor_down``."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Retryable("disk_full", detail=error.strerror or error, path=str(directory.parent)) from error
        raise Retryable("executor_down", executor=executor, detail=error.strerror or error) from error


@contextlib.contextmanager
def mapped(executor: str, directory: Path) -> Generator[None]:
    """Maps what the system says when no process can be started; nothing has begun then."""
    try:
        with readable(executor, directory):
            yield
    except ValueError as error:
        raise Retryable("executor_down", executor=executor, detail=f"the system can't take it: {error}") from error
