"""``omnictl operations`` and ``omnictl replay``: the log of all changes, and the state that it adds up to."""

from collections.abc import Mapping, Sequence
from typing import Any

from omnid.ctl import pages, times, views
from omnid.ctl.context import Context
from omnid.ctl.options import Option, Verb
from omnid.ctl.render import Cell


def _operations(context: Context) -> int:
    given = context.given
    since = given.text("since")
    at_seq = since is not None and times.is_seq(since)
    search: dict[str, Any] = {
        "since": int(since) if since is not None and at_seq else None,
        "since_ms": None if at_seq else given.past_ms("since", context.world.now_ms()),
        "task": given.text("task"),
    }
    return pages.show(context, _OPERATIONS, search)


def _row(operation: Mapping[str, Any], _now_ms: int) -> Sequence[Cell]:
    return (
        Cell(str(operation["seq"]), "dim"),
        Cell(times.stamp(operation["at_ms"])),
        Cell(operation["kind"], {"create": "green", "delete": "red"}.get(operation["kind"], "")),
        Cell(f"{operation['collection']} {operation['id'][-8:]}"),
        Cell(_fields(operation["fields"])),
    )


def _fields(fields: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={views.compact(value)}" for name, value in fields.items())


_OPERATIONS = pages.Listing(
    method="operations",
    rows="operations",
    header=("SEQ", "TIME", "KIND", "OF", "FIELDS"),
    row=_row,
    none="No operations.",
    start="since",
    option="since",
    page_max=1000,
)


def _replay(context: Context) -> int:
    given = context.given
    until = given.text("until")
    if until is None:
        given.misuse("It needs --until: a seq of the log (`omnictl operations` shows them) or a time")
    at_seq = times.is_seq(until)
    replayed = context.call(
        "replay",
        until_seq=int(until) if at_seq else None,
        until_ms=None if at_seq else given.past_ms("until", context.world.now_ms()),
        limit=given.whole("limit"),
    )
    if context.json:
        context.give_json(replayed)
        return 0
    at_ms = replayed["at_ms"]
    then = "" if at_ms is None else f", {times.stamp(at_ms)}"
    context.screen.put(f"After seq {replayed['until_seq']}{then}: {views.counts(replayed['tasks']) or 'no tasks'}")
    if replayed["list"]:
        views.table(context.screen, replayed["list"], context.world.now_ms() if at_ms is None else at_ms)
    return 0


_LIMIT = Option("limit", "N", "At most so many (100)")

VERBS = {
    "operations": Verb(
        _operations,
        "Shows the log of all changes, oldest first. With --json and --all: one page a line.",
        "",
        (
            Option("since", "SEQ|TIME", "After this seq, or since a time: 2h (ago), today, ISO 8601"),
            Option("task", "TASK", "Of this task and its attempts"),
            _LIMIT,
            pages.ALL,
        ),
        ("omnictl operations --task t7",),
    ),
    "replay": Verb(
        _replay,
        "Replays the log up to a point and shows the tasks as they were then. Changes nothing.",
        "",
        (Option("until", "SEQ|TIME", "Up to and with this seq, or a time: 2h (ago), today, ISO 8601"), _LIMIT),
        ("omnictl replay --until 2h",),
    ),
}
