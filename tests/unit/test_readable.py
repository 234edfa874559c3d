"""A file that is watched: called while it can be read, what is raised, and what a cancel leaves."""

import socket
from collections.abc import Callable, Iterator

import anyio
import pytest
from anyio.lowlevel import checkpoint

from omnid.readable import on_readable

pytestmark = pytest.mark.anyio


class Peer:
    """One end of a pair of sockets is watched; what is read from it is kept."""

    def __init__(self, mine: socket.socket, watched: socket.socket, then: Callable[[], None]) -> None:
        self.watched = watched
        self.send = mine.send
        self.got: list[bytes] = []
        self.read = anyio.Event()
        self._then = then

    def look(self) -> None:
        self.got.append(self.watched.recv(1))
        self._then()
        self.read.set()

    async def exchange(self, data: bytes) -> bytes:
        self.read = anyio.Event()
        self.send(data)
        await self.read.wait()
        return self.got[-1]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    mine, watched = socket.socketpair()
    watched.setblocking(False)
    with mine, watched:
        yield mine, watched


async def test_it_is_called_as_often_as_there_is_something(pair: tuple[socket.socket, socket.socket]) -> None:
    peer = Peer(*pair, lambda: None)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(on_readable, peer.watched.fileno(), peer.look)
            assert await peer.exchange(b"1") == b"1"
            assert await peer.exchange(b"2") == b"2"
            peer.send(b"45")  # One call takes one of them: the other is still there.
            while peer.got != [b"1", b"2", b"4", b"5"]:
                await checkpoint()
            group.cancel_scope.cancel()


async def test_what_it_raises_is_raised_to_who_waits(pair: tuple[socket.socket, socket.socket]) -> None:
    def fail() -> None:
        raise ValueError("broken")

    peer = Peer(*pair, fail)
    peer.send(b"12")
    with anyio.fail_after(10), pytest.raises(ValueError, match="broken"):
        await on_readable(peer.watched.fileno(), peer.look)
    for _ in range(5):
        await checkpoint()
    assert peer.got == [b"1"]


async def test_a_cancel_ends_the_watch_and_it_can_be_begun_anew(pair: tuple[socket.socket, socket.socket]) -> None:
    peer = Peer(*pair, lambda: None)
    with anyio.fail_after(10):
        for each in (b"1", b"2"):
            async with anyio.create_task_group() as group:
                group.start_soon(on_readable, peer.watched.fileno(), peer.look)
                assert await peer.exchange(each) == each
                group.cancel_scope.cancel()
            peer.send(b"-")
            for _ in range(5):
                await checkpoint()
            assert peer.got[-1] == each
            assert peer.watched.recv(1) == b"-"
