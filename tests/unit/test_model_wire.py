"""The wires without a network: what is built, what is read, and that no bytes whatever do harm."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnid.channels import whole
from omnid.executor.model_errors import CallFailed, Usage
from omnid.executor.model_wire import Answer, Ask, Message, StreamReader, build, read_answer
from omnid.executor.sse import EventReader, EventTooLargeError
from omnid.settings import Channel
from tests.fakes import cloud

WIRES = ("openai", "anthropic")
KEY = "sk-planted"


def channel(profile: str, **fields: object) -> Channel:
    return whole(Channel(name=profile, key="env:K", models=("m",), **fields))


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({min(cut, len(data)) for cut in cuts})
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


def streamed(wire: str, **options: bool) -> bytes:
    lines = [event if isinstance(event, str) else json.dumps(event) for event in cloud.events(wire, **options)]
    return "".join(f": comment\r\n\r\nevent: x\ndata: {line}\n\n" for line in lines).encode()


def test_requests_name_the_limit_as_their_provider_does() -> None:
    ask = Ask("m", (Message("user", "hi"),), 7, stream=True, temperature=0.5)
    bodies = {name: json.loads(build(channel(name), KEY, ask).body) for name in ("openai", "ollama", "openrouter")}
    assert bodies["openai"]["max_completion_tokens"] == 7
    assert bodies["ollama"]["max_tokens"] == 7
    assert bodies["ollama"]["stream_options"] == {"include_usage": True}
    assert bodies["ollama"]["temperature"] == 0.5
    assert [name for name, body in bodies.items() if "usage" in body] == ["openrouter"]


def test_a_request_is_shown_without_its_key() -> None:
    for name in ("openai", "anthropic"):
        request = build(channel(name), KEY, Ask("m", (), 1))
        assert KEY in str(request.headers)
        assert KEY not in repr(request)
    assert build(channel("anthropic", base_url="https://x.example/v1/"), "", Ask("m", (), 1)).url == (
        "https://x.example/v1/messages"
    )
    assert all(
        name not in {"authorization", "x-api-key"} for name, _ in build(channel("ollama"), "", Ask("m", (), 1)).headers
    )


@pytest.mark.parametrize("wire", WIRES)
def test_an_answer_is_read(wire: str) -> None:
    answer = read_answer(wire, json.dumps(cloud.whole(wire)).encode())
    assert (answer.text, answer.model) == (cloud.TEXT, "fake-1")
    assert answer.usage == Usage(cloud.INPUT_TOKENS, cloud.OUTPUT_TOKENS, 123 if wire == "openai" else None)


def test_content_in_parts_is_put_together() -> None:
    said = {"choices": [{"message": {"content": [{"type": "text", "text": "a"}, {"text": "b"}, 3]}}]}
    assert read_answer("openai", json.dumps(said).encode()).text == "ab"


@pytest.mark.parametrize("usage", [{"cost": "1"}, {"cost": True}, {"cost": -1}, {"prompt_tokens": 1.5}, [], "x", None])
def test_what_is_said_wrongly_of_the_cost_is_unknown(usage: object) -> None:
    said = {**cloud.whole("openai"), "usage": usage}
    assert read_answer("openai", json.dumps(said).encode()).usage is None


def test_a_cost_is_rounded_up() -> None:
    said = {**cloud.whole("openai"), "usage": {"cost": 0.0000001}}
    assert read_answer("openai", json.dumps(said).encode()).usage == Usage(None, None, 1)


@pytest.mark.parametrize("wire", WIRES)
@given(cuts=st.lists(st.integers(0, 3000), max_size=20))
def test_a_stream_is_read_however_it_is_cut(wire: str, cuts: list[int]) -> None:
    reader = StreamReader(wire, 10_000)
    texts = [text for piece in pieces_of(streamed(wire), cuts) for text in reader.feed(piece)]
    assert tuple(texts) == cloud.PIECES
    answer = reader.finish("".join(texts))
    assert (answer.text, answer.model) == (cloud.TEXT, "fake-1")
    assert answer.usage == Usage(cloud.INPUT_TOKENS, cloud.OUTPUT_TOKENS, 123 if wire == "openai" else None)


def test_a_stream_without_usage_is_whole_and_its_cost_unknown() -> None:
    reader = StreamReader("openai", 10_000)
    texts = list(reader.feed(streamed("openai", usage=False)))
    assert reader.finish("".join(texts)).usage is None


@pytest.mark.parametrize("wire", WIRES)
def test_a_stream_that_ends_too_early_is_cut(wire: str) -> None:
    reader = StreamReader(wire, 10_000)
    list(reader.feed(streamed(wire)[:400]))
    with pytest.raises(CallFailed) as caught:
        reader.finish("Hello ")
    assert caught.value.signs.what == "cut"


@pytest.mark.parametrize("wire", WIRES)
@given(
    data=st.binary()
    | st.recursive(
        st.none() | st.text() | st.integers(),
        lambda x: (
            st.lists(x)
            | st.dictionaries(
                st.sampled_from(["choices", "usage", "content", "delta", "message", "type", "text", "error"]), x
            )
        ),
    ).map(lambda said: json.dumps(said).encode())
)
def test_no_answer_whatever_breaks_the_readers(wire: str, data: bytes) -> None:
    try:
        assert isinstance(read_answer(wire, data), Answer)
    except CallFailed as error:
        assert error.signs.what in {"garbage", "empty", "status"}
    reader = StreamReader(wire, 1000)
    try:
        texts = list(reader.feed(b"data: " + data + b"\n\n"))
        assert isinstance(reader.finish("".join(texts)), Answer)
    except CallFailed as error:
        assert error.signs.what in {"garbage", "empty", "status", "cut", "too_large"}


def test_an_event_that_is_too_large_is_refused_before_it_is_whole() -> None:
    reader = EventReader(100)
    assert list(reader.feed(b"data: " + b"x" * 90 + b"\n\n")) == [b"x" * 90]
    with pytest.raises(EventTooLargeError):
        list(reader.feed(b"data: " + b"x" * 101))
    reader = EventReader(100)
    with pytest.raises(EventTooLargeError):
        for _ in range(20):
            list(reader.feed(b"data: 1234567890\n"))


def test_the_lines_of_an_event_belong_together() -> None:
    events = list(
        EventReader(100).feed(b"\xef\xbb\xbfdata: a\r\ndata:b\r\n: c\r\nid: 1\r\n\r\n\n\ndata\n\ndata: z\n\n")
    )
    assert events == [b"a\nb", b"z"]
