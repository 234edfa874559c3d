"""What is to be delivered: one bounded, ordered queue for each destination, and beside it what was given up.

A row is forgotten with its history once the other side has it, so the log holds what is still to be delivered and
nothing more. What fell out of a full queue is counted, because nobody would miss it otherwise.
"""

import sys
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from omnid.errors import Rejected
from omnid.model import Delivery, Problem
from omnid.store.interface import OUTBOX, At, Reader, Row, Tx
from omnid.store.journal import problem_of
from omnid.store.log import decode_heads

DROPPED = "outbox_dropped:"
"""The entries of the table `meta` that count what fell out, by destination."""
DESTINATIONS_MAX = 1_000


class Waiting(NamedTuple):
    """What one destination has before it."""

    destination: str
    rows: int
    dead: int
    dropped: int
    """How many fell out because there were too many, since the first start."""
    head: Delivery | None
    """The row that is delivered next."""


def delivery_of(row: Row) -> Delivery:
    """Makes a delivery of a row of the fragment `outbox_row`."""
    values = list(row)
    values[5] = msgspec.json.decode(row[5])
    values[7] = row[7] or 0
    values[10] = problem_of(row[10])
    values[11] = decode_heads(row[11])
    return Delivery(*values)


def put(
    tx: Tx, destination: str, kind: str, subject: str | None, body: Mapping[str, Any] | Struct, *, rows_max: int
) -> str:
    """Queues something and rings for its destination; beyond `rows_max` the oldest row goes. Gives the row's id."""
    oldest = pushed_out(tx, destination, rows_max)
    if oldest:
        tx.forget(OUTBOX, *(row[1] for row in oldest))
        _counted(tx, destination, -len(oldest))
        _count_dropped(tx, destination, len(oldest))
    id = f"{tx.stamp():x}-{sha256(f'{destination} {subject}'.encode()).hexdigest()[:12]}"
    fields = {"destination": destination, "kind": kind, "subject": subject, "body": body, "created_at_ms": tx.now_ms}
    tx.create(OUTBOX, id, fields)
    _counted(tx, destination, 1)
    tx.ring(destination)
    return id


def pushed_out(tx: Tx, destination: str, rows_max: int) -> list[Row]:
    """Gives the rows that make room for the next one, oldest first."""
    counts: dict[str, int] = tx.memory.setdefault("outbox", {})
    count = counts.get(destination)
    if count is None:
        row = tx.one("outbox_count", destination)
        count = counts[destination] = row[0] if row else 0
    return tx.all("outbox_next", destination, 0, count + 1 - rows_max) if count >= rows_max else []


def peek(reader: Reader, destination: str, limit: int, after: int = 0) -> list[Delivery]:
    """Gives what is delivered next, in order, behind the row of an `ord`."""
    return [delivery_of(row) for row in reader.all("outbox_next", destination, after, limit)]


def last(reader: Reader, destination: str) -> int | None:
    """Gives the `ord` of what is delivered last; None where nothing is queued."""
    row = reader.one("outbox_last", destination)
    return row[0] if row else None


def confirm(tx: Tx, ids: Sequence[str]) -> int:
    """Forgets rows that the other side has; gives how many there were."""
    if not ids:
        return 0
    places = tx.all("outbox_places", msgspec.json.encode(ids).decode())
    tx.forget(OUTBOX, *ids)
    for destination, is_queued, count in places:
        if is_queued:
            _counted(tx, destination, -count)
    return sum(count for _, _, count in places)


def postpone(tx: Tx, id: str, retry_at_ms: int, problem: Problem) -> bool:
    """Counts a try that failed, and notes when the next one is due; tells whether the row is still there."""
    delivery = _by_id(tx, id)
    if delivery is None or delivery.dead_at_ms is not None:
        return False
    fields = {"tries": delivery.tries + 1, "retry_at_ms": retry_at_ms, "problem": problem}
    tx.edit(OUTBOX, id, At(delivery.ord, delivery.heads), fields)
    return True


