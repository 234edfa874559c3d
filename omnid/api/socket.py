"""The Unix socket that clients connect to: JSON-RPC 2.0, one message a line, omnid's own methods and MCP.

A request costs no task and no cancel scope: each connection has one reader, which handles the lines of one read one
after the other and sends their answers together, straight to the socket. Only methods that may wait get a task. What
one client does, or fails to do, ends its own connection at most.
"""

import contextlib
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Literal, Protocol

import anyio
import msgspec
from anyio.abc import TaskGroup, TaskStatus
from anyio.lowlevel import checkpoint
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from msgspec import Raw, Struct

from omnid import platform, wire
from omnid.api.listen import Bound
from omnid.clock import Clock
from omnid.config import Socket as Settings
from omnid.errors import Fatal, OmnidError, Rejected, Retryable
from omnid.flow.guard import guard
from omnid.log import Logger

PREFIX = "omnid/"
"""How the names of omnid's own methods start; a connection that calls any other speaks MCP from then on."""

MCP_LINES_MAX = 64
STOP_S = 5.0
"""How long a stop waits for answers that are being made or sent."""

_READ_BYTES = 64 << 10
_BATCH_BYTES = 64 << 10
_SEND_BYTES = 256 << 10
_ACCEPT_PAUSE_S = 0.1
_ID_STARTS = frozenset(b'"-0123456789n')


class Request(Struct, frozen=True, kw_only=True):
    """A request as it came; `id` and `params` are still JSON, and empty where there are none."""

    jsonrpc: Literal["2.0"]
    method: str
    id: Raw = Raw(b"")
    params: Raw = Raw(b"")


class Handler(Protocol):
    """What the daemon does with requests."""

    def waits(self, request: Request) -> bool:
        """Tells whether the request may take longer than a write to the store: then it gets a task of its own."""
        ...

    async def call(self, connection: "Connection", request: Request) -> bytes:
        """Does one of omnid's own methods and gives its result as JSON; raises OmnidError where it can't."""
        ...

    async def serve_mcp(
        self,
        connection: "Connection",
        lines: MemoryObjectReceiveStream[bytes],
        send: Callable[[bytes], Awaitable[None]],
    ) -> None:
        """Speaks MCP with a client: takes its lines (without newlines) and sends whole lines (with them).

        It is cancelled when the client goes; when it returns or raises, the connection ends.
        """
        ...


class Connection:
    """One client. What it said in its hello (`role`, `origin`, `session`, `parent`) is the handler's to set."""

    def __init__(self, number: int, uid: int, raw: socket.socket, tasks: TaskGroup, slow: "_SlowReaders") -> None:
        self.id = number
        self.uid = uid
        self.role: Literal["person", "agent"] = "person"
        self.origin: str | None = None
        self.session: str | None = None
        self.parent: str | None = None
        self.closed = anyio.Event()
        self.tasks = tasks
        """What goes on for this client; it is cancelled when the client goes."""
        self.waiting = 0
        """How many of its requests have a task of their own now."""
        self.mcp_lines: MemoryObjectSendStream[bytes] | None = None
        """Takes its lines once it speaks MCP."""
        self.cut_because: str | None = None
        self._socket = raw
        self._slow = slow
        self._unsent = bytearray()
        self._drained = anyio.Event()
        self._reading = False
        self._ending = False

    async def send(self, line: bytes) -> None:
        """Sends a whole line and waits until the client has taken what was sent; a client that doesn't is cut off."""
        self.put(line)
        await self.drain()

    def put(self, data: bytes) -> None:
        """Sends what the socket takes now; the rest follows as the client reads."""
        if self.closed.is_set():
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

    async def read(self) -> bytes | None:
        """Waits for bytes from the client; None when it has gone or is to end."""
        if self._ending:
            return None
        self._reading = True
        try:
            # Under load the next request is there once the others had their turn: that saves asking the system to wait.
            await checkpoint()
            while True:
                try:
                    return self._socket.recv(_READ_BYTES) or None
                except BlockingIOError:
                    await anyio.wait_readable(self._socket)
        except OSError:
            return None
        finally:
            self._reading = False

    def cut(self, because: str | None = None) -> None:
        """Ends the connection now, with whatever goes on in it; a reason is for the log."""
        if not self.closed.is_set():
            self.cut_because = because
            self.close()
            self.tasks.cancel_scope.cancel()

    def end(self) -> None:
        """Ends the connection as soon as the requests that it has read are answered."""
        self._ending = True
        if self._reading:
            self.tasks.cancel_scope.cancel()

    def close(self) -> None:
        """Drops what is unsent; from here on nothing can be sent."""
        self.closed.set()
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

    def _sent(self, data: bytes) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self.cut()
            return len(data)


