"""The parameters and results of what is asked about money. Amounts are US dollars (`_usd`), times Unix milliseconds."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from omnid.model import Millis, Params


class Spend(Params, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to add up by, and since when; without `since_ms`: this month."""

    by: Literal["executor", "model", "label", "origin", "day"] = "executor"
    since_ms: Millis | None = None
    limit: Annotated[int, Meta(ge=1, le=500)] = 100


class Amounts(Struct, frozen=True):
    """What calls have cost, what is reserved for those that run, and what was reserved for those of unknown cost."""

    spent_usd: float
    reserved_usd: float
    unknown_usd: float
    calls: int


class SpendRow(Struct, frozen=True):
    """One executor, model, label, origin or day."""

    name: str
    amounts: Amounts
    day_at_ms: int | None = None
    """The begin of the day, where days are added up by."""


class CapView(Struct, frozen=True):
    """A cap in its present window."""

    name: str
    """Its key in the config: ``budget.day_usd``, ``cap.experiments.month_usd``, ``origin.ci.day_usd``."""
    scope: str
    """What it holds for: ``all``, ``executor:x``, ``label:x`` or ``origin:x``."""
    window: str
    """``day`` or ``month``."""
    limit_usd: float
    amounts: Amounts
    begin_at_ms: int
    next_at_ms: int
    """When its next window begins."""


class Spent(Struct, frozen=True):
    """What was spent since a time, and the caps as they are now."""

    by: str
    since_ms: int
    zone: str
    """The time zone of days and months."""
    total: Amounts
    rows: list[SpendRow]
    caps: list[CapView]


class Today(Struct, frozen=True):
    """What today has cost, and its cap, where there is one."""

    amounts: Amounts
    limit_usd: float | None
    next_at_ms: int
    """When the next day begins."""


class TaskMoney(Struct, frozen=True):
    """What a task has cost, over all its attempts, and its own lid, where it has one."""

    amounts: Amounts
    limit_usd: float | None
