"""Who asks, and how a task that they name is found."""

import re

from msgspec import Struct, structs

from omnid.clock import is_uuid
from omnid.errors import Rejected
from omnid.model import USER_ORIGIN, Task
from omnid.route.rights import UNBOUND, Rights, rights_of
from omnid.settings import Config
from omnid.store import journal
from omnid.store.interface import Reader

_SHORT = re.compile(r"(?:(?P<origin>.+)/)?t(?P<number>[1-9][0-9]{0,17})")
ORIGINS_MAX = 1000
ABOVE_MAX = 100


class Caller(Struct, frozen=True):
    """Who is behind a request: a person or an agent, from which origin, in which session."""

    role: str = "person"
    origin: str = USER_ORIGIN
    session: str | None = None
    request_id: str | None = None
    """With `session` it makes a mutation repeatable: its answer is kept."""
    parent: str | None = None
    """The task from inside which the request comes."""
    above: tuple[str, ...] = ()
    """The origins of that task and of those above it: what comes from inside may do no more than they."""
    read_only: bool = False
    """Whether it asked to change nothing, its inbox neither."""
    rights: Rights = UNBOUND
    """What the config lets it do: see `entitled`, which comes before anything else for what an agent asks."""

    def sees(self, task: Task) -> bool:
        """Tells whether the caller may know of a task."""
        return self.rights.sees(task.origin, task.labels)


def entitled(caller: Caller, config: Config) -> Caller:
    """Gives a caller the rights that the config lets it have; a person's have no bounds."""
    if caller.role == "person":
        return caller
    rights = rights_of(config.origin, caller.origin)
    for origin in caller.above:
        rights = rights.within(rights_of(config.origin, origin))
    return structs.replace(caller, rights=rights)


def find_task(reader: Reader, ref: str, caller: Caller) -> Task:
    """Finds a task by UUID, ``t7`` (of the caller's origin, else of the only one that has it), or ``origin/t7``.

    A task that the caller doesn't see is one that isn't there. Raises Rejected(`unknown_task`, `ambiguous_task`).
    """
    task = None
    match = _SHORT.fullmatch(ref)
    if match is None:
        task = journal.task_by_id(reader, ref.lower()) if is_uuid(ref.lower()) else None
    elif match["origin"] is not None:
        task = _named(reader, match["origin"], match["number"])
    else:
        task = _named(reader, caller.origin, match["number"]) or _only(reader, ref, match["number"], caller)
    if task is None or not caller.sees(task):
        hint = "" if match or is_uuid(ref.lower()) else " (a task is named t7, origin/t7, or by its UUID)"
        raise Rejected("unknown_task", task=ref, hint=hint)
    return task


def origins_above(reader: Reader, task_id: str) -> tuple[str, ...]:
    """Gives the origins of a task and of those from inside which it was submitted, each once."""
    found: dict[str, None] = {}
    above: str | None = task_id
    for _ in range(ABOVE_MAX):
        row = None if above is None else reader.one("parent_of", above)
        if row is None:
            break
        above = row[0]
        found[row[1]] = None
    return tuple(found)


def _named(reader: Reader, origin: str, number: str) -> Task | None:
    row = reader.one("task_by_name", origin, int(number))
    return None if row is None else journal.task_of(row)


def _only(reader: Reader, ref: str, number: str, caller: Caller) -> Task | None:
    found: list[Task] = []
    origin = ""
    for _ in range(ORIGINS_MAX):
        row = reader.one("next_origin", origin)
        if row is None or row[0] is None:
            break
        origin = row[0]
        task = _named(reader, origin, number)
        if task is not None and caller.sees(task):
            found.append(task)
    if len(found) > 1:
        names = ", ".join(task.name for task in found[:5])
        raise Rejected("ambiguous_task", task=ref, candidates=names, example=found[0].name)
    return found[0] if found else None
