"""The supervisor: runs one command, keeps its output and writes down how it ended, whatever becomes of the daemon.

Standard library only and by itself in this file, because it is run by its path (``python -I -S -X utf8 supervisor.py
DIR LOCK LIFE CONTROL``) and must start fast. DIR is the attempt's directory in the spool and holds ``spec.json``; the
others are inherited descriptors: the lock (held while this process lives), the writing end of ``life`` (its end of
file tells the daemon to look at the lock), and ``control`` (a line, or for a server the end of file: end it).

What the order of the records promises: no ``started``, the command never ran; ``started`` without ``exit`` and a free
lock, it began and nobody knows how it ended; ``exit``, it ended as that says. A command that is followed by a check
leaves ``ran`` in between, so that the check can be run again.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import signal
import sys
import time

TYPE_CHECKING = False
"""Instead of that of `typing`, whose import is a third of what all imports here take."""
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    Record = dict[str, Any]
    Reader = Callable[[bytes], None]
    Streams = tuple[int, int, int]

FORMAT = 1
"""The version of the spec and the records; another one is not read."""
SPEC, STARTED, RAN, EXIT = "spec.json", "started", "ran", "exit"
STDIN, OUTPUT, STDOUT, CHECK_OUTPUT, LOG, OLD_LOG = "stdin", "output", "stdout", "check_output", "log", "log.old"
NEW = ".new"
"""What follows a record's name until it is complete; the daemon makes that file, so that the disk has room for it."""
MARK = "OMNID_ATTEMPT"
"""The variable by which the processes of an attempt are known."""
DRAIN_S = 1.0
"""How long output is still read after the command's end, where something it left holds the pipe open."""
READ_BYTES, RECORD_BYTES = 65536, 4096
LOOKS_MAX, LOOK_PAUSE_S, WAIT_S_MAX = 100, 0.02, 3600.0


