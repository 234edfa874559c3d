"""Decides about calls to models: which channel and key is next, whether the lid has room, and what is known after.

Each call is written down with its reservation and its reason in the transaction that decides about it. What is known of
keys and channels is kept in memory: after a restart, a limit that still holds is met once more.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, MutableMapping, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any, NamedTuple

from msgspec import structs

from omnid.channels import LOCAL, cost_microusd
from omnid.errors import Rejected, Retryable
from omnid.executor.brainstem import BrainstemState
from omnid.executor.model import CUT, UNSENT, Call, NoCall, Tried, Wanted, Way, timed_out
from omnid.executor.model_errors import RULES, Failure, Kind, Usage
from omnid.executor.model_wire import Answer
from omnid.flow import money
from omnid.flow.context import Context, FirstCall
from omnid.flow.explain import clock
from omnid.flow.present import is_present
from omnid.flow.reach import AWAY, Reach
from omnid.flow.turned import Turned
from omnid.model import Command, Park, Problem, Task
from omnid.money import dollars, micro
from omnid.route.budget import Refuse, Run, decide
from omnid.route.catalog import (
    MINUTE_MS,
    Candidate,
    ChannelFacts,
    Choice,
    Facts,
    KeyFacts,
    Prompt,
    TurnedDown,
    choose,
    known_names,
    resolve,
)
from omnid.settings import MODEL, Channel, Config, ModelExecutor
from omnid.store import journal
from omnid.store.calls import call_of
from omnid.store.interface import Tx

SOON_MS = 2_000
"""When a task looks again that waits for a place or for money that runs now may give back."""
CLOUD_MS = 5_000
"""When one looks again that no channel could be reached for, until the cloud counts as gone."""
ASLEEP_MS = 30_000
"""When one looks again that no local model can take: whatever is missing doesn't come in seconds."""
SERVED_S = 5.0
"""How long it is believed which kinds have an executor: to look for an agent's program reads all of PATH."""
STALE_MS = 300_000
"""How long a channel that was slow stays behind the others, until it is tried again."""
OF_THE_CHANNEL: frozenset[Kind] = frozenset({"cloud", "provider", "model", "silent", "cut", "overloaded"})
"""Failures for which another key of the same channel does no better."""
PASSING: frozenset[Kind] = frozenset({"provider", "silent", "cut", "gateway"})
"""Failures that may be over at the next attempt."""
NO_SIGN: frozenset[Kind] = frozenset({"gateway", "deadline", "silent", "secret"})
"""Failures that say nothing of whether the cloud can be reached."""
SILENT = NO_SIGN | {"cut"}
"""Failures that say nothing of whether a channel works."""


BY_US = (CUT, UNSENT)
"""What we did ourselves, which shows nothing."""


class _Asked(NamedTuple):
    """What an attempt asks for."""

    attempt_id: str
    wanted: Wanted
    tried: Sequence[Tried]
    served: Collection[str]
    """The hard kinds that have an executor."""
    also: Sequence[Call] = ()
    """Calls that are decided and not committed yet."""
    is_away: bool = False
    """What was tried has shown that the cloud is away."""


