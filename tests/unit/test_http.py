"""MCP over HTTP: a daemon in this process, spoken to by the SDK's own client and by bare requests."""

import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import httpx2
import pytest

from omnid import config, platform
from omnid.api.http import HttpServer
from omnid.api.http_gate import Rates
from omnid.api.mcp_server import McpServer
from omnid.api.mcp_tools import TOOLS
from omnid.clock import SystemClock
from omnid.errors import Rejected
from omnid.secrets import Secrets
from omnid.settings import Config, Http
from tests.fakes.certificate import make_certificate
from tests.fakes.clock import FakeClock
from tests.fakes.home import Home
from tests.fakes.mcp_peer import Api, Log
from tests.fakes.web import ACCEPTS, ERAS, HELLO, ON_ASYNCIO, PING, TOKEN, bare, connected, listen, problem, url


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@ON_ASYNCIO
@pytest.mark.anyio
@pytest.mark.parametrize("mode", ERAS)
async def test_a_task_is_handed_over_and_read_by_the_next_client(home: Home, mode: str) -> None:
    (home.path / "token").write_text(f"{TOKEN}\n")
    listen(home, token=f"file:{home.path}/token")
    async with home.daemon() as daemon:
        async with connected(daemon, mode, TOKEN) as client:
            assert client.protocol_version == ("2025-11-25" if mode == "legacy" else mode)
            done = await client.call_tool("task_submit", {"argv": ["true"], "key": "k"})
            assert done.structured_content is not None
            assert done.structured_content["name"] == "tester/t1"
        async with connected(daemon, mode, TOKEN) as client:
            got = await client.call_tool("task_get", {"task": "t1"})
            assert got.structured_content is not None
            assert got.structured_content["task"]["id"] == done.structured_content["id"]
            failed = await client.call_tool("task_get", {"task": "t2"})
            assert failed.is_error
    assert daemon.http is not None
    assert daemon.http.closed.is_set()


@ON_ASYNCIO
@pytest.mark.anyio
@pytest.mark.parametrize("given", [None, "Bearer wrong-token-of-some-length", f"Basic {TOKEN}", f"Bearer {TOKEN}x"])
async def test_without_the_token_nobody_comes_in(home: Home, given: str | None) -> None:
    home.environ["WORD"] = TOKEN
    listen(home, token="env:WORD")
    async with bare(home, **({"Authorization": given} if given else {})) as (daemon, client):
        answer = await client.post(url(daemon), json=HELLO)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert "Authorization: Bearer" in problem(answer)["do"]
        assert problem(answer)["code"] == "http_refused"
        twice = [("Authorization", f"Bearer {TOKEN}"), ("Authorization", f"Bearer {TOKEN}")]
        assert (await client.post(url(daemon), json=HELLO, headers=twice)).status_code == 401
        answer = await client.post(url(daemon), json=HELLO, headers={"Authorization": f"bearer {TOKEN}"})
        assert answer.status_code == 200
    assert TOKEN not in home.logged.getvalue()


@ON_ASYNCIO
@pytest.mark.anyio
async def test_only_its_own_names_and_the_pages_of_the_config_may_call(home: Home) -> None:
    listen(home, hosts=["omnid.example", "other.example:1"], origins=["https://app.example"])
    async with bare(home) as (daemon, client):
        assert daemon.http is not None
        port = daemon.http.port

        async def status(**headers: str) -> int:
            return (await client.post(url(daemon), json=HELLO, headers=headers)).status_code

        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "other.example:2", ""):
            assert await status(Host=host) == 421
        for host in ("localhost", f"LOCALHOST:{port}", f"[::1]:{port}", "omnid.example:9", "other.example:1"):
            assert await status(Host=host) == 200
        for origin in ("https://evil.example", "null", f"https://127.0.0.1:{port}", "https://app.example.evil"):
            assert await status(Origin=origin) == 403
        for origin in ("https://app.example", f"http://127.0.0.1:{port}"):
            assert await status(Origin=origin) == 200
        asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
        preflight = await client.options(url(daemon), headers=asked)
        assert preflight.headers["access-control-allow-origin"] == "https://app.example"
        assert (await client.get(url(daemon, "/"))).status_code == 404
    assert "http_without_token" in home.logged.getvalue()


