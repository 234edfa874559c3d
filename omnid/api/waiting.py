"""Waits for tasks: for their next change, and until there is something to see."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TypeVar

import anyio

from omnid.flow.context import Context
from omnid.flow.gates import Gates
from omnid.model import Task
from omnid.states import TERMINAL
from omnid.store.interface import Reader

T = TypeVar("T")


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

    def over(self, task: Task, *, asks: bool) -> bool:
        """Tells whether a task has ended, or only a key or a login helps it on; with `asks` also whether it asks."""
        if task.state in TERMINAL or (task.state == "idle" and self._gates.login(task.executor)):
            return True
        return asks and task.state == "input_required"

    async def until(self, name: str, look: Callable[[Reader], tuple[str, T | None]]) -> T:
        """Has a task looked at, now and after each change, until something is seen of it, and gives that.

        `look` gives its id too. `name` is how it is asked for, which mostly is its id already: one look less.
        """
        while True:
            with self.change_of(name) as changed:
                id, seen = await self._context.store.read(look)
                if seen is not None:
                    return seen
                if id == name:
                    await changed.wait()
            name = id