class ModelCalls:
    """Implements `executor.model.Calls` on the journal."""

    def __init__(self, context: Context, *, has_gateway: bool) -> None:
        self._context = context
        self._has_gateway = has_gateway
        self._keys: defaultdict[tuple[str, str], KeyFacts] = defaultdict(KeyFacts)
        self._channels: defaultdict[str, ChannelFacts] = defaultdict(ChannelFacts)
        self._took_at_ms: dict[str, int] = {}
        self._reach = Reach(context)
        self._config = context.config
        self._served: frozenset[str] = frozenset()
        self._served_of: Config | None = None
        self._served_until_s = 0.0
        context.modes.facts = lambda now_ms: self.facts("gateway", now_ms)
        context.modes.trust_keys = self.trust_keys
        context.reserve_first = self.reserve_first

    def check(self, model: str) -> None:
        """See `Calls.check`."""
        channels = self._context.config.channel
        names = known_names(channels)
        if not any(resolve(channel, model) for channel in channels):
            near = get_close_matches(model, names, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise Rejected("unknown_model", model=model, hint=hint, known=", ".join(names))

    async def begin(self, command: Command, wanted: Wanted, tried: Sequence[Tried]) -> Call | NoCall:
        """See `Calls.begin`."""
        context = self._context
        first = None if tried else context.first_calls.pop(command.attempt_id, None)
        if first is not None:
            if first.config is context.config and context.modes.mode != "brainstem":
                self._began(first.call)
                return first.call
            # It was decided for a world that has changed since.
            await self._write_end(first.call, 0, "unstarted")
        if context.modes.mode == "brainstem" and command.work.offline == "local":
            context.modes.wake_local()
        is_away = self._reach.is_away(command.task_id, tried)
        asked = _Asked(command.attempt_id, wanted, tried, self._served_now(), is_away=is_away)

        def decided(tx: Tx) -> Call | NoCall:
            return self._decide(tx, journal.need_task(tx, command.task_id), asked)

        call = await context.store.write(decided, then=self._began)
        if is_away and isinstance(call, NoCall) and call.park is not None:
            self._reach.parked(command.task_id, tried)
        return call

    def reserve_first(self, calls: dict[str, FirstCall], tx: Tx, task: Task, attempt_id: str) -> int | None:
        """Writes down the first call of an attempt in the transaction that claims it, and gives what is reserved.

        `calls` are those of the transaction so far, and gets it. None: nothing is written, and `begin` decides.
        """
        context = self._context
        section = context.config.executors().get(task.executor)
        if not isinstance(section, ModelExecutor) or context.modes.mode == "brainstem":
            return None
        # Who has no kind of those pays for no look at programs, which the transaction would wait for.
        served = self._served_now() if task.kind in context.config.models.hard_kinds else frozenset[str]()
        also = [one.call for one in calls.values()]
        call = self._decide(tx, task, _Asked(attempt_id, Wanted.of(section, task.work), (), served, also))
        if isinstance(call, NoCall):
            return None
        calls[attempt_id] = FirstCall(call, context.config)
        return call.most_microusd

    def late(self, command: Command, tried: Sequence[Tried]) -> NoCall:
        """See `Calls.late`: what the cloud kept from an answer waits for the cloud."""
        if command.work.offline != "fail" and self._reach.is_away(command.task_id, tried):
            self._reach.parked(command.task_id, tried)
            now_ms = self._context.clock.wall_ms()
            return _away(self._detail((), tried, now_ms), now_ms)
        return NoCall("timeout", timed_out(command))

    async def end(self, call: Call, said: Answer | Failure, took_s: float) -> int | None:
        """See `Calls.end`; where it can't be written, the end of the attempt settles it."""
        self._learn(call, said, took_s)
        self._tell_modes(call, said)
        cost = cost_of(call, said)
        outcome, detail = "success", ""
        if isinstance(said, Failure):
            outcome, detail = said.kind, said.detail
            await self._write_end(call, cost, outcome)
        self._context.log.info(
            "model_call",
            channel=call.channel.name,
            model=call.model.name,
            way=call.way,
            outcome=outcome,
            detail=detail,
            ms=round(1000 * took_s),
        )
        return cost

    async def _write_end(self, call: Call, cost: int | None, outcome: str) -> None:
        turned = Turned.nothing()
        try:
            settle = partial(self._settle, id=call.id, cost=cost, outcome=outcome, turned=turned)
            await self._context.store.write(settle, then=lambda _: self._context.took(turned))
        except Retryable as error:
            self._context.log.warning("call_not_settled", call=call.id, **error.as_dict())

    def facts(self, way: Way, now_ms: int, also: Iterable[Call] = ()) -> Facts:
        """Gives what is known of keys and channels now; calls that are written down and not begun count as begun."""
        if self._config is not self._context.config:
            self._config = self._context.config
            # A key that was refused may be another one by now.
            self.trust_keys()
        for name, at_ms in list(self._took_at_ms.items()):
            if at_ms < now_ms - STALE_MS:
                self._channels[name] = structs.replace(self._channels[name], latencies_s=())
                del self._took_at_ms[name]
        keys, channels = dict(self._keys), dict(self._channels)
        for call in (*(first.call for first in self._context.first_calls.values()), *also):
            _count(keys, channels, call, now_ms)
        return Facts(now_ms, way, keys, channels)

    def trust_keys(self, keys: Iterable[tuple[str, str]] | None = None) -> None:
        """Takes keys again that were refused: those of these channels and references, or all."""
        for name in list(self._keys) if keys is None else keys:
            if name in self._keys:
                self._keys[name] = structs.replace(self._keys[name], refused=None)

    def busy(self, name: str) -> bool:
        """Tells whether calls to a channel are open."""
        return self._channels[name].running > 0

    def _way(self, tried: Sequence[Tried]) -> Way:
        broken = self._context.modes.gateway.is_gone or any(one.failure.kind == "gateway" for one in tried)
        return "direct" if broken or not self._has_gateway else "gateway"

    def _tell_modes(self, call: Call, said: Answer | Failure) -> None:
        """Says what the call has shown of the gateway and the cloud."""
        kind, modes = (None if isinstance(said, Answer) else said.kind), self._context.modes
        # A key that can't be read, and a gateway that is still starting when the time is up.
        unsent = kind == "secret" or (isinstance(said, Failure) and kind == "deadline" and not said.may_cost)
        if call.way == "gateway" and said not in BY_US and not unsent and not modes.gateway.is_gone:
            modes.gateway_was(good=kind != "gateway")
        if not call.channel.local and kind not in NO_SIGN and said not in BY_US:
            modes.channel_was(call.channel.name, away=kind in AWAY)

    def _served_now(self) -> frozenset[str]:
        """Gives the hard kinds that have an executor. Programs are looked for now and then, not for every call."""
        now_s, config = self._context.clock.monotonic_s(), self._context.config
        if self._served_of is not config or now_s >= self._served_until_s:
            self._served = frozenset(kind for kind in config.models.hard_kinds if self._has_executor(kind))
            self._served_of, self._served_until_s = config, now_s + SERVED_S
        return self._served

    def _has_executor(self, kind: str) -> bool:
        """Tells whether prompts of a kind have an executor of their own here, which is no model."""
        context = self._context
        ways = [(name, context.ways.get(name)) for name in context.rules.executors_for(kind)]
        return any(
            way is not None and way.kind != MODEL and MODEL in way.takes and is_present(context.config, name)
            for name, way in ways
        )

    def _decide(self, tx: Tx, task: Task, asked: _Asked) -> Call | NoCall:
        config = self._context.config
        attempt_id, wanted, tried, served, also, _ = asked
        prompt = Prompt(
            f"{wanted.system}\n{task.work.prompt or ''}",
            wanted.model,
            task.kind,
            task.labels,
            has_executor=task.kind in served,
            output_tokens_max=wanted.output_tokens_max,
        )
        way, channels = self._way(tried), config.channel
        if self._context.modes.mode == "brainstem" and task.work.offline != "park":
            local = self._context.modes.local_model()
            channels = (*(one for one in channels if one.local), *(() if local.channel is None else (local.channel,)))
            prompt = structs.replace(prompt, model=LOCAL)
            refused_now = _offline(task, channels, tx.now_ms, local)
            if refused_now is not None:
                return refused_now
            way = "direct"
        choice = choose(channels, config.models, prompt, self.facts(way, tx.now_ms, also))
        refused: list[Refuse] = []
        for candidate in choice.candidates:
            if _was_tried(candidate, tried):
                continue
            most = micro(config.budget.run_usd) if candidate.most_microusd is None else candidate.most_microusd
            refusal = self._room(tx, task, most)
            if refusal is not None:
                refused.append(refusal)
                continue
            id = money.reserve(tx, task, attempt_id, most, channel=candidate.channel, model=candidate.model.name)
            body = {"call": id, **_reason(candidate, choice, tried, refused)}
            journal.add_note(tx, attempt_id, "call", body, notes_max=config.limits.notes_max)
            channel = next(one for one in channels if one.name == candidate.channel)
            return Call(id, channel, candidate.key, candidate.model, candidate.way, candidate.output_tokens_max, most)
        return self._none_left(tx, task, choice, asked, refused)

    def _began(self, call: Call | NoCall) -> None:
        if isinstance(call, Call):
            now_ms = self._context.clock.wall_ms()
            _count(self._keys, self._channels, call, now_ms)
            known = self._channels[call.channel.name]
            if known.away_until_ms is not None and known.away_until_ms <= now_ms:
                # This one tries it again, and the others go past it until it is known how that ends.
                self._put_behind(call.channel.name, known)

    def _room(self, tx: Tx, task: Task, most_microusd: int) -> Refuse | None:
        """Gives why a call can't be paid for; what costs nothing always can."""
        if not most_microusd:
            return None
        budget = self._context.budget
        limit = budget.task_limit_microusd(task.work)
        used = 0 if limit is None else money.task_money(tx, task.id).total_microusd
        run = Run(most_microusd, False, limit, used)
        decision = decide(run, money.fills(tx, budget.lids(task.executor, task.labels, task.origin), tx.now_ms))
        return decision if isinstance(decision, Refuse) else None

    def _settle(self, tx: Tx, *, id: str, cost: int | None, outcome: str, turned: Turned) -> None:
        row = tx.one("call_by_id", id)
        call = None if row is None else call_of(row)
        if call is not None and call.settled_at_ms is None:
            money.settle_one(tx, self._context.budget, call, cost, outcome, turned)

    def _learn(self, call: Call, said: Answer | Failure, took_s: float) -> None:
        """Takes down what a call has shown of its key and its channel."""
        name, now_ms = call.channel.name, self._context.clock.wall_ms()
        _run(self._channels, name, -1)
        if isinstance(said, Answer):
            first_s = took_s if said.first_text_s is None else said.first_text_s
            self._channels[name] = structs.replace(self._channels[name].took(first_s), failures=0, away_until_ms=None)
            self._took_at_ms[name] = now_ms
            return
        self._reached(call.channel, said.kind)
        closes = RULES[said.kind].closes
        if closes == "key":
            known = self._keys[name, call.key]
            self._keys[name, call.key] = _closed(known, said)
        elif closes == "channel":
            known = self._channels[name]
            # Calls that ran beside each other are told different times: the latest holds.
            if (said.until_ms or 0) > (known.closed_until_ms or 0):
                self._channels[name] = structs.replace(known, closed_until_ms=said.until_ms, why_closed=said.detail)

    def _reached(self, channel: Channel, kind: Kind) -> None:
        """Puts a channel behind the others that several calls in a row could not reach, while the cloud is there."""
        known, modes = self._channels[channel.name], self._context.modes
        if kind not in AWAY:
            if kind not in SILENT:
                self._channels[channel.name] = structs.replace(known, failures=0, away_until_ms=None)
        elif channel.local or not (modes.cloud.is_gone or modes.just_woken()):
            known = self._channels[channel.name] = structs.replace(known, failures=known.failures + 1)
            if known.failures >= self._context.config.mode.cloud_failures_max:
                self._put_behind(channel.name, known)

    def _put_behind(self, name: str, known: ChannelFacts) -> None:
        until_ms = self._context.clock.wall_ms() + round(1000 * self._context.config.mode.cloud_probe_every_s)
        self._channels[name] = structs.replace(known, away_until_ms=until_ms)

    def _none_left(self, tx: Tx, task: Task, choice: Choice, asked: _Asked, refused: Sequence[Refuse]) -> NoCall:
        """Says what becomes of an attempt without a way: it waits for a time, for money, or for a person, or fails."""
        lifts = [one.until_ms for one in choice.turned_down if one.until_ms is not None]
        if refused:
            return _no_money(refused, tx.now_ms, min(lifts, default=None))
        tried, away = asked.tried, asked.is_away
        detail = self._detail(choice.turned_down, tried, tx.now_ms)
        attempts_max = task.work.attempts_max or self._context.config.retry.attempts_max
        passing = PASSING if away else PASSING | AWAY
        again = any(one.failure.kind in passing for one in tried) and task.failures + 1 < attempts_max
        if lifts and not again and not (away and task.work.offline != "fail"):
            # Where nothing else stands in the way, it is the same for all prompts.
            shared = not choice.candidates and len(lifts) == len(choice.turned_down)
            cause = "rate_limit" if shared else "channels"
            return NoCall("parked", Problem.make("no_channel", detail=detail), Park(cause, min(lifts)))
        if away and self._context.modes.mode == "brainstem" and task.work.offline == "park":
            return NoCall("parked", Problem.make("cloud_gone", detail=detail), Park("cloud", None))
        if again and not away:
            return NoCall("failure", Problem.make("model_failed", detail=detail))
        if self._context.modes.mode == "brainstem" and task.work.offline == "local" and not tried:
            # The cloud may take what no local model can.
            return NoCall("parked", Problem.make("cloud_gone", detail=detail), Park("channels", tx.now_ms + ASLEEP_MS))
        return _without_time(task, choice, asked, detail, tx.now_ms)

    def _detail(self, down: Sequence[TurnedDown], tried: Sequence[Tried], now_ms: int) -> str:
        zone = self._context.zone
        parts = [f"{one.call.channel.name}: {one.failure.detail}" for one in tried]
        for one in down:
            until = "" if one.until_ms is None else f" until {clock(one.until_ms, now_ms, zone)}"
            parts.append(f"{one.channel}: {one.reason}{until}")
        return "; ".join(dict.fromkeys(parts)) or "the config has none"


def _count(
    keys: MutableMapping[tuple[str, str], KeyFacts],
    channels: MutableMapping[str, ChannelFacts],
    call: Call,
    now_ms: int,
) -> None:
    """Counts a call that begins."""
    key = call.channel.name, call.key
    known = keys.get(key, KeyFacts())
    recent = tuple(at_ms for at_ms in known.calls_at_ms if at_ms > now_ms - MINUTE_MS)
    counted = (*recent, now_ms) if call.channel.requests_per_minute_max is not None else ()
    keys[key] = structs.replace(known, calls_at_ms=counted)
    _run(channels, call.channel.name, 1)


def _closed(known: KeyFacts, said: Failure) -> KeyFacts:
    """Closes a key for good where there is no time, else until the latest that was told."""
    if said.until_ms is None:
        return structs.replace(known, refused=said.detail)
    if said.until_ms <= (known.closed_until_ms or 0):
        return known
    why = f"can't be read: {said.detail}" if said.kind == "secret" else ""
    return structs.replace(known, closed_until_ms=said.until_ms, why_closed=why)


def _run(channels: MutableMapping[str, ChannelFacts], name: str, step: int) -> None:
    known = channels.get(name, ChannelFacts())
    running = max(0, known.running + step)
    channels[name] = structs.replace(known, running=running)


def cost_of(call: Call, said: Answer | Failure) -> int | None:
    """Gives what a call has cost in microdollars; None where nobody knows."""
    usage = said.usage or Usage()
    if call.model.input_usd == 0 and call.model.output_usd == 0:
        return 0  # Nothing was reserved: what is declared free is, whatever a proxy says that it would have cost.
    if usage.cost_microusd is not None:
        return usage.cost_microusd
    if isinstance(said, Failure):
        return None if said.may_cost else 0
    if usage.input_tokens is None or usage.output_tokens is None:
        return None
    return cost_microusd(call.model, usage.input_tokens, usage.output_tokens)


def _was_tried(candidate: Candidate, tried: Sequence[Tried]) -> bool:
    """Tells whether a failure of this attempt stands against a way."""
    for call, failure in tried:
        if call.channel.name != candidate.channel:
            continue
        if failure.kind in OF_THE_CHANNEL or (call.key == candidate.key and call.way == candidate.way):
            return True
    return False


def _reason(candidate: Candidate, choice: Choice, tried: Sequence[Tried], refused: Sequence[Refuse]) -> dict[str, Any]:
    """Makes what is written down of a choice, for `why`."""
    last = tried[-1] if tried else None
    turned = [f"{one.channel} ({one.reason})" for one in choice.turned_down]
    turned += [f"a dearer way (it needs {dollars(one.need_microusd)})" for one in refused]
    return {
        "channel": candidate.channel,
        "model": candidate.model.name,
        "way": candidate.way,
        "why": candidate.reason,
        "turned_down": list(dict.fromkeys(turned)),
        "after": None if last is None else f"{last.call.channel.name}: {last.failure.detail}",
    }


def _without_time(task: Task, choice: Choice, asked: _Asked, detail: str, now_ms: int) -> NoCall:
    """Says what becomes of an attempt where no provider has said when to come again."""
    if asked.is_away:
        if task.work.offline == "fail":
            return NoCall("rejected", Problem.make("cloud_gone", detail=detail))
        return _away(detail, now_ms)
    if any("at once" in one.reason for one in choice.turned_down):
        return NoCall("parked", Problem.make("no_channel", detail=detail), Park("channels", now_ms + SOON_MS))
    if any("is refused" in one.reason for one in choice.turned_down):
        return NoCall("parked", Problem.make("no_channel_key", detail=detail), Park("login", None))
    if asked.tried:
        return NoCall("failure", Problem.make("model_failed", detail=detail))
    return NoCall("rejected", Problem.make("no_channel_ever", detail=detail))


def _away(detail: str, now_ms: int) -> NoCall:
    return NoCall("parked", Problem.make("cloud_gone", detail=detail), Park("channels", now_ms + CLOUD_MS))


def _offline(task: Task, channels: Sequence[Channel], now_ms: int, local: BrainstemState) -> NoCall | None:
    """Says what becomes of a prompt that doesn't wait for the cloud, where no local model can take it now."""
    if task.work.offline == "fail":
        return NoCall("rejected", Problem.make("cloud_gone", detail="the task says offline = fail"))
    if channels:
        return None
    if local.phase == "none":
        detail, wait_ms = "the config has no local channel, and there is no local model", ASLEEP_MS
    elif local.phase == "asleep" and local.why:
        detail, wait_ms = f"the local model stays asleep: {local.why}", ASLEEP_MS
    else:
        detail, wait_ms = "the local model is not awake yet", SOON_MS
    return NoCall("parked", Problem.make("cloud_gone", detail=detail), Park("channels", now_ms + wait_ms))


def _no_money(refused: Sequence[Refuse], now_ms: int, lifts_at_ms: int | None) -> NoCall:
    least = min(refused, key=lambda one: one.need_microusd)
    if not least.fills:
        detail = f"the task's own lid has no room for the {dollars(least.need_microusd)} that a call may cost"
        return NoCall("parked", Problem.make("no_money", detail=detail), Park("budget", lifts_at_ms))
    fill = least.fills[0]
    used = money.describe(fill.used)
    detail = f"a call may cost {dollars(least.need_microusd)}, and of {fill.lid.name} = "
    detail += f"{dollars(fill.lid.limit_microusd)} there is {used}"
    wake_at_ms = least.wake_at_ms if least.used_up else now_ms + SOON_MS
    if lifts_at_ms is not None and wake_at_ms is not None:
        wake_at_ms = min(wake_at_ms, lifts_at_ms)
    return NoCall("parked", Problem.make("no_money", detail=detail), Park("budget", wake_at_ms))
