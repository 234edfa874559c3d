"""When to try again: backoff with full jitter, and a failure count that decays. Pure; chance is passed in."""

from collections.abc import Callable
from typing import NamedTuple


class Backoff(NamedTuple):
    """Exponential backoff with full jitter.

    Source: Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    base_s: float
    max_s: float

    def delay_s(self, failures: int, uniform: Callable[[float, float], float]) -> float:
        """Gives the wait in seconds after `failures` (>= 1) failures in a row, between half a base and `max_s`.

        The lower bound keeps a jitter near zero from turning a wait into a busy loop.
        """
        ceiling_s = min(self.max_s, self.base_s * 2.0 ** min(failures - 1, 63))
        return uniform(min(self.base_s / 2, ceiling_s), ceiling_s)


class FailureCount(NamedTuple):
    """Failures in a row, forgotten after `forget_s` without a further one."""

    failures: int = 0
    last_s: float = 0.0
    forget_s: float = 600.0

    def failed(self, now_s: float) -> "FailureCount":
        """Counts one more failure at `now_s` (monotonic seconds)."""
        fresh = now_s - self.last_s > self.forget_s
        return self._replace(failures=1 if fresh else self.failures + 1, last_s=now_s)

    def succeeded(self) -> "FailureCount":
        """Starts from nothing again."""
        return self._replace(failures=0)
