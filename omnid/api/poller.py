"""Many sockets and one task that waits for all of them: the system's own selector, itself waited for as one file."""

import selectors
import socket
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar, cast

import anyio
from anyio.lowlevel import checkpoint

TURN_MAX = 64
"""After how many sockets the other tasks get their turn."""


class Watched(Protocol):
    """What a poller watches."""

    @property
    def free(self) -> bool:
        """Whether it may be read from now."""
        ...


W = TypeVar("W", bound=Watched)


class Poller(Generic[W]):
    """Calls `readable` for each watched one whose socket can be read.

    A task that waits for its own socket costs each request two changes of the loop's selector, an event and two
    switches of tasks. Here those whose bytes arrive together are read together, and what they ask can be done together.
    """

    def __init__(self, readable: Callable[[W], None]) -> None:
        self._readable = readable
        self._selector = selectors.DefaultSelector()
        self._sockets: dict[W, socket.socket] = {}
        self._paused: set[W] = set()

    def add(self, one: W, raw: socket.socket) -> None:
        """Watches one more."""
        self._sockets[one] = raw
        self._selector.register(raw, selectors.EVENT_READ, one)

    def remove(self, one: W) -> None:
        """Watches it no more; its socket is still open."""
        self.pause(one)
        self._paused.discard(one)
        self._sockets.pop(one, None)

    def pause(self, one: W) -> None:
        """Doesn't look at it until `resume`."""
        raw = self._sockets.get(one)
        if raw is not None and one not in self._paused:
            self._paused.add(one)
            self._selector.unregister(raw)

    def resume(self, one: W) -> None:
        """Looks at it again, if it was paused."""
        if one in self._paused:
            self._paused.discard(one)
            self._selector.register(self._sockets[one], selectors.EVENT_READ, one)

    async def run(self) -> None:
        """Watches until it is cancelled."""
        selector = self._selector
        try:
            while True:
                await anyio.wait_readable(selector.fileno())
                while ready := selector.select(0):
                    for turn, (key, _) in enumerate(ready, 1):
                        self._look(cast("W", key.data))
                        if not turn % TURN_MAX:
                            await checkpoint()
                    # Under load the next ones are there once the others had their turn: no need to wait for that.
                    await checkpoint()
        finally:
            selector.close()

    def _look(self, one: W) -> None:
        if one.free:
            self._readable(one)
        else:
            self.pause(one)  # It sends more than it waits for; the selector would tell so again and again.
