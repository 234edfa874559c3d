"""Schedules: tasks that are submitted again and again, or once, at their times, on events, or by hand.

A run and the schedule's next time are written in one transaction, and the time is part of the task's idempotency key: a
time runs once, whatever happens to omnid or to the clock.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from zoneinfo import ZoneInfo

import msgspec
from msgspec.structs import replace

from omnid import platform, recurrence
from omnid.errors import Rejected
from omnid.executor.template import fill_names
from omnid.flow import intake
from omnid.flow.caller import Caller, entitled
from omnid.flow.context import Bell, Context
from omnid.flow.control import Cancelling, Effect, Order, order
from omnid.flow.diskroom import DiskRoom
from omnid.model import Problem, Schedule, Scheduled, Submit, Submitted, Task
from omnid.patterns import said
from omnid.recurrence import Due
from omnid.settings import Preset
from omnid.states import TERMINAL
from omnid.store import journal
from omnid.store import schedules as rows
from omnid.store.interface import Tx

ALARM = "schedules"
START = "start"
CONFIG_ORIGIN = "config"
"""The origin of those that the config names as presets."""
BATCH_MAX = 100
BULK_RUNS = 10
"""From how many runs at once on they are too long for the event loop."""
SET_BACK_MS = 1_000
"""By how much the clock must have been set; less is how clocks are steered."""
Write = Callable[[Tx], Submitted]


def label_of(scheduled: Scheduled) -> str:
    """Gives the label of a schedule's tasks."""
    return f"schedule:{scheduled.name}"


def submit_of(scheduled: Scheduled, params: Mapping[str, str], key: str | None) -> Submit:
    """Gives the task of a run; `params` go over those of the schedule.

    Raises Rejected (`bad_schedule`, `bad_template`) where they aren't those of the schedule.
    """
    unknown = params.keys() - scheduled.params.keys()
    if unknown:
        known = ", ".join(sorted(scheduled.params)) or "none"
        detail = f"{scheduled.name} has no such parameter; it has {known}"
        raise Rejected("bad_schedule", where=f"params.{min(unknown)}", detail=detail)
    names = {f"params.{name}": value for name, value in {**scheduled.params, **params}.items()}
    fields = fill_names(scheduled.task, "params", names)
    labels = (*fields.get("labels", ()), label_of(scheduled))
    lane = None if scheduled.schedule.overlap == "skip" else label_of(scheduled)
    given = {"lane": lane, **fields, "labels": labels, "key": key}
    try:
        return msgspec.convert({name: value for name, value in given.items() if value is not None}, Submit)
    except msgspec.ValidationError as error:
        # Filled in, a text may be too long or empty where the template was neither.
        raise Rejected("bad_schedule", where="its task", detail=said(error)) from error


def zone_of(scheduled: Scheduled, context: Context) -> ZoneInfo:
    """Gives the zone of its times; that of the daemon where the system has lost the schedule's own."""
    if not scheduled.schedule.zone:
        return context.zone
    try:
        return platform.zone(scheduled.schedule.zone)
    except ValueError:
        return context.zone


