"""What a link is: a connection that carries commands to runners and results back, at least once."""

from collections.abc import Awaitable
from typing import Protocol

from omnid.model import Command


class Link(Protocol):
    """Carries commands to one runner."""

    def send(self, command: Command) -> Awaitable[None]:
        """Returns when the other side has the command durably (embedded: when it is in the runner's hands)."""
        ...

    def offer(self, command: Command) -> bool:
        """Does what `send` does where that needs no waiting; False: it would have to wait, and nothing was sent."""
        ...

    def receive(self) -> Awaitable[Command]:
        """Gives the next command, in the order of sending; raises anyio.EndOfStream after `close`."""
        ...
