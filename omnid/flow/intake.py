"""Takes tasks: checks what was sent before anything is written, then writes all of it or nothing."""

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from graphlib import CycleError, TopologicalSorter
from hashlib import sha256
from typing import Any, TypeVar

import msgspec
from msgspec import Raw, Struct, structs

from omnid.errors import Rejected, Retryable
from omnid.executor.profiles.plan import has_own_words
from omnid.executor.workspace_kind import uses
from omnid.flow import loops
from omnid.flow.caller import Caller, find_task
from omnid.flow.context import Context
from omnid.flow.dependents import opens_ms
from omnid.model import Problem, ReplyTo, Route, Submit, Submitted, Task, Work, short_name
from omnid.route.budget import Budget
from omnid.route.router import Facts as RouteFacts
from omnid.route.router import choose, executor_closed
from omnid.route.rules import Asked
from omnid.settings import COMMAND, MODEL, OFFLINE, CommandExecutor, Config, Limits
from omnid.states import TERMINAL, Facts, own_wait
from omnid.store import journal
from omnid.store.interface import NOTHING, Reader, Taken, Tx

S = TypeVar("S")
T = TypeVar("T")

TITLE_CHARS_MAX = 200
GRANTED = "granted:"
"""What an approval begins with that a person has given; the id of what was approved follows."""

_encode = msgspec.json.Encoder(order="deterministic").encode
_encode_work = msgspec.json.Encoder().encode


class Draft(Struct, frozen=True):
    """A checked task that is not written yet."""

    id: str
    origin: str
    params: Submit
    work: Work
    encoded: Raw
    """The work as JSON, as the journal keeps it."""
    exact: Work | None
    """What would run, with all that the config adds: for an agent that must ask, and where it costs money."""
    asks: bool
    """Whether a person must approve it in any case."""
    input_hash: str | None
    """Of what would run, where it costs money."""
    executor: str
    route: Route | None
    """What the router decided, where it had a choice."""
    body_hash: str | None
    parent: str | None


def plan(context: Context, caller: Caller, asked: Sequence[Submit]) -> Callable[[Tx], list[Submitted]]:
    """Checks what was sent and gives the function that writes it.

    Raises Rejected here for what can never be taken; the function raises Rejected for what the journal forbids and
    Retryable(`too_many_waiting`).
    """
    config = context.config
    if len(asked) > config.limits.batch_tasks_max:
        raise Rejected(
            "too_many",
            count=len(asked),
            things="tasks",
            limit=config.limits.batch_tasks_max,
            setting="limits.batch_tasks_max",
        )
    if len(asked) == 1 and asked[0].ref is None:
        drafts = [_draft(context, caller, context.facts(), asked[0])]
    else:
        _check_refs(asked)
        facts = context.facts()
        drafts = _each(partial(_draft, context, caller, facts), asked)
    return partial(_write, drafts=drafts, caller=caller, budget=context.budget, tally=context.store.tally)


def plan_one(context: Context, caller: Caller, params: Submit) -> Callable[[Tx], Submitted]:
    """Does what `plan` does for a single task, without what only a batch needs."""
    if params.ref is not None:
        write = plan(context, caller, (params,))
        return lambda tx: write(tx)[0]
    draft = _draft(context, caller, context.facts(), params)
    return partial(
        _write_single,
        draft=draft,
        caller=caller,
        budget=context.budget,
        tally=context.store.tally,
    )


def _write_single(tx: Tx, *, draft: Draft, caller: Caller, budget: Budget, tally: Mapping[str, int]) -> Submitted:
    written = _write_one(tx, caller, NOTHING, budget, draft)
    _check_room(written.created, budget.config.limits.waiting_tasks_max, tally)
    return written


def work_of(params: Submit) -> Work:
    """Gives the work of what was submitted."""
    return Work(
        argv=params.argv or None,
        stdin=params.stdin,
        server=params.server,
        tool=params.tool,
        arguments=params.arguments,
        prompt=params.prompt,
        executor=params.executor or (MODEL if params.model is not None else None),
        cwd=params.cwd,
        env=params.env,
        check=params.check,
        timeout_s=params.timeout_s,
        attempts_max=params.attempts_max,
        backoff_s=params.backoff_s,
        after=params.after,
        reply_to=None if params.reply_to is None else msgspec.structs.asdict(params.reply_to),
        workspace=params.workspace,
        only=params.only,
        cost_max_usd=params.cost_max_usd,
        model=params.model,
        offline=params.offline,
    )


