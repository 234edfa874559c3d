"""Which executor gets a task, and why. Pure: it is given what it decides on, and its reasons are written down."""

import os
from collections.abc import Collection, Mapping
from difflib import get_close_matches

from omnid.errors import Rejected
from omnid.model import Work
from omnid.settings import AGENT_PROGRAMS, COMMAND

WANTED = {"command": "a command (argv)", "mcp": "a tool call (server + tool)", "model": "a prompt"}

DEFAULT = {kind: f"the default for {wanted}" for kind, wanted in WANTED.items()}


def work_kind(work: Work) -> str:
    """Gives the kind of executor that the work asks for; raises Rejected(`nothing_to_do`)."""
    is_call = bool(work.tool or work.server)
    count = bool(work.argv) + is_call + bool(work.prompt)
    if count != 1:
        raise Rejected("nothing_to_do", detail="more than one thing" if count else "nothing")
    return "command" if work.argv else "mcp" if is_call else "model"


def says_nothing(work: Work) -> bool:
    """Tells whether the work leaves all to the config of its executor."""
    return not (work.argv or work.tool or work.server or work.prompt)


def default_for(work: Work) -> str | None:
    """Gives the executor that gets the work where none was asked for by name; an agent's program has its own."""
    kind = work_kind(work)
    if kind == "mcp":
        return work.server
    if kind != "command" or not work.argv:
        return None
    return AGENT_PROGRAMS.get(os.path.basename(work.argv[0]), COMMAND)


def choose(work: Work, kinds: Mapping[str, str], prompted: Collection[str] = ()) -> str:
    """Chooses among executors given as {name: kind}; `work.executor` is the one asked for by name.

    Those in `prompted` take prompts beside the work of their kind.

    Raises Rejected(`nothing_to_do`, `unknown_executor`, `wrong_executor`, `kind_missing`). An executor of a kind that
    isn't one of `WANTED` is one of the caller's own and takes whatever it accepts.
    """
    if work.executor is not None and work.executor in kinds and says_nothing(work):
        return work.executor  # Its config says all there is to do.
    kind = work_kind(work)
    name = work.executor or default_for(work)
    if work.executor is None and kind == "command" and name not in kinds:
        name = COMMAND  # There is none for this agent.
    if name is None:
        raise _missing(kind, kinds)
    if name not in kinds:
        close = get_close_matches(name, kinds, 1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise Rejected("unknown_executor", executor=name, hint=hint, known=", ".join(sorted(kinds)))
    takes = kinds[name] == kind or (kind == "model" and name in prompted)
    if kinds[name] in WANTED and not takes:
        raise Rejected("wrong_executor", executor=name, kind=kinds[name], wanted=WANTED[kind])
    return name


def _missing(kind: str, kinds: Mapping[str, str]) -> Rejected:
    """Says which executor is missing, and what could be used instead."""
    if kind == "mcp":
        servers = ", ".join(sorted(name for name, of in kinds.items() if of == "mcp")) or "none yet"
        why = f"A tool call names its server; the config has: {servers}."
        return Rejected("kind_missing", kind=kind, why=why, remedy="Name the server (`--server`).")
    why = "The config names no executor for prompts."
    remedy = "Wrap the prompt in a command (argv) or an MCP tool that runs it."
    return Rejected("kind_missing", kind=kind, why=why, remedy=remedy)


def route(work: Work, executor: str) -> dict[str, str]:
    """Writes down why the work goes to the executor, at the moment when it goes there."""
    if executor == work.executor or says_nothing(work):
        reason = "asked for by name"
    elif executor == default_for(work):
        is_agent = executor in AGENT_PROGRAMS.values()
        reason = "the program is that agent's" if is_agent else DEFAULT[work_kind(work)]
    else:
        reason = "given to it by hand"
    return {"executor": executor, "reason": reason}
