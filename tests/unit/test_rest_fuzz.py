"""Whatever comes to REST, the answer is its envelope with one of its statuses, or text."""

import json
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import anyio
from anyio.from_thread import start_blocking_portal
from hypothesis import example, given, settings
from hypothesis import strategies as st

from omnid.api.rest import ROUTES, Rest
from tests.fakes.calls import Calls
from tests.fakes.clock import FakeClock
from tests.fakes.mcp_peer import Log
from tests.fakes.world import World

STATUSES = {200, 201, 400, 403, 404, 405, 409, 413, 422, 429, 503}
TEXT = st.text(max_size=12) | st.sampled_from(
    ["t1", "t2", "agent/t1", "0", "-1", "9" * 25, "true", "null", "\0", "t1/log"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda part: st.lists(part, max_size=3) | st.dictionaries(TEXT, part, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(sorted({field.name for route in ROUTES for field in route.given} - {"wait_s"})) | TEXT
QUERY = st.lists(st.tuples(NAMES, TEXT), max_size=3).map(urlencode) | st.text(st.characters(codec="ascii"), max_size=20)
BODY = st.dictionaries(NAMES, JSON, max_size=3).map(lambda body: json.dumps(body).encode()) | st.binary(max_size=20)
PATHS = st.builds(
    lambda route, task: (route.verb, route.path.replace("{task}", task)), st.sampled_from(ROUTES), TEXT
) | st.tuples(st.sampled_from(["GET", "POST", "PUT", "HEAD"]), TEXT.map(lambda text: f"/{text}"))
HEADERS = st.lists(
    st.tuples(st.sampled_from([b"idempotency-key", b"accept"]), TEXT.map(str.encode) | st.just(b"text/plain")),
    max_size=2,
)


async def asked(rest: Rest, scope: dict[str, Any], body: bytes) -> tuple[int, bytes]:
    """Gives the answer to a request whose client waits for it."""
    coming: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        if not coming:
            await anyio.sleep_forever()
        return coming.pop()

    async def send(message: Any) -> None:
        sent.append(message)

    with anyio.fail_after(10):
        await rest(scope, receive, send)
    assert sent[0]["type"] == "http.response.start"
    assert not sent[-1].get("more_body", False)
    return sent[0]["status"], b"".join(message["body"] for message in sent[1:])


def test_every_answer_has_the_envelope_and_a_status_of_the_page(tmp_path: Path) -> None:
    with start_blocking_portal("asyncio") as portal:
        world = portal.call(lambda: World(tmp_path, FakeClock()))
        calls = portal.call(lambda: Calls(world))
        portal.call(partial(world.add, "x"))
        seen: set[int] = set()
        rest = Rest(calls.api, Log(), lambda _: None)

        @settings(max_examples=400, deadline=None)
        @given(PATHS, QUERY, HEADERS, BODY)
        @example(("GET", "/tasks/t1"), "wait_s=1e400", [], b"")
        @example(("GET", "/offline/operations"), f"since={'9' * 5000}", [], b"")
        @example(("POST", "/tasks"), "", [(b"idempotency-key", b"\xff")], b'{"argv": ["x"]}')
        def answers(address: tuple[str, str], query: str, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
            verb, path = address
            scope = {
                "type": "http",
                "method": verb,
                "path": f"/api/v1{path}",
                "query_string": query.encode(),
                "headers": headers,
            }
            status, text = portal.call(asked, rest, scope, body)
            assert status in STATUSES, text
            seen.add(status)
            if text[:1] == b"{" and path != "/openapi.json":
                envelope = json.loads(text)
                assert set(envelope) == {"status", "data", "message"}
                assert envelope["status"] == ("ok" if status < 300 else "error")
                assert envelope["data"].get("code") != "internal" or status < 300

        answers()
        assert {200, 201, 400, 404} <= seen, "it gets as far as the operations"
        portal.call(world.close)