@ON_ASYNCIO
@pytest.mark.anyio
async def test_bodies_and_rates_have_limits(home: Home) -> None:
    home.environ["WORD"] = TOKEN
    listen(home, token="env:WORD", body_bytes_max=2048, body_s=0.2, requests_per_s_max=200)
    async with bare(home, Authorization=f"Bearer {TOKEN}") as (daemon, client):
        assert (await client.post(url(daemon), json={**HELLO, "x": "y" * 3000})).status_code == 413

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(4):
                yield b" " * 1000

        for path in ("/mcp", "/api/v1/tasks"):
            answer = await client.post(url(daemon, path), content=pieces())
            assert answer.status_code == 413, "however its length is said"
            assert "body_too_large" in answer.text

        assert daemon.http is not None
        async with await anyio.connect_tcp("127.0.0.1", daemon.http.port) as raw:
            large = 8 << 20
            head = f"POST /mcp HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
            await raw.send(f"{head}Content-Length: {large}\r\n\r\n".encode() + b" " * large)
            assert (await raw.receive()).startswith(b"HTTP/1.1 413 "), "who sends all of it first is answered too"
        async with await anyio.connect_tcp("127.0.0.1", daemon.http.port) as raw:
            head = (
                f"POST /mcp HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 9\r\n\r\n{{"
            )
            await raw.send(head.encode())
            said = await raw.receive()
            assert said.startswith(b"HTTP/1.1 408 ")
        for _ in range(3):
            answer = await client.post(url(daemon), json=HELLO, headers={"Authorization": "Bearer wrong"})
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1


async def cut(raw: anyio.abc.SocketStream) -> None:
    """Reads until the server has cut the connection."""
    with anyio.fail_after(10), contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
        while True:
            await raw.receive()


