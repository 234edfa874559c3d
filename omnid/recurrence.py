"""When a schedule's times are, and what becomes of those that have passed. Pure.

Times are Unix milliseconds. Cron expressions are read as Debian's cron reads them: a time of the day that the clocks
skip runs once, right after the gap, one that comes twice runs the first time, and what runs every hour or minute goes
on as if the clocks had not been moved. A local time of `at` is read as the cron expression that names it.
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import msgspec
from cronsim import CronSim, CronSimError

from omnid import platform
from omnid.durations import parse_duration
from omnid.errors import Rejected
from omnid.model import SINGLE, Schedule, Submit
from omnid.patterns import EVENT
from omnid.settings import Preset

NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@hourly": "0 * * * *",
}
"""As in crontab(5)."""
COUNTED_MAX = 1_000
"""How many times that have passed are counted one by one; that there were more is all that is known beyond."""
EXAMINED_MAX = 64
"""How many times a forward look may find that are not later, where the clocks go back."""
EVERY_S_MAX = 366 * 86400.0
AT_YEARS = range(1970, 9999)
"""Those that `at` may name; a local time at the very ends of what a datetime holds is none in some zones."""
MOVED = timedelta(hours=3)
"""Longer than any step of the clocks."""


class Due(NamedTuple):
    """What becomes of the times that have passed."""

    times: tuple[int, ...]
    """Those that are made up for, oldest first."""
    skipped: int
    """How many are not; at most `COUNTED_MAX`."""
    next_at_ms: int | None
    """The next time to come; None: there is none."""


def problem_of(schedule: Schedule) -> tuple[str, str] | None:
    """Gives the field of a schedule that can't be used and why, as the rest of a sentence; None where all can."""
    timed = {"cron": bool(schedule.cron), "every": schedule.every_s is not None, "at": bool(schedule.at)}
    ways = [name for name, is_given in timed.items() if is_given]
    if len(ways) > 1:
        return ways[-1], "it takes one of `cron`, `every` and `at`"
    if ways in ([], ["at"]) and schedule.times_max is not None:
        return "times_max", "it counts the runs of `cron` or `every`, and there is neither"
    if schedule.missed == "run_all" and schedule.overlap != "queue":
        return "missed", 'run_all needs overlap = "queue": its runs would leave each other out, or end each other'
    return _problem_of_zone(schedule) or _problem_of_cron(schedule) or _problem_of_at(schedule)


def _problem_of_zone(schedule: Schedule) -> tuple[str, str] | None:
    if not schedule.zone:
        return None
    try:
        platform.zone(schedule.zone)
    except ValueError as error:
        return "zone", str(error)
    return None if schedule.cron or schedule.at else ("zone", "it is the zone of `cron` or `at`, and there is neither")


def _problem_of_at(schedule: Schedule) -> tuple[str, str] | None:
    if not schedule.at:
        return None
    try:
        moment = _moment(schedule.at)
    except ValueError:
        return "at", "it is a date and time as in 2026-12-01T09:00, with an offset (Z, +01:00) or local in `zone`"
    if moment.year not in AT_YEARS:
        return "at", f"it is in the years {AT_YEARS[0]} to {AT_YEARS[-1]}"
    if schedule.zone and moment.tzinfo is not None:
        return "zone", "it is the zone of a local time, and `at` has an offset"
    return None


def _problem_of_cron(schedule: Schedule) -> tuple[str, str] | None:
    if not schedule.cron:
        return None
    try:
        first = next(_simulated(schedule.cron, datetime(2000, 1, 1)), None)  # noqa: DTZ001 - any day will do.
    except CronSimError as error:
        detail = f"{str(error).lower()}; it is minute hour day month weekday, as in crontab(5)"
        return "cron", detail
    return ("cron", "it names a day that never comes") if first is None else None


def single_of(fields: dict[str, Any]) -> str | None:
    """Gives a field of a task that belongs to one task alone, so that a schedule can't have it; None: there is none."""
    return next((name for name in SINGLE if fields.get(name)), None)


def schedule_of(preset: Preset) -> Schedule:
    """Gives a preset's schedule; one that `problems_of` finds nothing wrong with."""
    every_s = parse_duration(preset.every) if preset.every else None
    return Schedule(
        cron=preset.cron,
        zone=preset.zone,
        every_s=every_s,
        at=preset.at,
        times_max=preset.times_max,
        on=preset.on,
        missed=preset.missed,
        missed_max=preset.missed_max,
        overlap=preset.overlap,
    )


