"""Prompts that cost money, under the same faults: each call is written before it goes out, and the bill is covered.

The executor of models, its calls and the money are omnid's own; the provider is played.
"""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import trio
from msgspec import structs

from omnid.api.shapes import Submit
from omnid.channels import whole
from omnid.errors import Retryable
from omnid.executor.interface import Executor
from omnid.executor.model import ModelExecutor, Ways
from omnid.executor.model_errors import Failure, Usage
from omnid.executor.model_wire import Answer, Ask
from omnid.flow.caller import Caller
from omnid.flow.model_calls import ModelCalls
from omnid.settings import Budget, Channel, ChannelModel, Config
from omnid.settings import ModelExecutor as Section
from tests.sim.chance import DAY_MS
from tests.sim.daemon import SimDaemon
from tests.sim.model import Entry, Row, View
from tests.sim.run import Outcome, Sim, run_with

PROMPTS = 8
MODEL = ChannelModel(name="fake-1", input_usd=1, output_usd=2)
SECTION = Section(name="model", output_tokens_max=50)
LID_MICROUSD, RAISED_MICROUSD = 1_000, 1_000_000
"""Some six calls fit under the first."""
LOOK_S = 5.0


class Bill:
    """What the log says of calls, against what the provider has seen and wants to be paid for."""

    def __init__(self, sim: "PaidSim") -> None:
        self._sim = sim
        self.tasks: dict[str, Row] = {}
        self.created = self.tasks
        """See `Model.created`."""
        self.calls: dict[str, Row] = {}
        self.seen: Counter[str] = Counter()
        """Requests that went out, by prompt."""
        self.billed_microusd = 0

    def committed(self, entries: list[Entry], view: View, now_ms: int) -> None:
        """See `Model.committed`."""
        for entry in entries:
            self._sim.trace(f"{entry.kind} {entry.collection} {entry.id[-8:]} {entry.fields.get('state', '')}")
            table = {"task": self.tasks, "call": self.calls}.get(entry.collection)
            if table is not None:
                table.setdefault(entry.id, {}).update(entry.fields)
        days: Counter[int] = Counter()
        for call in self.calls.values():
            days[call["started_at_ms"] // DAY_MS] += _counted(call)
        if days and max(days.values()) > self._sim.lid_microusd:
            self._sim.fail(f"the lid of {self._sim.lid_microusd} is passed: {days}")
        self._check_covered()

    def settled(self, attempt_id: str) -> None:
        """See `Model.settled`."""

    def goes_out(self, prompt: str) -> None:
        """The provider gets a request."""
        self.seen[prompt] += 1
        rows = [call for call in self.calls.values() if self.tasks[call["task_id"]]["work"]["prompt"] == prompt]
        if len(rows) < self.seen[prompt] or all("settled_at_ms" in call for call in rows):
            self._sim.fail(f"{prompt} went out {self.seen[prompt]} times, and written down are {rows}")

    def add(self, microusd: int) -> None:
        """The provider puts a request on the bill."""
        self.billed_microusd += microusd
        self._check_covered()

    def _check_covered(self) -> None:
        counted = sum(map(_counted, self.calls.values()))
        if self.billed_microusd > counted:
            self._sim.fail(f"{self.billed_microusd} are billed, and {counted} are known of: {self.calls}")


def _counted(call: Row) -> int:
    spent = call.get("spent_microusd")
    return call["reserved_microusd"] if spent is None else spent


class Provider:
    """See `executor.model.Caller`; it works on what it has got, whatever becomes of whoever asked."""

    def __init__(self, sim: "PaidSim", daemon: SimDaemon) -> None:
        self._sim = sim
        self._daemon = daemon

    async def call(
        self, channel: Channel, key: str, ask: Ask, deadline_s: float, on_text: Any = None
    ) -> Answer | Failure:
        sim = self._sim
        if self._daemon.dead:
            await trio.sleep_forever()
        sim.bill.goes_out(ask.messages[-1].content)
        cost = sim.chance.randrange(1, 100)
        sim.world_nursery.start_soon(self._work, cost if sim.chance.random() < 0.8 else 0)
        await trio.sleep(sim.chance.expovariate(1 / 2))
        fate = sim.chance.random()
        if fate < sim.weather.fails:
            return Failure("cut", "it broke off", may_cost=True)
        if fate < sim.weather.fails + sim.weather.rejects:
            return Failure("provider", "HTTP 500", 500, may_cost=True)
        if on_text is not None:
            on_text("Hello.")
        return Answer("Hello.", "stop", Usage(None, None, max(cost, 1)))

    async def _work(self, cost: int) -> None:
        await trio.sleep(self._sim.chance.uniform(0, 1))
        self._sim.bill.add(cost)


class Work:
    """The task group of a daemon's work, which is there once the daemon is."""

    def __init__(self, daemon: SimDaemon) -> None:
        self._daemon = daemon

    def start_soon(self, *what: Any) -> None:
        self._daemon.work.start_soon(*what)


class PaidSim(Sim):
    """One run with prompts."""

    def __init__(self, seed: int, directory: Path, *, keep_trace: bool) -> None:
        super().__init__(seed, directory, keep_trace=keep_trace)
        self.lid_microusd = LID_MICROUSD
        self.bill = Bill(self)
        self.model: Any = self.bill

    def settings(self, directory: Path) -> Config:
        """Gives the config of a daemon."""
        channels = tuple(
            whole(Channel(name=name, base_url="http://127.0.0.1:9/v1", models=(MODEL,))) for name in ("p1", "p2")
        )
        budget = Budget(day_usd=self.lid_microusd / 1e6)
        return structs.replace(super().settings(directory), channel=channels, executor=(SECTION,), budget=budget)

    def executors(self, daemon: SimDaemon) -> dict[str, Executor]:
        """Makes the executors of a daemon."""
        provider, work, spool, context = Provider(self, daemon), Work(daemon), daemon.context.spool, daemon.context
        ways = Ways(ModelCalls(context, has_gateway=False), provider, provider)
        given: Any = {"tasks": work, "clock": self.clock, "log": context.log, "limits": context.config.limits}
        secrets: Any = None
        anywhere: Any = spool
        return {"model": ModelExecutor(SECTION, ways, secrets, anywhere, **given)}

    async def main(self) -> None:
        with self._scope:
            async with trio.open_nursery() as nursery:
                self.world_nursery = nursery
                nursery.start_soon(self._keep_daemon)
                chance = random.Random(f"{self.seed}/prompts")
                for number in range(PROMPTS):
                    await trio.sleep(chance.expovariate(1 / 2))
                    await self._submit(f"p{number}")
                await trio.sleep(chance.uniform(0, 120))
                self._calm_down()
                await self._raise_lid()
                await self._until("ends", self._all_ended)
                await trio.sleep(LOOK_S)
                if open_calls := [id for id, call in self.bill.calls.items() if "settled_at_ms" not in call]:
                    self.fail(f"everything has ended, and open are {open_calls}")
                nursery.cancel_scope.cancel()

    async def _submit(self, prompt: str) -> None:
        while True:
            daemon = await self.daemon_up()
            reply = daemon.ask(Caller(), "task.submit", Submit(prompt=prompt, key=prompt, executor="model"))
            await reply.done.wait()
            if reply.value is not None:
                return
            if reply.error is not None and not isinstance(reply.error, Retryable):
                self.fail(f"{prompt} was refused: {reply.error}")
            await trio.sleep(1)

    async def _raise_lid(self) -> None:
        """A person raises the lid: what nobody knows the cost of has filled it, in most runs."""
        self.lid_microusd = RAISED_MICROUSD
        while True:
            context = (daemon := await self.daemon_up()).context
            context.config = structs.replace(context.config, budget=Budget(day_usd=self.lid_microusd / 1e6))
            try:
                await daemon.gates.look_at_budget(release=True)
            except Retryable:  # The daemon dies at this very moment.
                await trio.sleep(1)
            else:
                context.wake()
                return

    def _compare(self, daemon: SimDaemon) -> None:
        """The tables are held against the log by the other runs."""


def run(seed: int, *, keep_trace: bool = False) -> Outcome:
    """Runs one seed with prompts."""
    return run_with(PaidSim, seed, keep_trace=keep_trace)