class SocketServer:
    """Listens on a Unix socket and serves the clients of its own user."""

    def __init__(self, settings: Settings, clock: Clock, handler: Handler, log: Logger) -> None:
        self._settings = settings
        self._handler = handler
        self._log = log
        self._slow = _SlowReaders(settings.stall_s, settings.write_buffer_bytes_max, clock)
        self._connections: dict[int, Connection] = {}
        self._accepted = 0
        self._clients = 0
        self._stopping = anyio.Event()
        self._empty = anyio.Event()
        self._decode = msgspec.json.Decoder(Request).decode

    @property
    def clients(self) -> int:
        """How many clients are connected."""
        return self._clients

    def stop(self) -> None:
        """Makes `serve` end: no new clients, the answers that are being made go out, then everything closes."""
        self._stopping.set()

    async def serve(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serves until `stop`; `started` once clients can connect.

        Raises Rejected: `path_too_long`, `unsafe_directory`, `foreign_file`, `already_running`, `state_unwritable`.
        """
        with Bound(self._settings.path) as bound:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._slow.run)
                accepting = await tasks.start(self._accept, bound.socket, tasks)
                task_status.started()
                await self._stopping.wait()
                accepting.cancel()
                bound.unlink()
                for connection in list(self._connections.values()):
                    connection.end()
                with anyio.move_on_after(STOP_S):
                    if self._clients:
                        await self._empty.wait()
                tasks.cancel_scope.cancel()

    async def _accept(
        self, listener: socket.socket, tasks: TaskGroup, *, task_status: TaskStatus[anyio.CancelScope]
    ) -> None:
        failing = False
        with anyio.CancelScope() as scope:
            task_status.started(scope)
            while True:
                await anyio.wait_readable(listener)
                try:
                    raw, _ = listener.accept()
                except BlockingIOError:
                    continue
                except OSError as error:
                    # Out of descriptors, as a rule: those who are connected go on, the others wait in the backlog.
                    if not failing:
                        self._log.error("accept_failed", exc_info=error)
                    failing = True
                    await anyio.sleep(_ACCEPT_PAUSE_S)
                    continue
                failing = False
                raw.setblocking(False)
                problem = self._problem_of(raw)
                if problem is None:
                    self._accepted += 1
                    self._clients += 1
                    tasks.start_soon(self._serve_guarded, raw, self._accepted)
                else:
                    self._refuse(raw, problem)

    def _problem_of(self, raw: socket.socket) -> OmnidError | None:
        """Tells why a new client can't be served; None where it can."""
        try:
            uid = platform.peer_uid(raw)
        except OSError as error:
            return Rejected("foreign_user", uid=f"unknown ({error})")
        if uid != os.getuid():
            return Rejected("foreign_user", uid=uid)
        if self._clients >= self._settings.clients_max:
            return Retryable("too_many_clients", clients_max=self._settings.clients_max)
        return None

    def _refuse(self, raw: socket.socket, problem: OmnidError) -> None:
        self._log.warning("client_refused", problem=problem.as_dict())
        # The buffer of a new connection is empty, so the line fits; a client that has gone already needs none.
        with raw, contextlib.suppress(OSError):
            raw.send(wire.error_answer(b"null", problem))

    async def _serve_guarded(self, raw: socket.socket, number: int) -> None:
        try:
            with raw:
                await guard(f"client {number}", self._serve_client, raw, number, log=self._log)
        finally:
            self._clients -= 1
            if self._stopping.is_set() and not self._clients:
                self._empty.set()

    async def _serve_client(self, raw: socket.socket, number: int) -> None:
        async with anyio.create_task_group() as tasks:
            connection = Connection(number, os.getuid(), raw, tasks, self._slow)
            self._connections[number] = connection
            if self._stopping.is_set():
                connection.end()
            try:
                await self._read(connection)
                await connection.drain()
            finally:
                del self._connections[number]
                connection.close()
                tasks.cancel_scope.cancel()
                if connection.cut_because is not None:
                    self._log.info("client_cut", client=number, origin=connection.origin, why=connection.cut_because)

    async def _read(self, connection: Connection) -> None:
        """Reads lines and handles them until the client goes."""
        splitter = wire.LineSplitter(self._settings.message_bytes_max)
        while (data := await connection.read()) is not None:
            answers = bytearray()
            try:
                for line in splitter.feed(data):
                    answer = await self._take(connection, line)
                    if answer is not None:
                        answers += answer
                        if len(answers) > _BATCH_BYTES:
                            # Many small lines with large answers: neither their memory nor their time is one client's.
                            await connection.send(bytes(answers))
                            answers.clear()
                            await checkpoint()
            except Rejected as error:
                connection.put(bytes(answers) + wire.error_answer(b"null", error, wire.INVALID_REQUEST))
                return
            if answers:
                connection.put(bytes(answers))
            # Whoever doesn't read its answers is not read from either.
            await connection.drain()

    async def _take(self, connection: Connection, line: bytes) -> bytes | None:
        """Handles one line and gives its answer, if it has one now."""
        if connection.mcp_lines is not None:
            await _pass_on(connection, connection.mcp_lines, line)
            return None
        try:
            request = self._decode(line)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            return _unreadable(error)
        if not request.method.startswith(PREFIX):
            await _pass_on(connection, self._start_mcp(connection), line)
            return None
        request_id = bytes(request.id)
        if request_id and request_id[0] not in _ID_STARTS:
            detail = "its id is neither a string nor a number"
            return wire.error_answer(b"null", _bad_request(detail), wire.INVALID_REQUEST)
        if not self._handler.waits(request):
            return await self._answer(connection, request, request_id)
        limit = self._settings.requests_max
        if connection.waiting >= limit:
            many = Retryable(
                "too_many", count=limit + 1, things="open requests", limit=limit, setting="socket.requests_max"
            )
            return wire.error_answer(request_id, many) if request_id else None
        connection.waiting += 1
        connection.tasks.start_soon(self._answer_later, connection, request, request_id)
        return None

    async def _answer_later(self, connection: Connection, request: Request, request_id: bytes) -> None:
        try:
            answer = await self._answer(connection, request, request_id)
        finally:
            connection.waiting -= 1
        if answer is not None:
            await connection.send(answer)

    async def _answer(self, connection: Connection, request: Request, request_id: bytes) -> bytes | None:
        """Does the request and gives the line that answers it; None where it is a notification."""
        try:
            result = await self._handler.call(connection, request)
        except Fatal:
            raise
        except OmnidError as error:
            return wire.error_answer(request_id, error) if request_id else None
        except Exception as error:  # noqa: BLE001 - a fault in one method must not end the client's other requests.
            self._log.error("request_failed", method=request.method, client=connection.id, exc_info=error)
            fault = Rejected("internal", detail=f"{request.method} broke off ({type(error).__name__})")
            return wire.error_answer(request_id, fault) if request_id else None
        if not request_id:
            return None
        return b'{"jsonrpc":"2.0","id":%b,"result":%b}\n' % (request_id, result)

    def _start_mcp(self, connection: Connection) -> MemoryObjectSendStream[bytes]:
        send, receive = anyio.create_memory_object_stream[bytes](MCP_LINES_MAX)
        connection.mcp_lines = send
        connection.tasks.start_soon(self._speak_mcp, connection, receive)
        return send

    async def _speak_mcp(self, connection: Connection, lines: MemoryObjectReceiveStream[bytes]) -> None:
        with lines:
            await self._handler.serve_mcp(connection, lines, connection.send)
        connection.cut("its MCP session ended")


class _SlowReaders:
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


async def _pass_on(connection: Connection, lines: MemoryObjectSendStream[bytes], line: bytes) -> None:
    try:
        await lines.send(line)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        connection.cut("its MCP session ended")


def _bad_request(detail: str) -> Rejected:
    return Rejected("bad_request", detail=detail, where="the line")


def _unreadable(error: Exception) -> bytes:
    if not isinstance(error, msgspec.ValidationError):
        return wire.error_answer(b"null", _bad_request(f"the line is no JSON ({error})"), wire.PARSE_ERROR)
    detail = str(error).replace("`", "")
    if "got array" in detail:
        detail = "batches (arrays) are not taken: send one message a line"
    return wire.error_answer(b"null", _bad_request(detail), wire.INVALID_REQUEST)
