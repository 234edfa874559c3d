"""Parameters and results of the operations about what happened while nobody looked."""

from typing import Annotated, Any

from msgspec import Meta, Struct

from omnid.api.shapes import NeedsYou, TaskBrief, TaskRef
from omnid.model import Millis, Params


class Away(Params, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Since when; without it since the last time that a person asked, or a day ago."""

    since_ms: Millis | None = None
    keep: Annotated[bool, Meta(description="Leaves the time from which the next one counts as it is")] = False


class ParkedView(Struct, frozen=True):
    """Tasks that one closed gate holds back."""

    cause: str
    executor: str
    tasks: int
    wake_at_ms: int | None


class AwayDigest(Struct, frozen=True):
    """What happened, in one line and in its parts."""

    text: str
    since_ms: int
    until_ms: int
    ended: dict[str, int]
    """Number of tasks that ended, by state."""
    parked: list[ParkedView]
    failed: list[TaskBrief]
    """The last that failed."""
    needs_you: list[NeedsYou]
    needs_you_total: int
    spent_usd: float | None
    """Today; None where nothing costs money."""
    cap_usd: float | None
    limits: int
    limits_s: float


class ReceiptOf(Params, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which task."""

    task: TaskRef


class AttemptReceipt(Struct, frozen=True):
    """One attempt."""

    number: int
    executor: str
    outcome: str | None
    started_at_ms: int
    ended_at_ms: int | None
    restarts: int
    """How many starts of the daemon it has outlived."""
    exit_code: int | None
    cost_usd: float | None
    problem: str | None


class CheckReceipt(Struct, frozen=True):
    """The check of the task, and what it printed last."""

    argv: tuple[str, ...]
    passed: bool | None
    output: str


class Receipt(Struct, frozen=True):
    """Everything that is known of a task's way, and the hash of its entries in the log."""

    task: TaskBrief
    asked: dict[str, Any]
    why: str
    route: dict[str, Any] | None
    attempts: list[AttemptReceipt]
    restarts: int
    calls: int
    spent_usd: float
    reserved_usd: float
    """What calls of unknown cost may have cost."""
    unknown: int
    check: CheckReceipt | None
    changes: str | None
    """``git diff --stat`` of its workspace, where it has one; for people."""
    entries: int
    sha256: str
