"""What clients see of the journal: tasks in one line, whole tasks, the sentence why, and the state of the daemon."""

from collections.abc import Mapping
from typing import Any

import msgspec

from omnid.api.answering import question_views
from omnid.api.money_views import MoneyViews
from omnid.api.shapes import (
    AttemptView,
    ExecutorView,
    GateView,
    Get,
    NeedsYou,
    Page,
    Search,
    TaskBrief,
    TaskView,
)
from omnid.errors import Rejected, Retryable
from omnid.flow.asking import message_of, open_requests
from omnid.flow.caller import Caller, find_task
from omnid.flow.commands import COMMAND
from omnid.flow.context import Context
from omnid.flow.diskroom import DiskRoom
from omnid.flow.explain import Situation, calls_text, gate_text, why
from omnid.flow.gates import LINK, Gates
from omnid.flow.present import is_present
from omnid.model import Attempt, Gate, Problem, Task, Work, short_name
from omnid.route.router import said
from omnid.settings import MODEL
from omnid.states import STATES, TERMINAL
from omnid.store import journal
from omnid.store.interface import Reader, Row
from omnid.store.outbox import is_queued

ATTEMPTS_MAX = 20
NEEDS_YOU_MAX = 20
NEEDED_MAX = 1_000
"""How many tasks that need a person are looked at for one who sees only some of them."""
UNSEEN = "another task"
"""What a task is called to those who don't see it."""
LAST_ORD = (1 << 63) - 1
SCAN_MAX = 20_000
"""How many rows a filter looks at for one page; a cursor leads on from there."""


