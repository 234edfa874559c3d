"""Which executor gets a task, and why. Pure: it is given what it decides on, and its reasons are written down."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import NamedTuple

from omnid.errors import Rejected
from omnid.model import Work

COMMAND = "command"
WANTED = {"command": "a command (argv)", "mcp": "a tool call (server + tool)", "model": "a prompt"}


class Choice(NamedTuple):
    """The chosen executor and the reasons, as `omnictl why` shows them."""

    executor: str
    reasons: tuple[str, ...]


def work_kind(work: Work) -> str:
    """Gives the kind of executor that the work asks for; raises Rejected(`nothing_to_do`)."""
    kinds = [
        kind
        for kind, given in (("command", work.argv), ("mcp", work.tool or work.server), ("model", work.prompt))
        if given
    ]
    if len(kinds) != 1:
        raise Rejected("nothing_to_do", detail="more than one thing" if kinds else "nothing")
    return kinds[0]


def choose(work: Work, wanted: str | None, kinds: Mapping[str, str]) -> Choice:
    """Chooses among executors given as {name: kind}.

    Raises Rejected(`nothing_to_do`, `unknown_executor`, `wrong_executor`, `kind_missing`). An executor of a kind that
    isn't one of `WANTED` is one of the caller's own and takes whatever it accepts.
    """
    kind = work_kind(work)
    name = wanted or (work.server if kind == "mcp" else COMMAND if kind == "command" else None)
    if name is None:
        raise Rejected(
            "kind_missing",
            kind=kind,
            why="The config names no executor for prompts.",
            remedy="Wrap the prompt in a command (argv) or an MCP tool that runs it.",
        )
    if name not in kinds:
        close = get_close_matches(name, kinds, 1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise Rejected("unknown_executor", executor=name, hint=hint, known=", ".join(sorted(kinds)))
    if kinds[name] in WANTED and kinds[name] != kind:
        raise Rejected("wrong_executor", executor=name, kind=kinds[name], wanted=WANTED[kind])
    reason = "asked for by name" if wanted else f"the default for {WANTED[kind]}"
    return Choice(name, (f"{name}: {reason}",))
