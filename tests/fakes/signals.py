"""How tests hear of other processes: lines from a FIFO, and the ends of processes; every wait is bounded."""

import contextlib
import os
from pathlib import Path

import anyio

WAIT_S = 30.0


class Fifo:
    """A named pipe to which any process may write lines; the writers never block."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        os.mkfifo(path)
        self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self._lines: list[str] = []

    async def line(self) -> str:
        """Waits for the next line."""
        with anyio.fail_after(WAIT_S):
            while not self._lines:
                await anyio.wait_readable(self._descriptor)
                self._lines += os.read(self._descriptor, 4096).decode().splitlines()
        return self._lines.pop(0)

    def is_empty(self) -> bool:
        """Tells whether nobody has written since the last line."""
        with contextlib.suppress(BlockingIOError):
            self._lines += os.read(self._descriptor, 4096).decode().splitlines()
        return not self._lines

    def close(self) -> None:
        os.close(self._descriptor)


async def gone(pid: int) -> None:
    """Waits until a process, whosever child it is, has ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with anyio.fail_after(WAIT_S):
            await anyio.wait_readable(pidfd)
    finally:
        os.close(pidfd)


def lives(pid: int) -> bool:
    """Tells whether a process is there and no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def zombies() -> list[int]:
    """Lists the children of this process that nobody has waited for."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if state == "Z" and int(parent) == os.getpid():
                found.append(int(entry.name))
    return found


def open_descriptors() -> int:
    """Counts this process's open descriptors."""
    return len(os.listdir("/proc/self/fd"))
