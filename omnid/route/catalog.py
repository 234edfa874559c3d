"""Which channel, key and model a call goes to, and why. Pure: it is given what is known, and writes down its reasons.

The config's order of channels is the order of preference. A channel goes behind the others where it has lately been
slower than it should be or could not be reached, and a free one where the prompt is hard; a key that is limited is left
out until it isn't.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Literal

from msgspec import Struct, structs

from omnid.channels import ALIASES, CHEAP, LOCAL, STRONG, about_tokens, keys_of, models_of, most_microusd
from omnid.channels import output_tokens_max as tokens_max_of
from omnid.settings import Channel, ChannelModel, Models

Way = Literal["gateway", "direct"]
MINUTE_MS = 60_000
LATENCIES_MAX = 20
"""How many of a channel's last calls its median is taken of."""
LATENCIES_MIN = 3
"""With fewer of them nothing is said about it."""


class KeyFacts(Struct, frozen=True):
    """What is known of one key of one channel."""

    closed_until_ms: int | None = None
    """It is limited until then (wall time); in the past: it isn't."""
    refused: str | None = None
    """Why it can't be used at all; it stays so until the config changes or it is found good."""
    calls_at_ms: tuple[int, ...] = ()
    """When its calls of the last minute began, the oldest first."""
    why_closed: str = ""
    """Why it is closed until then, where no limit is the reason."""


class ChannelFacts(Struct, frozen=True):
    """What is known of one channel."""

    latencies_s: tuple[float, ...] = ()
    """How long its last calls took until their first text, at most `LATENCIES_MAX`."""
    closed_until_ms: int | None = None
    """Its breaker is open, or it is overloaded, until then."""
    why_closed: str = ""
    running: int = 0
    failures: int = 0
    """Calls in a row that could not reach it."""
    away_until_ms: int | None = None
    """It goes behind all others until then, because of those."""

    def took(self, latency_s: float) -> "ChannelFacts":
        """Adds a call that took so long."""
        latencies_s = (*self.latencies_s, latency_s)[-LATENCIES_MAX:]
        return structs.replace(self, latencies_s=latencies_s)

    def p50_s(self) -> float | None:
        """Gives the median of its last calls; None where there are too few."""
        return median(self.latencies_s) if len(self.latencies_s) >= LATENCIES_MIN else None


class Facts(Struct, frozen=True):
    """All that a choice depends on beside the config; what isn't there is well."""

    now_ms: int
    way: Way = "gateway"
    """Through the gateway with the primary key first, or past it with the backup keys first."""
    keys: Mapping[tuple[str, str], KeyFacts] = {}
    """By the channel's name and the key's reference."""
    channels: Mapping[str, ChannelFacts] = {}


class Prompt(Struct, frozen=True):
    """As much of a task as a choice depends on."""

    text: str
    model: str | None = None
    """An alias or a name; None: `models.default`, or `models.hard`."""
    kind: str = "general"
    labels: tuple[str, ...] = ()
    has_executor: bool = False
    """Whether there is an executor for tasks of its kind."""
    output_tokens_max: int | None = None


class Candidate(Struct, frozen=True):
    """A way in which the call can be made now."""

    channel: str
    key: str
    """The key's reference; empty where the channel needs none."""
    model: ChannelModel
    way: Way
    reason: str
    most_microusd: int | None
    """The most that it can cost; None where a price isn't known."""
    output_tokens_max: int


class TurnedDown(Struct, frozen=True):
    """A channel, or one of its keys, that can't be used, and why."""

    channel: str
    key: str | None
    reason: str
    until_ms: int | None = None


class Choice(Struct, frozen=True):
    """What came of a choice. Without candidates `wake_at_ms` tells when the first of the limits lifts, if one does."""

    candidates: tuple[Candidate, ...]
    turned_down: tuple[TurnedDown, ...]
    wake_at_ms: int | None
    hard: str | None
    """What makes the prompt a hard one."""


def choose(channels: Sequence[Channel], models: Models, prompt: Prompt, facts: Facts) -> Choice:
    """Gives all ways in which the prompt can be sent now, the best first; `channels` are whole."""
    tokens = about_tokens(prompt.text)
    hard = why_hard(prompt, models, tokens)
    wanted = prompt.model or (models.hard if hard else models.default)
    candidates: list[Candidate] = []
    turned_down: list[TurnedDown] = []
    for channel, behind in _ordered(channels, facts, hard):
        reason = _closed(channel, facts)
        if reason is not None:
            turned_down.append(reason)
            continue
        model = resolve(channel, wanted)
        if model is None:
            turned_down.append(TurnedDown(channel.name, None, f"it has no model {wanted}"))
            continue
        output_max = tokens_max_of(model, prompt.output_tokens_max or models.output_tokens_max)
        if model.context_tokens is not None and tokens + output_max > model.context_tokens:
            detail = f"about {tokens} tokens and an answer of {output_max} don't fit in {model.context_tokens}"
            turned_down.append(TurnedDown(channel.name, None, detail))
            continue
        most = most_microusd(model, prompt.text, output_max)
        for key, what in _keys(channel, facts.way):
            closed = _key_closed(channel, key, what, facts)
            if closed is None:
                why = "; ".join(part for part in (behind, what) if part) or (
                    "next in order" if candidates else "the first in order"
                )
                candidates.append(Candidate(channel.name, key, model, facts.way, why, most, output_max))
            else:
                turned_down.append(closed)
    lifts = [reason.until_ms for reason in turned_down if reason.until_ms is not None]
    wake_at_ms = min(lifts) if lifts and not candidates else None
    return Choice(tuple(candidates), tuple(turned_down), wake_at_ms, hard)