class Output:
    """Files that take what is printed as long as there is room for it; the rest is read, dropped and counted."""

    def __init__(self, room_bytes: int) -> None:
        self.room_bytes = room_bytes
        self.total_bytes = 0
        self.dropped_bytes = 0

    def into(self, *names: str) -> Reader:
        """Gives what appends to all these files; a byte that one of them lacks counts as dropped, once."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        descriptors = [os.open(name, flags, 0o600) for name in names]

        def append(data: bytes) -> None:
            self.total_bytes += len(data)
            self.dropped_bytes += max(self._append(descriptor, data) for descriptor in descriptors)

        return append

    def _append(self, descriptor: int, data: bytes) -> int:
        kept = 0
        wanted = min(len(data), self.room_bytes)
        try:
            while kept < wanted:
                kept += os.write(descriptor, data[kept:wanted])
        except OSError:
            # A full or broken disk must not end the command: what it prints from here on is only counted.
            pass
        self.room_bytes -= kept
        return len(data) - kept


class Log:
    """A server's standard error: the newest lines in `LOG`, those before in `OLD_LOG`, each at most half the limit."""

    def __init__(self, limit_bytes: int) -> None:
        self._half_bytes = max(1, limit_bytes // 2)
        self._open()

    def append(self, data: bytes) -> None:
        """Appends what fits; on a full disk it is dropped."""
        try:
            if self._bytes + len(data) > self._half_bytes:
                os.rename(LOG, OLD_LOG)
                os.close(self._descriptor)
                self._open()
            self._bytes += os.write(self._descriptor, data[-self._half_bytes :])
        except OSError:
            # The server goes on without its log.
            pass

    def _open(self) -> None:
        self._descriptor = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self._bytes = 0


class Child:
    """A process in a session of its own, which waits behind a gate before it becomes the program."""

    def __init__(self, argv: list[str], cwd: str, names: list[str], streams: Streams) -> None:
        gate, self._gate = os.pipe()
        self.report, report = os.pipe()
        self.no_start: list[Any] | None = None
        self._status: int | None = None
        environment = {name: os.environ[name] for name in names if name in os.environ}
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._gate)
            _become(argv, cwd, environment, streams, gate, report)
        os.close(gate)
        os.close(report)

    def open_gate(self) -> None:
        """Lets the child become the program; without this it ends, as it does where the supervisor dies."""
        os.write(self._gate, b"g")
        os.close(self._gate)

    def tell(self, data: bytes) -> None:
        """Takes in why the child could not become the program."""
        step, number = data.decode().split()
        self.no_start = [step, int(number)]

    def ended(self) -> bool:
        """Tells whether the process has ended; where the system can, it stays a zombie so that its group stays its."""
        if self._status is None and hasattr(os, "waitid"):
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        if self._status is None:
            # macOS before Python 3.13.
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = status if pid else None
        return self._status is not None

    def signal(self, number: int) -> None:
        """Signals the whole group."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            # The child has not made its group yet.
            if self._status is None:
                os.kill(self.pid, number)
        except PermissionError:
            # What is left of the group runs as somebody else, who has to end it.
            pass

    def how(self) -> Record:
        """Reaps the process and says how it ended: ``code``, ``signal``, or ``no_start`` with the step and errno."""
        if self._status is None:
            self._status = os.waitpid(self.pid, 0)[1]
        code = os.waitstatus_to_exitcode(self._status)
        started = self.no_start is None
        return {
            "code": code if started and code >= 0 else None,
            "signal": -code if started and code < 0 else None,
            "no_start": self.no_start,
        }


def _become(argv: list[str], cwd: str, environ: dict[str, str], streams: Streams, gate: int, report: int) -> NoReturn:
    """What the forked child does; it holds the lock too until it has become the program."""
    step = "session"
    try:
        signal.set_wakeup_fd(-1)
        # What Python, or whoever started the daemon, ignores would stay ignored in the program.
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        if os.read(gate, 1):
            # Copies above 2 first, so that no dup2 overwrites a stream that is still to be copied.
            high = [fcntl.fcntl(stream, fcntl.F_DUPFD_CLOEXEC, 3) for stream in streams]
            for target, stream in enumerate(high):
                os.dup2(stream, target)
            step = "chdir"
            os.chdir(cwd)
            step = "exec"
            os.execve(_found(argv[0], environ), argv, environ)
    except (OSError, ValueError) as error:
        number = error.errno if isinstance(error, OSError) else errno.EINVAL
        os.write(report, f"{step} {number}".encode())
    finally:
        os._exit(127)


def _found(program: str, environment: dict[str, str]) -> str:
    """Gives where PATH has the program; directories that are closed to this user have nothing, and hide nothing."""
    places = (os.path.join(directory, program) for directory in os.get_exec_path(environment))
    there = [program] if "/" in program else list(filter(os.path.isfile, places))
    if not there:
        raise FileNotFoundError(errno.ENOENT, program)
    return next((place for place in there if os.access(place, os.X_OK)), there[0])


class Supervisor:
    """Runs what the spec in the current directory says."""

    def __init__(self, control: int) -> None:
        with open(SPEC, "rb") as file:
            self.spec: Record = json.load(file)
            sync(file.fileno())
        if self.spec["v"] != FORMAT:
            raise SystemExit(f"the spec has format {self.spec['v']}, and this supervisor reads {FORMAT}")
        self._told: str | None = None
        self._deadline_s: float | None = None
        self._control = control
        self._wake = _wake_on_signals(self._on_term)
        if not self.spec["server"]:
            # With a writing end of one's own, a canceller that comes and goes leaves no end of file.
            os.open("control", os.O_WRONLY | os.O_NONBLOCK)

    def run(self) -> None:
        """Runs the command and its check, and writes the records."""
        ran = read_record(RAN)
        if ran is None:
            output = Output(self.spec["spool_bytes_max"])
            how = self._command(output)
            ran = {"v": FORMAT, **how, "total_bytes": output.total_bytes, "dropped_bytes": output.dropped_bytes}
            ran |= {"room_bytes": output.room_bytes, "left_s": self._left_s()}
            if self._wants_check(ran):
                write_record(RAN, ran)
        else:
            self._set_deadline(ran["left_s"])
        check = self._check(ran["room_bytes"]) if self._wants_check(ran) else None
        write_record(EXIT, {**ran, "check": check, "ended_at_ms": time.time_ns() // 1_000_000})

    def _command(self, output: Output) -> Record:
        """Runs the command on its streams; one pipe for both outputs keeps their order, where none is needed alone."""
        self._hear(0)
        if self._told is not None:
            return {"code": None, "signal": None, "no_start": None, "ended_by": self._told}
        reading, writing = os.pipe()
        if self.spec["server"]:
            child = self._child(self.spec["argv"], 0, 1, writing)
            # Let go of the streams that the daemon passed in, so that either side sees the end of the other.
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 0)
            os.dup2(null, 1)
            return self._begin(child, {reading: Log(self.spec["spool_bytes_max"]).append})
        stdin = os.open(STDIN if self.spec["stdin"] else os.devnull, os.O_RDONLY)
        readers = {reading: output.into(OUTPUT)}
        if self.spec["stdout"]:
            alone, stdout = os.pipe()
            readers[alone] = output.into(STDOUT, OUTPUT)
        else:
            stdout = os.dup(writing)
        child = self._child(self.spec["argv"], stdin, stdout, writing)
        return self._begin(child, readers)

    def _begin(self, child: Child, readers: dict[int, Reader]) -> Record:
        """Writes `STARTED` and only then opens the gate: the command can have had no effect before."""
        pid, start, boot = _identity(child.pid)
        write_record(STARTED, {"v": FORMAT, "pid": pid, "start": start, "boot": boot})
        self._set_deadline(self.spec["timeout_s"])
        child.open_gate()
        return self._follow(child, readers)

    def _check(self, room_bytes: int) -> Record:
        reading, writing = os.pipe()
        null = os.open(os.devnull, os.O_RDONLY)
        child = self._child(self.spec["check"], null, os.dup(writing), writing)
        child.open_gate()
        return self._follow(child, {reading: Output(room_bytes).into(CHECK_OUTPUT)})

    def _child(self, argv: list[str], stdin: int, stdout: int, stderr: int) -> Child:
        """Forks a child on these streams, and closes what only the child needs."""
        child = Child(argv, self.spec["cwd"], self.spec["env"], (stdin, stdout, stderr))
        for descriptor in (stdin, stdout, stderr):
            if descriptor > 2:
                os.close(descriptor)
        return child

    def _wants_check(self, ran: Record) -> bool:
        return self.spec["check"] is not None and ran["code"] in self.spec["success_exit_codes"] and not ran["ended_by"]

    def _follow(self, child: Child, readers: dict[int, Reader]) -> Record:
        """Reads the output until the child has ended, and ends it when it is time to; says how it ended, and why."""
        readers[child.report] = child.tell
        ended_by: str | None = None
        drain_until_s: float | None = None
        kill_at_s = 0.0
        while True:
            now_s = time.monotonic()
            if drain_until_s is None and child.ended():
                drain_until_s = now_s + DRAIN_S
                if ended_by or self.spec["server"]:
                    self._end_all(child)
            if drain_until_s is not None:
                if not readers or now_s >= drain_until_s:
                    return {**child.how(), "ended_by": ended_by}
            elif ended_by is None:
                ended_by = self._told or ("timeout" if self._left_s() == 0 else None)
                if ended_by:
                    child.signal(signal.SIGTERM)
                    kill_at_s = now_s + self.spec["kill_grace_s"]
            elif now_s >= kill_at_s:
                self._end_all(child)
                kill_at_s = now_s + self.spec["kill_grace_s"]
            until_s = drain_until_s or kill_at_s or self._deadline_s
            self._hear(WAIT_S_MAX if until_s is None else min(WAIT_S_MAX, max(0.0, until_s - now_s)), readers)

    def _end_all(self, child: Child) -> None:
        child.signal(signal.SIGKILL)
        end_remains(self.spec["attempt"], None, 0.0)

    def _hear(self, wait_s: float, readers: dict[int, Reader] | None = None) -> None:
        """Waits for output, a signal or a word from the daemon, and takes them in; ended readers are taken out."""
        poll = select.poll()
        readers = {} if readers is None else readers
        for descriptor in (self._wake, *readers, *([] if self._told else [self._control])):
            poll.register(descriptor, select.POLLIN)
        for descriptor, _ in poll.poll(wait_s * 1000):
            data = os.read(descriptor, READ_BYTES)
            if descriptor == self._control:
                self._told = "cancel"
            elif descriptor != self._wake and data:
                readers[descriptor](data)
            elif descriptor != self._wake:
                os.close(descriptor)
                del readers[descriptor]

    def _set_deadline(self, timeout_s: float | None) -> None:
        self._deadline_s = None if timeout_s is None else time.monotonic() + timeout_s

    def _left_s(self) -> float | None:
        return None if self._deadline_s is None else max(0.0, self._deadline_s - time.monotonic())

    def _on_term(self) -> None:
        """A SIGTERM for the supervisor itself (a shutdown, say) ends the command in order, and the record says so."""
        self._told = self._told or "outside"


def read_record(name: str, directory: str = ".") -> Record | None:
    """Reads a record; None where it was not written. Raises ValueError where it has another format."""
    try:
        with open(os.path.join(directory, name), "rb") as file:
            record: Record = json.loads(file.read(RECORD_BYTES))
    except FileNotFoundError:
        return None
    if record.get("v") != FORMAT:
        raise ValueError(f"{name} has format {record.get('v')}, and this omnid reads {FORMAT}")
    return record


def write_record(name: str, record: Record) -> None:
    """Writes a record into the room that was kept for it, and makes it appear whole and durable."""
    data = json.dumps(record).encode().ljust(RECORD_BYTES)
    descriptor = os.open(name + NEW, os.O_WRONLY | os.O_CREAT, 0o600)
    os.pwrite(descriptor, data, 0)
    sync(descriptor)
    os.close(descriptor)
    os.rename(name + NEW, name)
    directory = os.open(".", os.O_RDONLY)
    sync(directory)
    os.close(directory)


def sync(descriptor: int) -> None:
    """Syncs to the disk itself; on macOS fsync(2) alone leaves data in the disk's cache."""
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def end_remains(attempt: str, started: Record | None, grace_s: float) -> None:
    """Ends all own processes that carry the attempt's mark, except this one: SIGTERM, and after the grace SIGKILL.

    `started` is the attempt's record, by which its command is found even where it has cleared its environment.
    Two looks in a row must find nothing, because a process in the middle of exec shows no environment.
    """
    kill_at_s = time.monotonic() + grace_s
    told: set[int] = set()
    quiet = looks = 0
    while quiet < 2 and looks < LOOKS_MAX:
        killing = time.monotonic() >= kill_at_s
        found = _remains(attempt, started)
        for pid in found if killing else set(found) - told:
            _signal(pid, attempt, started, signal.SIGKILL if killing else signal.SIGTERM)
        told.update(found)
        quiet = 0 if found else quiet + 1
        looks += killing
        time.sleep(LOOK_PAUSE_S)


