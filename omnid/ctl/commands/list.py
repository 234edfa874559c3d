"""``omnictl list``."""

from typing import Any

from omnid.ctl import views
from omnid.ctl.context import Context
from omnid.ctl.options import Option, Verb

_PAGE_MAX = 500


def _list(context: Context) -> int:
    given = context.given
    search: dict[str, Any] = {
        "states": given.commas("state"),
        "labels": given.many("label"),
        "since_ms": given.past_ms("since", context.world.now_ms()),
        "limit": _PAGE_MAX if given.flag("all") and not given.flag("limit") else given.whole("limit"),
        "cursor": given.text("cursor"),
        **{name: given.text(name) for name in ("executor", "origin", "lane", "text")},
    }
    while True:
        page = context.call("task.list", **search)
        if context.json:
            context.give_json(page)
        else:
            views.table(context.screen, page["tasks"], context.world.now_ms())
        search["cursor"] = page["next"]
        if page["next"] is None or not given.flag("all"):
            break
    if page["next"] is not None and not context.json:
        context.screen.tell(f"There are more: the same with --cursor {page['next']}, or with --all")
    return 0


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
            Option("cursor", "CURSOR", "Go on where the page before ended"),
            Option("all", None, "All pages"),
        ),
        ("omnictl list --state failed --since today",),
    )
}
