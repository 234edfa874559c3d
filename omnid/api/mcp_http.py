"""Binds MCP's sessions over HTTP to the tokens that they were begun with."""

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken

from omnid.api.http_gate import App, Receive, Scope, Send, guest_of


def bound(app: App) -> App:
    """Gives what serves requests of `app`, each in the name of its token's origin."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        guest = guest_of(scope)
        if guest.origin is not None:
            scope["user"] = AuthenticatedUser(AccessToken(token="", client_id=guest.origin, scopes=[]))
        await app(scope, receive, send)

    return serve
