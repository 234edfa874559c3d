"""What a link is: a connection that carries commands to runners and results back, at least once."""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

from msgspec import Struct

from omnid.errors import Retryable
from omnid.model import Cancel, Command, Heartbeat, Mark, Result, Watch

Message = Command | Cancel | Watch | Mark | Result | Heartbeat
"""What crosses a link: commands, cancels and watches to a runner, its own marks, results and heartbeats from it."""

EMBEDDED = "embedded"
"""The name of the runner inside the daemon."""


class LinkDown(Retryable):
    """Nothing gets through now.

    What was not confirmed may have arrived or not: it is sent again, and what comes twice is dropped.
    """


class LinkFull(LinkDown):
    """It is there and takes nothing now, as a broker without memory or disk; what comes can still be acknowledged."""


class Poison(Struct, frozen=True):
    """What has come in the place of a message and is none for this end. Nobody vouches for what it says of itself."""

    why: str
    data: bytes
    kind: str = ""
    """Which kind of message it says it is."""
    command: Command | None = None
    """The command that it says it is, without its work."""


class Received(NamedTuple):
    """A message that has come and isn't acknowledged yet."""

    message: Message | Poison
    tag: Any = None
    """What the link knows it by."""
    sender: str = ""
    """The name of the end that it comes from; of poison what it says, "" where that is no name."""


class Messenger(Protocol):
    """Sends to others by their names, and receives what they send to this end, in their order.

    It raises LinkDown and Rejected, and nothing of its library's. What has come and was not acknowledged comes again
    at the next connection; so may what was acknowledged in the moment of a failure.
    """

    async def send(self, to: str, batch: Sequence[Message]) -> None:
        """Returns when the other side has all of them durably, in this order, whether `to` is there now or not.

        Raises LinkDown and LinkFull; Retryable(`delivery_failed`) where this one destination can't take them now; and
        Rejected(`message_refused`) where one of them can never be sent: none of them was then.
        """
        ...

    async def receive(self) -> list[Received]:
        """Gives what has come, at least one message; waits as long as it takes."""
        ...

    async def ack(self, received: Sequence[Received]) -> None:
        """Says that they are durable here, so that they don't come again; raises LinkDown: then they may."""
        ...

    async def refuse(self, received: Received, why: str) -> None:
        """Sets a message aside at the other side, where people find it, with the reason; it doesn't come again."""
        ...


class Station(Messenger, Protocol):
    """A messenger whose name another may have taken while it did not look."""

    async def keep_name(self) -> None:
        """Returns when this end surely has its name, at once where a ping has shown that lately; raises LinkDown."""
        ...


class Link(Messenger, Protocol):
    """One connection of one end. What is no message for this end comes as `Poison`, for its receiver to refuse.

    `receive` is cancelled only to end the connection, because what was on its way comes at the next one then; and a
    connection that is dead shows in `ping`, not there.
    """

    @property
    def name_s(self) -> float:
        """For how long this end surely has its name after the begin of a dial or a ping that was answered.

        0: it was let in without, because the other side has no room to write the name down.
        """
        ...

    async def __aenter__(self) -> Self:
        """Connects, and takes the name of this end, which only one may have.

        Raises LinkDown (`link_down`, `name_taken`) and Rejected(`link_refused`): only a person can change that.
        """
        ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Lets go of the connection."""
        ...

    async def ping(self) -> None:
        """Returns when the other side has answered; raises LinkDown, and LinkFull where it has and takes nothing."""
        ...


class InProcessLink(Link, Protocol):
    """A link whose other end is in the same process: what it takes at once needs no switch of tasks."""

    def offer(self, message: Message) -> bool:
        """Does what `send` does where that needs no waiting; False: it would have to wait, and nothing was sent."""
        ...
