"""What a failed call to a model means: one table for all wires and ways, by status, headers, body and kind of trouble.

Pure. `Signs` is what was seen, `classify` makes a `Failure` of it. Sources: RFC 9110 (Retry-After), the error pages of
OpenAI, Anthropic and OpenRouter, and the answers of CLIProxyAPI.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, NamedTuple, cast

import msgspec
from msgspec import Struct

Kind = Literal[
    "limited",
    "credit",
    "key",
    "overloaded",
    "cloud",
    "provider",
    "model",
    "request",
    "cut",
    "silent",
    "deadline",
    "gateway",
    "secret",
]
"""What a failure means; `RULES` says what follows from each."""

What = Literal[
    "status",
    "dns",
    "refused",
    "unreachable",
    "tls",
    "connect_timeout",
    "silence",
    "deadline",
    "cut",
    "garbage",
    "empty",
    "too_large",
    "redirect",
    "unsendable",
    "gateway",
    "unknown",
]

DETAIL_CHARS_MAX = 300
BODY_BYTES_MAX = 64 * 1024
LIMIT_DEFAULT_S, OVERLOAD_DEFAULT_S, CREDIT_DEFAULT_S = 60.0, 15.0, 3600.0
"""How long a key or a channel stays closed where the provider doesn't say."""
LIMIT_S_MAX = 7 * 86400.0
CLOUD_TIMEOUT_S = 10.0
"""A timeout counts as a failure of the cloud only after this long: a short deadline says nothing about the network."""


class Rule(NamedTuple):
    """What follows from a kind of failure."""

    hop: bool
    """The next candidate may do better."""
    closes: Literal["key", "channel"] | None
    """What can't be used until the time of the failure (without one: until the config changes)."""
    means: str


RULES: dict[Kind, Rule] = {
    "limited": Rule(True, "key", "the key has used up its limit"),
    "credit": Rule(True, "key", "the key's account has no credit"),
    "key": Rule(True, "key", "the key is refused"),
    "overloaded": Rule(True, "channel", "the provider is overloaded"),
    "cloud": Rule(True, None, "the provider can't be reached"),
    "provider": Rule(True, None, "the provider is at fault"),
    "model": Rule(True, None, "the provider doesn't know the model"),
    "request": Rule(False, None, "the provider refuses the request"),
    "cut": Rule(True, None, "the connection broke off"),
    "silent": Rule(True, None, "the provider said nothing"),
    "deadline": Rule(False, None, "the time was up"),
    "gateway": Rule(True, None, "the gateway is at fault"),
    "secret": Rule(True, "key", "the key can't be read"),
}


class Usage(Struct, frozen=True):
    """What a call used; None is unknown. `cost_microusd` is what the provider says that it cost."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_microusd: int | None = None


class Signs(Struct, frozen=True, kw_only=True):
    """What was seen of a failed call."""

    what: What
    detail: str = ""
    status: int | None = None
    """Of the answer, or the one that an error inside an answer stands for."""
    headers: dict[str, str] = {}
    """With names in lower case."""
    body: str = ""
    waited_s: float = 0.0
    """How long nothing had come when it was given up."""
    sent: bool = True
    """False: the request can't have reached the provider."""
    began: bool = False
    """Part of the answer had come."""
    usage: Usage | None = None


class CallFailed(Exception):
    """Carries the signs of a failure to where they are classified."""

    def __init__(self, signs: Signs) -> None:
        super().__init__(signs.what)
        self.signs = signs


class Failure(Struct, frozen=True):
    """What a failed call means."""

    kind: Kind
    detail: str
    """What was seen, in words, without any key."""
    status: int | None = None
    until_ms: int | None = None
    """When what it closes can be used again (wall time)."""
    may_cost: bool = False
    """Nobody knows whether it is billed, so that its whole reservation stays."""
    usage: Usage | None = None


STATUSES: dict[int, Kind] = {
    401: "key",
    402: "credit",
    403: "key",
    404: "model",
    408: "provider",
    409: "provider",
    425: "provider",
    429: "limited",
    503: "overloaded",
    529: "overloaded",
}
"""Other statuses below 500 are faults of the request, and all others faults of the provider."""

