"""Looks whether what the config names can be used, before a task finds out: at the start and when the config changes.

Nothing waits for it and nothing of it costs anything. An executor that is down gets its gate; a channel that isn't well
is a problem until it is. MCP servers are greeted one after another, and one that nobody else uses is let go at once.
"""

from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import NamedTuple

import anyio

from omnid.channels import absent, keys_of
from omnid.errors import OmnidError
from omnid.executor.mcp import McpExecutor
from omnid.executor.model_errors import Failure
from omnid.flow.context import Bell, Context
from omnid.flow.gates import PROBE_S_MAX, Gates
from omnid.flow.keep import keep
from omnid.flow.mode import Shared
from omnid.model import Problem
from omnid.retry import Backoff
from omnid.secrets import Secrets
from omnid.settings import Channel

AGAIN = Backoff(base_s=60.0, max_s=3600.0)
AWAY = frozenset({"cloud", "silent"})
"""What is found where there is no way to a channel; where there is none to any, that is the network's fault."""


class Checked(NamedTuple):
    """What a channel answered to a request that costs nothing."""

    channel: Channel
    key: str
    """The reference that it was asked with."""
    kind: str | None
    """One of `Failure`'s, ``secret``, ``absent`` (a model) or ``gateway``; None: it is well."""
    detail: str
    do: str


class Checks:
    """Checks executors and channels."""

    def __init__(self, context: Context, gates: Gates, shared: Callable[[], Shared | None], secrets: Secrets) -> None:
        self._context = context
        self._gates = gates
        self._shared = shared
        self._secrets = secrets
        self._bell = Bell()
        context.modes.check_channels = self.channels

    def look(self) -> None:
        """Checks the channels anew, because the config has changed."""
        self._bell.ring()

    async def executors(self, names: Collection[str]) -> None:
        """Probes programs side by side, and MCP servers one after another; the gates follow what is found."""
        found = {name: self._context.executors.get(name) for name in names}
        servers = {name: one for name, one in found.items() if isinstance(one, McpExecutor)}
        async with anyio.create_task_group() as group:
            for name in found.keys() - servers.keys():
                group.start_soon(self._kept, partial(self._look, name))
            for name, server in servers.items():
                await self._kept(partial(self._greet, name, server))

    async def _kept(self, probe: Callable[[], Awaitable[None]]) -> None:
        await keep("probe", probe, clock=self._context.clock, log=self._context.log)

    async def _look(self, name: str) -> None:
        await self._gates.probe(name, PROBE_S_MAX)

    async def _greet(self, name: str, server: McpExecutor) -> None:
        was_awake = server.awake
        await self._look(name)
        if not was_awake:
            server.rest()

    async def run(self) -> None:
        """Checks the channels, those that aren't well again and again; ends when it is cancelled."""
        failures = 0
        while True:
            await self.channels()
            failures = failures + 1 if self._context.channel_problems else 0
            with anyio.move_on_after(AGAIN.delay_s(failures, self._context.clock.uniform) if failures else None):
                await self._bell.wait()
                failures = 0

    async def channels(self) -> list[Checked]:
        """Asks every channel with every key something that costs nothing, also whether it has its models."""
        asked = [(channel, key) for channel in self._context.config.channel for key in keys_of(channel)]
        found: dict[int, list[Checked]] = {}
        async with anyio.create_task_group() as group:

            async def ask(place: int, channel: Channel, key: str) -> None:
                found[place] = await self._check(channel, key)

            for place, (channel, key) in enumerate(asked):
                group.start_soon(ask, place, channel, key)
        checked = [one for place in range(len(asked)) for one in found[place]]
        self._take(checked)
        return checked

    async def _check(self, channel: Channel, reference: str) -> list[Checked]:
        """Asks a channel with one key; each model that it hasn't got is a finding of its own."""
        shared = self._shared()
        if shared is None:
            return [Checked(channel, reference, "gateway", "the config was just changed", "Ask again.")]
        try:
            key = await self._secrets.resolve(reference) if reference else ""
        except OmnidError as error:
            return [_wrong("secret", error.what.rstrip("."), channel, reference)]
        timeout_s = self._context.config.models.connect_timeout_s
        failure = await shared.direct.probe(channel, key, timeout_s)
        if failure is not None:
            return [_wrong(failure.kind, failure.detail, channel, reference)]
        listed = await shared.direct.listing(channel, key, timeout_s)
        if isinstance(listed, Failure):
            unknown = "it is well; whether it has the models isn't known, as its list of models can't be read"
            return [Checked(channel, reference, None, f"{unknown}: {listed.detail}", "")]
        found: list[Checked] = []
        for name, near in absent(channel, listed):
            hint = f" (did you mean {near}?)" if near else ""
            do = f"Correct channel.{channel.name}.models in the config{hint}."
            found.append(Checked(channel, reference, "absent", f"it has no model {name}", do))
        return found or [Checked(channel, reference, None, "", "")]

    def _take(self, checked: Collection[Checked]) -> None:
        """Makes problems of what is wrong, and logs each when it comes and when it goes."""
        context = self._context
        context.modes.trust_keys([(one.channel.name, one.key) for one in checked if one.kind is None])
        is_there = any(not one.channel.local and one.kind not in AWAY for one in checked)
        wrong = [
            one for one in checked if one.kind is not None and (is_there or one.channel.local or one.kind not in AWAY)
        ]
        before = context.channel_problems
        context.channel_problems = problems = [
            Problem.make(
                "channel_unwell",
                channel=one.channel.name,
                key=f"the key {one.key}" if one.key else "no key",
                detail=one.detail,
                do=one.do,
            )
            for one in wrong
        ]
        for problem in problems:
            if problem not in before:
                context.log.warning("channel_unwell", what=problem.what, do=problem.do)
        for problem in before:
            if problem not in problems:
                context.log.info("channel_changed", was=problem.what)


def _wrong(kind: str, detail: str, channel: Channel, key: str) -> Checked:
    match kind:
        case "secret":
            do = f"Provide {key}, or correct the reference in the config."
        case "key" | "credit":
            do = f"Look at the account of {channel.name}, and at the key that {key} names."
        case "cloud" | "silent":
            do = f"See that {channel.base_url} can be reached: the network, or the program that serves it."
        case _:
            do = f"See that {channel.base_url} is the start of the provider's address, as its documentation has it."
    return Checked(channel, key, kind, detail, do)
