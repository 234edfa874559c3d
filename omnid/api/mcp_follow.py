"""What a subscription to a resource follows, in both eras: how the resource looks, and when to look again.

A change of a task is told. Of output, of the inbox and of the status nobody is told: they are looked at once a second.
"""

import re
from collections.abc import Awaitable, Callable
from typing import NamedTuple, cast

import anyio

from omnid.api.mcp_calls import Calls, Context
from omnid.api.mcp_looks import Looks
from omnid.api.methods import Api
from omnid.api.shapes import Empty, Status
from omnid.clock import is_uuid
from omnid.errors import OmnidError, Rejected

LOOK_S = 1.0
"""How often it is looked at what nobody tells of."""
HINT = " (subscribe to omnid://status, omnid://inbox, omnid://task/ and its UUID, or that and /log)"

_OF_TASK = re.compile(r"omnid://task/([^/]+)(/log)?")


class Look(NamedTuple):
    """How a resource looked."""

    print: object
    """What is another where the resource is."""
    task_id: str | None = None
    """The task whose changes change it; None: it is no task's."""
    grows: bool = True
    """Whether it may become another without being told of it."""


class Follow:
    """Looks at resources for those who subscribe to them, with the rights that they have."""

    def __init__(self, api: Api, calls: Calls, looks: Looks) -> None:
        self._api = api
        self._calls = calls
        self._looks = looks

    async def look(self, context: Context, uri: str, changed: anyio.Event | None = None, *, fresh: bool = True) -> Look:
        """Gives how a resource looks; raises Rejected where there is no such one for the caller, or no UUID in it.

        See `Looks.look` for `changed` and `fresh`; without `changed` nobody shares the look.
        """
        if uri == "omnid://status":
            found = cast("Status", await self._calls.do(context, "status", Empty()))
            return Look((found.tasks, found.reasons, found.gates, found.needs_you, found.needs_you_total))
        if uri == "omnid://inbox":
            return Look(await self._api.inbox.last(self._calls.caller(context).origin))
        match = _OF_TASK.fullmatch(uri)
        if match is None or not is_uuid(match[1].lower()):
            raise Rejected("unknown_task", task=uri[:100], hint=HINT)
        event = changed or anyio.Event()
        view = (await self._looks.look(context, match[1].lower(), event, output=False, fresh=fresh)).view
        if match[2] is None:
            return Look((view.task, view.questions), view.task.id, grows=False)
        if not view.attempts:
            return Look(None, view.task.id, grows=False)
        last = view.attempts[-1]
        printed_bytes = await self._api.history.printed_bytes(last.id)
        runs = last.ended_at_ms is None
        return Look((last.number, runs, printed_bytes), view.task.id, grows=runs)

    async def tell(self, context: Context, uri: str, said: Look, changed: Callable[[], Awaitable[None]]) -> None:
        """Calls `changed` at each change since the look `said`, until it is cancelled or the resource is gone."""
        fresh = True
        while True:
            # Nothing is ever told under the address of what isn't a task's: that is looked at in time.
            with self._api.change_of(said.task_id or uri) as event:
                try:
                    now = await self.look(context, uri, event, fresh=fresh)
                except OmnidError:
                    # It was deleted, or the daemon ends; what is Fatal is known to the connection.
                    return
                if now.print != said.print:
                    await changed()
                said = now
                with anyio.move_on_after(LOOK_S if now.grows else None):
                    await event.wait()
                fresh = not event.is_set()
