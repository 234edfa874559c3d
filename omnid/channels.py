"""What is known of the ways to reach models: ready profiles, channels made whole, and what a call costs. Pure.

Money is whole microdollars, rounded up: a price in US dollars per million tokens is the microdollars of one token.
"""

import re
from collections.abc import Collection, Iterator
from decimal import ROUND_CEILING, Decimal
from difflib import get_close_matches
from urllib.parse import SplitResult, urlsplit

from msgspec import Struct
from msgspec.structs import replace

from omnid.settings import Channel, ChannelModel, ProfileName, WireFormat

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
CHEAP, STRONG, LOCAL = "cheap", "strong", "local"
BRAINSTEM = "brainstem"
"""The channel to omnid's own local model; no other can have its name."""
_VERSION = re.compile(r"(-\d{8}|-\d{4}-\d\d-\d\d|:latest)$")
ALIASES = (CHEAP, STRONG, LOCAL)
OVERHEAD_TOKENS = 64
"""What roles, separators and a provider's own frame add to the input of a call, at most."""
CHARS_PER_TOKEN = 3
"""Fewer than English or code have on the average, so that an estimate is rather too high."""
LOGIN_WARNING = (
    "CLIProxyAPI uses the logins of subscriptions, which their providers may forbid and may end; "
    "write opt_in = true if you accept that"
)


class Profile(Struct, frozen=True, kw_only=True):
    """What the channels of one kind have in common."""

    base_url: str = ""
    wire: WireFormat = "openai"
    models: tuple[ChannelModel, ...] = ()
    free: bool = False
    local: bool = False
    relay: bool = False
    """Whether it runs on this machine and passes calls on, so that its own answers show nothing of the cloud."""
    needs_key: bool = True
    needs_opt_in: bool = False
    expected_latency_s: float = 2.0
    tokens_field: str = "max_tokens"
    """How the wire's requests name the most that may be answered."""
    reports_cost: bool = False
    """Whether an answer says what it cost, if it is asked to."""
    probe_path: str = "/models"
    """What can be asked, after the base URL, without spending anything."""
    litellm: str = "openai"
    """The provider by which LiteLLM knows the wire."""


def _claude(name: str, alias: str, input_usd: float, output_usd: float) -> ChannelModel:
    aliases = (alias,) if alias else ()
    return ChannelModel(name=name, aliases=aliases, input_usd=input_usd, output_usd=output_usd, context_tokens=200_000)


PROFILES: dict[ProfileName, Profile] = {
    "cliproxyapi": Profile(base_url="http://127.0.0.1:8317/v1", free=True, relay=True, needs_opt_in=True),
    "openrouter": Profile(
        base_url="https://openrouter.ai/api/v1", expected_latency_s=1.5, reports_cost=True, probe_path="/key"
    ),
    "anthropic": Profile(
        base_url="https://api.anthropic.com",
        wire="anthropic",
        litellm="anthropic",
        models=(
            _claude("claude-haiku-4-5", CHEAP, 1.0, 5.0),
            _claude("claude-sonnet-4-5", "", 3.0, 15.0),
            _claude("claude-opus-4-5", STRONG, 5.0, 25.0),
        ),
    ),
    "openai": Profile(base_url="https://api.openai.com/v1", tokens_field="max_completion_tokens"),
    "compatible": Profile(needs_key=False),
    "ollama": Profile(base_url="http://127.0.0.1:11434/v1", free=True, local=True, needs_key=False),
    "llamacpp": Profile(
        base_url="http://127.0.0.1:8080/v1",
        free=True,
        local=True,
        needs_key=False,
        models=(ChannelModel(name="default"),),
    ),
}


def profile_of(channel: Channel) -> Profile:
    """Gives the channel's profile: the one it names, or the one of its own name, or that of any compatible server."""
    return PROFILES[_profile_name(channel)]


def whole(channel: Channel) -> Channel:
    """Fills in what the profile knows and the config left out; the models of a free channel cost nothing."""
    profile = profile_of(channel)
    free = profile.free if channel.free is None else channel.free
    given = (ChannelModel(name=model) if isinstance(model, str) else model for model in channel.models)
    return replace(
        channel,
        profile=_profile_name(channel),
        base_url=(channel.base_url or profile.base_url).rstrip("/"),
        wire=channel.wire or profile.wire,
        models=tuple(_priced(model, free=free) for model in (tuple(given) or profile.models)),
        free=free,
        local=profile.local if channel.local is None else channel.local,
        relay=profile.relay if channel.relay is None else channel.relay,
        expected_latency_s=channel.expected_latency_s or profile.expected_latency_s,
    )


def models_of(channel: Channel) -> tuple[ChannelModel, ...]:
    """Gives the models of a channel that is whole."""
    return tuple(model for model in channel.models if isinstance(model, ChannelModel))


