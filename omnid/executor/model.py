"""The model executor: answers a prompt with one call, or with several where a key or a channel fails.

It makes the calls; which one comes next, and what it may cost, decide the `Calls` that it is given.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

import anyio
from anyio.abc import TaskGroup
from msgspec import Struct, structs

from omnid.clock import Clock
from omnid.errors import OmnidError, Rejected, Retryable
from omnid.executor.attempt_log import AttemptLog
from omnid.executor.interface import Found, Ports
from omnid.executor.model_errors import RULES, Failure
from omnid.executor.model_wire import Answer, Ask, Message
from omnid.executor.spool import Spool, excerpt
from omnid.log import Logger
from omnid.model import Command, Outcome, Park, Problem, Result, Work
from omnid.secrets import Secrets
from omnid.settings import Channel, ChannelModel, Limits
from omnid.settings import ModelExecutor as Section

CALLS_MAX = 32
"""How many calls one attempt may make: more than there are sensible ways."""
CUT = Failure("cut", "it was cut off on our side", may_cost=True)
UNSENT = Failure("cut", "it was cut off on our side before it was sent")
UNREAD_MS = 60_000
"""How long a key isn't asked for that could not be read; what isn't in the environment never comes."""
LATE = Failure("deadline", "the time was up before it was sent")
Way = Literal["gateway", "direct"]
OnText = Callable[[str], None]


class Call(Struct, frozen=True):
    """A call that is written down, with what it may cost, and may be made now."""

    id: str
    channel: Channel
    key: str
    """The key's reference; empty where the channel needs none."""
    model: ChannelModel
    way: Way
    output_tokens_max: int
    most_microusd: int = 0
    """What is reserved for it."""


class NoCall(Struct, frozen=True):
    """There is no way left: what becomes of the attempt, and why."""

    outcome: Outcome
    problem: Problem
    park: Park | None = None


class Tried(NamedTuple):
    """A call of this attempt that has failed."""

    call: Call
    failure: Failure


class Wanted(Struct, frozen=True):
    """What an executor adds to a prompt."""

    model: str | None
    system: str
    output_tokens_max: int | None

    @classmethod
    def of(cls, section: Section, work: Work) -> "Wanted":
        """Gives what a section adds to the prompt of a task."""
        return cls(work.model or section.model, section.system, section.output_tokens_max)


class Calls(Protocol):
    """Decides about calls and writes them down; what it gives is durable on return."""

    def check(self, model: str) -> None:
        """Raises Rejected(`unknown_model`) where no channel has a model of that name."""
        ...

    async def begin(self, command: Command, wanted: Wanted, tried: Sequence[Tried]) -> Call | NoCall:
        """Chooses the next call of an attempt, and reserves what it can cost at most; raises Retryable.

        The first may have been chosen and reserved when the attempt was.
        """
        ...

    def late(self, command: Command, tried: Sequence[Tried]) -> NoCall:
        """Says what becomes of an attempt whose time is up: no other call is made."""
        ...

    async def end(self, call: Call, said: Answer | Failure, took_s: float) -> int | None:
        """Takes down what a call has shown, and gives what it has cost in microdollars; None where nobody knows.

        One that has failed is settled. One with an answer is left to the result of its attempt, so that no answer is
        paid for in the journal that isn't kept there.
        """
        ...


class Caller(Protocol):
    """A way to make calls: `Gateway` or `Direct`."""

    async def call(
        self, channel: Channel, key: str, ask: Ask, deadline_s: float, on_text: OnText | None = None
    ) -> Answer | Failure:
        """See `Direct.call`."""
        ...


class Ways(NamedTuple):
    """What decides about calls, and the two ways in which they are made."""

    calls: Calls
    gateway: Caller
    direct: Caller


