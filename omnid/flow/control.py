"""What people and agents do with tasks that are there: cancel, retry, resolve, approve, and the rest."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from msgspec import structs

from omnid.errors import Rejected
from omnid.flow import loops
from omnid.flow.answers import action_of, read_answer, take_code
from omnid.flow.caller import Caller, find_task
from omnid.flow.commands import recall_last, recall_uncertain
from omnid.flow.context import Context
from omnid.flow.dependents import give_up, settle_dependents, settle_wait, wait_again
from omnid.flow.fleet import queue_of
from omnid.flow.intake import granted, needs_approval, permit_id, title_of
from omnid.model import Problem, Task, Work
from omnid.route.router import choose, executor_closed
from omnid.route.rules import Asked
from omnid.states import RUNNING, TERMINAL, advance
from omnid.store import journal
from omnid.store.interface import PERMIT, TASK, At, Tx, tally_key
from omnid.store.log import decode_heads

AGENT_ACTIONS = frozenset({"cancel", "retry", "pause", "resume", "priority", "reply"})
"""What an agent may do; the rest is a person's to decide. A `reply` passes on what a person said, with its code.

Its rights in the config may add `complete`.
"""


class Order(NamedTuple):
    """What is to be done with a task; see `api.shapes.Control`."""

    ref: str
    action: str
    executor: str | None = None
    assignee: str | None = None
    priority: int | None = None
    output: str | None = None
    always: bool = False
    text: str | None = None
    cost_max_usd: float | None = None


class Effect(NamedTuple):
    """What a control did, for what must happen after its commit."""

    task_id: str
    touched: list[str]
    cancel_attempt: str | None = None
    gone_attempts: tuple[str, ...] = ()


class Case(NamedTuple):
    """An order with all that its carrying out needs, inside its transaction."""

    tx: Tx
    context: Context
    caller: Caller
    task: Task
    order: Order


class Cancelling:
    """Asks the executors of running attempts to end them."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def end_attempt(self, attempt_id: str) -> None:
        """Asks the executor of an open attempt to end it; its result comes by the usual way.

        A runner was told by the transaction that decided so; what has not gone out to it ends here.
        """
        context = self._context
        runner = context.fleet.where(attempt_id)
        if runner is not None:
            context.fleet.withdraw(attempt_id)
            if context.fleet.is_withdrawn(attempt_id):
                await context.store.write(lambda tx: tx.ring(queue_of(runner)))
            return
        context.ask_cancel(attempt_id)
        executor = context.active.get(attempt_id)
        if executor is not None:
            await executor.cancel(attempt_id)

    async def end_attempt_of(self, task_id: str) -> None:
        """Asks for the end of a task's current attempt."""
        attempt_id = await self._context.store.write(partial(_recall, task_id=task_id))
        if attempt_id is not None:
            await self.end_attempt(attempt_id)


def _recall(tx: Tx, *, task_id: str) -> str | None:
    task = journal.task_by_id(tx, task_id)
    return None if task is None or task.state not in RUNNING else recall_last(tx, task)


def order(context: Context, caller: Caller, what: Order) -> Callable[[Tx], Effect]:
    """Checks an order and gives the function that carries it out in a transaction.

    Raises Rejected(`not_allowed`) here; the function raises Rejected for an unknown task or a state that forbids it.
    """
    may = what.action in AGENT_ACTIONS or (what.action == "complete" and caller.rights.complete)
    if caller.role == "agent" and not may:
        raise Rejected("not_allowed", method=f"task_control with the action {what.action}", role="agent")
    return partial(_carry_out, context=context, caller=caller, what=what)


def _carry_out(tx: Tx, *, context: Context, caller: Caller, what: Order) -> Effect:
    task = find_task(tx, what.ref, caller)
    if caller.role == "agent" and task.origin != caller.origin:
        raise Rejected("other_origin", task=task.name, origin=caller.origin, action=what.action)
    return _ACTIONS[what.action](Case(tx, context, caller, task, what))


