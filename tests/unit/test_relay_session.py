import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnid import relay_session, wire
from omnid.errors import Rejected
from omnid.relay import _asked
from omnid.relay_session import Session

INITIALIZE = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {"protocolVersion": "2025-11-25"}}
INITIALIZED = {"jsonrpc": "2.0", "method": "notifications/initialized"}


def call(request_id: int | str, **arguments: Any) -> dict[str, Any]:
    params = {"name": "t", "arguments": arguments}
    return {"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": params}


def fresh(away_s: float = 600.0) -> Session:
    return Session("s", "/s", away_s, lambda text: None, 0.0)


def up(session: Session | None = None, **welcome: Any) -> Session:
    session = session or fresh()
    session.connected()
    assert [message["method"] for message in sent(session)] == ["omnid/hello"]
    answer(session, "omnid-hello", welcome)
    return session


def client(session: Session, message: dict[str, Any], now_s: float = 0.0) -> None:
    session.from_client(wire.line(message).strip(), now_s)


def answer(session: Session, request_id: Any, result: object) -> None:
    session.from_daemon(wire.line({"jsonrpc": "2.0", "id": request_id, "result": result}).strip(), 0.0)


def taken(buffer: bytearray) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in buffer.splitlines()]
    buffer.clear()
    return lines


def told(session: Session) -> list[dict[str, Any]]:
    return taken(session.to_client)


def sent(session: Session) -> list[dict[str, Any]]:
    return taken(session.to_daemon)


@pytest.mark.parametrize("attempt", [None, "a"])
def test_the_hello_names_the_attempt_around_it(attempt: str | None) -> None:
    session = Session("s", "/s", 600.0, lambda text: None, 0.0, attempt)
    session.connected()
    (hello,) = sent(session)
    assert hello["params"].get("attempt") == attempt


@pytest.mark.parametrize(
    ("sent", "number"),
    [
        (b"no json\n", wire.PARSE_ERROR),
        (b"\xff\n", wire.PARSE_ERROR),
        (b'{"id":1,"method":"x","params":NaN}\n', wire.PARSE_ERROR),
        (b"[" * 100_000 + b"\n", wire.PARSE_ERROR),
        (b"[]\n", wire.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":[],"method":"x"}\n', wire.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":true,"method":"x"}\n', wire.INVALID_REQUEST),
    ],
)
def test_what_cant_be_read_is_answered_at_once(sent: bytes, number: int) -> None:
    session = up()
    for line in sent.splitlines():
        session.from_client(line, 0.0)
    (answer,) = told(session)
    # What it was can be seen where nothing but its parameters can't be read.
    assert (answer["id"], answer["error"]["code"]) == (1 if b'"id":1' in sent else None, number)
    assert session.to_daemon == b""


def test_a_request_that_is_cancelled_before_it_was_sent_never_is() -> None:
    session = fresh()
    client(session, call(1))
    client(session, call(2))
    client(session, {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}})
    up(session)
    assert sent(session) == [call(2)]


def test_the_cancellation_of_a_request_that_was_sent_is_passed_on() -> None:
    session = up()
    cancelled = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
    client(session, call(1))
    client(session, cancelled)
    assert sent(session) == [call(1), cancelled]
    answer(session, 1, {})
    session.lost(1.0)
    up(session)
    assert (told(session), sent(session)) == ([], [])


