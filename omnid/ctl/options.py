"""The command line's grammar: verbs declare options and arguments, `parse` reads them, `usage` explains them.

By hand and not by `argparse`, which costs a fifth of the time that ``omnictl status`` may take. The grammar is the
usual one of GNU: ``--option value``, ``--option=value``, options and arguments in any order, everything after ``--``
as it is. Options are never abbreviated, so that a new one can't change what an old script means.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, cast

from omnid.ctl import times
from omnid.ctl.render import COLUMNS_DEFAULT, wrap
from omnid.errors import Rejected

if TYPE_CHECKING:
    from omnid.ctl.context import Context


class Option(NamedTuple):
    """An option of a verb, without its dashes; `value` is the word for its value in the help, None for a flag."""

    name: str
    value: str | None
    about: str
    many: bool = False
    """Whether it may be given more than once."""
    short: str = ""
    """A letter for it, if it has one."""


class Verb(NamedTuple):
    """A verb: what runs it, what it takes, and what its help says.

    `arguments` reads like usage: ``TASK``, ``TASK...`` (one or more), ``[TASK...]`` (any number).
    """

    run: "Callable[[Context], int]"
    about: str
    arguments: str = ""
    options: tuple[Option, ...] = ()
    examples: tuple[str, ...] = ()
    rest: str = ""
    """The word for what stands after ``--``; empty: nothing may."""


COMMON = (
    Option("json", None, "Give the result or the error as JSON"),
    Option("help", None, "Explain this verb", short="h"),
)


class Given:
    """What was given: options by name, arguments, and what stands after ``--`` (None: there was none).

    Each accessor raises Rejected(`bad_usage` or `bad_time`) where the value can't be read as what it should be.
    """

    def __init__(self, verb: str) -> None:
        self.verb = verb
        self.values: dict[str, list[str]] = {}
        self.arguments: list[str] = []
        self.rest: list[str] | None = None

    def flag(self, name: str) -> bool:
        """Tells whether the option was given."""
        return name in self.values

    def text(self, name: str) -> str | None:
        """Gives the option's value as it was given."""
        return self.values[name][-1] if name in self.values else None

    def filled(self, name: str) -> str | None:
        """Gives the option's value, which isn't empty: a variable of the shell that isn't set is no choice."""
        text = self.text(name)
        if text is not None and not text.strip():
            self.misuse(f"--{name} takes a value, and was given an empty one")
        return text

    def many(self, name: str) -> list[str] | None:
        """Gives all values of an option that may be repeated."""
        return self.values.get(name)

    def commas(self, name: str) -> list[str] | None:
        """Gives the parts of a value with commas."""
        text = self.text(name)
        if text is None:
            return None
        parts = text.split(",")
        if not all(parts):
            self.misuse(f"--{name} holds an empty name: {text!r}")
        return parts

    def whole(self, name: str) -> int | None:
        """Gives the value as a whole number."""
        text = self.text(name)
        return None if text is None else self.number(f"--{name}", text)

    def number(self, what: str, text: str) -> int:
        """Reads a whole number that `what` was given."""
        try:
            return int(text)
        except ValueError:
            self.misuse(f"{what} takes a whole number, not {text!r}")

    def amount(self, name: str) -> float | None:
        """Gives the value as an amount of money, not below zero."""
        text = self.text(name)
        return None if text is None else self.dollars(f"--{name}", text)

    def dollars(self, what: str, text: str) -> float:
        """Reads an amount of money, not below zero, that `what` was given."""
        try:
            value = float(text.removeprefix("$"))
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf"):
            self.misuse(f"{what} takes an amount like 1.50, not {text!r}")
        return value

    def one_of(self, name: str, known: Sequence[str]) -> str | None:
        """Gives the value, which is one of the words."""
        text = self.text(name)
        if text is not None and text not in known:
            self.misuse(f"--{name} takes one of {', '.join(known)}, not {text!r}")
        return text

    def hours(self, name: str) -> str | None:
        """Gives the value, a daily window."""
        text = self.text(name)
        if text is not None and not re.fullmatch(r"(([01]\d|2[0-3]):[0-5]\d(-|$)){2}", text, re.ASCII):
            self.misuse(f"--{name} takes hours like 23:00-07:00, not {text!r}")
        return text

    def duration_s(self, name: str) -> float | None:
        """Gives the value, a duration, in seconds."""
        text = self.text(name)
        return None if text is None else times.parse_duration(text)

    def future_ms(self, name: str, now_ms: int) -> int | None:
        """Gives the value, a time to come, as Unix milliseconds."""
        text = self.text(name)
        return None if text is None else times.parse_future(text, now_ms)

    def schedule_at(self, name: str, now_ms: int) -> str | None:
        """Gives the value, a time to come, as the `at` of a schedule."""
        text = self.text(name)
        return None if text is None else times.parse_at(text, now_ms)

    def past_ms(self, name: str, now_ms: int) -> int | None:
        """Gives the value, a time gone by, as Unix milliseconds."""
        text = self.text(name)
        return None if text is None else times.parse_past(text, now_ms)

    def json_object(self, name: str) -> dict[str, Any] | None:
        """Gives the value, a JSON object."""
        text = self.text(name)
        if text is None:
            return None
        try:
            value = json.loads(text)
        except ValueError as error:
            self.misuse(f"--{name} takes a JSON object, and this is no JSON: {error}")
        if not isinstance(value, dict):
            self.misuse(f'--{name} takes a JSON object, as in --{name} \'{{"path": "/tmp"}}\'')
        return cast(dict[str, Any], value)

    def words(self, name: str) -> list[str] | None:
        """Gives the value, a command in one text, split as a shell would split it; no shell runs it."""
        text = self.text(name)
        if text is None:
            return None
        import shlex

        try:
            return shlex.split(text)
        except ValueError as error:
            self.misuse(f"--{name} can't be split into words: {error}")

    def misuse(self, detail: str) -> NoReturn:
        """Raises Rejected(`bad_usage`) for this verb."""
        raise Rejected("bad_usage", detail=detail, verb=self.verb, help=f"{self.verb} --help")


