"""Why a task is where it is, in one sentence: what happened, why, what comes next. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from omnid.flow.asking import Request, message_of
from omnid.model import Attempt, Gate, Problem, Task
from omnid.route.admission import LIMITS, is_ajar
from omnid.times import local

HOPS_SHOWN_MAX = 5


class Situation(NamedTuple):
    """The facts around a task that `why` needs."""

    now_ms: int
    last: Attempt | None
    attempts_max: int
    open_before: tuple[str, ...]
    """Names of tasks that must succeed first."""
    gate: Gate | None
    lane_holder: str | None
    executor_known: bool
    executor_full: bool
    slots_full: bool
    running: int
    no_seat: str | None = None
    """Why no runner on another host takes it now, where its executor works on those."""
    unsent: bool = False
    """Whether its command waits to be sent to the runner that its attempt was given to."""
    trouble: Problem | None = None
    """Why nothing can be written now."""
    unclear: Problem | None = None
    """Why nobody can tell yet what became of its attempt, which an earlier daemon began."""
    unwritten: Problem | None = None
    """Why the result of its attempt, which has ended, isn't written yet."""
    may_ask: bool = False
    """Whether its attempt may be the one that asks something, which nobody knows yet."""
    login: bool = False
    """Whether the gate is closed because the executor lacks a key or a login."""
    parent: str | None = None
    """The name of the task from inside which it was submitted."""
    cost: str | None = None
    """What the task has cost so far, where it costs anything."""
    asks: tuple[Request, ...] = ()
    """What its attempt waits to be answered."""
    answer_timeout_s: float = 0.0
    zone: ZoneInfo = ZoneInfo("UTC")
    """In which times of day are told."""


def clock(at_ms: int, now_ms: int, zone: ZoneInfo) -> str:
    """Writes an instant as local time, with its day where that is not today's: ``20:00 (Europe/Berlin)``."""
    at, now = local(at_ms, zone), local(now_ms, zone)
    day = "" if at.date() == now.date() else f"{at:%b} {at.day}, "
    return f"{day}{at:%H:%M} ({zone.key})"


def gate_text(gate: Gate, now_ms: int, zone: ZoneInfo) -> str:
    """Says in one sentence what a gate closes, why, and what opens it."""
    what = "everything" if gate.subject == "*" else f"executor {gate.subject}"
    if gate.cause == "paused":
        resume = "omnictl resume" if gate.subject == "*" else f"omnictl resume --executor {gate.subject}"
        return f"{what} is paused; `{resume}` lets it go on."
    if gate.cause in LIMITS:
        return f"{_limited(gate, now_ms, zone)}."
    if gate.cause in ("hours", "budget") and gate.problem is not None:
        return f"{_inside(gate.problem.what)}; it goes on {_when(gate.wake_at_ms, now_ms)}."
    if gate.cause == "link" and gate.problem is not None:
        return f"{_inside(gate.problem.what)}; it is dialled again {_when(gate.wake_at_ms, now_ms)}."
    if gate.problem is not None and gate.problem.code == "no_runner":
        return f"{_inside(gate.problem.what)}; it goes on when one is there."
    reason = f" ({_inside(gate.problem.what)})" if gate.problem else ""
    if gate.cause == "cloud":
        return f"{what} waits for the cloud{reason}; all channels are probed again and again, and it goes on by itself."
    return f"{what} is down{reason}; it is tried again {_when(gate.wake_at_ms, now_ms)}."


def _limited(gate: Gate, now_ms: int, zone: ZoneInfo) -> str:
    said = _inside(gate.problem.what) if gate.problem else f"{gate.subject} has hit a limit"
    if gate.wake_at_ms is None or is_ajar(gate, now_ms):
        then = "one task tries it now, and the others follow"
    else:
        at = f"{clock(gate.wake_at_ms, now_ms, zone)}, {_when(gate.wake_at_ms, now_ms)}"
        then = f"one task tries it at {at}, and the others follow"
    person = f"; `omnictl resume --executor {gate.subject}` does it at once" if gate.cause == "login" else ""
    return f"{said}; {then}{person}"


def calls_text(notes: Sequence[Mapping[str, Any]]) -> str:
    """Says which ways the calls of an attempt took, and why; `notes` are its notes of kind ``call``, oldest first."""
    if not notes:
        return ""
    last = notes[-1]
    way = "through the gateway" if last.get("way") == "gateway" else "directly"
    which = "The call" if len(notes) == 1 else f"Call {len(notes)}"
    text = f"{which} went to {last.get('channel')} ({last.get('model')}) {way}: {last.get('why')}"
    before = [str(note["after"]) for note in notes if note.get("after")][-HOPS_SHOWN_MAX:]
    text += f"; before it, {'; then '.join(before)}" if before else ""
    turned = last.get("turned_down")
    return f"{text}; turned down: {', '.join(turned)}." if turned else f"{text}."


