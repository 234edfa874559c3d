"""What clients see of schedules, and what they do with them."""

from collections.abc import Callable
from functools import partial

import anyio
import msgspec

from omnid.api.shapes_schedules import (
    ScheduleAdd,
    ScheduleList,
    ScheduleOf,
    SchedulePage,
    ScheduleRun,
    ScheduleSwitch,
    ScheduleView,
)
from omnid.errors import Rejected
from omnid.flow.caller import Caller
from omnid.flow.context import Context
from omnid.flow.intake import title_of
from omnid.flow.once import once
from omnid.flow.schedules import CONFIG_ORIGIN, Schedules, label_of
from omnid.model import Schedule, Scheduled, Submit, Submitted, Work
from omnid.store import journal
from omnid.store import schedules as rows
from omnid.store.interface import Reader, Tx

FOLLOW_UP_S = 10.0
"""How long a cancel that goes with a run may take to be passed on."""
SCHEDULED = "scheduled"
"""The state that a submit is answered with where it made a schedule and no task."""


class ScheduleViews:
    """Shows schedules, and adds, runs, switches and removes them."""

    def __init__(self, context: Context, schedules: Schedules) -> None:
        self._context = context
        self._schedules = schedules

    async def add(self, caller: Caller, params: ScheduleAdd) -> ScheduleView:
        """Adds a schedule; the same one again is the one that is there. Raises Rejected (`schedule_taken`)."""
        write = self._added(caller, params.name, params.schedule, params.task, params.params)
        fn = once(caller, "schedule.add", params, lambda tx: _view(tx, caller, write(tx)[0]), ScheduleView)
        return await self._context.store.write(fn)

    def begin_submit(self, caller: Caller, params: Submit) -> Callable[[Tx], Submitted]:
        """Checks a submit that asks for a schedule, and gives the function that writes that; raises what is wrong."""
        asked = params.schedule
        if asked is None:
            raise AssertionError("it asks for a task")
        fields = {name: getattr(asked, name) for name in Schedule.__struct_fields__}
        # Its name is what a key is for a task.
        task = msgspec.structs.replace(params, schedule=None, key=None)
        write = self._added(caller, asked.name, Schedule(**fields), task, {})

        def submit(tx: Tx) -> Submitted:
            scheduled, created = write(tx)
            return Submitted(scheduled.id, scheduled.name, SCHEDULED, created)

        return once(caller, "task.submit", params, submit, Submitted)

    async def show(self, caller: Caller, params: ScheduleOf) -> ScheduleView:
        """Gives one schedule; raises Rejected(`unknown_schedule`)."""
        return await self._context.store.read(lambda reader: _view(reader, caller, _find(reader, caller, params.name)))

    async def list(self, caller: Caller, params: ScheduleList) -> SchedulePage:
        """Gives schedules by name."""

        def find(reader: Reader) -> SchedulePage:
            found = _page(reader, caller, params.after, params.limit + 1)
            views = [_view(reader, caller, scheduled) for scheduled in found[: params.limit]]
            return SchedulePage(views, views[-1].name if len(found) > params.limit else None)

        return await self._context.store.read(find)

    async def switch(self, caller: Caller, params: ScheduleSwitch) -> ScheduleView:
        """Switches a schedule on or off; its times begin anew when it is switched on."""

        def write(tx: Tx) -> ScheduleView:
            scheduled = self._schedules.switched(_own(tx, caller, params.name), enabled=params.enabled)
            rows.put(tx, scheduled)
            tx.ring(rows.RUNG)
            return _view(tx, caller, scheduled)

        return await self._context.store.write(once(caller, "schedule.switch", params, write, ScheduleView))

    async def remove(self, caller: Caller, params: ScheduleOf) -> ScheduleView:
        """Removes a schedule; its tasks stay. Raises Rejected(`schedule_of_config`) for a preset."""

        def write(tx: Tx) -> ScheduleView:
            scheduled = _own(tx, caller, params.name)
            if scheduled.origin == CONFIG_ORIGIN:
                raise Rejected("schedule_of_config", schedule=scheduled.name)
            view = _view(tx, caller, scheduled)
            rows.remove(tx, scheduled)
            return view

        return await self._context.store.write(once(caller, "schedule.remove", params, write, ScheduleView))

    async def run(self, caller: Caller, params: ScheduleRun) -> Submitted:
        """Submits a schedule's task now, in the name and with the rights of whoever asks; see `Schedules.by_hand`."""
        scheduled = await self._context.store.read(partial(_find, caller=caller, name=params.name))
        write, effects = self._schedules.by_hand(caller, scheduled, params.params)
        # What was written is followed up whatever becomes of the client, though not for ever.
        with anyio.CancelScope(shield=True):
            submitted = await self._context.store.write(once(caller, "schedule.run", params, write, Submitted))
            for effect in effects:
                with anyio.move_on_after(FOLLOW_UP_S):
                    await self._schedules.follow_up(effect)
            return submitted
        raise AssertionError("nobody cancels this scope")

    def _added(
        self, caller: Caller, name: str, schedule: Schedule, task: Submit, params: dict[str, str]
    ) -> Callable[[Tx], tuple[Scheduled, bool]]:
        own = name if caller.role == "person" else f"{caller.origin}/{name}"
        scheduled = Scheduled(
            id=self._context.clock.uuid(),
            name=own,
            origin=caller.origin,
            role=caller.role,
            schedule=schedule,
            # As the journal gives it back: lists and no tuples.
            task=msgspec.json.decode(msgspec.json.encode(task)),
            params=params,
            enabled=True,
            created_at_ms=self._context.clock.wall_ms(),
        )
        add = self._schedules.checked(caller, scheduled)

        def write(tx: Tx) -> tuple[Scheduled, bool]:
            known = rows.find(tx, own)
            same = known is not None and (known.schedule, known.task, known.params) == (
                scheduled.schedule,
                scheduled.task,
                scheduled.params,
            )
            return (known, False) if known is not None and same else (add(tx), True)

        return write


