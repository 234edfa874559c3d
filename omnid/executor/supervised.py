"""Supervised processes: they outlive the daemon under their own supervisor, and the next daemon adopts them.

What is known of one comes from its lock and its records alone: while the lock is held it lives, and once the lock is
free its records are final. `docs/supervisor.md` tells what survives what.
"""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from omnid.clock import Clock
from omnid.errors import Retryable
from omnid.executor.interface import Found
from omnid.executor.launch import Spawned, launch, mapped
from omnid.executor.records import Spec, Trace, describe, is_held, read_spec, read_started, read_trace, tell, until_free
from omnid.executor.spool import ASIDE, ERRORS, LOCK, SERVER, Spool, make_directory, printable
from omnid.settings import Limits
from omnid.worker import supervisor

SERVER_LOG_BYTES_MAX = 1 << 20
SECRET_BYTES_MAX = 8192
SLACK_S = 10.0
"""What a supervisor gets beyond the times of its spec, before it counts as stuck and is ended itself."""
DETAIL_BYTES_MAX = 500


class Server:
    """A process that the daemon talks to over its standard streams, and that ends with the daemon.

    `terminate` also frees what the daemon holds of it, so it is called in the end even where the server has gone.
    """

    def __init__(self, owner: "Supervised", directory: Path, child: Spawned) -> None:
        self._owner = owner
        self._directory = directory
        self._child = child
        self._stdin, self._stdout, self._hold = child.stdin, child.stdout, child.hold
        self._sending = anyio.Lock()

    @property
    def pid(self) -> int | None:
        """The server's own process; None until it has started."""
        started = read_started(self._directory)
        return None if started is None else started["pid"]

    async def send(self, data: bytes) -> None:
        """Writes all of it to the server's standard input; where a deadline cuts it off, part of it has been sent.

        A server that doesn't read blocks this, so it needs a deadline.

        Raises anyio.BrokenResourceError where the server has gone or closed its input.
        """
        async with self._sending:
            view = memoryview(data)
            while view:
                if self._stdin is None:
                    raise anyio.BrokenResourceError
                try:
                    view = view[os.write(self._stdin, view) :]
                except BlockingIOError:
                    try:
                        await anyio.wait_writable(self._stdin)
                    except anyio.ClosedResourceError:
                        raise anyio.BrokenResourceError from None
                except BrokenPipeError:
                    raise anyio.BrokenResourceError from None

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Reads what the server has printed, at least one byte; raises anyio.EndOfStream at its end."""
        while self._stdout is not None:
            try:
                data = os.read(self._stdout, max_bytes)
            except BlockingIOError:
                with contextlib.suppress(anyio.ClosedResourceError):
                    await anyio.wait_readable(self._stdout)
                continue
            if data:
                return data
            break
        raise anyio.EndOfStream

    async def wait_closed(self) -> str:
        """Waits until the server and its supervisor have ended, and says how, for an error's `detail`.

        For example "it ended with exit code 3", "it was ended by SIGKILL", "it could not be started: ...".
        """
        await until_free(self._directory)
        await self._child.reap()
        record = read_trace(self._directory).exit
        return "its supervisor was killed" if record is None else describe(record)

    async def terminate(self) -> None:
        """Ends the server: SIGTERM, after the grace SIGKILL, then what it left; returns when its lock is free.

        Raises Retryable ``executor_down`` where even that doesn't end it.
        """
        self._hold = _close(self._hold)
        self._stdin = _close(self._stdin)
        try:
            await self._owner.clear(self._directory)
            await self._child.reap()
        finally:
            self._stdout = _close(self._stdout)

    async def log_tail(self, max_bytes: int = 4096) -> str:
        """Gives the end of what the server wrote to its standard error, without the secrets that omnid knows."""
        # More than is given, or a secret that is cut in two would not be known.
        tail = await anyio.to_thread.run_sync(_log_tail, self._directory, max_bytes + SECRET_BYTES_MAX)
        return self._owner.redact(tail)[-max_bytes:]


class Supervised:
    """Starts, adopts and ends supervised processes; each has a directory in the spool."""

    def __init__(
        self,
        spool_dir: Path,
        clock: Clock,
        limits: Limits,
        kill_grace_s: float = 5.0,
        *,
        redact: Callable[[str], str] = str,
    ) -> None:
        """`redact` takes known secrets out of what servers said last, as it goes into errors."""
        self.spool = Spool(spool_dir, limits)
        self.kill_grace_s = kill_grace_s
        self.redact = redact
        self._clock = clock
        self._children: dict[str, Spawned] = {}

    async def start(self, spec: Spec, environment: Mapping[str, str], stdin: str | None = None) -> None:
        """Starts the attempt, unless it has begun already, in this daemon or another: it never begins twice.

        Where its command has ended well and only its check is open, that is started again. `environment` is all that
        the command gets. Raises Retryable: ``disk_full``, or ``executor_down`` where no process can be started.
        """
        directory = self.spool.directory(spec.attempt)
        environment = {**environment, supervisor.MARK: spec.attempt}
        spec = msgspec.structs.replace(spec, env=tuple(environment), stdin=stdin is not None)
        with mapped(spec.executor, directory):
            child = await anyio.to_thread.run_sync(launch, directory, spec, environment, stdin)
        if child is not None:
            self._children[spec.attempt] = child

    async def wait(self, attempt_id: str, timeout_s: float) -> Trace:
        """Waits until the attempt has ended, and gives what it left; its remains are ended.

        A supervisor that lives on long after the times of its spec (and `timeout_s`) is ended too; an attempt that
        can't be ended counts as lost.
        """
        directory = self.spool.directory(attempt_id)
        spec = self.spec(attempt_id)
        spec_s = 0.0 if spec is None or spec.timeout_s is None else spec.timeout_s + 3 * spec.kill_grace_s
        if not await self._freed(directory, max(spec_s, timeout_s + 3 * self.kill_grace_s) + SLACK_S):
            await self._end_remains(directory)
            if not await self._freed(directory, SLACK_S):
                return Trace(began=True, ran=False, exit=None)
        child = self._children.pop(attempt_id, None)
        if child is not None:
            await child.reap()
        trace = read_trace(directory)
        if trace.began and trace.exit is None:
            await self._end_remains(directory)
        return trace

    async def look(self, attempt_id: str) -> Found:
        """Says what is left of an attempt of an earlier daemon, and ends the remains of a lost one."""
        directory = self.spool.directory(attempt_id)
        if is_held(directory):
            return Found.RUNNING
        trace = read_trace(directory)
        if trace.exit is not None or trace.ran:
            return Found.RUNNING
        if not trace.began:
            return Found.NEVER_RAN
        await self._end_remains(directory)
        return Found.LOST

    async def cancel(self, attempt_id: str) -> None:
        """Asks the attempt's supervisor to end it; nothing happens where it has ended."""
        tell(self.spool.directory(attempt_id))

    async def set_aside(self, attempt_id: str) -> None:
        """Ends an attempt that the journal does not know, and moves its directory out of the way.

        Raises Retryable ``executor_down`` where it doesn't end.
        """
        directory = self.spool.directory(attempt_id)
        tell(directory)
        await self.clear(directory)
        await anyio.to_thread.run_sync(_move_aside, directory, self._clock.uuid())

    def spec(self, attempt_id: str) -> Spec | None:
        """Reads the spec that an attempt was started with; None where it has none, or one of another format."""
        return read_spec(self.spool.directory(attempt_id))

    def last_error(self, attempt_id: str) -> str:
        """Gives what the attempt's supervisor itself complained of, for an error's `detail`."""
        try:
            complaint = (self.spool.directory(attempt_id) / ERRORS).read_bytes()[-DETAIL_BYTES_MAX:]
        except FileNotFoundError:
            complaint = b""
        return (printable(complaint).strip().splitlines() or ["it said nothing"])[-1]

    async def start_server(self, name: str, argv: Sequence[str], cwd: str, env: Mapping[str, str]) -> Server:
        """Starts a server for the executor `name`, after `clear_server(name)`; `env` is its whole environment.

        A program that can't be executed shows as a server that closes at once; `wait_closed` says why.
        Raises Retryable ``executor_down`` (an older one doesn't end) or ``disk_full``.
        """
        await self.clear_server(name)
        directory = self._server_directory(name)
        environment = {**env, supervisor.MARK: self._clock.uuid()}
        spec = Spec(
            attempt=environment[supervisor.MARK],
            executor=name,
            argv=tuple(argv),
            cwd=cwd,
            timeout_s=None,
            kill_grace_s=self.kill_grace_s,
            spool_bytes_max=SERVER_LOG_BYTES_MAX,
            env=tuple(environment),
            server=True,
        )
        with mapped(name, directory):
            child = await anyio.to_thread.run_sync(launch, directory, spec, environment, None)
        if child is None:
            raise Retryable("executor_down", executor=name, detail="another omnid has just started its server")
        return Server(self, directory, child)

    async def clear_server(self, name: str) -> None:
        """Waits until an older server of that name (of a killed daemon, say) has ended, and ends what it left.

        To be called before any attempt of the executor is decided. Raises Retryable ``executor_down`` where it doesn't
        end in time.
        """
        await self.clear(self._server_directory(name))

    async def clear(self, directory: Path) -> None:
        """Waits for what runs in a directory of the spool to end as it has been told to, and ends what is left of it.

        Raises Retryable ``executor_down`` where that doesn't end it.
        """
        await self._freed(directory, 2 * self.kill_grace_s + SLACK_S)
        # The supervisor carries the mark as well, so one that is stuck is ended with the rest.
        await self._end_remains(directory)
        if not await self._freed(directory, SLACK_S):
            detail = f"a process holds {directory / LOCK} and can't be ended"
            raise Retryable("executor_down", executor=directory.name, detail=detail)

    async def _freed(self, directory: Path, limit_s: float) -> bool:
        """Waits until nobody lives in the directory; False where that takes longer than the limit."""
        with anyio.move_on_after(limit_s) as scope:
            await until_free(directory)
        return not scope.cancelled_caught

    def _server_directory(self, name: str) -> Path:
        return self.spool.directory(SERVER + name)

    async def _end_remains(self, directory: Path) -> None:
        spec = read_spec(directory)
        if spec is not None:
            started = read_started(directory)
            await anyio.to_thread.run_sync(supervisor.end_remains, spec.attempt, started, self.kill_grace_s)


def _log_tail(directory: Path, max_bytes: int) -> str:
    tail = b""
    for name in (supervisor.OLD_LOG, supervisor.LOG):
        with contextlib.suppress(FileNotFoundError), (directory / name).open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            file.seek(max(0, size_bytes - max_bytes))
            tail += file.read(max_bytes)
    return printable(tail[-max_bytes:])


def _move_aside(directory: Path, unique: str) -> None:
    make_directory(directory.parent / ASIDE)
    directory.rename(directory.parent / ASIDE / f"{directory.name}.{unique}")


def _close(descriptor: int | None) -> None:
    """Closes a descriptor that others may be waiting on."""
    if descriptor is not None:
        anyio.notify_closing(descriptor)
        os.close(descriptor)
