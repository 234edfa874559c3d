"""Times as people write and read them: parsing what the options take, and saying durations and distances."""

import time

from omnid.durations import parse_duration
from omnid.errors import Rejected

_UNIX_MS_MIN = 100_000_000_000
"""The smallest number that is read as Unix milliseconds (in 1973): what is smaller is a seq of the log."""


def parse_future(text: str, now_ms: int) -> int:
    """Gives the Unix milliseconds of a time to come: relative (``+2h``) or as `parse_moment` takes it."""
    if text.startswith("+"):
        return now_ms + round(parse_duration(text[1:]) * 1000)
    return parse_moment(text, now_ms)


def parse_at(text: str, now_ms: int) -> str:
    """Gives the `at` of a schedule: a time to come in RFC 3339; a local one stays so, in the schedule's zone.

    Raises Rejected(`bad_time`).
    """
    at_ms = parse_future(text, now_ms)
    from contextlib import suppress
    from datetime import datetime

    iso = text.strip().upper()
    with suppress(ValueError):
        local = None if iso.isdigit() else datetime.fromisoformat(iso)
        if local is not None and local.tzinfo is None:
            return local.isoformat()
    try:
        at = datetime.fromtimestamp(at_ms / 1000).astimezone()
    except (ValueError, OverflowError, OSError) as error:
        raise Rejected("bad_time", text=text) from error
    return at.isoformat(timespec="milliseconds" if at_ms % 1000 else "seconds")


def parse_past(text: str, now_ms: int) -> int:
    """Gives the Unix milliseconds of a time gone by: ``2h`` is two hours ago, or as `parse_moment` takes it."""
    if text[:1].isdigit() and text[-1:].isalpha() and "t" not in text.lower() and text[-1] not in "zZ":
        return now_ms - round(parse_duration(text) * 1000)
    return parse_moment(text, now_ms)


def parse_moment(text: str, now_ms: int) -> int:
    """Gives the Unix milliseconds of ``today``, ``yesterday``, ``now``, ISO 8601 (local where no zone stands), digits.

    Raises Rejected(`bad_time`) for what is none of these.
    """
    word = text.strip().lower()
    if word == "now":
        return now_ms
    if word in ("today", "yesterday"):
        day = time.localtime(now_ms / 1000)
        # mktime carries day 0 over to the month before, and -1 lets it find out about summer time.
        return (
            int(time.mktime((day.tm_year, day.tm_mon, day.tm_mday - (word == "yesterday"), 0, 0, 0, 0, 0, -1))) * 1000
        )
    if word.isascii() and word.isdigit() and int(word) >= _UNIX_MS_MIN:
        return int(word)
    from datetime import datetime

    try:
        return int(datetime.fromisoformat(text.strip().upper()).timestamp() * 1000)
    except (ValueError, OverflowError, OSError) as error:
        raise Rejected("bad_time", text=text) from error


def is_seq(text: str) -> bool:
    """Tells whether the text is a seq of the log and not a time."""
    return text.isascii() and text.isdigit() and int(text) < _UNIX_MS_MIN


def span(duration_ms: float) -> str:
    """Says a duration in its largest unit that tells enough: ``0.4 s``, ``12 s``, ``3 min``, ``2 h 5 min``, ``9 d``."""
    seconds = max(0.0, duration_ms / 1000)
    if seconds < 9.95:
        return f"{seconds:.1f} s" if seconds % 1 >= 0.05 else f"{seconds:.0f} s"
    if seconds < 60:
        return f"{int(seconds)} s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} d"


def distance(at_ms: int, now_ms: int) -> str:
    """Says how far a time is from now: ``3 min ago``, ``in 8 min``, ``now``."""
    if abs(at_ms - now_ms) < 1000:
        return "now"
    # Whole seconds: nobody reads a tenth of a second in "ago".
    away = span(abs(at_ms - now_ms) // 1000 * 1000)
    return f"in {away}" if at_ms > now_ms else f"{away} ago"


def stamp(at_ms: int) -> str:
    """Writes a time as local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_ms / 1000))
