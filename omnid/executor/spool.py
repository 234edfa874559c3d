"""The spool: one directory an attempt, holding what it printed and what its supervisor wrote down."""

import contextlib
import os
import shutil
from pathlib import Path

import anyio.to_thread

from omnid.settings import Limits
from omnid.worker import supervisor

ASIDE = "aside"
"""Where attempts lie that the journal does not know; nothing in there is ever deleted by omnid."""
SERVER = "server-"
"""What the directories of MCP servers begin with; all others belong to attempts."""
LOCK, LIFE, CONTROL, ERRORS = "lock", "life", "control", "supervisor.err"

_KEPT = {supervisor.OUTPUT, supervisor.CHECK_OUTPUT}


class Spool:
    """The directories of attempts under one root, each 0700; what they hold is listed in docs/supervisor.md."""

    def __init__(self, root: Path, limits: Limits) -> None:
        self.root = root.absolute()
        self._limits = limits

    @property
    def bytes_max(self) -> int:
        """The most that one attempt's output may take."""
        return self._limits.spool_bytes_max

    def configure(self, limits: Limits) -> None:
        """Takes over the limits of a changed config; what runs keeps those that it was started with."""
        self._limits = limits

    def directory(self, attempt_id: str) -> Path:
        """Gives the attempt's directory, which need not exist."""
        return self.root / attempt_id

    async def append_log(self, attempt_id: str, text: str) -> None:
        """Appends text to what the attempt has printed (`omnictl logs` shows it), for work without a supervisor.

        Beyond `limits.spool_bytes_max`, and on a full disk, the text is dropped.
        """
        await anyio.to_thread.run_sync(self._append, self.directory(attempt_id), text)

    async def read(self, attempt_id: str, offset_bytes: int, bytes_max: int, *, check: bool = False) -> bytes:
        """Reads what the attempt (or its check) has printed from that offset on; empty where there is nothing."""
        path = self.directory(attempt_id) / (supervisor.CHECK_OUTPUT if check else supervisor.OUTPUT)
        return await anyio.to_thread.run_sync(_read, path, offset_bytes, bytes_max)

    async def size_bytes(self, attempt_id: str) -> int:
        """Gives how much the attempt has printed; 0 where there is nothing."""
        return await anyio.to_thread.run_sync(_size_bytes, self.directory(attempt_id) / supervisor.OUTPUT)

    async def excerpt(self, attempt_id: str, *, check: bool = False) -> str:
        """Gives head and tail of what the attempt (or its check) has printed, as the journal keeps it."""
        path = self.directory(attempt_id) / (supervisor.CHECK_OUTPUT if check else supervisor.OUTPUT)
        limits = self._limits
        return await anyio.to_thread.run_sync(_excerpt, path, limits.output_head_bytes, limits.output_tail_bytes)

    async def forget_control_files(self, attempt_id: str) -> None:
        """Removes all but the output of an attempt that has ended, once its result is committed."""
        await anyio.to_thread.run_sync(_forget, self.directory(attempt_id))

    async def remove(self, attempt_id: str) -> None:
        """Removes all that an ended attempt has left."""
        await anyio.to_thread.run_sync(_remove, self.directory(attempt_id))

    async def attempts(self) -> list[str]:
        """Lists the attempts that have a directory, the oldest id first."""
        return await anyio.to_thread.run_sync(self._attempts)

    async def total_bytes(self) -> int:
        """Adds up the files of all attempts and servers, those set aside too."""
        return await anyio.to_thread.run_sync(_total_bytes, self.root)

    async def shrink(self, total_bytes_max: int, keep: frozenset[str], before: str) -> list[str]:
        """Removes the oldest attempts' directories until the rest fits; gives those that went.

        None of `keep` goes, and none with an id from `before` on (ids grow with time): it may have begun since. What
        was set aside, and servers' logs, are not counted, as they can't be removed.
        """
        return await anyio.to_thread.run_sync(self._shrink, total_bytes_max, keep, before)

    def _shrink(self, total_bytes_max: int, keep: frozenset[str], before: str) -> list[str]:
        sizes_bytes = {attempt_id: _total_bytes(self.directory(attempt_id)) for attempt_id in self._attempts()}
        over_bytes = sum(sizes_bytes.values()) - total_bytes_max
        gone: list[str] = []
        for attempt_id, size_bytes in sizes_bytes.items():
            if over_bytes <= 0:
                break
            if attempt_id not in keep and attempt_id < before:
                over_bytes -= size_bytes
                _remove(self.directory(attempt_id))
                gone.append(attempt_id)
        return gone

    def _attempts(self) -> list[str]:
        try:
            with os.scandir(self.root) as entries:
                names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return []
        return sorted(name for name in names if name != ASIDE and not name.startswith(SERVER))

    def _append(self, directory: Path, text: str) -> None:
        make_directory(self.root)
        make_directory(directory)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        with open(os.open(directory / supervisor.OUTPUT, flags, 0o600), "ab", buffering=0) as file:
            room_bytes = self.bytes_max - file.tell()
            try:
                file.write(text.encode(errors="backslashreplace")[: max(0, room_bytes)])
            except OSError:
                # A full disk must not end the work: its log is a help, not its result.
                return


