"""How something that is looked at again and again does: up, degraded or down, its latency, its loss, its last day.

Pure: what a look has shown is told with its time. A day is kept, a beat a minute; a minute is as bad as its worst look.
"""

from collections import deque
from typing import Literal, NamedTuple

Quality = Literal["up", "degraded", "down"]
BADNESS: dict[Quality, int] = {"up": 0, "degraded": 1, "down": 2}
LOOKS = 20
"""Of how many pings the loss is told."""
LOSS_MAX = 0.1
"""The share of lost pings above which a connection that is up counts as degraded."""
BEAT_MS = 60_000
BEATS_MAX = 1_440


class Beat(NamedTuple):
    """One minute; `at_ms` is its begin."""

    at_ms: int
    quality: Quality


class Beats:
    """See the module. `slow_s`: a ping that takes longer is late."""

    def __init__(self, slow_s: float = float("inf")) -> None:
        self._slow_s = slow_s
        self._pings: deque[float | None] = deque(maxlen=LOOKS)
        """How long each took, in seconds; None: it was lost."""
        self._beats: deque[Beat] = deque(maxlen=BEATS_MAX)

    @property
    def latency_s(self) -> float | None:
        """How long the last ping that was answered took; None before the first."""
        return next((ping for ping in reversed(self._pings) if ping is not None), None)

    @property
    def loss(self) -> float | None:
        """The share of the last pings that got no answer; None before the first."""
        return sum(ping is None for ping in self._pings) / len(self._pings) if self._pings else None

    @property
    def is_slow(self) -> bool:
        """Whether the last ping that was answered was late."""
        return self.latency_s is not None and self.latency_s > self._slow_s

    @property
    def is_lossy(self) -> bool:
        """Whether more pings than a few were lost lately."""
        return self.loss is not None and self.loss > LOSS_MAX

    def ping(self, at_ms: int, latency_s: float | None) -> None:
        """Takes a ping: how long it took, or None where it got no answer."""
        self._pings.append(latency_s)
        if latency_s is None:
            self.look(at_ms, "down")
        else:
            self.look(at_ms, "degraded" if self.is_slow or self.is_lossy else "up")

    def look(self, at_ms: int, quality: Quality) -> None:
        """Takes what a look has shown that was no ping."""
        minute_ms = at_ms - at_ms % BEAT_MS
        last = self._beats[-1] if self._beats else None
        if last is not None and last.at_ms >= minute_ms:  # The clock may have been set back.
            minute_ms = last.at_ms
            self._beats.pop()
            quality = max(last.quality, quality, key=BADNESS.__getitem__)
        self._beats.append(Beat(minute_ms, quality))

    def cells(self, from_ms: int, to_ms: int, count: int) -> list[Quality | None]:
        """Gives the time between as so many cells, each as bad as its worst beat; None: nobody looked."""
        found: list[Quality | None] = [None] * count
        for beat in self._beats:
            if from_ms <= beat.at_ms < to_ms:
                mark(found, place_of(beat.at_ms, from_ms, to_ms, count), beat.quality)
        return found


def place_of(at_ms: int, from_ms: int, to_ms: int, count: int) -> int:
    """Gives the cell that a time lies in."""
    return min(count - 1, max(0, (at_ms - from_ms) * count // (to_ms - from_ms)))


def mark(cells: list[Quality | None], place: int, quality: Quality) -> None:
    """Makes a cell as bad as `quality`, where it isn't worse."""
    before = cells[place]
    cells[place] = quality if before is None else max(before, quality, key=BADNESS.__getitem__)
