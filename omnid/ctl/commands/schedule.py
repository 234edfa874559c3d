"""``omnictl schedule`` and ``run``: tasks that are submitted at times or on events, and presets of the config."""

from collections.abc import Mapping, Sequence
from typing import Any

from omnid.ctl import pages, times, views
from omnid.ctl.commands.add import TASK, fields_of, given_of, tell_next, work_of
from omnid.ctl.context import Context
from omnid.ctl.options import Given, Option, Verb
from omnid.ctl.render import Cell

_ACTIONS = ("list", "add", "show", "enable", "disable", "run", "rm")
_MISSED = ("run_once", "run_all", "skip")
_OVERLAP = ("skip", "queue", "kill")
_LABEL_COLUMNS = 12


def _schedule(context: Context) -> int:
    action, *names = context.given.arguments or ("list",)
    if action not in _ACTIONS:
        context.given.misuse(f"It takes {', '.join(_ACTIONS)}, not {action}")
    if action == "list":
        if names:
            context.given.misuse("`schedule list` takes no name; `schedule show NAME` shows one")
        return pages.show(context, _SCHEDULES, {"after": context.given.text("cursor")})
    if not names:
        context.given.misuse(f"`schedule {action}` needs a NAME; `omnictl schedule list` shows them")
    if action in ("add", "run") and len(names) > 1:
        context.given.misuse(f"`schedule {action}` takes one NAME; a command stands after --")
    if action == "add":
        return _add(context, names[0])
    if action == "run":
        return _run(context, names[0])
    done = [_one(context, action, name) for name in names]
    if context.json:
        context.give_json({"schedules": done})
        return 0
    for one in done:
        if action == "rm":
            context.screen.put(f"{one['name']} was removed; its tasks stay.")
        else:
            _show(context, one)
    return 0


def _one(context: Context, action: str, name: str) -> dict[str, Any]:
    match action:
        case "show":
            return context.call("schedule.show", name=name)
        case "rm":
            return context.call("schedule.remove", name=name)
        case _:
            return context.call("schedule.switch", name=name, enabled=action == "enable")


def _add(context: Context, name: str) -> int:
    given = context.given
    schedule = {
        "cron": given.filled("cron"),
        "zone": given.filled("zone"),
        "every_s": given.duration_s("every"),
        "at": given.schedule_at("at", context.world.now_ms()),
        "times_max": given.whole("times"),
        "on": given.many("on"),
        "missed": given.one_of("missed", _MISSED),
        "missed_max": given.whole("missed-max"),
        "overlap": given.one_of("overlap", _OVERLAP),
    }
    task = given_of({**work_of(given), **fields_of(context)})
    added = context.call(
        "schedule.add", name=name, schedule=given_of(schedule), task=task, params=_pairs(given, "param")
    )
    if context.json:
        context.give_json(added)
    else:
        _show(context, added)
    return 0