@pytest.mark.parametrize("request_id", [[], {}, None, 7, "1"])
def test_a_cancellation_of_nothing_harms_nothing(request_id: object) -> None:
    session = up()
    client(session, call(1))
    client(session, {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": request_id}})
    answer(session, 1, {})
    assert [message["id"] for message in told(session)] == [1]


def test_an_id_in_use_is_not_used_twice() -> None:
    session = up()
    client(session, call(1, text="a"))
    client(session, call(1, text="b"))
    client(session, call("1", text="c"))
    assert sent(session) == [call(1, text="a"), call("1", text="c")]


def test_subscriptions_are_said_again_and_their_answers_swallowed() -> None:
    def subscription(request_id: int, method: str, uri: str) -> dict[str, Any]:
        return {"jsonrpc": "2.0", "id": request_id, "method": f"resources/{method}", "params": {"uri": uri}}

    session = up()
    kept = subscription(1, "subscribe", "omnid://task/1")
    for message in (
        kept,
        subscription(2, "subscribe", "omnid://task/2"),
        subscription(3, "unsubscribe", "omnid://task/2"),
    ):
        client(session, message)
        answer(session, message["id"], {})
    session.lost(1.0)
    told(session)
    up(session)
    assert sent(session) == [kept]
    # It may have changed while nobody could tell.
    assert told(session) == [updated("omnid://task/1")]
    answer(session, 1, {})
    assert told(session) == []


def updated(uri: str, **more: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": "notifications/resources/updated", "params": {"uri": uri, **more}}


def test_a_subscription_is_acknowledged_once() -> None:
    listen = {"jsonrpc": "2.0", "id": 7, "method": "subscriptions/listen", "params": {}}
    meta = {"_meta": {"io.modelcontextprotocol/subscriptionId": 7}}
    ack = {
        "jsonrpc": "2.0",
        "method": "notifications/subscriptions/acknowledged",
        "params": {"notifications": {"resourceSubscriptions": ["omnid://task/1"]}, **meta},
    }
    stray = {**ack, "params": {**ack["params"], "_meta": {"io.modelcontextprotocol/subscriptionId": []}}}
    session = up()
    client(session, listen)
    for _ in range(2):
        session.from_daemon(wire.line(ack).strip(), 0.0)
        session.from_daemon(wire.line(stray).strip(), 0.0)
        assert told(session) == [ack, stray]
        session.lost(1.0)
        up(session)
        session.from_daemon(wire.line(ack).strip(), 0.0)
        assert told(session) == [updated("omnid://task/1", **meta)]
        # Another subscription of the same id is another one.
        answer(session, 7, {})
        told(session)
        client(session, listen)


def test_a_question_of_a_daemon_goes_with_it() -> None:
    question = {"jsonrpc": "2.0", "id": 1, "method": "elicitation/create", "params": {"message": "?"}}
    session = up()
    session.from_daemon(wire.line(question).strip(), 0.0)
    (asked,) = told(session)
    session.lost(1.0)
    (cancelled,) = told(session)
    assert (cancelled["method"], cancelled["params"]["requestId"]) == ("notifications/cancelled", asked["id"])
    up(session)
    answer_of_client = {"jsonrpc": "2.0", "id": asked["id"], "result": {"action": "accept"}}
    client(session, answer_of_client)
    assert sent(session) == [], "it was for the daemon that is gone"


def test_an_initialize_without_an_answer_is_sent_as_any_request() -> None:
    session = up()
    client(session, INITIALIZE)
    session.lost(1.0)
    up(session)
    assert sent(session) == [INITIALIZE]
    answer(session, 0, {"ok": 1})
    assert [message["result"] for message in told(session)] == [{"ok": 1}]


def test_nothing_is_sent_before_the_handshake_is_repeated() -> None:
    session = up()
    client(session, INITIALIZE)
    answer(session, 0, {})
    client(session, INITIALIZED)
    session.lost(1.0)
    client(session, call(1), 1.0)
    told(session)
    up(session)
    assert sent(session) == [INITIALIZE]
    client(session, call(2), 1.0)
    assert sent(session) == []
    answer(session, 0, {})
    assert sent(session) == [INITIALIZED, call(1), call(2)]
    assert told(session) == []


def test_a_line_that_the_daemon_would_not_take_is_refused_here() -> None:
    session = up(message_bytes_max=100)
    client(session, call(1, text="x" * 100))
    (message,) = told(session)
    assert (message["id"], message["error"]["data"]["code"]) == (1, "message_too_large")
    assert sent(session) == []


def long(**message: Any) -> wire.Glimpse:
    line = wire.line({"jsonrpc": "2.0", **message}).strip()
    return wire.Glimpse(line[: wire.HEAD_BYTES], line[-wire.TAIL_BYTES :])


LONG = {"a": "x" * 10_000}


def test_a_request_that_is_too_long_to_keep_is_refused_and_the_session_goes_on() -> None:
    session = up(message_bytes_max=100)
    session.from_client(long(id=1, method="tools/call", params=LONG), 0.0)
    session.from_client(long(method="notifications/x", params=LONG), 0.0)
    assert [(one["id"], one["error"]["data"]["code"]) for one in told(session)] == [
        (1, "message_too_large"),
        (None, "message_too_large"),
    ]
    client(session, call(1))
    session.from_client(long(id=1, method="tools/call", params=LONG), 0.0)
    assert (told(session), sent(session)) == ([], [call(1)])


@pytest.mark.parametrize("how", ["kept", "not kept", "no JSON"])
def test_an_answer_that_is_too_long_tells_whoever_asked(how: str) -> None:
    session = up(message_bytes_max=5000)
    session.from_daemon(wire.request(7, "elicitation/create", {}).strip(), 0.0)
    (asked,) = told(session)
    if how == "kept":
        client(session, {"jsonrpc": "2.0", "id": asked["id"], "result": LONG})
    elif how == "not kept":
        session.from_client(long(id=asked["id"], result=LONG), 0.0)
    else:
        session.from_client(f'{{"jsonrpc":"2.0","id":"{asked["id"]}","result":{{"a":1e999}}}}'.encode(), 0.0)
    (answered,) = sent(session)
    expected = "bad_request" if how == "no JSON" else "message_too_large"
    assert (answered["id"], answered["error"]["data"]["code"]) == (7, expected)
    assert told(session) == []


def test_an_answer_of_the_daemon_that_is_too_long_is_an_error() -> None:
    session = up()
    client(session, call(1))
    session.from_daemon(long(id=1, result=LONG), 0.0)
    session.from_daemon(long(id=2, result=LONG), 0.0)
    (message,) = told(session)
    assert (message["id"], message["error"]["data"]["code"]) == (1, "internal")


def test_a_request_that_brings_each_daemon_down_is_given_up() -> None:
    session = up()
    client(session, call(1))
    for _ in range(relay_session.SENDS_MAX):
        assert sent(session) == [call(1)]
        session.lost(1.0)
        up(session)
    (message,) = told(session)
    assert message["error"]["data"]["code"] == "daemon_lost"
    assert sent(session) == []


def listening(request_id: int) -> dict[str, Any]:
    params = {"notifications": {"taskIds": ["x"]}}
    return {"jsonrpc": "2.0", "id": request_id, "method": "subscriptions/listen", "params": params}


def acknowledged(request_id: int) -> bytes:
    params = {"notifications": {}, "_meta": {"io.modelcontextprotocol/subscriptionId": request_id}}
    return wire.line({"jsonrpc": "2.0", "method": "notifications/subscriptions/acknowledged", "params": params}).strip()


def test_a_subscription_that_each_daemon_takes_is_never_given_up() -> None:
    session = up()
    client(session, listening(1))
    for _ in range(2 * relay_session.SENDS_MAX):
        assert sent(session) == [listening(1)]
        session.from_daemon(acknowledged(1), 0.0)
        session.lost(1.0)
        up(session)
    assert {message.get("method") for message in told(session)} == {"notifications/subscriptions/acknowledged"}
    for _ in range(relay_session.SENDS_MAX):
        session.lost(1.0)
        up(session)
    assert told(session)[0]["error"]["data"]["code"] == "daemon_lost"


def test_a_long_wait_is_not_to_blame_for_daemons_that_lived_with_it() -> None:
    session = up()
    client(session, call(1))
    for number in range(2 * relay_session.SENDS_MAX):
        assert sent(session) == [call(1)]
        now_s = (number + 1) * relay_session.CALM_S
        session.lost(now_s)
        session.connected()
        sent(session)
        session.from_daemon(wire.line({"jsonrpc": "2.0", "id": "omnid-hello", "result": {}}).strip(), now_s)
    assert told(session) == []


def test_a_daemon_that_refuses_says_why() -> None:
    session = fresh(away_s=10.0)
    client(session, call(1))
    session.connected()
    session.from_daemon(wire.error_answer(b"null", Rejected("foreign_user", uid=7)).strip(), 1.0)
    assert session.phase == "away"
    assert session.deadline_s() == 10.0
    session.expire(10.0)
    (message,) = told(session)
    assert "user 7 was refused" in message["error"]["message"]


@pytest.mark.parametrize(
    "error",
    [
        Rejected("unknown_method", method="omnid/hello", version="0.0.1", hint=""),
        Rejected("bad_request", detail="Object contains unknown field `readonly`", where="the parameters"),
    ],
)
def test_a_daemon_of_another_version_is_named_at_once(error: Rejected) -> None:
    session = fresh()
    client(session, INITIALIZE)
    client(session, call(1))
    session.connected()
    session.from_daemon(wire.error_answer(b'"omnid-hello"', error).strip(), 1.0)
    assert (session.phase, session.open) == ("away", {})
    for message in told(session):
        assert message["error"]["data"]["code"] == "daemon_differs"
        assert error.what in message["error"]["message"]
    sent(session)
    client(session, call(2), 2.0)
    up(session)
    assert sent(session) == [call(2)], "a daemon that was restarted is taken"


def test_a_request_is_given_its_time_from_the_loss_on() -> None:
    session = up(fresh(away_s=10.0))
    client(session, call(1), 5.0)
    assert session.deadline_s() is None
    session.lost(100.0)
    assert session.deadline_s() == 110.0
    session.expire(109.0)
    assert told(session) == []
    session.expire(110.0)
    assert told(session)[0]["error"]["data"]["code"] == "daemon_lost"


def test_it_takes_so_many_requests_at_once() -> None:
    session = fresh()
    for number in range(relay_session.OPEN_MAX):
        assert not session.full
        client(session, call(number))
    assert session.full
    up(session)
    answer(session, 0, {})
    assert len(session.open) == relay_session.OPEN_MAX - 1


messages = st.one_of(
    st.builds(call, st.integers(0, 3), text=st.just("x")),
    st.builds(
        lambda request_id: {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": request_id}},
        st.integers(0, 3),
    ),
)
steps = st.one_of(messages, st.sampled_from(["lost", "up"]), st.integers(0, 3))


@given(st.lists(steps, max_size=60))
def test_each_request_is_answered_at_most_once_and_none_is_forgotten(trace: list[Any]) -> None:
    """Requests, cancellations, losses and answers (also unasked ones) in any order."""
    session = fresh()
    waiting: set[int] = set()
    for step in trace:
        match step:
            case {"method": "tools/call"}:
                client(session, step)
                waiting.add(step["id"])
            case {"params": {"requestId": request_id}}:
                client(session, step)
                waiting.discard(request_id)
            case "lost":
                session.lost(0.0)
            case "up" if session.phase == "away":
                up(session)
            case int() if session.phase == "up":
                expected = [step] if step in waiting else []
                answer(session, step, {})
                assert [message["id"] for message in told(session)] == expected
                waiting.discard(step)
            case _:
                pass
        assert set(session.open) == waiting
    sent(session)
    session.lost(0.0)
    assert {message["id"] for message in sent(up(session))} == waiting


@pytest.mark.parametrize(
    ("argv", "asked"),
    [
        ([], {}),
        (["--readonly", "--origin", "night"], {"readonly": True, "origin": "night"}),
        (["--expose=status,task_get", "--origin=night"], {"expose": ["status", "task_get"], "origin": "night"}),
        (["--origin", "caf\udce9", "--expose=\udce9"], {"origin": "caf\ufffd", "expose": ["\ufffd"]}),
        (["--origin"], None),
        (["--origin="], None),
        (["--readonly=1"], None),
        (["x"], None),
    ],
)
def test_the_arguments_say_who_the_client_is_and_what_it_gets(argv: list[str], asked: dict[str, object] | None) -> None:
    assert _asked(argv) == asked


def test_the_origin_may_be_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "shop" / "src"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    assert _asked(["--origin", "@repository"]) == {}
    # In a worktree of git it is a file.
    (tmp_path / "shop" / ".git").write_text("gitdir: /elsewhere")
    assert _asked(["--origin", "@repository"]) == {"origin": "shop"}
    (tmp_path / "shop").rename(tmp_path / "caf\udce9")
    assert _asked(["--origin", "@repository"]) == {"origin": "caf\ufffd"}


def test_what_was_asked_for_is_in_the_hello() -> None:
    session = Session("s", "/x", 60, lambda _: None, 0, asked={"origin": "night", "readonly": True})
    session.connected()
    (hello,) = sent(session)
    assert (hello["params"]["origin"], hello["params"]["readonly"]) == ("night", True)
