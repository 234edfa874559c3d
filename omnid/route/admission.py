"""How many tasks may start now, and which first. Pure."""

from collections.abc import Iterable, Mapping

from msgspec import Struct

from omnid.model import Gate, Task

LIMITS = ("login", "rate_limit")
"""Causes of gates that are half open once they are due: one task tries, and what becomes of it decides."""
SET_BACK_MS = 1000
"""A gate that closed further ahead than this was closed before the clock was set back: rather too early than late."""


class Load(Struct, frozen=True):
    """What an executor does now, and the most it may do at once (None: as much as the daemon)."""

    running: int
    concurrency: int | None


def room(loads: Mapping[str, Load], closed: frozenset[str], slots_free: int) -> dict[str, int]:
    """Gives for each executor with an open gate how many tasks may start on it now; `*` in `closed` closes all."""
    if slots_free <= 0 or "*" in closed:
        return {}
    free: dict[str, int] = {}
    for name, load in loads.items():
        if name in closed:
            continue
        here = slots_free if load.concurrency is None else min(slots_free, load.concurrency - load.running)
        if here > 0:
            free[name] = here
    return free


def first(candidates: Iterable[Task], slots_free: int) -> list[Task]:
    """Gives the tasks to start: strict priority, then the order of submission, at most `slots_free`."""
    return sorted(candidates, key=lambda task: (-task.priority, task.ord))[: max(0, slots_free)]


def is_ajar(gate: Gate, now_ms: int) -> bool:
    """Tells whether a task may try what a limit has closed."""
    if gate.cause not in LIMITS:
        return False
    return gate.wake_at_ms is None or gate.wake_at_ms <= now_ms or gate.closed_at_ms > now_ms + SET_BACK_MS
