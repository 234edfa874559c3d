"""How messages reach an MCP server and come back: what a transport is, and the one over a process's standard streams.

A transport knows nothing of the SDK. It hands each message that comes to the session's inbox, and tells it which
requests nobody will answer any more.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol

import anyio
import anyio.lowlevel

from omnid.errors import Rejected
from omnid.executor.supervised import Server
from omnid.wire import LineSplitter

MESSAGE_BYTES_MAX = 4 << 20
"""The longest message that a server may send."""
GARBAGE_MAX = 1000
"""How many messages that are none a stream may bring before it counts as broken."""
MESSAGES_PER_S_MAX = 1000
"""How many messages beside answers are read from a stream in a second; what is sent beyond that waits."""
DETAIL_CHARS_MAX = 500
FAREWELL_S = 2.0
"""How long a server that has closed its output may take to end, to learn its exit code."""

Id = int | str


class Broken(Exception):
    """A stream of messages that can't be read any further; the text says why, as the `detail` of an error."""


class Trouble(NamedTuple):
    """Why a request gets no answer.

    `down`: the server can't be used now, and surely didn't take it; `ended`: nor did it because it has forgotten the
    session; `refused`: it turned down this request alone; `unknown`: nobody knows how far it came.
    """

    kind: Literal["down", "ended", "refused", "unknown"]
    why: str


class Outgoing(NamedTuple):
    """A message for the server."""

    body: bytes
    method: str | None
    """None: it answers a request of the server."""
    id: Id | None
    """None: it is no request."""
    headers: Mapping[str, str]
    """What goes with it over HTTP."""
    modern: bool
    """Whether it is of the era of 2026-07-28."""
    cancels: Id | None = None
    """The request that it cancels."""


class Flow:
    """One stream of messages from a server, and how much it may bring."""

    def __init__(self, answers: Id | None = None) -> None:
        """`answers`: the only request that it may answer; None: any."""
        self.answers = answers
        self._garbage = 0
        self._unpaced, self._paced_at_s = 0, 0.0

    async def pace(self) -> None:
        """Counts a message beside answers, and waits where there were too many."""
        self._unpaced += 1
        if self._unpaced >= MESSAGES_PER_S_MAX:
            await anyio.sleep(max(0.0, self._paced_at_s + 1.0 - anyio.current_time()))
            self._unpaced, self._paced_at_s = 0, anyio.current_time()

    def garbage(self) -> bool:
        """Counts a message that is none, and tells whether it is the first; raises Broken where there were too many."""
        self._garbage += 1
        if self._garbage > GARBAGE_MAX:
            raise Broken(f"it sent more than {GARBAGE_MAX} lines that are no JSON-RPC messages")
        return self._garbage == 1


class Inbox(Protocol):
    """Where messages from the server go; the session is one."""

    async def take(self, message: bytes, flow: Flow) -> bool:
        """Takes a message, and tells whether it was an answer.

        Raises Broken where the stream brings what can't be borne, anyio.ClosedResourceError or
        anyio.BrokenResourceError where the session has ended.
        """
        ...

    async def fail(self, id: Id, trouble: Trouble) -> None:
        """Hears that nobody will answer a request."""
        ...


class Transport(Protocol):
    """The way to one running server; used by one session, from its start to its end."""

    remote: bool
    """Whether the server is not ours: it may have several sessions at once, and go on when this one has ended."""

    async def run(self, inbox: Inbox) -> None:
        """Hands on what the server sends, until it is cancelled; raises Broken where the server has gone."""
        ...

    async def send(self, message: Outgoing) -> None:
        """Sends a message, or begins to; raises anyio.BrokenResourceError where the server has gone."""
        ...

    async def farewell(self) -> str:
        """Says how a server has ended that has gone, within `FAREWELL_S`."""
        ...

    async def with_last_words(self, how: str) -> str:
        """Adds to what is said of its end what the server said last."""
        ...

    async def close(self) -> None:
        """Ends the connection, and the server where it is ours; raises Retryable ``executor_down`` where it won't."""
        ...


class StdioTransport:
    """Implements `Transport` over the standard streams of a supervised process, one message a line."""

    remote = False

    def __init__(self, server: Server) -> None:
        self._server = server

    async def run(self, inbox: Inbox) -> None:
        """See `Transport.run`."""
        splitter, flow = LineSplitter(MESSAGE_BYTES_MAX), Flow()
        try:
            while True:
                for line in splitter.feed(await self._server.receive()):
                    await inbox.take(line, flow)
                # What is always ready to be read must not keep all others from running.
                await anyio.lowlevel.checkpoint()
        except anyio.EndOfStream:
            raise Broken(await self.farewell()) from None
        except Rejected:
            raise Broken(f"it sent a line of more than {MESSAGE_BYTES_MAX} bytes") from None

    async def send(self, message: Outgoing) -> None:
        """See `Transport.send`."""
        await self._server.send(message.body + b"\n")

    async def farewell(self) -> str:
        """See `Transport.farewell`."""
        how = "it closed its connection"
        with anyio.move_on_after(FAREWELL_S):
            how = await self._server.wait_closed()
        return await self.with_last_words(how)

    async def with_last_words(self, how: str) -> str:
        """See `Transport.with_last_words`."""
        tail = (await self._server.log_tail(DETAIL_CHARS_MAX)).strip()
        return f"{how}; its last words were: {tail}" if tail else how

    async def close(self) -> None:
        """See `Transport.close`."""
        await self._server.terminate()
