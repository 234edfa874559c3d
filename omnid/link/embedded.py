"""The embedded link: a bounded pair in memory between the dispatcher and the runner of the same process.

The dispatch transaction is its `begun` record, so it keeps nothing durably itself.
"""

from collections import deque

import anyio

from omnid.model import Command


class EmbeddedLink:
    """See `interface.Link`."""

    def __init__(self, window_max: int = 256) -> None:
        self._window_max = window_max
        self._commands: deque[Command] = deque()
        self._filled = anyio.Event()
        self._emptied = anyio.Event()
        self._closed = False

    @property
    def held(self) -> int:
        """How many commands are on their way."""
        return len(self._commands)

    def offer(self, command: Command) -> bool:
        """See `interface.Link.offer`."""
        if self._closed or len(self._commands) >= self._window_max:
            return False
        self._commands.append(command)
        self._filled.set()
        return True

    async def send(self, command: Command) -> None:
        """Hands a command to the runner; waits while `window_max` commands are on their way.

        Raises anyio.ClosedResourceError after `close`.
        """
        while not self.offer(command):
            if self._closed:
                raise anyio.ClosedResourceError
            self._emptied = anyio.Event()
            await self._emptied.wait()

    async def receive(self) -> Command:
        """Gives the next command, at once where there is one; raises anyio.EndOfStream after `close`."""
        while not self._commands:
            if self._closed:
                raise anyio.EndOfStream
            self._filled = anyio.Event()
            await self._filled.wait()
        self._emptied.set()
        return self._commands.popleft()

    def close(self) -> None:
        """Ends the pair; what is on its way is recovered from the journal at the next start."""
        self._closed = True
        self._filled.set()
        self._emptied.set()
