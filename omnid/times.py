"""Days, months and daily windows in a time zone, as instants. Pure.

Instants are Unix milliseconds. Where the clocks go forward, a local time that never comes means the moment after the
gap; where they go back, one that comes twice means the first (PEP 495, fold 0). So a window opens at most once a day.
"""

from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)


def local(at_ms: int, zone: ZoneInfo) -> datetime:
    """Gives the local time of an instant."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).astimezone(zone)


def instant_ms(day: date, at: time, zone: ZoneInfo) -> int:
    """Gives the instant of a local time."""
    wanted = datetime.combine(day, at)
    moment = wanted.replace(tzinfo=zone).astimezone(UTC)
    if moment.astimezone(zone).replace(tzinfo=None) != wanted:
        moment = _after_gap(wanted.replace(tzinfo=zone, fold=1).astimezone(UTC), moment, zone)
    return round(moment.timestamp() * 1000)


def _after_gap(before: datetime, after: datetime, zone: ZoneInfo) -> datetime:
    """Finds the second between the two, both in UTC, from which on the zone's clocks are ahead."""
    offset = before.astimezone(zone).utcoffset()
    while after - before > SECOND:
        middle = before + timedelta(seconds=(after - before) // SECOND // 2)
        if middle.astimezone(zone).utcoffset() == offset:
            before = middle
        else:
            after = middle
    return after


def next_ms(after_ms: int, at: time, zone: ZoneInfo) -> int:
    """Gives the first instant after `after_ms` at which it is `at` in the zone."""
    day = local(after_ms, zone).date()
    return next(ms for k in (-1, 0, 1, 2) if (ms := instant_ms(day + k * DAY, at, zone)) > after_ms)


def last_ms(at_ms: int, at: time, zone: ZoneInfo) -> int:
    """Gives the last instant up to `at_ms`, itself included, at which it was `at` in the zone."""
    day = local(at_ms, zone).date()
    return next(ms for k in (1, 0, -1, -2) if (ms := instant_ms(day + k * DAY, at, zone)) <= at_ms)


def day_ms(at_ms: int, zone: ZoneInfo) -> tuple[int, int]:
    """Gives the begin and the end of the day that holds the instant."""
    day = local(at_ms, zone).date()
    return instant_ms(day, time(), zone), instant_ms(day + DAY, time(), zone)


def month_ms(at_ms: int, zone: ZoneInfo) -> tuple[int, int]:
    """Gives the begin and the end of the month that holds the instant."""
    first = local(at_ms, zone).date().replace(day=1)
    after = (first + timedelta(days=32)).replace(day=1)
    return instant_ms(first, time(), zone), instant_ms(after, time(), zone)


class Window(NamedTuple):
    """A daily window of local time; it goes over midnight where it begins later than it ends."""

    begin: time
    end: time

    @classmethod
    def parse(cls, text: str) -> "Window":
        """Reads ``23:00-07:00``; raises ValueError."""
        begin, dash, end = text.partition("-")
        if not dash:
            raise ValueError("a window is written 23:00-07:00")
        return cls(time.fromisoformat(begin.strip()), time.fromisoformat(end.strip()))

    def holds(self, at_ms: int, zone: ZoneInfo) -> bool:
        """Tells whether the instant lies in the window; one that begins when it ends is the whole day."""
        return self.begin == self.end or any(begin <= at_ms < end for begin, end in self._around(at_ms, zone))

    def opens_ms(self, at_ms: int, zone: ZoneInfo) -> int:
        """Gives when the window is open next: `at_ms` itself inside it."""
        if self.holds(at_ms, zone):
            return at_ms
        return next(begin for begin, end in self._around(at_ms, zone) if at_ms < begin < end)

    def closes_ms(self, at_ms: int, zone: ZoneInfo) -> int | None:
        """Gives when the window that holds the instant ends; None outside it, and for the whole day."""
        if self.begin == self.end:
            return None
        return next((end for begin, end in self._around(at_ms, zone) if begin <= at_ms < end), None)

    def closed_ms(self, at_ms: int, zone: ZoneInfo) -> int:
        """Gives when the window closed that was the last before the instant: `at_ms` itself where there was none."""
        ended = [end for begin, end in self._around(at_ms, zone) if begin < end <= at_ms]
        return max(ended, default=at_ms)

    def _around(self, at_ms: int, zone: ZoneInfo) -> Iterator[tuple[int, int]]:
        """Gives the windows of the days around the instant; one that falls into a gap of the clocks is empty."""
        today = local(at_ms, zone).date()
        for k in range(-2, 4):
            day = today + k * DAY
            last = day if self.begin < self.end else day + DAY
            yield instant_ms(day, self.begin, zone), instant_ms(last, self.end, zone)
