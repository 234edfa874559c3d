"""Snapshots of the journal: one committed state as a database of its own, made while others write."""

import contextlib
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import apsw

from omnid.worker.supervisor import sync

STEP_PAGES = 1024
CACHE_KIB = 2048
"""What a copy keeps in memory of each of the two files."""
NEW = ".new"
"""What follows the name of a snapshot until it is whole."""
_NAME = re.compile(r"journal-(\d{8}T\d{6})\.(\d{3})Z\.db")
_STAMP = "%Y%m%dT%H%M%S"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class TooLargeError(Exception):
    """The database is larger than a copy of it may be; `size_bytes` is what it has."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(size_bytes)
        self.size_bytes = size_bytes


class Snapshot(NamedTuple):
    """A snapshot that is there."""

    path: str
    at_ms: int
    """What it is the snapshot of: a moment, or what began at it."""
    size_bytes: int


class Shelf:
    """The directory of the snapshots, which are named by their times. Its methods block and raise OSError."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def place(self, at_ms: int) -> Path:
        """Gives where the snapshot of that time goes; makes the directory."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        at = _EPOCH + timedelta(milliseconds=at_ms)
        return self._directory / f"journal-{at.strftime(_STAMP)}.{at_ms % 1000:03}Z.db"

    def look(self) -> tuple[Snapshot, ...]:
        """Gives the snapshots, the newest first; one that was left unfinished goes."""
        found: list[Snapshot] = []
        if not self._directory.is_dir():
            return ()
        for entry in os.scandir(self._directory):
            match = _NAME.fullmatch(entry.name.removesuffix(NEW))
            if match is None:
                continue
            if entry.name.endswith(NEW):
                os.unlink(entry.path)
                continue
            at = datetime.strptime(match[1], _STAMP).replace(tzinfo=UTC)
            at_ms = (at - _EPOCH) // timedelta(seconds=1) * 1000 + int(match[2])
            found.append(Snapshot(entry.path, at_ms, entry.stat().st_size))
        return tuple(sorted(found, key=lambda one: one.at_ms, reverse=True))

    def shrink(self, count_max: int, bytes_max: int) -> tuple[Snapshot, ...]:
        """Removes the oldest snapshots until the others are within both limits; gives those, the newest first."""
        kept: list[Snapshot] = []
        for one in self.look():
            bytes_max -= one.size_bytes
            if len(kept) < count_max and bytes_max >= 0:
                kept.append(one)
            else:
                bytes_max = -1  # What is older than one that went, goes too.
                os.unlink(one.path)
        return tuple(kept)


def copy(source: apsw.Connection, path: Path, bytes_max: int, go_on: Callable[[], None]) -> int:
    """Copies the database as `source` sees it into a new file, there at once and whole; gives its size in bytes.

    Nobody is held up but whoever wants the WAL emptied, so `go_on` is called between two pieces, and may raise. Raises
    TooLargeError, OSError and apsw.Error; then nothing is left of it.
    """
    new = path.with_name(path.name + NEW)
    with contextlib.suppress(FileNotFoundError):
        new.unlink()
    descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        source.pragma("cache_size", -CACHE_KIB)
        source.execute("BEGIN")
        # Both are read inside the transaction, which ends with the connection: the backup sees what they see.
        size_bytes = source.pragma("page_count") * source.pragma("page_size")
        if size_bytes > bytes_max:
            raise TooLargeError(size_bytes)
        _copy_pages(source, new, descriptor, go_on)
        sync(descriptor)
        new.rename(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        raise
    finally:
        os.close(descriptor)
    directory = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        sync(directory)
    finally:
        os.close(directory)
    return size_bytes


def _copy_pages(source: apsw.Connection, new: Path, descriptor: int, go_on: Callable[[], None]) -> None:
    # Nobody else knows the file, so it needs no locks; and `descriptor` can be synced without giving one up.
    target = apsw.Connection(str(new), flags=apsw.SQLITE_OPEN_READWRITE, vfs="unix-none")
    try:
        target.pragma("journal_mode", "off")
        target.pragma("synchronous", "off")
        target.pragma("cache_size", -CACHE_KIB)
        with target.backup("main", source, "main") as backup:
            while not backup.done:
                go_on()
                backup.step(STEP_PAGES)
                # Piece by piece: a commit that syncs meanwhile would have to wait for all that is not on the disk yet.
                os.fsync(descriptor)
    finally:
        target.close()