def make_directory(path: Path) -> None:
    """Makes a directory that only this user can enter; one that is there stays as it is."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def printable(data: bytes) -> str:
    r"""Decodes what a program printed; bytes that are no UTF-8, and NUL, which no database takes, become ``\xNN``."""
    return data.decode(errors="backslashreplace").replace("\0", r"\x00")


def excerpt(head: bytes, left_out_bytes: int, tail: bytes) -> str:
    r"""Joins head and tail with a line that says how many bytes are missing between them.

    Both are cut at whole characters, so that the cut itself makes no ``\xNN``.
    """
    if left_out_bytes == 0:
        return printable(head + tail)
    cut = _incomplete_bytes(head)
    skip = next((n for n, byte in enumerate(tail[:4]) if byte & 0xC0 != 0x80), min(len(tail), 4))
    missing_bytes = left_out_bytes + cut + skip
    line = f"\n[{missing_bytes} bytes are left out here]\n"
    return printable(head[: len(head) - cut]) + line + printable(tail[skip:])


def _incomplete_bytes(data: bytes) -> int:
    """Counts the bytes at the end that begin a UTF-8 character without finishing it."""
    for length in range(1, min(4, len(data)) + 1):
        byte = data[-length]
        if byte & 0xC0 != 0x80:
            needed = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
            return length if needed > length else 0
    return 0


def _excerpt(path: Path, head_bytes: int, tail_bytes: int) -> str:
    try:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if size_bytes <= head_bytes + tail_bytes:
                return printable(file.read(size_bytes))
            head = file.read(head_bytes)
            file.seek(size_bytes - tail_bytes)
            return excerpt(head, size_bytes - head_bytes - tail_bytes, file.read(tail_bytes))
    except FileNotFoundError:
        return ""


def _read(path: Path, offset_bytes: int, bytes_max: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset_bytes)
            return file.read(bytes_max)
    except FileNotFoundError:
        return b""


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _forget(directory: Path) -> None:
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return
    for name in set(names) - _KEPT:
        (directory / name).unlink(missing_ok=True)
    if not set(names) & _KEPT:
        with contextlib.suppress(FileNotFoundError):
            directory.rmdir()


def _remove(directory: Path) -> None:
    while directory.exists():
        # Its control files may be forgotten at the same moment: a task can be deleted as soon as it has ended.
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(directory)


def _total_bytes(root: Path) -> int:
    total = 0
    for directory, _, names in os.walk(root):
        for name in names:
            try:
                total += os.lstat(os.path.join(directory, name)).st_size
            except FileNotFoundError:
                # It was removed while we counted.
                continue
    return total