class ModelExecutor:
    """Implements `interface.Executor` for one section of kind ``model``.

    A prompt without tools has no effect but its cost, so that it may run again: what was cut keeps its reservation.
    """

    kind = "model"
    idempotent = True
    takes_prompts = True

    def __init__(
        self,
        section: Section,
        ways: Ways,
        secrets: Secrets,
        spool: Spool,
        *,
        tasks: TaskGroup,
        clock: Clock,
        log: Logger,
        limits: Limits,
    ) -> None:
        self.name = section.name
        self.concurrency = section.concurrency
        self._section = section
        self._calls = ways.calls
        self._ways = ways
        self._secrets = secrets
        self._spool = spool
        self._tasks = tasks
        self._clock = clock
        self._log = log
        self._limits = limits
        self._attempts: dict[str, _Attempt] = {}

    def accepts(self, work: Work) -> None:
        """See `Executor.accepts`."""
        if work.prompt is None:
            wanted = "a command" if work.argv is not None else "a tool call"
            raise Rejected("wrong_executor", executor=self.name, kind=self.kind, wanted=wanted)
        for where, given in (("stdin", work.stdin), ("check", work.check)):
            if given is not None:
                raise Rejected("bad_request", detail=f"a prompt for a model takes no {where}", where=where)
        model = work.model or self._section.model
        if model is not None:
            self._calls.check(model)

    def exact(self, work: Work) -> Work:
        """See `Executor.exact`: nothing but the prompt is sent, with what the config says before it."""
        return work

    async def probe(self) -> None:
        """See `Executor.probe`: how the channels are is kept for each of them."""

    async def run(self, command: Command, ports: Ports) -> Result:  # noqa: ARG002 - calls are written by `Calls`.
        """See `Executor.run`."""
        log = AttemptLog(self._spool, command.attempt_id, self._log)
        attempt = _Attempt(command, self._clock.monotonic_s() + command.timeout_s, log)
        self._attempts[command.attempt_id] = attempt
        self._tasks.start_soon(log.write)
        try:
            with attempt.scope:
                return await self._answered(attempt)
        finally:
            del self._attempts[command.attempt_id]
            log.close()
            await log.flush()
        if attempt.parked:
            problem = Problem.make("cloud_gone", detail="its call was closed")
            return attempt.ended("parked", problem, Park("cloud", None))
        return attempt.ended("cancelled", Problem.make("cancelled", detail="Its call was closed."))

    async def recover(self, command: Command, ports: Ports) -> Found:
        """See `Executor.recover`: calls end with their daemon."""
        return Found.LOST if await ports.notes(command.attempt_id, "call") else Found.NEVER_RAN

    async def adopt(self, command: Command, ports: Ports) -> Result:  # noqa: ARG002 - there is nothing to wait for.
        """See `Executor.adopt`: `recover` never finds a call running."""
        problem = Problem.make("executor_fault", executor=self.name, detail="calls end with their daemon")
        return _Attempt(command, 0.0, None).ended("failure", problem)

    async def cancel(self, attempt_id: str) -> None:
        """See `Executor.cancel`: closes the connection, so that the provider can stop."""
        attempt = self._attempts.get(attempt_id)
        if attempt is not None:
            attempt.scope.cancel()

    async def park(self) -> None:
        """Ends all attempts whose call goes to the cloud, which is gone: they run again when it is back."""
        for attempt in list(self._attempts.values()):
            if attempt.call is None or not attempt.call.channel.local:
                attempt.parked = True
                attempt.scope.cancel()

    async def settled(self, attempt_id: str) -> None:
        """See `Executor.settled`: nothing was kept for a recovery."""

    async def aclose(self) -> None:
        """See `Executor.aclose`: the ways are closed by whoever made them."""

    async def _answered(self, attempt: "_Attempt") -> Result:
        """Makes one call after the other until there is an answer, or no way is left."""
        command, wanted = attempt.command, Wanted.of(self._section, attempt.command.work)
        while len(attempt.tried) < CALLS_MAX:
            if attempt.tried and self._clock.monotonic_s() >= attempt.until_s:
                end = self._calls.late(command, attempt.tried)
                return attempt.ended(end.outcome, end.problem, end.park)
            try:
                call = await self._calls.begin(command, wanted, attempt.tried)
            except Retryable as error:
                if not attempt.tried:
                    raise
                return attempt.ended("failure", Problem.of(error))
            if isinstance(call, NoCall):
                return attempt.ended(call.outcome, call.problem, call.park)
            attempt.call = call
            said = await self._made(attempt, call)
            if isinstance(said, Answer):
                return self._result(attempt, call, said)
            attempt.tried.append(Tried(call, said))
            if attempt.log is not None:
                attempt.log.add(f"\n[{call.channel.name}: {said.detail}]\n")
            if not RULES[said.kind].hop:
                return _given_up(attempt, call, said)
        return attempt.ended("failure", Problem.make("model_failed", detail=f"{CALLS_MAX} calls were made"))

    async def _made(self, attempt: "_Attempt", call: Call) -> Answer | Failure:
        """Makes a call and ends it, also where it is cut off."""
        began_s = self._clock.monotonic_s()
        attempt.said = UNSENT
        try:
            attempt.said = await self._said(attempt, call)
        finally:
            with anyio.CancelScope(shield=True):
                cost = await self._calls.end(call, attempt.said, self._clock.monotonic_s() - began_s)
                attempt.took(call, cost, answered=isinstance(attempt.said, Answer))
        return attempt.said

    async def _said(self, attempt: "_Attempt", call: Call) -> Answer | Failure:
        try:
            with anyio.fail_after(max(0.0, attempt.until_s - self._clock.monotonic_s())):
                key = await self._secrets.resolve(call.key) if call.key else ""
        except TimeoutError:
            return LATE
        except OmnidError as error:
            until_ms = None if call.key.startswith("env:") else self._clock.wall_ms() + UNREAD_MS
            return Failure("secret", str(error.fields.get("detail", error.what)), until_ms=until_ms)
        system = (Message("system", self._section.system),) if self._section.system else ()
        ask = Ask(
            call.model.id or call.model.name,
            (*system, Message("user", attempt.command.work.prompt or "")),
            call.output_tokens_max,
            stream=True,
            temperature=self._section.temperature,
        )
        way = self._ways.gateway if call.way == "gateway" else self._ways.direct
        left_s = attempt.until_s - self._clock.monotonic_s()
        if left_s <= 0:
            return LATE
        attempt.said = CUT
        return await way.call(call.channel, key, ask, left_s, attempt.log and attempt.log.add)

    def _result(self, attempt: "_Attempt", call: Call, answer: Answer) -> Result:
        data = answer.text.encode(errors="backslashreplace")
        head_bytes, tail_bytes = self._limits.output_head_bytes, self._limits.output_tail_bytes
        left_out_bytes = max(0, len(data) - head_bytes - tail_bytes)
        return structs.replace(
            attempt.ended("success", None),
            output=excerpt(data[:head_bytes], left_out_bytes, data[head_bytes + left_out_bytes :]),
            output_bytes=len(data),
            value={"channel": call.channel.name, "model": call.model.name, "way": call.way, "finish": answer.finish},
            call_costs=attempt.costs,
        )


