"""Takes results: ends the attempt and moves its task on, in one transaction. Late and double results are refused."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import anyio

from omnid.errors import Retryable
from omnid.flow import limits, money
from omnid.flow.context import Context
from omnid.flow.dependents import settle_dependents
from omnid.flow.gates import Gates
from omnid.flow.turned import Turned
from omnid.model import Problem, Result, Task
from omnid.money import micro
from omnid.retry import Backoff
from omnid.route.budget import Budget
from omnid.settings import Config
from omnid.states import RUNNING, advance
from omnid.store import journal
from omnid.store.interface import Outcome, Tx

Chance = Callable[[float, float], float]
"""Draws a float between two bounds; see `Clock.uniform`."""

SETTLE_BACKOFF = Backoff(base_s=0.5, max_s=30.0)
UNSTARTED_WAIT_S = 1.0
LEFT = "runner_left"
"""The code with which a runner that was told to stop gives back what has not begun: it may begin elsewhere at once."""
ALONE = ("workspace_full", "workspace_down", "runner_refused")
"""Why an attempt may not have begun while nothing keeps the others of its executor."""
WITHOUT_RESULT = frozenset({"unstarted", "lost"})


class Verdict(NamedTuple):
    """What a result does to its task."""

    event: str
    """Of the task's state machine."""
    failures: int
    retry_in_s: float | None = None
    problem: Problem | None = None


def judge(
    task: Task,
    result: Result,
    *,
    idempotent: bool,
    attempts_max: int,
    backoff: Backoff,
    now_ms: int,
    chance: Chance,
    without_result: int = 0,
) -> Verdict:
    """Decides what becomes of the task; pure but for `chance`, which draws the jitter.

    `without_result` is how many attempts before this one have ended lost or unstarted.
    """
    if result.outcome == "success":
        return Verdict("succeed", task.failures)
    if task.cancel:
        return Verdict("cancel", task.failures, problem=result.problem)
    if task.deadline_ms is not None and task.deadline_ms <= now_ms and result.outcome != "lost":
        return Verdict("fail", task.failures, problem=Problem.make("deadline_passed"))
    if result.outcome == "parked":
        # Its gate keeps it from its start; an attempt that a limit stopped is none of the task's.
        return Verdict("again", task.failures, _parked_s(result, now_ms), result.problem)
    if result.outcome in WITHOUT_RESULT:
        again_s = backoff.delay_s(1 + without_result, chance)
        return _without_result(task, result, idempotent=idempotent, again_s=again_s)
    failures = task.failures + 1
    if result.outcome in ("rejected", "cancelled") or failures >= attempts_max:
        return Verdict("fail", failures, problem=result.problem)
    return Verdict("again", failures, backoff.delay_s(failures, chance), result.problem)


def _parked_s(result: Result, now_ms: int) -> float | None:
    """Gives how long a task waits by itself that was parked; None where a gate or its money keeps it."""
    park = result.park
    if park is None or park.cause != "channels" or park.wake_at_ms is None:
        return None
    return max(UNSTARTED_WAIT_S, (park.wake_at_ms - now_ms) / 1000)


def _without_result(task: Task, result: Result, *, idempotent: bool, again_s: float) -> Verdict:
    """Decides about an attempt that never began, or of which nobody knows how far it came (promise 3).

    A crash is no failure of the task, so it isn't counted; but after each it waits longer than after the one before.
    """
    if result.outcome == "unstarted":
        if result.problem is not None and result.problem.code == LEFT:
            return Verdict("again", task.failures, problem=result.problem)
        # Most of them closed the gate that they wait behind; others may wait alone, for want of a workspace, say.
        alone = result.problem is not None and result.problem.code in ALONE
        return Verdict(
            "again", task.failures, max(again_s, UNSTARTED_WAIT_S) if alone else UNSTARTED_WAIT_S, result.problem
        )
    if not idempotent:
        return Verdict("lose", task.failures, problem=result.problem)
    return Verdict("again", task.failures, again_s, result.problem)


