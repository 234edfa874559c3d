"""What happens to tasks that wait for another: they become ready when it succeeds, and fail when it does."""

from omnid.errors import Rejected
from omnid.model import Problem, Task
from omnid.states import TERMINAL, Facts, advance, own_wait
from omnid.store import journal
from omnid.store.interface import Tx
from omnid.times import Window

CASCADE_MAX = 20
"""How many tasks a transaction on the event loop settles; the timer settles the rest in larger batches."""
CASCADE_BULK_MAX = 500


def settle_dependents(tx: Tx, task_id: str, limit: int = CASCADE_MAX) -> list[str]:
    """Settles those that wait for this task and, where they fail, those that wait for them; gives what changed.

    What is left over `limit` is written down for `settle_leftovers`.
    """
    touched: list[str] = []
    ended = [task_id]
    while ended:
        before_id = ended.pop()
        room = limit - len(touched)
        rows = tx.all("dependents", before_id, room + 1)
        before = journal.task_by_id(tx, before_id) if rows else None
        if before is None or before.finished_at_ms is None:
            continue
        if len(rows) > room:
            tx.run("add_cascade", before_id)
        for (dependent_id,) in rows[:room]:
            tx.run("drop_dependency", before.id, dependent_id)
            dependent = journal.task_by_id(tx, dependent_id)
            if dependent is None or dependent.finished_at_ms is not None:
                continue
            touched.append(dependent_id)
            if _settle(tx, dependent, before).finished_at_ms is not None:
                ended.append(dependent_id)
    return touched


def settle_leftovers(tx: Tx) -> list[str]:
    """Settles what cascades left over their limit; gives what changed, and nothing when all is settled."""
    touched: list[str] = []
    for (after_id,) in tx.all("cascades", CASCADE_BULK_MAX):
        tx.run("drop_cascade", after_id)
        touched += settle_dependents(tx, after_id, CASCADE_BULK_MAX - len(touched))
        if len(touched) >= CASCADE_BULK_MAX:
            break
    return touched


def _settle(tx: Tx, dependent: Task, before: Task) -> Task:
    if before.state == "completed":
        return settle_wait(tx, dependent)
    if dependent.state not in ("idle", "waiting"):
        return dependent
    problem = Problem.make("dependency_failed", task=dependent.name, after=before.name, state=before.state)
    return give_up(tx, dependent, problem)


def wait_again(tx: Tx, task: Task) -> None:
    """Puts back what an ended task waits for, so that it can be run again.

    Raises Rejected(`dependency_failed`) where a task that must succeed first has failed or was cancelled.
    """
    for before_id in task.work.after:
        before = journal.task_by_id(tx, before_id)
        if before is None or before.state == "completed":
            continue
        if before.state in TERMINAL:
            raise Rejected("dependency_failed", task=task.name, after=before.name, state=before.state)
        tx.run("add_dependency", before.id, task.id)


def give_up(tx: Tx, task: Task, problem: Problem) -> Task:
    """Fails a task that isn't running; the caller settles its dependents."""
    tx.run("drop_dependencies_of", task.id)
    fields = {"problem": problem, "finished_at_ms": tx.now_ms, "reason": None, "wake_at_ms": None}
    return journal.advance_task(tx, task, "give_up", **fields)


def opens_ms(tx: Tx, only: str | None) -> int | None:
    """Gives when the hours of a task begin next, or None where it has none."""
    return None if only is None else Window.parse(only).opens_ms(tx.now_ms, tx.zone)


def settle_wait(tx: Tx, task: Task) -> Task:
    """Decides anew whether an idle or waiting task waits for a reason of its own, and writes what changed."""
    if task.state not in ("idle", "waiting"):
        return task
    row = tx.one("count_dependencies", task.id)
    wait = own_wait(
        Facts(
            tx.now_ms,
            task.paused,
            task.approval,
            row[0] if row else 0,
            task.not_before_ms,
            task.retry_at_ms,
            opens_ms(tx, task.work.only),
            task.budget_at_ms,
        )
    )
    if wait is None:
        if task.state == "idle":
            return task
        return journal.edit_task(tx, task, state=advance("waiting", "release"), reason=None, wake_at_ms=None)
    return journal.edit_task(
        tx, task, state=advance(task.state, "hold"), reason=wait.reason, wake_at_ms=wait.wake_at_ms
    )
