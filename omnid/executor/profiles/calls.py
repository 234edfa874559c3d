"""How a run of an agent is read in its words, and how its words are made: for a first prompt, or to go on. Pure."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from omnid.clock import named_uuid
from omnid.executor.profiles.profile import Default, Profile, Syntax
from omnid.settings import CommandExecutor


class Flag(NamedTuple):
    """One flag with its values, as the words that stand for it."""

    name: str
    words: tuple[str, ...]

    @property
    def value(self) -> str | None:
        """Gives its first value."""
        word, *values = self.words
        return values[0] if values else word.partition("=")[2] or None


class Run(NamedTuple):
    """A run of an agent: one prompt, answered without a person."""

    program: str
    flags: tuple[Flag, ...]
    prompt: str | None
    """None: it comes on standard input."""

    def flag(self, names: Sequence[str] | frozenset[str]) -> Flag | None:
        """Gives the last flag of any of these names."""
        return next((flag for flag in reversed(self.flags) if flag.name in names), None)


def session_of(task_id: str, executor: str) -> str:
    """Names the session of a task: the same one in all its attempts, whatever dies in between."""
    return named_uuid(f"{executor}/{task_id}")


def read_run(profile: Profile, argv: Sequence[str], *, prompted: bool = False) -> Run | None:
    """Reads the words of a program; None where they ask for something other than a run.

    With `prompted` a prompt comes from elsewhere, so that a program and some flags are enough.
    """
    syntax, words = profile.syntax, list(argv[1:])
    if words and words[0] in syntax.verbs:
        del words[0]
    elif syntax.verbs and not prompted:
        return None
    tokens = list(_tokens(syntax, words))
    found = [token for token in tokens if isinstance(token, Flag)]
    if syntax.needs and not prompted and not any(flag.name in syntax.needs for flag in found):
        return None
    prompts = [token for token in tokens if isinstance(token, str)]
    prompts += [flag.value or "" for flag in found if flag.name in syntax.prompt_flags]
    if len(prompts) > 1:
        return None  # A further word may be a subcommand, as in `codex exec resume`.
    flags = tuple(flag for flag in found if flag.name not in syntax.needs | syntax.prompt_flags)
    return Run(argv[0], flags, prompts[0] if prompts else None)


def _tokens(syntax: Syntax, words: Sequence[str]) -> Iterator[Flag | str]:
    """Takes words apart into flags with their values and words that belong to none."""
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if word == "--":
            yield from words[at:]
            return
        if not word.startswith("-") or word == "-":
            yield word
            continue
        name, equals, _ = word.partition("=")
        until = at
        if not equals:
            until = _values_end(syntax, name, words, at)
        yield Flag(name, (word, *words[at:until]))
        at = until


def _values_end(syntax: Syntax, name: str, words: Sequence[str], at: int) -> int:
    """Gives the position after a flag's last value."""
    if name in syntax.one or name in syntax.prompt_flags:
        return min(at + 1, len(words))
    if name in syntax.many:
        while at < len(words) and not words[at].startswith("-"):
            at += 1
        return at
    if name in syntax.maybe and at < len(words) and not words[at].startswith("-"):
        return at + 1
    return at


def with_defaults(profile: Profile, section: CommandExecutor, run: Run) -> Run:
    """Adds the flags that a run gets where it says nothing else; they are shown, and a person's approval holds them."""
    wanted = (*profile.defaults, *_configured(profile, section))
    added = [Flag(default.words[0], default.words) for default in wanted if run.flag(default.names) is None]
    return run._replace(flags=(*run.flags, *added))


def _configured(profile: Profile, section: CommandExecutor) -> Iterator[Default]:
    """Gives what the agent may do, as the config says it or else the profile."""
    mode, tools = section.permission_mode, section.allowed_tools
    if profile.permission is not None and mode != "":
        flag, usual = profile.permission.words
        yield Default(names=profile.permission.names, words=(flag, mode or usual))
    if profile.tools is not None and tools != ():
        flag, usual = profile.tools.words
        yield Default(names=profile.tools.names, words=(flag, usual if tools is None else ",".join(tools)))


def with_cost(profile: Profile, run: Run, cost_max_usd: float | None) -> Run:
    """Passes on the most that the run may cost, where the agent takes one and the run names none."""
    if profile.cost is None or cost_max_usd is None or run.flag((profile.cost,)) is not None:
        return run
    return run._replace(flags=(*run.flags, Flag(profile.cost, (profile.cost, f"{cost_max_usd:.6f}"))))


def words_of(profile: Profile, run: Run, session: str | None, *, resume: bool) -> tuple[str, ...]:
    """Gives the words that begin a run or go on with its session.

    Without a session the run is begun in one that nobody names.
    """
    template = profile.resume if resume else profile.begin
    given = {"session": session, "prompt": run.prompt}
    words: list[str] = [run.program]
    named = profile.sessions.given
    for word in _without_missing(template, given):
        if word == "{flags}":
            words += [part for flag in run.flags if flag.name not in named for part in flag.words]
        else:
            words.append(_filled(word, given))
    return tuple(words)


def _without_missing(template: Sequence[str], given: dict[str, str | None]) -> list[str]:
    """Leaves out words, and the flags before them, whose value isn't there."""
    kept: list[str] = []
    for word in template:
        missing = any(value is None and f"{{{name}}}" in word for name, value in given.items())
        if not missing:
            kept.append(word)
        elif kept and kept[-1].startswith("-") and word.startswith("{"):
            kept.pop()
    return kept


def _filled(word: str, given: dict[str, str | None]) -> str:
    # A prompt may hold braces itself, so that each word is filled in once.
    for name, value in given.items():
        mark = f"{{{name}}}"
        if value is not None and mark in word:
            return word.replace(mark, value, 1)
    return word


def plain_words(profile: Profile, run: Run) -> tuple[str, ...]:
    """Gives the words of a run without those that differ between attempts, as they are shown and approved."""
    return words_of(profile, run, _value(run.flag(profile.sessions.given)), resume=False)


def _value(flag: Flag | None) -> str | None:
    return None if flag is None else flag.value


def own_session(profile: Profile, run: Run, task_id: str, executor: str) -> str | None:
    """Gives the session of a run where it is known before it begins: the person's or ours; None: the agent's own."""
    given = _value(run.flag(profile.sessions.given))
    if given is not None:
        return given
    return session_of(task_id, executor) if profile.sessions.by == "us" else None


def can_go_on(profile: Profile, run: Run) -> bool:
    """Tells whether a later attempt can go on with the run's session."""
    return run.flag(profile.sessions.kept) is None


def is_structured(profile: Profile, run: Run) -> bool:
    """Tells whether the run prints JSON."""
    if not profile.structured:
        return True
    flag = run.flag(frozenset(profile.structured))
    return flag is not None and (flag.value or "") in profile.structured[flag.name]
