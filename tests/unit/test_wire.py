import itertools
import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnid import wire
from omnid.errors import Fatal, OmnidError, Rejected, Retryable
from omnid.messages import CATALOGUE


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({min(place, len(data)) for place in places} | {0, len(data)})
    return [data[begin:end] for begin, end in itertools.pairwise(ends)]


lines_of_bytes = st.lists(st.binary(max_size=20).map(lambda line: line.replace(b"\n", b"")), max_size=20)


@given(lines=lines_of_bytes, rest=st.binary(max_size=20), places=st.lists(st.integers(0, 500)))
def test_lines_come_out_whole_however_the_bytes_arrive(lines: list[bytes], rest: bytes, places: list[int]) -> None:
    rest = rest.replace(b"\n", b"")
    splitter = wire.LineSplitter(20)
    data = b"".join(line + b"\n" for line in lines) + rest
    found = [line for part in cut(data, places) for line in splitter.feed(part)]
    assert found == [line for line in lines if line.strip()]
    assert list(splitter.feed(b"x\n" if len(rest) < 20 else b"\n")) == (
        [rest + b"x"] if len(rest) < 20 else [rest] if rest.strip() else []
    )


@given(before=lines_of_bytes, excess=st.integers(1, 100), ended=st.booleans(), places=st.lists(st.integers(0, 500)))
def test_a_line_over_the_limit_is_refused_and_those_before_it_are_not(
    before: list[bytes], excess: int, ended: bool, places: list[int]
) -> None:
    splitter = wire.LineSplitter(20)
    data = b"".join(line + b"\n" for line in before) + b"x" * (20 + excess) + (b"\n" if ended else b"")
    found: list[bytes] = []
    with pytest.raises(Rejected) as caught:
        for part in cut(data, places):
            found.extend(splitter.feed(part))
    assert caught.value.code == "message_too_large"
    assert found == [line for line in before if line.strip()]


@given(
    lines=st.lists(st.integers(0, 40).map(lambda count: b"x" * count), max_size=20),
    places=st.lists(st.integers(0, 500)),
)
def test_a_line_over_the_limit_is_passed_over_and_the_next_is_whole(lines: list[bytes], places: list[int]) -> None:
    splitter = wire.LenientSplitter(20)
    data = b"".join(line + b"\n" for line in lines)
    found = [line for part in cut(data, places) for line in splitter.feed(part)]
    assert [type(line) for line in found] == [wire.Glimpse if len(line) > 20 else bytes for line in lines if line]
    assert [line for line in found if isinstance(line, bytes)] == [line for line in lines if 0 < len(line) <= 20]
    assert not splitter.passes_over


def test_a_line_without_an_end_takes_no_more_than_the_limit() -> None:
    splitter = wire.LenientSplitter(1 << 16)
    tracemalloc.start()
    try:
        for _ in range(256):
            assert list(splitter.feed(b"x" * (1 << 16))) == []
        assert tracemalloc.get_traced_memory()[1] < 4 << 16
    finally:
        tracemalloc.stop()
    (line,) = splitter.feed(b"y\n")
    assert isinstance(line, wire.Glimpse)
    assert (line.head, line.tail) == (b"x" * wire.HEAD_BYTES, b"x" * (wire.TAIL_BYTES - 1) + b"y")


def long_line(text: str) -> wire.Glimpse:
    splitter = wire.LenientSplitter(10_000)
    (line,) = splitter.feed(text.encode() + b"\n")
    assert isinstance(line, wire.Glimpse)
    return line


X = "x" * 10_000


