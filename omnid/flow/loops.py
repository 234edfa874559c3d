"""Stops what goes round in circles: the same paid input again and again, and tasks that submit tasks without end."""

from typing import NamedTuple

from omnid.errors import Rejected
from omnid.model import Problem, Task, short_name
from omnid.route.budget import Budget
from omnid.route.rights import UNBOUND, Rights
from omnid.settings import Agents
from omnid.store import journal
from omnid.store.interface import Reader, Tx

NAMED_MAX = 5


class Repeated(NamedTuple):
    """How often the same was asked for of late, and by which tasks."""

    often: int
    executor: str
    tasks: str
    seconds_s: float

    def problem(self) -> Problem:
        """Says it as the problem of the task that repeats it once more."""
        return Problem.of(self.refusal())

    def refusal(self) -> Rejected:
        """Says it as a refusal."""
        seconds_s = round(self.seconds_s)
        return Rejected("loop", count=self.often, executor=self.executor, tasks=self.tasks, seconds_s=seconds_s)


def repeated(
    reader: Reader, budget: Budget, executor: str, input_hash: str, now_ms: int, rights: Rights = UNBOUND
) -> Repeated | None:
    """Tells whether one more task with this input would be one too many; names none that `rights` don't show."""
    section = budget.config.budget
    since_ms = now_ms - round(section.repeats_s * 1000)
    rows = reader.all("earlier_same", input_hash, since_ms, section.repeats_max)
    if len(rows) < section.repeats_max:
        return None
    names = [short_name(*row) if rights.sees(row[0]) else "another task" for row in rows]
    more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
    return Repeated(len(rows), executor, ", ".join(names[:NAMED_MAX]) + more, section.repeats_s)


def check_retry(tx: Tx, budget: Budget, task: Task) -> None:
    """Raises Rejected(`loop`) where the task has cost money too often of late to be tried again without a person."""
    if task.executor not in budget.paid:
        return
    section = budget.config.budget
    since_ms = tx.now_ms - round(section.repeats_s * 1000)
    row = tx.one("count_calls_since", task.id, since_ms)
    count = row[0] if row else 0
    if count >= section.repeats_max:
        raise Repeated(count, task.executor, task.name, section.repeats_s).refusal()


def check_tree(reader: Reader, agents: Agents, parent_id: str) -> None:
    """Raises Rejected(`tree_too_deep`, `tree_too_wide`) where a task may not submit one more from inside it."""
    parent = journal.task_by_id(reader, parent_id)
    name = parent_id if parent is None else parent.name
    depth = 1
    above: str | None = parent_id
    while above is not None and depth <= agents.depth_max + 1:
        row = reader.one("parent_of", above)
        above = row[0] if row else None
        depth += above is not None
    if depth > agents.depth_max:
        raise Rejected("tree_too_deep", depth=depth, limit=agents.depth_max, parent=name)
    row = reader.one("count_children", parent_id)
    count = row[0] if row else 0
    if count >= agents.children_max:
        raise Rejected("tree_too_wide", count=count, limit=agents.children_max, parent=name)
