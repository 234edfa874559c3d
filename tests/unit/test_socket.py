import os
import resource
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest
from anyio.lowlevel import checkpoint

from omnid import platform, wire
from omnid.api import socket as api_socket
from omnid.errors import Fatal
from tests.fakes.socket_server import LIMIT_BYTES, line, serving

pytestmark = pytest.mark.anyio


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


async def test_requests_of_one_write_are_answered_in_order(directory: Path) -> None:
    async with serving(directory) as serve, serve.client() as client:
        many = b"".join(line("omnid/echo", {"n": n}, n) for n in range(1000))
        await client.stream.send(many)
        answers = [await client.answer() for _ in range(1000)]
        assert answers == [{"jsonrpc": "2.0", "id": n, "result": {"n": n}} for n in range(1000)]


async def test_a_request_may_come_in_pieces_and_its_id_comes_back_as_it_was(directory: Path) -> None:
    async with serving(directory) as serve, serve.client() as client:
        for request_id in ("a\\u0041", 2**63, -1):
            for byte in line("omnid/echo", {}, request_id):
                await client.stream.send(bytes([byte]))
            assert (await client.answer())["id"] == request_id


async def test_only_this_user_can_reach_it(directory: Path) -> None:
    async with serving(directory) as serve:
        assert stat.S_IMODE(os.stat(serve.path).st_mode) == 0o600
        assert stat.S_IMODE(os.stat(os.path.dirname(serve.path)).st_mode) == 0o700


async def test_another_user_is_refused(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "peer_uid", lambda _connection: os.getuid() + 1)
    async with serving(directory) as serve, serve.client() as client:
        assert (await client.answer())["error"]["data"]["code"] == "foreign_user"
        assert await client.ended()


@pytest.mark.parametrize(
    ("sent", "number"),
    [
        (b"no json", wire.PARSE_ERROR),
        (b'{"jsonrpc":"2.0"', wire.PARSE_ERROR),
        (b"\xff\xfe", wire.PARSE_ERROR),
        (b"[" * 60_000, wire.INVALID_REQUEST),
        (b'{"a":' * 10_000, wire.PARSE_ERROR),
        (b"[]", wire.INVALID_REQUEST),
        (b"[" + line("omnid/echo").strip() + b"]", wire.INVALID_REQUEST),
        (b"7", wire.INVALID_REQUEST),
        (b'{"jsonrpc":"1.0","id":1,"method":"omnid/echo"}', wire.INVALID_REQUEST),
        (b'{"id":1,"method":"omnid/echo"}', wire.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":1,"method":7}', wire.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":1,"result":{}}', wire.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":{"a":1},"method":"omnid/echo"}', wire.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":true,"method":"omnid/echo"}', wire.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":1,"method":"omnid/none"}', wire.METHOD_NOT_FOUND),
    ],
    ids=lambda value: value[:40].decode(errors="replace") if isinstance(value, bytes) else str(value),
)
async def test_what_cant_be_read_is_answered_and_the_connection_lives(
    directory: Path, sent: bytes, number: int
) -> None:
    async with serving(directory) as serve, serve.client() as client:
        await client.stream.send(sent + b"\n")
        error = (await client.answer())["error"]
        assert error["code"] == number
        assert error["data"]["what"]
        assert error["data"]["do"]
        assert (await client.ask("omnid/echo"))["result"] == {}


@pytest.mark.parametrize("params", [b'{"text":"cut \\ud83d"}', b"NaN", b'{},"jsonrpc":2'], ids=["cut", "nan", "wrong"])
async def test_who_asks_what_cant_be_read_is_told_by_the_id(directory: Path, params: bytes) -> None:
    async with serving(directory) as serve, serve.client() as client:
        await client.stream.send(b'{"jsonrpc":"2.0","id":"a","method":"omnid/echo","params":%b}\n' % params)
        answer = await client.answer()
        assert (answer["id"], answer["error"]["data"]["code"]) == ("a", "bad_request")
        assert (await client.ask("omnid/echo"))["result"] == {}


async def test_batches_are_refused_by_name(directory: Path) -> None:
    async with serving(directory) as serve, serve.client() as client:
        await client.stream.send(b"[]\n")
        assert "one message a line" in (await client.answer())["error"]["message"]


async def test_notifications_and_blank_lines_are_not_answered(directory: Path) -> None:
    async with serving(directory) as serve, serve.client() as client:
        for method in ("omnid/echo", "omnid/none", "omnid/fault"):
            await client.stream.send(wire.line({"jsonrpc": "2.0", "method": method}) + b"\n \n")
        assert (await client.ask("omnid/echo", {}, 9))["id"] == 9


