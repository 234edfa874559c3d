"""The Unix socket that clients connect to: JSON-RPC 2.0, one message a line, omnid's own methods and MCP.

A request costs no task and no cancel scope: the loop reads from all clients that have sent something, begins what they
ask for, and each answer is sent by whoever makes it, straight to the socket. What is more than one write to the store
gets a task. What one client does, or fails to do, ends its own connection at most.
"""

import contextlib
import os
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Literal, Protocol

import anyio
import msgspec
from anyio.abc import TaskGroup, TaskStatus
from anyio.lowlevel import checkpoint
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from msgspec import Raw, Struct

from omnid import platform, wire
from omnid.api.connection import Connection, SlowReaders
from omnid.api.listen import Bound
from omnid.api.poller import Poller
from omnid.clock import Clock
from omnid.errors import Fatal, OmnidError, Rejected, Retryable
from omnid.flow.guard import guard
from omnid.log import Logger
from omnid.settings import Socket as Settings
from omnid.store.interface import Outcome

PREFIX = "omnid/"
"""How the names of omnid's own methods start; a connection that calls any other speaks MCP from then on."""

MCP_LINES_MAX = 64
STOP_S = 5.0
"""How long a stop waits for answers that are being made or sent."""

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

    def begin(self, connection: Connection, request: Request, done: Callable[[Outcome[bytes]], None]) -> bool:
        """Begins a request that is one write to the store, if this is one; `done` is called, once, with its result.

        False: nothing was begun, and `call` does it or says why not.
        """
        ...

    async def call(self, connection: Connection, request: Request) -> bytes:
        """Does one of omnid's own methods and gives its result as JSON; raises OmnidError where it can't."""
        ...

    async def serve_mcp(
        self,
        connection: Connection,
        lines: MemoryObjectReceiveStream[bytes],
        send: Callable[[bytes], Awaitable[None]],
    ) -> None:
        """Speaks MCP with a client: takes its lines (without newlines) and sends whole lines (with them).

        It is cancelled when the client goes; when it returns or raises, the connection ends.
        """
        ...


