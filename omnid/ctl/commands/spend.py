"""``omnictl spend``, and ``omnictl budget``, which raises what one task may cost."""

from collections.abc import Mapping, Sequence
from typing import Any

from omnid.ctl import times, views
from omnid.ctl.commands.control import control
from omnid.ctl.context import Context
from omnid.ctl.options import Option, Verb
from omnid.ctl.render import Cell

_BY = ("executor", "model", "label", "origin", "day")
_AMOUNTS = ("SPENT", "RESERVED", "UNKNOWN", "CALLS")


def _spend(context: Context) -> int:
    by = context.given.one_of("by", _BY) or "executor"
    since = context.given.text("since")
    now_ms = context.world.now_ms()
    spent = context.call("spend", by=by, since_ms=None if since is None else times.parse_past(since, now_ms))
    if context.json:
        context.give_json(spent)
        return 0
    screen = context.screen
    rows = [(Cell(row["name"], "bold"), *_cells(row["amounts"])) for row in spent["rows"]]
    if rows:
        screen.table((by.upper(), *_AMOUNTS), [*rows, (Cell("total"), *_cells(spent["total"]))])
    else:
        screen.put(f"Nothing was spent since {times.stamp(spent['since_ms'])}.")
    if rows and by != "executor":
        screen.tell("A call counts under each of its labels, and one without a model or label under none.")
    if spent["caps"]:
        screen.put()
        screen.table(("CAP", "HOLDS FOR", "USED", "OF", "NEXT WINDOW"), [_cap(cap, now_ms) for cap in spent["caps"]])
    return 0


def _cells(given: Mapping[str, Any]) -> Sequence[Cell]:
    unknown = Cell(views.usd(given["unknown_usd"]), "yellow" if given["unknown_usd"] else "dim")
    reserved = Cell(views.usd(given["reserved_usd"]), "" if given["reserved_usd"] else "dim")
    return Cell(views.usd(given["spent_usd"])), reserved, unknown, Cell(str(given["calls"]))


def _cap(cap: Mapping[str, Any], now_ms: int) -> Sequence[Cell]:
    given = cap["amounts"]
    total = given["spent_usd"] + given["reserved_usd"] + given["unknown_usd"]
    full = total >= cap["limit_usd"]
    scope = "everything" if cap["scope"] == "all" else cap["scope"].replace(":", " ", 1)
    return (
        Cell(cap["name"], "bold"),
        Cell(scope),
        Cell(views.amounts(given), "yellow" if full else ""),
        Cell(views.usd(cap["limit_usd"])),
        Cell(times.distance(cap["next_at_ms"], now_ms)),
    )


def _budget(context: Context) -> int:
    task, amount = context.given.arguments
    return control(context, [task], "budget", cost_max_usd=context.given.dollars("USD", amount))


VERBS = {
    "spend": Verb(
        _spend,
        "Shows what was spent, what is reserved for what runs, what has an unknown cost, and the caps.",
        "",
        (
            Option("by", "WHAT", "executor, model, label, origin or day"),
            Option("since", "TIME", "From this day on; without it, this month"),
        ),
        ("omnictl spend", "omnictl spend --by day --since 7d"),
    ),
    "budget": Verb(
        _budget,
        "Sets the most that all attempts of a task may cost; one that waits because it was used up goes on.",
        "TASK USD",
        (),
        ("omnictl budget t7 5",),
    ),
}
