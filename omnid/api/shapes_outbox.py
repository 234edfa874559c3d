"""The parameters and results of the operations on what is to be delivered; see `shapes`."""

from typing import Annotated, Any

from msgspec import Meta, Struct

from omnid.model import Ordinal, Params, Problem


class OutboxView(Struct, frozen=True):
    """What waits to be delivered to one destination; ``notice/NAME`` is the queue of notices for it."""

    destination: str
    waiting: int
    dead: int
    """How many were given up, and wait for `dead.retry` or `dead.drop`."""
    dropped: int
    """How many fell out since the first start, because more than `outbox.rows_max` waited."""
    oldest_at_ms: int | None
    tries: int
    """How often the first of them was tried."""
    retry_at_ms: int | None
    problem: Problem | None
    """Why its last try failed."""


class DeadList(Params, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where to go on, and how many."""

    after: Ordinal = 0
    limit: Annotated[int, Meta(ge=1, le=500)] = 100


class DeadView(Struct, frozen=True):
    """Something that could not be delivered and was given up, or that came over a link and could not be taken."""

    id: str
    destination: str
    """Where it was to go; ``link/NAME``: it came over that link."""
    kind: str
    """``message``: it came over a link, so it can be dropped and not retried."""
    subject: str | None
    body: dict[str, Any]
    created_at_ms: int
    dead_at_ms: int | None
    tries: int
    problem: Problem | None


class DeadPage(Struct, frozen=True):
    """Dead deliveries, oldest first; `next` is the `after` of the page behind it (None: that was all)."""

    deliveries: list[DeadView]
    next: int | None


class DeadRef(Params, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which dead delivery."""

    id: Annotated[str, Meta(min_length=1, max_length=100)]
