"""Time, ids and randomness, handed in everywhere, so that a simulation can own them."""

import os
import random
import time
from typing import Protocol
from uuid import UUID, uuid5

NAMESPACE = UUID("0b8f4ad5-5f0e-5c7d-9a53-0c4f4c2f9d11")
"""Of the UUIDs that stand for names of omnid's."""


class Clock(Protocol):
    """What the rest of omnid knows of time, ids and chance."""

    def wall_ms(self) -> int:
        """Gives the wall time as Unix milliseconds; it may jump, so it is stored and shown, never subtracted."""
        ...

    def monotonic_s(self) -> float:
        """Gives seconds that only grow, for waits and durations inside one process."""
        ...

    def boottime_s(self) -> float:
        """Gives seconds that only grow, and go on while the machine sleeps: for leases, which others go by."""
        ...

    def uuid(self) -> str:
        """Gives a new UUIDv7 (RFC 9562 section 5.7) in its text form; ids of one process grow."""
        ...

    def uniform(self, low: float, high: float) -> float:
        """Gives a random float between `low` and `high`, for jitter only."""
        ...


def uuid7(wall_ms: int, random_bits: int) -> str:
    """Builds a UUIDv7 (RFC 9562 section 5.7) from Unix milliseconds and 74 random bits."""
    high = (random_bits >> 62) & 0xFFF
    low = random_bits & ((1 << 62) - 1)
    value = (wall_ms & ((1 << 48) - 1)) << 80 | 0x7 << 76 | high << 64 | 0b10 << 62 | low
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def named_uuid(name: str) -> str:
    """Gives the UUIDv5 (RFC 9562 section 5.5) that stands for a name of omnid's: always the same one."""
    return str(uuid5(NAMESPACE, name))


def is_uuid(text: str) -> bool:
    """Tells whether the text is a UUID in its canonical form."""
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


class SystemClock:
    """The real clock: the system's time, and randomness from the operating system."""

    def __init__(self) -> None:
        self._pool = b""
        self._last_ms, self._last_bits = -1, 0
        self._jitter = random.Random(int.from_bytes(os.urandom(16)))  # noqa: S311 - jitter only, never a secret.

    def wall_ms(self) -> int:
        """See `Clock.wall_ms`."""
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        """See `Clock.monotonic_s`."""
        return time.monotonic()

    def boottime_s(self) -> float:
        """See `Clock.boottime_s`; on macOS it is CLOCK_MONOTONIC that goes on, see clock_gettime(3): unverified."""
        return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))

    def uuid(self) -> str:
        """See `Clock.uuid`; the random part comes from the OS, a hundred ids' worth at a time: it can't be guessed.

        Within a millisecond, and where the clock was set back, it grows by a random step
        (RFC 9562 section 6.2, method 2).
        """
        if not self._pool:
            self._pool = os.urandom(10 * 100)
        bits, self._pool = int.from_bytes(self._pool[:10]), self._pool[10:]
        now_ms, bits = self.wall_ms(), bits & ((1 << 73) - 1)
        if now_ms <= self._last_ms:
            now_ms, step = self._last_ms, 1 + (bits & ((1 << 60) - 1))
            bits = self._last_bits + step
            if bits >> 74:
                now_ms, bits = now_ms + 1, step
        self._last_ms, self._last_bits = now_ms, bits
        return uuid7(now_ms, bits)

    def uniform(self, low: float, high: float) -> float:
        """See `Clock.uniform`."""
        return self._jitter.uniform(low, high)
