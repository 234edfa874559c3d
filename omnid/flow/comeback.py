"""What goes out over a link that is back: one line in the log says how long it was down, and what was sent after it."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from omnid.clock import Clock
from omnid.log import Logger


class CameBack(NamedTuple):
    """A comeback that is over: all that had waited is out, or the link is down again."""

    link: str
    up_at_ms: int
    sent: int
    left: frozenset[str]
    """The queues that still hold something."""


def _ignored(_: CameBack) -> None:
    """Nobody needs to hear of it beside the log."""


class Comeback:
    """The comebacks of one link; `told` hears of each when it is over."""

    def __init__(self, link: str, clock: Clock, log: Logger, told: Callable[[CameBack], None] = _ignored) -> None:
        self._link = link
        self._clock = clock
        self._log = log
        self._told = told
        self._behind: dict[str, int] | None = None
        """The queues that have yet to catch up, and what had been sent of them before; None: no comeback goes on."""
        self._sent = 0
        self._down_s = 0.0
        self._up_at_ms, self._up_at_s = 0, 0.0

    def back(self, down_s: float, behind: Mapping[str, int]) -> None:
        """The link is up again after so many seconds; see `Drain.behind` for what has yet to catch up."""
        self._down_s = down_s
        self._up_at_ms, self._up_at_s = self._clock.wall_ms(), self._clock.monotonic_s()
        self._behind, self._sent = dict(behind), 0
        self._look()

    def caught_up(self, queue: str, sent: int) -> None:
        """A queue is empty again; so many were sent since it could not be."""
        if self._behind is not None and queue in self._behind:
            self._sent += sent - self._behind.pop(queue)
            self._look()

    def gone(self, behind: Mapping[str, int]) -> None:
        """The link is down again, whatever has gone out by now."""
        before = self._behind or {}
        self._sent += sum(sent - before[queue] for queue, sent in behind.items() if queue in before)
        self._look(is_over=True)

    def _look(self, *, is_over: bool = False) -> None:
        if self._behind is None or (self._behind and not is_over):
            return
        left, self._behind = frozenset(self._behind), None
        took_s = round(self._clock.monotonic_s() - self._up_at_s, 3)
        self._log.info("link_up", link=self._link, down_s=self._down_s, sent=self._sent, took_s=took_s)
        self._told(CameBack(self._link, self._up_at_ms, self._sent, left))
