"""Acts on the mode: parks what needs the cloud until that is back, and wakes the local model meanwhile.

What calls and probes have shown is counted in `modes`. The gate `cloud` is one row for each executor of models, so that
nothing is written to the tasks behind it; attempts that run are parked at once.
"""

import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from typing import NamedTuple

import anyio
from anyio.abc import TaskGroup

from omnid.channels import models_of, signs_of_cloud
from omnid.errors import OmnidError, Rejected, Retryable
from omnid.executor.brainstem import Brainstem, BrainstemState, Rehearsal
from omnid.executor.direct import Direct
from omnid.executor.gateway import Gateway
from omnid.executor.local_model import Plan
from omnid.executor.model import ModelExecutor
from omnid.executor.model_wire import Answer, Ask, Message
from omnid.flow import notify, outages
from omnid.flow.context import Context
from omnid.flow.dependents import settle_wait
from omnid.flow.guard import guard
from omnid.flow.modes import Hold, Said, Saying
from omnid.flow.patiently import AGAIN, patiently
from omnid.flow.turned import Turned
from omnid.model import Gate, Problem
from omnid.secrets import Secrets
from omnid.settings import GIB, OFFLINE, Channel
from omnid.store import journal
from omnid.store.interface import Tx

CLOUD = "cloud"
STAYS_ASLEEP = frozenset({"missing", "memory", "occupied", "failed"})
"""Why the local model is asleep although it is wanted."""
NONE_ANSWERS = "none of the channels answers"
SOON_S = 1.0
"""The pause before a second look at something that was bad once."""
GO_ON_MAX = 500
"""How many prompts are let go on at once; the others look again by themselves."""
SAY_TOKENS_MAX, SAY_S = 300, 120.0
"""An answer about the state: how long, and how long it may take."""


class Shared(NamedTuple):
    """What the executors of models share."""

    gateway: Gateway
    direct: Direct
    brainstem: Brainstem


Links = Callable[[], AsyncGenerator[None]]


async def _no_links() -> AsyncGenerator[None]:
    """Tells of nothing, where nobody listens to the system."""
    for nothing in ():
        yield nothing


