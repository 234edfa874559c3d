"""Completions: which tasks an id that is being typed may name, in the addresses of resources and for prompts."""

from typing import cast

import mcp_types as types
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError

from omnid.api.mcp_calls import Calls, Context
from omnid.api.mcp_resources import PROMPTS, TEMPLATES
from omnid.api.shapes import Page, Search
from omnid.states import STATES, TERMINAL

VALUES_MAX = 100
"""The most that the protocol lets an answer hold."""
LOOKED_AT_MAX = 500
"""Among how many of the newest tasks is looked."""
OPEN = tuple(state for state in STATES if state not in TERMINAL)


class Completions:
    """The method ``completion/complete`` on the SDK's server."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def install(self, server: Server[object]) -> None:
        """Registers the method."""
        server.add_request_handler("completion/complete", types.CompleteRequestParams, self._complete)

    async def _complete(self, context: Context, params: types.CompleteRequestParams) -> types.CompleteResult:
        ref, argument = params.ref, params.argument
        if isinstance(ref, types.PromptReference):
            if ref.name not in PROMPTS:
                raise MCPError(
                    types.INVALID_PARAMS, f"There is no prompt {ref.name[:100]}.", {"prompts": list(PROMPTS)}
                )
            # What waits is what one asks about.
            found = await self._tasks(context, argument.value, OPEN) if argument.name == "task" else []
        elif ref.uri not in (templates := [template.uri_template for template in TEMPLATES]):
            raise MCPError(types.INVALID_PARAMS, f"There is no template {ref.uri[:100]}.", {"templates": templates})
        else:
            found = await self._tasks(context, argument.value, ()) if argument.name == "id" else []
        more = len(found) > VALUES_MAX
        completion = types.Completion(values=found[:VALUES_MAX], total=len(found), has_more=more)
        return types.CompleteResult(completion=completion)

    async def _tasks(self, context: Context, typed: str, states: tuple[str, ...]) -> list[str]:
        """Gives the caller's own tasks whose short name or UUID begins so, by that, the newest first."""
        search = Search(origin=self._calls.caller(context).origin, states=states, limit=LOOKED_AT_MAX)
        page = cast("Page", await self._calls.do(context, "task.list", search))
        names = [task.name.rpartition("/")[2] for task in page.tasks]
        ids = [task.id for task in page.tasks] if typed else []
        return [one for one in (*names, *ids) if one.startswith(typed.lower())]
