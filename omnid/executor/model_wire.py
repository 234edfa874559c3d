"""The two wire formats of model calls: OpenAI's chat completions and Anthropic's messages. No I/O.

Requests are built, answers and streams are read; whatever an answer holds is taken as data and checked. What can't be
used raises `CallFailed` with its signs.
"""

from collections.abc import Iterator, Mapping, Sequence
from decimal import ROUND_CEILING, Decimal
from typing import Any, Literal, NamedTuple, cast

import msgspec
from msgspec import Struct

from omnid.channels import profile_of
from omnid.executor.model_errors import CallFailed, Signs, Usage, error_status
from omnid.executor.sse import EventReader, EventTooLargeError
from omnid.settings import Channel

ANTHROPIC_VERSION = "2023-06-01"
STREAM, JSON = "text/event-stream", "application/json"
TOKENS_MAX = 1 << 40


class Message(Struct, frozen=True):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Ask(Struct, frozen=True):
    """What a model is asked. `model` is the provider's name for it."""

    model: str
    messages: tuple[Message, ...]
    output_tokens_max: int
    stream: bool = False
    temperature: float | None = None


class Answer(Struct, frozen=True):
    """What a model answered."""

    text: str
    finish: str
    """Why it ended, in the provider's words: ``stop``, ``end_turn``, ``length``, ``max_tokens``, ..."""
    usage: Usage | None
    model: str = ""
    """What the provider calls the model that answered."""
    first_text_s: float | None = None
    """How long the first piece of text took."""


class HttpRequest(NamedTuple):
    """A request as it goes out. Its headers hold the key, so that it is never shown."""

    url: str
    headers: list[tuple[str, str]]
    body: bytes

    def __repr__(self) -> str:
        return f"HttpRequest({self.url!r})"


def build(channel: Channel, key: str, ask: Ask) -> HttpRequest:
    """Builds the request for a channel that is whole."""
    body: dict[str, Any] = {"model": ask.model, "stream": ask.stream}
    headers = [("content-type", JSON), ("accept", STREAM if ask.stream else JSON), ("user-agent", "omnid")]
    if ask.temperature is not None:
        body["temperature"] = ask.temperature
    if channel.wire == "anthropic":
        system = "\n\n".join(message.content for message in ask.messages if message.role == "system")
        body |= {"system": system} if system else {}
        body["messages"] = msgspec.to_builtins([message for message in ask.messages if message.role != "system"])
        body["max_tokens"] = ask.output_tokens_max
        headers += [("anthropic-version", ANTHROPIC_VERSION), *([("x-api-key", key)] if key else [])]
        url = channel.base_url.removesuffix("/v1") + "/v1/messages"
        return HttpRequest(url, headers, msgspec.json.encode(body))
    body["messages"] = msgspec.to_builtins(ask.messages)
    body |= extras(channel, ask)
    headers += [("authorization", f"Bearer {key}")] if key else []
    return HttpRequest(f"{channel.base_url}/chat/completions", headers, msgspec.json.encode(body))


def extras(channel: Channel, ask: Ask) -> dict[str, Any]:
    """Gives what the OpenAI wire names differently from one provider to the next."""
    profile = profile_of(channel)
    fields: dict[str, Any] = {profile.tokens_field: ask.output_tokens_max}
    if profile.reports_cost:
        fields["usage"] = {"include": True}
    if ask.stream:
        fields["stream_options"] = {"include_usage": True}
    return fields


def read_answer(wire: str | None, body: bytes) -> Answer:
    """Reads an answer in one piece; raises `CallFailed`."""
    said = decoded(body)
    if wire == "anthropic":
        content = [_mapping(part) for part in _list(said.get("content"))]
        text = "".join(_text(part.get("text")) for part in content if part.get("type") == "text")
        parts = Parts(
            finish=_text(said.get("stop_reason")), usage=_anthropic_usage(said), model=_text(said.get("model"))
        )
    else:
        choice = _mapping(next(iter(_list(said.get("choices"))), None))
        text = _content(_mapping(choice.get("message")).get("content"))
        parts = Parts(
            finish=_text(choice.get("finish_reason")), usage=_openai_usage(said), model=_text(said.get("model"))
        )
    return parts.answer(text)


def read_listing(body: bytes) -> frozenset[str]:
    """Reads the names of a list of models, which is the same over both wires; raises `CallFailed`."""
    said = decoded(body)
    names = [_mapping(one).get("id") for one in _list(said.get("data"))]
    if not names or said.get("has_more") or not all(isinstance(name, str) for name in names):
        raise CallFailed(Signs(what="garbage", detail="it is no whole list of models"))
    return frozenset(map(str, names))


