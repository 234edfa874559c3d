"""Many sockets in the system's own selector, which is itself watched as one file."""

import selectors
import socket
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar, cast

from omnid.readable import on_readable

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
        self._ready: deque[W] = deque()
        """Could be read when the selector was last asked, and hasn't had its turn yet."""

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
        try:
            await on_readable(self._selector.fileno(), self._turn)
        finally:
            self._selector.close()

    def _turn(self) -> None:
        """Looks at those that can be read; where they are many, the others of them come in the next turn."""
        ready = self._ready
        if not ready:
            ready.extend(cast("W", key.data) for key, _ in self._selector.select(0))
        for _ in range(min(TURN_MAX, len(ready))):
            self._look(ready.popleft())

    def _look(self, one: W) -> None:
        if one.free:
            self._readable(one)
        else:
            self.pause(one)  # It sends more than it waits for; the selector would tell so again and again.
