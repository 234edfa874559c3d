"""The parameters and results of `mode.*`, `outage.list` and `channel.check`; see `shapes`."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from omnid.model import Millis, Params, Problem


class ModeHold(Params, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the mode is held at, until omnid is started again; `auto` lets it follow the facts."""

    hold: Literal["auto", "normal", "brainstem"]


class KeyState(Struct, frozen=True):
    """A key of a channel."""

    reference: str | None
    """Where its secret lies; only people are told."""
    closed_until_ms: int | None
    """Its limit holds until then."""
    refused: str | None
    """Why the provider doesn't take it."""


class ChannelState(Struct, frozen=True):
    """What is known of a channel from its calls."""

    name: str
    models: tuple[str, ...]
    local: bool
    failures: int
    """In a row, to reach it."""
    p50_s: float | None
    """The median of its last calls until their first text."""
    running: int
    closed_until_ms: int | None
    why_closed: str
    keys: list[KeyState]


class LocalModel(Struct, frozen=True):
    """The brainstem's model."""

    phase: Literal["none", "asleep", "waking", "ready"]
    why: str
    """Why it is asleep although it is wanted."""
    memory_bytes: int | None
    """What its process held when that was last looked at."""
    returned_bytes: int | None
    """What the last one held when it was killed."""


class SnapshotView(Struct, frozen=True):
    """A snapshot of the journal."""

    path: str
    at_ms: int
    """When the outage began that it was made for."""
    size_bytes: int


class ModeShown(Struct, frozen=True):
    """The mode, since when, and what is known of each channel."""

    mode: str
    since_ms: int
    now_ms: int
    hold: str
    why: str
    gateway_gone: bool
    cloud_gone: bool
    probe_at_ms: int | None
    """When the cloud is probed again, while it is gone."""
    channels: list[ChannelState]
    local_model: LocalModel
    snapshots: list[SnapshotView]
    """The newest first."""
    no_snapshot: Problem | None
    """Why there is none of the last outage."""


class OutageList(Params, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From when on, and how many at most; the newest come first."""

    since_ms: Millis = 0
    limit: Annotated[int, Meta(ge=1, le=1000)] = 50


class OutageView(Struct, frozen=True):
    """A time in which something could not be used."""

    cause: str
    subject: str
    began_at_ms: int
    ended_at_ms: int | None
    parked: int
    """Attempts that it parked."""
    resumed: int
    problem: Problem | None
    snapshot: str | None
    """The path of the journal's snapshot that was made for it, where that is still there."""


class Outages(Struct, frozen=True):
    """Outages, the newest first."""

    outages: list[OutageView]
    now_ms: int


class ChannelChecked(Struct, frozen=True):
    """What a channel answered to a request that costs nothing."""

    name: str
    key: str
    """The reference that it was asked with."""
    ok: bool
    detail: str
    do: str


class ChannelsChecked(Struct, frozen=True):
    """All channels with all their keys."""

    checks: list[ChannelChecked]


class Rehearsed(Struct, frozen=True):
    """What came of waking the local model for a look."""

    problem: str
    ready_s: float
    memory_bytes: int | None
    local_model: LocalModel


class Question(Params, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A question about omnid's own state; without one, how it is."""

    question: Annotated[str, Meta(max_length=2000)] = ""
    facts_only: Annotated[bool, Meta(description="Gives the facts, and asks no model")] = False
    wake: Annotated[bool, Meta(description="Wakes the local model although the cloud is there")] = False


class ParkedGroup(Struct, frozen=True):
    """Tasks that can't start for one reason, on one executor."""

    cause: str
    executor: str
    tasks: int
    """Counted up to 10,000."""
    wake_at_ms: int | None
    labels: dict[str, int]
    """The most frequent labels of the first thousand."""


class Answered(Struct, frozen=True):
    """An answer, and all that it was made of."""

    text: str
    model: str
    """Which model put it into words; empty: none, and the text is the account."""
    why_no_model: str
    account: str
    """How omnid is, in one paragraph, by itself."""
    facts: list[str]
    parked: list[ParkedGroup]
