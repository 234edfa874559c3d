"""Dollars as people write them and as they are kept (millionths, whole numbers), and what calls are added up by.

Standard library only.
"""

from collections.abc import Iterable

ALL = "all"
"""The scope that holds every call."""
MICRO = 1_000_000
_CENT = 10_000


def micro(usd: float) -> int:
    """Gives the microdollars of an amount in dollars."""
    return round(usd * MICRO)


def dollars(microusd: int) -> str:
    """Writes an amount: ``$1.84``; one below a cent as exactly as it is (``$0.0042``)."""
    if 0 < abs(microusd) < _CENT:
        return f"${microusd / MICRO:.6f}".rstrip("0")
    return f"${microusd / MICRO:,.2f}"


def scopes_of(executor: str, labels: Iterable[str], model: str | None = None, origin: str | None = None) -> list[str]:
    """Gives the scopes that a call counts in."""
    found = [ALL, f"executor:{executor}", *(f"label:{label}" for label in dict.fromkeys(labels))]
    if model is not None:
        found.append(f"model:{model}")
    return found if origin is None else [*found, origin_scope(origin)]


def origin_scope(origin: str) -> str:
    """Gives the scope of the calls for one origin's tasks."""
    return f"origin:{origin}"
