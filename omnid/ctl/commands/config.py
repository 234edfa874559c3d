"""``omnictl config``."""

import json
import subprocess
from typing import Any

from omnid.ctl import views
from omnid.ctl.commands.doctor import show_findings
from omnid.ctl.commands.mode import show_checks
from omnid.ctl.context import Context
from omnid.ctl.options import Option, Verb
from omnid.ctl.render import Cell
from omnid.errors import Rejected, Retryable

LOOK_S_MAX = 30.0
LIVE_S_MAX = 90.0
"""How long channels and executors may take to answer; each of them has a minute at most."""


def _config(context: Context) -> int:
    action = context.given.arguments[0]
    live = context.given.flag("live")
    if live and action != "check":
        context.given.misuse("--live is for check")
    if action == "show":
        return _show(context)
    if action not in ("check", "reload"):
        context.given.misuse(f"There is no config {action}: it is check, show or reload")
    checked = ask(context, action)
    checks: list[dict[str, Any]] = []
    findings: list[dict[str, Any]] = []
    if live:
        context.answer_s = LIVE_S_MAX
        checks = context.call("channel.check")["checks"]
        findings = context.call("executor.check")["findings"]
    if context.json:
        context.give_json({**checked, "channels": checks, "executors": findings} if live else checked)
    else:
        _tell_checked(context, checked)
        show_checks(context, checks)
        show_findings(context, findings)
    return 1 if checked["problems"] or not all(one["ok"] for one in (*checks, *findings)) else 0


def ask(context: Context, action: str) -> dict[str, Any]:
    """Asks the daemon; where none runs, `omnid config` looks at the file, as that is when one needs to know most."""
    try:
        return context.call(f"config.{action}")
    except Retryable as error:
        if error.code != "daemon_down" or action == "reload":
            raise
    return _without_daemon(action)


def _without_daemon(action: str) -> dict[str, Any]:
    from omnid.api import spawn

    argv = [*spawn.omnid_argv(), "config", action]
    done = subprocess.run(argv, capture_output=True, timeout=LOOK_S_MAX, check=False)
    try:
        return json.loads(done.stdout)
    except ValueError:
        said = done.stderr.decode(errors="replace").strip().removeprefix("omnid: ")
        raise Rejected(
            "config_unreadable", path="file", detail=said.partition("\n")[0] or "omnid said nothing"
        ) from None


def _show(context: Context) -> int:
    shown = ask(context, "show")
    if context.json:
        context.give_json(shown)
        return 0
    context.screen.tell(f"The config in use; its file is {shown['path']}")
    rows = [
        (
            Cell(row["key"]),
            Cell(row["origin"], "dim" if row["origin"] == "default" else "cyan"),
            Cell(_text(row["value"])),
        )
        for row in shown["rows"]
    ]
    context.screen.table(("KEY", "FROM", "VALUE"), rows)
    return 0


def _tell_checked(context: Context, checked: dict[str, Any]) -> None:
    for problem in checked["problems"]:
        views.problem(context.screen, problem)
    for remark in checked["remarks"]:
        views.problem(context.screen, remark)
    if checked["problems"]:
        context.screen.put(f"{checked['path']}: refused; the config in use stays.")
    else:
        fine = "it can be used all the same" if checked["remarks"] else "nothing is wrong with it"
        context.screen.put(f"{checked['path']}: {'taken over' if checked['reloaded'] else fine}.")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else views.compact(value)


VERBS = {
    "config": Verb(
        _config,
        "check: says what is wrong with the config file as it is now (exit code 1 if anything is). "
        "show: every setting in use and where it comes from. reload: takes the file over.",
        "check|show|reload",
        (
            Option(
                "live",
                None,
                "With check: ask every channel with every key, and every executor, something that costs nothing",
            ),
        ),
    )
}
