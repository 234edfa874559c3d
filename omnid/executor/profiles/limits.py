"""Reads in what an agent says when it can take work again. Pure.

The words are those of providers and of their programs, who change them at will; what can't be read counts as no time.
"""

import re
from collections.abc import Iterator, Sequence
from datetime import date, datetime, time
from typing import NamedTuple
from zoneinfo import ZoneInfo

from omnid.executor.profiles.profile import Texts
from omnid.times import instant_ms, local, next_ms

TEXT_CHARS_MAX = 20_000
SAID_CHARS_MAX = 200
ALONE_CHARS_MAX = 400
AHEAD_S_MAX = 8 * 86_400
"""A weekly limit lifts within a week; a time further ahead is taken for a mistake and tried then."""
JUST_PASSED_S = 3600
"""A time of day that passed less than this ago is not tomorrow's: the limit was about to lift when it was told."""
SOON_S = 15.0

_MONTHS: list[str] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_SPAN = re.compile(
    r"\b(?:in|after)[ :]*"
    r"((?:\d+(?:\.\d+)?\s*(?:days?|d|hours?|hrs?|h|minutes?|mins?|ms|m|seconds?|secs?|s)(?![a-z])[,\s]*"
    r"(?:and\s+)?)+)|retry[-_ ]?(?:after|delay)\W{1,4}(\d+(?:\.\d+)?)(?:s\b|\b(?!\w))",
    re.IGNORECASE,
)
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|d|h|m|s)", re.IGNORECASE)
_EPOCH = re.compile(r"\|\s*(\d{10})(\d{3})?\b")
_ISO = re.compile(
    r"\b(\d{4}-\d\d-\d\d)(?:[T ]|\s+at\s+)(\d\d:\d\d(?::\d\d)?)(?:\.\d+)?(?:\s*(Z|UTC|GMT|[+-]\d\d:\d\d))?"
)
_CLOCK = re.compile(
    r"(?:resets?|again|until|available)(?:\s+(?:at|on))?\s+"
    r"(?:(?P<month>jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?\s+(?P<day>\d{1,2})(?:st|nd|rd|th)?"
    r"(?:,?\s+(?P<year>20\d\d))?(?:,|\s+at)?\s+)?"
    r"(?P<hour>\d{1,2})(?::(?P<minute>\d\d))?\s*(?P<half>[ap])?\.?m?\b"
    r"(?:\s*\((?P<zone>[A-Za-z0-9_+/-]+)\))?",
    re.IGNORECASE,
)


class Limit(NamedTuple):
    """What an agent has run into."""

    cause: str
    """A cause of gates: ``rate_limit`` or ``login``."""
    said: str
    """Its own words, shortened."""
    wake_at_ms: int | None
    """When it may be tried again; None: that wasn't said."""
    capped: bool = False
    """What was said lies so far ahead that it is tried sooner."""


def find(texts: Texts, text: str, now_ms: int, zone: ZoneInfo) -> Limit | None:
    """Finds a limit in what an agent said when it failed, None where it speaks of none.

    `zone` is meant by times that name none.
    """
    text = text[-TEXT_CHARS_MAX:]
    kinds: Sequence[tuple[str, Sequence[str]]] = (
        ("rate_limit", texts.limit),
        ("login", texts.login),
        ("rate_limit", texts.overload),
    )
    for cause, patterns in kinds:
        found = _first(patterns, text)
        if found is not None:
            line = _line(text, found)
            wake_at_ms = None if cause == "login" else reset_ms(text[found.start() :], now_ms, zone)
            latest_ms = now_ms + AHEAD_S_MAX * 1000
            capped = wake_at_ms is not None and wake_at_ms > latest_ms
            return Limit(cause, line[:SAID_CHARS_MAX], latest_ms if capped else wake_at_ms, capped)
    return None


def is_alone(texts: Texts, text: str) -> bool:
    """Tells whether an answer, given as a success, is nothing but the word of a limit."""
    text = text.strip()
    return len(text) <= ALONE_CHARS_MAX and any(re.fullmatch(pattern, text, re.IGNORECASE) for pattern in texts.alone)


