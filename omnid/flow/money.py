"""Reserves money before it is spent and settles it after, in the transactions that start and end attempts.

What may start decides `route.budget`; the calls and their sums are kept by `store.calls`. Nothing here is asked about
executors that cost nothing.
"""

from collections.abc import Iterable
from zoneinfo import ZoneInfo

from omnid.flow import notify
from omnid.flow.dependents import settle_wait
from omnid.flow.turned import Turned
from omnid.model import Gate, Problem, Result, Task
from omnid.money import dollars, micro
from omnid.route.budget import Budget, Fill, Lid, Refuse, Used, decide, window_ms
from omnid.settings import Config
from omnid.states import NEVER_MS
from omnid.store import journal
from omnid.store.calls import Call, add_call, call_of, settle_call, zone_of
from omnid.store.interface import Reader, Tx

GATE = "budget"
RELEASED_MAX = 8
"""How many tasks that wait for a label's cap are let go on at once when some of it is given back."""
LOOKED_AT_MAX = 1_000
FREE_OF_COST = frozenset(
    {"bad_cwd", "command_not_found", "command_no_start", "bad_template", "bad_arguments", "unknown_tool"}
)
"""Problems with which nothing was begun, so that nothing was spent."""


def zone(reader: Reader) -> ZoneInfo:
    """Gives the zone of days and months."""
    return zone_of(reader)


def fills(reader: Reader, lids: Iterable[Lid], now_ms: int) -> list[Fill]:
    """Gives what counts against lids in their present windows."""
    zone = zone_of(reader)
    found: list[Fill] = []
    for lid in lids:
        begin_at_ms, end_at_ms = window_ms(lid.window, now_ms, zone)
        row = reader.one("spend_between", lid.scope, begin_at_ms, end_at_ms)
        found.append(Fill(lid, begin_at_ms, end_at_ms, Used(*row) if row else Used()))
    return found


def task_money(reader: Reader, task_id: str) -> Used:
    """Gives what counts against a task's own lid."""
    row = reader.one("money_of_task", task_id)
    return Used(*row) if row else Used()


def admit(tx: Tx, budget: Budget, task: Task, turned: Turned) -> int | None:
    """Gives what a task must reserve to start now; None where it may not: its gate is closed then, or it waits."""
    # The lid of its own is looked at only where there is one.
    has_lid = budget.task_limit_microusd(task.work) is not None
    used = task_money(tx, task.id).total_microusd if has_lid else 0
    run = budget.run_of(task.executor, task.work, used)
    decision = decide(run, fills(tx, budget.lids(task.executor, task.labels), tx.now_ms))
    if not isinstance(decision, Refuse):
        return decision.reserve_microusd
    labelled = tuple(fill for fill in decision.fills if fill.lid.scope.startswith("label:"))
    if decision.fills and len(labelled) < len(decision.fills):
        shared = tuple(fill for fill in decision.fills if fill not in labelled)
        _close(tx, budget, task.executor, decision._replace(fills=shared), turned)
    else:
        _hold(tx, budget, task, decision, turned)
    return None


def _close(tx: Tx, budget: Budget, executor: str, refused: Refuse, turned: Turned) -> None:
    """Closes the executor's gate until the window ends, or until what runs gives back enough."""
    gate = Gate(
        f"{GATE}:{executor}",
        GATE,
        executor,
        tx.now_ms,
        refused.wake_at_ms,
        _problem(executor, refused),
    )
    journal.close_gate(tx, gate)
    row = tx.one("gate_by_id", gate.id)
    turned.closed[gate.id] = gate if row is None else journal.gate_of(row)
    turned.opened.discard(gate.id)
    _tell_full(tx, budget, refused)


def _hold(tx: Tx, budget: Budget, task: Task, refused: Refuse, turned: Turned) -> None:
    """Makes the task itself wait: until a label's window ends, or for a person where its own lid is used up."""
    problem = _problem(task.executor, refused) if refused.fills else _own_problem(tx, budget, task, refused)
    at_ms = NEVER_MS if refused.wake_at_ms is None else refused.wake_at_ms
    settle_wait(tx, journal.edit_task(tx, task, budget_at_ms=at_ms, problem=problem))
    turned.tasks.append(task.id)
    _tell_full(tx, budget, refused)
    if not refused.fills:
        notify.tell(tx, budget.config, "needs_you", task.id, what=problem.what, do=problem.do)