def span(seconds: float) -> str:
    """Writes a duration as people say it: ``40 s``, ``8 min``, ``3 h 10 min``, ``2 d``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes = whole // 60
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} d"


def why(task: Task, facts: Situation) -> str:
    """Gives the sentence."""
    sentence = _sentence(task, facts)
    if facts.parent is not None:
        sentence = f"{task.name} (submitted by {facts.parent}){sentence.removeprefix(task.name)}"
    return sentence if facts.cost is None else f"{_inside(sentence)} (cost: {facts.cost})."


def _sentence(task: Task, facts: Situation) -> str:
    """Gives the sentence, which begins with the task's name."""
    match task.state:
        case "idle":
            return f"{task.name} waits {_gated(task, facts)}."
        case "waiting":
            return f"{task.name} waits {_own(task, facts)}."
        case "dispatching" | "executing" | "input_required":
            return _running(task, facts)
        case "uncertain":
            what = task.problem.what if task.problem else "Nobody knows whether it finished."
            return (
                f"{task.name} is uncertain: {_inside(what)}; look at what it left, then "
                f"`omnictl resolve {task.name} --done`, `--again` or `--fail`."
            )
        case _:
            return _ended(task, facts)


def _ago(then_ms: int | None, facts: Situation) -> str:
    return "" if then_ms is None else f" {span((facts.now_ms - then_ms) / 1000)} ago"


def _in(then_ms: int | None, facts: Situation) -> str:
    return _when(then_ms, facts.now_ms)


def _when(then_ms: int | None, now_ms: int) -> str:
    if then_ms is None:
        return "when that is settled"
    return f"in {span((then_ms - now_ms) / 1000)}" if then_ms > now_ms else "now"


def _inside(sentence: str) -> str:
    return sentence.rstrip(".")


def _gated(task: Task, facts: Situation) -> str:
    if facts.gate is not None:
        return _behind(task, facts.gate, facts)
    if facts.trouble is not None:
        return f"because nothing can be written ({_inside(facts.trouble.what)}); {_room()}, and it starts by itself"
    if not facts.executor_known:
        return f"because the config has no executor {task.executor} any more; add it, or `omnictl assign {task.name}`"
    if facts.lane_holder is not None:
        return f"for its lane {task.lane}, where {facts.lane_holder} runs; it is next by priority and order"
    if facts.no_seat is not None:
        return f"for a runner on another host ({facts.no_seat}); it is next by priority and order"
    if facts.slots_full:
        return f"for a free slot: {facts.running} tasks run, which is the most that daemon.slots_max lets run at once"
    if facts.executor_full:
        return f"for executor {task.executor}, which already runs as many tasks as it may at once"
    return "for its turn and starts as soon as a slot is free"


def _behind(task: Task, gate: Gate, facts: Situation) -> str:
    if gate.cause == "paused":
        whole = gate.subject == "*"
        what = "because everything is paused" if whole else f"because executor {gate.subject} is paused"
        return f"{what}; `omnictl resume{'' if whole else f' --executor {gate.subject}'}` lets it go on"
    if gate.cause in LIMITS:
        begun = "; it goes on where it was" if task.attempt else ""
        return f"because {_limited(gate, facts.now_ms, facts.zone)}{begun}"
    if gate.cause == "hours" and gate.problem is not None:
        again = _in(gate.wake_at_ms, facts)
        return f"because its executor is outside its hours ({_inside(gate.problem.what)}); it goes on {again}"
    if gate.cause == "budget" and gate.problem is not None:
        return f"for money: {_inside(gate.problem.what)}; {_money_next(gate.wake_at_ms, gate.problem, facts)}"
    away = _away(gate, facts)
    if away:
        return away
    reason = f" ({_inside(gate.problem.what)})" if gate.problem else ""
    if gate.cause == "cloud":
        return f"for the cloud{reason}; all channels are probed again and again, and it goes on when one answers"
    again = f"it is tried again {_in(gate.wake_at_ms, facts)}"
    if facts.login:
        needs = f"because executor {gate.subject} needs a key or a login{reason}"
        return f"{needs}; provide it: {again}, or at once by `omnictl doctor`"
    return f"because executor {gate.subject} is down{reason}; {again}"


def _away(gate: Gate, facts: Situation) -> str:
    """Says what of runners on other hosts keeps a task from its start; empty where it is something else."""
    if gate.problem is None:
        return ""
    reason = _inside(gate.problem.what)
    if gate.cause == "link":
        return f"for the link {gate.subject} ({reason}); it is dialled again {_in(gate.wake_at_ms, facts)}"
    return f"for a runner ({reason}); it starts when one is there" if gate.problem.code == "no_runner" else ""