def _refuse(task: Task, event: str, why: str, remedy: str) -> Rejected:
    return Rejected("not_in_state", task=task.name, state=task.state, event=event, why=why, remedy=remedy)


def _cancel(case: Case) -> Effect:
    tx, task = case.tx, case.task
    if task.state in TERMINAL:
        raise _refuse(task, "cancel", "It has ended already.", "`omnictl rm` deletes it")
    if task.state in RUNNING:
        journal.edit_task(tx, task, cancel=True)
        return Effect(task.id, [task.id], recall_last(tx, task))
    recall_uncertain(tx, task)
    tx.run("drop_dependencies_of", task.id)
    journal.advance_task(tx, task, "cancel", finished_at_ms=tx.now_ms, reason=None, wake_at_ms=None, cancel=True)
    return Effect(task.id, [task.id, *settle_dependents(tx, task.id)])


def _retry(case: Case) -> Effect:
    tx, task = case.tx, case.task
    if task.state == "waiting" and task.reason == "backoff":
        settle_wait(tx, journal.edit_task(tx, task, retry_at_ms=None))
        return Effect(task.id, [task.id])
    if task.state not in ("failed", "cancelled"):
        why = "Only a task that failed or was cancelled is run again."
        raise _refuse(task, "retry", why, "`omnictl add` submits a new one")
    closed = case.caller.rights.needs(task.executor, task.work)
    if closed is not None:
        raise executor_closed(closed, case.caller.rights)
    wait_again(tx, task)
    approval = task.approval
    if case.caller.role == "agent":
        loops.check_retry(tx, case.context.budget, task)
    asks = needs_approval(case.caller.role, task.executor, task.work, case.context.config)
    if approval == "denied" or (asks and approval is None):
        approval = "needed"
    revived = journal.advance_task(
        tx,
        task,
        "retry",
        finished_at_ms=None,
        failures=0,
        cancel=False,
        problem=None,
        retry_at_ms=None,
        budget_at_ms=None,
        deadline_ms=None if task.deadline_ms is not None and task.deadline_ms <= tx.now_ms else task.deadline_ms,
        approval=approval,
    )
    settle_wait(tx, revived)
    return Effect(task.id, [task.id])


def _pause(case: Case) -> Effect:
    tx, task = case.tx, case.task
    if task.state not in ("idle", "waiting"):
        raise _refuse(task, "pause", "Only a task that hasn't started can be paused.", "`omnictl cancel` ends it")
    settle_wait(tx, journal.edit_task(tx, task, paused=True))
    return Effect(task.id, [task.id])


def _resume(case: Case) -> Effect:
    tx, task = case.tx, case.task
    if not task.paused:
        raise _refuse(task, "resume", "It isn't paused.", "`omnictl why` says what it waits for")
    settle_wait(tx, journal.edit_task(tx, task, paused=False))
    return Effect(task.id, [task.id])


def _priority(case: Case) -> Effect:
    tx, task = case.tx, case.task
    if case.order.priority is None:
        raise Rejected("bad_request", detail="the action priority needs `priority`", where="the parameters")
    if task.state in TERMINAL:
        raise _refuse(task, "priority", "It has ended already.", "nothing needs to be done")
    journal.edit_task(tx, task, priority=case.order.priority)
    return Effect(task.id, [task.id])


def _budget(case: Case) -> Effect:
    """Sets the task's own lid anew; a task that waits because it was used up goes on."""
    tx, task = case.tx, case.task
    if case.order.cost_max_usd is None:
        raise Rejected("bad_request", detail="the action budget needs `cost_max_usd`", where="the parameters")
    if task.state in TERMINAL:
        raise _refuse(task, "budget", "It has ended already.", "`omnictl retry` runs it again")
    work = structs.replace(task.work, cost_max_usd=case.order.cost_max_usd)
    settle_wait(tx, journal.edit_task(tx, task, work=work, budget_at_ms=None))
    return Effect(task.id, [task.id])


