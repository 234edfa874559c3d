"""What a failed call means: statuses, codes, times to wait, and what was seen of the network."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnid.executor.model_errors import LIMIT_S_MAX, RULES, Failure, Signs, What, classify
from omnid.worker.gateway_signs import trouble_of

NOW_MS = 1_900_000_000_000


def status(number: int | None, body: object = "", **headers: str) -> Failure:
    text = body if isinstance(body, str) else json.dumps(body)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return classify(Signs(what="status", status=number, body=text, headers=named), NOW_MS)


def error(**fields: object) -> dict[str, object]:
    return {"error": {"message": "m", **fields}}


@pytest.mark.parametrize(
    ("number", "body", "kind"),
    [
        (400, "", "request"),
        (400, error(code="insufficient_quota"), "credit"),
        (401, "", "key"),
        (402, "", "credit"),
        (403, "", "key"),
        (403, error(metadata={"reasons": ["violence"]}), "request"),
        (404, "", "model"),
        (408, "", "provider"),
        (413, "", "request"),
        (422, "", "request"),
        (429, "", "limited"),
        (429, error(code="insufficient_quota", type="insufficient_quota"), "credit"),
        (429, error(type="invalid_request_error"), "limited"),
        (500, "", "provider"),
        (500, "AnthropicError - {'type': 'overloaded_error', 'message': 'Overloaded'}", "overloaded"),
        (502, "<html>", "provider"),
        (503, "", "overloaded"),
        (529, "", "overloaded"),
        (599, "", "provider"),
        (None, {"type": "error", "error": {"type": "overloaded_error"}}, "overloaded"),
        (None, error(code=429), "limited"),
        (None, {"error": "text"}, "provider"),
    ],
)
def test_the_status_and_the_code_say_what_it_is(number: int | None, body: object, kind: str) -> None:
    assert status(number, body).kind == kind
    assert kind in RULES


@pytest.mark.parametrize(
    ("failure", "wait_s"),
    [
        (status(429), 60),
        (status(429, retry_after="7"), 7),
        (status(429, retry_after="1.5"), 1.5),
        (status(429, retry_after="0"), 1),
        (status(429, retry_after="soon"), 60),
        (status(429, retry_after="Sun, 17 Mar 2030 17:46:50 GMT"), 10),
        (status(429, retry_after="Sun, 17 Mar 2019 17:46:50 GMT"), 1),
        (status(429, retry_after_ms="2500", retry_after="9"), 2.5),
        (status(429, error(reset_seconds=33)), 33),
        (status(429, x_ratelimit_reset="1900000020"), 20),
        (status(429, x_ratelimit_reset="1900000021000"), 21),
        (status(429, x_ratelimit_reset_requests="1m2s", x_ratelimit_reset_tokens="300ms"), 1),
        (status(429, x_ratelimit_reset_requests="1h0m5.5s"), 3605.5),
        (
            status(
                429,
                x_ratelimit_reset_requests="90s",
                x_ratelimit_remaining_requests="0",
                x_ratelimit_reset_tokens="2s",
                x_ratelimit_remaining_tokens="5",
            ),
            90,
        ),
        (status(429, anthropic_ratelimit_requests_reset="2030-03-17T17:47:00Z"), 20),
        (status(429, error(metadata={"headers": {"X-RateLimit-Reset": "1900000022000"}})), 22),
        (status(429, retry_after="99999999"), LIMIT_S_MAX),
        (status(402), 3600),
        (status(402, retry_after="4"), 4),
        (status(503), 15),
        (status(529, retry_after="3"), 3),
    ],
)
def test_the_time_to_wait_is_read_wherever_it_stands(failure: Failure, wait_s: float) -> None:
    assert failure.until_ms == NOW_MS + 1000 * wait_s


def test_a_limit_of_openai_is_none_of_its_requests_only() -> None:
    assert status(401).until_ms is None
    assert status(500, retry_after="5").until_ms is None


@pytest.mark.parametrize(
    ("what", "waited_s", "kind"),
    [
        ("silence", 9.9, "silent"),
        ("silence", 10.0, "cloud"),
        ("connect_timeout", 3.0, "silent"),
        ("connect_timeout", 10.0, "cloud"),
        ("dns", 0.0, "cloud"),
        ("refused", 0.0, "cloud"),
        ("unreachable", 0.0, "cloud"),
        ("tls", 0.0, "cloud"),
        ("cut", 99.0, "cut"),
        ("deadline", 9.0, "deadline"),
        ("deadline", 10.0, "cloud"),
        ("gateway", 99.0, "gateway"),
    ],
)
def test_only_what_the_network_did_counts_against_the_cloud(what: What, waited_s: float, kind: str) -> None:
    assert classify(Signs(what=what, waited_s=waited_s), NOW_MS).kind == kind


@pytest.mark.parametrize(
    ("signs", "may_cost"),
    [
        (Signs(what="status", status=500), False),
        (Signs(what="status", status=529, began=True), True),
        (Signs(what="cut"), True),
        (Signs(what="cut", sent=False), False),
        (Signs(what="redirect", status=302), False),
        (Signs(what="empty"), True),
        (Signs(what="gateway"), True),
    ],
)
def test_what_may_have_been_billed_is_told(signs: Signs, may_cost: bool) -> None:
    assert classify(signs, NOW_MS).may_cost is may_cost


def test_the_key_is_never_repeated() -> None:
    signs = Signs(what="status", status=401, body=json.dumps(error(message="wrong key: sk-planted")))
    failure = classify(signs, NOW_MS, "sk-planted")
    assert "sk-planted" not in repr(failure)
    assert "[key]" in failure.detail


@given(
    st.text()
    | st.recursive(
        st.none() | st.text() | st.integers(),
        lambda inner: st.dictionaries(
            st.sampled_from(["error", "code", "type", "message", "metadata", "headers", "reset_seconds"]), inner
        ),
    ),
    st.dictionaries(st.sampled_from(["retry-after", "x-ratelimit-reset", "x-ratelimit-remaining"]), st.text()),
    st.integers(400, 599),
)
def test_whatever_is_said_gives_a_failure_with_a_time_in_bounds(
    body: object, headers: dict[str, str], number: int
) -> None:
    text = body if isinstance(body, str) else json.dumps(body)
    failure = classify(Signs(what="status", status=number, body=text, headers=headers), NOW_MS)
    assert failure.kind in RULES
    assert (failure.until_ms is not None) == (failure.kind in {"limited", "credit", "overloaded"})
    if failure.until_ms is not None:
        assert NOW_MS + 1000 <= failure.until_ms <= NOW_MS + 1000 * LIMIT_S_MAX


def raised(*links: BaseException) -> BaseException:
    for error, cause in pairwise(links):
        error.__cause__ = cause
    return links[0]


class ConnectError(Exception):
    pass


class ReadError(Exception):
    pass


@pytest.mark.parametrize(
    ("trouble", "what", "sent"),
    [
        (raised(ConnectError(), OSError("all failed"), ConnectionRefusedError(111, "refused")), "refused", False),
        (raised(ConnectError(), OSError(101, "unreachable")), "unreachable", False),
        (raised(ReadError(), OSError(113, "no route")), "unreachable", True),
        (raised(ReadError(), OSError(110, "timed out")), "unreachable", True),
        (raised(ConnectError(), ExceptionGroup("", [ConnectionRefusedError(111, "refused")])), "refused", False),
        (raised(ReadError(), ConnectionResetError(104, "reset")), "cut", True),
        (ValueError(), "unknown", True),
    ],
)
def test_the_trouble_behind_an_error_is_found(trouble: BaseException, what: str, sent: bool) -> None:
    assert trouble_of(trouble) == (what, sent)
