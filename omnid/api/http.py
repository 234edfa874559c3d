"""MCP over streamable HTTP, and REST beside it: uvicorn, a gate that looks at each request, and what answers it.

uvicorn, starlette and the SDK are imported only where the config asks for HTTP. uvicorn needs asyncio, which the daemon
runs on; on another backend a start with `http.listen` is refused.
"""

import socket
from typing import TYPE_CHECKING, Any, cast

import anyio
from anyio import to_thread

from omnid import platform
from omnid.api.http_gate import API, App, Bearer, Gate, Rates, Receive, Scope, Send, answer_empty, names_of
from omnid.api.http_presence import Attended
from omnid.api.mcp_server import McpServer
from omnid.api.methods import Api
from omnid.clock import Clock
from omnid.errors import Fatal, Rejected
from omnid.flow.presence import Presence
from omnid.loading import loading
from omnid.log import Logger
from omnid.secrets import Secrets
from omnid.settings import Config

if TYPE_CHECKING:
    from omnid.api.http_uvicorn import Server

PATH = "/mcp"
TOKEN_CHARS_MIN = 16
BACKLOG = 128


class HttpServer:
    """Serves MCP at `PATH` and REST at `API` of one address: `open`, then `run`, which ends after `stop`."""

    def __init__(
        self,
        config: Config,
        mcp: McpServer,
        api: Api,
        *,
        secrets: Secrets,
        clock: Clock,
        log: Logger,
        presence: Presence | None = None,
    ) -> None:
        self._settings = config.http
        self._origins = config.origin
        self._mcp = mcp
        self._api = api
        self._secrets = secrets
        self._clock = clock
        self._log = log
        self._presence = presence
        self._tokens: dict[str, str | None] = {}
        """Whom each token names; None: whoever has it is who it says."""
        self._fatal: Fatal | None = None
        self._socket: socket.socket | None = None
        self._server: Server | None = None
        self._app: App = _nothing
        self._rest: App = _nothing
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
        for reference, origin in [(self._settings.token, None), *((one.token, one.name) for one in self._origins)]:
            if reference:
                await self._take_token(reference, origin)
        if not self._tokens:
            self._log.warning("http_without_token", listen=self._settings.listen)
        self._server = await to_thread.run_sync(self._made)
        self._socket = await to_thread.run_sync(self._bound)

    async def _take_token(self, reference: str, origin: str | None) -> None:
        token = await self._secrets.resolve(reference)
        whose = "its token" if origin is None else f"the token of the origin {origin}"
        if len(token) < TOKEN_CHARS_MIN:
            raise self._cannot(f"{whose} has less than {TOKEN_CHARS_MIN} characters")
        if token in self._tokens:
            raise self._cannot(f"{whose} is another's too, so that nobody could tell who comes")
        self._tokens[token] = origin

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
            if self._fatal is not None:
                raise self._fatal
        finally:
            server.abandon()
            listener.close()
            self.closed.set()

    def _made(self) -> "Server":
        """Imports uvicorn and makes its server; runs in a thread, because that and reading keys take their time."""
        with loading():
            from omnid.api.http_uvicorn import server_of
            from omnid.api.rest import Rest

            self._rest = Rest(self._api, self._log, self._end)
            try:
                return server_of(self._settings, self._gate())
            except (OSError, ValueError) as error:
                raise self._cannot(f"http.certificate or http.private_key can't be used ({error})") from error

    def _gate(self) -> App:
        """Puts the checks in front of what serves: how often, at which name and from which page, then who."""
        rates = Rates(self._settings.requests_per_s_max, self._clock)
        inner: App = self._route if self._presence is None else Attended(self._presence, self._route)
        inner = Bearer(self._tokens, rates, inner) if self._tokens else inner
        if self._settings.origins:
            from starlette.middleware.cors import CORSMiddleware

            cors = CORSMiddleware(
                cast("Any", inner),
                allow_origins=self._settings.origins,
                allow_methods=("GET", "POST", "DELETE"),
                allow_headers=("*",),
                expose_headers=("Mcp-Session-Id", "Location"),
            )
            inner = cast("App", cors)
        return Gate(self._settings, names_of(self._settings), rates, self._log, inner)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        await (self._app if path == PATH else self._rest if path.startswith(f"{API}/") else _nothing)(
            scope, receive, send
        )

    def _end(self, error: Fatal) -> None:
        """Makes `run` end with what the daemon can't go on after."""
        self._fatal = error
        self.stop()

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