class Results:
    """Settles results in the journal, and tells those who wait."""

    def __init__(self, context: Context, gates: Gates) -> None:
        self._context = context
        self._gates = gates

    async def settle(self, result: Result) -> bool:
        """Writes a result; tells whether it counted: a late or double result doesn't."""
        return bool(await self.write_down(result))

    async def write_down(self, result: Result) -> list[str] | None:
        """Writes a result; while the store can't take it (a full disk), it is kept and tried again.

        Gives the tasks that changed, none where it was late or came before; None where the store was closed.
        """
        context = self._context
        try:
            touched = await self._insist(result)
        finally:
            context.unwritten.pop(result.attempt_id, None)
        if touched is not None:
            self._tell(result, touched)
        return touched

    async def _insist(self, result: Result) -> list[str] | None:
        context = self._context
        failures = 0
        while True:
            try:
                touched, _ = await context.store.write(
                    partial(self._finish, result=result), then=partial(self._free, result.attempt_id)
                )
                break
            except Retryable as error:
                if error.code == "store_closed":
                    return None  # The next start recovers it: its exit record or its open attempt is still there.
                failures += 1
                context.unwritten[result.attempt_id] = Problem.of(error)
                if failures == 1:
                    context.log.warning("result_waits", attempt=result.attempt_id, **error.as_dict())
                await anyio.sleep(SETTLE_BACKOFF.delay_s(failures, context.clock.uniform))
        if failures:
            context.log.info("result_written", attempt=result.attempt_id, tries=failures + 1)
        return touched

    async def try_all(self, results: Sequence[Result]) -> list[bool]:
        """Tries once to write results that have come together; tells of each whether it is written.

        Each succeeds or fails on its own. It is `write_down` without the task that each of them would need, and without
        its patience: what is not written here is the caller's to write down.
        """
        written = [False] * len(results)
        answered = anyio.Event()
        unanswered = len(results)

        def done(at: int, outcome: Outcome[tuple[list[str], Turned]]) -> None:
            nonlocal unanswered
            unanswered -= 1
            if unanswered == 0:
                answered.set()
            with suppress(Exception):  # It comes again where it is written down alone.
                self._tell(results[at], outcome.outcome()[0])
                written[at] = True

        for at, result in enumerate(results):
            free = partial(self._free, result.attempt_id)
            self._context.store.post(partial(self._finish, result=result), partial(done, at), then=free, patient=True)
        if results:
            await answered.wait()
        return written

    def _tell(self, result: Result, touched: list[str]) -> None:
        """Tells those who wait of a result that is written down; `touched` is empty where it didn't count."""
        context = self._context
        if not touched:
            context.log.warning("late_result_refused", attempt=result.attempt_id, outcome=result.outcome)
            return
        context.watch.tell(touched)
        if result.outcome != "success" or len(touched) > 1:
            context.timer.ring()  # A wait of this task or of those after it may be the next thing due.

    def _finish(self, tx: Tx, *, result: Result) -> tuple[list[str], Turned]:
        context = self._context
        turned = Turned.nothing()  # Here and not outside, because the function may be run twice.
        touched = finish(
            tx,
            result=result,
            config=context.config,
            chance=context.clock.uniform,
            budget=context.budget,
            turned=turned,
        )
        return touched, turned

    def _free(self, attempt_id: str, done: tuple[list[str], Turned]) -> None:
        """The slot goes with the commit: the dispatcher has looked in that transaction, and counted on it."""
        touched, turned = done
        if touched and not self._context.fleet.let_go(attempt_id):
            self._context.running.pop(attempt_id, None)
        self._gates.took(turned)


def finish(tx: Tx, *, result: Result, config: Config, chance: Chance, budget: Budget, turned: Turned) -> list[str]:
    """Ends the attempt, moves the task on, and closes or opens the gates of limits.

    Gives the tasks that changed, none where the result is refused.

    Its calls are settled; `turned` takes down the gates that this opens, and the tasks that it lets go on.

    The fencing number: only the task's current attempt counts, and only while it is open or its end is uncertain.
    """
    head = tx.one("attempt_head", result.attempt_id)
    task = None if head is None else journal.task_by_id(tx, head[2])
    if head is None or task is None or task.attempt != head[3]:
        return []
    was_open = head[4] is None and task.state in RUNNING
    resolves = task.state == "uncertain" and result.outcome != "lost"
    if not was_open and not resolves:
        return []
    count = tx.one("count_without_result", task.id) if result.outcome in WITHOUT_RESULT else None
    verdict = judge(
        task,
        result,
        without_result=count[0] if count else 0,
        idempotent=bool(head[5]),
        attempts_max=task.work.attempts_max or config.retry.attempts_max,
        backoff=backoff_of(task, config),
        now_ms=tx.now_ms,
        chance=chance,
    )
    fields = _attempt_fields(result, tx.now_ms)
    if resolves:
        fields["problem"] = result.problem  # It takes the place of what nobody knew.
    limits.settle(tx, result, head, config, turned)
    journal.end_attempt(tx, head, fields)
    touched = move_on(tx, task, verdict)
    if result.park is not None and result.park.cause == money.GATE:
        money.hold(tx, config, journal.need_task(tx, task.id), result.park.wake_at_ms)
    if head[7] is not None or head[8] in budget.by_call:
        money.settle(tx, budget, result, turned)
    return touched


def backoff_of(task: Task, config: Config) -> Backoff:
    """Gives the task's backoff: its own base, within the config's limit."""
    base_s = config.retry.backoff_base_s if task.work.backoff_s is None else task.work.backoff_s
    return Backoff(base_s, max(base_s, config.retry.backoff_max_s))


def move_on(tx: Tx, task: Task, verdict: Verdict) -> list[str]:
    """Takes a verdict over into the task, and on to those that depend on it; gives all that changed."""
    state = advance(task.state, verdict.event)
    fields: dict[str, Any] = {"failures": verdict.failures, "problem": verdict.problem, "state": state}
    if state in ("completed", "failed", "cancelled"):
        fields["finished_at_ms"] = tx.now_ms
        journal.edit_task(tx, task, **fields)
        return [task.id, *settle_dependents(tx, task.id)]
    if verdict.event == "again" and verdict.retry_in_s:
        wake_at_ms = tx.now_ms + round(verdict.retry_in_s * 1000)
        fields |= {"state": "waiting", "reason": "backoff", "wake_at_ms": wake_at_ms, "retry_at_ms": wake_at_ms}
    journal.edit_task(tx, task, **fields)
    return [task.id]


def _attempt_fields(result: Result, now_ms: int) -> dict[str, Any]:
    fields = {
        "ended_at_ms": now_ms,
        "outcome": result.outcome,
        "problem": result.problem,
        "exit_code": result.exit_code,
        "output": result.output,
        "output_bytes": result.output_bytes,
        "value": result.value,
        "cost_microusd": None if result.cost_usd is None else micro(result.cost_usd),
    }
    return {name: value for name, value in fields.items() if value is not None}
