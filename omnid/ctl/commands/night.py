"""``omnictl away`` and ``omnictl receipt``."""

from collections.abc import Iterator, Mapping
from typing import Any

from omnid.ctl import times, views
from omnid.ctl.context import Context
from omnid.ctl.options import Option, Verb
from omnid.ctl.render import Cell, clean, clean_lines, fit

_LABEL_COLUMNS = 13


def _away(context: Context) -> int:
    now_ms = context.world.now_ms()
    keep = True if context.given.flag("keep") else None
    answer = context.call("away", since_ms=context.given.past_ms("since", now_ms), keep=keep)
    if context.json:
        context.give_json(answer)
        return 0
    screen = context.screen
    screen.paragraph("", answer["text"])
    if answer["failed"]:
        screen.put()
        screen.put(Cell("Failed", "red"))
        for task in answer["failed"]:
            problem = task["problem"] or {"what": "It was given up by a person."}
            screen.paragraph(f"  {task['name']}", f"{task['title']}: {problem['what']}", label_style="bold")
    views.needs_you(screen, answer)
    screen.tell(f"Since {times.stamp(answer['since_ms'])} ({times.distance(answer['since_ms'], now_ms)}).")
    return 0


def _receipt(context: Context) -> int:
    given = context.given
    answer = context.call("task.receipt", task=given.arguments[0])
    if context.json:
        context.give_json(answer)
        return 0
    if given.flag("md"):
        for line in _markdown(answer):
            context.screen.put(line)
        return 0
    task, screen = answer["task"], context.screen
    views.headline(screen, task)
    screen.paragraph("", answer["why"], 2)
    screen.put()
    for label, text in _facts(answer):
        screen.paragraph(f"  {label}", text, _LABEL_COLUMNS + 2)
    for heading, text in _texts(answer):
        screen.put()
        screen.put(f"  {heading}")
        for line in clean_lines(text).rstrip("\n").split("\n"):
            screen.put(Cell("  │ ", "dim"), fit(line.expandtabs(), screen.columns - 4))
    return 0


def _facts(answer: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Gives the facts of a receipt as labels and texts."""
    yield from ((label, text) for label, text in views.work(answer["asked"]))
    if answer["route"]:
        yield "route", f"{answer['route'].get('executor')}: {answer['route'].get('reason')}"
    for attempt in answer["attempts"]:
        yield f"attempt {attempt['number']}", _attempt(attempt)
    if answer["calls"]:
        yield "cost", _cost(answer)
    if answer["check"]:
        passed = {True: "passed", False: "did not pass", None: "not decided"}[answer["check"]["passed"]]
        yield "check", f"{views.command(answer['check']['argv'])}: {passed}"
    yield "journal", f"{answer['entries']} entries"
    yield "SHA-256", answer["sha256"]


def _attempt(attempt: Mapping[str, Any]) -> str:
    parts = [f"{attempt['outcome'] or 'running'} on {attempt['executor']}, {times.stamp(attempt['started_at_ms'])}"]
    if attempt["ended_at_ms"] is not None:
        parts.append(f"took {times.span(attempt['ended_at_ms'] - attempt['started_at_ms'])}")
    if attempt["restarts"]:
        parts.append(f"outlived {attempt['restarts']} restart{'s' if attempt['restarts'] > 1 else ''} of omnid")
    if attempt["exit_code"] is not None:
        parts.append(f"exit code {attempt['exit_code']}")
    if attempt["cost_usd"] is not None:
        parts.append(views.usd(attempt["cost_usd"]))
    return ", ".join(parts) + (f". {attempt['problem']}" if attempt["problem"] else "")


def _cost(answer: Mapping[str, Any]) -> str:
    text = f"{views.usd(answer['spent_usd'])} spent in {answer['calls']} call{'s' if answer['calls'] > 1 else ''}"
    if answer["unknown"]:
        text += f", {answer['unknown']} of unknown cost"
    return text + (f", {views.usd(answer['reserved_usd'])} reserved" if answer["reserved_usd"] else "")


def _texts(answer: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if answer["check"] and answer["check"]["output"]:
        yield "Output of the check", answer["check"]["output"]
    if answer["changes"]:
        yield "Changes", answer["changes"]


def _markdown(answer: Mapping[str, Any]) -> Iterator[str]:
    """Writes a receipt as Markdown; what came from tasks stands in code, so that none of it is markup."""
    task = answer["task"]
    yield f"# {_plain(task['name'])}: {_code(task['title'])}"
    yield ""
    yield _plain(answer["why"])
    yield ""
    yield "| what | |"
    yield "|---|---|"
    for label, text in _facts(answer):
        yield f"| {label} | {_code(text)} |"
    for heading, text in _texts(answer):
        yield ""
        yield f"## {heading}"
        yield ""
        # Indented code can't be ended from inside, as a fence can.
        for line in clean_lines(text).rstrip("\n").split("\n"):
            yield f"    {line}"


def _code(text: str) -> str:
    line = clean(" ".join(text.split())).replace("|", "\\|")
    ticks = "`"
    while ticks in line:
        ticks += "`"
    edge = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{edge}{line}{edge}{ticks}"


def _plain(text: str) -> str:
    return "".join(f"\\{char}" if char in "\\`*_[]<>#|" else char for char in clean(text))


VERBS = {
    "away": Verb(
        _away,
        "Says what happened since you last asked: done, parked, what needs you, money, limits that were waited out.",
        "",
        (
            Option("since", "TIME", "Since then instead: 8h, yesterday, 2026-11-21T22:00"),
            Option("keep", None, "Let the next one begin where this one began"),
        ),
    ),
    "receipt": Verb(
        _receipt,
        "Shows what a task was asked, the way that it took, what it cost, and a hash over its entries in the journal.",
        "TASK",
        (Option("md", None, "Write it as Markdown"),),
    ),
}
