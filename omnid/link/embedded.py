"""The embedded link: a bounded pair in memory between the dispatcher and the runner of the same process.

The dispatch transaction is its `begun` record, so it keeps nothing durably itself.
"""

from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import anyio

from omnid.link.interface import Message, Received


class EmbeddedLink:
    """See `interface.InProcessLink`; both ends are this object."""

    def __init__(self, window_max: int = 256) -> None:
        self._window_max = window_max
        self._messages: deque[Message] = deque()
        self._filled = anyio.Event()
        self._emptied = anyio.Event()
        self._closed = False

    name_s = float("inf")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def held(self) -> int:
        """How many messages are on their way."""
        return len(self._messages)

    def offer(self, message: Message) -> bool:
        """See `InProcessLink.offer`."""
        if self._closed or len(self._messages) >= self._window_max:
            return False
        self._messages.append(message)
        self._filled.set()
        return True

    async def send(self, to: str, batch: Sequence[Message]) -> None:  # noqa: ARG002 - there is one runner.
        """Hands messages to the runner; waits while `window_max` of them are on their way.

        Raises anyio.ClosedResourceError after `close`.
        """
        for message in batch:
            while not self.offer(message):
                if self._closed:
                    raise anyio.ClosedResourceError
                self._emptied = anyio.Event()
                await self._emptied.wait()

    async def receive(self) -> list[Received]:
        """Gives the next message, at once where there is one; raises anyio.EndOfStream after `close`."""
        while not self._messages:
            if self._closed:
                raise anyio.EndOfStream
            self._filled = anyio.Event()
            await self._filled.wait()
        self._emptied.set()
        return [Received(self._messages.popleft())]

    async def ack(self, received: Sequence[Received]) -> None:
        """See `Messenger.ack`: the journal has them already."""

    async def refuse(self, received: Received, why: str) -> None:
        """See `Messenger.refuse`; whoever asked for it hears of it in its result."""

    async def ping(self) -> None:
        """See `Link.ping`: the other side is this process."""

    def close(self) -> None:
        """Ends the pair; what is on its way is recovered from the journal at the next start."""
        self._closed = True
        self._filled.set()
        self._emptied.set()
