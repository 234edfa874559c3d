"""Refuses new tasks before the disk is full, so that what runs can still finish; and where their place is gone."""

import os

import anyio

from omnid import platform
from omnid.clock import Clock
from omnid.errors import Fatal, Retryable

LOOK_EVERY_S = 1.0
WATCH_EVERY_S = 30.0


class DiskRoom:
    """Looks at the state directory, at most once a second: whether it is still there, and how much room it has."""

    def __init__(self, path: str, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._looked_s = float("-inf")
        self._free_bytes = 0
        self._place = self._look()

    def check(self, needed_bytes: int) -> None:
        """Raises Retryable(`disk_low`, `state_unwritable`) where less than `needed_bytes` are free, or none at all.

        Raises Fatal(`state_moved`) where another directory has taken its place.
        """
        now_s = self._clock.monotonic_s()
        if now_s - self._looked_s >= LOOK_EVERY_S:
            self.stays()
            try:
                self._free_bytes = platform.free_bytes(self._path)
            except OSError as error:
                raise Retryable("state_unwritable", path=self._path, detail=error.strerror or error) from error
            # Only what was seen holds for a while.
            self._looked_s = now_s
        if self._free_bytes < needed_bytes:
            raise Retryable("disk_low", free_bytes=self._free_bytes, path=self._path, needed_bytes=needed_bytes)

    def stays(self) -> None:
        """Raises Fatal(`state_moved`) where the directory was moved or removed: what is written would be lost."""
        if self._look() != self._place:
            raise Fatal("state_moved", path=self._path)

    async def watch(self) -> None:
        """Looks now and then whether it stays, until it doesn't."""
        while True:
            await anyio.sleep(WATCH_EVERY_S)
            self.stays()

    def _look(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self._path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return status.st_dev, status.st_ino