def signs_of_cloud(channels: Collection[Channel]) -> list[Channel]:
    """Gives those of whole channels whose answer to a probe shows that the cloud is there: no local ones.

    A relay answers without any cloud behind it, and is asked only where there is nothing else to ask.
    """
    away = [channel for channel in channels if not channel.local]
    return [channel for channel in away if not channel.relay] or away


def keys_of(channel: Channel) -> tuple[str, ...]:
    """Gives the references of the channel's keys, the primary one first; one empty text where it needs none."""
    keys = tuple(dict.fromkeys(key for key in (channel.key, *channel.backup_keys) if key))
    return keys or ("",)


def problems(channel: Channel) -> Iterator[tuple[str, str]]:
    """Gives what is wrong with a channel as the config has it: the key, and why its value can't be used."""
    profile, filled = profile_of(channel), whole(channel)
    if channel.name == BRAINSTEM:
        yield "name", "that name is the local model's own, which [brainstem] sets up"
    url = _split(filled.base_url)
    if url is None:
        yield "base_url", "it is the start of an address, as in https://openrouter.ai/api/v1"
    elif url.username or url.password or url.query or url.fragment:
        yield "base_url", "an address holds no password, query or fragment; the key has its own setting"
    elif url.scheme == "http" and channel.key and url.hostname not in LOOPBACK:
        yield "base_url", "a key goes over the network with https only"
    if profile.needs_key and not channel.key:
        yield "key", "this channel needs the reference of a key: env:NAME, file:/path, keychain:SERVICE or exec:COMMAND"
    if profile.needs_opt_in and not channel.opt_in:
        yield "opt_in", LOGIN_WARNING
    if not filled.models:
        yield "models", "name at least one model, the cheapest first"
    names = [model.name for model in models_of(filled)]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield "models", f"two of them are called {name}"


def absent(channel: Channel, listed: Collection[str]) -> Iterator[tuple[str, str]]:
    """Gives the models of a whole channel that aren't among those it lists, each with the nearest there, or nothing.

    A provider takes more names than it lists: without the date of a version, or with how it is to be served.
    """
    if channel.profile == "llamacpp":
        return  # Its server takes every name for the one model that it was started with.
    for model in models_of(channel):
        name = model.id or model.name
        if not any(_is_listed_as(name, one) for one in listed):
            yield name, next(iter(get_close_matches(name, listed, 1)), "")


def most_tokens(text: str) -> int:
    """Gives what the text can have in tokens at most: each stands for at least one byte."""
    return len(text.encode(errors="surrogatepass")) + OVERHEAD_TOKENS


def about_tokens(text: str) -> int:
    """Estimates a text's tokens, rather too many: a third of its letters, and one for each beyond Latin script."""
    wide = sum(ord(letter) > 0x24F for letter in text) if not text.isascii() else 0
    return -(-(len(text) - wide) // CHARS_PER_TOKEN) + wide + OVERHEAD_TOKENS


def output_tokens_max(model: ChannelModel, wanted: int) -> int:
    """Gives how many tokens an answer of the model may have, where that many are wanted."""
    return wanted if model.output_tokens_max is None else min(wanted, model.output_tokens_max)


def cost_microusd(model: ChannelModel, input_tokens: int, output_tokens: int) -> int | None:
    """Gives what so many tokens cost, rounded up; None where a price isn't known."""
    if model.input_usd is None or model.output_usd is None:
        return None
    exact = Decimal(str(model.input_usd)) * input_tokens + Decimal(str(model.output_usd)) * output_tokens
    return int(exact.to_integral_value(ROUND_CEILING))


def most_microusd(model: ChannelModel, text: str, output_max: int) -> int | None:
    """Gives the most that a call can cost: every byte of its input a token, and the longest answer."""
    return cost_microusd(model, most_tokens(text), output_tokens_max(model, output_max))


def _is_listed_as(name: str, listed: str) -> bool:
    if listed.endswith("*"):
        return name.startswith(listed[:-1])
    bare = listed.removeprefix("models/")
    undated = _VERSION.sub("", bare)
    return bare in (name, name.rpartition(":")[0]) or undated in (name, name.removesuffix("-latest"))


def _split(base_url: str) -> SplitResult | None:
    """Takes an address apart; None where it is none of HTTP."""
    try:
        url = urlsplit(base_url)
        fine = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        return None
    return url if fine else None


def _profile_name(channel: Channel) -> ProfileName:
    if channel.profile is not None:
        return channel.profile
    known: dict[str, ProfileName] = {name: name for name in PROFILES}
    return known.get(channel.name, "compatible")


def _priced(model: ChannelModel, *, free: bool) -> ChannelModel:
    if not free or model.input_usd is not None or model.output_usd is not None:
        return model
    return replace(model, input_usd=0.0, output_usd=0.0)
