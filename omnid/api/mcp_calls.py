"""What the MCP methods share: how they do operations, and how they speak to the client."""

from typing import Any, cast

import mcp_types as types
import msgspec
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from msgspec import Struct
from pydantic import ValidationError

from omnid.errors import OmnidError
from omnid.flow.caller import Caller

Context = ServerRequestContext[Any, Any]
FAULTS_MAX = 3
"""How many of the faults of one request are told."""


class Calls:
    """Does operations for a request: see `mcp_session.ToolServer`, which is the one that implements it."""

    async def do(self, context: Context, name: str, params: Struct, part: str = "") -> Struct:
        """Does an operation; raises OmnidError, and ends the connection where that is Fatal.

        `part` names it among several mutations of one request, each of which is done once.
        """
        raise NotImplementedError

    def caller(self, context: Context) -> Caller:
        """Names who asks."""
        raise NotImplementedError

    def offers(self, context: Context, name: str) -> bool:
        """Tells whether the client gets a tool."""
        raise NotImplementedError


class Said(types.Notification[dict[str, Any], str]):
    """A notification whose parameters go out as they are, with what is null in them."""

    method: str
    params: dict[str, Any]


async def say(context: Context, method: str, params: dict[str, Any]) -> None:
    """Sends a notification that belongs to the request."""
    said = cast("types.ServerNotification", Said(method=method, params=params))
    await context.session.send_notification(said, related_request_id=context.request_id)


class Notice:
    """A notification that goes to many: it is encoded once, and each gets it with the `_meta` of its own request."""

    def __init__(self, method: str, params: dict[str, Any]) -> None:
        """`params` are not empty, and without `_meta`."""
        self.params = params
        self._method = method
        self._begun = b""

    async def tell(self, context: Context, meta: dict[str, Any]) -> None:
        """Sends it as belonging to the request."""
        tell = context.lifespan_context.tell
        if tell is None:
            await say(context, self._method, {**self.params, "_meta": meta})
            return
        if not self._begun:
            message = {"jsonrpc": "2.0", "method": self._method, "params": self.params}
            self._begun = msgspec.json.encode(message).removesuffix(b"}}") + b',"_meta":'
        await tell(b"%b%b}}\n" % (self._begun, msgspec.json.encode(meta)))


def is_modern(context: Context) -> bool:
    """Tells whether the request is of 2026-07-28 or later."""
    return context.protocol_version in MODERN_PROTOCOL_VERSIONS


def unfit(method: str, error: ValidationError) -> MCPError:
    """Makes the protocol's error of parameters that don't fit their method: `data` holds which, and why."""
    found = error.errors(include_url=False, include_context=False, include_input=False)[:FAULTS_MAX]
    faults = [{"where": ".".join(str(part) for part in one["loc"])[:100], "what": one["msg"][:200]} for one in found]
    return MCPError(types.INVALID_PARAMS, "Invalid request parameters", {"method": method, "faults": faults})


def invalid(error: OmnidError) -> MCPError:
    """Makes the protocol's error of one of omnid's: `data` holds what, why and what to do."""
    return MCPError(types.INVALID_PARAMS, str(error), error.as_dict())