@ON_ASYNCIO
@pytest.mark.anyio
async def test_who_sends_no_request_loses_its_place(home: Home) -> None:
    listen(home, connections_max=3, body_s=0.2)
    async with bare(home) as (daemon, client):
        assert daemon.http is not None
        async with contextlib.AsyncExitStack() as stack:
            silent = [
                await stack.enter_async_context(await anyio.connect_tcp("127.0.0.1", daemon.http.port))
                for _ in range(3)
            ]
            await silent[1].send(b"GET /x HTTP/1.1\r\nHost: local")
            for raw in silent:
                await cut(raw)
        assert (await client.get(url(daemon, "/api/v1/status"))).status_code == 200
        async with await anyio.connect_tcp("127.0.0.1", daemon.http.port) as raw:
            await raw.send(b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await raw.receive()).startswith(b"HTTP/1.1 404 ")
            await raw.send(b"G")
            await cut(raw)
        async with await anyio.connect_tcp("127.0.0.1", daemon.http.port) as raw:
            await raw.send(b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
            assert (await raw.receive()).startswith(b"HTTP/1.1 408 ")
            await raw.send(b"{")
            await cut(raw)


@ON_ASYNCIO
@pytest.mark.anyio
async def test_who_asks_nothing_makes_room_for_who_does(home: Home) -> None:
    listen(home, connections_max=3)
    async with bare(home) as (daemon, client), contextlib.AsyncExitStack() as stack:
        assert daemon.http is not None
        made = (await client.post(url(daemon, "/api/v1/tasks"), json={"argv": ["sleep", "60"]})).json()
        address = url(daemon, f"/api/v1/tasks/{made['data']['id']}/log")
        stream = await stack.enter_async_context(client.stream("GET", address, headers={"Accept": "text/plain"}))
        for _ in range(6):
            await stack.enter_async_context(await anyio.connect_tcp("127.0.0.1", daemon.http.port))
        async with httpx2.AsyncClient() as another:
            assert (await another.get(url(daemon, "/api/v1/status"))).status_code == 200
        cancelled = await client.post(url(daemon, f"/api/v1/tasks/{made['data']['id']}/cancel"), json={})
        assert cancelled.status_code == 200
        assert await stream.aread() == b"", "who is being answered keeps its place"


@ON_ASYNCIO
@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/mcp", "/api/v1/openapi.json"])
async def test_who_reads_no_answer_is_cut_off(home: Home, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr("omnid.api.http_uvicorn.STALL_S", 0.2)
    listen(home, requests_per_s_max=10_000)
    async with bare(home) as (daemon, client):
        assert daemon.http is not None
        session = (await client.post(url(daemon), json=HELLO)).headers["mcp-session-id"]
        verb, body = ("POST", json.dumps(PING)) if path == "/mcp" else ("GET", "")
        head = f"{verb} {path} HTTP/1.1\r\nHost: localhost\r\nMcp-Session-Id: {session}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in ACCEPTS.items())
        asked = f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()
        raw = socket.socket()
        with raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.connect(("127.0.0.1", daemon.http.port))
            raw.setblocking(False)
            with pytest.raises(ConnectionError), anyio.fail_after(30):
                while True:
                    with contextlib.suppress(BlockingIOError):
                        raw.send(asked)
                    await anyio.sleep(0.002)


@ON_ASYNCIO
@pytest.mark.anyio
async def test_a_session_of_an_earlier_daemon_is_one_to_begin_anew(home: Home) -> None:
    listen(home)
    async with bare(home) as (daemon, client):
        session = (await client.post(url(daemon), json=HELLO)).headers["mcp-session-id"]
        headers = {"Mcp-Session-Id": session, "Mcp-Protocol-Version": "2025-11-25"}
        assert (await client.post(url(daemon), json=PING, headers=headers)).status_code == 200
    async with bare(home) as (daemon, client):
        assert (await client.post(url(daemon), json=PING, headers=headers)).status_code == 404


@ON_ASYNCIO
@pytest.mark.anyio
@pytest.mark.parametrize("event", ["1", "", "a/../b", "x" * 5000])
async def test_a_stream_that_is_to_go_on_from_an_event_begins_anew(home: Home, event: str) -> None:
    listen(home)
    async with bare(home) as (daemon, client):
        session = (await client.post(url(daemon), json=HELLO)).headers["mcp-session-id"]
        headers = {"Mcp-Session-Id": session, "Mcp-Protocol-Version": "2025-11-25", "Last-Event-ID": event}
        async with client.stream("GET", url(daemon), headers=headers) as stream:
            assert stream.status_code == 200
            assert stream.headers["content-type"].startswith("text/event-stream")


@ON_ASYNCIO
@pytest.mark.anyio
async def test_the_header_that_requests_are_routed_by_names_the_task_or_is_missing(home: Home) -> None:
    listen(home)
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {"extensions": {"io.modelcontextprotocol/tasks": {}}},
    }
    nobody = "01931e3c-0000-7000-8000-00000000dead"
    asked = {"jsonrpc": "2.0", "id": 1, "method": "tasks/get", "params": {"taskId": nobody, "_meta": meta}}
    async with bare(home, **{"Mcp-Protocol-Version": "2026-07-28", "Mcp-Method": "tasks/get"}) as (daemon, client):
        for headers, status, code in (
            ({"Mcp-Name": "another"}, 400, -32020),
            ({"Mcp-Name": nobody}, 400, -32602),
            ({}, 400, -32602),
        ):
            answer = await client.post(url(daemon), json=asked, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


@ON_ASYNCIO
@pytest.mark.anyio
async def test_only_what_says_nothing_before_its_answer_gets_no_stream(home: Home) -> None:
    listen(home)
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    listens = {"notifications": {"resourceSubscriptions": ["omnid://status"]}, "_meta": meta}
    asked = {"jsonrpc": "2.0", "id": 1, "method": "subscriptions/listen", "params": listens}
    listed = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": meta}}
    async with bare(home) as (daemon, client):
        # Before 2026-07-28 no header says what is asked.
        hello = await client.post(url(daemon), json=HELLO, headers={"Mcp-Method": "tools/list"})
        session = {"Mcp-Session-Id": hello.headers["mcp-session-id"], "Mcp-Protocol-Version": "2025-11-25"}
        assert (await client.post(url(daemon), json=PING, headers=session)).status_code == 200
        client.headers["Mcp-Protocol-Version"] = "2026-07-28"
        answer = await client.post(url(daemon), json=listed, headers={"Mcp-Method": "tools/list"})
        assert [tool["name"] for tool in answer.json()["result"]["tools"]] == list(TOOLS)
        for names in (["tools/list"], ["tools/list", "subscriptions/listen"], ["subscriptions/listen", "tools/list"]):
            refused = await client.post(url(daemon), json=asked, headers=[("Mcp-Method", name) for name in names])
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, -32020)
        async with client.stream(
            "POST", url(daemon), json=asked, headers={"Mcp-Method": "subscriptions/listen"}
        ) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")


@ON_ASYNCIO
@pytest.mark.anyio
async def test_a_stop_ends_streams_that_clients_listen_to(home: Home) -> None:
    listen(home)
    async with bare(home) as (daemon, client):
        session = (await client.post(url(daemon), json=HELLO)).headers["mcp-session-id"]
        async with client.stream("GET", url(daemon), headers={"Mcp-Session-Id": session}) as stream:
            assert stream.status_code == 200
            daemon.stop()
            assert daemon.http is not None
            with anyio.fail_after(8):
                await daemon.http.closed.wait()


@ON_ASYNCIO
@pytest.mark.anyio
async def test_tls_by_certificate_files(home: Home) -> None:
    paths = {"certificate": str(home.path / "cert.pem"), "private_key": str(home.path / "key.pem")}
    listen(home, **paths)
    with pytest.RaisesGroup(
        pytest.RaisesExc(Rejected, match="can't be used"), allow_unwrapped=True, flatten_subgroups=True
    ):
        async with home.daemon():
            raise AssertionError
    make_certificate(**paths)
    context = ssl.create_default_context(cafile=paths["certificate"])
    async with home.daemon() as daemon, httpx2.AsyncClient(headers=ACCEPTS, verify=context) as client:
        assert (await client.post(url(daemon, scheme="https"), json=HELLO)).status_code == 200


@pytest.mark.anyio
async def test_a_start_that_can_not_serve_is_refused(anyio_backend: str) -> None:
    async def refused(secrets: dict[str, str], **settings: Any) -> str:
        mcp = McpServer(Api(), "0", SystemClock(), Log(), requests_max=1)
        server = HttpServer(
            Config(http=Http(**settings)), mcp, Api(), secrets=Secrets(secrets), clock=SystemClock(), log=Log()
        )
        with pytest.raises(Rejected) as caught:
            await server.open()
        assert caught.value.code in ("http_start", "secret_missing")
        return caught.value.what

    if anyio_backend == "trio":
        assert "it needs asyncio" in await refused({}, listen="127.0.0.1:0")
        return
    assert "WORD" in await refused({}, listen="127.0.0.1:0", token="env:WORD")
    assert "less than 16" in await refused({"WORD": "short"}, listen="127.0.0.1:0", token="env:WORD")
    taken = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = taken.extra(anyio.abc.SocketAttribute.local_port)
    assert f"127.0.0.1:{port}" in await refused({}, listen=f"127.0.0.1:{port}")
    await taken.aclose()


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"listen": "0.0.0.0:7373"}, "whoever reaches it"),
        ({"listen": "omnid.example:7373"}, "whoever reaches it"),
        ({"listen": "7373"}, "an address and a port"),
        ({"listen": "::1:7373"}, "an address and a port"),
        ({"listen": "127.0.0.1:99999"}, "an address and a port"),
        ({"listen": "127.0.0.1:1", "token": TOKEN}, "in plain text"),
        ({"listen": "127.0.0.1:1", "certificate": "/x"}, "both"),
        ({"listen": "0.0.0.0:7373", "token": "env:WORD"}, None),
        ({"listen": "[::1]:7373"}, None),
        ({"listen": "localhost:7373"}, None),
    ],
)
def test_a_config_that_lets_strangers_in_is_refused(home: Home, settings: dict[str, str], what: str | None) -> None:
    listen(home, **settings)
    problems = config.check(home.environ)
    assert [what in problem.what for problem in problems if what] == ([True] if what else [])
    assert bool(problems) is bool(what)


@pytest.mark.parametrize(
    ("text", "address"),
    [("h:1", ("h", 1)), ("[::1]:0", ("::1", 0)), (":1", None), ("h:", None), ("h:-1", None), ("h:٣", None), ("", None)],
)
def test_addresses(text: str, address: tuple[str, int] | None) -> None:
    assert platform.host_port(text) == address


def test_a_bucket_fills_with_time_and_is_one_address_s_own() -> None:
    clock = FakeClock()
    rates = Rates(10, clock)
    assert [rates.take("a") for _ in range(10)] == [0.0] * 10
    assert rates.take("a") == pytest.approx(0.1)
    assert rates.take("b") == 0.0
    clock.now_s += 0.1
    assert rates.take("a") == 0.0
    clock.now_s += 100
    assert rates.take("a", 100) == 0.0
    assert rates.take("a") == pytest.approx(1.1)