def parse(name: str, verb: Verb, argv: Sequence[str]) -> Given:
    """Reads what stands after the verb; raises Rejected(`bad_usage`) where the verb doesn't take it.

    With ``--help`` among the options the number of arguments doesn't matter.
    """
    given = Given(name)
    known = {f"--{option.name}": option for option in (*verb.options, *COMMON)}
    known |= {f"-{option.short}": option for option in known.values() if option.short}
    waiting = list(reversed(argv))
    while waiting:
        token = waiting.pop()
        if token == "--":
            given.rest = waiting[::-1]
            break
        if not token.startswith("-") or token == "-" or token[1:].isdigit():
            given.arguments.append(token)
            continue
        flag, assigned, value = token.partition("=") if token.startswith("--") else (token, "", "")
        option = known.get(flag)
        if option is None:
            given.misuse(f"There is no option {flag}{nearest(flag, known)}")
        _take(given, option, flag, value if assigned else None, waiting)
    if not given.flag("help"):
        _count(given, verb)
    return given


def nearest(word: str, known: "Sequence[str] | dict[str, Any]") -> str:
    """Gives `` (did you mean X?)`` where something known is near, else nothing."""
    from difflib import get_close_matches

    near = get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _take(given: Given, option: Option, flag: str, value: str | None, waiting: list[str]) -> None:
    if option.value is None:
        if value is not None:
            given.misuse(f"{flag} takes no value")
        value = ""
    elif value is None:
        # What looks like an option is one: a forgotten value is more likely, and `=` says the other thing.
        if not waiting or waiting[-1].startswith("--"):
            given.misuse(f"{flag} needs a value: {flag} {option.value} (or {flag}=VALUE)")
        value = waiting.pop()
    if option.name in given.values and option.value is not None and not option.many:
        given.misuse(f"{flag} was given twice")
    given.values.setdefault(option.name, []).append(value)


def _count(given: Given, verb: Verb) -> None:
    words = verb.arguments.split()
    least = sum(not word.startswith("[") for word in words)
    most = None if "..." in verb.arguments else len(words)
    if len(given.arguments) < least:
        given.misuse(f"It needs {verb.arguments}")
    if most is not None and len(given.arguments) > most:
        extra = given.arguments[most]
        after = "; a prompt stands in quotes, and a command after --" if verb.rest else ""
        given.misuse(f"It has no use for {extra!r}{after}")
    if given.rest is not None and not verb.rest:
        given.misuse("It takes nothing after --")


def usage(name: str, verb: Verb) -> list[str]:
    """Explains a verb in lines of at most 80 columns."""
    options = (*verb.options, *COMMON)
    forms = [
        (f"-{option.short}, " if option.short else "    ")
        + f"--{option.name}"
        + (f" {option.value}" if option.value else "")
        for option in options
    ]
    line = " ".join(
        part for part in (name, "[OPTIONS]", verb.arguments, f"[-- {verb.rest}]" if verb.rest else "") if part
    )
    lines = [f"Usage: omnictl {line}", "", *wrap(verb.about, COLUMNS_DEFAULT), "", "Options:"]
    left = max(map(len, forms))
    for form, option in zip(forms, options, strict=True):
        first, *more = wrap(option.about, COLUMNS_DEFAULT - left - 4)
        lines.append(f"  {form:<{left}}  {first}")
        lines += [" " * (left + 4) + text for text in more]
    if verb.examples:
        lines += ["", "Examples:", *(f"  {example}" for example in verb.examples)]
    return lines
