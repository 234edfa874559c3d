"""What passes between the mcp executor and its sessions. Knows nothing of the SDK, which the executor imports late."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple

from msgspec import Struct

from omnid.executor.mcp_questions import Answers, Requests

Ask = Callable[[Requests], Awaitable[Answers]]

Doubt = Callable[[], AbstractContextManager[None]]
"""What is entered while a question is held back of which it isn't known whose it is."""


class Tool(Struct, frozen=True):
    """What is known of a tool before it is called."""

    name: str
    schema: dict[str, Any]
    repeatable: bool
    """Its annotations say that calling it again does no harm: it only reads, or is idempotent."""
    tasks: bool = False
    """Whether calls may ask for a task, at 2025-11-25; from 2026-07-28 on the server decides."""


class Answer(Struct, frozen=True):
    """What came of a call: `done`, `error` (the tool says so), `refused` (bad arguments), `unknown` (nobody knows).

    `stopped`: somebody has stopped it there. `unsent`: the server surely didn't take it; the session is retired, and a
    new one may have better luck.
    """

    kind: Literal["done", "error", "refused", "stopped", "unknown", "unsent"]
    text: str
    value: Any = None


class Asked(Struct, frozen=True):
    """A call that asks before it is done; it is called again with the answers, and with its `state` as it was."""

    requests: dict[str, Any]
    state: str | None


class Reply(Struct, frozen=True):
    """What such a call is called again with."""

    answers: dict[str, dict[str, Any]]
    state: str | None


class Party(NamedTuple):
    """Who takes part in a call: see `McpSession.held`."""

    notice: Callable[[str], None]
    ask: Ask | None
    task_id: str | None
    may_ask: Doubt | None = None
