"""The mode, as far as it is known now: calls tell what they saw, and `flow.mode` acts on it."""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import anyio

from omnid.clock import Clock
from omnid.executor.brainstem import BrainstemState, Rehearsal
from omnid.executor.local_model import Plan
from omnid.link.beats import Beats
from omnid.model import Problem
from omnid.route.catalog import Facts
from omnid.route.modes import Health, Mode, mode_of
from omnid.settings import Config
from omnid.store.snapshots import Snapshot

if TYPE_CHECKING:
    from omnid.flow.checks import Checked

Hold = Literal["auto", "normal", "brainstem"]
SLEPT_S = 5.0
"""A wall clock that has gained so much on the monotonic one shows that the machine was asleep."""


async def _nothing(_: Hold) -> None:
    """Holds nothing, where nobody acts on the mode."""


class Saying(NamedTuple):
    """What a model on this machine is to answer."""

    system: str
    text: str
    may_wake: bool
    """Whether the local model is woken for it although the cloud is there."""


class Said(NamedTuple):
    """What a model on this machine has answered, or why none could."""

    text: str = ""
    model: str = ""
    problem: str = ""


async def _nothing_said(_: Saying) -> Said:
    return Said(problem="there is no local model")


async def _no_plan() -> Plan | None:
    return None


async def _no_rehearsal() -> Rehearsal:
    return Rehearsal("there is no local model", 0.0, None)


async def _unchecked() -> "Sequence[Checked]":
    return ()


class Modes:
    """What is known of the gateway and the cloud; changes of it ring the bells."""

    def __init__(self, config: Callable[[], Config], clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self.gateway = Health()
        self.cloud = Health()
        self.since_ms = clock.wall_ms()
        self.why = ""
        """What brought the mode about, in words; empty: nothing has."""
        self.hold: Hold = "auto"
        """What a person holds it at."""
        self.hold_at: Callable[[Hold], Awaitable[None]] = _nothing
        """Holds it; `flow.mode` sets it."""
        self.check_channels: Callable[[], Awaitable[Sequence[Checked]]] = _unchecked
        """Asks every channel with every key what costs nothing; `flow.checks` sets it."""
        self.facts: Callable[[int], Facts] = Facts
        """Gives what is known of keys and channels; `flow.model_calls` sets it."""
        self.local_model: Callable[[], BrainstemState] = lambda: BrainstemState("none")
        """Gives how the local model is; `flow.mode` sets this and the next four."""
        self.wake_local: Callable[[], None] = lambda: None
        """Has the local model woken, unless it is awake; whoever uses it calls this before."""
        self.plan_local: Callable[[], Awaitable[Plan | None]] = _no_plan
        """Looks what the local model would be started with, and what is missing; None: there is to be none."""
        self.rehearse_local: Callable[[], Awaitable[Rehearsal]] = _no_rehearsal
        """Wakes the local model for a look."""
        self.say_locally: Callable[[Saying], Awaitable[Said]] = _nothing_said
        """Has a model on this machine answer."""
        self.beats = Beats()
        """What probes of the channels have shown of the way to the internet."""
        self.cloud_lost: Callable[[int], None] = lambda _: None
        """Hears when the cloud has gone, and when that began; `flow.snapshots` sets it."""
        self.snapshots: tuple[Snapshot, ...] = ()
        """Of the journal, each named by the outage that it was made for; the newest first."""
        self.no_snapshot: Problem | None = None
        """Why there is none of the last outage."""
        self.local_changed = anyio.Event()
        self.gateway_changed = anyio.Event()
        self.cloud_suspect = anyio.Event()
        """One channel has failed so often in a row that all are to be probed."""
        self.link_moved = False
        """The machine's network has changed: a look is due, and a single one proves nothing."""
        self._away: defaultdict[str, int] = defaultdict(int)
        self._awake_at_s = -float("inf")
        self._seen = clock.wall_ms(), clock.monotonic_s()
        self.heard_at_s = clock.monotonic_s()
        """When the cloud was last heard of."""
        self.probe_at_ms: int | None = None
        """When the cloud is probed again, while it is gone; `flow.mode` sets it."""

    @property
    def mode(self) -> Mode:
        """What omnid can reach now."""
        if self.hold == "normal":
            return "normal"
        cloud_gone = self.cloud.is_gone or self.hold == "brainstem"
        return mode_of(gateway_gone=self.gateway.is_gone, cloud_gone=cloud_gone)

    def away(self) -> Mapping[str, int]:
        """Gives the failures in a row of the channels that have some."""
        return {name: count for name, count in self._away.items() if count}

    def gateway_was(self, *, good: bool) -> None:
        """Takes a sign of the gateway. What a call shows while it counts as gone is of an older process."""
        settings = self._config().mode
        health, event = self.gateway.saw(
            good=good, gone_after=settings.gateway_failures_max, back_after=settings.gateway_good_min
        )
        self.gateway = health
        if event is not None:
            self._turned()
            self.gateway_changed.set()

    def gateway_was_gone(self, since_ms: int) -> None:
        """Takes that the gateway was gone when the daemon before this one ended."""
        self.gateway = Health(is_gone=True)
        if not self.cloud.is_gone:
            self.since_ms = since_ms

    def cloud_was_gone(self, since_ms: int) -> None:
        """Takes that the cloud was gone when the daemon before this one ended."""
        self.cloud, self.since_ms = Health(is_gone=True), since_ms

    def channel_was(self, name: str, *, away: bool) -> None:
        """Takes what a call or a probe has shown of a channel: it can't be reached, or it answers, whatever it says."""
        if not away:
            self._away[name] = 0
            self.heard_at_s = self._clock.monotonic_s()
            return
        if self.just_woken():
            return
        self._away[name] += 1
        if self._away[name] >= self._config().mode.cloud_failures_max and not self.cloud.is_gone:
            self.cloud_suspect.set()

    def link_changed(self) -> None:
        """Takes that something about the machine's network has changed, for better or worse."""
        self.link_moved = True
        self.cloud_suspect.set()

    def cloud_was(self, *, good: bool) -> bool:
        """Takes what probes of all channels have shown; tells whether the cloud is gone or back with it."""
        health, event = self.cloud.saw(good=good, gone_after=1, back_after=self._config().mode.cloud_good_min)
        self.cloud = health
        if event is not None:
            self._away.clear()
            self._turned()
        return event is not None

    def just_woken(self) -> bool:
        """Tells whether the machine was asleep a moment ago, so that its network may not be there yet."""
        wall_ms, now_s = self._clock.wall_ms(), self._clock.monotonic_s()
        before_ms, before_s = self._seen
        self._seen = wall_ms, now_s
        if (wall_ms - before_ms) / 1000 - (now_s - before_s) > SLEPT_S:
            self._awake_at_s = now_s
        return now_s - self._awake_at_s < self._config().mode.wake_grace_s

    def _turned(self) -> None:
        self.since_ms = self._clock.wall_ms()
