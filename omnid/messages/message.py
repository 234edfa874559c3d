"""The three sentences of an error."""

from typing import NamedTuple


class Message(NamedTuple):
    """What happened, why, and what to do; each may hold ``{name}`` fields that the raise fills in."""

    what: str
    why: str
    do: str