class Views:
    """Builds what clients see, from the journal and the facts of the running daemon."""

    def __init__(self, context: Context, gates: Gates) -> None:
        self._context = context
        self._gates = gates
        self.money = MoneyViews(context)

    def brief(self, row: Row, *, now: bool = True) -> TaskBrief:
        """Makes a line of a row of the fragment `brief_row`; `now` is false for a row of the past, without gates."""
        origin, number, state = row[1], row[2], row[3]
        reason, wake_at_ms = row[4], row[5]
        if now and state == "idle":
            reason, wake_at_ms = self._shared_reason(row[7], ready=bool(row[17]))
        return TaskBrief(
            id=row[0],
            name=short_name(origin, number),
            origin=origin,
            state=state,
            reason=reason,
            wake_at_ms=wake_at_ms,
            title=row[6],
            executor=row[7],
            priority=row[8],
            lane=row[9],
            kind=row[10],
            labels=journal.labels_of(row[11]),
            attempt=row[12] or 0,
            created_at_ms=row[13],
            started_at_ms=row[14],
            finished_at_ms=row[15],
            problem=journal.problem_of(row[16]),
        )

    def _shared_reason(self, executor: str, *, ready: bool) -> tuple[str | None, int | None]:
        gate = self._gates.of(executor)
        if gate is not None:
            return ("login" if self._gates.login(executor) else gate.cause), gate.wake_at_ms
        return ("slots" if ready else "lane"), None

    def brief_of(self, reader: Reader, task_id: str) -> TaskBrief:
        """Gives a task in one line; raises Rejected(`unknown_task`)."""
        row = reader.one("brief_by_id", task_id)
        if row is None:
            raise Rejected("unknown_task", task=task_id, hint="")
        return self.brief(row)

    def view(self, reader: Reader, caller: Caller, params: Get, *, timed_out: bool) -> TaskView:
        """Gives everything that is known of a task."""
        task = find_task(reader, params.task, caller)
        attempts = [journal.attempt_of(row) for row in reader.all("attempts_of", task.id, ATTEMPTS_MAX)]
        total = reader.one("count_attempts", task.id)
        after = [_name(reader, id, caller) for id in task.work.after]
        return TaskView(
            task=self.brief_of(reader, task.id),
            why=self.sentence(reader, caller, task, attempts[0] if attempts else None),
            work=msgspec.to_builtins(self._shown(task)),
            key=task.key,
            assignee=task.assignee,
            parent=task.parent and _name(reader, task.parent, caller),
            not_before_ms=task.not_before_ms,
            deadline_ms=task.deadline_ms,
            approval=task.approval and task.approval.partition(":")[0],
            after=after,
            attempts=[_attempt(attempt, output=params.output) for attempt in reversed(attempts)],
            attempts_total=total[0] if total else 0,
            money=self.money.task(reader, task),
            timed_out=timed_out,
            questions=question_views(reader, task, self._context.config.task.answer_timeout_s) or None,
        )

    def _shown(self, task: Task) -> Work:
        """Gives the work as it was asked for; for an agent, and for what waits for approval, as it would run."""
        executor = self._context.executors.get(task.executor)
        shows = task.approval == "needed" or (executor is not None and executor.takes_prompts)
        return executor.exact(task.work) if executor is not None and shows else task.work

    def sentence(self, reader: Reader, caller: Caller, task: Task, last: Attempt | None) -> str:
        """Says why the task is where it is."""
        context = self._context
        executor = context.executors.get(task.executor)
        holder = None if task.lane is None else reader.one("lane_holder", task.lane)
        running = context.running_by_executor()
        chosen = "" if task.route is None else said(task.route, "went" if task.attempt else "goes")
        text = why(
            task,
            Situation(
                now_ms=context.clock.wall_ms(),
                last=last,
                attempts_max=task.work.attempts_max or context.config.retry.attempts_max,
                parent=task.parent and _name(reader, task.parent, caller),
                trouble=context.trouble(),
                unclear=None if last is None else context.unclear.get(last.id),
                unwritten=None if last is None else context.unwritten.get(last.id),
                may_ask=last is not None and last.id in context.may_ask,
                login=self._gates.login(task.executor) is not None,
                open_before=tuple(_seen(caller, row) for row in reader.all("open_dependencies", task.id)),
                gate=self._gates.of(task.executor),
                zone=context.zone,
                no_seat=context.fleet.waits(task.executor, task.labels),
                unsent=last is not None and last.ended_at_ms is None and is_queued(reader, last.id, COMMAND),
                lane_holder=None if holder is None or holder[0] == task.id else _seen(caller, holder[1:]),
                executor_known=executor is not None,
                executor_full=executor is not None
                and executor.concurrency is not None
                and running[task.executor] >= executor.concurrency,
                slots_full=task.executor not in context.fleet.executors
                and len(context.running) >= context.config.daemon.slots_max,
                running=len(context.running),
                cost=self.money.sentence(reader, task),
                asks=tuple(open_requests(reader, task)),
                answer_timeout_s=context.config.task.answer_timeout_s,
            ),
        )
        calls = ""
        if last is not None and executor is not None and executor.kind == MODEL:
            calls = calls_text(journal.notes(reader, last.id, "call"))
        return " ".join(part for part in (text, chosen, calls) if part)

    def page(self, reader: Reader, caller: Caller, params: Search) -> Page:
        """Gives the newest tasks that fit the filter; raises Rejected(`bad_cursor`, `bad_request`)."""
        for state in params.states:
            if state not in STATES:
                detail = f"there is no state {state} (there are: {', '.join(STATES)})"
                raise Rejected("bad_request", detail=detail, where="states")
        before = _cursor(params.cursor)
        found: list[TaskBrief] = []
        looked_at = 0
        while looked_at < SCAN_MAX:
            rows = _rows(reader, params, before, max(50, min(500, params.limit * 2)))
            for row in rows:
                before = row[18]
                looked_at += 1
                if _fits(row, params) and _shows(caller, row):
                    found.append(self.brief(row))
                    if len(found) == params.limit:
                        return Page(found, str(before))
            if not rows or (params.since_ms is not None and rows[-1][13] < params.since_ms):
                return Page(found, None)
        return Page(found, str(before))

    def needs_you(self, reader: Reader, caller: Caller) -> tuple[list[NeedsYou], int]:
        """Gives what waits for a person, and how many there are in all (counted up to a limit)."""
        everything = caller.rights.sees_all
        look_at = NEEDS_YOU_MAX if everything else NEEDED_MAX

        def rows(query: str, *asked: str) -> list[Row]:
            return [row for row in reader.all(query, *asked, look_at) if _shows(caller, row)]

        found: list[NeedsYou] = []
        for row in rows("needs_you", "uncertain"):
            brief = self.brief(row)
            do = f"omnictl resolve {brief.name} --done | --again | --fail"
            found.append(NeedsYou(brief.name, brief.title, "nobody knows whether it finished", do))
        for row in rows("needs_you", "input_required"):
            brief = self.brief(row)
            asks = open_requests(reader, journal.need_task(reader, brief.id))
            what = f"asks: {message_of(asks[0])}" if asks else "asks something"
            found.append(NeedsYou(brief.name, brief.title, what, f"omnictl answer {brief.name}"))
        for row in rows("waiting_for", "approval"):
            brief = self.brief(row)
            what = f"wants to run on {brief.executor}"
            found.append(NeedsYou(brief.name, brief.title, what, f"omnictl approve {brief.name} | deny {brief.name}"))
        logins = [gate for gate in self._gates.all() if gate.cause == "login" and caller.rights.opens(gate.subject)]
        for gate in logins:
            said = gate.problem.what if gate.problem else "it is not logged in"
            found.append(NeedsYou(gate.subject, said, "waits for you", f"omnictl resume --executor {gate.subject}"))
        tally = self._context.store.tally
        total = sum(tally.get(key, 0) for key in ("waiting:approval", "uncertain", "input_required")) + len(logins)
        for row in rows("needs_money") if tally.get("waiting:budget") else ():
            brief = self.brief(row)
            total += 1
            what = "has used what it may cost"
            found.append(
                NeedsYou(brief.name, brief.title, what, f"omnictl budget {brief.name} USD | cancel {brief.name}")
            )
        return found[:NEEDS_YOU_MAX], total if everything else len(found)

    def problems(self, caller: Caller) -> list[Problem]:
        """Gives what a person must mend, besides the tasks that need one: disk, database, and missing keys.

        What is about executors and schedules that the caller doesn't get to see is left out.
        """
        context = self._context
        gates = (
            gate
            for gate in self._gates.all()
            if gate.cause not in ("login", LINK)
            and self._gates.login(gate.subject) is gate
            and caller.rights.opens(gate.subject)
        )
        found = [
            *context.damage,
            *(context.channel_problems if caller.role == "person" else ()),
            *(context.preset_problems if caller.rights.sees_all else ()),
            *(gate.problem for gate in gates if gate.problem is not None),
            *(gate.problem for gate in self._gates.refused_links() if gate.problem is not None),
        ]
        local = context.modes.local_model()
        if context.modes.mode == "brainstem" and local.why and local.cause != "idle":
            found.append(Problem.make("local_model_asleep", detail=local.why))
        trouble = context.trouble()
        if trouble is not None:
            return [trouble, *found]
        try:
            DiskRoom(context.config.state.dir, context.clock).check(context.config.store.free_bytes_min)
        except Retryable as error:
            return [Problem.of(error), *found]
        return found

    def executors(self, running: Mapping[str, int]) -> list[ExecutorView]:
        """Gives the executors, and how many tasks each runs as told, without agents that nobody has."""
        return [
            ExecutorView(name, executor.kind, running.get(name, 0), executor.concurrency, executor.idempotent)
            for name, executor in sorted(self._context.executors.items())
            if running.get(name) or self._gates.of(name) is not None or is_present(self._context.config, name)
        ]

    def gates(self) -> list[GateView]:
        """Gives the closed gates."""
        now_ms, here = self._context.clock.wall_ms(), self._context.zone
        return [gate_view(gate, gate_text(gate, now_ms, here)) for gate in self._gates.all()]


