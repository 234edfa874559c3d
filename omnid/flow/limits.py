"""Limits that attempts run into: their gates close in the transaction of the result, and one task tries when they lift.

A closed gate of this kind is half open once it is due: one task probes, and what becomes of it opens the gate or moves
it on. What started before the gate closed is no probe.
"""

from typing import NamedTuple

from omnid.flow import notify, outages
from omnid.flow.turned import Turned
from omnid.model import Gate, Park, Result
from omnid.route.admission import LIMITS, is_ajar
from omnid.settings import Config
from omnid.store import journal
from omnid.store.interface import Row, Tx

UNSAID_S, SOON_S, WAIT_S_MAX = 900.0, 15.0, 3600.0
"""The wait where no time was said, the one after a time that had passed already, and the most that they double to."""
PROVEN_MS = 300_000
"""How long a task may try while the others wait: one that runs for so long has got through."""
PROVES = frozenset({"success", "failure", "timeout", "rejected"})
"""Outcomes of a probe which show that the limit is over, though it may have failed for a reason of its own."""


class Doors(NamedTuple):
    """Executors on which nothing starts, and those on which one task may try."""

    closed: frozenset[str]
    ajar: frozenset[str]


def doors(tx: Tx) -> Doors:
    """Says where something may start, as of this transaction."""
    closed: set[str] = set()
    due: dict[str, int] = {}
    for row in tx.all("gates"):
        gate = journal.gate_of(row)
        if gate.cause == "link":
            continue  # It closes no executor of its own.
        if is_ajar(gate, tx.now_ms):
            due[gate.subject] = max(due.get(gate.subject, 0), row[8])
        else:
            closed.add(gate.subject)
    ajar: set[str] = set()
    for subject, ord in due.items():
        row = tx.one("attempt_since", ord, subject)
        since_ms: int | None = None if row is None else row[0]
        if since_ms is None:
            ajar.add(subject)
        elif since_ms > tx.now_ms - PROVEN_MS:
            closed.add(subject)
    return Doors(frozenset(closed), frozenset(ajar))


def settle(tx: Tx, result: Result, head: Row, config: Config, turned: Turned) -> None:
    """Closes, moves or opens the gates of the executor of an attempt that ends; `head` is its row `attempt_head`.

    `turned` takes that down.
    """
    executor: str = head[8]
    if result.outcome == "parked" and result.park is not None and result.park.cause in LIMITS:
        gate = _close(tx, result, result.park, executor, head[0], config)
        turned.closed[gate.id] = gate
    elif result.park is not None and result.park.cause == "cloud":
        outages.parked(tx, Gate(f"cloud:{executor}", "cloud", executor, tx.now_ms, None))
    elif result.outcome in PROVES and executor in _limited(tx):
        turned.opened.update(_open_proved(tx, executor, head[0], config))


def open_limits(tx: Tx, executor: str, config: Config) -> tuple[str, ...]:
    """Opens the executor's gates of this kind, and gives their ids."""
    opened = tuple(id for cause in LIMITS if journal.open_gate(tx, id := f"{cause}:{executor}"))
    _limited(tx).discard(executor)
    for id in opened:
        outages.over(tx, id.partition(":")[0], executor)
        notify.tell(tx, config, "limit_over", executor)
    return opened


def _close(tx: Tx, result: Result, park: Park, executor: str, ord: int, config: Config) -> Gate:
    id = f"{park.cause}:{executor}"
    row = tx.one("gate_by_id", id)
    known = None if row is None else journal.gate_of(row)
    is_probe = row is not None and ord > row[8]
    gate = moved(known, park, tx.now_ms, is_probe=is_probe)
    gate = Gate(id, park.cause, executor, gate.closed_at_ms, gate.wake_at_ms, result.problem, gate.failures)
    journal.close_gate(tx, gate)
    _limited(tx).add(executor)
    if known is None:
        outages.began(tx, gate, result.attempt_id)
        said = "" if result.problem is None else result.problem.what
        notify.tell(tx, config, "needs_you" if park.cause == "login" else "limit", executor, said=said)
    outages.parked(tx, gate)
    return gate


def _limited(tx: Tx) -> set[str]:
    """Gives the executors with a closed gate of this kind; every result asks, so that it is kept in memory."""
    known: set[str] | None = tx.memory.get("limited")
    if known is None:
        known = tx.memory["limited"] = {row[2] for row in tx.all("gates") if row[1] in LIMITS}
    return known


def moved(known: Gate | None, park: Park, now_ms: int, *, is_probe: bool) -> Gate:
    """Says when a gate is due after one more attempt was parked. Pure.

    Those that were under way when it closed tell nothing new: only a probe makes the wait longer.
    """
    if known is None:
        return Gate("", park.cause, "", now_ms, _wake_ms(park, 1, now_ms), None, 1)
    failures = known.failures + 1 if is_probe else max(1, known.failures)
    wake_at_ms = _wake_ms(park, failures, now_ms)
    if not is_probe and known.wake_at_ms is not None:
        wake_at_ms = known.wake_at_ms if park.wake_at_ms is None else max(wake_at_ms, known.wake_at_ms)
    return Gate("", park.cause, "", min(known.closed_at_ms, now_ms), wake_at_ms, None, failures)


def _wake_ms(park: Park, failures: int, now_ms: int) -> int:
    base_s = UNSAID_S if park.wake_at_ms is None else SOON_S
    wait_s = min(WAIT_S_MAX, base_s * 2.0 ** min(failures - 1, 30))
    if park.wake_at_ms is None:
        return now_ms + round(wait_s * 1000)
    # A time that was said holds, unless it has passed or was said before and did not hold.
    least_s = wait_s if failures > 1 or park.wake_at_ms <= now_ms else 0.0
    return max(park.wake_at_ms, now_ms + round(least_s * 1000))


def _open_proved(tx: Tx, executor: str, ord: int, config: Config) -> tuple[str, ...]:
    """Opens the gates behind which the attempt started: it got through."""
    rows = [tx.one("gate_by_id", f"{cause}:{executor}") for cause in LIMITS]
    if not any(row is not None and ord > row[8] for row in rows):
        return ()
    return open_limits(tx, executor, config)
