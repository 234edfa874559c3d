"""Finds ready tasks that a runner elsewhere can take behind any number of those that none can take now.

Labels are in no index of what is ready, so it looks at one page in a transaction, and goes on there in the next: behind
what was looked at already, as long as no runner has room that could take something of it. What becomes ready meanwhile
before that place is looked for by a second search from the first on, side by side with the one that is far ahead.
"""

from collections.abc import Callable
from functools import cache
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

Fits = Callable[[str | None], bool]
"""Tells of the labels of a task, as they stand in its row, whether some runner can take it now."""


class Place(NamedTuple):
    """How far the ready tasks of an executor were looked at."""

    priority: int
    ord: int


class Search(NamedTuple):
    """A search through the ready tasks of an executor, which goes on in the next transaction."""

    far: Place
    lacks: frozenset[frozenset[str]]
    """What the runners lack that had room; before `far` is nothing for them. See `Seats.lacks`."""
    near: Place | None = None
    """How far the second search is; None: there is none."""
    stirred: bool = False
    """Whether something has become ready since the last search began, perhaps before `far`."""


class Found(NamedTuple):
    """What a look has brought."""

    tasks: list[Task]
    more: bool
    """Whether the next transaction is to look again."""


def stir(tx: Tx) -> None:
    """Hears that something may have become ready; to be told even where nobody looks in this transaction."""
    searches: dict[str, Search] = tx.memory.get(MEMORY, {})
    for executor, search in searches.items():
        searches[executor] = search._replace(stirred=True)


def look(tx: Tx, executor: str, seats: Seats, most: int) -> Found:
    """Gives up to `most` ready tasks that runners have room for, in order."""
    searches: dict[str, Search] = tx.memory.setdefault(MEMORY, {})
    rows = tx.all("ready_tasks", executor, max(most, FIRST_MAX))
    tasks = [task for task in map(journal.task_of, rows) if seats.could(executor, task.labels)][:most]
    if len(tasks) == most:
        return Found(tasks, more=False)
    search, lacks = searches.pop(executor, None), seats.lacks(executor)
    if len(rows) < max(most, FIRST_MAX):
        return Found(tasks, more=False)  # That was all there is.
    last = journal.task_of(rows[-1])
    begin = Place(last.priority, last.ord)
    if search is None or not lacks <= search.lacks:
        search = Search(begin, lacks)
    elif search.stirred and search.near is None:
        search = Search(search.far, lacks, begin)
    # What was before a place has gone meanwhile, where it is among the first now.
    search = search._replace(
        far=max(search.far, begin, key=_order), near=search.near and max(search.near, begin, key=_order)
    )
    fits = _fitting(executor, seats, lacks)
    rows, ahead = _pages(tx, executor, search._replace(lacks=lacks), fits, most - len(tasks))
    if ahead is not None:
        searches[executor] = ahead
    return Found([*tasks, *map(journal.task_of, rows)], more=ahead is not None or search.stirred)


def _fitting(executor: str, seats: Seats, lacks: frozenset[frozenset[str]]) -> Fits:
    @cache
    def fits(text: str | None) -> bool:
        labels = journal.labels_of(text)
        return not seats.holds(executor, labels) and any(one.isdisjoint(labels) for one in lacks)

    return fits


def _pages(tx: Tx, executor: str, search: Search, fits: Fits, most: int) -> tuple[list[Row], Search | None]:
    """Gives what fits of the next page, half of it near where there are two searches, and where they have stopped."""
    found: list[Row] = []
    near, left = search.near, PAGE_MAX
    if near is not None:
        left = PAGE_MAX // 2
        found, near = _page(tx, executor, near, fits, most, left=PAGE_MAX - left, until=search.far)
        if len(found) == most:
            return found, search._replace(near=near)
    rows, far = _page(tx, executor, search.far, fits, most - len(found), left=left)
    ends = far or near  # The one that is left goes on to the end by itself.
    return found + rows, ends and search._replace(far=ends, near=near if far else None)


def _page(
    tx: Tx, executor: str, place: Place, fits: Fits, most: int, *, left: int, until: Place | None = None
) -> tuple[list[Row], Place | None]:
    """Gives the rows of what fits between two places, and where it has stopped; None: that was all there is."""
    found: list[Row] = []
    while True:
        rows = tx.all("ready_behind", executor, place.priority, place.ord, left)
        for ord, text in rows:
            place = place._replace(ord=ord)
            if until is not None and _order(place) > _order(until):
                return found, None
            if fits(text):
                found += tx.all("task_by_ord", ord)
                if len(found) == most:
                    return found, place
        left -= len(rows)
        if not left:
            return found, place
        below = tx.one("ready_priority_below", executor, place.priority)
        if below is None or below[0] is None:
            return found, None
        place = Place(below[0], -1)


def _order(place: Place) -> tuple[int, int]:
    """Orders places as tasks are."""
    return -place.priority, place.ord
