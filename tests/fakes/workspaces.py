"""Workspaces on real git, and the states that their tasks have."""

import os
from collections.abc import Awaitable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import anyio
import pytest

from omnid.clock import SystemClock
from omnid.errors import OmnidError
from omnid.executor.workspace import Workspaces
from omnid.log import Log
from omnid.model import Command, Outcome, Result, Work
from omnid.settings import CommandExecutor as Section
from omnid.settings import Workspace
from tests.fakes.signals import WAIT_S

AGENT = Section(name="claude-code", profile="claude-code")
PLAIN = Section(name="command")


class Places:
    """The workspaces of a daemon that was started here; `states` is what its journal knows."""

    def __init__(self, root: Path, environ: Mapping[str, str] | None = None, **settings: Any) -> None:
        self.clock = SystemClock()
        self.logged = StringIO()
        log = Log(self.clock, lambda text: text, stream=self.logged).logger()
        self.states: dict[str, str] = {}
        given = {"HOME": "/nonexistent", "PATH": os.environ["PATH"], **(environ or {})}
        self.workspaces = Workspaces(root, Workspace(**settings), given, self.clock, log, self._states)
        self.root = self.workspaces.records.root

    async def _states(self, task_ids: Sequence[str]) -> dict[str, str]:
        return {id: self.states[id] for id in task_ids if id in self.states}

    def task(self, name: str = "t1", number: int = 1, id: str | None = None, **work: Any) -> Command:
        """Makes an attempt of a task, which is executing."""
        task_id = id or self.clock.uuid()
        self.states[task_id] = "executing"
        work = {"argv": ("claude", "-p", "x"), **work}
        return Command(self.clock.uuid(), task_id, number, name, "claude-code", Work(**work), 60.0)

    async def enter(self, command: Command, directory: Path | str, section: Section = AGENT) -> Path:
        """Gives the attempt's directory."""
        with anyio.fail_after(WAIT_S):
            return Path(await self.workspaces.enter(command, section, str(directory)))

    async def leave(self, command: Command, outcome: Outcome = "success") -> None:
        """Ends the attempt, and its task."""
        with anyio.fail_after(WAIT_S):
            await self.workspaces.leave(command, Result(command.attempt_id, command.task_id, command.number, outcome))
        self.states[command.task_id] = "completed" if outcome == "success" else "failed"

    def record(self, command: Command) -> Any:
        """Gives the record of a task's workspace; None where it has none."""
        return self.workspaces.of(command.task_id)


async def refused(awaited: Awaitable[object], code: str) -> OmnidError:
    """Awaits it, and gives the error of this code that it must end with."""
    with pytest.raises(OmnidError) as caught:
        await awaited
    assert caught.value.code == code
    return caught.value
