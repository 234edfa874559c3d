"""``omnictl runners``."""

from collections.abc import Mapping, Sequence
from typing import Any

from omnid.ctl import times
from omnid.ctl.context import Context
from omnid.ctl.options import Verb
from omnid.ctl.render import Cell

_HEADER = ("RUNNER", "STATE", "LINK", "RUNS", "LOAD", "HEARD", "VERSION", "EXECUTORS", "LABELS")
_STYLES = {"up": "green", "lost": "red", "link_down": "yellow", "leaving": "yellow"}


def _runners(context: Context) -> int:
    found = context.call("runner.list")
    if context.json:
        context.give_json(found)
        return 0
    if not found["runners"]:
        context.screen.tell("The config names no runner on another host; docs/links.md shows how.")
        return 0
    context.screen.table(_HEADER, [_row(one, found["now_ms"]) for one in found["runners"]])
    return 0


def _row(one: Mapping[str, Any], now_ms: int) -> Sequence[Cell]:
    heard = "not yet" if one["heard_at_ms"] is None else times.distance(one["heard_at_ms"], now_ms)
    known = one["slots"] is not None
    return (
        Cell(one["name"], "bold"),
        Cell(one["state"].replace("_", " "), _STYLES.get(one["state"], "dim")),
        Cell(one["link"] or "none"),
        Cell(f"{one['running']} of {one['slots']}" if known else ""),
        Cell(f"{one['load']:.2f}" if known else ""),
        Cell(heard, "dim"),
        Cell(one["version"] or "", "dim"),
        Cell(", ".join(sorted(one["executors"]))),
        Cell(", ".join(one["labels"])),
    )


VERBS = {
    "runners": Verb(
        _runners,
        "Shows the runners on other hosts: how they are, what they offer, and when they were last heard.",
        "",
        (),
        ("omnictl runners",),
    ),
}
