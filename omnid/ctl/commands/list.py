"""``omnictl list``."""

from typing import Any

from omnid.ctl import pages, views
from omnid.ctl.context import Context
from omnid.ctl.options import Option, Verb

_TASKS = pages.Listing("task.list", "tasks", views.HEADER, views.row, views.NO_TASKS)


def _list(context: Context) -> int:
    given = context.given
    search: dict[str, Any] = {
        "states": given.commas("state"),
        "labels": given.many("label"),
        "since_ms": given.past_ms("since", context.world.now_ms()),
        "cursor": given.text("cursor"),
        **{name: given.text(name) for name in ("executor", "origin", "lane", "text")},
    }
    return pages.show(context, _TASKS, search)


VERBS = {
    "list": Verb(
        _list,
        "Lists the tasks that have not ended, then the newest that have. Filters narrow it down. "
        "With --json and --all: one page a line.",
        "",
        (
            Option("state", "STATE,...", "In one of these states (idle, waiting, executing, failed, ...)"),
            Option("label", "LABEL", "With this label (repeat it: with all of them)", many=True),
            Option("executor", "NAME", "On this executor"),
            Option("origin", "NAME", "Submitted by this origin"),
            Option("lane", "NAME", "In this lane"),
            Option("since", "TIME", "Submitted since: 2h (ago), today, 2026-11-21T08:00"),
            Option("text", "TEXT", "With this in the title"),
            Option("limit", "N", "At most so many (50; up to 500)"),
            pages.CURSOR,
            pages.ALL,
        ),
        ("omnictl list --state failed --since today",),
    )
}
