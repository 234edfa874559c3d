"""Who asks, and how a task that they name is found."""

import re

from msgspec import Struct

from omnid.clock import is_uuid
from omnid.errors import Rejected
from omnid.model import USER_ORIGIN, Task
from omnid.store import journal
from omnid.store.interface import Reader

_SHORT = re.compile(r"(?:(?P<origin>.+)/)?t(?P<number>[1-9][0-9]{0,17})")
ORIGINS_MAX = 1000


class Caller(Struct, frozen=True):
    """Who is behind a request: a person or an agent, from which origin, in which session."""

    role: str = "person"
    origin: str = USER_ORIGIN
    session: str | None = None
    request_id: str | None = None
    """With `session` it makes a mutation repeatable: its answer is kept."""
    parent: str | None = None
    """The task from inside which the request comes."""


def find_task(reader: Reader, ref: str, origin: str) -> Task:
    """Finds a task by UUID, ``t7`` (of the caller's origin, else of the only one that has it), or ``origin/t7``.

    Raises Rejected(`unknown_task`, `ambiguous_task`).
    """
    task = None
    match = _SHORT.fullmatch(ref)
    if match is None:
        task = journal.task_by_id(reader, ref.lower()) if is_uuid(ref.lower()) else None
    elif match["origin"] is not None:
        task = _named(reader, match["origin"], match["number"])
    else:
        task = _named(reader, origin, match["number"]) or _only(reader, ref, match["number"])
    if task is None:
        hint = "" if match or is_uuid(ref.lower()) else " (a task is named t7, origin/t7, or by its UUID)"
        raise Rejected("unknown_task", task=ref, hint=hint)
    return task


def _named(reader: Reader, origin: str, number: str) -> Task | None:
    row = reader.one("task_by_name", origin, int(number))
    return None if row is None else journal.task_of(row)


def _only(reader: Reader, ref: str, number: str) -> Task | None:
    found: list[Task] = []
    origin = ""
    for _ in range(ORIGINS_MAX):
        row = reader.one("next_origin", origin)
        if row is None or row[0] is None:
            break
        origin = row[0]
        task = _named(reader, origin, number)
        if task is not None:
            found.append(task)
    if len(found) > 1:
        names = ", ".join(task.name for task in found[:5])
        raise Rejected("ambiguous_task", task=ref, candidates=names, example=found[0].name)
    return found[0] if found else None