def _finish(case: Case) -> Effect:
    """Ends a task by hand as completed: `complete`, and `done` for an uncertain one."""
    tx, task = case.tx, case.task
    if case.order.action == "done" and task.state != "uncertain":
        raise _refuse(task, "done", "Only an uncertain task is resolved.", "`omnictl complete` ends others by hand")
    if task.state in RUNNING:
        raise _refuse(task, "complete", "Its attempt still runs.", "cancel it first, then complete it")
    if task.state == "completed":
        raise _refuse(task, "complete", "It is done already.", "nothing needs to be done")
    recall_uncertain(tx, task)
    tx.run("drop_dependencies_of", task.id)
    text = case.order.output or "finished by hand"
    if task.attempt:
        head = tx.one("attempt_by_number", task.id, task.attempt)
        if head is not None:
            # One more than an executor may write, so that there is always room for it.
            notes_max = case.context.config.limits.notes_max + 1
            journal.add_note(tx, head[1], "finished_by_hand", {"output": text}, notes_max=notes_max)
    journal.advance_task(tx, task, "finish", finished_at_ms=tx.now_ms, reason=None, wake_at_ms=None, problem=None)
    return Effect(task.id, [task.id, *settle_dependents(tx, task.id)])


def _again(case: Case) -> Effect:
    tx, task = case.tx, case.task
    if task.state != "uncertain":
        raise _refuse(task, "again", "Only an uncertain task is resolved.", "`omnictl retry` runs others again")
    recall_uncertain(tx, task)
    settle_wait(tx, journal.advance_task(tx, task, "again", problem=None))
    return Effect(task.id, [task.id])


def _fail(case: Case) -> Effect:
    tx, task = case.tx, case.task
    if task.state != "uncertain":
        raise _refuse(task, "fail", "Only an uncertain task is resolved.", "`omnictl cancel` ends others")
    recall_uncertain(tx, task)
    journal.advance_task(tx, task, "give_up", finished_at_ms=tx.now_ms)
    return Effect(task.id, [task.id, *settle_dependents(tx, task.id)])


def _assign(case: Case) -> Effect:
    tx, task = case.tx, case.task
    if case.order.executor is None and case.order.assignee is None:
        detail = "the action assign needs `executor` or `assignee`"
        raise Rejected("bad_request", detail=detail, where="the parameters")
    if case.order.executor is not None and task.state not in ("idle", "waiting"):
        why = "Only a task that hasn't started can be given to another executor."
        raise _refuse(task, "assign", why, "cancel it, assign it, then retry it")
    fields: dict[str, Any] = {}
    if case.order.executor is not None:
        named = Asked(structs.replace(task.work, executor=case.order.executor))
        executor = choose(named, case.context.facts()).executor
        case.context.executors[executor].accepts(task.work)
        # What it costs there may fit.
        fields |= {"executor": executor, "route": None, "budget_at_ms": None}
    if case.order.assignee is not None:
        fields["assignee"] = case.order.assignee
    settle_wait(tx, journal.edit_task(tx, task, **fields))
    return Effect(task.id, [task.id])


def _approve(case: Case) -> Effect:
    tx, task = case.tx, case.task
    if task.approval != "needed" or task.state in TERMINAL:
        raise _refuse(task, "approve", "It doesn't wait for approval.", "`omnictl why` says what it waits for")
    exact = _exact(case)
    if case.order.always:
        _permit(tx, task, exact, allowed=True)
    # What it was held for is answered by that.
    problem = None if task.problem is not None and task.problem.code == "loop" else task.problem
    approval = granted(permit_id(task.origin, task.executor, exact))
    settle_wait(tx, journal.edit_task(tx, task, approval=approval, problem=problem))
    return Effect(task.id, [task.id])


