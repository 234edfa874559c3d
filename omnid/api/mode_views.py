"""What clients see of the mode, the channels and the outages."""

from functools import partial

from msgspec.structs import replace

from omnid.api.shapes import Empty, Finding
from omnid.api.shapes_mode import (
    ChannelChecked,
    ChannelsChecked,
    ChannelState,
    KeyState,
    LocalModel,
    ModeHold,
    ModeShown,
    OutageList,
    Outages,
    OutageView,
    Rehearsed,
    SnapshotView,
)
from omnid.channels import keys_of, models_of
from omnid.flow.caller import Caller
from omnid.flow.context import Context
from omnid.route.catalog import ChannelFacts, Facts, KeyFacts
from omnid.settings import Channel
from omnid.store.interface import Reader
from omnid.store.journal import problem_of


class ModeViews:
    """Shows the mode and holds it."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def show(self, caller: Caller, _params: Empty) -> ModeShown:
        """Says what omnid can reach, and what is known of each channel; an agent isn't told where its keys lie."""
        shown = self._shown()
        return shown if caller.role == "person" else replace(shown, channels=[_unnamed(one) for one in shown.channels])

    def _shown(self) -> ModeShown:
        """Gives the mode and what is known of each channel."""
        context, modes = self._context, self._context.modes
        now_ms = context.clock.wall_ms()
        facts, away = modes.facts(now_ms), modes.away()
        return ModeShown(
            mode=modes.mode,
            since_ms=modes.since_ms,
            now_ms=now_ms,
            hold=modes.hold,
            why=modes.why,
            gateway_gone=modes.gateway.is_gone,
            cloud_gone=modes.cloud.is_gone,
            probe_at_ms=modes.probe_at_ms,
            channels=[_channel(one, facts, away.get(one.name, 0)) for one in context.config.channel],
            local_model=self._local_model(),
            snapshots=[SnapshotView(*one) for one in modes.snapshots],
            no_snapshot=modes.no_snapshot,
        )

    def _local_model(self) -> LocalModel:
        state = self._context.modes.local_model()
        return LocalModel(state.phase, state.why, state.memory_bytes, state.returned_bytes)

    async def rehearse(self, _caller: Caller, _params: Empty) -> Rehearsed:
        """Wakes the local model for a look at how long that takes and what it needs, and kills it again."""
        found = await self._context.modes.rehearse_local()
        return Rehearsed(found.problem, found.ready_s, found.memory_bytes, self._local_model())

    async def hold(self, _caller: Caller, params: ModeHold) -> ModeShown:
        """Holds the mode, until omnid is started again."""
        await self._context.modes.hold_at(params.hold)
        return self._shown()

    def outages(self, reader: Reader, params: OutageList) -> Outages:
        """Gives the outages since a time."""
        rows = reader.all("outages_newest", params.since_ms, params.limit)
        kept = {("cloud", one.at_ms): one.path for one in self._context.modes.snapshots}
        found = [
            OutageView(
                row[0], row[1], row[2], row[3], row[4] or 0, row[5] or 0, problem_of(row[6]), kept.get((row[0], row[2]))
            )
            for row in rows
        ]
        return Outages(found, self._context.clock.wall_ms())

    async def check(self, _caller: Caller, _params: Empty) -> ChannelsChecked:
        """Asks every channel with every key something that costs nothing, also whether it has its models."""
        return ChannelsChecked(await self._checks())

    async def _checks(self) -> list[ChannelChecked]:
        checked = await self._context.modes.check_channels()
        return [ChannelChecked(one.channel.name, one.key, one.kind is None, one.detail, one.do) for one in checked]

    async def findings(self) -> list[Finding]:
        """Gives what `check` found as findings of `doctor`, and what stands in the way of the local model."""
        found = [
            Finding(
                f"channel {one.name}", one.ok, f"{one.key or 'no key'}: {one.detail or 'it is well'}", one.do or None
            )
            for one in await self._checks()
        ]
        plan = await self._context.modes.plan_local()
        if plan is not None:
            fine = f"it can be woken; it needs {plan.memory_bytes >> 20} MiB of memory"
            ok = not plan.problem
            found.append(Finding("local model", ok, plan.problem or fine, plan.do if plan.problem else None))
        return found

    async def list_outages(self, _caller: Caller, params: OutageList) -> Outages:
        """Lists what could not be used, from when to when."""
        return await self._context.store.read(partial(self.outages, params=params))


def _channel(channel: Channel, facts: Facts, failures: int) -> ChannelState:
    known = facts.channels.get(channel.name, ChannelFacts())
    keys: list[KeyState] = []
    for reference in keys_of(channel):
        key = facts.keys.get((channel.name, reference), KeyFacts())
        keys.append(KeyState(reference, _later(key.closed_until_ms, facts.now_ms), key.refused))
    closed_until_ms = _later(known.closed_until_ms, facts.now_ms)
    return ChannelState(
        name=channel.name,
        models=tuple(model.name for model in models_of(channel)),
        local=bool(channel.local),
        failures=failures,
        p50_s=known.p50_s(),
        running=known.running,
        closed_until_ms=closed_until_ms,
        why_closed=known.why_closed if closed_until_ms is not None else "",
        keys=keys,
    )


def _unnamed(channel: ChannelState) -> ChannelState:
    return replace(channel, keys=[replace(key, reference=None) for key in channel.keys])


def _later(at_ms: int | None, now_ms: int) -> int | None:
    return at_ms if at_ms is not None and at_ms > now_ms else None
