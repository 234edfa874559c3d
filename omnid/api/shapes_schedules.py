"""The parameters and results of the operations on schedules; see `shapes`."""

from typing import Annotated, Any

from msgspec import Meta, Struct, field

from omnid.model import Params, Problem, Schedule, Submit
from omnid.patterns import NAME, PARAM_NAME

ParamName = Annotated[str, Meta(pattern=PARAM_NAME)]
ParamValue = Annotated[str, Meta(max_length=10_000)]
ParamValues = Annotated[dict[ParamName, ParamValue], Meta(max_length=32)]
ScheduleRef = Annotated[str, Meta(min_length=1, max_length=300, description="Name, or origin/name of another's")]


class ScheduleAdd(Params, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A new schedule: when, and the task of each run; its texts may hold ``{params.x}`` for each of `params`."""

    name: Annotated[str, Meta(pattern=NAME)]
    task: Submit
    schedule: Schedule = Schedule()
    params: ParamValues = field(default_factory=dict[str, str])


class ScheduleOf(Params, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which schedule."""

    name: ScheduleRef


class ScheduleSwitch(Params, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which schedule, and whether its times and events count."""

    name: ScheduleRef
    enabled: bool


class ScheduleRun(Params, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which schedule runs now, whatever its times; `params` go over its own."""

    name: ScheduleRef
    params: ParamValues = field(default_factory=dict[str, str])


class ScheduleList(Params, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where to go on (`next` of the page before), and how many."""

    after: Annotated[str, Meta(max_length=300)] = ""
    limit: Annotated[int, Meta(ge=1, le=500)] = 100


class ScheduleView(Struct, frozen=True):
    """A schedule; one with the origin ``config`` is a preset."""

    name: str
    origin: str
    enabled: bool
    schedule: Schedule
    title: str
    """What each run does, in one line."""
    task: dict[str, Any]
    params: dict[str, str]
    next_at_ms: int | None
    """When it runs next; None: by hand or on an event."""
    last_at_ms: int | None
    last_task: str | None
    """The name of the last run's task; None: there was none, or it has been removed."""
    last_state: str | None
    runs: int
    skipped: int
    """How many times passed without a run, because nobody was there or the run before went on still."""
    problem: Problem | None
    """Why the last run could not be submitted."""


class SchedulePage(Struct, frozen=True):
    """Schedules by name; `next` is the `after` of the page behind it (None: that was all)."""

    schedules: list[ScheduleView]
    next: str | None