def reset_ms(text: str, now_ms: int, zone: ZoneInfo) -> int | None:
    """Gives the instant that a text names, in Unix milliseconds; a passed one becomes soon, None: it names none."""
    at_ms = next(_instants(text, now_ms, zone), None)
    return now_ms + round(SOON_S * 1000) if at_ms is not None and at_ms <= now_ms else at_ms


def _instants(text: str, now_ms: int, zone: ZoneInfo) -> Iterator[int]:
    if (match := _EPOCH.search(text)) is not None:
        yield int(match[1]) * 1000
    if (match := _ISO.search(text)) is not None:
        yield from _iso(match, zone)
    if (match := _SPAN.search(text)) is not None:
        yield now_ms + round(_seconds(match) * 1000)
    for match in _CLOCK.finditer(text):
        yield from _clock(match, now_ms, _zone(match["zone"], zone))


def _seconds(match: re.Match[str]) -> float:
    if match[2] is not None:
        return float(match[2])
    return sum(float(number) * _UNITS_S[unit.lower()] for number, unit in _PART.findall(match[1]))


def _iso(match: re.Match[str], zone: ZoneInfo) -> Iterator[int]:
    try:
        offset = "Z" if match[3] in ("UTC", "GMT") else match[3] or ""
        at = datetime.fromisoformat(f"{match[1]}T{match[2]}{offset}")
    except ValueError:
        return
    yield round((at if at.tzinfo else at.replace(tzinfo=zone)).timestamp() * 1000)


def _clock(match: re.Match[str], now_ms: int, zone: ZoneInfo) -> Iterator[int]:
    hour, minute = int(match["hour"]), int(match["minute"] or 0)
    if match["half"]:
        if not 1 <= hour <= 12:
            return
        hour = hour % 12 + (12 if match["half"].lower() == "p" else 0)
    elif match["minute"] is None:
        return  # A bare number is no time of day.
    try:
        at = time(hour, minute)
        if match["month"] is None:
            yield _time_of_day(at, now_ms, zone)
        else:
            month = _MONTHS.index(match["month"][:3].lower()) + 1
            yield _on_day(match["year"], month, int(match["day"]), at, now_ms, zone)
    except ValueError:
        return


def _time_of_day(at: time, now_ms: int, zone: ZoneInfo) -> int:
    """Gives the next such time, or the last one where that has only just passed."""
    before_ms = now_ms - JUST_PASSED_S * 1000
    return next_ms(before_ms, at, zone)


def _on_day(year: str | None, month: int, day: int, at: time, now_ms: int, zone: ZoneInfo) -> int:
    """Gives the instant in the year that was named, else in the year that brings it nearest to now."""
    this = local(now_ms, zone).year
    years = [int(year)] if year else [this - 1, this, this + 1]
    found = [instant_ms(date(each, month, day), at, zone) for each in years if _exists(each, month, day)]
    if not found:
        raise ValueError("there is no such day")
    return min(found, key=lambda ms: abs(ms - now_ms))


def _exists(year: int, month: int, day: int) -> bool:
    try:
        date(year, month, day)
    except ValueError:
        return False
    return True


def _zone(name: str | None, otherwise: ZoneInfo) -> ZoneInfo:
    try:
        return ZoneInfo(name) if name else otherwise
    except (KeyError, ValueError, OSError):
        return otherwise


def _first(patterns: Sequence[str], text: str) -> re.Match[str] | None:
    found = (re.search(pattern, text, re.IGNORECASE | re.DOTALL) for pattern in patterns)
    return min((match for match in found if match is not None), key=lambda match: match.start(), default=None)


def _line(text: str, found: re.Match[str]) -> str:
    """Gives the line that says it, without what would only repeat the rest of the output."""
    begin = text.rfind("\n", 0, found.start()) + 1
    end = text.find("\n", found.end())
    return " ".join(text[max(begin, found.start() - 60) : len(text) if end < 0 else end].split())
