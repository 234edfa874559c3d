"""``omnictl status``."""

from collections.abc import Mapping, Sequence
from typing import Any

from omnid import platform
from omnid.ctl import times, views
from omnid.ctl.context import Context
from omnid.ctl.options import Verb
from omnid.ctl.render import Cell, size
from omnid.states import RUNNING, STATES, TERMINAL

_RUNNING_SHOWN_MAX = 8
_WAITING_LOOKED_AT_MAX = 200
_LABEL_COLUMNS = 11
LIMITS = ("login", "rate_limit")
"""Causes of gates whose text also says until when, in local time."""
_ENDED = tuple(state for state in STATES if state in TERMINAL)


def _status(context: Context) -> int:
    status = context.call("status")
    if context.json:
        context.give_json(status)
        return 0
    screen, now_ms = context.screen, status["now_ms"]
    mode = Cell(status["mode"], "green" if status["mode"] == "normal" else "yellow")
    up = times.span(now_ms - status["started_at_ms"])
    screen.put(Cell(f"omnid {status['version']}", "bold"), "  ", mode, f"  up {up}  pid {status['pid']}")
    screen.put()
    _runs(context, status)
    _waits(context, status)
    ended = {name: status["tasks"].get(name, 0) for name in _ENDED}
    screen.paragraph("ended", views.counts(ended) or "none", _LABEL_COLUMNS)
    _gates(context, status)
    _runners(context, status)
    _outbox(context, status)
    if status["today"]:
        screen.paragraph("money", views.today(status["today"]), _LABEL_COLUMNS)
    _disk(context, status)
    screen.put(Cell("executors", "dim"))
    screen.table((), map(_executor, status["executors"]), indent="  ")
    if status["config_problem"]:
        screen.put()
        screen.put("The changed config was not taken over:")
        views.problem(screen, status["config_problem"], indent=2)
    views.needs_you(screen, status)
    return 0


def _runs(context: Context, status: Mapping[str, Any]) -> None:
    context.screen.paragraph("runs", f"{status['running']} of {status['slots']} slots", _LABEL_COLUMNS)
    if any(status["tasks"].get(name) for name in RUNNING):
        page = context.call("task.list", states=sorted(RUNNING), limit=_RUNNING_SHOWN_MAX)
        now_ms = status["now_ms"]
        rows = [
            (
                Cell(task["name"], "bold"),
                Cell(views.when(task, now_ms)),
                Cell(task["executor"], "dim"),
                Cell(task["title"]),
            )
            for task in page["tasks"]
        ]
        context.screen.table((), rows, indent="  ")


def _waits(context: Context, status: Mapping[str, Any]) -> None:
    waiting = {name: status["tasks"].get(name, 0) for name in ("idle", "waiting")}
    total = sum(waiting.values())
    text = f"{total}: {views.counts(waiting)}"
    if not total:
        text = "nothing"
    elif total <= _WAITING_LOOKED_AT_MAX:
        # Beyond that the tasks aren't read: the screen must come at once, and the numbers by state are exact.
        text = f"{total}: {views.counts(_reasons(context, list(waiting)))}"
    if status["next_wake_at_ms"] is not None:
        text += f"; next try {times.distance(status['next_wake_at_ms'], status['now_ms'])}"
    context.screen.paragraph("waits", text, _LABEL_COLUMNS)


def _reasons(context: Context, states: list[str]) -> dict[str, int]:
    reasons: dict[str, int] = {}
    for task in context.call("task.list", states=states, limit=_WAITING_LOOKED_AT_MAX)["tasks"]:
        reason = task["reason"] or "ready"
        reasons[reason] = reasons.get(reason, 0) + 1
    return dict(sorted(reasons.items(), key=lambda item: -item[1]))


def _gates(context: Context, status: Mapping[str, Any]) -> None:
    for number, gate in enumerate(status["gates"]):
        subject = "everything" if gate["subject"] == "*" else gate["subject"]
        again = "until resumed" if gate["cause"] == "paused" else "no time of next try"
        if gate["wake_at_ms"] is not None:
            what = "opens" if gate["cause"] == "hours" else "next try"
            again = f"{what} {times.distance(gate['wake_at_ms'], status['now_ms'])}"
        text = f"{gate['cause']}: {subject}, closed {times.distance(gate['closed_at_ms'], status['now_ms'])}, {again}"
        if gate["problem"]:
            text += f". {gate['text'] if gate['cause'] in LIMITS else gate['problem']['what']}"
        context.screen.paragraph("" if number else "gates", text, _LABEL_COLUMNS, "yellow")


def _runners(context: Context, status: Mapping[str, Any]) -> None:
    for number, one in enumerate(status["runners"]):
        text = f"{one['name']}: {one['state'].replace('_', ' ')}"
        if one["state"] == "up":
            text += f", {one['running']} of {one['slots']} slots"
        elif one["attempts"]:
            text += f", {one['attempts']} attempts there"
        style = "" if one["state"] == "up" else "yellow"
        context.screen.paragraph("" if number else "runners", text, _LABEL_COLUMNS, style)


def _outbox(context: Context, status: Mapping[str, Any]) -> None:
    """Shows what waits for which destination; one that has nothing before it isn't worth a line."""
    shown = [queue for queue in status["outbox"] if queue["waiting"] or queue["dead"] or queue["dropped"]]
    for number, queue in enumerate(shown):
        parts = [f"{queue['waiting']} wait"] if queue["waiting"] else []
        if queue["retry_at_ms"] is not None:
            parts.append(f"next try {times.distance(queue['retry_at_ms'], status['now_ms'])}")
        if queue["dead"]:
            parts.append(f"{queue['dead']} given up (omnictl dead)")
        if queue["dropped"]:
            parts.append(f"{queue['dropped']} fell out")
        text = f"{queue['destination']}: {', '.join(parts)}"
        if queue["problem"]:
            text += f". {queue['problem']['what']}"
        style = "yellow" if queue["problem"] or queue["dead"] else ""
        context.screen.paragraph("" if number else "outbox", text, _LABEL_COLUMNS, style)


def _executor(executor: Mapping[str, Any]) -> Sequence[Cell]:
    most = "" if executor["concurrency"] is None else f" of {executor['concurrency']}"
    return Cell(executor["name"]), Cell(executor["kind"], "dim"), Cell(f"{executor['running']}{most} running")


def _disk(context: Context, status: Mapping[str, Any]) -> None:
    try:
        free = f"{size(platform.free_bytes(status['state_dir']))} free, "
    except OSError:
        # The daemon sees its disk even where this process doesn't; its own limit guards it.
        free = ""
    context.screen.paragraph("disk", f"{free}{status['state_dir']}", _LABEL_COLUMNS)


VERBS = {"status": Verb(_status, "Shows what runs, what waits and why, closed gates, executors, and what needs you.")}
