"""REST: a daemon in this process, spoken to as curl and programs do."""

import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from jsonschema import Draft202012Validator

from omnid.daemon import Daemon
from omnid.errors import Fatal, Retryable
from tests.fakes.home import Home
from tests.fakes.web import HELLO, TOKEN, bare, connected, listen, until, url

pytestmark = [pytest.mark.parametrize("anyio_backend", ["asyncio"]), pytest.mark.anyio]
AGENTS = '[agents]\nallow = ["command"]\n'
CI_TOKEN, OTHER_TOKEN = "the-token-of-the-ci", "the-token-of-another"
ORIGINS = f"""
{AGENTS}
[[origin]]
name = "ci"
token = "env:CI"
executors = ["command"]
labels = ["public"]
complete = true

[[origin]]
name = "other"
token = "env:OTHER"
"""


class Rest:
    """A client of REST."""

    def __init__(self, daemon: Daemon, http: httpx2.AsyncClient) -> None:
        self.daemon = daemon
        self.http = http
        self.document: dict[str, Any] | None = None

    async def ask(self, verb: str, path: str, body: Any = None, **headers: str) -> httpx2.Response:
        given = {"json": body} if body is not None else {}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.http.request(verb, url(self.daemon, f"/api/v1{path}"), headers=named, **given)

    async def data(self, verb: str, path: str, body: Any = None, **headers: str) -> Any:
        """Asks for what must succeed, and holds the answer against the document."""
        answer = await self.ask(verb, path, body, **headers)
        assert answer.status_code in (200, 201), answer.text
        envelope = answer.json()
        assert set(envelope) == {"status", "data", "message"}
        assert envelope["status"] == "ok"
        await self.fits(verb, path, answer, **headers)
        return envelope["data"]

    async def refused(self, verb: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
        """Asks for what must be refused, with what to do about it."""
        answer = await self.ask(verb, path, body, **headers)
        envelope = answer.json()
        assert set(envelope) == {"status", "data", "message"}
        assert envelope["status"] == "error"
        assert set(envelope["data"]) == {"code", "what", "why", "do"}
        assert envelope["message"] == " ".join(envelope["data"][name] for name in ("what", "why", "do"))
        return answer.status_code, envelope["data"]["code"]

    async def fits(self, verb: str, path: str, answer: httpx2.Response, **headers: str) -> None:
        """Fails where an answer isn't what the document says."""
        if self.document is None:
            self.document = (await self.ask("GET", "/openapi.json", **headers)).json()
        for template, verbs in self.document["paths"].items():
            if re.fullmatch(template.replace("{task}", r"[^/]+(/t\d+)?"), path.partition("?")[0]):
                said = verbs[verb.lower()]["responses"][str(answer.status_code)]
                schema = said["content"]["application/json"]["schema"]
                Draft202012Validator({**schema, "components": self.document["components"]}).validate(answer.json())
                return
        raise AssertionError(f"{path} is not in the document")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    home.environ |= {"WORD": TOKEN, "CI": CI_TOKEN, "OTHER": OTHER_TOKEN}
    return home


@asynccontextmanager
async def served(home: Home, text: str = AGENTS, bearer: str = "", **settings: Any) -> AsyncIterator[Rest]:
    listen(home, **settings)
    home.file.write_text(home.file.read_text() + text)
    headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
    async with bare(home, **headers) as (daemon, client):
        yield Rest(daemon, client)


async def test_a_task_goes_its_way(home: Home) -> None:
    async with served(home) as rest:
        answer = await rest.ask("POST", "/tasks", {"argv": ["echo", "hello"], "cwd": "/", "labels": ["a", "b"]})
        assert answer.status_code == 201
        made = answer.json()["data"]
        assert made["name"] == "agent/t1"
        assert answer.headers["location"] == f"/api/v1/tasks/{made['id']}"
        assert answer.headers["cache-control"] == "no-store"
        got = await rest.data("GET", f"/tasks/{made['id']}?wait_s=20")
        assert (got["task"]["state"], got["timed_out"]) == ("completed", False)
        assert got["attempts"][0]["output"] == "hello\n"
        assert "work" not in got, "agents see the same over REST and MCP"
        for name in ("agent/t1", "t1", "agent%2Ft1", made["id"].upper()):
            assert (await rest.data("GET", f"/tasks/{name}?output=false"))["task"]["id"] == made["id"]
        assert (await rest.data("GET", "/tasks/agent/t1/log"))["text"] == "hello\n"
        part = await rest.data("GET", f"/tasks/{made['id']}/log?limit_bytes=2&offset_bytes=1")
        assert (part["text"], part["next_offset_bytes"], part["ended"]) == ("el", 3, False)
        page = await rest.data("GET", "/tasks?states=completed&states=failed&labels=a&labels=b&limit=1")
        assert [one["id"] for one in page["tasks"]] == [made["id"]]
        assert (await rest.data("GET", "/tasks?states=failed"))["tasks"] == []


async def test_tasks_are_cancelled_and_run_again(home: Home) -> None:
    async with served(home) as rest:
        id = (await rest.data("POST", "/tasks", {"argv": ["true"], "cwd": "/", "not_before_ms": 1 << 45}))["id"]
        assert (await rest.data("POST", f"/tasks/{id}/cancel"))["task"]["state"] == "cancelled"
        answer = await rest.ask("POST", f"/tasks/{id}/cancel", {})
        assert answer.status_code == 409
        assert (await rest.data("POST", f"/tasks/{id}/retry"))["task"]["state"] == "waiting"
        assert await rest.refused("POST", f"/tasks/{id}/complete") == (403, "not_allowed")
        status = await rest.data("GET", "/status")
        assert status["tasks"] == {"waiting": 1}
        assert "pid" not in status


async def test_what_is_offline_and_what_was_done(home: Home) -> None:
    async with served(home, ORIGINS, CI_TOKEN) as rest:
        assert (await rest.data("GET", "/offline/status"))["mode"] == "normal"
        await rest.data("POST", "/tasks", {"argv": ["true"], "cwd": "/"})
        await rest.ask("POST", "/tasks", {"argv": ["true"], "cwd": "/"}, Authorization=f"Bearer {OTHER_TOKEN}")
        await rest.data("GET", "/tasks/t1?wait_s=20")
        page = await rest.data("GET", "/offline/operations?limit=2")
        found = page["operations"]
        while page.get("next") is not None:
            page = await rest.data("GET", f"/offline/operations?since={page['next']}&limit=2")
            found += page["operations"]
        assert found[0]["fields"]["origin"] == "ci"
        assert {one["collection"] for one in found} == {"task", "attempt"}
        tasks = {one["id"] for one in found if one["collection"] == "task"}
        assert len(tasks) == 1, "what others did is not shown"


async def test_what_ended_while_it_was_away_waits_for_an_origin(home: Home) -> None:
    async with served(home, ORIGINS, CI_TOKEN) as rest:
        for _ in range(3):
            made = await rest.data("POST", "/tasks", {"argv": ["true"], "cwd": "/"})
            await rest.data("GET", f"/tasks/{made['id']}?wait_s=20")
        assert (await rest.data("GET", "/status"))["inbox"].startswith("3 tasks in your inbox: t1 ok, t2 ok, t3 ok.")
        page = await rest.data("GET", "/tasks?inbox=true&limit=2")
        assert [one["name"] for one in page["tasks"]] == ["ci/t1", "ci/t2"]
        again = await rest.data("GET", "/tasks?inbox=true&limit=2")
        assert again == page, "nothing is gone by being read"
        rest_of_it = await rest.data("GET", f"/tasks?inbox=true&cursor={page['next']}")
        assert [one["name"] for one in rest_of_it["tasks"]] == ["ci/t3"]
        other = {"Authorization": f"Bearer {OTHER_TOKEN}"}
        assert (await rest.data("GET", "/tasks?inbox=true", **other))["tasks"] == []


@pytest.mark.parametrize("quote", ["", '"'])
async def test_the_idempotency_key_is_the_key(home: Home, quote: str) -> None:
    async with served(home) as rest:
        body = {"argv": ["true"], "cwd": "/", "not_before_ms": 1 << 45}
        key = f"{quote}k 1{quote}"
        first = await rest.ask("POST", "/tasks", body, Idempotency_Key=key)
        again = await rest.ask("POST", "/tasks", {**body, "key": "k 1"}, Idempotency_Key=key)
        assert (first.status_code, again.status_code) == (201, 200)
        assert again.json()["data"]["id"] == first.json()["data"]["id"]
        assert again.json()["data"]["created"] is False
        assert "location" not in again.headers
        other = {**body, "argv": ["false"]}
        assert await rest.refused("POST", "/tasks", other, Idempotency_Key=key) == (409, "key_reused")
        assert await rest.refused("POST", "/tasks", {**body, "key": "x"}, Idempotency_Key=key) == (400, "bad_request")
        for wrong in ("", "x" * 201):
            assert await rest.refused("POST", "/tasks", body, Idempotency_Key=wrong) == (400, "bad_request")
        # The answer to any other change is kept, and given again.
        done = await rest.ask("POST", "/tasks/t1/cancel", Idempotency_Key="c1")
        assert (await rest.ask("POST", "/tasks/t1/cancel", Idempotency_Key="c1")).content == done.content
        assert await rest.refused("POST", "/tasks/t1/retry", Idempotency_Key="c1") == (409, "busy_key")
        assert await rest.refused("POST", "/tasks/t1/cancel", Idempotency_Key="c2") == (409, "not_in_state")


WRONG: list[tuple[str, str, Any, tuple[int, str]]] = [
    ("GET", "/nothing", None, (404, "http_refused")),
    ("DELETE", "/tasks", None, (405, "http_refused")),
    ("PUT", "/tasks/t1/cancel", None, (405, "http_refused")),
    ("POST", "/openapi.json", None, (405, "http_refused")),
    ("GET", "/tasks/t999", None, (404, "unknown_task")),
    ("GET", "/tasks/nonsense", None, (404, "unknown_task")),
    ("GET", "/tasks/t1/log?attempt=9", None, (404, "unknown_attempt")),
    ("GET", "/tasks/t999/log", None, (404, "unknown_task")),
    ("POST", "/tasks/t999/cancel", None, (404, "unknown_task")),
    ("POST", "/tasks/user/t1/cancel", None, (403, "other_origin")),
    ("POST", "/tasks/t1/complete", None, (403, "not_allowed")),
    ("POST", "/tasks/t1/retry", None, (409, "not_in_state")),
    ("GET", "/tasks?states=nowhere", None, (400, "bad_request")),
    ("GET", "/tasks?cursor=x", None, (400, "bad_cursor")),
    ("GET", "/tasks?limit=0", None, (400, "bad_request")),
    ("GET", "/tasks?limit=1&limit=2", None, (400, "bad_request")),
    ("GET", "/tasks?what=1", None, (400, "bad_request")),
    ("GET", "/tasks?text=%ff", None, (400, "bad_request")),
    ("GET", "/tasks?text=%00", None, (400, "bad_request")),
    ("GET", "/tasks/t1?task=t2", None, (400, "bad_request")),
    ("GET", "/tasks/t1?wait_s=51", None, (400, "bad_request")),
    ("POST", "/tasks", {"argv": "true"}, (400, "bad_request")),
    ("POST", "/tasks", {"argv": ["true"], "origin": "user"}, (400, "bad_request")),
    ("POST", "/tasks", {"argv": ["a\0b"]}, (400, "bad_request")),
    ("POST", "/tasks", [], (400, "bad_request")),
    ("POST", "/tasks/t1/cancel", {"action": "delete"}, (400, "bad_request")),
    ("POST", "/tasks", {}, (422, "nothing_to_do")),
    ("POST", "/tasks", {"argv": ["x"], "executor": "nobody"}, (422, "unknown_executor")),
    ("POST", "/tasks", {"argv": ["x"], "deadline_ms": 1, "cwd": "/"}, (422, "deadline_passed")),
    ("POST", "/tasks", {"argv": ["x" * 2000]}, (413, "input_too_large")),
    ("POST", "/tasks", {"argv": ["x" * 5000]}, (413, "body_too_large")),
]


async def test_what_is_wrong_has_its_status_and_changes_nothing(home: Home) -> None:
    limits = f"{AGENTS}[limits]\ninput_bytes_max = 1024\n"
    async with served(home, limits, body_bytes_max=4096) as rest:
        task = {"argv": ["true"], "cwd": "/"}
        await rest.data("POST", "/tasks", task)
        await rest.data("GET", "/tasks/t1?wait_s=20")
        await submit_as_person(rest, not_before_ms=1 << 45, **task)
        before = await rest.daemon.store.read(lambda reader: reader.one("last_seq"))
        for verb, path, body, expected in WRONG:
            assert await rest.refused(verb, path, body) == expected, (verb, path)
        assert await rest.daemon.store.read(lambda reader: reader.one("last_seq")) == before


async def submit_as_person(rest: Rest, **fields: Any) -> None:
    from omnid.flow import intake
    from omnid.flow.caller import Caller
    from omnid.model import Submit

    fields["argv"] = tuple(fields["argv"])
    context = rest.daemon.context
    await context.store.write(intake.plan(context, Caller(), [Submit(**fields)]))


async def test_a_body_that_is_no_object_is_told_so(home: Home) -> None:
    async with served(home) as rest:
        for body in (b"{", b"\xff", b'{"argv": [' + b"[" * 100_000, b'"x"'):
            answer = await rest.http.post(url(rest.daemon, "/api/v1/tasks"), content=body)
            assert (answer.status_code, answer.json()["data"]["code"]) == (400, "bad_request")


async def test_the_gate_is_the_same_and_answers_in_the_envelope(home: Home) -> None:
    async with served(home, token="env:WORD", origins=["https://app.example"], requests_per_s_max=500) as rest:
        good = {"Authorization": f"Bearer {TOKEN}"}
        assert await rest.refused("GET", "/status") == (401, "http_refused")
        assert await rest.refused("GET", "/openapi.json") == (401, "http_refused")
        assert await rest.refused("GET", "/status", Host="evil.example", **good) == (421, "http_refused")
        assert await rest.refused("GET", "/status", Origin="https://evil.example", **good) == (403, "http_refused")
        seen = await rest.ask("GET", "/status", Origin="https://app.example", **good)
        assert seen.headers["access-control-allow-origin"] == "https://app.example"
        answer = await rest.ask("GET", "/status", Authorization="Bearer wrong")
        while answer.status_code == 401:
            answer = await rest.ask("GET", "/status", Authorization="Bearer wrong")
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["status"] == "error"


async def test_what_may_work_later_says_when_and_what_is_fatal_ends_the_daemon(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    error: Exception = Retryable("too_many_waiting", count=1, limit=1)

    async def fails(*_: Any) -> Any:
        raise error

    with pytest.RaisesGroup(pytest.RaisesExc(Fatal), allow_unwrapped=True, flatten_subgroups=True):
        async with served(home) as rest:
            monkeypatch.setattr("omnid.api.methods.Api.call", fails)
            answer = await rest.ask("GET", "/status")
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
            assert answer.json()["data"]["code"] == "too_many_waiting"
            error = RuntimeError("a fault")
            assert await rest.refused("GET", "/status") == (500, "internal")
            error = Fatal("internal", detail="the disk is gone")
            assert await rest.refused("GET", "/status") == (500, "internal")
            await anyio.sleep_forever()


async def test_who_goes_away_in_the_middle_finds_the_task_and_is_answered(home: Home) -> None:
    async with served(home) as rest:
        assert rest.daemon.http is not None
        body = json.dumps({"argv": ["true"], "cwd": "/", "not_before_ms": 1 << 45, "key": "k"}).encode()
        head = f"POST /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        async with await anyio.connect_tcp("127.0.0.1", rest.daemon.http.port) as raw:
            await raw.send(head + body[:-1])
        async with await anyio.connect_tcp("127.0.0.1", rest.daemon.http.port) as raw:
            await raw.send(head + body)
        await until(lambda: rest.daemon.store.tally.get("waiting:not_before"))
        again = await rest.ask("POST", "/tasks", json.loads(body))
        assert (again.status_code, again.json()["data"]["name"]) == (200, "agent/t1")
        assert (await rest.data("GET", "/status"))["tasks"] == {"waiting": 1}, "half a request does nothing"


async def test_a_wait_ends_with_its_client(home: Home) -> None:
    async with served(home) as rest:
        assert rest.daemon.http is not None
        id = (await rest.data("POST", "/tasks", {"argv": ["true"], "cwd": "/", "not_before_ms": 1 << 45}))["id"]
        watch = rest.daemon.context.watch
        async with await anyio.connect_tcp("127.0.0.1", rest.daemon.http.port) as raw:
            await raw.send(f"GET /api/v1/tasks/{id}?wait_s=50 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            await until(lambda: watch._events)
        await until(lambda: not watch._events)


async def test_output_is_streamed_as_it_comes_to_its_end(home: Home) -> None:
    async with served(home) as rest:
        gate = home.path / "go"

        os.mkfifo(gate)
        script = f"echo begun; read x < {gate}; echo done"
        made = await rest.data("POST", "/tasks", {"argv": ["sh", "-c", script], "cwd": "/"})
        await until(lambda: rest.daemon.context.running)
        address = url(rest.daemon, f"/api/v1/tasks/{made['id']}/log?wait_s=20")
        async with rest.http.stream("GET", address, headers={"Accept": "text/plain"}) as stream:
            assert stream.headers["content-type"] == "text/plain; charset=utf-8"
            pieces = stream.aiter_text()
            said = ""
            while said != "begun\n":
                said += await anext(pieces)
            await anyio.Path(gate).write_text("go\n")
            assert "".join([piece async for piece in pieces]) == "done\n"
        answer = await rest.ask("GET", "/tasks/t999/log", Accept="text/plain")
        assert answer.status_code == 404


async def test_a_token_names_its_origin_and_nobody_else_is_it(home: Home) -> None:
    async with served(home, ORIGINS, token="env:WORD") as rest:
        task = {"argv": ["true"], "cwd": "/", "not_before_ms": 1 << 45}
        ci, other = {"Authorization": f"Bearer {CI_TOKEN}"}, {"Authorization": f"Bearer {OTHER_TOKEN}"}
        anyone = {"Authorization": f"Bearer {TOKEN}"}
        assert (await rest.data("POST", "/tasks", task, **anyone))["name"] == "agent/t1"
        mine = await rest.data("POST", "/tasks", task, **ci)
        theirs = await rest.data("POST", "/tasks", task, **other)
        assert (mine["name"], theirs["name"]) == ("ci/t1", "other/t1")
        public = await rest.data("POST", "/tasks", {**task, "labels": ["public"]}, **other)
        assert [one["name"] for one in (await rest.data("GET", "/tasks", **ci))["tasks"]] == ["other/t2", "ci/t1"]
        assert await rest.refused("GET", f"/tasks/{theirs['id']}", **ci) == (404, "unknown_task")
        assert await rest.refused("POST", f"/tasks/{public['id']}/cancel", **ci) == (403, "other_origin")
        assert await rest.refused("POST", "/tasks", {**task, "executor": "mine"}, **ci) == (403, "executor_closed")
        assert (await rest.data("POST", "/tasks/t1/complete", {"output": "x"}, **ci))["task"]["state"] == "completed"
        # Over MCP a client's name is what it says, but never one that has a token of its own.
        for mode in ("legacy", "2026-07-28"):
            async with connected(rest.daemon, mode, CI_TOKEN, name="other") as client:
                assert submitted(await client.call_tool("task_submit", task)).startswith("ci/t")
                assert (await client.call_tool("task_get", {"task": theirs["id"]})).is_error
            async with connected(rest.daemon, mode, TOKEN, name="ci") as client:
                assert submitted(await client.call_tool("task_submit", task)).startswith("agent/t")
            async with connected(rest.daemon, mode, TOKEN, name="claude") as client:
                assert submitted(await client.call_tool("task_submit", task)).startswith("claude/t")


def submitted(result: Any) -> str:
    assert result.structured_content is not None, result
    return result.structured_content["name"]


async def test_a_session_belongs_to_the_token_that_it_was_begun_with(home: Home) -> None:
    async with served(home, ORIGINS, token="env:WORD") as rest:
        begun = await rest.http.post(url(rest.daemon), json=HELLO, headers={"Authorization": f"Bearer {CI_TOKEN}"})
        session = {"Mcp-Session-Id": begun.headers["mcp-session-id"], "Mcp-Protocol-Version": "2025-11-25"}
        listing = {"jsonrpc": "2.0", "id": 2, "method": "tools/list", "params": {}}
        for token, status in ((OTHER_TOKEN, 404), (TOKEN, 404), (CI_TOKEN, 200)):
            headers = {**session, "Authorization": f"Bearer {token}"}
            assert (await rest.http.post(url(rest.daemon), json=listing, headers=headers)).status_code == status


async def test_where_only_origins_have_tokens_one_of_them_is_needed(home: Home) -> None:
    async with served(home, ORIGINS) as rest:
        assert await rest.refused("GET", "/status") == (401, "http_refused")
        await rest.data("GET", "/status", Authorization=f"Bearer {CI_TOKEN}")


async def test_two_tokens_that_are_the_same_are_refused(home: Home) -> None:
    home.environ["OTHER"] = CI_TOKEN
    with pytest.RaisesGroup(
        pytest.RaisesExc(Exception, match="is another's too"), allow_unwrapped=True, flatten_subgroups=True
    ):
        async with served(home, ORIGINS):
            raise AssertionError
