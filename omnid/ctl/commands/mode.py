"""``omnictl mode`` and ``outages``; and the channels for ``omnictl config check --live``."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from omnid.ctl.context import Context
from omnid.ctl.options import Option, Verb
from omnid.ctl.render import Cell, size
from omnid.ctl.times import span, stamp

HOLDS = ("auto", "normal", "brainstem")


def _mode(context: Context) -> int:
    given = context.given
    match given.arguments:
        case []:
            shown = context.call("mode.show")
        case ["hold", hold] if hold in HOLDS:
            shown = context.call("mode.hold", hold=hold)
        case _:
            given.misuse(f"It takes nothing, or hold and one of {', '.join(HOLDS)}")
    if context.json:
        context.give_json(shown)
        return 0
    held = "" if shown["hold"] == "auto" else f", held at {shown['hold']}"
    since = span(shown["now_ms"] - shown["since_ms"])
    colour = "green" if shown["mode"] == "normal" else "yellow"
    why = f"; {shown['why']}" if shown["why"] else ""
    context.screen.paragraph(shown["mode"], f"for {since}{held}{why}{_probed(shown)}", 12, label_style=colour)
    for one in shown["channels"]:
        context.screen.paragraph(one["name"], f"{', '.join(one['models'])}: {_state(one)}", 12, label_style="bold")
    if shown["local_model"]["phase"] != "none":
        context.screen.paragraph("local model", _local(shown["local_model"]), 12, label_style="bold")
    snapshot = _snapshot(shown)
    if snapshot:
        context.screen.paragraph("snapshot", snapshot, 12, label_style="bold")
    if not shown["channels"]:
        context.screen.tell("There are no channels; docs/models.md says how to add one.")
    return 0


def _probed(shown: Mapping[str, Any]) -> str:
    """Says when the cloud is looked for again, while it is gone."""
    if shown["probe_at_ms"] is None:
        return ""
    left_ms = shown["probe_at_ms"] - shown["now_ms"]
    return f"; the cloud is probed again in {span(left_ms)}" if left_ms > 0 else "; the cloud is being probed"


def _state(one: dict[str, Any]) -> str:
    """Says what is known of a channel."""
    parts = [f"{one['failures']} failures in a row to reach it"] if one["failures"] else []
    if one["closed_until_ms"] is not None:
        parts.append(f"{one['why_closed']}; tried again at {stamp(one['closed_until_ms'])}")
    for key in one["keys"]:
        if key["refused"]:
            parts.append(f"{key['reference']} is refused: {key['refused']}")
        elif key["closed_until_ms"] is not None:
            parts.append(f"{key['reference']} is limited until {stamp(key['closed_until_ms'])}")
    if one["p50_s"] is not None:
        parts.append(f"first text after {one['p50_s']:.1f} s at the median")
    return "; ".join(parts) or "well, as far as it is known"


def _local(one: Mapping[str, Any]) -> str:
    """Says how the brainstem's model is."""
    parts = [f"{one['phase']}: {one['why']}" if one["why"] else one["phase"]]
    if one["memory_bytes"] is not None:
        parts.append(f"it holds {size(one['memory_bytes'])} of memory")
    if one["returned_bytes"] is not None:
        parts.append(f"the last one returned {size(one['returned_bytes'])} when it was killed")
    return "; ".join(parts)


def _snapshot(shown: Mapping[str, Any]) -> str:
    """Says which snapshot of the journal is the newest, and why there is no newer one."""
    parts = [f"{size(one['size_bytes'])} of {stamp(one['at_ms'])}: {one['path']}" for one in shown["snapshots"][:1]]
    if shown["no_snapshot"]:
        parts.append(f"{shown['no_snapshot']['what']} {shown['no_snapshot']['do']}")
    return "; ".join(parts)


def _outages(context: Context) -> int:
    answer = context.call("outage.list", limit=context.given.whole("limit"))
    if context.json:
        context.give_json(answer)
        return 0
    now_ms = answer["now_ms"]
    rows: list[tuple[Cell, ...]] = []
    for one in answer["outages"]:
        until_ms = one["ended_at_ms"]
        lasted = span((until_ms or now_ms) - one["began_at_ms"])
        what = one["problem"]["what"].rstrip(".") if one["problem"] else ""
        snapshot = f"snapshot {os.path.basename(one['snapshot'])}" if one["snapshot"] else ""
        rows.append(
            (
                # The year goes without saying: outages are kept as long as finished tasks are.
                Cell(stamp(one["began_at_ms"])[5:]),
                Cell(lasted if until_ms else f"{lasted}, and on", "dim" if until_ms else "yellow"),
                Cell(one["cause"], "bold"),
                Cell(one["subject"]),
                Cell(str(one["parked"])),
                Cell(str(one["resumed"])),
                # What no narrow screen has room for comes last; --json has all of it.
                Cell("; ".join(filter(None, (what, snapshot)))),
            )
        )
    if rows:
        context.screen.table(("FROM", "FOR", "CAUSE", "OF", "PARKED", "RESUMED", "WHY"), rows)
    else:
        context.screen.tell("There were no outages.")
    return 0


def show_checks(context: Context, checks: Sequence[Mapping[str, Any]]) -> None:
    """Shows what channels have answered to `channel.check`."""
    for one in checks:
        label, style = ("ok", "green") if one["ok"] else ("!!", "red")
        said = one["detail"] or "it is well" if one["ok"] else f"{one['detail']}. {one['do']}"
        context.screen.paragraph(label, f"{one['name']} ({one['key'] or 'no key'}): {said}", 4, label_style=style)


VERBS = {
    "mode": Verb(
        _mode,
        "Show what omnid can reach: the mode, and what is known of each channel; or hold it",
        "[hold] [MODE]",
        (),
        ("omnictl mode", "omnictl mode hold brainstem"),
    ),
    "outages": Verb(
        _outages,
        "Show what could not be used, from when to when",
        "",
        (Option("limit", "N", "How many at most (50)"),),
        ("omnictl outages",),
    ),
}