def problems_of(preset: Preset) -> Iterator[tuple[str, str]]:
    """Gives each key of a preset that can't be used, and why."""
    for event in preset.on:
        if not re.fullmatch(EVENT, event):
            yield "on", f"{event!r} is no event: start, cloud.down, link.up:NAME, ..."
    try:
        schedule = schedule_of(preset)
    except Rejected as error:
        yield "every", error.what
        return
    if schedule.every_s is not None and not 1 <= schedule.every_s <= EVERY_S_MAX:
        yield "every", "it is from 1s to 366d"
    elif (found := problem_of(schedule)) is not None:
        yield found
    try:
        msgspec.convert(preset.task, Submit)
    except msgspec.ValidationError as error:
        yield "task", str(error).replace("`", "")
    single = single_of(preset.task)
    if single is not None:
        yield f"task.{single}", "each run is a task of its own"


def next_ms(schedule: Schedule, zone: ZoneInfo, began_ms: int, after_ms: int) -> int | None:
    """Gives the schedule's first time after `after_ms`; its times of `every_s` are counted from `began_ms`."""
    if schedule.every_s is not None:
        step_ms = round(schedule.every_s * 1000)
        return began_ms + ((after_ms - began_ms) // step_ms + 1) * step_ms
    moment_ms = at_ms(schedule, zone)
    if moment_ms is not None:
        return moment_ms if moment_ms > after_ms else None
    if not schedule.cron:
        return None
    times = _cron(schedule.cron, zone, after_ms, reverse=False)
    return next((time for time in islice(times, EXAMINED_MAX) if time > after_ms), None)


def at_ms(schedule: Schedule, zone: ZoneInfo) -> int | None:
    """Gives the one time of `at`, passed or not; None: the schedule has none."""
    if not schedule.at:
        return None
    moment = _moment(schedule.at)
    if moment.tzinfo is None:
        expression = f"{moment.minute} {moment.hour} {moment.day} {moment.month} *"
        within = timedelta(seconds=moment.second, microseconds=moment.microsecond)
        moment = next(_simulated(expression, (moment - timedelta(days=1)).replace(tzinfo=zone))) + within
    return round(moment.timestamp() * 1000)


def due(schedule: Schedule, zone: ZoneInfo, began_ms: int, first_ms: int, now_ms: int, late_ms: int) -> Due:
    """Decides about the times from `first_ms` to `now_ms`; one that is no older than `late_ms` has not been missed."""
    passed = _passed(schedule, zone, began_ms, first_ms, now_ms)
    kept = {
        "run_once": passed[-1:],
        "run_all": passed[-schedule.missed_max :],
        "skip": tuple(time for time in passed[-1:] if now_ms - time <= late_ms),
    }[schedule.missed]
    return Due(kept, len(passed) - len(kept), next_ms(schedule, zone, began_ms, now_ms))


def _passed(schedule: Schedule, zone: ZoneInfo, began_ms: int, first_ms: int, now_ms: int) -> tuple[int, ...]:
    """Gives the last `COUNTED_MAX` times from `first_ms`, which is one of them, to `now_ms`; oldest first."""
    if schedule.every_s is not None:
        step_ms = round(schedule.every_s * 1000)
        last = (now_ms - began_ms) // step_ms
        times = (began_ms + k * step_ms for k in range(last, last - COUNTED_MAX, -1))
    elif (moment_ms := at_ms(schedule, zone)) is not None:
        times = iter((moment_ms,) if moment_ms <= now_ms else ())
    elif schedule.cron:
        times = (time for time in _cron(schedule.cron, zone, _behind(now_ms, zone), reverse=True) if time <= now_ms)
    else:
        times = iter(())
    back = list(islice(takewhile(lambda time: time >= first_ms, times), COUNTED_MAX))
    # `first_ms` was set by an event, or by times that the schedule or the zone no longer has.
    return tuple(reversed(back)) or (first_ms,)


def _behind(now_ms: int, zone: ZoneInfo) -> int:
    """Gives a time from which a look back misses nothing: in an hour that comes twice, local times are no order."""
    now = datetime.fromtimestamp(now_ms / 1000, UTC)
    moved = now.astimezone(zone).utcoffset() != (now - MOVED).astimezone(zone).utcoffset()
    return now_ms + (round(MOVED.total_seconds()) if moved else 1) * 1000


def _moment(at: str) -> datetime:
    return datetime.fromisoformat(at.upper())


def _cron(expression: str, zone: ZoneInfo, from_ms: int, *, reverse: bool) -> Iterator[int]:
    start = datetime.fromtimestamp(from_ms / 1000, UTC).astimezone(zone)
    return (round(time.timestamp() * 1000) for time in _simulated(expression, start, reverse=reverse))


def _simulated(expression: str, start: datetime, *, reverse: bool = False) -> CronSim:
    return CronSim(NICKNAMES.get(expression, expression), start, reverse=reverse)
