"""The lid on money: what a run may cost at most, and whether the caps let it start. Pure.

Amounts are microdollars. What counts against a cap is what was spent in its window, what is reserved for what runs, and
the whole reservation of what ended with an unknown cost.
"""

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple
from zoneinfo import ZoneInfo

from omnid.model import Work
from omnid.money import ALL, micro, origin_scope, scopes_of
from omnid.route.rights import section_of
from omnid.settings import EVERY_OTHER, Config, Executor
from omnid.times import day_ms, month_ms

LIMITED_PROFILES = frozenset({"claude-code"})
"""Agents that end by themselves at an amount that they are given: their runs can be made smaller than they may be."""
SHARE_MIN = 10
"""A run that can be made smaller starts with a tenth of what it may cost, or not at all: it would only break off."""

WindowKind = Literal["day", "month"]


class Lid(NamedTuple):
    """A cap of the config on one scope and window."""

    name: str
    """Its key: ``budget.day_usd``, or ``cap.experiments.month_usd``."""
    scope: str
    """`ALL`, ``executor:x``, ``label:x`` or ``origin:x``."""
    window: WindowKind
    limit_microusd: int

    @property
    def is_of_an_origin(self) -> bool:
        """Whether it holds for the tasks of one origin."""
        return self.scope.startswith("origin:")

    @property
    def is_shared(self) -> bool:
        """Whether it holds for all tasks of an executor, and not for those of one label or origin only."""
        return not (self.is_of_an_origin or self.scope.startswith("label:"))


class Used(NamedTuple):
    """What counts against a lid."""

    spent_microusd: int = 0
    reserved_microusd: int = 0
    unknown_microusd: int = 0
    calls: int = 0

    @property
    def total_microusd(self) -> int:
        """All of it."""
        return self.spent_microusd + self.reserved_microusd + self.unknown_microusd

    @property
    def settled_microusd(self) -> int:
        """What no running call can give back."""
        return self.spent_microusd + self.unknown_microusd


class Fill(NamedTuple):
    """A lid in its present window, and what counts against it there."""

    lid: Lid
    begin_at_ms: int
    end_at_ms: int
    used: Used


class Run(NamedTuple):
    """What is to start: the most that it may cost, and whether it can be held to less."""

    most_microusd: int
    limited: bool
    task_limit_microusd: int | None = None
    """The lid of the task itself, over all its attempts."""
    task_used_microusd: int = 0


class Admit(NamedTuple):
    """It may start once this much is reserved."""

    reserve_microusd: int


class Refuse(NamedTuple):
    """It may not start now."""

    fills: tuple[Fill, ...]
    """The lids that are in its way; none of them: the task's own."""
    need_microusd: int
    """What must be left under a lid."""
    used_up: bool
    """Whether it stays so until a window ends; False: what runs may still give back enough of what it has reserved."""
    never: bool = False
    """Whether no window will ever do, because a lid is less than one run may cost."""

    @property
    def wake_at_ms(self) -> int | None:
        """When all the windows in the way have ended; None where that doesn't help."""
        return max((fill.end_at_ms for fill in self.fills), default=None) if not self.never else None


def window_ms(kind: WindowKind, at_ms: int, zone: ZoneInfo) -> tuple[int, int]:
    """Gives the begin and the end of the day or the month that holds the instant."""
    return day_ms(at_ms, zone) if kind == "day" else month_ms(at_ms, zone)


def decide(run: Run, fills: Iterable[Fill]) -> Admit | Refuse:
    """Decides whether the run may start: what it reserves never takes a lid over its limit.

    A run that can be held to less gets what is left; any other needs room for all that it may cost.
    """
    most = run.most_microusd
    if run.task_limit_microusd is not None:
        left = run.task_limit_microusd - run.task_used_microusd
        need = _least(most, run.task_limit_microusd)
        if left < need:
            return Refuse((), need, used_up=True)
        most = min(most, left)
    reserve = most
    refused: list[tuple[Fill, int]] = []
    for fill in fills:
        left = fill.lid.limit_microusd - fill.used.total_microusd
        need = _least(most, fill.lid.limit_microusd) if run.limited else max(1, most)
        if left < need:
            refused.append((fill, need))
        reserve = min(reserve, left)
    return _refuse(refused) if refused else Admit(reserve)