class _Attempt:
    """One attempt, while it runs."""

    def __init__(self, command: Command, until_s: float, log: AttemptLog | None) -> None:
        self.command = command
        self.until_s = until_s
        self.log = log
        self.scope = anyio.CancelScope()
        self.parked = False
        """Its scope was cancelled because the cloud is gone."""
        self.call: Call | None = None
        self.said: Answer | Failure = UNSENT
        """What its call has shown, or what being cut off now would mean."""
        self.tried: list[Tried] = []
        self.spent: int | None = 0
        """What its calls have cost so far, in microdollars; None is unknown."""
        self.costs: dict[str, int | None] = {}
        """What its call with the answer has cost, which its result settles."""

    def took(self, call: Call, cost: int | None, *, answered: bool) -> None:
        """Takes down what a call has cost."""
        self.spent = None if cost is None or self.spent is None else self.spent + cost
        if answered:
            self.costs[call.id] = cost

    def ended(self, outcome: Outcome, problem: Problem | None, park: Park | None = None) -> Result:
        """Makes its result without an answer."""
        cost_usd = None if self.spent is None else self.spent / 1_000_000
        return self.command.ended(outcome, problem, cost_usd=cost_usd, park=park)


def timed_out(command: Command) -> Problem:
    """Says that the time of an attempt was up."""
    return Problem.make("attempt_timeout", timeout_s=f"{command.timeout_s:g}")


def _given_up(attempt: _Attempt, call: Call, failure: Failure) -> Result:
    """Makes the result of a failure after which no other way helps."""
    if failure.kind == "deadline":
        return attempt.ended("timeout", timed_out(attempt.command))
    problem = Problem.make("call_refused", channel=call.channel.name, detail=failure.detail)
    return attempt.ended("rejected", problem)
