"""Every way in which a provider misbehaves, over both wires, streamed or not, through LiteLLM and past it alike."""

import socket
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple
from unittest.mock import ANY

import anyio
import pytest

from omnid.executor.direct import LISTING_BYTES_MAX, Direct
from omnid.executor.model_errors import Failure, Kind, Usage
from omnid.executor.model_wire import Answer
from omnid.settings import Models
from tests.contract import model_ways
from tests.contract.model_ways import KEY, ask, channel
from tests.fakes.certificate import untrusted
from tests.fakes.cloud import INPUT_TOKENS, LIMIT_S, MODES, NOW_S, OUTPUT_TOKENS, PIECES, TEXT, cloud

WIRES = ("openai", "anthropic")
PATIENT_S, SHORT_S = 60.0, 0.6
LIFTS_MS = (NOW_S + LIMIT_S) * 1000


class Case(NamedTuple):
    """What is expected of a mode of the fake, or of an address where nobody is."""

    kind: Kind
    status: int | None = None
    may_cost: bool | None = False
    """None: only where it was streamed, because what had come may have been counted."""
    until_ms: int | None = None
    deadline_s: float = PATIENT_S
    silence_s: float = PATIENT_S
    says: str = ""


CASES: dict[str, Case] = {
    "refuses": Case("cloud"),
    "no_name": Case("cloud"),
    "no_tls": Case("cloud"),
    "untrusted": Case("cloud"),
    "reset": Case("cut", may_cost=True),
    "reset_inside": Case("cut", may_cost=True),
    "hang_before": Case("silent", may_cost=True, silence_s=SHORT_S),
    "hang_inside": Case("silent", may_cost=True, silence_s=SHORT_S),
    "drip": Case("deadline", may_cost=True, deadline_s=1.5),
    "broken_stream": Case("cut", may_cost=True),
    "cut_short": Case("cut", may_cost=True),
    "error_in_200": Case("overloaded", ANY, None, (NOW_S + 15) * 1000, says="Overloaded"),
    "quota_in_200": Case("credit", ANY, None, (NOW_S + 3600) * 1000, says="You have nothing left"),
    "empty_choices": Case("provider", may_cost=True),
    "wrong_json": Case("provider", may_cost=True),
    "huge": Case("provider", may_cost=True),
    "limit_seconds": Case("limited", 429, until_ms=LIFTS_MS),
    "limit_date": Case("limited", 429, until_ms=LIFTS_MS),
    "limit_reset": Case("limited", 429, until_ms=LIFTS_MS),
    "limit_cooldown": Case("limited", 429, until_ms=LIFTS_MS),
    "credit": Case("credit", 402, until_ms=(NOW_S + 3600) * 1000),
    "key_refused": Case("key", 401),
    "echoes_the_key": Case("key", 401),
    "fault": Case("provider", 500),
    "bad_gateway": Case("provider", 502),
    "unavailable": Case("overloaded", 503, until_ms=(NOW_S + 15) * 1000),
    "sign_in": Case("provider", may_cost=True),
    "overloaded": Case("overloaded", 529, until_ms=(NOW_S + 15) * 1000),
    "bad_request": Case("request", 400),
    "unknown_model": Case("model", 404),
    "redirect": Case("provider", 307),
}


@pytest.fixture(scope="module")
def gateway_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with model_ways.gateway_process(tmp_path_factory.mktemp("gw")) as path:
        yield path


@pytest.fixture(params=["direct", "gateway"])
def way_name(request: pytest.FixtureRequest) -> str:
    return request.param


def models(case: Case) -> Models:
    return Models(connect_timeout_s=PATIENT_S, silence_timeout_s=case.silence_s, answer_bytes_max=100_000)


def test_the_table_names_every_mode_of_the_fake() -> None:
    assert MODES.keys() - CASES.keys() == {"ok", "slow", "late", "by_key", "until_closed"}


@pytest.mark.parametrize("mode", CASES)
async def test_each_misbehaviour_is_handled_as_written(
    mode: str, way_name: str, gateway_path: str, tmp_path: Path
) -> None:
    case = CASES[mode]
    found: dict[tuple[str, bool], Answer | Failure] = {}
    with socket.create_server(("127.0.0.1", 0)) as unused:
        closed_port = unused.getsockname()[1]
    tls = untrusted(tmp_path) if mode == "untrusted" else None
    async with cloud(tls=tls) as fake, model_ways.way(way_name, models(case), gateway_path) as way:
        away = {
            "refuses": f"http://127.0.0.1:{closed_port}",
            "no_name": "http://nowhere.invalid",
            "no_tls": f"https://127.0.0.1:{fake.port}",
            "untrusted": f"https://localhost:{fake.port}",
        }

        async def one(wire: str, stream: bool) -> None:
            base_url = away.get(mode) or fake.base_url(mode, wire)
            found[wire, stream] = await way.call(channel(base_url, wire), KEY, ask(stream=stream), case.deadline_s)

        async with anyio.create_task_group() as group:
            for wire, stream in product(WIRES, (False, True)):
                group.start_soon(one, wire, stream)
        assert len(fake.seen) == (0 if mode in away else 4), "nothing is tried twice, and nothing is sent elsewhere"
    for place, failure in found.items():
        assert isinstance(failure, Failure), place
        seen = (failure.kind, failure.status, failure.may_cost, failure.until_ms)
        may_cost = place[1] if case.may_cost is None else case.may_cost
        assert seen == (case.kind, case.status, may_cost, case.until_ms), (place, failure)
        assert failure.detail
        assert case.says in failure.detail
        assert KEY not in repr(failure)
        assert "Traceback" not in failure.detail


