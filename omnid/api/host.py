"""What the operations ask of the daemon around them."""

from collections.abc import Sequence
from typing import Any, Protocol

from omnid.model import Problem


class Host(Protocol):
    """The daemon, as the operations see it."""

    started_at_ms: int
    pid: int

    def clients(self) -> int:
        """How many clients are connected."""
        ...

    def config_rows(self) -> tuple[str, Sequence[tuple[str, Any, str]]]:
        """Gives the config's path and its (key, value, origin)."""
        ...

    def config_problems(self) -> list[Problem]:
        """Gives what is wrong with the config file on disk."""
        ...

    def config_remarks(self) -> list[Problem]:
        """Gives what is strange about the config file on disk and keeps it from nothing."""
        ...

    async def reload(self) -> list[Problem]:
        """Takes the config file over, whole or (with problems) not at all."""
        ...

    def config_problem(self) -> Problem | None:
        """Gives why the last changed config was not taken over, if so."""
        ...

    def stop(self) -> None:
        """Makes the daemon end."""
        ...
