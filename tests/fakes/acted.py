"""A world in which hypothesis acts: the frame of the rule-based tests, with what every one of them does to it."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from anyio.from_thread import start_blocking_portal
from hypothesis import note
from hypothesis.stateful import RuleBasedStateMachine

from omnid.errors import Rejected
from omnid.model import Command
from tests.fakes.clock import FakeClock


class Acted(RuleBasedStateMachine):
    """`world` is there once the subclass has called `begin`, in its `initialize`."""

    world: Any

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self._directory = tempfile.TemporaryDirectory()
        self._portal = start_blocking_portal("asyncio")
        self.portal = self._portal.__enter__()
        self.clock = clock
        self.commands: list[Command] = []
        """All that was ever claimed: any of them may give a result, and more than once."""

    def begin(self, world: Callable[[Path, FakeClock], Any]) -> None:
        """Makes the world."""
        self.world = self.portal.call(world, Path(self._directory.name), self.clock)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.portal.call(self.world.close)
        self._portal.__exit__(None, None, None)
        self._directory.cleanup()

    def do(self, fn: Callable[..., Any], *args: Any, **fields: Any) -> Any:
        """Calls it in the world."""

        async def call() -> Any:
            return await fn(*args, **fields)

        return self.portal.call(call)

    def ask(self, fn: Callable[..., Any], *args: Any, **fields: Any) -> Any:
        """Calls it in the world; a refusal is an answer too."""
        try:
            return self.do(fn, *args, **fields)
        except Rejected as error:
            assert error.code not in ("bad_event", "replay_mismatch", "internal"), error
            note(f"refused: {error.code}")
            return None
