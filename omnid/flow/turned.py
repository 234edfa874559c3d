"""What a transaction did to gates and to tasks behind them, for what follows its commit."""

from typing import NamedTuple

from omnid.model import Gate


class Turned(NamedTuple):
    """What a transaction did besides: what is kept in memory follows it after the commit."""

    closed: dict[str, Gate]
    opened: set[str]
    tasks: list[str]
    """Tasks that were made to wait, or let go on."""

    @classmethod
    def nothing(cls) -> "Turned":
        """Gives an empty one, to be filled in."""
        return cls({}, set(), [])
