"""Waits for tasks: for their next change, and until there is nothing to wait for."""

from collections.abc import Generator
from contextlib import contextmanager

import anyio

from omnid.flow.context import Context
from omnid.flow.gates import Gates
from omnid.states import TERMINAL
from omnid.store import journal


class Waiting:
    """Waits for what the flow tells of tasks."""

    def __init__(self, context: Context, gates: Gates) -> None:
        self._context = context
        self._gates = gates

    @contextmanager
    def change_of(self, task_id: str) -> Generator[anyio.Event]:
        """Gives what is set at the task's next change: enter, then look at the task, then wait."""
        watch = self._context.watch
        event = watch.event(task_id)
        try:
            yield event
        finally:
            watch.forget(task_id, event)

    async def settled(self, task_id: str, *, asks: bool) -> None:
        """Waits until the task has ended, or only a key or a login helps it on; with `asks` also until it asks."""
        while True:
            with self.change_of(task_id) as changed:
                task = await self._context.store.peek(lambda reader: journal.need_task(reader, task_id))
                if task.state in TERMINAL or (task.state == "idle" and self._gates.login(task.executor)):
                    return
                if asks and task.state == "input_required":
                    return
                await changed.wait()