def route_of(context: Context, caller: Caller, params: Submit, work: Work, facts: RouteFacts) -> Route:
    """Decides which executor gets the work of a caller; raises Rejected where none can, or none that it may use."""
    route = choose(Asked(work, params.kind, params.labels, params.lane), structs.replace(facts, rights=caller.rights))
    if route.executor == MODEL and params.offline != "park":
        route = structs.replace(route, executor=OFFLINE)
    closed = caller.rights.needs(route.executor, work)
    if closed is not None:
        raise executor_closed(closed, caller.rights)
    executor = context.executors[route.executor]
    if params.model is not None and executor.kind != MODEL:
        raise Rejected("bad_request", detail=f"executor {route.executor} takes no model", where="model")
    executor.accepts(work)
    return route


def _draft(context: Context, caller: Caller, facts: RouteFacts, params: Submit) -> Draft:
    config = context.config
    if params.schedule is not None:
        raise Rejected("bad_request", detail="a schedule is submitted by itself", where="schedule")
    if params.reply_to is not None:
        check_reply_to(params.reply_to, config)
    work = work_of(params)
    route = route_of(context, caller, params, work, facts)
    executor = route.executor
    encoded = _check_limits(params, work, config.limits)
    asks = needs_approval(caller.role, executor, work, config)
    paid = executor in context.budget.paid
    exact = context.executors[executor].exact(work) if asks or paid else None
    return Draft(
        id=context.clock.uuid(),
        origin=_origin(caller, params),
        params=params,
        work=work,
        encoded=encoded,
        executor=executor,
        route=route if route.rule or route.turned_down else None,
        body_hash=_body_hash(params) if params.key else None,
        exact=exact,
        asks=asks,
        input_hash=permit_id("", executor, exact) if paid and exact is not None else None,
        parent=caller.parent,
    )


