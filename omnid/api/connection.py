"""One client of the socket: what it has sent and not been answered yet, and what it has yet to take."""

import socket
from collections import deque
from collections.abc import Callable
from typing import Literal

import anyio
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectSendStream

from omnid import wire
from omnid.api.poller import Poller
from omnid.clock import Clock

BATCH_BYTES = 64 << 10
"""From how many bytes on answers are sent that could still wait for others."""

_READ_BYTES = 64 << 10
_SEND_BYTES = 256 << 10


class Connection:
    """One client. What it said in its hello (`role`, `origin`, `session`, `parent`, `above`) is the handler's to set.

    It is read from only while nothing of what it sent before is left to do or to send: so its requests are done in
    order, and neither what it asks nor what it doesn't read piles up.
    """

    def __init__(
        self,
        number: int,
        uid: int,
        raw: socket.socket,
        tasks: TaskGroup,
        *,
        slow: "SlowReaders",
        poller: "Poller[Connection]",
        line_bytes_max: int,
    ) -> None:
        self.id = number
        self.uid = uid
        self.role: Literal["person", "agent"] = "person"
        self.origin: str | None = None
        self.session: str | None = None
        self.parent: str | None = None
        self.above: tuple[str, ...] = ()
        self.tools: frozenset[str] | None = None
        """The MCP tools that it gets; None: all."""
        self.read_only = False
        self.closed = anyio.Event()
        self.tasks = tasks
        """What goes on for this client; it is cancelled when the client goes."""
        self.waiting = 0
        """How many of its requests have a task of their own now."""
        self.mcp_lines: MemoryObjectSendStream[bytes] | None = None
        """Takes its lines once it speaks MCP."""
        self.gone: Callable[[], None] | None = None
        """Called when it has gone."""
        self.cut_because: str | None = None
        self.lines: deque[bytes | wire.Glimpse] = deque()
        """What was read and not begun yet."""
        self.begun = 0
        """How many requests are under way without a task."""
        self.working = False
        """Whether a task works off `lines`."""
        self.splitter = wire.LenientSplitter(line_bytes_max)
        self._socket = raw
        self._slow = slow
        self._poller = poller
        self._answers = bytearray()
        self._unsent = bytearray()
        self._drained = anyio.Event()
        self._quiet: anyio.Event | None = None
        """Set once nothing is under way; there only while somebody waits for that."""
        self._gone = False
        self._left = anyio.Event()
        self._ending = False
        self._shut = False

    @property
    def free(self) -> bool:
        """Whether it may be read from."""
        return not (self.begun or self.working or self._unsent or self._gone)

    def receive(self) -> bytes | None:
        """Gives what can be read now, maybe nothing; None when the client has gone."""
        try:
            return self._socket.recv(_READ_BYTES) or None
        except BlockingIOError:
            return b""
        except OSError:
            return None

    async def send(self, line: bytes) -> None:
        """Sends a whole line and waits until the client has taken what was sent; a client that doesn't is cut off."""
        self.put(line)
        await self.drain()

    def put(self, data: bytes) -> None:
        """Sends what the socket takes now; the rest follows as the client reads."""
        if self._shut:
            return
        if not self._unsent:
            data = data[self._sent(data) :]
            if not data:
                return
            self._drained = anyio.Event()
            self._slow.watch(self)
            self.tasks.start_soon(self._flush)
        self._unsent += data
        if len(self._unsent) > self._slow.unsent_bytes_max:
            self.cut("it doesn't read its answers")

    async def drain(self) -> None:
        """Waits until nothing is left to send."""
        while self._unsent:
            await self._drained.wait()

    def answer(self, line: bytes) -> bool:
        """Sends an answer, together with those that come behind it; tells whether it is time to `send_answers`."""
        if not self.begun and not self.working and not self.lines and not self._answers:
            self.put(line)
            return False
        self._answers += line
        return len(self._answers) > BATCH_BYTES

    def send_answers(self) -> None:
        """Sends the answers that waited for others."""
        if self._answers:
            answers, self._answers = bytes(self._answers), bytearray()
            self.put(answers)

    def settle(self) -> None:
        """Once all that was read is answered: sends it, and reads on or ends."""
        if self.begun or self.working:
            return
        if self._answers:
            self.send_answers()
        if self._ending:
            self.finish()
        elif not self._unsent and not self._gone:
            self._poller.resume(self)

    def finish(self) -> None:
        """Reads no more: the client has gone, or is to go as soon as it has its answers."""
        self._poller.pause(self)
        self._gone = True
        self._left.set()

    async def finished(self) -> None:
        """Waits until it is read from no more, which is when what was read is answered, and until that is sent."""
        await self._left.wait()
        await self.drain()

    async def quiet(self) -> None:
        """Waits until no request is under way without a task."""
        while self.begun:
            self._quiet = anyio.Event()
            await self._quiet.wait()

    def has_answered(self) -> None:
        """One request less is under way without a task."""
        self.begun -= 1
        if not self.begun and self._quiet is not None:
            self._quiet.set()

    def cut(self, because: str | None = None) -> None:
        """Ends the connection now, with whatever goes on in it; a reason is for the log."""
        if not self._shut:
            self.cut_because = because
            self.close()
            self.tasks.cancel_scope.cancel()

    def end(self) -> None:
        """Ends the connection as soon as the requests that it has read are answered."""
        self._ending = True
        if not self.begun and not self.working:
            self.finish()

    def close(self) -> None:
        """Drops what is unsent; from here on nothing can be read or sent."""
        self.finish()
        self._shut = True
        self.closed.set()
        if self.gone is not None:
            self.gone()
            self.gone = None
        self.lines.clear()
        self._answers.clear()
        self._unsent.clear()
        self._drained.set()
        self._slow.forget(self)
        if self.mcp_lines is not None:
            self.mcp_lines.close()

    async def _flush(self) -> None:
        while self._unsent:
            await anyio.wait_writable(self._socket)
            sent = self._sent(bytes(self._unsent[:_SEND_BYTES]))
            if sent:
                del self._unsent[:sent]
                self._slow.watch(self)
        self._slow.forget(self)
        self._drained.set()
        self.settle()

    def _sent(self, data: bytes) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self.cut()
            return len(data)


class SlowReaders:
    """Cuts off clients to whom nothing could be sent for `stall_s`: one timer for all of them."""

    def __init__(self, stall_s: float, unsent_bytes_max: int, clock: Clock) -> None:
        self.unsent_bytes_max = unsent_bytes_max
        self._stall_s = stall_s
        self._clock = clock
        self._deadlines_s: dict[Connection, float] = {}
        self._wanted = anyio.Event()

    def watch(self, connection: Connection) -> None:
        """Gives the connection `stall_s` from now."""
        self._deadlines_s[connection] = self._clock.monotonic_s() + self._stall_s
        self._wanted.set()

    def forget(self, connection: Connection) -> None:
        """Nothing is left to send."""
        self._deadlines_s.pop(connection, None)

    async def run(self) -> None:
        """Watches for ever; sleeps while there is nobody to watch."""
        while True:
            await self._wanted.wait()
            now_s = self._clock.monotonic_s()
            for connection, deadline_s in list(self._deadlines_s.items()):
                if deadline_s <= now_s:
                    self.forget(connection)
                    connection.cut("it doesn't read its answers")
            if self._deadlines_s:
                await anyio.sleep(max(0.0, min(self._deadlines_s.values()) - now_s))
            else:
                self._wanted = anyio.Event()