def hold(tx: Tx, config: Config, task: Task, wake_at_ms: int | None) -> None:
    """Makes a task wait whose call can't be paid for: until then, or (None) for a person."""
    if task.state != "idle":
        return
    at_ms = NEVER_MS if wake_at_ms is None else wake_at_ms
    settle_wait(tx, journal.edit_task(tx, task, budget_at_ms=at_ms))
    if wake_at_ms is None and task.problem is not None:
        notify.tell(tx, config, "needs_you", task.id, what=task.problem.what, do=task.problem.do)


def _problem(executor: str, refused: Refuse) -> Problem:
    fill = refused.fills[0]
    lid, need = fill.lid.name, dollars(refused.need_microusd)
    limit, window, used = dollars(fill.lid.limit_microusd), _period(fill.lid), describe(fill.used)
    if refused.never:
        return Problem.make("budget_never", executor=executor, need=need, lid=lid, limit=limit)
    if refused.used_up:
        return Problem.make(
            "budget_reached", executor=executor, need=need, lid=lid, limit=limit, window=window, used=used
        )
    return Problem.make("budget_reserved", executor=executor, need=need, lid=lid, limit=limit, window=window, used=used)


def _period(lid: Lid) -> str:
    return "today" if lid.window == "day" else "this month"


def _own_problem(tx: Tx, budget: Budget, task: Task, refused: Refuse) -> Problem:
    return Problem.make(
        "budget_task",
        task=task.name,
        limit=dollars(budget.task_limit_microusd(task.work) or 0),
        used=describe(task_money(tx, task.id)),
        need=dollars(refused.need_microusd),
    )


def describe(used: Used) -> str:
    """Says what counts against a lid: ``$1.84 spent, $5.00 reserved, $2.00 unknown``."""
    parts = [f"{dollars(used.spent_microusd)} spent"]
    if used.reserved_microusd:
        parts.append(f"{dollars(used.reserved_microusd)} reserved")
    if used.unknown_microusd:
        parts.append(f"{dollars(used.unknown_microusd)} unknown")
    return ", ".join(parts)


def reserve(
    tx: Tx,
    task: Task,
    attempt_id: str,
    microusd: int,
    *,
    channel: str | None = None,
    model: str | None = None,
) -> str:
    """Writes the next call of an attempt, with what `admit` gave; gives its id."""
    row = tx.one("count_calls", attempt_id)
    id = f"{attempt_id}/{(row[0] if row else 0) + 1}"
    fields = {
        "task_id": task.id,
        "attempt_id": attempt_id,
        "executor": task.executor,
        "channel": channel,
        "model": model,
        "labels": task.labels or None,
        "reserved_microusd": microusd,
        "started_at_ms": tx.now_ms,
    }
    add_call(tx, id, fields, zone_of(tx))
    return id


def settle(tx: Tx, budget: Budget, result: Result, turned: Turned) -> None:
    """Settles the calls of an attempt that has ended, and lets go on what they gave room to.

    One that is over already stays as it is, unless nobody knew what it had cost and the result says it now.
    """
    calls = [call_of(row) for row in tx.all("calls_of_attempt", result.attempt_id)]
    left: list[Call] = []
    for call in calls:
        if call.settled_at_ms is None and call.id in result.call_costs:
            settle_one(tx, budget, call, result.call_costs[call.id], result.outcome, turned)
        elif call.settled_at_ms is None or call.is_unknown:
            left.append(call)
    cost = _cost(result)
    if cost and len(left) == 1:
        # It is the cost of the whole attempt, and a part of it may be settled already.
        cost = max(0, cost - sum(call.spent_microusd or 0 for call in calls))
    elif cost:
        cost = None  # Nobody knows how much of it was whose.
    for call in left:
        if call.settled_at_ms is None or cost is not None:
            settle_one(tx, budget, call, cost, result.outcome, turned)


