"""Outages: from when to when something could not be used, written in the transaction that closes or opens its gate."""

from typing import Any

from omnid.model import Gate
from omnid.store.interface import OUTAGE, At, Reader, Row, Tx
from omnid.store.log import decode_heads
from omnid.store.schedules import fire

NOT_OUTAGES = frozenset({"paused", "hours"})
"""Causes of gates that people mean."""


CLIENT = "client"
"""The cause of outages whose subject is an origin; its gates close nothing."""
WORDS = {CLIENT: ("away", "back")}
"""What the events of an outage are called, where that isn't `down` and `up`."""


def _events(cause: str, subject: str, *, end: bool) -> tuple[str, str]:
    event = f"{cause}.{WORDS.get(cause, ('down', 'up'))[end]}"
    return event, f"{event}:{subject}"


def since_ms(reader: Reader, cause: str, subject: str) -> int | None:
    """Gives when the one that isn't over began; None where there is none."""
    row = _open(reader, cause, subject)
    return None if row is None else row[4]


def began(tx: Tx, gate: Gate, id: str, *, parked: int = 0, fires: bool = True) -> None:
    """Writes that it has begun, where it has not before; `parked`: how much work it concerns from the start.

    `fires`: whether that is an event for schedules.
    """
    if gate.cause in NOT_OUTAGES or _open(tx, gate.cause, gate.subject) is not None:
        return
    fields = {
        "cause": gate.cause,
        "subject": gate.subject,
        "began_at_ms": gate.closed_at_ms,
        "problem": gate.problem,
        "parked": parked or None,
    }
    tx.create(OUTAGE, id, fields)
    if fires:
        fire(tx, *_events(gate.cause, gate.subject, end=False))


def parked(tx: Tx, gate: Gate) -> None:
    """Counts an attempt that was parked by it."""
    row = _open(tx, gate.cause, gate.subject)
    if row is not None:
        _edit(tx, row, {"parked": (row[2] or 0) + 1})


def over(tx: Tx, cause: str, subject: str, *, waited: int = 0, fires: bool = True) -> None:
    """Writes that it is over, where there is one; `waited`: what waited for that beside what it has parked.

    `fires`: whether that is an event for schedules.
    """
    row = _open(tx, cause, subject)
    if row is not None:
        # All that was parked is free to go on now.
        parked = (row[2] or 0) + waited or row[2]
        _edit(tx, row, {"ended_at_ms": tx.now_ms, "parked": parked, "resumed": parked})
        if fires:
            fire(tx, *_events(cause, subject, end=True))


def left_behind(tx: Tx, cause: str, subject: str, *, since_ms: int, left: int) -> None:
    """Writes into the last outage that is over how much of what it has parked didn't go out before the next one.

    Nothing where that was over before `since_ms`.
    """
    row = tx.one("last_outage", cause, subject)
    if row is not None and row[4] >= since_ms:
        _edit(tx, row, {"resumed": max(0, (row[2] or 0) - left)})


def _open(reader: Reader, cause: str, subject: str) -> Row | None:
    return reader.one("open_outage", cause, subject)


def _edit(tx: Tx, row: Row, fields: dict[str, Any]) -> None:
    tx.edit(OUTAGE, row[1], At(row[0], decode_heads(row[3])), {n: v for n, v in fields.items() if v is not None})