class ModeKeeper:
    """Loops that watch the cloud, the machine's network and the local model."""

    def __init__(
        self, context: Context, shared: Callable[[], Shared | None], secrets: Secrets, links: Links = _no_links
    ) -> None:
        """`links` yields when the machine's network has changed."""
        self._context = context
        self._links = links
        self._shared = shared
        self._secrets = secrets
        self._is_shut = False
        """Whether the gates of the cloud are closed in the journal."""
        self._turned, self._settled = anyio.Event(), anyio.Event()
        """The mode may have changed; the gates are as the mode is."""
        context.modes.hold_at = self.hold
        context.modes.local_model = self._local_model
        context.modes.wake_local = self._wake
        context.modes.plan_local = self._plan_local
        context.modes.rehearse_local = self._rehearse_local
        context.modes.say_locally = self._say_locally

    async def watch_cloud(self) -> None:
        """Probes the cloud when calls fail or nothing was heard of it, and has the gates follow; ends cancelled."""
        modes = self._context.modes
        gates = await self._context.store.read(lambda reader: reader.all("gates"))
        shut_at_ms = [row[3] for row in gates if row[1] == CLOUD]
        self._is_shut = bool(shut_at_ms)
        if self._is_shut:
            modes.cloud_was_gone(min(shut_at_ms))
            self._wake()
        async with anyio.create_task_group() as group:
            group.start_soon(self._follow, group)
            await self._probe_cloud()

    async def _probe_cloud(self) -> None:
        modes = self._context.modes
        while True:
            every_s = self._context.config.mode.cloud_probe_every_s
            # Counted from when it was last heard of, and not from when this last looked: that would be twice as long.
            heard_s = self._context.clock.monotonic_s() - modes.heard_at_s
            wait_s = every_s if modes.cloud.is_gone or heard_s >= every_s else every_s - heard_s
            modes.probe_at_ms = self._context.clock.wall_ms() + round(1000 * wait_s) if modes.cloud.is_gone else None
            with anyio.move_on_after(wait_s):
                await modes.cloud_suspect.wait()
            suspect, modes.cloud_suspect = modes.cloud_suspect.is_set(), anyio.Event()
            moved, modes.link_moved = modes.link_moved, False
            if self._shared() is None or modes.just_woken():
                continue
            if modes.cloud.is_gone:
                if modes.cloud_was(good=await self._any_answers()):
                    self._turned.set()
            elif suspect or self._context.clock.monotonic_s() - modes.heard_at_s >= every_s:
                await self._doubt(sure=suspect and not moved)

    async def watch_links(self) -> None:
        """Has the cloud looked for when the machine's network changes; ends where the system doesn't tell of that."""
        async with contextlib.aclosing(self._links()) as changes:
            async for _ in changes:
                self._context.log.info("link_changed")
                self._context.modes.link_changed()

    async def watch_local(self) -> None:
        """Tells people, once in an outage, that the local model stays asleep; ends when it is cancelled."""
        modes, told = self._context.modes, False
        while True:
            await modes.local_changed.wait()
            modes.local_changed = anyio.Event()
            state = self._local_model()
            if modes.mode != "brainstem":
                told = False
            elif state.phase == "ready":
                await self._go_on()
            elif state.cause in STAYS_ASLEEP and not told:
                told = True
                await patiently(self._context, partial(self._tell, mode="asleep", said=state.why))

    def look(self) -> None:
        """Has the gates follow the executors, which others have become."""
        self._turned.set()

    async def hold(self, hold: Hold) -> None:
        """Holds the mode where a person wants it, or lets it follow the facts again; returns when the gates are so."""
        self._context.modes.hold = hold
        settled = self._settled
        self._turned.set()
        await settled.wait()

    async def _follow(self, group: TaskGroup) -> None:
        """Has the gates follow the mode, whoever changed it: one at a time, so that the last is what holds.

        What a write waited for may be over by the next try, so each try looks at the mode anew.
        """
        context, failures = self._context, 0
        while True:
            self._turned = anyio.Event()
            try:
                if context.modes.mode == "brainstem":
                    await (self._follow_executors() if self._is_shut else self._cloud_gone())
                elif self._is_shut:
                    await self._cloud_back(group)
            except Retryable as error:
                failures += 1
                if failures == 1:
                    context.log.warning("mode_waits", **error.as_dict())
                with anyio.move_on_after(AGAIN.delay_s(failures, context.clock.uniform)):
                    await self._turned.wait()
                continue
            failures = 0
            if not self._turned.is_set():
                settled, self._settled = self._settled, anyio.Event()
                settled.set()
            await self._turned.wait()

    async def _doubt(self, *, sure: bool) -> None:
        """Looks whether the cloud is gone; an idle daemon looks as often as calls would have failed.

        One look doesn't wait for the end of the one before, which may take as long as a connection is waited for.
        """
        modes, heard = self._context.modes, False
        async with anyio.create_task_group() as group:

            async def look() -> None:
                nonlocal heard
                if await self._any_answers():
                    heard = True
                    group.cancel_scope.cancel()

            group.start_soon(look)
            for _ in range(0 if sure else self._context.config.mode.cloud_failures_max - 1):
                await anyio.sleep(SOON_S)
                group.start_soon(look)
        if not heard and modes.just_woken():
            return  # It slept between a look and its end: what failed then says nothing.
        if modes.cloud_was(good=heard):
            self._turned.set()

    async def _any_answers(self) -> bool:
        """Probes the channels at once, without spending anything; True as soon as one answers, whatever it says."""
        channels = signs_of_cloud(self._context.config.channel)
        shared, heard = self._shared(), not channels
        if shared is None:
            return True
        async with anyio.create_task_group() as group:

            async def ask(channel: Channel) -> None:
                nonlocal heard
                if await self._answers(shared.direct, channel):
                    self._context.modes.channel_was(channel.name, away=False)
                    heard = True
                    group.cancel_scope.cancel()

            for channel in channels:
                group.start_soon(ask, channel)
        return heard

    async def _answers(self, direct: Direct, channel: Channel) -> bool:
        key, clock = await self._key(channel), self._context.clock
        began_s = clock.monotonic_s()
        failure = await direct.probe(channel, key, self._context.config.models.connect_timeout_s)
        answers = failure is None or failure.kind not in ("cloud", "silent")
        self._context.modes.beats.ping(clock.wall_ms(), clock.monotonic_s() - began_s if answers else None)
        return answers

    async def _key(self, channel: Channel) -> str:
        """Gives the channel's key; without one it can at least be seen whether it answers."""
        try:
            return await self._secrets.resolve(channel.key) if channel.key else ""
        except OmnidError:
            return ""

    async def _cloud_gone(self) -> None:
        context = self._context
        why = "a person holds the mode at brainstem" if context.modes.hold == "brainstem" else NONE_ANSWERS
        context.modes.why = why
        models = self._models()
        self._wake()
        now_ms = context.clock.wall_ms()
        gates = [_gate(name, now_ms, why) for name in models]
        ids = [context.clock.uuid() for _ in gates]
        turned = Turned({gate.id: gate for gate in gates}, set(), [])
        await self._write_once(partial(self._close, gates=gates, ids=ids), turned)
        self._is_shut = True
        context.modes.cloud_lost(now_ms)
        context.log.warning("cloud_gone", why=why)
        for one in models.values():
            await one.park()

    async def _follow_executors(self) -> None:
        """Closes the gates of executors that the config has got in an outage, and opens those of what it has lost."""
        context, models = self._context, self._models()
        gates = await context.store.read(lambda reader: reader.all("gates"))
        shut = {row[2] for row in gates if row[1] == CLOUD}
        now_ms, why = context.clock.wall_ms(), context.modes.why or NONE_ANSWERS
        fresh, stale = [_gate(name, now_ms, why) for name in models.keys() - shut], shut - models.keys()
        if not fresh and not stale:
            return
        ids = [context.clock.uuid() for _ in fresh]
        turned = Turned({gate.id: gate for gate in fresh}, {f"{CLOUD}:{name}" for name in stale}, [])
        await self._write_once(partial(_exchange, fresh=fresh, ids=ids, stale=sorted(stale)), turned)
        for gate in fresh:
            await models[gate.subject].park()

    def _models(self) -> dict[str, ModelExecutor]:
        """Gives the executors that wait for the cloud, by name."""
        executors = self._context.executors.items()
        return {name: one for name, one in executors if isinstance(one, ModelExecutor) and name != OFFLINE}

    def _local_model(self) -> BrainstemState:
        shared = self._shared()
        return BrainstemState("none") if shared is None else shared.brainstem.state()

    async def _plan_local(self) -> Plan | None:
        shared = self._shared()
        return None if shared is None or not shared.brainstem.wanted else await shared.brainstem.plan()

    async def _rehearse_local(self) -> Rehearsal:
        shared = self._shared()
        if shared is None or not shared.brainstem.wanted:
            raise Rejected("no_local_model")
        return await shared.brainstem.rehearse(lambda: self._context.modes.mode == "brainstem")

    async def _say_locally(self, asked: Saying) -> Said:
        """See `Modes.say_locally`: the brainstem's model, else the first of a local channel."""
        shared = self._shared()
        if shared is None:
            return Said(problem="the config has no channels")
        with shared.brainstem.held():
            state = shared.brainstem.state()
            may_wake = asked.may_wake or state.phase == "waking" or self._context.modes.mode == "brainstem"
            if state.phase != "none" and may_wake:
                state = await shared.brainstem.settled()
                if state.phase != "ready" and self._context.modes.mode != "brainstem" and shared.brainstem.held_by_one:
                    await shared.brainstem.kill()  # Or it would be tried again and again, for nobody.
            problem = state.why or "the local model sleeps while the cloud is there (--wake wakes it)"
            if state.phase == "none":
                problem = "there is no local model"
            channels = [channel for channel in self._context.config.channel if channel.local]
            for channel in (*([] if state.channel is None else [state.channel]), *channels):
                said = await self._said_by(shared.direct, channel, asked)
                if not said.problem:
                    return said
                problem = said.problem
        return Said(problem=problem)

    async def _said_by(self, direct: Direct, channel: Channel, asked: Saying) -> Said:
        redact, model = self._secrets.redact, models_of(channel)[0]
        messages = (Message("system", asked.system), Message("user", redact(asked.text)))
        ask = Ask(model.id or model.name, messages, SAY_TOKENS_MAX, temperature=0.0)
        said = await direct.call(channel, await self._key(channel), ask, SAY_S)
        if isinstance(said, Answer):
            return Said(redact(said.text), f"{channel.name} ({model.name})")
        return Said(problem=f"{channel.name}: {said.detail}")

    def _wake(self) -> None:
        """Wakes the local model; nothing waits for it."""
        shared = self._shared()
        if shared is not None:
            shared.brainstem.wake()

    async def _cloud_back(self, group: TaskGroup) -> None:
        context = self._context
        context.modes.why = ""
        gates = await context.store.read(lambda reader: reader.all("gates"))
        turned = Turned({}, {row[0] for row in gates if row[1] == CLOUD}, [])
        await self._write_once(partial(self._open, ids=sorted(turned.opened)), turned)
        self._is_shut = False
        context.log.info("cloud_back", gates=len(turned.opened))
        # What was parked goes on, and the cloud is watched, without waiting for the end of a process.
        group.start_soon(partial(guard, "mode_go_on", self._go_on, log=context.log))
        group.start_soon(partial(guard, "mode_release", self._release, log=context.log))

    async def _release(self) -> None:
        """Kills the local model, unless it is needed again by now, and tells what that gave back."""
        shared = self._shared()
        if shared is None or self._context.modes.mode == "brainstem":
            return
        returned_bytes = await shared.brainstem.kill()
        if returned_bytes is not None:
            await patiently(self._context, partial(self._tell, mode="released", size=f"{returned_bytes / GIB:.1f}"))

    async def _go_on(self) -> None:
        """Lets prompts that don't wait for the cloud look again now, and not when they would have."""
        ids: list[str] = []

        def release(tx: Tx) -> None:
            rows = tx.all("waiting_for", "backoff", GO_ON_MAX)
            ids[:] = [row[0] for row in rows if row[7] == OFFLINE]
            for id in ids:
                settle_wait(tx, journal.edit_task(tx, journal.need_task(tx, id), retry_at_ms=None))

        await patiently(self._context, release)
        if ids:
            self._context.watch.tell(ids)
            self._context.wake()

    async def _write_once(self, fn: Callable[[Tx], None], turned: Turned) -> None:
        await self._context.store.write(fn, then=lambda _: self._context.took(turned))

    def _close(self, tx: Tx, *, gates: Sequence[Gate], ids: Sequence[str]) -> None:
        for gate, id in zip(gates, ids, strict=True):
            journal.close_gate(tx, gate)
            outages.began(tx, gate, id)
        self._tell(tx, mode="brainstem")

    def _open(self, tx: Tx, *, ids: Sequence[str]) -> None:
        for id in ids:
            if journal.open_gate(tx, id):
                outages.over(tx, CLOUD, id.partition(":")[2])
        self._tell(tx, mode="normal")

    def _tell(self, tx: Tx, **fields: str) -> None:
        notify.tell(tx, self._context.config, "mode", "omnid", **fields)


def _gate(name: str, now_ms: int, why: str) -> Gate:
    return Gate(f"{CLOUD}:{name}", CLOUD, name, now_ms, None, Problem.make("cloud_gone", detail=why))


def _exchange(tx: Tx, *, fresh: Sequence[Gate], ids: Sequence[str], stale: Sequence[str]) -> None:
    """Closes and opens gates in an outage that goes on: no event says that the cloud has gone, or is back."""
    for gate, id in zip(fresh, ids, strict=True):
        journal.close_gate(tx, gate)
        outages.began(tx, gate, id, fires=False)
    for name in stale:
        journal.open_gate(tx, f"{CLOUD}:{name}")
        outages.over(tx, CLOUD, name, fires=False)
