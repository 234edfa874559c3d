"""A world with executors that cost money, and the caps on them."""

from pathlib import Path
from typing import Any

import msgspec

from omnid.clock import Clock
from omnid.settings import Cap, CommandExecutor, Origin
from omnid.store.calls import Call, call_of
from tests.fakes.executor import InProcessExecutor
from tests.fakes.world import World, nothing

SECTIONS = (
    CommandExecutor(name="command"),
    CommandExecutor(name="safe"),
    CommandExecutor(name="claude", profile="claude-code"),
    CommandExecutor(name="codex", profile="codex", cost_max_usd=2),
)


class Purse(World):
    """See `World`; `claude` can be held to less than a run may cost (5 dollars), `codex` (2 dollars) can't."""

    def __init__(self, path: Path, clock: Clock) -> None:
        super().__init__(path, clock)
        paid = {name: InProcessExecutor(name, nothing) for name in ("claude", "codex")}
        self.context.take_executors({**self.context.executors, **paid})
        self.context.config = msgspec.structs.replace(self.context.config, executor=SECTIONS)

    def cap(self, *caps: Cap, origins: tuple[Origin, ...] = (), **budget: Any) -> None:
        """Changes the caps of the config."""
        self.context.config = msgspec.structs.replace(self.context.config, cap=caps, origin=origins)
        self.set("budget", **budget)

    async def calls(self) -> list[Call]:
        return [call_of(row) for row in await self.store.read(lambda reader: reader.all("calls_page", 0, 10_000))]
