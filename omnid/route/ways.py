"""Ways to get work done: what the router knows of each executor. Pure."""

from collections.abc import Iterable
from os.path import basename
from typing import Literal, NamedTuple

from omnid.settings import AGENT_PROGRAMS, NO_PROFILE, PROMPT, CommandExecutor, Executor, McpExecutor
from omnid.times import Window

Sort = Literal["command", "mcp", "model"]
"""What kind of work it is, by the kind of executor that was made for it: a command, a tool call, a prompt."""

EVERY: tuple[Sort, ...] = ("command", "mcp", "model")


class Way(NamedTuple):
    """An executor, as the router sees it."""

    kind: str
    takes: frozenset[Sort]
    profile: str | None = None
    """The agent that it runs."""
    local: bool = True
    """Whether it works without the cloud."""
    only: str = ""
    """The hours within which it starts work; empty: always."""

    @property
    def window(self) -> Window | None:
        """The hours, read."""
        return Window.parse(self.only) if self.only else None


def agent_of(argv: Iterable[str] | None) -> str | None:
    """Gives the agent whose program a command runs, or None."""
    program = next(iter(argv or ()), "")
    return AGENT_PROGRAMS.get(basename(program))


def way_of(kind: str, section: Executor | None) -> Way:
    """Makes a way of an executor's kind and its section of the config (None: it comes from elsewhere).

    A kind of the caller's own takes whatever its executor accepts.
    """
    profile = None
    if isinstance(section, CommandExecutor) and section.profile != NO_PROFILE:
        profile = section.profile or agent_of(section.argv)
    takes: Iterable[Sort] = [sort for sort in EVERY if sort == kind] or EVERY
    prompted = profile is not None or (isinstance(section, McpExecutor) and PROMPT in repr(section.arguments))
    return Way(
        kind=kind,
        takes=frozenset([*takes, "model"] if prompted else takes),
        profile=profile,
        local=profile is None and kind != "model",
        only="" if section is None else section.only,
    )
