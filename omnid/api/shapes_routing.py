"""The parameters and results of `route.explain`; see `shapes`."""

from typing import Annotated, Any

from msgspec import Meta, Struct

from omnid.model import Label, Name, Params, Route


class RouteExplain(Params, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A task as it would be submitted; without anything to do, only the rules are given."""

    argv: Annotated[tuple[str, ...], Meta(description="Program and arguments")] | None = None
    stdin: str | None = None
    server: str | None = None
    tool: str | None = None
    arguments: dict[str, Any] | None = None
    prompt: str | None = None
    executor: Name | None = None
    lane: Name | None = None
    labels: tuple[Label, ...] = ()
    kind: Annotated[str, Meta(min_length=1, max_length=50)] = "general"


class RuleView(Struct, frozen=True, kw_only=True):
    """A rule in force; what is empty fits everything."""

    name: str
    built_in: bool
    takes: tuple[str, ...]
    """The kinds of work it is for: `command`, `mcp` (a tool call), `model` (a prompt)."""
    executors: tuple[str, ...]
    """In the order of preference."""
    missing: tuple[str, ...]
    """Those of them that the config doesn't have."""
    kind: tuple[str, ...]
    labels: tuple[str, ...]
    text: tuple[str, ...]
    bytes_min: int
    bytes_max: int | None
    lane: tuple[str, ...]
    hours: str


class RouteExplained(Struct, frozen=True):
    """The rules in the order in which they are held against a task, and what they decide about this one."""

    rules: list[RuleView]
    route: Route | None = None
    text: str = ""
    """The decision in words."""
    approval: bool = False
    """Whether a person would have to approve it."""