def why_hard(prompt: Prompt, models: Models, tokens: int) -> str | None:
    """Says what makes a prompt hard: a label, its length, or its kind where no executor is there for it."""
    label = next((label for label in prompt.labels if label in models.hard_labels), None)
    if label is not None:
        return f"label {label}"
    if tokens > models.hard_tokens:
        return f"about {tokens} tokens, more than {models.hard_tokens}"
    if prompt.kind in models.hard_kinds and not prompt.has_executor:
        return f"kind {prompt.kind} without an executor for it"
    return None


def resolve(channel: Channel, wanted: str) -> ChannelModel | None:
    """Finds the model of a channel by its name, by an alias of its own, or by the meaning that aliases have."""
    models = models_of(channel)
    named = next((model for model in models if model.name == wanted or wanted in model.aliases), None)
    if named is not None or wanted not in ALIASES or not models:
        return named
    meant = {CHEAP: models[0], STRONG: models[-1], LOCAL: models[0] if channel.local else None}
    return meant[wanted]


def known_names(channels: Iterable[Channel]) -> list[str]:
    """Lists what a prompt may ask for: the models' names and aliases."""
    names = {name for channel in channels for model in models_of(channel) for name in (model.name, *model.aliases)}
    return [*ALIASES, *sorted(names - set(ALIASES))]


def _ordered(channels: Sequence[Channel], facts: Facts, hard: str | None) -> Iterator[tuple[Channel, str]]:
    """Gives the channels in the order of this choice, each with what put it behind others or before them."""

    def away(channel: Channel) -> bool:
        return (facts.channels.get(channel.name, ChannelFacts()).away_until_ms or 0) > facts.now_ms

    def slow(channel: Channel) -> bool:
        p50_s = facts.channels.get(channel.name, ChannelFacts()).p50_s()
        return p50_s is not None and channel.expected_latency_s is not None and p50_s > channel.expected_latency_s

    def free(channel: Channel) -> bool:
        return hard is not None and channel.free is True

    def reason(channel: Channel, before: Sequence[Channel]) -> str:
        if away(channel):
            return "it could not be reached lately"
        if free(channel):
            return f"a free channel, though the prompt is hard ({hard})"
        if slow(channel):
            return f"slower than {channel.expected_latency_s:g} s at the median"
        passed = [other for other in channels[: channels.index(channel)] if other not in before]
        names = ", ".join(other.name for other in passed)
        if not names:
            return ""
        if away(passed[0]):
            return f"{names} can't be reached"
        return f"the prompt is hard ({hard}), so before {names}" if free(passed[0]) else f"{names} is slow"

    ordered = sorted(channels, key=lambda channel: (away(channel), free(channel), slow(channel)))
    for position, channel in enumerate(ordered):
        yield channel, reason(channel, ordered[:position])


def _closed(channel: Channel, facts: Facts) -> TurnedDown | None:
    known = facts.channels.get(channel.name, ChannelFacts())
    if known.closed_until_ms is not None and known.closed_until_ms > facts.now_ms:
        return TurnedDown(channel.name, None, known.why_closed or "its breaker is open", known.closed_until_ms)
    if channel.concurrency is not None and known.running >= channel.concurrency:
        return TurnedDown(channel.name, None, f"{known.running} calls run, and it takes {channel.concurrency} at once")
    return None


def _keys(channel: Channel, way: Way) -> Iterator[tuple[str, str]]:
    """Gives the keys in the order in which this way uses them, and what is to be said of each."""
    primary, *backups = keys_of(channel)
    if way == "gateway":
        yield primary, ""
        yield from ((key, "a backup key") for key in backups)
        return
    yield from ((key, "direct, with a backup key") for key in backups)
    yield primary, "direct, with the primary key" + ("" if backups else ", as there is no backup key")


def _key_closed(channel: Channel, key: str, what: str, facts: Facts) -> TurnedDown | None:
    known = facts.keys.get((channel.name, key), KeyFacts())
    which = "a backup key" if "backup key" in what and "no backup" not in what else "its key"
    if known.refused is not None:
        return TurnedDown(channel.name, key, f"{which} is refused: {known.refused}")
    if known.closed_until_ms is not None and known.closed_until_ms > facts.now_ms:
        return TurnedDown(channel.name, key, f"{which} {known.why_closed or 'is limited'}", known.closed_until_ms)
    most = channel.requests_per_minute_max
    recent = [at_ms for at_ms in known.calls_at_ms if at_ms > facts.now_ms - MINUTE_MS]
    if most is not None and len(recent) >= most:
        detail = f"{which} has made {len(recent)} calls in a minute, and may make {most}"
        return TurnedDown(channel.name, key, detail, recent[-most] + MINUTE_MS)
    return None
