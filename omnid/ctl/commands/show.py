"""``omnictl show`` and ``omnictl why``."""

from collections.abc import Iterator, Mapping
from typing import Any

from omnid.ctl import times, views
from omnid.ctl.context import Context
from omnid.ctl.options import Verb
from omnid.ctl.render import Cell, clean_lines, fit, size

_LABEL_COLUMNS = 13
_TAIL_LINES_MAX = 12


def _show(context: Context) -> int:
    view = context.call("task.get", task=context.given.arguments[0])
    if context.json:
        context.give_json(view)
        return 0
    task, screen, now_ms = view["task"], context.screen, context.world.now_ms()
    views.headline(screen, task)
    screen.paragraph("", view["why"], 2)
    screen.put()
    for label, text in (*views.work(view["work"]), *_facts(view, now_ms)):
        screen.paragraph(f"  {label}", text, _LABEL_COLUMNS + 2)
    if task["problem"] and not view["attempts"]:
        screen.put()
        views.problem(screen, task["problem"], indent=2)
    for attempt in view["attempts"]:
        _attempt(context, attempt, now_ms)
    if view["attempts_total"] > len(view["attempts"]):
        screen.tell(f"{view['attempts_total']} attempts in all.")
    if view["attempts"]:
        _tail(context, task["name"], view["attempts"][-1])
    return 0


def _facts(view: Mapping[str, Any], now_ms: int) -> Iterator[tuple[str, str]]:
    """Gives what is known of a task besides its work, as labels and texts; nothing of what isn't set."""
    task = view["task"]
    yield "executor", task["executor"]
    if task["priority"]:
        yield "priority", str(task["priority"])
    for label, text in (
        ("lane", task["lane"]),
        ("kind", task["kind"] if task["kind"] != "general" else None),
        ("labels", ", ".join(task["labels"])),
        ("after", ", ".join(view["after"])),
        ("assignee", view["assignee"]),
        ("approval", view["approval"]),
        ("parent", view["parent"]),
        ("reply to", views.compact(view["work"]["reply_to"]) if view["work"].get("reply_to") else None),
        ("key", view["key"]),
    ):
        if text:
            yield label, text
    for question in view["questions"] or ():
        yield f"asks {question['key']}", str(question["params"].get("message", ""))
    yield from _agents(view)
    limits = {"timeout": "timeout_s", "backoff": "backoff_s"}
    for label, key in limits.items():
        if view["work"].get(key) is not None:
            yield label, times.span(view["work"][key] * 1000)
    if view["work"].get("attempts_max") is not None:
        yield "attempts", f"at most {view['work']['attempts_max']}"
    for label, at_ms in (
        ("submitted", task["created_at_ms"]),
        ("not before", view["not_before_ms"]),
        ("deadline", view["deadline_ms"]),
        ("started", task["started_at_ms"]),
        ("next try", task["wake_at_ms"]),
        ("ended", task["finished_at_ms"]),
    ):
        if at_ms is not None:
            yield label, f"{times.stamp(at_ms)} ({times.distance(at_ms, now_ms)})"
    yield "id", task["id"]


def _agents(view: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Gives what an agent's task has besides: a place to work, and a cost."""
    place = view["workspace"]
    if place is not None:
        branch = f" (on {place['branch']}, from {place['base'][:10]})" if place["branch"] else " (a copy)"
        yield "workspace", place["path"] + branch
        for note in place["notes"]:
            yield "", note
    if view["money"]:
        limit = view["money"]["limit_usd"]
        of = "" if limit is None else f", of at most {views.usd(limit)}"
        yield "cost", views.amounts(view["money"]["amounts"]) + of


def _attempt(context: Context, attempt: Mapping[str, Any], now_ms: int) -> None:
    ended_at_ms = attempt["ended_at_ms"]
    took = times.span((now_ms if ended_at_ms is None else ended_at_ms) - attempt["started_at_ms"])
    parts = [
        f"{attempt['outcome'] or 'running'} on {attempt['executor']}",
        f"for {took}" if ended_at_ms is None else f"after {took}",
        times.distance(attempt["started_at_ms"] if ended_at_ms is None else ended_at_ms, now_ms),
    ]
    if attempt["exit_code"] is not None:
        parts.append(f"exit code {attempt['exit_code']}")
    if attempt["output_bytes"]:
        parts.append(f"{size(attempt['output_bytes'])} of output")
    parts += _cost(attempt)
    context.screen.put()
    style = {None: "cyan", "success": "green", "cancelled": "dim", "lost": "magenta"}.get(attempt["outcome"], "red")
    context.screen.paragraph(f"  #{attempt['number']}", ", ".join(parts), 6, style, "bold")
    if attempt["problem"]:
        views.problem(context.screen, attempt["problem"], indent=6)
    if attempt["value"] is not None:
        context.screen.paragraph("      value", views.compact(attempt["value"]), 12)


def _cost(attempt: Mapping[str, Any]) -> Iterator[str]:
    """Says what an attempt has cost; unknown is unknown, and that what was reserved for it counts."""
    reserved = attempt["reserved_usd"]
    if attempt["cost_usd"] is not None:
        yield views.usd(attempt["cost_usd"])
    elif reserved is not None:
        yield f"{views.usd(reserved)} reserved" + ("" if attempt["ended_at_ms"] is None else ", its cost is unknown")


def _tail(context: Context, name: str, attempt: Mapping[str, Any]) -> None:
    """Writes the last lines of an attempt's output behind a bar, so that nothing in it passes for omnid's own words."""
    lines = clean_lines(attempt["output"] or "").rstrip("\n").split("\n")
    if lines == [""]:
        return
    screen = context.screen
    shown = lines[-_TAIL_LINES_MAX:]
    whole = len(shown) == len(lines) and len(attempt["output"].encode(errors="replace")) >= attempt["output_bytes"]
    screen.put()
    screen.put(f"  Output of #{attempt['number']}" + ("" if whole else f", its end; all of it: omnictl logs {name}"))
    for line in shown:
        screen.put(Cell("  │ ", "dim"), fit(line.expandtabs(), screen.columns - 4))


def _why(context: Context) -> int:
    answer = context.call("task.why", task=context.given.arguments[0])
    if context.json:
        context.give_json(answer)
    else:
        context.screen.paragraph("", answer["text"])
    return 0


VERBS = {
    "show": Verb(_show, "Shows everything about a task: what it is, its attempts, the end of its output.", "TASK"),
    "why": Verb(_why, "Says in one sentence what happened to a task, why, and what comes next.", "TASK"),
}
