"""Requests that are one write: begun as they are read, many at once, and answered by their commit."""

import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest
from anyio.lowlevel import checkpoint

from omnid.api.socket import Connection, Request
from omnid.store.interface import Outcome
from tests.fakes.socket_server import begun, line, serving

pytestmark = pytest.mark.anyio


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


async def test_writes_of_many_clients_are_begun_together_and_answered_by_their_commit(directory: Path) -> None:
    async with serving(directory) as serve, serve.client() as one, serve.client() as other:
        for client, name in ((one, "one"), (other, "other")):
            await client.stream.send(b"".join(line("omnid/write", {"of": name, "n": n}, n) for n in range(100)))
        await begun(serve, 200)
        serve.handler.commit()
        for client, name in ((one, "one"), (other, "other")):
            answers = [await client.answer() for _ in range(100)]
            assert answers == [{"jsonrpc": "2.0", "id": n, "result": {"of": name, "n": n}} for n in range(100)]


async def test_writes_and_what_needs_a_task_keep_their_order(directory: Path) -> None:
    async with serving(directory) as serve, serve.client() as client:
        methods = ["omnid/write", "omnid/echo", "no json", "omnid/write", "omnid/wait", "omnid/write"]
        sent = [b"no json\n" if m == "no json" else line(m, {}, n) for n, m in enumerate(methods)]
        await client.stream.send(b"".join(sent))
        await begun(serve, 1)
        await anyio.wait_all_tasks_blocked()
        assert len(serve.handler.begun) == 1, "what comes behind it waits for it"
        assert not serve.handler.entered.is_set()
        serve.handler.release.set()
        serve.handler.commit()
        assert [(await client.answer())["id"] for _ in range(3)] == [0, 1, None]


async def test_what_a_write_raises_is_its_answer(directory: Path) -> None:
    async with serving(directory) as serve, serve.client() as client:
        for method in ("omnid/write.refused", "omnid/write.fault", "omnid/write"):
            await client.send(method)
            await begun(serve, 1)
            serve.handler.commit()
        codes = [(await client.answer())["error"]["data"]["code"] for _ in range(2)]
        assert codes == ["unknown_task", "internal"]
        assert (await client.answer())["result"] == {}
        assert [entry["event"] for entry in serve.logged()] == ["request_failed"]


async def test_a_client_is_not_read_from_while_its_write_is_under_way(directory: Path) -> None:
    async with serving(directory) as serve, serve.client() as client, serve.client() as other:
        await client.send("omnid/write", {}, 1)
        await begun(serve, 1)
        await client.send("omnid/write", {}, 2)
        assert (await other.ask("omnid/echo"))["result"] == {}
        await anyio.wait_all_tasks_blocked()
        assert len(serve.handler.begun) == 1
        serve.handler.commit()
        await begun(serve, 1)
        serve.handler.commit()
        assert [(await client.answer())["id"] for _ in range(2)] == [1, 2]


async def test_a_client_that_goes_before_its_commit_harms_nobody(directory: Path) -> None:
    async with serving(directory) as serve, serve.client() as other:
        with socket.socket(socket.AF_UNIX) as rude:
            rude.connect(serve.path)
            rude.sendall(line("omnid/write"))
            await begun(serve, 1)
        assert (await other.ask("omnid/echo"))["result"] == {}
        serve.handler.commit()
        while serve.server.clients > 1:
            await checkpoint()
        assert serve.logged() == []


async def test_a_client_that_says_all_and_shuts_its_side_gets_its_answers(directory: Path) -> None:
    async with serving(directory) as serve, serve.client() as client:
        await client.send("omnid/write", {"n": 1})
        await client.stream.send_eof()
        await begun(serve, 1)
        await anyio.wait_all_tasks_blocked()
        serve.handler.commit()
        assert (await client.answer())["result"] == {"n": 1}
        assert await client.ended()


async def test_a_stop_lets_writes_out_that_are_under_way(directory: Path) -> None:
    async with serving(directory) as serve, serve.client() as client:
        await client.send("omnid/write")
        await begun(serve, 1)
        serve.server.stop()
        await anyio.wait_all_tasks_blocked()
        serve.handler.commit()
        assert (await client.answer())["result"] == {}
        assert await client.ended()


async def test_a_client_that_floods_keeps_nobody_waiting(directory: Path) -> None:
    async with (
        serving(directory) as serve,
        serve.client() as client,
        serve.client() as flood,
        anyio.create_task_group() as tasks,
    ):

        async def pour() -> None:
            while True:
                await flood.stream.send(line("omnid/echo") * 500)

        async def drink() -> None:
            while True:
                await flood.stream.receive()

        tasks.start_soon(pour)
        tasks.start_soon(drink)
        with anyio.fail_after(5):
            for n in range(50):
                assert (await client.ask("omnid/echo", {}, n))["id"] == n
        tasks.cancel_scope.cancel()


async def test_a_fault_while_a_client_is_read_ends_that_client_alone(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(directory) as serve, serve.client() as other, serve.client() as client:
        await other.ask("omnid/echo")
        begin = serve.handler.begin

        def broken(connection: Connection, request: Request, done: Callable[[Outcome[bytes]], None]) -> bool:
            if request.method == "omnid/write.broken":
                raise ZeroDivisionError
            return begin(connection, request, done)

        monkeypatch.setattr(serve.handler, "begin", broken)
        await client.send("omnid/write.broken")
        assert await client.ended()
        assert (await other.ask("omnid/echo"))["result"] == {}
        while serve.server.clients > 1:
            await checkpoint()
        assert [entry["event"] for entry in serve.logged()] == ["client_failed", "client_cut"]
