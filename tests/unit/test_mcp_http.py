"""The mcp executor over HTTP: what a server does to one request harms that one only, and nothing is sent twice."""

import json
import os
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

from omnid.errors import Retryable
from omnid.executor import mcp, mcp_http
from omnid.executor.mcp_transport import MESSAGE_BYTES_MAX
from omnid.executor.sse import EventReader
from omnid.model import InputResponse, Result
from omnid.settings import Limits
from tests.contract.executors import Ports
from tests.fakes.certificate import make_certificate
from tests.fakes.mcp_http_server import Cut, Exchange, Hook, McpHttpServer
from tests.fakes.signals import WAIT_S, Fifo
from tests.unit.test_mcp_executor import LIMITS, Bench, bench, problem

pytestmark = pytest.mark.anyio

TOKEN = "correct-horse-battery"


class Far(Bench):
    """An executor, and the server that it calls."""

    server: McpHttpServer


@asynccontextmanager
async def far(
    tmp_path: Path, server: McpHttpServer | None = None, limits: Limits = LIMITS, **section: Any
) -> AsyncGenerator[Far]:
    made = server or McpHttpServer(ledger=str(tmp_path / "ledger"), era="old")
    with made:
        section = {"url": made.url, "restart_base_s": 0.01, **section}
        async with bench(tmp_path, limits=limits, argv=(), **section) as one:
            fake = Far(one.executor, tmp_path)
            fake.server = made
            yield fake


def old_and_new(tmp_path: Path, era: str, **options: Any) -> McpHttpServer:
    return McpHttpServer(ledger=str(tmp_path / "ledger"), era=era, **options)


def on_call(tool: str, answer: Any) -> Hook:
    """Answers the first call of a tool in another way."""
    left = [tool]

    def hook(exchange: Exchange, message: dict[str, Any]) -> bool:
        if message.get("method") != "tools/call" or message["params"]["name"] not in left:
            return False
        left.clear()
        answer(exchange, message)
        return True

    return hook


@pytest.fixture
async def fake(anyio_backend: str, tmp_path: Path) -> AsyncGenerator[Far]:
    async with far(tmp_path) as made:
        yield made


@pytest.fixture
def fifo(tmp_path: Path) -> Any:
    made = Fifo(tmp_path / "fifo")
    yield made
    made.close()


@pytest.mark.parametrize("era", ["old", "new"])
@pytest.mark.parametrize("events", [True, False])
async def test_both_eras_in_events_and_in_json(anyio_backend: str, tmp_path: Path, era: str, events: bool) -> None:
    async with far(tmp_path, old_and_new(tmp_path, era, events=events)) as fake:
        assert (await fake.run("add", a=2, b=3)).value == {"sum": 5}
        (headers,) = fake.server.posts("tools/call")
    if era == "old":
        assert headers["mcp-session-id"].startswith("session-")
        assert headers["mcp-protocol-version"] == "2025-11-25"
        assert [method for method, _, _ in fake.server.seen][-1] == "DELETE"
    else:
        assert (headers["mcp-method"], headers["mcp-name"]) == ("tools/call", "add")
        assert headers["mcp-protocol-version"] == "2026-07-28"
        assert "mcp-session-id" not in headers


async def test_notices_and_questions_come_with_the_answer(fake: Far) -> None:
    result = await fake.run("notices")
    assert (await fake.printed(result)).splitlines()[-2:] == ["[info] all is well", "done"]
    fake.ports = Ports(InputResponse("decline"))
    assert (await fake.run("ask")).output == "asked"
    assert fake.ledger("answered") == [f"q{number}" for number in range(5)]


