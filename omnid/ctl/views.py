"""How tasks and their parts look: shared by the verbs that show them. What is given came from the daemon."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from omnid.ctl import times
from omnid.ctl.render import Cell, Screen, clean, pad, width
from omnid.money import dollars, micro
from omnid.states import RUNNING

HEADER = ("TASK", "STATE", "WHEN", "EXECUTOR", "TITLE")
NO_TASKS = "No tasks."

_STATE_STYLES = {
    "dispatching": "cyan",
    "executing": "cyan",
    "input_required": "yellow",
    "uncertain": "magenta",
    "completed": "green",
    "failed": "red",
    "cancelled": "dim",
}
_NEEDS_A_PERSON = ("approval", "login", "paused")


STDIN_CHARS_MAX = 2_000
"""How much of a task's standard input is shown: enough to know what is approved."""


def state(task: Mapping[str, Any]) -> Cell:
    """Gives the state as it is shown: a task that waits, with its reason, be it its own or that of a closed gate."""
    reason = task["reason"]
    if task["state"] in ("idle", "waiting") and reason:
        return Cell(f"waiting: {reason}", "yellow" if reason in _NEEDS_A_PERSON else "")
    return Cell(task["state"], _STATE_STYLES.get(task["state"], ""))


def when(task: Mapping[str, Any], now_ms: int) -> str:
    """Says the time that matters now: since when it runs, when it is tried next, or how long ago it ended or came."""
    if task["finished_at_ms"] is not None:
        return times.distance(task["finished_at_ms"], now_ms)
    if task["state"] in RUNNING and task["started_at_ms"] is not None:
        return f"for {times.span((now_ms - task['started_at_ms']) // 1000 * 1000)}"
    if task["wake_at_ms"] is not None and task["wake_at_ms"] > now_ms:
        return times.distance(task["wake_at_ms"], now_ms)
    return times.distance(task["created_at_ms"], now_ms)


def row(task: Mapping[str, Any], now_ms: int) -> Sequence[Cell]:
    """Gives the cells of a task under `HEADER`."""
    executor = Cell(task["executor"], "dim")
    return Cell(task["name"], "bold"), state(task), Cell(when(task, now_ms)), executor, Cell(task["title"])


def table(screen: Screen, tasks: Iterable[Mapping[str, Any]], now_ms: int) -> None:
    """Writes tasks as a table; tells that there is none, where there is none."""
    rows = [row(task, now_ms) for task in tasks]
    if rows:
        screen.table(HEADER, rows)
    else:
        screen.tell(NO_TASKS)


def counts(numbers: Mapping[str, int]) -> str:
    """Says numbers by state: ``3 executing, 12 waiting``."""
    return ", ".join(f"{number} {name}" for name, number in numbers.items() if number)


def problem(screen: Screen, given: Mapping[str, Any], indent: int = 0) -> None:
    """Writes the three sentences of a problem."""
    for label, key, style in (("what", "what", "red"), ("why", "why", ""), ("do", "do", "")):
        screen.paragraph(" " * indent + label, given[key], indent + 6, style)


def usd(amount_usd: float) -> str:
    """Writes an amount of dollars."""
    return dollars(micro(amount_usd))


def amounts(given: Mapping[str, Any]) -> str:
    """Says what was spent, and what is reserved and unknown where there is any."""
    parts = [usd(given["spent_usd"])]
    parts += [f"{usd(given[f'{name}_usd'])} {name}" for name in ("reserved", "unknown") if given[f"{name}_usd"]]
    return ", ".join(parts)


def today(given: Mapping[str, Any]) -> str:
    """Says what today has cost: ``$1.84 of $5.00 today, $2.00 reserved``."""
    spent, *rest = amounts(given["amounts"]).split(", ")
    limit = "" if given["limit_usd"] is None else f" of {usd(given['limit_usd'])}"
    return ", ".join([f"{spent}{limit} today", *rest])


def command(argv: Sequence[str]) -> str:
    """Writes a command so that a shell would read it back."""
    import shlex

    return shlex.join(argv)


def work(given: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Says what a task asks for, as labels and texts."""
    lines: list[tuple[str, str]] = []
    if given.get("argv"):
        lines.append(("command", command(given["argv"])))
    if given.get("server") or given.get("tool"):
        lines.append(("tool", f"{given.get('tool')} of {given.get('server')}"))
    if given.get("arguments"):
        lines.append(("arguments", compact(given["arguments"])))
    for label, key in (("prompt", "prompt"), ("directory", "cwd")):
        if given.get(key):
            lines.append((label, given[key]))
    if given.get("stdin") is not None:
        lines.append(("stdin", _excerpt(given["stdin"])))
    if given.get("env"):
        lines.append(("environment", ", ".join(given["env"])))
    if given.get("check"):
        lines.append(("check", command(given["check"])))
    return lines


def _excerpt(text: str) -> str:
    """Shows the beginning of a text, and how much there is of it."""
    size_bytes = len(text.encode(errors="replace"))
    return text if len(text) <= STDIN_CHARS_MAX else f"{text[:STDIN_CHARS_MAX]}... ({size_bytes} bytes in all)"


def compact(value: Any) -> str:
    """Writes a value as JSON without spare spaces, in the characters that it has."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def headline(screen: Screen, task: Mapping[str, Any]) -> None:
    """Writes a task's name, title and state in one line."""
    shown = state(task)
    name, text = clean(task["name"]), clean(shown.text)
    title = pad(clean(task["title"]), max(screen.columns - width(name) - width(text) - 4, 1))
    screen.put(Cell(name, "bold"), f"  {title}  ", Cell(text, shown.style))


def needs_you(screen: Screen, answer: Mapping[str, Any]) -> None:
    """Writes what waits for a person, and how it is answered; nothing where there is nothing."""
    problems = answer.get("problems", ())
    total = answer["needs_you_total"] + len(problems)
    if not total:
        return
    screen.put()
    screen.put(Cell(f"Needs you ({total})", "yellow"))
    for one in problems:
        screen.paragraph("  !", one["what"], label_style="red")
        screen.paragraph("", one["do"], 6)
    for need in answer["needs_you"]:
        screen.paragraph(f"  {need['task']}", f"{need['what']}: {need['title']}", label_style="bold")
        screen.put("      ", Cell(need["do"], "cyan"))
    more = answer["needs_you_total"] - len(answer["needs_you"])
    if more > 0:
        screen.put(f"  and {more} more: omnictl list --state waiting,uncertain,input_required")
