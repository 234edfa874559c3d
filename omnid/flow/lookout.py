"""Finds ready tasks that a runner elsewhere can take behind any number of those that none can take now.

Labels are in no index of what is ready, so it looks at one page in a transaction, and goes on there in the next: behind
what was looked at already, as long as no runner has room that could take something of it.
"""

from typing import NamedTuple

from omnid.model import Task
from omnid.route.runners import Seats
from omnid.store import journal
from omnid.store.interface import Row, Tx

FIRST_MAX = 256
"""How many tasks of an executor are always looked at from the first on."""
PAGE_MAX = 1_024
"""How many more of them one transaction looks at: about two milliseconds' worth."""
MEMORY = "lookout"


class Place(NamedTuple):
    """How far the ready tasks of an executor were looked at."""

    priority: int
    ord: int
    lacks: frozenset[frozenset[str]]
    """What the runners lack that had room; before this place is nothing for them. See `Seats.lacks`."""
    stirred: bool
    """Whether something has become ready meanwhile, perhaps before this place."""


class Found(NamedTuple):
    """What a look has brought."""

    tasks: list[Task]
    more: bool
    """Whether the next transaction is to look again."""


def look(tx: Tx, executor: str, seats: Seats, most: int) -> Found:
    """Gives up to `most` ready tasks that runners have room for, in order."""
    places: dict[str, Place] = tx.memory.setdefault(MEMORY, {})
    rows = tx.all("ready_tasks", executor, max(most, FIRST_MAX))
    tasks = [task for task in map(journal.task_of, rows) if seats.could(executor, task.labels)][:most]
    if len(rows) < max(most, FIRST_MAX) or len(tasks) == most:
        return Found(tasks, more=False)
    place, lacks = places.pop(executor, None), seats.lacks(executor)
    if place is None or not lacks <= place.lacks:
        last = journal.task_of(rows[-1])
        place = Place(last.priority, last.ord, lacks, stirred=False)
    else:
        place = place._replace(lacks=lacks, stirred=place.stirred or tx.stirred)
    rows, ahead = _page(tx, executor, place, seats, most - len(tasks))
    if ahead is not None:
        places[executor] = ahead
    return Found([*tasks, *map(journal.task_of, rows)], more=ahead is not None or place.stirred)


def _page(tx: Tx, executor: str, place: Place, seats: Seats, most: int) -> tuple[list[Row], Place | None]:
    """Gives the rows of what fits behind a place, and where it has stopped; None: that was all there is."""
    found: list[Row] = []
    left, fits = PAGE_MAX, dict[str | None, bool]()
    while True:
        rows = tx.all("ready_behind", executor, place.priority, place.ord, left)
        for ord, text in rows:
            if text not in fits:
                labels = journal.labels_of(text)
                held = seats.holds(executor, labels)
                fits[text] = not held and any(one.isdisjoint(labels) for one in place.lacks)
            place = place._replace(ord=ord)
            if fits[text]:
                found += tx.all("task_by_ord", ord)
                if len(found) == most:
                    return found, place
        left -= len(rows)
        if not left:
            return found, place
        below = tx.one("ready_priority_below", executor, place.priority)
        if below is None or below[0] is None:
            return found, None
        place = place._replace(priority=below[0], ord=-1)