def _find(reader: Reader, caller: Caller, name: str) -> Scheduled:
    """Finds a schedule by its name; an agent's own go before those of people. One out of sight isn't there."""
    own = None if caller.role == "person" else rows.find(reader, f"{caller.origin}/{name}")
    found = own or rows.find(reader, name)
    if found is None or not _sees(caller, found):
        raise Rejected("unknown_schedule", schedule=name)
    return found


def _sees(caller: Caller, scheduled: Scheduled) -> bool:
    """Tells whether the caller sees the tasks that a schedule makes."""
    labels = (*scheduled.task.get("labels", ()), label_of(scheduled))
    return caller.rights.sees(scheduled.origin, labels)


def _page(reader: Reader, caller: Caller, after: str, limit: int) -> list[Scheduled]:
    found: list[Scheduled] = []
    while len(found) < limit:
        page = rows.page(reader, after, limit)
        found += [one for one in page if _sees(caller, one)]
        if len(page) < limit:
            break
        after = page[-1].name
    return found[:limit]


def _own(reader: Reader, caller: Caller, name: str) -> Scheduled:
    """Finds a schedule that the caller may change; raises Rejected(`other_schedule`) for another's."""
    scheduled = _find(reader, caller, name)
    if caller.role == "agent" and scheduled.origin != caller.origin:
        raise Rejected("other_schedule", schedule=scheduled.name, origin=caller.origin)
    return scheduled


def _view(reader: Reader, caller: Caller, scheduled: Scheduled) -> ScheduleView:
    last = None if scheduled.last_task is None else journal.task_by_id(reader, scheduled.last_task)
    if last is not None and not caller.sees(last):
        last = None  # Somebody else has run it by hand.
    known = {name: scheduled.task[name] for name in Work.__struct_fields__ if name in scheduled.task}
    return ScheduleView(
        name=scheduled.name,
        origin=scheduled.origin,
        enabled=scheduled.enabled,
        schedule=scheduled.schedule,
        title=title_of(msgspec.convert(known, Work)),
        task=scheduled.task,
        params=scheduled.params,
        next_at_ms=scheduled.next_at_ms,
        last_at_ms=scheduled.last_at_ms,
        last_task=last and last.name,
        last_state=last and last.state,
        runs=scheduled.runs,
        skipped=scheduled.skipped,
        problem=scheduled.problem,
    )