CODES: dict[str, Kind] = {
    "insufficient_quota": "credit",
    "billing_error": "credit",
    "billing_hard_limit_reached": "credit",
    "insufficient_credits": "credit",
    "model_cooldown": "limited",
    "rate_limit_error": "limited",
    "rate_limit_exceeded": "limited",
    "authentication_error": "key",
    "invalid_api_key": "key",
    "permission_error": "key",
    "overloaded_error": "overloaded",
    "not_found_error": "model",
    "model_not_found": "model",
    "invalid_request_error": "request",
    "context_length_exceeded": "request",
    "content_policy_violation": "request",
    "request_too_large": "request",
    "api_error": "provider",
    "server_error": "provider",
}
"""What ``type`` or ``code`` inside an error says, where it says more than the status."""

_OTHERS: dict[What, Kind] = {
    "connect_timeout": "silent",
    "silence": "silent",
    "dns": "cloud",
    "refused": "cloud",
    "unreachable": "cloud",
    "tls": "cloud",
    "cut": "cut",
    "garbage": "provider",
    "empty": "provider",
    "too_large": "provider",
    "redirect": "provider",
    "unsendable": "request",
    "deadline": "deadline",
    "gateway": "gateway",
    "unknown": "provider",
}
_WORDS: dict[What, str] = {
    "status": "it answered with an error",
    "dns": "its name can't be resolved",
    "refused": "it refuses the connection",
    "unreachable": "there is no way to it",
    "tls": "no secure connection can be made",
    "connect_timeout": "no connection came about in time",
    "silence": "nothing came from it in time",
    "deadline": "the answer was not there in time",
    "cut": "the connection broke off before the answer was whole",
    "garbage": "its answer can't be read",
    "empty": "its answer is empty",
    "too_large": "its answer is too large",
    "redirect": "it wants to send the call elsewhere, which is not followed",
    "unsendable": "the request can't be written",
    "gateway": "the gateway broke off",
    "unknown": "something unknown went wrong",
}
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_QUOTED_CODE = re.compile(r"['\"](?:type|code)['\"]: ?['\"](\w+)['\"]")
_EPOCH_S_MIN, _EPOCH_MS_MIN = 1e9, 1e12


def classify(signs: Signs, now_ms: int, secret: str = "") -> Failure:
    """Says what the signs mean; `secret` is the key of the call, which a provider may have repeated in its answer."""
    said = _Said(signs.body)
    kind = _kind(signs, said)
    until_ms = None
    if kind in ("limited", "overloaded", "credit"):
        until_ms = _until_ms(signs, said, now_ms, kind)
    parts = [_WORDS[signs.what], f"HTTP {signs.status}" if signs.status else "", said.message or signs.detail]
    detail = ": ".join(dict.fromkeys(part for part in parts if part))
    if secret:
        detail = detail.replace(secret, "[key]")
    whole_error = signs.what in ("status", "redirect") and not signs.began
    return Failure(
        kind=kind,
        detail=detail if len(detail) <= DETAIL_CHARS_MAX else f"{detail[:DETAIL_CHARS_MAX]}...",
        status=signs.status,
        until_ms=until_ms,
        may_cost=signs.sent and not whole_error,
        usage=signs.usage,
    )


def _kind(signs: Signs, said: "_Said") -> Kind:
    if signs.what in ("connect_timeout", "silence", "deadline") and signs.waited_s >= CLOUD_TIMEOUT_S:
        return "cloud"
    if signs.what != "status":
        return _OTHERS[signs.what]
    status = signs.status if signs.status is not None else said.status
    coded: list[Kind] = [CODES[code] for code in said.codes if code in CODES]
    by_code = coded[0] if coded else None
    if status is None:
        return by_code or "provider"
    if status in (400, 403, 429, 500) and by_code is not None:
        # These are said of many things, and the code tells which.
        return by_code if status != 429 or by_code == "credit" else "limited"
    if status == 403 and said.flagged:
        return "request"
    other: Kind = "request" if 400 <= status < 500 else "provider"
    return STATUSES.get(status, other)


