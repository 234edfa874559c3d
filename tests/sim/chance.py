"""Time and chance of one run: both come from its seed alone, and so does the order in which trio runs its tasks."""

import random
from hashlib import sha256

import trio
import trio._core._run as scheduler

from omnid.clock import uuid7

START_MS = 1_800_000_000_000
DAY_MS = 86_400_000


def seed_scheduler(seed: int) -> None:
    """Makes trio's choice among runnable tasks follow from the seed.

    Trio offers no public switch. With this one it sorts each batch by age and shuffles it with `_r`
    (`trio/_core/_run.py`, `unrolled_run`); a test that compares processes fails when a new trio does otherwise.
    """
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True
    scheduler._r.seed(seed)


class Trace:
    """What happened, line by line; its hash tells whether two runs were the same."""

    def __init__(self, *, keep: bool) -> None:
        self.lines: list[str] = []
        self._keep = keep
        self._hash = sha256()

    def __call__(self, what: str) -> None:
        line = f"{trio.current_time():10.3f} {what}"
        self._hash.update(line.encode() + b"\n")
        if self._keep:
            self.lines.append(line)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()[:16]


class SimClock:
    """See `omnid.clock.Clock`: the machine's clock, which outlives the daemon and can be set."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._offset_ms = 0
        self.set_s = 0.0
        """When it was last set, as virtual seconds."""
        self.seen_max_ms = START_MS

    def wall_ms(self) -> int:
        now_ms = START_MS + self._offset_ms + round(trio.current_time() * 1000)
        self.seen_max_ms = max(self.seen_max_ms, now_ms)
        return now_ms

    def monotonic_s(self) -> float:
        return trio.current_time()

    def boottime_s(self) -> float:
        return self.monotonic_s()

    def uuid(self) -> str:
        return uuid7(self.wall_ms(), self._chance.getrandbits(74))

    def uniform(self, low: float, high: float) -> float:
        return self._chance.uniform(low, high)

    def jump(self, by_ms: int) -> None:
        """Sets the wall clock; monotonic time goes on as it was."""
        self._offset_ms += by_ms
        self.set_s = trio.current_time()

    def put_right(self) -> None:
        """Sets the wall clock to the latest time that it ever showed."""
        self.jump(max(0, self.seen_max_ms - self.wall_ms()))
