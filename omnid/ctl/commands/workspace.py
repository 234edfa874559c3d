"""The verbs about where agents work: diff, merge, workspaces."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from omnid.ctl import times
from omnid.ctl.context import Context
from omnid.ctl.options import Option, Verb
from omnid.ctl.render import Cell, clean, size

_ANSWER_S = 900.0
"""git may have a large tree to go through."""
_FILES_MAX = 20
_STYLES = {"+": "green", "-": "red", "@": "cyan"}
_HEADER = ("TASK", "STATE", "SIZE", "AGE", "BRANCH", "FROM")
_CONDITION_STYLES = {"running": "cyan", "making": "cyan", "orphaned": "yellow", "deleted": "red", "merged": "dim"}


def _diff(context: Context) -> int:
    screen, raw = context.screen, context.given.flag("raw")
    if raw and screen.stdout.isatty():
        context.given.misuse("--raw is for files and pipes: what a terminal would take for commands stays in it")
    rest, part = "", None
    for part in _parts(context):
        if context.json:
            context.give_json(part)
        elif raw:
            screen.stdout.write(part["text"])
        else:
            *lines, rest = (rest + part["text"]).split("\n")
            for line in lines:
                _line(context, line)
    if rest:
        _line(context, rest)
    for note in () if part is None or context.json else part["workspace"]["notes"]:
        screen.tell(f"Note: {note}")
    return 0


def _parts(context: Context) -> Iterator[dict[str, Any]]:
    """Gives the diff piece by piece, all of them of the same state of the work."""
    context.answer_s = _ANSWER_S
    task, to, offset_bytes = context.given.arguments[0], None, 0
    while offset_bytes is not None:
        stat = context.given.flag("stat")
        part = context.call("workspace.diff", task=task, stat=stat, to=to, offset_bytes=offset_bytes)
        yield part
        to, offset_bytes = part["to"], part["next_offset_bytes"]


def _line(context: Context, line: str) -> None:
    style = "bold" if line.startswith(("diff ", "+++", "---")) else _STYLES.get(line[:1], "")
    if context.screen.stdout.isatty():
        context.screen.put(Cell(line.removesuffix("\r").expandtabs(), style))
    else:
        context.screen.output(f"{line}\n")


def _merge(context: Context) -> int:
    context.answer_s = _ANSWER_S
    merged = context.call("workspace.merge", task=context.given.arguments[0])
    _say(context, merged, _said_of(merged))
    return 0


def _say(context: Context, result: Mapping[str, Any], lines: Iterable[str]) -> None:
    if context.json:
        context.give_json(result)
    for line in () if context.json else lines:
        context.screen.paragraph(" " if line.startswith(" ") else "", line)


def _said_of(merged: Mapping[str, Any]) -> Iterator[str]:
    name, into = merged["task"], f"{merged['into']} of {merged['repository']}"
    count, files = merged["commits"], merged["files"]
    if count:
        commits = "1 commit" if count == 1 else f"{count} commits"
        yield f"{name} is merged into {into}: {commits}, {len(files)} files."
        yield from (f"  {file}" for file in files[:_FILES_MAX])
        if len(files) > _FILES_MAX:
            yield f"  and {len(files) - _FILES_MAX} more"
    else:
        yield f"{name} has nothing that {into} doesn't have already."
    if merged["removed"]:
        yield f"Its workspace and its branch {merged['branch']} are removed."
    else:
        yield f"Its workspace stays: {'; '.join(merged['notes'])}."


def _workspaces(context: Context) -> int:
    context.answer_s = _ANSWER_S
    words = context.given.arguments
    if not words:
        return _list(context)
    if words[0] != "rm" or len(words) < 2:
        context.given.misuse("It takes nothing, or `rm TASK...`")
    if not context.given.flag("yes"):
        if not context.interactive:
            context.given.misuse("Without a terminal to ask at, it needs --yes")
        if not context.asks(_question(context, words[1:])):
            return 1
    removed = [context.call("workspace.remove", task=task) for task in words[1:]]
    lines = (f"{view['task']}: {view['path']} is removed" for view in (one["workspace"] for one in removed))
    _say(context, {"removed": removed}, lines)
    return 0


def _question(context: Context, tasks: Sequence[str]) -> str:
    """Asks with what would be lost: a person answers for the work that is nowhere else."""
    views = context.call("workspace.list")["workspaces"]
    known = {view["task"]: view for view in views} | {view["task_id"]: view for view in views}
    parts: list[str] = []
    for task in tasks:
        condition = known[task]["condition"] if task in known else "unknown"
        lost = "" if condition in ("merged", "empty") else ", and what it holds is nowhere else"
        parts.append(f"{task} ({condition}{lost})")
    return f"Remove the workspace of {'; '.join(parts)}?"


def _list(context: Context) -> int:
    answer = context.call("workspace.list")
    if context.json:
        context.give_json(answer)
        return 0
    views, now_ms = answer["workspaces"], context.world.now_ms()
    if not views:
        context.screen.tell("No workspaces.")
        return 0
    context.screen.table(_HEADER, (_row(view, now_ms) for view in views))
    for view in views:
        for note in view["notes"]:
            context.screen.paragraph(f"{clean(view['task'])}:", note)
    room = f"{len(views)} of {answer['kept_max']}, {size(answer['size_bytes'])} of {size(answer['bytes_max'])}"
    context.screen.tell(f"{room}; `omnictl diff TASK` shows the work, `omnictl merge TASK` takes it over.")
    return 0


def _row(view: Mapping[str, Any], now_ms: int) -> Sequence[Cell]:
    return (
        Cell(view["task"], "bold"),
        Cell(view["condition"], _CONDITION_STYLES.get(view["condition"], "")),
        Cell("?" if view["size_bytes"] is None else size(view["size_bytes"])),
        Cell(times.span(max(0, now_ms - view["created_at_ms"]))),
        Cell(view["branch"] or "(a copy)", "dim"),
        Cell(view["repository"] or view["directory"]),
    )


VERBS = {
    "diff": Verb(
        _diff,
        "Shows what a task has changed in its workspace, committed or not. With --json: one piece a line.",
        "TASK",
        (
            Option("stat", None, "Only the files, with how much changed"),
            Option("raw", None, "Every character as it is, for `git apply`; not for terminals"),
        ),
        ("omnictl diff t7", "omnictl diff t7 --stat"),
    ),
    "merge": Verb(
        _merge,
        "Merges what a task has done into the branch that is checked out where it came from, and removes its "
        "workspace. Refuses, and changes nothing, where there is a conflict or an uncommitted change in the way.",
        "TASK",
        (),
        ("omnictl merge t7",),
    ),
    "workspaces": Verb(
        _workspaces,
        "Lists the workspaces of agents' tasks; `workspaces rm TASK...` removes some with all that is in them.",
        "[rm] [TASK...]",
        (Option("yes", None, "Don't ask"),),
        ("omnictl workspaces", "omnictl workspaces rm t7"),
    ),
}
