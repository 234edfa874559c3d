"""Subscriptions to resources before 2026-07-28: ``resources/subscribe`` and ``resources/unsubscribe``.

They last as long as their connection; a relay subscribes again at the next daemon. Later versions have
``subscriptions/listen``: see `mcp_tasks`.
"""

from functools import partial
from typing import Any, cast

import mcp_types as types
from anyio import CancelScope
from mcp.server.connection import Connection
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError

from omnid.api.mcp_calls import Context
from omnid.api.mcp_follow import Follow, Look
from omnid.api.mcp_resources import NOT_FOUND_OF_OLD
from omnid.errors import Rejected

SUBSCRIBED_MAX = 100
"""How many resources a connection may subscribe to."""
STATE = "omnid.subscriptions"


class Subscriptions:
    """The two methods on the SDK's server."""

    def __init__(self, follow: Follow) -> None:
        self._follow = follow

    def install(self, server: Server[Any]) -> None:
        """Registers the methods."""
        server.add_request_handler("resources/subscribe", types.SubscribeRequestParams, self._subscribe)
        server.add_request_handler("resources/unsubscribe", types.UnsubscribeRequestParams, self._unsubscribe)

    async def _subscribe(self, context: Context, params: types.SubscribeRequestParams) -> types.EmptyResult:
        uri, scopes = str(params.uri), _scopes(context)
        try:
            now = await self._follow.look(context, uri)
        except Rejected as error:
            data = {"uri": uri[:500], **error.as_dict()}
            raise MCPError(NOT_FOUND_OF_OLD, f"Resource not found: {error}", data) from error
        if uri not in scopes:
            if len(scopes) >= SUBSCRIBED_MAX:
                raise MCPError(
                    types.INVALID_PARAMS,
                    f"A connection subscribes to at most {SUBSCRIBED_MAX} resources.",
                    {"limit": SUBSCRIBED_MAX, "do": "Unsubscribe from others (resources/unsubscribe)."},
                )
            scopes[uri] = scope = CancelScope()
            context.lifespan_context.group.start_soon(self._tell, context, uri, now, scope)
        return types.EmptyResult()

    async def _unsubscribe(self, context: Context, params: types.UnsubscribeRequestParams) -> types.EmptyResult:
        scope = _scopes(context).pop(str(params.uri), None)
        if scope is not None:
            scope.cancel()
        return types.EmptyResult()

    async def _tell(self, context: Context, uri: str, said: Look, scope: CancelScope) -> None:
        """Tells of a resource's changes until the subscription or its connection ends, or the resource is gone."""
        scopes = _scopes(context)
        with scope:
            await self._follow.tell(context, uri, said, partial(context.session.send_resource_updated, uri))
        if scopes.get(uri) is scope:
            del scopes[uri]


def _scopes(context: Context) -> dict[str, CancelScope]:
    """Gives the subscriptions of the connection; what ends the connection ends them."""
    # The SDK keeps state and a clean-up for each connection, and no public way to it from a request of this level.
    connection = cast("Connection", vars(context.session)["_connection"])
    scopes: dict[str, CancelScope] | None = connection.state.get(STATE)
    if scopes is None:
        scopes = connection.state[STATE] = {}
        connection.exit_stack.callback(_end, scopes)
    return scopes


def _end(scopes: dict[str, CancelScope]) -> None:
    for scope in scopes.values():
        scope.cancel()
