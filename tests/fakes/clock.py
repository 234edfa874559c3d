"""A clock that tests set by hand."""

from omnid.clock import uuid7


class FakeClock:
    """Stands still until it is moved; ids and jitter are counted, not drawn."""

    def __init__(self, wall_ms: int = 1_800_000_000_000) -> None:
        self.now_ms = wall_ms
        self.now_s = 0.0
        self._ids = 0

    def wall_ms(self) -> int:
        return self.now_ms

    def monotonic_s(self) -> float:
        return self.now_s

    def boottime_s(self) -> float:
        return self.monotonic_s()

    def uuid(self) -> str:
        self._ids += 1
        return uuid7(self.now_ms, self._ids)

    def uniform(self, low: float, high: float) -> float:
        return high