class Parts(Struct):
    """What comes beside the text, piece by piece."""

    finish: str = ""
    usage: Usage | None = None
    model: str = ""

    def answer(self, text: str, first_text_s: float | None = None) -> Answer:
        """Makes the answer; one without any text is none: raises `CallFailed`."""
        if not text:
            raise CallFailed(Signs(what="empty", detail=f"it ended with {self.finish or 'nothing'}", usage=self.usage))
        return Answer(text, self.finish, self.usage, self.model, first_text_s)


class StreamReader:
    """Reads the events of a streamed answer."""

    def __init__(self, wire: str | None, event_bytes_max: int) -> None:
        self._events = EventReader(event_bytes_max)
        self._take = self._anthropic if wire == "anthropic" else self._openai
        self._parts = Parts()
        self._done = False
        self.began = False

    def feed(self, piece: bytes) -> Iterator[str]:
        """Yields the pieces of text that have come; raises `CallFailed` for what is no event of this wire."""
        try:
            for data in self._events.feed(piece):
                if data == b"[DONE]":
                    self._done = True
                elif text := self._take(decoded(data, began=self.began)):
                    self.began = True
                    yield text
        except EventTooLargeError:
            raise CallFailed(Signs(what="too_large", detail="one event passes the limit", began=self.began)) from None

    def finish(self, text: str, first_text_s: float | None = None) -> Answer:
        """Makes the answer at the end of the stream; raises `CallFailed` where that came too early."""
        if not self._done and not self._parts.finish:
            raise CallFailed(Signs(what="cut", began=self.began, usage=self._parts.usage))
        return self._parts.answer(text, first_text_s)

    def _openai(self, event: Mapping[str, Any]) -> str:
        usage = _openai_usage(event)
        self._parts.usage = usage or self._parts.usage
        self._parts.model = _text(event.get("model")) or self._parts.model
        choice = _mapping(next(iter(_list(event.get("choices"))), None))
        self._parts.finish = _text(choice.get("finish_reason")) or self._parts.finish
        return _content(_mapping(choice.get("delta")).get("content"))

    def _anthropic(self, event: Mapping[str, Any]) -> str:
        match event.get("type"):
            case "message_start":
                message = _mapping(event.get("message"))
                self._parts.model, self._parts.usage = _text(message.get("model")), _anthropic_usage(message)
            case "content_block_delta":
                delta = _mapping(event.get("delta"))
                return _text(delta.get("text")) if delta.get("type") == "text_delta" else ""
            case "message_delta":
                self._parts.finish = _text(_mapping(event.get("delta")).get("stop_reason")) or self._parts.finish
                counted, before = _anthropic_usage(event), self._parts.usage or Usage()
                if counted is not None:
                    self._parts.usage = Usage(before.input_tokens or counted.input_tokens, counted.output_tokens)
            case "message_stop":
                self._done = True
            case _:
                # Pings, and events that came to the wire later.
                pass
        return ""


def decoded(data: bytes, *, began: bool = False) -> Mapping[str, Any]:
    """Decodes an answer or an event; raises `CallFailed` where it is no object, or is an error in disguise."""
    try:
        said = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise CallFailed(Signs(what="garbage", detail="it is no JSON", began=began)) from None
    if not isinstance(said, dict):
        raise CallFailed(Signs(what="garbage", detail="it is no object", began=began))
    body = cast("dict[str, Any]", said)
    if body.get("error"):
        text = msgspec.json.encode({"error": body["error"]}).decode()
        raise CallFailed(Signs(what="status", status=error_status(body), body=text, began=began))
    return body


def usage_from(input_tokens: object, output_tokens: object, cost_usd: object) -> Usage | None:
    """Checks what is said of a call's usage; None where nothing of it can be used."""
    usage = Usage(_count(input_tokens), _count(output_tokens), _microusd(cost_usd))
    return None if usage == Usage() else usage


def _openai_usage(said: Mapping[str, Any]) -> Usage | None:
    usage = _mapping(said.get("usage"))
    return usage_from(usage.get("prompt_tokens"), usage.get("completion_tokens"), usage.get("cost"))


def _anthropic_usage(said: Mapping[str, Any]) -> Usage | None:
    usage = _mapping(said.get("usage"))
    inputs = [
        _count(usage.get(name)) for name in ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    ]
    known = [count for count in inputs if count is not None]
    return usage_from(sum(known) if known else None, usage.get("output_tokens"), None)


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= TOKENS_MAX else None


def _microusd(value: object) -> int | None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1e9:
        return None
    return int((Decimal(str(value)) * 1_000_000).to_integral_value(ROUND_CEILING))


def _content(value: object) -> str:
    """Gives the text of a content, which some providers split into parts."""
    if isinstance(value, str):
        return value
    return "".join(_text(_mapping(part).get("text")) for part in _list(value))


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _list(value: object) -> Sequence[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _mapping(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}