def _cost(result: Result) -> int | None:
    """Gives what an attempt has cost, in microdollars; None is unknown."""
    if result.cost_usd is not None:
        return micro(max(0.0, result.cost_usd))
    if result.outcome == "unstarted" or (result.problem is not None and result.problem.code in FREE_OF_COST):
        return 0
    return None


def settle_one(tx: Tx, budget: Budget, call: Call, spent_microusd: int | None, outcome: str, turned: Turned) -> None:
    """Settles one call; None keeps its whole reservation, as unknown, until its window ends."""
    settle_call(tx, call, spent_microusd, outcome, zone_of(tx))
    # Where nothing is given back no gate opens, but why it is closed and until when may be another matter now.
    look_again(tx, budget, turned)
    gives_back = spent_microusd is not None and spent_microusd < call.reserved_microusd
    if gives_back and not budget.labels.isdisjoint(call.labels):
        _release(tx, budget.labels.intersection(call.labels), turned)
    for fill in fills(tx, budget.lids(call.executor, call.labels), tx.now_ms):
        _tell_share(tx, budget, fill)


def look_again(tx: Tx, budget: Budget, turned: Turned) -> None:
    """Opens the closed gates of this cause behind which a run may start again, and sets anew why others are closed."""
    for row in tx.all("gates"):
        if row[1] != GATE:
            continue
        id, executor = row[0], row[2]
        refused = None
        if executor in budget.paid:
            refused = decide(budget.run(executor), fills(tx, budget.lids(executor, ()), tx.now_ms))
        if isinstance(refused, Refuse):
            _close(tx, budget, executor, refused, turned)
        else:
            journal.open_gate(tx, id)
            turned.opened.add(id)
            turned.closed.pop(id, None)


def _release(tx: Tx, labels: frozenset[str], turned: Turned) -> None:
    """Lets a few tasks go on that wait for the caps of these labels; what still doesn't fit will wait again."""
    count = 0
    for row in tx.all("waiting_for_money", LOOKED_AT_MAX):
        task = journal.task_of(row)
        if task.wake_at_ms is not None and not labels.isdisjoint(task.labels) and count < RELEASED_MAX:
            count += 1
            go_on(tx, task, turned)


def go_on(tx: Tx, task: Task, turned: Turned) -> None:
    """Ends a task's wait for money; its next start decides anew."""
    settle_wait(tx, journal.edit_task(tx, task, budget_at_ms=None))
    turned.tasks.append(task.id)


def release_all(tx: Tx, turned: Turned) -> bool:
    """Lets a batch of the tasks go on whose caps may have changed with the config; tells whether there were any."""
    before = len(turned.tasks)
    for row in tx.all("waiting_for_money", LOOKED_AT_MAX):
        task = journal.task_of(row)
        if task.wake_at_ms is not None or task.work.cost_max_usd is None:
            go_on(tx, task, turned)
    return len(turned.tasks) > before


def _tell_full(tx: Tx, budget: Budget, refused: Refuse) -> None:
    for fill in refused.fills if refused.used_up else ():
        _tell(tx, budget, fill, 100)


def _tell_share(tx: Tx, budget: Budget, fill: Fill) -> None:
    settled, limit = fill.used.settled_microusd, fill.lid.limit_microusd
    if settled >= limit:
        _tell(tx, budget, fill, 100)
    elif settled >= limit * budget.config.budget.notice_share:
        _tell(tx, budget, fill, round(100 * budget.config.budget.notice_share))


def _tell(tx: Tx, budget: Budget, fill: Fill, percent: int) -> None:
    """Tells people, once for each share of each lid and window."""
    name = f"told:{fill.lid.name}"
    row = tx.one("meta_one", name)
    begin, _, told = (row[0] if row else "").partition(":")
    if begin == str(fill.begin_at_ms) and percent <= int(told):
        return
    tx.run("meta_set", name, f"{fill.begin_at_ms}:{percent}")
    notify.tell(
        tx,
        budget.config,
        "budget",
        fill.lid.name,
        percent=str(percent),
        used=describe(fill.used),
        limit=dollars(fill.lid.limit_microusd),
        window=_period(fill.lid),
        until_ms=str(fill.end_at_ms),
    )
