"""The parameters and results of `mode.*`, `outage.list` and `channel.check`; see `shapes`."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from omnid.model import Millis, Params, Problem


class ModeHold(Params, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the mode is held at, until omnid is started again; `auto` lets it follow the facts."""

    hold: Literal["auto", "normal", "brainstem"]


class KeyState(Struct, frozen=True):
    """A key of a channel, by its reference."""

    reference: str
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


class ModeShown(Struct, frozen=True):
    """The mode, since when, and what is known of each channel."""

    mode: str
    since_ms: int
    now_ms: int
    hold: str
    why: str
    gateway_gone: bool
    cloud_gone: bool
    channels: list[ChannelState]


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