async def test_a_line_that_is_too_long_is_refused_and_the_connection_lives(directory: Path) -> None:
    long = {"x": "x" * LIMIT_BYTES}
    async with serving(directory) as serve, serve.client() as other, serve.client() as client:
        sent = [line("omnid/echo", {}, 1), b"x" * (LIMIT_BYTES + 1) + b"\n", line("omnid/echo", long, 2)]
        await client.stream.send(b"".join([*sent, line("omnid/echo", {}, 3)]))
        answers = [await client.answer() for _ in range(4)]
        assert [one["id"] for one in answers] == [1, None, 2, 3]
        for one in answers[1:3]:
            assert (one["error"]["code"], one["error"]["data"]["code"]) == (wire.OMNID_ERROR, "message_too_large")
        assert (await other.ask("omnid/echo"))["result"] == {}


async def test_ten_thousand_bad_messages_neither_crash_it_nor_make_it_grow(directory: Path) -> None:
    async with serving(directory) as serve:
        async with serve.client() as client, anyio.create_task_group() as tasks:
            bad = [b"no json\n", b"[]\n", b"7\n", b"\xff\n", b'{"jsonrpc":"2.0","method":1}\n'] * 2000
            tasks.start_soon(client.stream.send, b"".join(bad[:5000]))
            for _ in range(5000):
                assert (await client.answer())["error"]["data"]["why"]
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            tasks.start_soon(client.stream.send, b"".join(bad[5000:]))
            for _ in range(5000):
                assert (await client.answer())["error"]["data"]["why"]
        for _ in range(50):
            async with serve.client() as client:
                for _ in range(100):
                    await client.stream.send(b"x" * LIMIT_BYTES)
                await client.stream.send(b"\n")
                assert (await client.answer())["error"]["data"]["code"] == "message_too_large"
        # ru_maxrss is in KiB on Linux and in bytes on macOS.
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10
        async with serve.client() as client:
            assert (await client.ask("omnid/echo"))["result"] == {}


async def test_one_client_too_many_is_told_so(directory: Path) -> None:
    async with serving(directory, clients_max=2) as serve, serve.client() as first:
        async with serve.client() as second:
            await first.ask("omnid/echo")
            await second.ask("omnid/echo")
            assert serve.server.clients == 2
            async with serve.client() as third:
                assert (await third.answer())["error"]["data"]["code"] == "too_many_clients"
                assert await third.ended()
        while serve.server.clients > 1:
            await checkpoint()
        async with serve.client() as fourth:
            assert (await fourth.ask("omnid/echo"))["result"] == {}


async def test_a_client_that_reads_nothing_is_cut_off_after_a_while(directory: Path) -> None:
    async with serving(directory, stall_s=0.2) as serve, serve.client() as other, serve.client() as client:
        await client.send("omnid/big", {"bytes": 4 << 20})
        while not serve.handler.connections:
            await checkpoint()
        slow = serve.handler.connections[0]
        assert (await other.ask("omnid/echo"))["result"] == {}
        await slow.closed.wait()
        assert (await other.ask("omnid/echo"))["result"] == {}
        while serve.server.clients > 1:
            await checkpoint()
        assert [entry["event"] for entry in serve.logged()] == ["client_cut"]


async def test_a_client_that_reads_slowly_but_steadily_gets_everything(directory: Path) -> None:
    async with serving(directory, stall_s=1.0) as serve, serve.client() as client:
        await client.send("omnid/big", {"bytes": 4 << 20})
        received = 0
        while received < 4 << 20:
            received += len(await client.stream.receive(64 << 10))
            await anyio.sleep(0.03)
        assert serve.logged() == []


