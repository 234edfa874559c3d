"""Gives tasks to another executor of their rule while the gate of theirs is closed and that one has nothing to do."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import anyio
from msgspec import structs

from omnid.errors import Rejected
from omnid.flow.context import Context
from omnid.flow.intake import needs_approval
from omnid.model import USER_ORIGIN, Route, Task
from omnid.route.rights import rights_of
from omnid.route.router import Facts, choose, shut
from omnid.route.rules import Asked
from omnid.store import journal
from omnid.store.interface import Reader, Tx

PAGE = 100
LOOKED_AT_MAX = 2_000
"""How many tasks of one executor a look goes through, the first by priority and order."""
PAUSE_S = 1.0
"""How long after a look that found nothing the next one may come."""


class _Move(NamedTuple):
    """A task that another executor can take, and the decision."""

    task: Task
    route: Route


class Failover:
    """Moves no more than can start at once, so what waits for its first choice keeps its place as long as it must."""

    def __init__(self, context: Context, room: Callable[[], dict[str, int]]) -> None:
        """`room` gives how many tasks may start on each executor now; see `Dispatcher.room`."""
        self._context = context
        self._room = room

    async def run(self) -> None:
        """Looks when a gate closes, and when executors run out of work while one is closed; ends when cancelled."""
        while True:
            await self._context.failover.wait()
            if not await self.move_some():
                await anyio.sleep(PAUSE_S)

    async def move_some(self) -> list[str]:
        """Moves what another executor can start now; gives the ids of those tasks."""
        context = self._context
        facts, free = context.facts(), self._room()
        if not facts.closed or not free:
            return []
        found = await context.store.read(partial(self._movable, facts=facts, free=free))
        if not found:
            return []
        return await context.store.write(partial(_move, moves=found), then=self._moved)

    def _moved(self, ids: list[str]) -> None:
        self._context.watch.tell(ids)
        self._context.dispatch.ring()

    def _movable(self, reader: Reader, *, facts: Facts, free: dict[str, int]) -> list[_Move]:
        """Finds tasks that the router chose a closed executor for, and for which it would choose another one now."""
        found: list[_Move] = []
        for name in shut(facts):
            for offset in range(0, LOOKED_AT_MAX, PAGE):
                rows = reader.all("movable_tasks", name, PAGE, offset)
                for task in map(journal.task_of, rows):
                    route = self._elsewhere(task, facts)
                    if route is not None and free.get(route.executor):
                        free[route.executor] -= 1
                        found.append(_Move(task, route))
                if len(rows) < PAGE or not any(free.values()):
                    break
        return found

    def _elsewhere(self, task: Task, facts: Facts) -> Route | None:
        """Decides anew; None where that changes nothing, or where a person would have to approve it."""
        context = self._context
        try:
            own = structs.replace(facts, rights=rights_of(context.config.origin, task.origin))
            route = choose(Asked(task.work, task.kind, task.labels, task.lane), own)
            if route.executor == task.executor:
                return None
            context.executors[route.executor].accepts(task.work)
        except Rejected:
            return None  # The rules have changed, or its directory has gone: it stays where it was taken.
        role = "person" if task.origin == USER_ORIGIN else "agent"
        if task.approval is not None or needs_approval(role, route.executor, task.work, context.config):
            return None
        return route


def _move(tx: Tx, *, moves: list[_Move]) -> list[str]:
    """Gives the tasks to their new executors, where nothing has happened to them meanwhile."""
    ids: list[str] = []
    for seen, route in moves:
        task = journal.task_by_id(tx, seen.id)
        if task is not None and task == seen:
            journal.edit_task(tx, task, executor=route.executor, route=route)
            ids.append(task.id)
    return ids
