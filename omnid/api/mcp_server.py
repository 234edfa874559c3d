"""The MCP server as the daemon knows it: there from the start, while the SDK is loaded when it is first needed."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from anyio import Lock, to_thread
from anyio.streams.memory import MemoryObjectReceiveStream

from omnid.clock import Clock
from omnid.loading import loading
from omnid.log import Logger

if TYPE_CHECKING:
    from mcp.server.lowlevel import Server

    from omnid.api.http_gate import App
    from omnid.api.mcp_lines import Send
    from omnid.api.mcp_session import ToolServer
    from omnid.api.methods import Api
    from omnid.api.socket import Connection
    from omnid.settings import Http


class McpServer:
    """Serves MCP on connections of the socket, each within the task that calls `serve`."""

    def __init__(self, api: "Api", version: str, clock: Clock, log: Logger, *, requests_max: int) -> None:
        """Serves the operations of `api`; a connection may have `requests_max` requests open at once."""
        self._api = api
        self._version = version
        self._clock = clock
        self._log = log
        self._requests_max = requests_max
        self.extend: Callable[[Server[Any]], None] | None = None
        """What is done to the SDK's server when it is made: tests add tools of their own by it."""
        self._lock = Lock()
        self._tools: ToolServer | None = None

    async def preload(self) -> None:
        """Loads the SDK, if it isn't loaded yet, without holding up the loop."""
        await self._loaded()

    async def serve(self, connection: "Connection", lines: MemoryObjectReceiveStream[bytes], send: "Send") -> None:
        """Answers a client's lines (without newlines) through `send` (with them) until they end.

        Requests that are open then are ended, and not answered. Raises nothing but Fatal.
        """
        tools = await self._loaded()
        from omnid.api.mcp_lines import Session

        await tools.serve(Session(connection, self._requests_max), lines, send)

    @asynccontextmanager
    async def over_http(self, settings: "Http") -> AsyncGenerator["App"]:
        """Gives what answers requests over HTTP, for as long as the context lasts; raises what is Fatal at its end."""
        tools = await self._loaded()
        async with tools.over_http(settings) as app:
            yield app

    async def _loaded(self) -> "ToolServer":
        async with self._lock:
            if self._tools is None:
                self._tools = await to_thread.run_sync(self._load)
            return self._tools

    def _load(self) -> "ToolServer":
        """Imports the SDK and builds the server; runs in a thread."""
        with loading():
            from omnid.api.mcp_session import ToolServer

            tools = ToolServer(self._api, self._version, self._clock, self._log)
            if self.extend is not None:
                self.extend(tools.server)
            return tools
