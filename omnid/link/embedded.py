"""The embedded link: a bounded pair in memory between the dispatcher and the runner of the same process.

The dispatch transaction is its `begun` record, so it keeps nothing durably itself.
"""

import anyio

from omnid.model import Command


class EmbeddedLink:
    """See `interface.Link`."""

    def __init__(self, window_max: int = 256) -> None:
        self._send, self._receive = anyio.create_memory_object_stream[Command](window_max)

    async def send(self, command: Command) -> None:
        """Hands a command to the runner; waits while `window_max` commands are on their way."""
        try:
            self._send.send_nowait(command)
        except anyio.WouldBlock:
            await self._send.send(command)

    async def receive(self) -> Command:
        """Gives the next command; raises anyio.EndOfStream after `close`."""
        return await self._receive.receive()

    def close(self) -> None:
        """Ends the pair; what is on its way is recovered from the journal at the next start."""
        self._send.close()
        self._receive.close()