def process_start(pid: int) -> str | None:
    """Tells when a process started, in clock ticks since the boot (proc(5)); None where it can't be told."""
    fields = _fields(pid)
    return fields[19] if fields else None


def boot_id() -> str | None:
    """Names this boot of the machine; None where the system has no such file (macOS)."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return None


def _remains(attempt: str, started: Record | None) -> list[int]:
    """Lists this user's processes that belong to the attempt, without this one."""
    if sys.platform == "darwin":
        return _macos_remains(attempt)
    others = [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]
    return [pid for pid in others if _is_remains(pid, attempt, started)]


def _is_remains(pid: int, attempt: str, started: Record | None) -> bool:
    try:
        if os.stat(f"/proc/{pid}").st_uid != os.getuid():
            return False
        if started is not None and (started["pid"], started["start"], started["boot"]) == _identity(pid):
            return _fields(pid)[:1] not in ([], ["Z"])
        with open(f"/proc/{pid}/environ", "rb") as file:
            return f"{MARK}={attempt}".encode() in file.read().split(b"\0")
    except OSError:
        # It has ended, or it shields itself (a set-user-id program), and then it is none of ours to end.
        return False


def _identity(pid: int) -> tuple[int, str | None, str | None]:
    """Gives what tells a process from all others, of this boot and of earlier ones."""
    return pid, process_start(pid), boot_id()