def check_reply_to(reply_to: ReplyTo, config: Config) -> None:
    """Refuses an answer to a place that the config doesn't have: Rejected(`unknown_channel`, `no_target`)."""
    known = {section.name: section for section in config.destination}
    section = known.get(reply_to.channel)
    if section is None:
        near = get_close_matches(reply_to.channel, known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        names = f"these are there: {', '.join(sorted(known))}" if known else "there is none yet"
        raise Rejected("unknown_channel", channel=reply_to.channel, hint=hint, known=names)
    if section.kind == "openclaw" and not (reply_to.target or reply_to.session or section.target):
        raise Rejected("no_target", channel=reply_to.channel)


def known(reader: Reader, caller: Caller, asked: Sequence[Submit]) -> list[Submitted] | None:
    """Gives the tasks of a submit that was done before, found by its keys; None where not all of them are there.

    What was acknowledged once is acknowledged again, even where it couldn't be taken any more.
    """
    found: list[Submitted] = []
    for params in asked:
        row = reader.one("task_by_key", _origin(caller, params), params.key) if params.key else None
        task = None if row is None else journal.task_of(row)
        if task is None or task.body_hash != _body_hash(params):
            return None
        found.append(Submitted(task.id, task.name, task.state, False))
    return found


def _origin(caller: Caller, params: Submit) -> str:
    return params.origin if params.origin and caller.role == "person" else caller.origin


def _body_hash(params: Submit) -> str:
    return sha256(_encode(params)).hexdigest()


def needs_approval(role: str, executor: str, work: Work, config: Config) -> bool:
    """Tells whether a person must approve what this caller sends to this executor.

    A check is a command of its own, and a variable of the daemon may be a secret: an executor that is open to agents
    opens neither. Nor does it open what takes from its agent the place to itself, its permissions or its program.
    """
    if role != "agent":
        return False
    allow = config.agents.allow
    section = config.executors().get(executor)
    allowed = MODEL if executor == OFFLINE else executor
    passed_on = section.env if section is not None else ()
    if allowed not in allow or not set(work.env).issubset(passed_on):
        return True
    if COMMAND in allow:
        return False
    if work.check is not None:
        return True
    in_place = work.workspace == "none" and section is not None and uses(section)
    return in_place or (isinstance(section, CommandExecutor) and has_own_words(section, work))


def _check_limits(params: Submit, work: Work, limits: Limits) -> Raw:
    """Encodes the work and holds it against the limits."""
    encoded = _encode_work(work)
    if len(encoded) > limits.input_bytes_max:
        raise Rejected("input_too_large", size_bytes=len(encoded), limit_bytes=limits.input_bytes_max)
    if not params.labels and not params.after:
        return Raw(encoded)
    for things, given, limit in (
        ("labels", params.labels, limits.labels_max),
        ("tasks in `after`", params.after, limits.after_max),
    ):
        if len(given) > limit:
            setting = "limits.labels_max" if things == "labels" else "limits.after_max"
            raise Rejected("too_many", count=len(given), things=things, limit=limit, setting=setting)
    return Raw(encoded)


def _check_refs(asked: Sequence[Submit]) -> None:
    """Refuses a ref that is given twice, and tasks of the batch that wait for each other."""
    graph: dict[str, set[str]] = {}
    for params in asked:
        if params.ref is not None:
            if params.ref in graph:
                raise Rejected("duplicate_ref", ref=params.ref)
            graph[params.ref] = set(params.after)
    if not graph:
        return
    inside = {ref: after & graph.keys() for ref, after in graph.items()}
    try:
        TopologicalSorter(inside).prepare()
    except CycleError as error:
        raise Rejected("dependency_cycle", cycle=" -> ".join(error.args[1])) from error


def _write(tx: Tx, *, drafts: list[Draft], caller: Caller, budget: Budget, tally: Mapping[str, int]) -> list[Submitted]:
    """Writes all drafts, or raises and leaves nothing."""
    limit = budget.config.limits.waiting_tasks_max
    refs = {draft.params.ref: _id_of(tx, draft) for draft in drafts if draft.params.ref is not None}
    if len(drafts) == 1:
        written = [_write_one(tx, caller, refs, budget, drafts[0])]
    else:
        written = _each(partial(_write_one, tx, caller, refs, budget), drafts)
    _check_room(sum(task.created for task in written), limit, tally)
    return written


def _each(step: Callable[[S], T], batch: Sequence[S]) -> list[T]:
    """Does a step for each task of a batch; what is wrong with one says which one it is."""
    done: list[T] = []
    for index, one in enumerate(batch):
        try:
            done.append(step(one))
        except Rejected as error:
            raise Rejected("batch_task", index=index, what=error.what, why=error.why, do=error.do) from error
    return done


def _check_room(count: int, limit: int, tally: Mapping[str, int]) -> None:
    """Holds what was newly written against the limit; a task that was there already needs no room."""
    waiting = sum(tally.values()) - sum(tally.get(state, 0) for state in TERMINAL)
    if count and waiting + count > limit:
        raise Retryable("too_many_waiting", count=waiting, limit=limit)


def _write_one(tx: Tx, caller: Caller, refs: Mapping[str, str], budget: Budget, draft: Draft) -> Submitted:
    params = draft.params
    if params.key is not None and not _is_plain(draft):
        known = tx.one("task_by_key", draft.origin, params.key)
        if known is not None:
            return _same(journal.task_of(known), draft)
    # Only a new task can be too late: one that was taken in time is what its repeat gets.
    if params.deadline_ms is not None and params.deadline_ms <= tx.now_ms:
        raise Rejected("deadline_passed")
    if draft.parent is not None:
        loops.check_tree(tx, budget.config.agents, draft.parent)
    work, encoded = draft.work, draft.encoded
    waits_for: tuple[str, ...] = ()
    if work.after:
        ids, waits_for = _resolve_after(tx, work.after, caller, refs)
        work = msgspec.structs.replace(work, after=ids)
        encoded = Raw(_encode_work(work))
    number = journal.take_number(tx, draft.origin)
    approval, problem = _approval(tx, draft, caller, budget)
    opens = opens_ms(tx, params.only)
    wait = own_wait(Facts(tx.now_ms, False, approval, len(waits_for), params.not_before_ms, None, opens))
    state = "idle" if wait is None else "waiting"
    fields: dict[str, Any] = {
        "origin": draft.origin,
        "number": number,
        "title": title_of(work),
        "work": encoded,
        "executor": draft.executor,
        "state": state,
        "reason": wait and wait.reason,
        "wake_at_ms": wait and wait.wake_at_ms,
        "priority": params.priority,
        "lane": params.lane,
        "kind": params.kind,
        "labels": params.labels or None,
        "assignee": params.assignee,
        "parent": draft.parent,
        "key": params.key,
        "body_hash": draft.body_hash,
        "created_at_ms": tx.now_ms,
        "not_before_ms": params.not_before_ms,
        "deadline_ms": params.deadline_ms,
        "approval": approval,
        "route": draft.route,
        "problem": problem,
        "input_hash": draft.input_hash,
    }
    try:
        journal.create_task(tx, draft.id, fields, waits_for)
    except Taken:
        return _known(tx, draft)
    return Submitted(draft.id, short_name(draft.origin, number), state, True)


def _is_plain(draft: Draft) -> bool:
    """Tells whether nothing but its key can speak against the task: then it is written first and looked for after."""
    params = draft.params
    return params.deadline_ms is None and not params.after and draft.parent is None and draft.exact is None


def _known(tx: Tx, draft: Draft) -> Submitted:
    """Gives the task that has the draft's key; raises Taken where it is something else that is taken."""
    journal.give_back_number(tx, draft.origin)
    row = None if draft.params.key is None else tx.one("task_by_key", draft.origin, draft.params.key)
    if row is None:
        raise Taken(draft.id)
    return _same(journal.task_of(row), draft)


def _approval(tx: Tx, draft: Draft, caller: Caller, budget: Budget) -> tuple[str | None, Problem | None]:
    """Gives the approval that a new task needs, and why where that isn't plain.

    What was asked for too often waits for a person's approval where a person has submitted it; an agent is refused
    with Rejected(`loop`).
    """
    if draft.exact is None:
        return None, None
    looped = None
    if draft.input_hash is not None:
        looped = loops.repeated(tx, budget, draft.executor, draft.input_hash, tx.now_ms, caller.rights)
        if looped is not None and caller.role == "agent":
            raise looped.refusal()
    if looped is None and not draft.asks:
        return None, None
    approval = approval_of(tx, draft.origin, draft.executor, draft.exact)
    return approval, looped.problem() if looped is not None and approval == "needed" else None


def _id_of(tx: Tx, draft: Draft) -> str:
    """Gives the id that the draft gets, or has had since an earlier submit with its key."""
    known = None if draft.params.key is None else tx.one("task_by_key", draft.origin, draft.params.key)
    return draft.id if known is None else journal.task_of(known).id


def _same(task: Task, draft: Draft) -> Submitted:
    if task.body_hash != draft.body_hash:
        raise Rejected("key_reused", key=draft.params.key, task=task.name)
    return Submitted(task.id, task.name, task.state, False)


def _resolve_after(
    tx: Tx, after: tuple[str, ...], caller: Caller, refs: Mapping[str, str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Gives the ids of the tasks before, and of those among them that have not succeeded yet."""
    ids: list[str] = []
    still_open: list[str] = []
    for ref in after:
        before = journal.task_by_id(tx, refs[ref]) if ref in refs else find_task(tx, ref, caller)
        if before is None:  # It comes later in the batch.
            ids.append(refs[ref])
            still_open.append(refs[ref])
            continue
        ids.append(before.id)
        if before.state in ("failed", "cancelled"):
            raise Rejected("dependency_failed", task="The task", after=before.name, state=before.state)
        if before.state != "completed":
            still_open.append(before.id)
    return tuple(dict.fromkeys(ids)), tuple(dict.fromkeys(still_open))


def title_of(work: Work) -> str:
    """Gives the work in one line, as lists show it."""
    if work.argv is not None:
        text = " ".join(work.argv)
    elif work.tool is not None or work.server is not None:
        text = f"{work.server or ''}.{work.tool or ''}".strip(".")
    else:
        text = work.prompt or work.executor or ""
    line = " ".join(text[: TITLE_CHARS_MAX * 2].split())
    return line if len(line) <= TITLE_CHARS_MAX else f"{line[: TITLE_CHARS_MAX - 1]}…"


def permit_id(origin: str, executor: str, work: Work) -> str:
    """Gives the id of the permit that covers exactly this work of this origin: argv, directory and all that runs.

    `work` is what `Executor.exact` gave.
    """
    exact = (origin, executor, work.argv, work.stdin, work.cwd, work.env, work.check, work.server, work.tool)
    # A workspace of its own choice is part of it: an agent that may run something aside may not run it in place.
    asked = [] if work.workspace is None else [work.workspace]
    return sha256(_encode([*exact, work.arguments, work.prompt, *asked])).hexdigest()


def granted(permit: str) -> str:
    """Gives the approval of a task that a person has granted; it names what was approved, and holds for that alone."""
    return f"{GRANTED}{permit}"


def still_granted(task: Task, exact: Work) -> bool:
    """Tells whether a task may run as it would run now: it needed no approval, or got it for exactly this."""
    if task.approval is None or not task.approval.startswith(GRANTED):
        return True
    return task.approval == granted(permit_id(task.origin, task.executor, exact))


def approval_of(tx: Tx, origin: str, executor: str, exact: Work) -> str:
    """Gives the approval of a new task: granted where a person has permitted exactly this for good, else needed.

    Raises Rejected(`not_approved`) where it was denied for good.
    """
    permit = permit_id(origin, executor, exact)
    row = tx.one("permit_by_id", permit)
    if row is None:
        return "needed"
    if not row[0]:
        raise Rejected("not_approved", detail="It was denied for good (deny --always).")
    return granted(permit)