def bury(tx: Tx, id: str, problem: Problem, *, rows_max: int) -> bool:
    """Takes a row that can't be delivered out of the queue; beyond `rows_max` of them the oldest goes."""
    delivery = _by_id(tx, id)
    if delivery is None or delivery.dead_at_ms is not None:
        return False
    fields = {"tries": delivery.tries + 1, "retry_at_ms": None, "dead_at_ms": tx.now_ms, "problem": problem}
    tx.edit(OUTBOX, id, At(delivery.ord, delivery.heads), fields)
    _counted(tx, delivery.destination, -1)
    row = tx.one("outbox_dead_count", delivery.destination)
    surplus = row[0] - rows_max if row else 0
    if surplus > 0:
        tx.forget(OUTBOX, *(oldest for (oldest,) in tx.all("outbox_dead_oldest", delivery.destination, surplus)))
        _count_dropped(tx, delivery.destination, surplus)
    return True


def set_aside(
    tx: Tx, destination: str, kind: str, subject: str, body: dict[str, Any], problem: Problem, *, rows_max: int
) -> None:
    """Puts among the dead what the other side has refused; the last one of a subject takes the place of the others."""
    tx.forget(OUTBOX, *(id for (id,) in tx.all("outbox_dead_of", subject, destination)))
    # What waits there stays: only the dead are held to a number here.
    id = put(tx, destination, kind, subject, body, rows_max=sys.maxsize)
    bury(tx, id, problem, rows_max=rows_max)


def revive(tx: Tx, id: str) -> Delivery:
    """Puts a dead row back into its place in the queue; its time begins anew. Raises Rejected(`unknown_delivery`)."""
    delivery = need_dead(tx, id)
    fields = {"created_at_ms": tx.now_ms, "tries": None, "dead_at_ms": None, "problem": None}
    tx.edit(OUTBOX, id, At(delivery.ord, delivery.heads), fields)
    _counted(tx, delivery.destination, 1)
    tx.ring(delivery.destination)
    return delivery


def drop(tx: Tx, id: str) -> Delivery:
    """Forgets a dead row; raises Rejected(`unknown_delivery`)."""
    delivery = need_dead(tx, id)
    tx.forget(OUTBOX, delivery.id)
    return delivery


def need_dead(reader: Reader, id: str) -> Delivery:
    """Gives a dead row; raises Rejected(`unknown_delivery`)."""
    delivery = _by_id(reader, id)
    if delivery is None or delivery.dead_at_ms is None:
        raise Rejected("unknown_delivery", id=id)
    return delivery


def dead(reader: Reader, after: int, limit: int) -> list[Delivery]:
    """Gives dead rows whose `ord` comes after one, in order."""
    return [delivery_of(row) for row in reader.all("outbox_dead", after, limit)]


def is_queued(reader: Reader, subject: str) -> bool:
    """Tells whether something about a subject is still to be delivered."""
    return reader.one("outbox_of", subject) is not None


def destinations(reader: Reader, after: str = "") -> list[str]:
    """Gives the destinations for which something waits, in order, from behind a name on."""
    return _names(reader, "outbox_next_destination", after)


def waiting(reader: Reader) -> list[Waiting]:
    """Gives what waits, was given up, and fell out, by destination."""
    dropped = {row[0].removeprefix(DROPPED): int(row[1]) for row in reader.all("meta_like", DROPPED, f"{DROPPED}~")}
    names = {*destinations(reader), *_names(reader, "outbox_dead_next_destination"), *dropped}
    found: list[Waiting] = []
    for name in sorted(names):
        rows, given_up = (reader.one(query, name) for query in ("outbox_count", "outbox_dead_count"))
        head = next(iter(peek(reader, name, 1)), None)
        found.append(Waiting(name, rows[0] if rows else 0, given_up[0] if given_up else 0, dropped.get(name, 0), head))
    return found


def _names(reader: Reader, query: str, name: str = "") -> list[str]:
    found: list[str] = []
    while len(found) < DESTINATIONS_MAX:
        row = reader.one(query, name)
        if row is None or row[0] is None:
            break
        name = row[0]
        found.append(name)
    return found


def _by_id(reader: Reader, id: str) -> Delivery | None:
    row = reader.one("outbox_by_id", id)
    return None if row is None else delivery_of(row)


def _counted(tx: Tx, destination: str, change: int) -> None:
    counts: dict[str, int] = tx.memory.setdefault("outbox", {})
    if destination in counts:
        counts[destination] += change


def _count_dropped(tx: Tx, destination: str, count: int) -> None:
    row = tx.one("meta_one", f"{DROPPED}{destination}")
    before = int(row[0]) if row else 0
    tx.run("meta_set", f"{DROPPED}{destination}", str(before + count))
