"""MCP over streamable HTTP: uvicorn, a gate that looks at each request, and behind it the SDK's sessions.

uvicorn, starlette and the SDK are imported only where the config asks for HTTP. uvicorn needs asyncio, which the daemon
runs on; on another backend a start with `http.listen` is refused.
"""

import gc
import socket
from typing import TYPE_CHECKING, Any, cast

import anyio
from anyio import to_thread

from omnid import platform
from omnid.api.http_gate import App, Bearer, Gate, Rates, Receive, Scope, Send, answer_empty, names_of
from omnid.api.mcp_server import McpServer
from omnid.clock import Clock
from omnid.errors import Rejected
from omnid.log import Logger
from omnid.secrets import Secrets
from omnid.settings import Http as Settings

if TYPE_CHECKING:
    from omnid.api.http_uvicorn import Server

PATH = "/mcp"
TOKEN_CHARS_MIN = 16
BACKLOG = 128


class HttpServer:
    """Serves MCP at `PATH` of one address: `open`, then `run`, which ends after `stop`."""

    def __init__(self, settings: Settings, mcp: McpServer, secrets: Secrets, clock: Clock, log: Logger) -> None:
        self._settings = settings
        self._mcp = mcp
        self._secrets = secrets
        self._clock = clock
        self._log = log
        self._token: str | None = None
        self._socket: socket.socket | None = None
        self._server: Server | None = None
        self._app: App = _nothing
        self.closed = anyio.Event()
        """Set once `run` has ended."""

    @property
    def port(self) -> int:
        """The port that it listens at; 0 while it isn't open."""
        return 0 if self._socket is None else self._socket.getsockname()[1]

    def stop(self) -> None:
        """Makes `run` end: no new clients, the answers that are being made go out, then everything closes."""
        if self._server is not None:
            self._server.stop()

    async def open(self) -> None:
        """Takes the address; raises Rejected(`http_start`, `secret_missing`) where it can't be served."""
        if anyio.get_cancelled_exc_class().__module__.partition(".")[0] != "asyncio":
            raise self._cannot("it needs asyncio, and this daemon runs on another backend")
        if self._settings.token:
            self._token = await self._secrets.resolve(self._settings.token)
            if len(self._token) < TOKEN_CHARS_MIN:
                raise self._cannot(f"its token has less than {TOKEN_CHARS_MIN} characters")
        else:
            self._log.warning("http_without_token", listen=self._settings.listen)
        self._server = await to_thread.run_sync(self._made)
        self._socket = await to_thread.run_sync(self._bound)

    async def run(self) -> None:
        """Serves until `stop`; raises what is Fatal."""
        server, listener = self._server, self._socket
        if server is None or listener is None:
            raise RuntimeError("open comes before run")
        try:
            async with self._mcp.over_http(self._settings) as app:
                self._app = app
                self._log.info("http_listens", listen=self._settings.listen, port=self.port)
                await server.serve(sockets=[listener])
        finally:
            server.abandon()
            listener.close()
            self.closed.set()

    def _made(self) -> "Server":
        """Imports uvicorn and makes its server; runs in a thread, because that and reading keys take their time."""
        gc.disable()  # See `McpServer`.
        try:
            from omnid.api.http_uvicorn import server_of

            return server_of(self._settings, self._gate())
        except (OSError, ValueError) as error:
            raise self._cannot(f"http.certificate or http.private_key can't be used ({error})") from error
        finally:
            gc.enable()

    def _gate(self) -> App:
        """Puts the checks in front of what serves: how often, at which name and from which page, then who."""
        rates = Rates(self._settings.requests_per_s_max, self._clock)
        inner: App = Bearer(self._token, rates, self._route) if self._token is not None else self._route
        if self._settings.origins:
            from starlette.middleware.cors import CORSMiddleware

            cors = CORSMiddleware(
                cast("Any", inner),
                allow_origins=self._settings.origins,
                allow_methods=("GET", "POST", "DELETE"),
                allow_headers=("*",),
                expose_headers=("Mcp-Session-Id",),
            )
            inner = cast("App", cors)
        return Gate(self._settings, names_of(self._settings), rates, self._log, inner)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self._app if scope["path"] == PATH else _nothing)(scope, receive, send)

    def _bound(self) -> socket.socket:
        host, port = platform.host_port(self._settings.listen) or ("", 0)
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            listener = socket.socket(family, kind, protocol)
        except OSError as error:
            raise self._cannot(error.strerror or str(error)) from error
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            raise self._cannot(error.strerror or str(error)) from error
        return listener

    def _cannot(self, detail: str) -> Rejected:
        return Rejected("http_start", listen=self._settings.listen, detail=detail)


async def _nothing(_scope: Scope, _receive: Receive, send: Send) -> None:
    await answer_empty(send, 404)