def _refuse(refused: list[tuple[Fill, int]]) -> Refuse:
    """Says what is in the way: of lids that stay full until their windows end, only these."""
    full = [(fill, need) for fill, need in refused if fill.lid.limit_microusd - fill.used.settled_microusd < need]
    shown = full or refused
    return Refuse(
        tuple(fill for fill, _ in shown),
        max(need for _, need in shown),
        used_up=bool(full),
        never=any(fill.lid.limit_microusd < need for fill, need in shown),
    )


def _least(most: int, limit: int) -> int:
    return max(1, min(most, limit) // SHARE_MIN)


class Budget:
    """The money part of one config, made ready for many decisions."""

    def __init__(self, config: Config, kinds: Mapping[str, str]) -> None:
        """`kinds` has the kind of each executor that is there, also of those that aren't in the config."""
        self.config = config
        self._sections = config.executors()
        capped = {cap.executor for cap in config.cap}
        free = frozenset({"model"}) if config.channel and all(channel.free for channel in config.channel) else ()
        self.paid = frozenset(
            name
            for name, kind in kinds.items()
            if (kind not in free and _costs(self._sections.get(name), kind)) or name in capped
        )
        """The executors whose runs cost money; nothing of all this touches the others."""
        by_call = (name for name, kind in kinds.items() if kind == "model") if config.channel else ()
        self.by_call = frozenset(by_call)
        """The executors that reserve each of their calls by itself, and nothing at their start."""
        self._lids = tuple(_lids(config))
        self.labels = frozenset(lid.scope.partition(":")[2] for lid in self._lids if lid.scope.startswith("label:"))
        """The labels that have a lid."""

    def lids(self, executor: str, labels: Iterable[str], origin: str | None = None) -> list[Lid]:
        """Gives the lids that a run of this executor with these labels for this origin stands under."""
        scopes = set(scopes_of(executor, labels))
        own = () if origin is None or not self.config.origin else self.lids_of(origin)
        return [*(lid for lid in self._lids if lid.scope in scopes), *own]

    def lids_of(self, origin: str) -> list[Lid]:
        """Gives the lids of an origin; what is said for all others holds for each of them by itself."""
        section = section_of(self.config.origin, origin)
        if section is None:
            return []
        return list(_windows(f"origin.{section.name}", origin_scope(origin), section.day_usd, section.month_usd))

    def all_lids(self) -> list[Lid]:
        """Gives every lid of the config; that of origins without a section of their own is many, and none of these."""
        named = (section.name for section in self.config.origin if section.name != EVERY_OTHER)
        return [*self._lids, *(lid for name in named for lid in self.lids_of(name))]

    def run(self, executor: str) -> Run:
        """Gives what one run of the executor may cost, whatever the task."""
        section = self._sections.get(executor)
        given = None if section is None else section.cost_max_usd
        most = micro(self.config.budget.run_usd if given is None else given)
        return Run(most, getattr(section, "profile", None) in LIMITED_PROFILES)

    def run_of(self, executor: str, work: Work, used_microusd: int) -> Run:
        """Gives what one run of a task may cost, of which so much counts against its own lid already."""
        limit = self.task_limit_microusd(work)
        return self.run(executor)._replace(task_limit_microusd=limit, task_used_microusd=used_microusd)

    def task_limit_microusd(self, work: Work) -> int | None:
        """Gives the most that all attempts of a task may cost together, where there is a lid."""
        if work.cost_max_usd is not None:
            return micro(work.cost_max_usd)
        return micro(self.config.budget.task_usd) or None


def _costs(section: Executor | None, kind: str) -> bool:
    """Tells whether the runs of an executor cost money: agents, models, and what says what it costs; 0 says nothing."""
    if section is not None and section.cost_max_usd is not None:
        return section.cost_max_usd > 0
    return kind == "model" or getattr(section, "profile", None) is not None


def _lids(config: Config) -> Iterable[Lid]:
    caps = [("budget", ALL, config.budget.day_usd, config.budget.month_usd)]
    for cap in config.cap:
        scope = f"label:{cap.label}" if cap.label is not None else f"executor:{cap.executor}"
        caps.append((f"cap.{cap.name}", scope, cap.day_usd, cap.month_usd))
    for cap in caps:
        yield from _windows(*cap)


def _windows(name: str, scope: str, day_usd: float, month_usd: float) -> Iterable[Lid]:
    if day_usd:
        yield Lid(f"{name}.day_usd", scope, "day", micro(day_usd))
    if month_usd:
        yield Lid(f"{name}.month_usd", scope, "month", micro(month_usd))
