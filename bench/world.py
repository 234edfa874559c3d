"""What the benches stand on: a scratch directory, a daemon of their own in it, one raw connection, figures of /proc."""

import contextlib
import json
import mmap
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from bench.served import SLOT_BYTES

ANSWER_S = 60.0
START_S = 60.0
SLOTS = 200_000
BIN = Path(sys.executable).parent


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Gives a directory on a real disk, with a path short enough for a socket; it is removed at the end."""
    directory = Path(tempfile.mkdtemp(prefix="omnid-bench-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def environ(directory: Path, **settings: object) -> dict[str, str]:
    """Gives the environment of a daemon and of its clients; `settings` are OMNID_<SECTION>__<KEY>."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR", "PYTHONPATH") if name in os.environ}
    own = {"HOME": str(directory), "OMNID_STATE": str(directory / "state")}
    return {**kept, **own, **{f"OMNID_{name.upper()}": str(value) for name, value in settings.items()}}


class Connection:
    """One client of the daemon on a plain socket, with as little of its own as can be."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(ANSWER_S)
        self.socket.connect(path)
        self._lines = self.socket.makefile("rb")

    def exchange(self, message: bytes) -> bytes:
        """Sends one line and gives the next one that comes."""
        self.socket.sendall(message)
        return self._lines.readline()

    def call(self, method: str, params: dict[str, Any]) -> Any:
        """Calls one of omnid's methods and gives its result."""
        return answer_of(self.exchange(request(method, params)))

    def close(self) -> None:
        self._lines.close()
        self.socket.close()


def request(method: str, params: dict[str, Any]) -> bytes:
    """Makes the line of a request; its id is always 1, because one is open at a time."""
    message = {"jsonrpc": "2.0", "id": 1, "method": f"omnid/{method}", "params": params}
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def answer_of(line: bytes) -> Any:
    """Gives the result inside an answer; raises RuntimeError where it is an error."""
    answer = json.loads(line)
    if "error" in answer:
        raise RuntimeError(f"the daemon answered {answer['error']}")
    return answer["result"]


class Daemon:
    """A daemon with the executor `noop` in a child process, and its stamps. A context manager."""

    def __init__(self, directory: Path, **settings: object) -> None:
        self.environ = environ(directory, **settings)
        self.socket_path = f"{directory}/state/omnid.sock"
        stamps_path = directory / "stamps"
        if not stamps_path.exists():
            stamps_path.write_bytes(bytes(SLOTS * SLOT_BYTES))
        with open(stamps_path, "r+b") as file:
            self._stamps = mmap.mmap(file.fileno(), 0)
        argv = [sys.executable, "-m", "bench.served", str(stamps_path)]
        here = str(Path(__file__).parent.parent)
        self._process = subprocess.Popen(argv, env=self.environ, cwd=here, stdin=subprocess.PIPE)
        self.pid = self._process.pid
        self.client = connect(self.socket_path, self._process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        if self._process.poll() is None:
            self._process.communicate(timeout=START_S)
        self._stamps.close()

    def kill(self) -> None:
        """Ends it with SIGKILL."""
        self._process.kill()
        self._process.communicate()

    def started_ns(self, slot: int) -> int:
        """Gives when the task of this slot was started; 0: not yet."""
        return struct.unpack_from("q", self._stamps, slot * SLOT_BYTES)[0]

    def settled_ns(self, slot: int) -> int:
        """Gives when the result of the task of this slot was durable; 0: not yet."""
        return struct.unpack_from("q", self._stamps, slot * SLOT_BYTES + 8)[0]

    def stamps(self, count: int) -> tuple[list[int], list[int]]:
        """Gives the stamps of the first `count` slots: started, settled."""
        both = struct.unpack_from(f"{2 * count}q", self._stamps, 0)
        return list(both[::2]), list(both[1::2])


def connect(path: str, process: subprocess.Popen[bytes]) -> Connection:
    """Connects as soon as the daemon listens; raises RuntimeError where it doesn't come up."""
    until_s = time.monotonic() + START_S
    while time.monotonic() < until_s and process.poll() is None:
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            return Connection(path)
        time.sleep(0.002)
    raise RuntimeError("the daemon did not come up")


@contextlib.contextmanager
def real_daemon(env: dict[str, str]) -> Iterator[tuple[subprocess.Popen[bytes], Connection]]:
    """Runs `omnid run` as users do; gives its process and a connection."""
    with subprocess.Popen([str(BIN / "omnid"), "run"], env=env) as process:
        try:
            client = connect(f"{env['OMNID_STATE']}/omnid.sock", process)
            try:
                yield process, client
            finally:
                client.close()
        finally:
            process.terminate()
            try:
                process.wait(START_S)
            except subprocess.TimeoutExpired:
                process.kill()


def memory_mb(pid: int) -> dict[str, float]:
    """Gives resident memory now (`rss`), its peak (`peak`) and its fair share of shared pages (`pss`), in MB."""
    found: dict[str, float] = {}
    for file, key, name in (("status", "VmRSS", "rss"), ("status", "VmHWM", "peak"), ("smaps_rollup", "Pss", "pss")):
        for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
            if line.startswith(f"{key}:"):
                found[name] = int(line.split()[1]) * 1024 / 1e6
    return found


def cpu_s(pid: int) -> float:
    """Gives the processor time so far of all threads, also of those that have ended (clock_getcpuclockid of Linux)."""
    return time.clock_gettime((~pid << 3) | 2)