async def test_answers_pile_up_to_a_limit_only(directory: Path) -> None:
    limit = 1 << 20
    async with serving(directory, write_buffer_bytes_max=limit) as serve, serve.client() as client:
        await client.ask("omnid/echo")
        connection = serve.handler.connections[0]
        for _ in range(10):
            connection.put(b"x" * (limit // 4))
        await connection.closed.wait()
        connection.put(b"x" * limit)
        await connection.drain()


async def test_who_does_not_read_is_not_read_from(directory: Path) -> None:
    async with serving(directory) as serve, serve.client() as client:
        for _ in range(50):
            await client.send("omnid/big", {"bytes": 50_000})
            await anyio.wait_all_tasks_blocked()
        taken = len(serve.handler.connections)
        assert 0 < taken < 50
        for _ in range(50):
            assert len((await client.answer())["result"]) == 50_000


async def test_clients_that_break_off_harm_nobody(directory: Path) -> None:
    async with serving(directory) as serve, serve.client() as other:
        for _ in range(50):
            with socket.socket(socket.AF_UNIX) as rude:
                rude.connect(serve.path)
                rude.sendall(line("omnid/big", {"bytes": 1 << 20}) * 10 + b'{"half')
            assert (await other.ask("omnid/echo"))["result"] == {}
        while serve.server.clients > 1:
            await checkpoint()
        assert [entry for entry in serve.logged() if entry["level"] == "error"] == []


async def test_a_fault_in_a_method_is_answered_and_logged(directory: Path) -> None:
    async with serving(directory) as serve, serve.client() as client:
        error = (await client.ask("omnid/fault"))["error"]
        assert (error["code"], error["data"]["code"]) == (wire.INTERNAL_ERROR, "internal")
        assert (await client.ask("omnid/echo"))["result"] == {}
        (entry,) = serve.logged()
        assert (entry["event"], entry["method"]) == ("request_failed", "omnid/fault")
        assert "ZeroDivisionError" in entry["exception"]


async def test_fatal_ends_the_server(directory: Path) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with serving(directory) as serve, serve.client() as client:
            await client.send("omnid/fatal")
            await anyio.sleep_forever()
    assert caught.group_contains(Fatal)
    assert not os.path.lexists(directory / "run" / "s")


async def test_a_request_that_waits_holds_up_nothing(directory: Path) -> None:
    async with serving(directory) as serve, serve.client() as client:
        await client.send("omnid/wait", {}, "later")
        assert (await client.ask("omnid/echo", {}, "now"))["id"] == "now"
        serve.handler.release.set()
        assert (await client.answer())["id"] == "later"


async def test_a_client_may_wait_for_so_many_things_at_once(directory: Path) -> None:
    async with serving(directory, requests_max=3) as serve, serve.client() as client:
        for number in range(4):
            await client.send("omnid/wait", {}, number)
        answer = await client.answer()
        assert (answer["id"], answer["error"]["data"]["code"]) == (3, "too_many")
        serve.handler.release.set()
        assert sorted([(await client.answer())["id"] for _ in range(3)]) == [0, 1, 2]
        assert (await client.ask("omnid/wait", {}, 5))["result"] == {}


async def test_what_waits_for_a_client_that_has_gone_is_cancelled(directory: Path) -> None:
    async with serving(directory) as serve:
        async with serve.client() as client:
            await client.send("omnid/wait")
            await serve.handler.entered.wait()
        await serve.handler.cancelled.wait()


async def test_mcp_is_passed_on_and_takes_over_the_connection(directory: Path) -> None:
    async with serving(directory) as serve, serve.client() as client:
        assert (await client.ask("omnid/echo", {"a": 1}))["result"] == {"a": 1}
        assert (await client.ask("tools/list"))["result"] == "mcp"
        assert (await client.ask("omnid/echo"))["result"] == "mcp"
        assert serve.handler.mcp_lines == [line("tools/list").strip(), line("omnid/echo").strip()]


@pytest.mark.parametrize("method", ["end", "fault"])
async def test_an_mcp_session_that_ends_ends_its_connection_only(directory: Path, method: str) -> None:
    async with serving(directory) as serve, serve.client() as other, serve.client() as client:
        await client.send(method)
        assert await client.ended()
        assert (await other.ask("tools/list"))["result"] == "mcp"
        while serve.server.clients > 1:
            await checkpoint()
        assert [entry["event"] for entry in serve.logged()] == (["client_cut"] if method == "end" else ["guard_ended"])


async def test_a_stop_lets_the_answers_out_that_are_being_made(directory: Path) -> None:
    async with serving(directory) as serve, serve.client() as idle, serve.client() as client:
        await idle.ask("omnid/echo")
        await client.send("omnid/held")
        await serve.handler.entered.wait()
        serve.server.stop()
        assert await idle.ended()
        assert not os.path.lexists(serve.path)
        serve.handler.release.set()
        assert (await client.answer())["result"] == {}
        assert await client.ended()


async def test_a_stop_ends_a_client_that_comes_at_that_moment_too(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(directory) as serve:

        def stop_now(_connection: socket.socket) -> int:
            serve.server.stop()
            return os.getuid()

        monkeypatch.setattr(platform, "peer_uid", stop_now)
        with anyio.fail_after(api_socket.STOP_S / 2):
            async with serve.client() as client:
                assert await client.ended()


async def test_failing_to_accept_is_survived_and_logged_once(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_socket, "_ACCEPT_PAUSE_S", 0.01)
    accept = socket.socket.accept
    failures = [OSError(24, "Too many open files")] * 3

    def failing(listener: socket.socket) -> tuple[socket.socket, Any]:
        if failures:
            raise failures.pop()
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", failing)
    async with serving(directory) as serve, serve.client() as client:
        assert (await client.ask("omnid/echo"))["result"] == {}
        assert [entry["event"] for entry in serve.logged()] == ["accept_failed"]
