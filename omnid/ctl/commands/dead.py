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
_MESSAGE = "message"
"""The kind of what came over a link and could not be taken."""
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
    done = [context.call(f"dead.{action}", id=id) for id in (_every(context, action) if ids == [_ALL] else ids)]
    after = "is tried again" if action == "retry" else "was dropped"
    said = [f"{one['id']} {_place(one)} {after}." for one in done]
    context.give({"deliveries": done}, said)
    return 0


def _every(context: Context, action: str) -> list[str]:
    # All of them before the first is retried or dropped, which changes the list.
    rows = [one for page in pages.pages(context, _DEAD, {}) for one in page[_DEAD.rows]]
    return [one["id"] for one in rows if action == "drop" or one["kind"] != _MESSAGE]


def _place(one: Mapping[str, Any]) -> str:
    return f"{'over' if one['kind'] == _MESSAGE else 'to'} {one['destination']}"


def _what(one: Mapping[str, Any]) -> str:
    body = one["body"]
    if one["kind"] == _MESSAGE:
        return f"{body['message'] or _MESSAGE} from {body['from'] or 'nobody knows whom'}"
    return f"{one['kind']} {body.get('task') or one['subject'] or ''}"


def _row(one: Mapping[str, Any], now_ms: int) -> Sequence[Cell]:
    return (
        Cell(one["id"], "bold"),
        Cell(one["destination"]),
        Cell(_what(one)),
        Cell(times.distance(one["dead_at_ms"], now_ms), "dim"),
        Cell(one["problem"]["what"] if one["problem"] else "", "red"),
    )


_DEAD = pages.Listing(
    method="dead.list",
    rows="deliveries",
    header=("ID", "PLACE", "WHAT", "GIVEN UP", "WHY"),
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
    came = one["kind"] == _MESSAGE
    screen.put(Cell(one["id"], "bold"), f"  {_what(one) if came else one['kind']} {_place(one)}")
    when = times.distance(one["dead_at_ms"], now_ms)
    if came:
        screen.paragraph("  set aside", f"{when}; {one['body']['bytes']} bytes", _LABEL_COLUMNS)
    else:
        screen.paragraph("  written", times.distance(one["created_at_ms"], now_ms), _LABEL_COLUMNS)
        screen.paragraph("  given up", f"{when}, after {one['tries']} tries", _LABEL_COLUMNS)
    screen.paragraph("  text", str(one["body"].get("text", "")), _LABEL_COLUMNS)
    if one["problem"]:
        views.problem(screen, one["problem"], indent=2)


def _reply(context: Context) -> int:
    task, *words = context.given.arguments
    return control(context, [task], "reply", text=" ".join(words))


VERBS = {
    "dead": Verb(
        _dead,
        "Shows what could not be delivered, or taken from a link; has it tried again, or drops it. `all`: every ID.",
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
