"""The tools of `mcp_server` over streamable HTTP, in a thread of the test; its hooks may answer in their place."""

import json
import queue
import select
import socket
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from tests.fakes import mcp_server

Hook = Callable[["Exchange", dict[str, Any]], bool]
"""Answers a request in its own way, or gives False."""


class Cut(Exception):
    """The connection breaks here."""


class Exchange(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    server: "McpHttpServer"

    def setup(self) -> None:
        super().setup()
        self.wfile = self.connection.makefile("wb", 0)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""

    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["content-length"])) or b"{}")
        self.server.seen.append(("POST", message.get("method"), dict(self.headers)))
        try:
            if not any(hook(self, message) for hook in self.server.hooks):
                self._serve(message)
        except (Cut, BrokenPipeError, ConnectionResetError):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def do_GET(self) -> None:
        self.server.seen.append(("GET", None, dict(self.headers)))
        if not any(hook(self, {}) for hook in self.server.hooks):
            self.reply(405)

    def do_DELETE(self) -> None:
        self.server.seen.append(("DELETE", None, dict(self.headers)))
        self.server.sessions.discard(self.headers.get("mcp-session-id", ""))
        self.reply(200)

    def reply(self, status: int, body: bytes = b"", kind: str = "application/json", **headers: str) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        if body:
            self.send_header("content-type", kind)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def begin_events(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True

    def event(self, data: bytes, head: bytes = b"") -> None:
        self.wfile.write(head + b"data: " + data + b"\n\n")

    def answer(self, message: dict[str, Any]) -> bytes:
        """Gives what the tools answer, with all that they say before."""
        said: list[bytes] = []
        mcp_server.OUT.write = said.append
        mcp_server.answer(message, run=lambda work, *arguments: work(*arguments))
        return b"".join(said)

    def until_hung_up(self) -> None:
        select.select([self.connection], [], [], 30)

    def _serve(self, message: dict[str, Any]) -> None:
        method, session = message.get("method"), self.headers.get("mcp-session-id")
        if self.server.token and self.headers.get("authorization") != f"Bearer {self.server.token}":
            self.reply(401, b'{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"who are you?"}}')
        elif session is not None and session not in self.server.sessions:
            self.reply(404, b'{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"no such session"}}')
        elif message.get("id") is None or method is None:
            mcp_server.answer(message)
            self.reply(202)
        elif method == "initialize" and mcp_server.OPTIONS["era"] == "old":
            id = f"session-{len(self.server.sessions)}-{len(self.server.seen)}"
            self.server.sessions.add(id)
            self.reply(200, self.answer(message), mcp_session_id=id)
        elif self.server.events:
            self.begin_events()
            mcp_server.OUT.write = lambda data: self.event(data.rstrip(b"\n"))
            mcp_server.answer(message, run=self._call)
        else:
            body = self.answer(message)
            if not body:
                self._hold(message)
            self.reply(200, body.splitlines()[-1])

    def _call(self, work: Any, *arguments: Any) -> None:
        work(*arguments)
        if arguments[-1].get("name", "").startswith("hang"):
            self._hold({"params": arguments[-1]})

    def _hold(self, message: dict[str, Any]) -> None:
        self.until_hung_up()
        self.server.hung_up.put(message["params"]["name"])
        raise Cut


class McpHttpServer(ThreadingHTTPServer):
    """Listens on a port of its own until it is closed."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(
        self,
        *,
        token: str = "",
        events: bool = True,
        port: int = 0,
        tls: tuple[Path, Path] | None = None,
        **options: Any,
    ):
        super().__init__(("127.0.0.1", port), Exchange)
        self.token = token
        self.events = events
        self.hooks: list[Hook] = []
        self.seen: list[tuple[str, str | None, dict[str, str]]] = []
        self.sessions: set[str] = set()
        self.hung_up: queue.Queue[str] = queue.Queue()
        """The tools whose callers hung up before the answer."""
        self._before = dict(mcp_server.OPTIONS)
        mcp_server.OPTIONS.update(options)
        self._dying = mcp_server.do_die
        mcp_server.do_die = mcp_server.do_die_reading = mcp_server.do_die_again = _die
        self.scheme = "http"
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
            self.scheme = "https"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}/mcp"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()
        mcp_server.OPTIONS.update(self._before)
        mcp_server.do_die = mcp_server.do_die_reading = mcp_server.do_die_again = self._dying

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is no error."""

    def posts(self, method: str) -> list[dict[str, str]]:
        """Gives the headers of all requests for a method."""
        return [headers for _, of, headers in self.seen if of == method]


def _die(_request: Any, _given: dict[str, Any], _token: Any) -> None:
    raise Cut
