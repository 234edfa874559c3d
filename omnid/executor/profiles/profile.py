"""What a profile is: how an agent's program is called, where its answer keeps its parts, and what its texts mean."""

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

Match = Mapping[str, str]
"""Dotted paths and the values that stand there, for a document that counts."""


class Syntax(Struct, frozen=True, kw_only=True):
    """How the words after the program are read. A flag that stands in none of the sets takes no value."""

    verbs: tuple[str, ...] = ()
    """The first word of a run, one of these; (): there is none."""
    needs: frozenset[str] = frozenset()
    """Flags of which a run has one; without it the program does something else."""
    prompt_flags: frozenset[str] = frozenset()
    """Flags whose value is the prompt; otherwise the prompt is the first word that is no flag."""
    one: frozenset[str] = frozenset()
    """Flags that take one value."""
    many: frozenset[str] = frozenset()
    """Flags that take every word up to the next flag."""
    maybe: frozenset[str] = frozenset()
    """Flags that take a value where the next word is no flag."""


class Default(Struct, frozen=True, kw_only=True):
    """A flag that is added where a run has none of `names`."""

    names: tuple[str, ...]
    words: tuple[str, ...]


class Sessions(Struct, frozen=True, kw_only=True):
    """How an agent's sessions are named and gone on with."""

    by: Literal["us", "agent"]
    """Who names a new one: we do (by an id derived from the task's), or the agent, and it is read in its output."""
    given: frozenset[str] = frozenset()
    """Flags by which a person names the session of a run."""
    kept: frozenset[str] = frozenset()
    """Flags that go on with an older session or keep none: such a run can't be gone on with by us."""
    taken: str | None = None
    """Says that a session of that name is there already: it is gone on with."""
    missing: str | None = None
    """Says that there is no session of that name: it is begun."""


class Answer(Struct, frozen=True, kw_only=True):
    """Where documents of one kind keep parts of the answer: part -> dotted path (`*` goes through a list).

    The parts are `output`, `error`, `is_error`, `cost_usd`, `session` and `denied`; of many documents the last counts.
    """

    match: Match = {}
    take: Mapping[str, str]


class Texts(Struct, frozen=True, kw_only=True):
    """Regular expressions for what an agent says, looked for without regard to case."""

    limit: tuple[str, ...]
    """A limit of use was hit; it lifts by itself."""
    overload: tuple[str, ...]
    """The provider has too much to do."""
    login: tuple[str, ...]
    """A person must log in, renew a key, or pay."""
    alone: tuple[str, ...] = ()
    """Whole answers that come as a success and are the word of a limit all the same."""


class Profile(Struct, frozen=True, kw_only=True):
    """One agent; in `begin` and `resume` stand ``{flags}`` (all of them), ``{session}`` and ``{prompt}``."""

    name: str
    program: str
    syntax: Syntax
    begin: tuple[str, ...]
    resume: tuple[str, ...]
    sessions: Sessions
    texts: Texts
    answers: tuple[Answer, ...]
    defaults: tuple[Default, ...] = ()
    permission: Default | None = None
    """How far the agent may go by itself; `permission_mode` of the config takes the place of its last word."""
    tools: Default | None = None
    """What it may use without asking; `allowed_tools` of the config, joined by commas, takes the place of its last."""
    cost: str | None = None
    """The flag that takes the most that a run may cost, in dollars."""
    structured: Mapping[str, frozenset[str]] = {}
    """Flags, and their values, with which the output is JSON; without one of these it is plain text. {}: always."""


CONTINUE = "continue"
"""What a session is told that is gone on with; never the first prompt again."""