def next_wake(reader: Reader) -> int | None:
    """Gives when the next waiting task is due."""
    row = reader.one("next_wake")
    return row[0] if row else None


def by_state(tally: Mapping[str, int]) -> dict[str, int]:
    """Adds up a tally by state."""
    counts: dict[str, int] = {}
    for key, count in tally.items():
        state = key.partition(":")[0]
        if count:
            counts[state] = counts.get(state, 0) + count
    return counts


def by_reason(tally: Mapping[str, int]) -> dict[str, int]:
    """Gives the waiting tasks of a tally by their reason."""
    return {key.partition(":")[2]: count for key, count in tally.items() if count and ":" in key}


def gate_view(gate: Gate, text: str) -> GateView:
    """Makes what clients see of a gate."""
    return GateView(gate.id, gate.cause, gate.subject, gate.closed_at_ms, gate.wake_at_ms, gate.problem, text)


def _attempt(attempt: Attempt, *, output: bool) -> AttemptView:
    return AttemptView(
        id=attempt.id,
        number=attempt.number,
        executor=attempt.executor,
        started_at_ms=attempt.started_at_ms,
        ended_at_ms=attempt.ended_at_ms,
        outcome=attempt.outcome,
        exit_code=attempt.exit_code,
        problem=attempt.problem,
        output=attempt.output if output else None,
        output_bytes=attempt.output_bytes,
        value=attempt.value,
        cost_usd=attempt.cost_usd,
        reserved_usd=attempt.reserved_usd,
    )


def _name(reader: Reader, id: str, caller: Caller) -> str:
    task = journal.task_by_id(reader, id)
    if task is None:
        return id
    return task.name if caller.sees(task) else UNSEEN


def _shows(caller: Caller, row: Row) -> bool:
    """Tells whether the caller sees the task of a row of the fragment `brief_row`."""
    return caller.rights.sees_all or caller.rights.sees(row[1], journal.labels_of(row[11]))


def _seen(caller: Caller, row: Row) -> str:
    """Gives the name of a task of which origin, number and labels are known."""
    origin, number, labels = row
    return short_name(origin, number) if caller.rights.sees(origin, journal.labels_of(labels)) else UNSEEN


def _cursor(text: str | None) -> int:
    if text is None:
        return LAST_ORD
    if not text.isdecimal() or len(text) > 19:
        raise Rejected("bad_cursor", cursor=text[:50])
    return min(int(text), LAST_ORD)


def _rows(reader: Reader, params: Search, before: int, limit: int) -> list[Row]:
    """Takes the index that fits the filter best; `_fits` does the rest."""
    if params.labels:
        return reader.all("labelled_page", params.labels[0], before, limit)
    if len(params.states) == 1:
        return reader.all("open_tasks_page", params.states[0], before, limit)
    if params.states and not TERMINAL.intersection(params.states):
        rows = [row for state in params.states for row in reader.all("open_tasks_page", state, before, limit)]
        return sorted(rows, key=_ord, reverse=True)[:limit]
    return reader.all("tasks_page", before, limit)


def _ord(row: Row) -> Any:
    return row[18]


def _fits(row: Row, params: Search) -> bool:
    return (
        (not params.states or row[3] in params.states)
        and (params.executor is None or row[7] == params.executor)
        and (params.origin is None or row[1] == params.origin)
        and (params.lane is None or row[9] == params.lane)
        and (params.since_ms is None or row[13] >= params.since_ms)
        and (params.text is None or params.text.casefold() in row[6].casefold())
        and (not params.labels or set(params.labels) <= set(journal.labels_of(row[11])))
    )