def _fields(pid: int) -> list[str]:
    """Gives what proc(5) has of a process from its state on; nothing where it has gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            # The name in field 2 may hold spaces and brackets, so the fields are counted from behind it.
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def _signal(pid: int, attempt: str, started: Record | None, number: int) -> None:
    """Signals a process that is still what it was when it was found: the pidfd pins it, then it is looked at again."""
    try:
        if sys.platform == "linux":
            pinned = os.pidfd_open(pid)
            try:
                if _is_remains(pid, attempt, started):
                    if started is not None and pid == started["pid"]:
                        # It leads its group, and while it lives nobody else can have that number.
                        os.killpg(pid, number)
                    signal.pidfd_send_signal(pinned, number)
            finally:
                os.close(pinned)
        else:
            os.kill(pid, number)
    except OSError as error:
        if error.errno not in (errno.ESRCH, errno.EPERM):
            raise


def _macos_remains(attempt: str) -> list[int]:
    """Does it with ps(1) of macOS, which shows environments behind the command; unverified."""
    import subprocess

    argv = ["/bin/ps", "-E", "-ww", "-U", str(os.getuid()), "-o", "pid=,command="]
    listed = subprocess.run(argv, capture_output=True, check=True, timeout=10)
    lines = [line.split() for line in listed.stdout.splitlines()]
    return [pid for line in lines if f"{MARK}={attempt}".encode() in line and (pid := int(line[0])) != os.getpid()]


def _wake_on_signals(on_term: Callable[[], None]) -> int:
    """Gives a descriptor that is readable after a signal; a child's end, above all."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def handle(number: int, _frame: object) -> None:
        if number == signal.SIGTERM:
            on_term()

    # Handlers, not SIG_IGN: exec puts them back to the default for the command.
    for number in (signal.SIGCHLD, signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
    # What the daemon's thread that started this blocks, the command would inherit.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    return reading


def main(arguments: list[str]) -> None:
    """Takes the directory and the inherited descriptors, and runs to the end."""
    directory, *descriptors = arguments
    for descriptor in map(int, descriptors):
        os.set_inheritable(descriptor, False)
    os.chdir(directory)
    Supervisor(int(descriptors[2])).run()


if __name__ == "__main__":
    main(sys.argv[1:])
