"""The gate `hours` of executors that start work within their hours only: computed from the clock, never written."""

from collections.abc import Mapping
from typing import NamedTuple
from zoneinfo import ZoneInfo

from omnid.flow.context import Context
from omnid.model import Gate, Problem
from omnid.route.ways import Way

NEVER_MS = 1 << 62


class _Seen(NamedTuple):
    """What was closed when it was last looked at, and as long as what that holds."""

    ways: Mapping[str, Way]
    zone: ZoneInfo
    from_ms: int
    until_ms: int
    gates: dict[str, Gate]


class Hours:
    """Which executors are outside their hours; looked up at every claim, so it is kept until the next opening."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._seen = self._look(0)
        self._told: frozenset[str] = frozenset()

    def closed(self) -> Mapping[str, Gate]:
        """Gives the gates of executors that are outside their hours now."""
        context, seen = self._context, self._seen
        now_ms = context.clock.wall_ms() if seen.until_ms < NEVER_MS else seen.from_ms
        # The clock may have been set, and the config be another.
        if seen.ways is not context.ways or seen.zone is not context.zone or not seen.from_ms <= now_ms < seen.until_ms:
            # One assignment, because readers look at it from their threads.
            seen = self._seen = self._look(context.clock.wall_ms())
        return seen.gates

    def next_ms(self) -> int | None:
        """Gives when an executor next goes into its hours or out of them; None where none has any."""
        self.closed()
        return self._seen.until_ms if self._seen.until_ms < NEVER_MS else None

    def changed(self) -> bool:
        """Tells whether others are closed than when this was last asked."""
        now = frozenset(self.closed())
        before, self._told = self._told, now
        return now != before

    def _look(self, now_ms: int) -> _Seen:
        context = self._context
        gates: dict[str, Gate] = {}
        until_ms = NEVER_MS
        for name, way in context.ways.items():
            window = way.window
            if window is None or window.begin == window.end:
                continue
            closes_ms = window.closes_ms(now_ms, context.zone)
            if closes_ms is None:
                opens_ms = window.opens_ms(now_ms, context.zone)
                problem = Problem.make("outside_hours", executor=name, only=way.only, zone=context.zone.key)
                closed_ms = window.closed_ms(now_ms, context.zone)
                gates[name] = Gate(f"hours:{name}", "hours", name, closed_ms, opens_ms, problem)
                until_ms = min(until_ms, opens_ms)
            else:
                until_ms = min(until_ms, closes_ms)
        return _Seen(context.ways, context.zone, now_ms, until_ms, gates)