def _money_next(wake_at_ms: int | None, problem: Problem, facts: Situation) -> str:
    return _inside(problem.do) if wake_at_ms is None else f"it goes on {_in(wake_at_ms, facts)} at the latest"


def _own(task: Task, facts: Situation) -> str:
    last = ""
    if facts.last is not None and facts.last.problem is not None:
        last = f": attempt {facts.last.number} ended with: {_inside(facts.last.problem.what)}"
    match task.reason:
        case "paused":
            return f"because it is paused; `omnictl resume {task.name}` lets it go on"
        case "approval":
            return _approval(task)
        case "budget" if task.problem is not None:
            return f"for money: {_inside(task.problem.what)}; {_money_next(task.wake_at_ms, task.problem, facts)}"
        case "dependency":
            return f"for {', '.join(facts.open_before)} to succeed; it starts then"
        case "not_before":
            return f"for its time (not before); it starts {_in(task.wake_at_ms, facts)}"
        case "hours":
            return f"for its hours ({task.work.only}); it starts {_in(task.wake_at_ms, facts)}"
        case "backoff":
            parked = facts.last is not None and facts.last.outcome == "parked"
            nothing = "no channel could take it" if parked else "it did not start"
            tried = f"{task.failures} of {facts.attempts_max} attempts failed" if task.failures else nothing
            return f"before it tries again {_in(task.wake_at_ms, facts)}; {tried}{last}"
        case _:
            return f"({task.reason}) and goes on {_in(task.wake_at_ms, facts)}"


def _approval(task: Task) -> str:
    why = f", because agents may not do this on executor {task.executor} by themselves"
    if task.problem is not None and task.problem.code == "loop":
        why = f": {_inside(task.problem.what)}"
    return f"for a person's approval{why}; `omnictl approve {task.name}` or `omnictl deny {task.name}`"


def _room() -> str:
    return "free some space under the state directory that `omnictl status` names"


def _running(task: Task, facts: Situation) -> str:
    if facts.unwritten is not None:
        do = _room() if facts.unwritten.code == "disk_full" else "`omnictl doctor` checks the store"
        return (
            f"{task.name} has ended on {task.executor} (attempt {task.attempt}), but its result can't be written yet: "
            f"{_inside(facts.unwritten.what)}; {do}, and it is written by itself."
        )
    if facts.unclear is not None:
        return (
            f"{task.name} was running on {task.executor} (attempt {task.attempt}) when omnid ended, and what became of "
            f"it can't be told yet: {_inside(facts.unclear.what)}; that is looked at again by itself."
        )
    begun = _ago(facts.last.started_at_ms if facts.last else None, facts)
    runner = None if facts.last is None else (facts.last.route or {}).get("runner")
    if facts.unsent:
        way = f"{task.name} is on its way to runner {runner} (attempt {task.attempt}, given to it{begun})"
        return f"{way}; its command goes out as soon as the link is up."
    where = task.executor if runner is None else f"{task.executor} at runner {runner}"
    text = f"{task.name} runs on {where} (attempt {task.attempt}, started{begun})"
    if task.cancel:
        return f"{text}; a cancel was asked for, and it ends as soon as its executor lets go."
    if facts.asks:
        return _asking(task, facts.asks[0], facts)
    if facts.may_ask:
        return (
            f"{text}; {task.executor} asks something without saying in which of its open calls, so nobody is asked "
            "yet: that is found out as the others end."
        )
    tries = facts.attempts_max - task.failures
    after = "a failure would end it" if tries <= 1 else f"it may fail {tries - 1} more times and be tried again"
    return f"{text}; {after}."


def _asking(task: Task, first: Request, facts: Situation) -> str:
    more = len(facts.asks) - 1
    others = f" (and {more} more question{'s' if more > 1 else ''})" if more else ""
    until_ms = first.asked_at_ms + round(1000 * facts.answer_timeout_s)
    return (
        f'{task.name} asks on {task.executor}{_ago(first.asked_at_ms, facts)}: "{message_of(first)}"{others}; '
        f"`omnictl answer {task.name}` answers it; otherwise the answer is `cancel`, {_in(until_ms, facts)}."
    )


def _ended(task: Task, facts: Situation) -> str:
    when = _ago(task.finished_at_ms, facts)
    if task.state == "completed":
        if facts.last is None or facts.last.outcome != "success":
            return f"{task.name} was completed by hand{when}; nothing comes next."
        tries = f" at attempt {facts.last.number}" if facts.last.number > 1 else ""
        return f"{task.name} was completed{when} by {facts.last.executor}{tries}; nothing comes next."
    cause = f": {_inside(task.problem.what)}" if task.problem else ""
    tries = f" after {task.attempt} attempts" if task.attempt > 1 else ""
    end = "failed" if task.state == "failed" else "was cancelled"
    return f"{task.name} {end}{when}{tries}{cause}; nothing comes next unless `omnictl retry {task.name}`."