async def test_a_good_answer(way_name: str, gateway_path: str) -> None:
    async with cloud() as fake, model_ways.way(way_name, Models(), gateway_path) as way:
        for wire, stream in product(WIRES, (False, True)):
            pieces: list[str] = []
            place = channel(fake.base_url("ok", wire), wire)
            answer = await way.call(place, KEY, ask(stream=stream), PATIENT_S, pieces.append)
            assert isinstance(answer, Answer), answer
            assert (answer.text, "".join(pieces)) == (TEXT, TEXT), (wire, stream)
            if way_name == "direct":
                assert tuple(pieces) == (PIECES if stream else (TEXT,)), (wire, stream)
            assert answer.finish in {"stop", "end_turn"}
            assert answer.usage == Usage(INPUT_TOKENS, OUTPUT_TOKENS, 123 if wire == "openai" else None)
            assert answer.first_text_s is not None
            seen = fake.seen[-1]
            assert seen.body["model"] == "fake-1"
            assert seen.body["max_tokens"] == 50
            assert bool(seen.body.get("stream")) is stream
            if wire == "openai":
                assert seen.headers["authorization"] == f"Bearer {KEY}"
                assert seen.body["usage"] == {"include": True}
                assert [message["role"] for message in seen.body["messages"]] == ["system", "user"]
            else:
                assert seen.headers["x-api-key"] == KEY
                assert "Be short." in str(seen.body["system"])
                assert [message["role"] for message in seen.body["messages"]] == ["user"]


async def test_what_has_come_of_a_stream_is_passed_on_before_its_end(way_name: str, gateway_path: str) -> None:
    async with cloud() as fake, model_ways.way(way_name, Models(), gateway_path) as way:
        for wire in WIRES:
            pieces: list[str] = []
            heard = anyio.Event()

            def hear(text: str, pieces: list[str] = pieces, heard: anyio.Event = heard) -> None:
                pieces.append(text)
                heard.set()

            place = channel(fake.base_url("hang_inside", wire), wire)
            async with anyio.create_task_group() as group:
                group.start_soon(way.call, place, KEY, ask(stream=True), PATIENT_S, hear)
                with anyio.fail_after(PATIENT_S):
                    await heard.wait()
                group.cancel_scope.cancel()
            assert TEXT.startswith("".join(pieces))


async def test_a_cancelled_call_closes_its_connection(way_name: str, gateway_path: str) -> None:
    async with cloud() as fake, model_ways.way(way_name, Models(), gateway_path) as way:
        for stream in (False, True):
            began = anyio.Event()
            fake.on_request = began.set
            place = channel(fake.base_url("until_closed"), "openai")
            async with anyio.create_task_group() as group:
                group.start_soon(way.call, place, KEY, ask(stream=stream), PATIENT_S)
                with anyio.fail_after(PATIENT_S):
                    await began.wait()
                group.cancel_scope.cancel()
            with anyio.fail_after(PATIENT_S):
                await fake.closed.wait()
            fake.closed = anyio.Event()


@pytest.mark.parametrize(("mode", "kind"), [("ok", None), ("key_refused", "key"), ("hang_before", "silent")])
async def test_a_probe_spends_nothing(mode: str, kind: Kind | None) -> None:
    async with cloud() as fake, model_ways.way("direct", Models(), "") as way:
        assert isinstance(way, Direct)
        for wire in WIRES:
            found = await way.probe(
                channel(fake.base_url(mode, wire), wire), KEY, PATIENT_S if kind != "silent" else 0.3
            )
            assert (None if found is None else found.kind) == kind
            assert (fake.seen, fake.looked[-1].body) == ([], {})


@pytest.mark.parametrize(
    ("mode", "kind"), [("ok", None), ("key_refused", "key"), ("sign_in", "provider"), ("hang_before", "silent")]
)
async def test_a_list_of_the_models_spends_nothing(mode: str, kind: Kind | None) -> None:
    async with cloud() as fake, model_ways.way("direct", Models(), "") as way:
        assert isinstance(way, Direct)
        for wire in WIRES:
            place = channel(fake.base_url(mode, wire), wire)
            found = await way.listing(place, KEY, PATIENT_S if kind != "silent" else 0.3)
            assert found == {"fake-1"} if kind is None else isinstance(found, Failure) and found.kind == kind
            assert (fake.seen, fake.looked[-1].body) == ([], {})
            assert fake.looked[-1].path.partition("?")[0].endswith("/v1/models")


@pytest.mark.parametrize(
    "listing",
    [
        {},
        {"data": {}},
        {"data": ["fake-1"]},
        {"data": [{"id": 3}]},
        {"data": [{"id": "fake-1"}], "has_more": True},
        {"data": [{"id": "x" * 1000}] * (LISTING_BYTES_MAX // 1000)},
    ],
    ids=["empty", "no_list", "no_objects", "no_text", "a_part", "too_long"],
)
async def test_a_list_that_is_none_or_has_no_end_is_not_believed(listing: dict[str, object]) -> None:
    async with cloud() as fake, model_ways.way("direct", Models(), "") as way:
        assert isinstance(way, Direct)
        fake.listing = listing
        found = await way.listing(channel(fake.base_url("ok"), "openai"), KEY, PATIENT_S)
        assert isinstance(found, Failure)
        assert found.kind == "provider"