class Schedules:
    """Keeps the schedules, and runs what is due; the one timer wakes it."""

    def __init__(self, context: Context, cancelling: Cancelling) -> None:
        self._context = context
        self._cancelling = cancelling
        self._room = DiskRoom(context.config.state.dir, context.clock)
        self._bell = Bell()
        self._began = False
        self._taken: tuple[Preset, ...] | None = None
        self._zone: ZoneInfo | None = None
        """That of the times ahead; None: they are an earlier daemon's, which may have had another zone or clock."""
        self._looked_ms = 0
        self._until_ms: dict[str, int] = {}
        """Up to when those had run that were set anew by a clock that is behind what the journal has seen."""
        self._ahead_ms = 0.0
        """By how much the wall clock was ahead of the time since the boot when they were."""

    async def run(self) -> None:
        """Runs what is due, then waits for the next time or event; ends when it is cancelled."""
        while True:
            await self._take_presets()
            if not self._began:
                await self._context.store.write(lambda tx: rows.fire(tx, START))
                self._began = True
            await self.work_off()
            await self._bell.wait()

    def look(self) -> None:
        """Looks anew, because something may be due or the config has changed."""
        self._bell.ring()

    async def work_off(self) -> None:
        """Runs everything that is due now, and sets the alarm for the next."""
        context = self._context
        now_ms = context.clock.wall_ms()
        if now_ms < self._looked_ms - SET_BACK_MS or self._zone is not context.zone:
            # The times ahead may be those of another clock. What has run already has the same key, and isn't run again.
            await context.store.write(self._set_anew, bulk=True)
            self._ahead_ms = self._wall_ahead_ms()
        self._looked_ms, self._zone = now_ms, context.zone
        while found := await context.store.read(partial(rows.due, now_ms=context.clock.wall_ms(), limit=BATCH_MAX)):
            for scheduled in found:
                await self._run_due(scheduled)
        next_ms = await context.store.read(rows.next_at_ms)
        if next_ms is None:
            context.alarms.drop(ALARM)
        else:
            context.alarms.set(ALARM, next_ms, self._bell)

    def checked(self, caller: Caller, scheduled: Scheduled) -> Callable[[Tx], Scheduled]:
        """Checks a new schedule and gives the function that writes it.

        Raises Rejected here for what could never run; the function raises Rejected (`schedule_taken`, `too_many`).
        """
        problem = recurrence.problem_of(scheduled.schedule)
        if problem is not None:
            raise Rejected("bad_schedule", where=problem[0], detail=problem[1])
        single = recurrence.single_of(scheduled.task)
        if single is not None:
            raise Rejected("bad_schedule", where=single, detail="each run is a task of its own")
        intake.plan_one(self._context, caller, submit_of(scheduled, {}, None))
        return partial(_add, scheduled=self._first(scheduled), count_max=self._context.config.schedules.count_max)

    def by_hand(self, caller: Caller, scheduled: Scheduled, params: Mapping[str, str]) -> tuple[Write, list[Effect]]:
        """Checks a run by hand and gives the function that writes it, and where that puts what is to be followed up.

        Raises Rejected; so does the function (`schedule_busy`).
        """
        self._room.check(self._context.config.store.free_bytes_min)
        write = intake.plan_one(self._context, caller, submit_of(scheduled, params, None))
        effects: list[Effect] = []
        return partial(self._by_hand, caller=caller, name=scheduled.name, write=write, effects=effects), effects

    async def follow_up(self, effect: Effect) -> None:
        """Passes on that a run has been cancelled for the next one."""
        context = self._context
        context.watch.tell(effect.touched)
        context.wake()
        if effect.cancel_attempt is not None:
            await self._cancelling.end_attempt(effect.cancel_attempt)

    def switched(self, scheduled: Scheduled, *, enabled: bool) -> Scheduled:
        """Gives the schedule switched on or off; its times begin anew when it is switched on."""
        return self._timed(replace(scheduled, enabled=enabled)) if enabled != scheduled.enabled else scheduled

    def _timed(self, scheduled: Scheduled) -> Scheduled:
        """Gives the schedule with its next time from now on."""
        schedule, now_ms = scheduled.schedule, self._context.clock.wall_ms()
        ended = schedule.times_max is not None and scheduled.runs >= schedule.times_max
        next_ms = recurrence.next_ms(schedule, zone_of(scheduled, self._context), scheduled.created_at_ms, now_ms)
        return replace(scheduled, next_at_ms=None if ended or not scheduled.enabled else next_ms)

    def _first(self, scheduled: Scheduled) -> Scheduled:
        """Gives a new schedule with its first time; an `at` that has passed is due, and has been missed."""
        at_ms, timed = self._at_ms(scheduled), self._timed(scheduled)
        return timed if at_ms is None or not scheduled.enabled else replace(timed, next_at_ms=at_ms)

    def _retimed(self, scheduled: Scheduled, known: Scheduled | None, now_ms: int) -> Scheduled:
        """Gives a preset's schedule with its next time; what was due stays due, where it has times or events left."""
        timed, due_ms = self._first(scheduled), scheduled.next_at_ms
        has_any = timed.next_at_ms is not None or bool(scheduled.schedule.on)
        at_ms, before_ms = self._at_ms(scheduled), None if known is None else self._at_ms(known)
        if at_ms is not None and before_ms is not None:
            # An `at` in the place of another: the earlier one is due no more, and one that is over has to be later.
            timed = self._timed(scheduled) if due_ms is None and at_ms <= before_ms else timed
            has_any = bool(scheduled.schedule.on)
        return replace(timed, next_at_ms=due_ms) if has_any and due_ms is not None and due_ms <= now_ms else timed

    def _at_ms(self, scheduled: Scheduled) -> int | None:
        return recurrence.at_ms(scheduled.schedule, zone_of(scheduled, self._context))

    def _set_anew(self, tx: Tx) -> None:
        is_behind = journal.ahead_ms(tx) > SET_BACK_MS
        for scheduled in rows.page(tx, "", rows.COUNT_MAX):
            before_ms = scheduled.next_at_ms
            if before_ms is None or before_ms <= tx.now_ms:
                continue  # What is due stays due: it has been missed.
            next_ms = self._timed(scheduled).next_at_ms
            if is_behind:
                self._until_ms[scheduled.id] = max(before_ms, self._until_ms.get(scheduled.id, 0))
            if next_ms != before_ms:
                # What has no time ahead was set going by an event, or its `at` has passed in the zone of now: it runs.
                rows.put(tx, replace(scheduled, next_at_ms=tx.now_ms if next_ms is None else next_ms))

    async def _run_due(self, scheduled: Scheduled) -> None:
        """Submits what a due schedule asks for, and writes down its next time; what can't be submitted is kept."""
        context = self._context
        self._room.check(context.config.store.free_bytes_min)
        due = self._due(scheduled)
        caller = entitled(Caller(scheduled.role, scheduled.origin), context.config)
        try:
            keys = [f"schedule/{scheduled.id}/{time}" for time in due.times]
            writes = [intake.plan_one(context, caller, submit_of(scheduled, {}, key)) for key in keys]
            begin = partial(self._begin, before=scheduled, due=due, writes=writes)
            effect = await context.store.write(begin, bulk=len(writes) > BULK_RUNS)
        except Rejected as error:
            context.log.warning("schedule_failed", schedule=scheduled.name, **error.as_dict())
            await context.store.write(partial(_failed, before=scheduled, due=due, problem=Problem.of(error)))
            return
        self._until_ms.pop(scheduled.id, None)
        context.timer.ring()
        if effect is not None:
            await self.follow_up(effect)

    def _wall_ahead_ms(self) -> float:
        clock = self._context.clock
        return clock.wall_ms() - 1000 * clock.boottime_s()

    def _due(self, scheduled: Scheduled) -> Due:
        now_ms, first_ms = self._context.clock.wall_ms(), scheduled.next_at_ms
        late_ms = round(self._context.config.schedules.late_s * 1000)
        zone = zone_of(scheduled, self._context)
        schedule, began_ms = scheduled.schedule, scheduled.created_at_ms
        first_ms = now_ms if first_ms is None else first_ms
        until_ms = self._until_ms.get(scheduled.id)
        if until_ms is not None and late_ms < now_ms - first_ms <= self._wall_ahead_ms() - self._ahead_ms + late_ms:
            # The clock was behind and has been put right: what it leapt over had run before it was behind.
            first_ms = recurrence.next_ms(schedule, zone, began_ms, min(until_ms - 1, now_ms)) or first_ms
            if first_ms > now_ms:
                return Due((), 0, first_ms)
        due = recurrence.due(schedule, zone, began_ms, first_ms, now_ms, late_ms)
        if schedule.overlap != "queue" and len(due.times) > 1:
            # Of an earlier version, which took that: all but the last would overlap, or be ended at once.
            due = due._replace(times=due.times[-1:], skipped=due.skipped + len(due.times) - 1)
        left = len(due.times) if schedule.times_max is None else max(0, schedule.times_max - scheduled.runs)
        return due._replace(times=due.times[:left])

    def _begin(self, tx: Tx, *, before: Scheduled, due: Due, writes: Sequence[Write]) -> Effect | None:
        """Submits the runs, unless the schedule has changed meanwhile; it is looked at again then."""
        current = rows.find(tx, before.name)
        if current != before:
            return None
        last = _going_on(tx, before)
        if last is not None and before.schedule.overlap == "skip":
            rows.put(tx, replace(before, next_at_ms=due.next_at_ms, skipped=before.skipped + due.skipped + len(writes)))
            return None
        # A time that comes again, because the clock was set back, has its task: that is none of its runs.
        submitted = [done for write in writes if (done := write(tx)).created]
        effect = None
        if last is not None and before.schedule.overlap == "kill" and submitted:
            effect = order(self._context, Caller(origin=last.origin), Order(last.id, "cancel"))(tx)
        after = replace(before, next_at_ms=due.next_at_ms, skipped=before.skipped + due.skipped, problem=None)
        if submitted:
            after = replace(after, last_at_ms=tx.now_ms, last_task=submitted[-1].id, runs=before.runs + len(submitted))
        ended = after.schedule.times_max is not None and after.runs >= after.schedule.times_max
        rows.put(tx, replace(after, next_at_ms=None) if ended else after)
        return effect

    def _by_hand(self, tx: Tx, *, caller: Caller, name: str, write: Write, effects: list[Effect]) -> Submitted:
        """Submits a run by hand: it is the last run from then on, and none of those that are counted."""
        scheduled = rows.need(tx, name)
        last, overlap = _going_on(tx, scheduled), scheduled.schedule.overlap
        if last is not None and overlap == "skip":
            task = last.name if caller.sees(last) else "somebody else's task"
            raise Rejected("schedule_busy", schedule=scheduled.name, task=task)
        effects.clear()  # The function may be run twice.
        # Whoever may not cancel it waits behind it.
        if last is not None and overlap == "kill" and (caller.role == "person" or last.origin == caller.origin):
            effects.append(order(self._context, Caller(origin=last.origin), Order(last.id, "cancel"))(tx))
        submitted = write(tx)
        rows.put(tx, replace(scheduled, last_at_ms=tx.now_ms, last_task=submitted.id))
        return submitted

    async def _take_presets(self) -> None:
        """Brings the schedules of the config up to what it says now."""
        presets = self._context.config.preset
        if presets is self._taken:
            return
        take = partial(self._preset, presets=presets)
        self._context.preset_problems = await self._context.store.write(take, bulk=True)
        self._taken = presets

    def _preset(self, tx: Tx, *, presets: Sequence[Preset]) -> list[Problem]:
        before = {scheduled.name: scheduled for scheduled in rows.of_origin(tx, CONFIG_ORIGIN, rows.COUNT_MAX)}
        problems: list[Problem] = []
        for preset in presets:
            known = before.pop(preset.name, None)
            other = rows.find(tx, preset.name) if known is None else None
            if other is not None:
                problems.append(Problem.make("schedule_taken", schedule=preset.name))
                continue
            wanted = scheduled_of(preset, known, id=self._context.clock.uuid(), now_ms=tx.now_ms)
            if wanted != known:
                rows.put(tx, self._retimed(wanted, known, tx.now_ms))
        for gone in before.values():
            rows.remove(tx, gone)
        return problems


