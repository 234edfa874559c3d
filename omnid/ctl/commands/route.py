"""``omnictl route``."""

from collections.abc import Iterator, Mapping
from typing import Any

from omnid.ctl.context import Context
from omnid.ctl.options import Option, Verb
from omnid.ctl.render import Cell, size

_WORDS_SHOWN_MAX = 6
_TAKES = {"command": "commands", "mcp": "tool calls", "model": "prompts"}


def _route(context: Context) -> int:
    given = context.given
    task: dict[str, Any] = {
        "argv": given.rest,
        "prompt": given.arguments[0] if given.arguments else None,
        "server": given.text("server"),
        "tool": given.text("tool"),
        "executor": given.text("executor"),
    }
    dry_run = given.flag("dry-run")
    if dry_run != any(value is not None for value in task.values()):
        given.misuse(
            "--dry-run needs a task: a prompt, or a command after --"
            if dry_run
            else "It submits nothing: say --dry-run with a task, or nothing at all for the rules"
        )
    more = {"kind": given.text("kind"), "lane": given.text("lane"), "labels": given.many("label")}
    explained = context.call("route.explain", **task, **more)
    if context.json:
        context.give_json(explained)
    elif dry_run:
        _tell(context, explained)
    else:
        rows = [
            (
                Cell(rule["name"], "bold"),
                Cell("built-in" if rule["built_in"] else "config", "dim" if rule["built_in"] else "cyan"),
                Cell("; ".join(_conditions(rule)) or "everything"),
                Cell(", ".join(f"({name})" if name in rule["missing"] else name for name in rule["executors"])),
            )
            for rule in explained["rules"]
        ]
        context.screen.table(("RULE", "FROM", "FITS", "EXECUTORS"), rows)
        context.screen.tell("The first rule that fits decides; executors in brackets aren't in the config.")
    return 0


def _tell(context: Context, explained: Mapping[str, Any]) -> None:
    screen, route = context.screen, explained["route"]
    screen.paragraph(route["executor"], route["reason"], label_style="bold")
    for one in route.get("turned_down", ()):
        rule = f" (rule {one['rule']})" if one.get("rule") not in (None, route.get("rule")) else ""
        screen.paragraph("  not", f"{one['executor']} {one['why']}{rule}", 7)
    if explained["approval"]:
        screen.put("  A person would have to approve it.")


def _conditions(rule: Mapping[str, Any]) -> Iterator[str]:
    """Says what a rule fits, condition by condition."""
    if len(rule["takes"]) < len(_TAKES):
        yield ", ".join(_TAKES[sort] for sort in rule["takes"])
    for label, key, joint in (("kind", "kind", " or "), ("label", "labels", " and "), ("lane", "lane", " or ")):
        if rule[key]:
            yield f"{label} {joint.join(rule[key])}"
    if rule["text"]:
        more = ", ..." if len(rule["text"]) > _WORDS_SHOWN_MAX else ""
        yield f"says {', '.join(rule['text'][:_WORDS_SHOWN_MAX])}{more}"
    if rule["bytes_min"]:
        yield f"at least {size(rule['bytes_min'])}"
    if rule["bytes_max"] is not None:
        yield f"at most {size(rule['bytes_max'])}"
    if rule["hours"]:
        yield f"within {rule['hours']}"


VERBS = {
    "route": Verb(
        _route,
        "Shows the rules by which omnid chooses an executor for tasks that name none; with --dry-run, what it "
        "would decide about a task, and what it would turn down and why. Nothing is submitted.",
        "[PROMPT]",
        (
            Option("dry-run", None, "Decide about this task, without submitting it"),
            Option("kind", "KIND", "general, programming, ..."),
            Option("label", "LABEL", "A label", many=True),
            Option("lane", "NAME", "Its lane"),
            Option("server", "NAME", "MCP server (an executor of the config)"),
            Option("tool", "NAME", "Its tool"),
            Option("executor", "NAME", "The executor asked for by name"),
        ),
        (
            "omnictl route",
            "omnictl route --dry-run 'fix the login bug'",
            "omnictl route --dry-run --label heavy -- make train",
        ),
        "COMMAND [ARGUMENTS]",
    )
}