async def test_token_and_headers_are_sent_and_never_shown(
    anyio_backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAR_TOKEN", TOKEN)
    monkeypatch.setenv("FAR_KEY", "another-secret")
    server = old_and_new(tmp_path, "old", token=TOKEN)
    async with far(tmp_path, server, token="env:FAR_TOKEN", headers={"X-Key": "env:FAR_KEY", "X-Team": "us"}) as fake:
        assert (await fake.run("echo", text="a")).output == "a"
        (headers,) = fake.server.posts("tools/call")
        assert (headers["authorization"], headers["x-key"], headers["x-team"]) == (
            f"Bearer {TOKEN}",
            "another-secret",
            "us",
        )
        server.token = "changed"
        with pytest.raises(Retryable, match=r"it answered 401: who are you\?") as caught:
            await fake.run("echo")
        await fake.executor.aclose()
        told = str(caught.value) + (tmp_path / "log").read_text()
    assert TOKEN not in told
    assert "another-secret" not in told


async def test_a_changed_token_is_found(anyio_backend: str, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("wrong")
    server = old_and_new(tmp_path, "old", token=TOKEN)
    async with far(tmp_path, server, token=f"file:{token}") as fake:
        with pytest.raises(Retryable, match="401"):
            await fake.executor.probe()
        token.write_text(TOKEN + "\n")
        await fake.executor.probe()
        token.write_text("gr\u00fcn")
        server.sessions.clear()
        with pytest.raises(Retryable, match="its token holds characters that no header can"):
            await fake.run("echo")
        token.unlink()
        with pytest.raises(Retryable) as caught:
            await fake.run("echo")
        assert caught.value.code == "secret_missing"


async def test_redirects_are_followed_at_home_only(anyio_backend: str, tmp_path: Path) -> None:
    server = old_and_new(tmp_path, "old", token=TOKEN)
    (tmp_path / "token").write_text(TOKEN)
    with McpHttpServer() as other:
        async with far(tmp_path, server, token=f"file:{tmp_path / 'token'}") as fake:

            def hook(exchange: Exchange, message: dict[str, Any]) -> bool:
                if exchange.path == "/mcp":
                    exchange.reply(307, Location="/mcp/")
                return exchange.path == "/mcp"

            server.hooks.append(hook)
            assert (await fake.run("echo", text="a")).output == "a"
            assert server.seen[-1][2]["authorization"] == f"Bearer {TOKEN}"
            server.hooks[0] = lambda exchange, _: exchange.reply(307, Location=other.url) or True
            with pytest.raises(Retryable, match=rf"it redirects to http://127.0.0.1:{other.server_port}, where"):
                await fake.run("echo")
            server.hooks[0] = lambda exchange, _: exchange.reply(308, Location="/again") or True
            with pytest.raises(Retryable, match="redirects on and on"):
                await fake.run("echo")
        assert other.seen == []


@pytest.mark.parametrize("status", [404, 400])
async def test_a_forgotten_session_is_begun_anew(fake: Far, status: int) -> None:
    await fake.run("echo")
    body = b'{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"No valid session ID"}}'
    fake.server.hooks.append(on_call("add", lambda exchange, _: exchange.reply(status, body)))
    assert (await fake.run("add", a=1, b=1)).value == {"sum": 2}
    assert fake.ledger("called") == ["echo", "add"]
    assert len(fake.ledger("initialized")) == 2


async def test_a_server_that_is_away_takes_nothing(fake: Far) -> None:
    await fake.run("echo")
    port = fake.server.server_port
    fake.server.__exit__()
    command = fake.command("add", a=1, b=1)
    with pytest.raises(Retryable, match="refuses the connection"):
        await fake.attempt(command)
    with pytest.raises(Retryable, match="refuses the connection"):
        await fake.executor.probe()
    with McpHttpServer(port=port, era="old"):
        await fake.executor.probe()
        assert (await fake.attempt(command)).value == {"sum": 2}
    fake.server.__exit__ = lambda *_: None


async def test_a_server_of_the_newer_era_is_not_taken_for_an_older_one(anyio_backend: str, tmp_path: Path) -> None:
    async with far(tmp_path, old_and_new(tmp_path, "new")) as fake:
        for _ in range(2):
            await fake.run("echo")
            fake.server.hooks[:] = [lambda exchange, _: exchange.reply(503) or True]
            for _ in range(2):
                with pytest.raises(Retryable, match="it answered 503"):
                    await fake.executor.probe()
            fake.server.hooks.clear()
        assert len(fake.server.posts("server/discover")) == 1
        fake.server.hooks[:] = [on_call("echo", lambda exchange, _: exchange.reply(503))]
        fake.server.hooks += [
            lambda exchange, message: message.get("method") == "tools/list" and odd(exchange, message)
        ]
        with pytest.raises(Retryable, match="can't be listed"):
            await fake.run("echo")
        fake.server.hooks.clear()
        await fake.run("echo")
        assert len(fake.server.posts("server/discover")) == 2, "it may have become another server"


def odd(exchange: Exchange, message: dict[str, Any]) -> bool:
    listed = message.get("method") == "tools/list"
    if listed:
        exchange.reply(400, failed(message, -32022))
    return listed


async def test_what_is_cut_is_uncertain_unless_it_may_be_repeated_and_alone(fake: Far, fifo: Fifo) -> None:
    outcomes: list[Result] = []

    async def hang() -> None:
        outcomes.append(await fake.run("hang_safe", timeout_s=3, fifo=fifo.path))

    async with anyio.create_task_group() as group:
        group.start_soon(hang)
        await fifo.line()
        outcome, code, what = problem(await fake.run("die"))
        assert (outcome, code) == ("lost", "uncertain")
        assert "its stream of events ended without an answer" in what or "the connection to it broke" in what
        assert problem(await fake.run("die_reading"))[:2] == ("failure", "executor_crashed")
        assert (await fake.run("echo", text="on")).output == "on"
    assert problem(outcomes[0])[:2] == ("timeout", "attempt_timeout")
    assert len(fake.ledger("initialized")) == 1


async def test_a_broken_stream_is_taken_up_where_it_ended(fake: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp_http, "RESUME_S_MIN", 0.01)
    answers: list[bytes] = []

    def begin(exchange: Exchange, message: dict[str, Any]) -> None:
        answers.append(exchange.answer(message).rstrip())
        exchange.begin_events()
        exchange.event(b"", b"id: one\nretry: 10\n")
        raise Cut

    def go_on(exchange: Exchange, _: dict[str, Any]) -> bool:
        if exchange.command != "GET":
            return False
        assert exchange.headers["last-event-id"] == ("one" if len(answers) == 1 else "two")
        exchange.begin_events()
        if len(answers) == 1:
            answers.append(b"")
            exchange.event(b"", b"id: two\n")
            raise Cut
        exchange.event(answers[0])
        return True

    fake.server.hooks += [on_call("add", begin), lambda exchange, message: bool(exchange.command == "GET")]
    fake.server.hooks[1] = go_on
    assert (await fake.run("add", a=2, b=2)).value == {"sum": 4}
    assert fake.ledger("called") == ["add"]


async def test_a_stream_that_is_never_finished_is_given_up(fake: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp_http, "RESUME_S_MIN", 0.01)

    def begin(exchange: Exchange, _: dict[str, Any]) -> None:
        exchange.begin_events()
        exchange.event(b"", b"id: one\nretry: 10\n")

    fake.server.hooks.append(on_call("echo", begin))
    assert "then it answered 405" in problem(await fake.run("echo"))[2]
    assert [method for method, _, _ in fake.server.seen].count("GET") == mcp_http.RESUMES_MAX


@pytest.mark.parametrize(
    ("answer", "outcome", "says"),
    [
        (lambda e, m: e.reply(500), "lost", "it answered 500"),
        (lambda e, m: e.reply(413), "failure", "it answered 413"),
        (lambda e, m: e.reply(202), "lost", "it answered 202 with nothing"),
        (lambda e, m: e.reply(200, b"<html>", "text/html"), "lost", "text/html, which is neither JSON nor"),
        (lambda e, m: e.reply(200, b"nonsense"), "lost", "what it answered is no answer"),
        (lambda e, m: e.reply(200, b'{"jsonrpc":"2.0","id":777,"result":{}}'), "lost", "is no answer"),
        (lambda e, m: e.reply(200, b" " * (MESSAGE_BYTES_MAX + 1)), "lost", "an answer of more than"),
        (lambda e, m: (e.begin_events(), e.event(b" " * (MESSAGE_BYTES_MAX + 1))), "lost", "an event of more than"),
        (lambda e, m: (e.begin_events(), [e.event(b"x") for _ in range(2000)]), "lost", "more than 1000"),
        (lambda e, m: e.wfile.write(b"what?\r\n\r\n"), "lost", "the connection to it broke"),
        (lambda e, m: e.reply(400, failed(m, -32602)), "rejected", "a must be even"),
        (lambda e, m: e.reply(200, failed(m, -32603)), "failure", "a must be even"),
        (lambda e, m: e.reply(200, failed(m, -32000)), "failure", "a must be even"),
    ],
)
async def test_an_odd_answer_ends_its_own_attempt_only(fake: Far, answer: Any, outcome: str, says: str) -> None:
    fake.server.hooks.append(on_call("echo", answer))
    result = await fake.run("echo")
    assert result.outcome == outcome
    assert says in problem(result)[2]
    assert (await fake.run("echo", text="again")).output == "again"
    assert len(fake.ledger("initialized")) == 1


def failed(message: dict[str, Any], code: int) -> bytes:
    error = {"code": code, "message": "a must be even"}
    return json.dumps({"jsonrpc": "2.0", "id": message["id"], "error": error}).encode()


@pytest.mark.parametrize("status", [403, 405, 429, 503])
async def test_a_server_that_takes_nothing_now_is_down(fake: Far, status: int) -> None:
    def hook(exchange: Exchange, message: dict[str, Any]) -> bool:
        exchange.reply(status)
        return True

    fake.server.hooks.append(hook)
    with pytest.raises(Retryable, match=f"it answered {status}"):
        await fake.run("echo")
    fake.server.hooks.clear()
    assert (await fake.run("echo", text="a")).output == "a"
    assert fake.ledger("called") == ["echo"]


async def test_a_flood_slows_down_nobody_else(anyio_backend: str, tmp_path: Path) -> None:
    async with far(tmp_path, limits=Limits()) as fake:
        await fake.run("echo")
        async with anyio.create_task_group() as group:
            group.start_soon(fake.attempt, fake.command("flood", timeout_s=2.5))
            await anyio.sleep(1.5)
            with anyio.fail_after(0.9):
                assert (await fake.run("echo", text="swift")).output == "swift"
        assert {line["outcome"] for line in fake.log("mcp_call")} == {"success", "lost"}
        assert len(fake.ledger("initialized")) == 1


@pytest.mark.parametrize("era", ["old", "new"])
async def test_cancel_and_timeout_are_passed_on(anyio_backend: str, tmp_path: Path, fifo: Fifo, era: str) -> None:
    async with far(tmp_path, old_and_new(tmp_path, era)) as fake:
        command, results = fake.command("hang", fifo=fifo.path), list[Result]()

        async def keep() -> None:
            results.append(await fake.attempt(command))

        async with anyio.create_task_group() as group:
            group.start_soon(keep)
            await fifo.line()
            await fake.executor.cancel(command.attempt_id)
        assert problem(results[0])[:2] == ("cancelled", "cancelled")
        assert problem(await fake.run("hang_safe", timeout_s=0.5))[:2] == ("timeout", "attempt_timeout")
        for _ in range(2):
            assert await to_thread.run_sync(fake.server.hung_up.get, True, WAIT_S)
        assert fake.ledger("notified").count("notifications/cancelled") == (2 if era == "old" else 0)
        assert (await fake.run("echo", text="on")).output == "on"


async def test_a_server_that_hangs_is_given_up(
    anyio_backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcp, "PROBE_S", 0.5)
    async with far(tmp_path, start_timeout_s=2) as fake:
        await fake.executor.probe()
        hang: Hook = lambda exchange, _: exchange.until_hung_up() or True  # noqa: E731 - it is one line.
        fake.server.hooks.append(hang)
        with pytest.raises(Retryable, match=r"it didn't answer within 0.5 s"):
            await fake.executor.probe()
        with pytest.raises(Retryable, match=r"didn't answer within 2 s of its start"):
            await fake.executor.probe()
        fake.server.hooks.clear()
        await fake.executor.probe()


async def test_an_address_that_nobody_has(anyio_backend: str, tmp_path: Path) -> None:
    with socket.socket() as listener:
        # It listens, and never takes a connection beyond its backlog.
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
        async with far(tmp_path, url=url) as fake:
            with pytest.raises(Retryable, match="refuses the connection"):
                await fake.executor.probe()
    for given, says in (
        ("http://nowhere.invalid/mcp", "its name can't be resolved"),
        ("env:FAR_URL", "its url must begin with https://"),
    ):
        os.environ["FAR_URL"] = "ftp://me:secret@somewhere/"
        async with far(tmp_path, url=given) as fake:
            with pytest.raises(Retryable, match=says) as caught:
                await fake.executor.probe()
            assert "secret" not in str(caught.value)


async def test_tls_is_verified(anyio_backend: str, tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make_certificate(str(certificate), str(key))
    server = old_and_new(tmp_path, "new", tls=(certificate, key))
    async with far(tmp_path, server) as fake:
        with pytest.raises(Retryable, match="TLS with it fails"):
            await fake.executor.probe()
        assert server.seen == []
    for more in ({"ca_file": str(certificate)}, {"verify": False}):
        async with far(tmp_path, old_and_new(tmp_path, "new", tls=(certificate, key)), **more) as fake:
            assert (await fake.run("echo", text="a")).output == "a"
    async with far(tmp_path, old_and_new(tmp_path, "new", tls=(certificate, key)), ca_file="/nowhere.pem") as fake:
        with pytest.raises(Retryable, match=r"its ca_file /nowhere.pem can't be used"):
            await fake.executor.probe()


def test_what_an_event_says_beside_its_data() -> None:
    reader = EventReader(100)
    assert list(reader.feed(b"id: 7\nretry: 1500\ndata: x\n\n")) == [b"x"]
    assert list(reader.feed(b"id: a\0b\nretry: soon\nretry: " + b"9" * 50 + b"\n\n")) == []
    assert (reader.last_id, reader.retry_ms) == ("7", 1500)