def scheduled_of(preset: Preset, known: Scheduled | None, *, id: str, now_ms: int) -> Scheduled:
    """Makes a schedule of a preset; what has happened to the one of its name stays."""
    fresh = known or Scheduled(
        id=id,
        name=preset.name,
        origin=CONFIG_ORIGIN,
        role="person",
        schedule=Schedule(),
        task={},
        params={},
        enabled=True,
        created_at_ms=now_ms,
    )
    return replace(fresh, schedule=recurrence.schedule_of(preset), task=dict(preset.task), params=dict(preset.params))


def _add(tx: Tx, *, scheduled: Scheduled, count_max: int) -> Scheduled:
    if rows.find(tx, scheduled.name) is not None:
        raise Rejected("schedule_taken", schedule=scheduled.name)
    count = rows.count(tx)
    if count >= count_max:
        raise Rejected("too_many", count=count + 1, things="schedules", limit=count_max, setting="schedules.count_max")
    rows.put(tx, scheduled)
    tx.ring(rows.RUNG)
    return scheduled


def _going_on(tx: Tx, scheduled: Scheduled) -> Task | None:
    """Gives the task of the last run, by hand or not, where it has not ended."""
    last = None if scheduled.last_task is None else journal.task_by_id(tx, scheduled.last_task)
    return None if last is None or last.state in TERMINAL else last


def _failed(tx: Tx, *, before: Scheduled, due: Due, problem: Problem) -> None:
    if rows.find(tx, before.name) == before:
        skipped = before.skipped + due.skipped + len(due.times)
        rows.put(tx, replace(before, next_at_ms=due.next_at_ms, skipped=skipped, problem=problem))
