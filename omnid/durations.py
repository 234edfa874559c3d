"""Durations as people write them. Standard library only."""

from omnid.errors import Rejected

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}


def parse_duration(text: str) -> float:
    """Gives the seconds of ``90s``, ``10m``, ``1h30m``, ``1.5h``, ``2d``; raises Rejected(`bad_time`) for others."""
    total_s, rest = 0.0, text.strip().lower()
    if not rest:
        raise Rejected("bad_time", text="(nothing)")
    while rest:
        digits = len(rest) - len(rest.lstrip("0123456789."))
        letters = len(rest[digits:]) - len(rest[digits:].lstrip("abcdefghijklmnopqrstuvwxyz"))
        number, unit, rest = rest[:digits], rest[digits : digits + letters], rest[digits + letters :]
        if unit not in _UNITS_S or number.count(".") > 1 or not number.strip("."):
            raise Rejected("bad_time", text=text)
        total_s += float(number) * _UNITS_S[unit]
    return total_s
