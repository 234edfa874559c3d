"""Refuses new tasks before the disk is full, so that what runs can still finish."""

from omnid import platform
from omnid.clock import Clock
from omnid.errors import Retryable

LOOK_EVERY_S = 1.0


class DiskRoom:
    """Looks at the free room under a directory, at most once a second."""

    def __init__(self, path: str, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._looked_s = float("-inf")
        self._free_bytes = 0

    def check(self, needed_bytes: int) -> None:
        """Raises Retryable(`disk_low`, `state_unwritable`) where less than `needed_bytes` are free, or none at all."""
        now_s = self._clock.monotonic_s()
        if now_s - self._looked_s >= LOOK_EVERY_S:
            self._looked_s = now_s
            try:
                self._free_bytes = platform.free_bytes(self._path)
            except OSError as error:
                raise Retryable("state_unwritable", path=self._path, detail=error.strerror or error) from error
        if self._free_bytes < needed_bytes:
            raise Retryable("disk_low", free_bytes=self._free_bytes, path=self._path, needed_bytes=needed_bytes)