def _pairs(given: Given, option: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given.many(option) or ():
        name, equals, value = text.partition("=")
        if not name or not equals:
            given.misuse(f"--{option} takes NAME=VALUE, not {text!r}")
        found[name] = value
    return found


def _run_verb(context: Context) -> int:
    return _run(context, context.given.arguments[0])


def _run(context: Context, name: str) -> int:
    task = context.call("schedule.run", name=name, params=_pairs(context.given, "param"))
    if context.json:
        context.give_json(task)
        return 0
    context.screen.put(task["name"])
    tell_next(context, [task])
    return 0


def _row(one: Mapping[str, Any], now_ms: int) -> Sequence[Cell]:
    return (
        Cell(one["name"], "bold"),
        Cell(_when(one["schedule"])),
        Cell(_next(one, now_ms), "" if one["enabled"] else "dim"),
        Cell(_last(one, now_ms), "red" if one["problem"] or one["last_state"] == "failed" else ""),
        Cell(str(one["runs"])),
        Cell(one["title"]),
    )


_SCHEDULES = pages.Listing(
    method="schedule.list",
    rows="schedules",
    header=("NAME", "WHEN", "NEXT", "LAST", "RUNS", "TITLE"),
    row=_row,
    none="There are no schedules; `omnictl schedule add` makes one.",
    start="after",
)


def _when(schedule: Mapping[str, Any]) -> str:
    """Says when a schedule runs."""
    zone = schedule.get("zone", "")
    parts = [f"{schedule['cron']} {zone}".strip()] if schedule.get("cron") else []
    if schedule.get("at"):
        parts.append(f"once, at {schedule['at']} {zone}".strip())
    if schedule.get("every_s"):
        parts.append(f"every {times.span(round(schedule['every_s'] * 1000))}")
    if schedule.get("times_max"):
        parts.append(f"{schedule['times_max']} times")
    parts += [f"on {event}" for event in schedule.get("on", ())]
    return ", ".join(parts) or "by hand"


def _next(one: Mapping[str, Any], now_ms: int) -> str:
    if not one["enabled"]:
        return "disabled"
    return "-" if one["next_at_ms"] is None else times.distance(one["next_at_ms"], now_ms)


def _last(one: Mapping[str, Any], now_ms: int) -> str:
    if one["problem"]:
        return "not submitted"
    if one["last_at_ms"] is None:
        return "-"
    ended = f", {one['last_state']}" if one["last_state"] else ""
    return f"{times.distance(one['last_at_ms'], now_ms)}{ended}"


def _show(context: Context, one: Mapping[str, Any]) -> None:
    screen, now_ms, schedule = context.screen, context.world.now_ms(), one["schedule"]
    screen.put(Cell(one["name"], "bold"), f"  {one['title']}")

    def say(label: str, text: str) -> None:
        screen.paragraph(f"  {label}", text, _LABEL_COLUMNS)

    say("when", _when(schedule))
    stamped = f" ({times.stamp(one['next_at_ms'])})" if one["next_at_ms"] is not None and one["enabled"] else ""
    say("next", f"{_next(one, now_ms)}{stamped}")
    say("last", _last(one, now_ms))
    skipped = f"; {one['skipped']} times passed without a run" if one["skipped"] else ""
    say("runs", f"{one['runs']}{skipped}")
    say("missed", f"{schedule.get('missed', _MISSED[0])}; overlap: {schedule.get('overlap', _OVERLAP[0])}")
    if one["params"]:
        say("params", ", ".join(f"{name}={value}" for name, value in one["params"].items()))
    if one["problem"]:
        views.problem(screen, one["problem"], indent=2)


_PARAM = Option("param", "NAME=VALUE", "What stands for {params.NAME} in the task's texts", many=True)

VERBS = {
    "schedule": Verb(
        _schedule,
        "Tasks that are submitted at times, on events, or by hand; presets of the config are among them. ACTION is "
        "list, add, show, enable, disable, run or rm.",
        "[ACTION] [NAME...]",
        (
            Option("cron", "EXPRESSION", "Minute hour day month weekday, as in crontab(5); or @daily, @hourly, ..."),
            Option("zone", "ZONE", "The time zone of --cron and --at (daemon.zone)"),
            Option("every", "DURATION", "Again and again: 5m, 1h30m"),
            Option("at", "TIME", "Once, at +2h or 2026-11-21T08:00"),
            Option("times", "N", "It ends after so many runs"),
            Option("on", "EVENT", "start, cloud.down, cloud.up, executor.down:NAME, link.up:NAME, ...", many=True),
            Option(
                "missed", "HOW", "What becomes of times that passed meanwhile: run_once (the default), run_all, skip"
            ),
            Option("missed-max", "N", "Of run_all: only the last so many (10)"),
            Option("overlap", "HOW", "Where the run before goes on still: skip (the default), queue, kill"),
            _PARAM,
            *TASK,
            Option("limit", "N", "Of `list`: at most so many (100; up to 500)"),
            pages.CURSOR,
            pages.ALL,
        ),
        (
            "omnictl schedule add backup --cron '0 3 * * *' -- restic backup /home",
            "omnictl schedule add poll --every 5m --overlap queue -- ./poll",
            "omnictl schedule add report --at 2026-12-01T09:00 -- ./report",
            "omnictl schedule disable backup",
        ),
        "COMMAND [ARGUMENTS]",
    ),
    "run": Verb(
        _run_verb,
        "Submits the task of a schedule or preset now, and prints its name.",
        "NAME",
        (_PARAM,),
        ("omnictl run backup", "omnictl run backup --param path=/srv"),
    ),
}
