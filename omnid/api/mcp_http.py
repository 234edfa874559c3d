"""MCP over HTTP in front of the SDK: which of its ways a request takes, and in the name of whose token.

Imported with `mcp_session`, in a thread.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, cast

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.inbound import MCP_METHOD_HEADER, MCP_PROTOCOL_VERSION_HEADER
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from omnid.api.http_gate import App, Receive, Scope, Send, guest_of, header
from omnid.settings import Http

PLAIN = frozenset({"tasks/get", "tasks/update", "tasks/cancel", "tools/list", "server/discover"})
"""Methods that are answered at once and say nothing before, so that they need no stream, which takes two tasks."""

_LAST_EVENT = b"last-event-id"
_METHOD, _VERSION = MCP_METHOD_HEADER.lower().encode(), MCP_PROTOCOL_VERSION_HEADER.lower().encode()


@asynccontextmanager
async def serving(server: Server[Any], settings: Http) -> AsyncGenerator[App]:
    """Gives what answers requests, for as long as the context lasts."""
    streams = StreamableHTTPSessionManager(
        server,
        session_idle_timeout=settings.session_idle_s,
        max_request_body_size=settings.body_bytes_max,
        max_sessions=settings.sessions_max,
    )
    plain = StreamableHTTPSessionManager(server, json_response=True, max_request_body_size=settings.body_bytes_max)
    async with streams.run(), plain.run():
        yield _bound(cast("App", streams.asgi_app), cast("App", plain.asgi_app))


def _bound(streams: App, plain: App) -> App:
    """Gives what serves each request in the name of its token's origin, which binds its session to that token."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        guest = guest_of(scope)
        if guest.origin is not None:
            scope["user"] = AuthenticatedUser(AccessToken(token="", client_id=guest.origin, scopes=[]))
        # Events have no ids here, so that none can be gone on from; asked to, the SDK would answer nothing at all.
        scope["headers"] = [one for one in scope["headers"] if one[0] != _LAST_EVENT]
        await (plain if _is_plain(scope) else streams)(scope, receive, send)

    return serve


def _is_plain(scope: Scope) -> bool:
    """Tells whether no stream is needed; the SDK holds the header against the method in the body."""
    return header(scope, _METHOD) in PLAIN and header(scope, _VERSION) in MODERN_PROTOCOL_VERSIONS
