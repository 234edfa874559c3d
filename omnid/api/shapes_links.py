"""What the operation on links gives; see `shapes`."""

from typing import Literal

from msgspec import Struct

Quality = Literal["up", "degraded", "down"]


class LinkView(Struct, frozen=True):
    """Something that omnid reaches others by, and how it does."""

    kind: Literal["clients", "broker", "internet"]
    name: str
    quality: Quality | None
    """None: nobody looks, because nothing uses it."""
    why: str
    """Why it is degraded or down; empty where it is up."""
    latency_s: float | None
    """How long the last answered ping took; None of the clients: they ask, and nobody pings them."""
    loss: float | None
    """The share of the last 20 pings that got no answer; None of the clients."""
    waiting: int
    """What lies in the outboxes for it; of the clients: how many are there."""
    beats: list[Quality | None]
    """The last day, oldest first, each as bad as its worst minute; None: nobody looked."""


class LinkList(Struct, frozen=True):
    """The links, and how long each beat is."""

    links: list[LinkView]
    beat_s: float
    now_ms: int