class SocketServer:
    """Listens on a Unix socket and serves the clients of its own user."""

    def __init__(self, settings: Settings, clock: Clock, handler: Handler, log: Logger) -> None:
        self._settings = settings
        self._handler = handler
        self._log = log
        self._slow = SlowReaders(settings.stall_s, settings.write_buffer_bytes_max, clock)
        self._poller: Poller[Connection] = Poller(self._readable)
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
                tasks.start_soon(self._poller.run)
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
            connection = Connection(
                number,
                os.getuid(),
                raw,
                tasks,
                slow=self._slow,
                poller=self._poller,
                line_bytes_max=self._settings.message_bytes_max,
            )
            self._connections[number] = connection
            self._poller.add(connection, raw)
            if self._stopping.is_set():
                connection.end()
            try:
                await connection.finished()
            finally:
                del self._connections[number]
                connection.close()
                self._poller.remove(connection)
                tasks.cancel_scope.cancel()
                if connection.cut_because is not None:
                    self._log.info("client_cut", client=number, origin=connection.origin, why=connection.cut_because)

    def _readable(self, connection: Connection) -> None:
        """Reads from a client and begins what it asks for; whatever goes wrong there is that client's alone."""
        try:
            self._read(connection)
        except Fatal:
            raise
        except Exception as error:  # noqa: BLE001 - the others are read by the same task.
            self._log.error("client_failed", client=connection.id, exc_info=error)
            connection.cut("a fault in omnid")

    def _read(self, connection: Connection) -> None:
        data = connection.receive()
        if data is None:
            connection.finish()
            return
        connection.lines.extend(connection.splitter.feed(data))
        self._begin_lines(connection)

    def _begin_lines(self, connection: Connection) -> None:
        """Begins as many requests as need no task; a task works off the rest, so that all keep their order."""
        lines = connection.lines
        while lines:
            line = lines.popleft()
            if not self._begin(connection, line):
                lines.appendleft(line)
                connection.working = True
                connection.tasks.start_soon(self._work_off, connection)
                return
        if not connection.begun:
            connection.settle()

    def _begin(self, connection: Connection, line: bytes | wire.Glimpse) -> bool:
        """Begins one request that is a write; tells whether it was one."""
        if isinstance(line, wire.Glimpse):
            return False
        if connection.mcp_lines is not None:
            return _passed_on(connection.mcp_lines, line)
        try:
            request = self._decode(line)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return False
        request_id = bytes(request.id)
        if not request_id or request_id[0] not in _ID_STARTS:
            return False
        connection.begun += 1
        if self._handler.begin(connection, request, partial(self._done, connection, request, request_id)):
            return True
        connection.begun -= 1
        return False

    def _done(self, connection: Connection, request: Request, request_id: bytes, outcome: Outcome[bytes]) -> None:
        """Sends the answer to a request that had no task."""
        try:
            answer: bytes | None = _answered(request_id, outcome.outcome())
        except Fatal:
            answer = None  # The daemon ends with it.
        except Exception as error:  # noqa: BLE001 - a fault in one method must not end the client's other requests.
            answer = self._failed(connection, request, request_id, error)
        connection.has_answered()
        if answer is not None and connection.answer(answer):
            connection.send_answers()
        connection.settle()

    async def _work_off(self, connection: Connection) -> None:
        """Handles lines one after the other."""
        try:
            await connection.quiet()
            while connection.lines:
                answer = await self._take(connection, connection.lines.popleft())
                if answer is not None and connection.answer(answer):
                    # Many small lines with large answers: neither their memory nor their time is one client's.
                    connection.send_answers()
                    await connection.drain()
                    await checkpoint()
        finally:
            connection.working = False
        connection.settle()

    async def _take(self, connection: Connection, line: bytes | wire.Glimpse) -> bytes | None:
        """Handles one line and gives its answer, if it has one now."""
        if isinstance(line, wire.Glimpse):
            return await self._refuse_long(connection, line)
        if connection.mcp_lines is not None:
            await _pass_on(connection, connection.mcp_lines, line)
            return None
        try:
            request = self._decode(line)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            return _unreadable(line, error)
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

    async def _refuse_long(self, connection: Connection, line: wire.Glimpse) -> bytes | None:
        """Gives the answer to a request that was too long; of an answer to us it makes an error."""
        problem = Rejected("message_too_large", limit_bytes=self._settings.message_bytes_max)
        if line.answered_id is None:
            return wire.error_answer(wire.id_json(line.request_id), problem)
        if connection.mcp_lines is not None:
            answer = wire.error_answer(wire.id_json(line.answered_id), problem)
            await _pass_on(connection, connection.mcp_lines, answer.rstrip())
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
        except Exception as error:  # noqa: BLE001 - a fault in one method must not end the client's other requests.
            return self._failed(connection, request, request_id, error)
        return _answered(request_id, result) if request_id else None

    def _failed(self, connection: Connection, request: Request, request_id: bytes, error: Exception) -> bytes | None:
        """Gives the line that answers a request with an error; what isn't one of ours is a fault, and logged."""
        if not isinstance(error, OmnidError):
            self._log.error("request_failed", method=request.method, client=connection.id, exc_info=error)
            error = Rejected("internal", detail=f"{request.method} broke off ({type(error).__name__})")
        return wire.error_answer(request_id, error) if request_id else None

    def _start_mcp(self, connection: Connection) -> MemoryObjectSendStream[bytes]:
        send, receive = anyio.create_memory_object_stream[bytes](MCP_LINES_MAX)
        connection.mcp_lines = send
        connection.tasks.start_soon(self._speak_mcp, connection, receive)
        return send

    async def _speak_mcp(self, connection: Connection, lines: MemoryObjectReceiveStream[bytes]) -> None:
        with lines:
            await self._handler.serve_mcp(connection, lines, connection.send)
        connection.cut("its MCP session ended")


def _answered(request_id: bytes, result: bytes) -> bytes:
    return b'{"jsonrpc":"2.0","id":%b,"result":%b}\n' % (request_id, result)


def _passed_on(lines: MemoryObjectSendStream[bytes], line: bytes) -> bool:
    """Passes a line on if the MCP session can take it now."""
    try:
        lines.send_nowait(line)
    except (anyio.WouldBlock, anyio.BrokenResourceError, anyio.ClosedResourceError):
        return False
    return True


async def _pass_on(connection: Connection, lines: MemoryObjectSendStream[bytes], line: bytes) -> None:
    try:
        await lines.send(line)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        connection.cut("its MCP session ended")


def _bad_request(detail: str) -> Rejected:
    return Rejected("bad_request", detail=detail, where="the line")


def _unreadable(line: bytes, error: Exception) -> bytes:
    request_id = wire.id_json(wire.Glimpse.of(line).request_id)
    if not isinstance(error, msgspec.ValidationError):
        return wire.error_answer(request_id, _bad_request(wire.why_unreadable(line, error)), wire.PARSE_ERROR)
    detail = str(error).replace("`", "")
    if "got array" in detail:
        detail = "batches (arrays) are not taken: send one message a line"
    return wire.error_answer(request_id, _bad_request(detail), wire.INVALID_REQUEST)
