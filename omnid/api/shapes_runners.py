"""What the operations on runners on other hosts give; see `shapes`."""

from msgspec import Struct


class RunnerView(Struct, frozen=True):
    """A runner on another host, as its heartbeats and its link show it."""

    name: str
    link: str | None
    """None: it is in the config no more, and still has attempts."""
    state: str
    """`up`, `leaving` (it is about to end), `expected` (not heard yet), `lost` (its lease is over), `link_down`."""
    since_ms: int | None
    """Of one that is lost: since when."""
    version: str | None
    slots: int | None
    """How many attempts it runs at once, as all below by its last heartbeat."""
    running: int | None
    load: float | None
    """The load average of its machine in the last minute, by core."""
    executors: dict[str, int]
    """Those that it offers, and how many attempts each takes at once."""
    labels: list[str]
    """What it can do that others can't, by the config and by its own word."""
    heard_at_ms: int | None
    """When it was last heard; None: not since the daemon started."""
    attempts: int
    """How many attempts are on it, or on their way to it."""


class RunnerList(Struct, frozen=True):
    """The runners of the config, and those that left it with attempts."""

    runners: list[RunnerView]
    daemon: str
    """What this daemon is called on links."""
    now_ms: int
