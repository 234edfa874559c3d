"""``omnictl dead``: what could not be delivered and was given up; and ``omnictl reply``."""

from collections.abc import Mapping, Sequence
from typing import Any

from omnid.ctl import pages, times, views
from omnid.ctl.commands.control import control
from omnid.ctl.context import Context
from omnid.ctl.options import Option, Verb
from omnid.ctl.render import Cell

_ACTIONS = ("list", "show", "retry", "drop")
_ALL = "all"
_LABEL_COLUMNS = 13


def _dead(context: Context) -> int:
    action, *ids = context.given.arguments or ("list",)
    if action not in _ACTIONS:
        context.given.misuse(f"It takes {', '.join(_ACTIONS)}, not {action}")
    if action == "list":
        return pages.show(context, _DEAD, {"after": context.given.whole("cursor")})
    if not ids:
        context.given.misuse(f"`dead {action}` needs the ID of a delivery; `omnictl dead list` shows them")
    if action == "show":
        return _show(context, ids)
    done = [context.call(f"dead.{action}", id=id) for id in (_every(context) if ids == [_ALL] else ids)]
    after = "is tried again" if action == "retry" else "was dropped"
    context.give({"deliveries": done}, [f"{one['id']} to {one['destination']} {after}." for one in done])
    return 0


def _every(context: Context) -> list[str]:
    # All of them before the first is retried or dropped, which changes the list.
    return [one["id"] for page in pages.pages(context, _DEAD, {}) for one in page[_DEAD.rows]]


def _row(one: Mapping[str, Any], now_ms: int) -> Sequence[Cell]:
    return (
        Cell(one["id"], "bold"),
        Cell(one["destination"]),
        Cell(f"{one['kind']} {one['body'].get('task') or one['subject'] or ''}"),
        Cell(times.distance(one["dead_at_ms"], now_ms), "dim"),
        Cell(one["problem"]["what"] if one["problem"] else "", "red"),
    )


_DEAD = pages.Listing(
    method="dead.list",
    rows="deliveries",
    header=("ID", "TO", "WHAT", "GIVEN UP", "WHY"),
    row=_row,
    none="Nothing was given up.",
    start="after",
)


def _show(context: Context, ids: list[str]) -> int:
    found = [context.call("dead.show", id=id) for id in ids]
    if context.json:
        context.give_json({"deliveries": found})
        return 0
    for one in found:
        _one(context, one)
    return 0


def _one(context: Context, one: Mapping[str, Any]) -> None:
    screen, now_ms = context.screen, context.world.now_ms()
    screen.put(Cell(one["id"], "bold"), f"  {one['kind']} to {one['destination']}")
    screen.paragraph("  written", times.distance(one["created_at_ms"], now_ms), _LABEL_COLUMNS)
    tries = f"{times.distance(one['dead_at_ms'], now_ms)}, after {one['tries']} tries"
    screen.paragraph("  given up", tries, _LABEL_COLUMNS)
    screen.paragraph("  text", str(one["body"].get("text", "")), _LABEL_COLUMNS)
    if one["problem"]:
        views.problem(screen, one["problem"], indent=2)


def _reply(context: Context) -> int:
    task, *words = context.given.arguments
    return control(context, [task], "reply", text=" ".join(words))


VERBS = {
    "dead": Verb(
        _dead,
        "Shows what could not be delivered and was given up, has it tried again, or drops it. `all`: every ID.",
        "[list|show|retry|drop] [ID...]",
        (Option("limit", "N", "At most so many (100; up to 500)"), pages.CURSOR, pages.ALL),
        ("omnictl dead", "omnictl dead retry all"),
    ),
    "reply": Verb(
        _reply,
        "Does what an answer to a message about a task means: 1 approve, 2 again, 3 drop.",
        "TASK ANSWER...",
        (),
        ("omnictl reply t7 1",),
    ),
}