def _deny(case: Case) -> Effect:
    tx, task = case.tx, case.task
    if task.approval != "needed" or task.state in TERMINAL:
        raise _refuse(task, "deny", "It doesn't wait for approval.", "`omnictl cancel` ends it")
    if case.order.always:
        _permit(tx, task, _exact(case), allowed=False)
    denied = journal.edit_task(tx, task, approval="denied")
    give_up(tx, denied, Problem.make("not_approved", detail=f"It asked to run: {title_of(task.work)}"))
    return Effect(task.id, [task.id, *settle_dependents(tx, task.id)])


def _reply(case: Case) -> Effect:
    """Does what an answer means; from an agent, what only a person decides needs the code of the question."""
    if case.order.text is None:
        raise Rejected("bad_request", detail="the action reply needs `text`", where="the parameters")
    answer = read_answer(case.order.text)
    action = action_of(case.task, answer)
    if answer.code or (case.caller.role == "agent" and action not in AGENT_ACTIONS):
        shown = take_code(case.tx, case.task, answer.code)
        task = case.task
        if action == "approve" and shown != permit_id(task.origin, task.executor, _exact(case)):
            why = "What would run has changed since the question was asked."
            raise _refuse(task, "approve", why, "`omnictl approve` shows what it is now")
    # A new order: whoever passes an answer on adds nothing to it.
    return _ACTIONS[action](case._replace(order=Order(case.order.ref, action)))


def _exact(case: Case) -> Work:
    """Gives what would run, with all that the executor's config adds."""
    executor = case.context.executors.get(case.task.executor)
    return case.task.work if executor is None else executor.exact(case.task.work)


def _permit(tx: Tx, task: Task, exact: Work, *, allowed: bool) -> None:
    """Writes down that exactly this work of this origin is approved (or denied) from now on."""
    id = permit_id(task.origin, task.executor, exact)
    row = tx.one("permit_by_id", id)
    if row is not None:
        tx.edit(PERMIT, id, At(row[1], decode_heads(row[2])), {"granted": int(allowed)})
        return
    fields = {
        "origin": task.origin,
        "executor": task.executor,
        "work": exact,
        "granted": int(allowed),
        "created_at_ms": tx.now_ms,
    }
    tx.create(PERMIT, id, fields)


def _delete(case: Case) -> Effect:
    tx, task = case.tx, case.task
    if task.state in RUNNING:
        raise _refuse(task, "delete", "Its attempt still runs.", "cancel it first, then delete it")
    recall_uncertain(tx, task)
    touched = [task.id]
    if task.state not in TERMINAL:
        event = "cancel"
        tx.run("drop_dependencies_of", task.id)
        fields = {"finished_at_ms": tx.now_ms, "reason": None, "wake_at_ms": None}
        task = journal.edit_task(tx, task, state=advance(task.state, event), **fields)
        touched += settle_dependents(tx, task.id)
    if tx.all("dependents", task.id, 1):
        why = "More tasks wait for it than can be told at once."
        raise _refuse(task, "delete", why, "cancel it if it is open, and delete it a moment later")
    blobs = tx.all("blobs_of_task", task.id)
    attempts = journal.forget_attempts(tx, task.id)
    journal.raise_number_floor(tx, task.origin, task.number)
    journal.drop_derived(tx, task)
    tx.delete(TASK, task.id, At(task.ord, task.heads))
    for (digest,) in blobs:
        tx.run("drop_blob", digest)
    tx.moved(tally_key(task.state, task.reason), None)
    return Effect(task.id, touched, None, tuple(attempts))


_ACTIONS: dict[str, Callable[[Case], Effect]] = {
    "cancel": _cancel,
    "retry": _retry,
    "pause": _pause,
    "resume": _resume,
    "complete": _finish,
    "assign": _assign,
    "priority": _priority,
    "budget": _budget,
    "delete": _delete,
    "approve": _approve,
    "deny": _deny,
    "done": _finish,
    "again": _again,
    "fail": _fail,
    "reply": _reply,
}
