"""What is derived from the tables, compared with what it is derived from, page by page.

Each page is one consistent state, and so is what the rest of omnid writes: nothing has to be passed over.
"""

from collections.abc import Callable
from typing import Any

from omnid.states import TERMINAL
from omnid.store import journal
from omnid.store.interface import Reader, Row

PAGE_MAX = 1_000
LANES_MAX = 100

Cursor = tuple[Any, ...]
Found = tuple[list[str], Cursor | None]
"""What is wrong on a page, and where the next one begins (None: it was the last)."""
Check = Callable[[Reader, Cursor], Found]


def tasks(reader: Reader, after: Cursor) -> Found:
    """Looks for what a task should have: its place in the queue, its labels, and an edge for each that it waits for."""
    rows = reader.all("derive_page", *after, PAGE_MAX)
    found = [line for row in rows for line in _of_task(reader, row)]
    return found, (rows[-1][0],) if len(rows) == PAGE_MAX else None


def _of_task(reader: Reader, row: Row) -> list[str]:
    ord, id, state, _, labels, work, *_ = row
    found = [
        f"task {id} lacks its label {label} in the index"
        for label in journal.labels_of(labels)
        if reader.one("has_label", label, ord) is None
    ]
    wanted: set[str] = set() if state in TERMINAL or work is None else _open_before(reader, work)
    edges: set[str] = {edge[0] for edge in reader.all("dependencies_of", id)}
    # Of an end that not all have been told of yet, some edges are there and some are not.
    being_told = {before for before in wanted ^ edges if reader.one("cascade_of", before) is not None}
    wanted, edges = wanted - being_told, edges - being_told
    found += [f"task {id} has no edge to {before}, for which it waits" for before in sorted(wanted - edges)]
    found += [f"task {id} has an edge to {before}, for which it doesn't wait" for before in sorted(edges - wanted)]
    return found


def _open_before(reader: Reader, work: str) -> set[str]:
    """Gives the tasks that one with this work still waits for."""
    befores = (journal.task_by_id(reader, id) for id in journal.work_of(work).after)
    return {before.id for before in befores if before is not None and before.state != "completed"}


def labels(reader: Reader, after: Cursor) -> Found:
    """Looks for entries in the index of labels that no task has."""
    rows = reader.all("label_page", *after, PAGE_MAX)
    found = [
        f"the index has the label {row[0]} for {'no task' if row[2] is None else f'task {row[2]}, which lacks it'}"
        for row in rows
        if row[2] is None or row[0] not in journal.labels_of(row[3])
    ]
    return found, tuple(rows[-1][:2]) if len(rows) == PAGE_MAX else None


def dependencies(reader: Reader, after: Cursor) -> Found:
    """Looks for edges of tasks that aren't there; `tasks` looks at all others."""
    rows = reader.all("dependency_page", *after, PAGE_MAX)
    found = [f"an edge leads from {row[0]} to {row[1]}, which isn't there" for row in rows if row[2] is None]
    return found, tuple(rows[-1][:2]) if len(rows) == PAGE_MAX else None


def lanes(reader: Reader, after: Cursor) -> Found:
    """Looks for lanes of which the queue doesn't hold just what may start."""
    found: list[str] = []
    lane: str = after[0]
    for _ in range(LANES_MAX):
        row = reader.one("next_lane", lane)
        if row is None or row[0] is None:
            return found, None
        lane = row[0]
        if {one[0] for one in reader.all("lane_ready", lane)} != journal.lane_wanted(reader, lane):
            found.append(f"the queue doesn't hold what may start in lane {lane}")
    return found, (lane,)


CHECKS: tuple[tuple[Check, Cursor], ...] = ((tasks, (0,)), (labels, ("", 0)), (dependencies, ("", "")), (lanes, ("",)))
"""Every check, and where its first page begins."""


def queue(reader: Reader) -> list[str]:
    """Looks for tasks that the queue has forgotten, or still has though they don't wait for their start."""
    found: list[str] = []
    for query, what in (("idle_not_ready", "waits but is not in the queue"), ("ready_not_idle", "is in the queue")):
        found += [f"task {row[0]} {what}" for row in reader.all(query, PAGE_MAX)]
    return found
