"""What a task was asked, what became of it and what it cost, with a hash over its entries in the log."""

from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import NamedTuple

from omnid.executor.interface import CHANGES
from omnid.model import Attempt, Task
from omnid.store import journal
from omnid.store.interface import Reader, Row

ATTEMPTS_MAX = 1_000
ENTRIES_MAX = 100_000
"""More entries than a task with the most attempts, notes and calls can have."""


class Facts(NamedTuple):
    """What a receipt is made of, as the journal has it."""

    task: Task
    attempts: list[Attempt]
    """The oldest first."""
    restarts: Mapping[str, int]
    """By attempt: how many starts of the daemon it has outlived."""
    reserved_microusd: int
    """Of calls whose cost isn't known: they may have cost as much."""
    spent_microusd: int
    calls: int
    unknown: int
    """Calls that have ended and whose cost nobody knows."""
    changes: str | None
    """What the last attempt that worked in a workspace left there; see `executor.interface.CHANGES`."""
    entries: int
    sha256: str
    """Over the task's entries in the log, in order; see `digest`."""


def gather(reader: Reader, task: Task) -> Facts:
    """Reads all that the journal knows of a task."""
    attempts = [journal.attempt_of(row) for row in reader.all("attempts_of", task.id, ATTEMPTS_MAX)][::-1]
    calls = reader.all("calls_of_task", task.id)
    entries = list(_entries(reader, task, attempts, [row[0] for row in calls]))
    open_or_unknown = [row for row in calls if row[2] is None]
    return Facts(
        task=task,
        attempts=attempts,
        restarts=_restarts(entries),
        reserved_microusd=sum(row[1] for row in open_or_unknown),
        spent_microusd=sum(row[2] or 0 for row in calls),
        calls=len(calls),
        unknown=sum(row[3] is not None for row in open_or_unknown),
        changes=_changes(reader, attempts),
        entries=len(entries),
        sha256=digest(entries),
    )


def _changes(reader: Reader, attempts: list[Attempt]) -> str | None:
    for attempt in reversed(attempts):
        notes = journal.notes(reader, attempt.id, CHANGES)
        if notes:
            return notes[-1]
    return None


def digest(entries: Iterable[Row]) -> str:
    """Gives the SHA-256 of entries: for each a line of its eight fields, as the log holds them, with tabs between.

    The fields are seq, hlc, node (its UUID), incarnation, collection, id, kind and body.
    """
    total = sha256()
    for row in entries:
        total.update("\t".join(str(field) for field in row[:8]).encode() + b"\n")
    return total.hexdigest()


def _entries(reader: Reader, task: Task, attempts: list[Attempt], calls: list[str]) -> list[Row]:
    rows = reader.all("changes_of", "task", task.id, 0, ENTRIES_MAX)
    for attempt in attempts:
        rows += reader.all("changes_of", "attempt", attempt.id, 0, ENTRIES_MAX)
        for (note_id,) in reader.all("note_ids", attempt.id):
            rows += reader.all("changes_of", "note", note_id, 0, ENTRIES_MAX)
    for call_id in calls:
        rows += reader.all("changes_of", "call", call_id, 0, ENTRIES_MAX)
    return sorted(rows, key=_seq)


def _seq(row: Row) -> int:
    return row[0]


def _restarts(entries: Iterable[Row]) -> dict[str, int]:
    """Counts, for each attempt, the starts of the daemon between its first entry and its last."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for row in entries:
        if row[4] == "attempt":
            first.setdefault(row[5], row[3])
            last[row[5]] = row[3]
    return {attempt: last[attempt] - first[attempt] for attempt in first}
