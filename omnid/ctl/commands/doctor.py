"""``omnictl doctor``."""

from collections.abc import Mapping, Sequence
from typing import Any

from omnid.ctl.context import Context
from omnid.ctl.options import Verb

_CHECKS_S_MAX = 3600.0
"""A journal of millions of changes is replayed whole."""


def _doctor(context: Context) -> int:
    context.answer_s = _CHECKS_S_MAX
    found = context.call("doctor")
    if context.json:
        context.give_json(found)
    else:
        show_findings(context, found["findings"])
    return 0 if found["ok"] else 1


def show_findings(context: Context, findings: Sequence[Mapping[str, Any]]) -> None:
    """Shows what checks have found."""
    for finding in findings:
        label, style = ("ok", "green") if finding["ok"] else ("!!", "red")
        context.screen.paragraph(label, f"{finding['name']}: {finding['detail']}", 4, label_style=style)
        if finding["do"]:
            context.screen.paragraph("", f"do: {finding['do']}", 4)


VERBS = {
    "doctor": Verb(
        _doctor,
        "Replays the log and compares it with the tables; looks at executors, disk, config, links and runners. "
        "Exit code 1 where something was found.",
    )
}
