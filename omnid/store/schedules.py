"""Schedules in the journal. A row is written anew when it changes, so the log holds what it is and not all its runs."""

import msgspec
from msgspec.structs import replace

from omnid.errors import Rejected
from omnid.model import Schedule, Scheduled
from omnid.store.interface import SCHEDULE, Reader, Row, Tx
from omnid.store.journal import problem_of

RUNG = "schedules"
"""The name that a transaction rings when it made a schedule due."""
COUNT_MAX = 10_000
"""More than any config allows."""


def scheduled_of(row: Row) -> Scheduled:
    """Makes a schedule of a row of the fragment `schedule_row`."""
    ord, id, name, origin, role, schedule, task, params, enabled, created, due, last, last_task, runs, skipped, why = (
        row
    )
    return Scheduled(
        id=id,
        name=name,
        origin=origin,
        role=role,
        schedule=msgspec.json.decode(schedule, type=Schedule),
        task=msgspec.json.decode(task),
        params=msgspec.json.decode(params) if params else {},
        enabled=bool(enabled),
        created_at_ms=created,
        next_at_ms=due,
        last_at_ms=last,
        last_task=last_task,
        runs=runs or 0,
        skipped=skipped or 0,
        problem=problem_of(why),
        ord=ord,
    )


def put(tx: Tx, scheduled: Scheduled) -> None:
    """Writes a schedule, in the place of one with its id."""
    if tx.one("heads_schedule", scheduled.id) is not None:
        tx.forget(SCHEDULE, scheduled.id)
    events = scheduled.schedule.on
    fields = {
        "name": scheduled.name,
        "origin": scheduled.origin,
        "role": scheduled.role,
        "schedule": scheduled.schedule,
        "task": scheduled.task,
        "params": scheduled.params or None,
        "events": " ".join(events) or None,
        "enabled": 1 if scheduled.enabled else None,
        "created_at_ms": scheduled.created_at_ms,
        "next_at_ms": scheduled.next_at_ms,
        "last_at_ms": scheduled.last_at_ms,
        "last_task": scheduled.last_task,
        "runs": scheduled.runs or None,
        "skipped": scheduled.skipped or None,
        "problem": scheduled.problem,
    }
    tx.create(SCHEDULE, scheduled.id, {name: value for name, value in fields.items() if value is not None})


def remove(tx: Tx, scheduled: Scheduled) -> None:
    """Takes a schedule out; its tasks stay."""
    tx.forget(SCHEDULE, scheduled.id)


def find(reader: Reader, name: str) -> Scheduled | None:
    """Gives the schedule of that name, or None."""
    row = reader.one("schedule_by_name", name)
    return None if row is None else scheduled_of(row)


def need(reader: Reader, name: str) -> Scheduled:
    """Gives the schedule of that name; raises Rejected(`unknown_schedule`)."""
    found = find(reader, name)
    if found is None:
        raise Rejected("unknown_schedule", schedule=name)
    return found


def page(reader: Reader, after: str, limit: int) -> list[Scheduled]:
    """Gives schedules by name, from behind a name on."""
    return [scheduled_of(row) for row in reader.all("schedules_page", after, limit)]


def of_origin(reader: Reader, origin: str, limit: int) -> list[Scheduled]:
    """Gives the schedules of an origin, by name."""
    return [scheduled_of(row) for row in reader.all("schedules_of", origin, limit)]


def due(reader: Reader, now_ms: int, limit: int) -> list[Scheduled]:
    """Gives those whose time has come, the oldest first."""
    return [scheduled_of(row) for row in reader.all("schedules_due", now_ms, limit)]


def next_at_ms(reader: Reader) -> int | None:
    """Gives when the next one is due."""
    row = reader.one("schedule_next")
    return None if row is None else row[0]


def count(reader: Reader) -> int:
    """Counts all schedules."""
    row = reader.one("schedule_count")
    return row[0] if row else 0


def fire(tx: Tx, *events: str) -> None:
    """Makes those due that one of the events sets going, in the transaction that the event is written in."""
    rows = tx.all("schedules_on", COUNT_MAX)
    found = [one for one in map(scheduled_of, rows) if not set(events).isdisjoint(one.schedule.on)]
    for scheduled in found:
        due_ms = tx.now_ms if scheduled.next_at_ms is None else min(tx.now_ms, scheduled.next_at_ms)
        put(tx, replace(scheduled, next_at_ms=due_ms))
    if found:
        tx.ring(RUNG)
