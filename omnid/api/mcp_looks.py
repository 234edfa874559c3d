"""One look at a task for all who follow it: the first of them reads it at a change, and the others see the same."""

from collections.abc import Hashable
from typing import cast
from weakref import WeakKeyDictionary

import anyio

from omnid.api.mcp_calls import Calls, Context, Notice
from omnid.api.methods import Api
from omnid.api.shapes import Get, TaskView


class Seen:
    """A task as those see it who may see the same."""

    def __init__(self, view: TaskView) -> None:
        self.view = view
        self.notice: Notice | None = None
        """What they are told of it, where that is the same for all of them."""


class _Shared:
    """What those have found who wait for the same change."""

    def __init__(self) -> None:
        self.lock = anyio.Lock(fast_acquire=True)
        self.found: dict[Hashable, Seen] = {}


class Looks:
    """Looks at tasks for those who follow them; one serves all connections."""

    def __init__(self, api: Api, calls: Calls) -> None:
        self._api = api
        self._calls = calls
        self._shared: WeakKeyDictionary[anyio.Event, _Shared] = WeakKeyDictionary()
        """By the event of the next change: it is set at that, and then the look is over too."""

    async def look(self, context: Context, task_id: str, changed: anyio.Event, *, output: bool, fresh: bool) -> Seen:
        """Gives a task as the caller sees it; raises Rejected(`unknown_task`) where it doesn't, and what a read raises.

        `changed` is the event of its next change, taken before. `fresh`: what nobody tells of counts too, such as a
        gate that has closed since.
        """
        asked = Get(task=task_id, output=output)
        shared = self._shared.get(changed) or self._shared.setdefault(changed, _Shared())
        key = (self._api.sight(self._calls.caller(context)), output)
        async with shared.lock:
            seen = None if fresh else shared.found.get(key)
            if seen is None:
                seen = Seen(cast("TaskView", await self._calls.do(context, "task.get", asked)))
                shared.found[key] = seen
        return seen