@pytest.mark.parametrize(
    ("text", "asks", "answers"),
    [
        (f'{{"jsonrpc":"2.0","id":7,"method":"m","params":{{"a":"{X}"}}}}', 7, None),
        (f'{{"method":"m","params":{{"id":1,"a":"{X}"}},"jsonrpc":"2.0","id":0}}', 0, None),
        (f'{{"method":"m","params":{{"a":"{X}"}},"jsonrpc":"2.0", "id" : "a\\"b" }} ', 'a"b', None),
        (f' {{ "method" : "m" , "params" : {{"a":{{"id":3}}}} , "id" : 12 , "x" : "{X}" }}', 12, None),
        (f'{{"jsonrpc":"2.0","id":7,"params":{{"a":"{X}"}},"method":"m"}}', 7, None),
        (f'{{"method":"m","id":7}}{" " * 10_000}', 7, None),
        (f'{{"jsonrpc":"2.0","id":"1:2","result":{{"a":"{X}"}}}}', None, "1:2"),
        (f'{{"result":{{"a":"{X}"}},"jsonrpc":"2.0","id":5}}', None, 5),
        (f'{{"error":{{"a":"{X}"}},"jsonrpc":"2.0","id":5}}', None, 5),
        # A notification, ids of something else, and what is no message.
        (f'{{"jsonrpc":"2.0","method":"m","params":{{"a":"{X}"}}}}', None, None),
        (f'{{"jsonrpc":"2.0","method":"m","params":{{"a":"{X}","b":{{"id":5}}}}}}', None, None),
        (f'{{"jsonrpc":"2.0","method":"m","params":{{"a":"{X},\\"id\\":5}}"}}}}', None, None),
        (f'{{"method":"m","params":{{"id":4,"a":"{X}', None, None),
        (f'{{"jsonrpc":"2.0","method":"m","id":{"1" * 10_000}}}', None, None),
        (f'{{"method":"m","id":1.5,"params":"{X}"}}', None, None),
        (f'{{"method":"m","id":true,"params":"{X}"}}', None, None),
        ("[" * 10_001, None, None),
        (f'{{"a":{"[" * 10_000}', None, None),
        (X + "x", None, None),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else str(value),
)
def test_whose_a_line_was_that_is_too_long(text: str, asks: int | str | None, answers: int | str | None) -> None:
    line = long_line(text)
    assert (line.request_id, line.answered_id) == (asks, answers)


@given(head=st.binary(max_size=60), tail=st.binary(max_size=60))
def test_nothing_in_a_long_line_is_a_fault(head: bytes, tail: bytes) -> None:
    line = wire.Glimpse(b'{"method":"m",' + head, tail + b'"id":5}')
    assert line.request_id is None or isinstance(line.request_id, int | str)


def test_a_line_of_single_bytes_takes_no_more_than_its_bytes() -> None:
    splitter = wire.LineSplitter(1 << 20)
    for _ in range(1 << 16):
        assert list(splitter.feed(b"x")) == []
    assert [len(line) for line in splitter.feed(b"\n")] == [1 << 16]


@pytest.mark.parametrize("kind", [Rejected, Retryable, Fatal])
def test_an_error_crosses_the_wire(kind: type[OmnidError]) -> None:
    sent = kind("disk_full", detail="ENOSPC", path="/x")
    message = json.loads(wire.error_answer(b'"a"', sent))
    assert (message["id"], message["error"]["code"]) == ("a", wire.OMNID_ERROR)
    received = wire.error_from(message["error"])
    assert type(received) is kind
    assert received.as_dict() == sent.as_dict()
    assert str(received) == str(sent) == message["error"]["message"]


def test_codes_of_json_rpc_are_used_where_they_exist() -> None:
    method = Rejected("unknown_method", method="x", version="1", hint="")
    assert wire.error_object(method)["code"] == wire.METHOD_NOT_FOUND
    request = Rejected("bad_request", detail="x", where="it")
    assert wire.error_object(request)["code"] == wire.INVALID_PARAMS
    assert wire.error_object(request, wire.PARSE_ERROR)["code"] == wire.PARSE_ERROR
    assert wire.error_object(Rejected("internal", detail="x"))["code"] == wire.INTERNAL_ERROR


def test_sentences_of_a_newer_daemon_are_kept() -> None:
    data = {"code": "from_the_future", "what": "A.", "why": "B.", "do": "C.", "kind": "retryable"}
    assert "from_the_future" not in CATALOGUE
    error = wire.error_from({"code": -32000, "message": "A.", "data": data})
    assert isinstance(error, Retryable)
    assert (error.code, str(error)) == ("from_the_future", "A. B. C.")


@given(st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner)))
def test_any_error_member_becomes_an_error(member: object) -> None:
    assert wire.error_from(member).what


def test_a_foreign_error_keeps_its_message() -> None:
    error = wire.error_from({"code": -32601, "message": "Method not found"})
    assert isinstance(error, Rejected)
    assert "Method not found" in error.what
    assert "-32601" in error.what


def test_what_json_cant_say_is_not_sent() -> None:
    assert wire.request(1, "omnid/status", {}) == b'{"jsonrpc":"2.0","id":1,"method":"omnid/status","params":{}}\n'
    with pytest.raises(ValueError, match="JSON"):
        wire.line({"x": float("nan")})
    for value in ("cut \ud83d", "caf\udce9"):
        with pytest.raises(ValueError, match="is no UTF-8"):
            wire.request(1, "omnid/task.submit", {"argv": ["x", value]})


@pytest.mark.parametrize(
    ("line", "own_id"),
    [
        (b'{"id":7,"x":"\\ud83d"}', 7),
        (b'{"id":"a","x":NaN}', "a"),
        (b'{"id":true}', None),
        (b'{"id":1.5}', None),
        (b'{"x":1}', None),
        (b"[1]", None),
        (b"\xff", None),
        (b"[" * 100_000, None),
    ],
)
def test_the_id_of_a_line_that_was_refused(line: bytes, own_id: int | str | None) -> None:
    assert wire.Glimpse.of(line).request_id == own_id


def test_a_line_that_a_lenient_reader_takes_is_explained_in_plain_words() -> None:
    for sent in (b'{"id":7,"x":"\\ud83d"}', b"NaN"):
        assert "half a surrogate pair" in wire.why_unreadable(sent, ValueError("cut off"))
    for sent in (b'{"id":7', b"[" * 100_000, b"\xff"):
        assert "cut off" in wire.why_unreadable(sent, ValueError("cut off"))