class _Said:
    """What the body of an error says, whatever its shape: ``{"error": {...}}``, ``{"error": "text"}``, or no JSON."""

    def __init__(self, body: str) -> None:
        self.message, self.codes, self.status, self.flagged = (
            "",
            [str(code) for code in _QUOTED_CODE.findall(body)],
            None,
            False,
        )
        self.error: Mapping[str, Any] = {}
        try:
            whole = msgspec.json.decode(body)
        except msgspec.DecodeError:
            self.message = "" if body.lstrip().startswith("<") else " ".join(body.split())
            return
        error = _mapping(whole).get("error", whole)
        self.error = _mapping(error)
        told = error if isinstance(error, str) else self.error.get("message") or _mapping(whole).get("detail") or ""
        self.message = " ".join(told.split()) if isinstance(told, str) else ""
        code = self.error.get("code")
        self.status = code if isinstance(code, int) and not isinstance(code, bool) and 400 <= code < 600 else None
        self.codes = [text for text in (code, self.error.get("type")) if isinstance(text, str)]
        self.flagged = bool(_mapping(self.error.get("metadata")).get("reasons"))


def error_status(body: Mapping[str, Any]) -> int | None:
    """Gives the status that an error inside an answer stands for; None where it names none."""
    return _Said(msgspec.json.encode(body).decode()).status


def _until_ms(signs: Signs, said: _Said, now_ms: int, kind: Kind) -> int:
    default_s = {"limited": LIMIT_DEFAULT_S, "credit": CREDIT_DEFAULT_S}.get(kind, OVERLOAD_DEFAULT_S)
    waits_s = next((found for found in _waits_s(signs.headers, said, now_ms) if found is not None), default_s)
    return now_ms + round(1000 * min(max(waits_s, 1.0), LIMIT_S_MAX))


def _waits_s(headers: Mapping[str, str], said: _Said, now_ms: int) -> Iterator[float | None]:
    """Gives what is said of the time to wait, in seconds, the most certain first."""
    if "retry-after-ms" in headers:
        millis = _number(headers["retry-after-ms"])
        yield None if millis is None else millis / 1000
    yield _wait_s(headers.get("retry-after", ""), now_ms)
    yield _number(said.error.get("reset_seconds"))
    yield _number(said.error.get("retry_after"))
    nested = _mapping(_mapping(said.error.get("metadata")).get("headers"))
    both = {**{str(name).lower(): str(value) for name, value in nested.items()}, **headers}
    yield _wait_s(both.get("retry-after", ""), now_ms)
    resets = {name: _wait_s(value, now_ms) for name, value in both.items() if "ratelimit" in name and "reset" in name}
    known = {name: wait_s for name, wait_s in resets.items() if wait_s is not None}
    # Several limits are reported beside each other: the one that has nothing left is the one that was met.
    spent = [
        wait_s for name, wait_s in known.items() if both.get(name.replace("reset", "remaining"), "").strip() == "0"
    ]
    yield max(spent) if spent else min(known.values(), default=None)


def _wait_s(text: str, now_ms: int) -> float | None:
    """Reads a time to wait: seconds, a time since 1970 in s or ms, ``6m0s``, an HTTP date or one of RFC 3339."""
    number = _number(text)
    if number is not None:
        if number >= _EPOCH_MS_MIN:
            return (number - now_ms) / 1000
        return number - now_ms / 1000 if number >= _EPOCH_S_MIN else number
    match = _DURATION.fullmatch(text.strip())
    if match is not None and any(match.groups()):
        days, hours, minutes, seconds, millis = (float(part or 0) for part in match.groups())
        return days * 86400 + hours * 3600 + minutes * 60 + seconds + millis / 1000
    for read in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            when = read(text.strip())
            when = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
            return when.timestamp() - now_ms / 1000
        except (ValueError, TypeError, OverflowError):
            continue
    return None


def _number(value: object) -> float | None:
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None
    except ValueError:
        return None
    return number if number is not None and 0 <= number < 1e15 else None


def _mapping(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}
