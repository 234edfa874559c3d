"""Rules: which executors a task may go to, as data, the config's first and the built-in ones after. Pure.

All that a rule names must fit. Words are looked for without regard to case and as whole words; in scripts that write no
spaces between words, anywhere.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property
from typing import NamedTuple
from zoneinfo import ZoneInfo

from omnid.model import Problem, Work
from omnid.route.ways import EVERY, Sort, Way, agent_of
from omnid.settings import AGENT_PROGRAMS, COMMAND, MODEL, Rule
from omnid.times import Window

TEXT_CHARS_MAX = 16_384
"""How much of what is asked for is searched for words."""

AGENTS = "agents"
"""The built-in rule for commands that run an agent: each goes to the executor of that agent alone."""
COMMANDS = "commands"
"""The built-in rule for commands that nothing else claims, which is no choice worth writing down."""
_EDGE = r"[^\W\u2e80-\U0010ffff]"
"""A letter or digit of a script that separates words."""

_CODE_WORDS = (
    *("bug", "bugs", "bugfix*", "debug*", "refactor*", "compil*", "lint*", "traceback", "stack trace", "segfault*"),
    *("source code", "codebase", "repo", "repos", "repositor*", "git", "commit", "commits", "pull request*"),
    *("unit test*", "failing test*", "test suite", "type error*", "syntax error*", "merge conflict*", "api endpoint*"),
    *("程式", "代碼", "代码", "源碼", "源码", "編程", "编程", "重構", "重构", "除錯", "調試", "调试", "修復", "修复"),
    *("單元測試", "单元测试", "編譯", "编译"),
)

BUILT_IN: tuple[tuple[Rule, tuple[Sort, ...]], ...] = (
    (Rule(name="local", executor=(COMMAND,), labels=("local",)), ("command",)),
    (Rule(name="always-on", executor=("moltworker",), labels=("always-on",)), EVERY),
    (Rule(name="heavy", executor=("moltworker",), labels=("heavy",)), EVERY),
    (Rule(name="gpu", executor=("moltworker",), labels=("gpu",)), EVERY),
    (Rule(name="remote", executor=("moltworker",), kind=("always-on", "heavy", "gpu")), EVERY),
    (Rule(name=AGENTS, executor=tuple(dict.fromkeys(AGENT_PROGRAMS.values()))), ("command",)),
    (Rule(name="programming", executor=("claude-code",), kind=("programming", "repair")), ("model",)),
    (Rule(name="code", executor=("claude-code",), kind=("general",), text=_CODE_WORDS), ("model",)),
    (Rule(name="general", executor=("openclaw", "claude-code")), ("model",)),
    (Rule(name=COMMANDS, executor=(COMMAND,)), ("command",)),
)
"""The rules that hold after the config's, with what they are for; one of the config's of the same name replaces one."""


GENERAL_WITH_MODELS = Rule(name="general", executor=(MODEL, "openclaw", "claude-code"))
"""The built-in rule `general` where the config has channels."""


class Asked:
    """What is asked for, as rules see it."""

    def __init__(self, work: Work, kind: str = "general", labels: Iterable[str] = (), lane: str | None = None) -> None:
        self.work = work
        self.kind = kind
        self.labels = frozenset(labels)
        self.lane = lane

    @cached_property
    def text(self) -> str:
        """The words of it: the prompt, the command, or the tool with its arguments."""
        work = self.work
        if work.prompt is not None:
            return work.prompt
        if work.argv is not None:
            return " ".join(work.argv)
        return " ".join([work.server or "", work.tool or "", *map(str, (work.arguments or {}).values())])

    @cached_property
    def folded(self) -> str:
        """The beginning of the words, for comparison: in one case, with single spaces."""
        return " ".join(self.text[:TEXT_CHARS_MAX].casefold().split())

    @cached_property
    def agent(self) -> str | None:
        """The agent whose program it runs, if it is a command that runs one."""
        return agent_of(self.work.argv)

    @cached_property
    def size_bytes(self) -> int:
        """How much is asked for: its words and its standard input."""
        return len(self.text.encode(errors="replace")) + len((self.work.stdin or "").encode(errors="replace"))


class Matcher:
    """A rule made ready to be held against many tasks."""

    def __init__(self, rule: Rule, sorts: tuple[Sort, ...] = EVERY, *, built_in: bool = False) -> None:
        self.rule = rule
        self.sorts = sorts
        self.built_in = built_in
        self._by_program = built_in and rule.name == AGENTS
        self._labels = frozenset(rule.labels)
        self._window = Window.parse(rule.hours) if rule.hours else None
        self._words = [_words(words) for words in rule.text]
        self._sized = bool(rule.bytes_min) or rule.bytes_max is not None

    def fits(self, asked: Asked, now_ms: int, zone: ZoneInfo) -> bool:
        """Tells whether all that the rule names fits; what costs most is looked at last."""
        rule = self.rule
        return (
            (not self._by_program or asked.agent is not None)
            and self._labels <= asked.labels
            and (not rule.kind or asked.kind in rule.kind)
            and (not rule.lane or asked.lane in rule.lane)
            and (not self._sized or self._holds(asked.size_bytes))
            and (self._window is None or self._window.holds(now_ms, zone))
            and (not self._words or self._speaks_of(asked.folded))
        )

    def candidates(self, asked: Asked) -> tuple[str, ...]:
        """Gives the executors that the rule has for what it fits, in the order of preference."""
        return (asked.agent,) if self._by_program and asked.agent is not None else self.rule.executor

    def _speaks_of(self, folded: str) -> bool:
        # Most words aren't there at all, and that is found much faster than with an expression. These are compiled when
        # they are first needed, and kept by `re`: all of them would take a noticeable part of the daemon's start.
        return any(stem in folded and re.search(whole, folded) is not None for stem, whole in self._words)

    def _holds(self, size_bytes: int) -> bool:
        return self.rule.bytes_min <= size_bytes and (self.rule.bytes_max is None or size_bytes <= self.rule.bytes_max)


def _words(words: str) -> tuple[str, str]:
    """Gives what to look for in a folded text, and an expression for it as a whole word."""
    stem = " ".join(words.removesuffix("*").casefold().split())
    before = rf"(?<!{_EDGE})" if re.match(_EDGE, stem) else ""
    after = rf"(?!{_EDGE})" if not words.endswith("*") and re.match(_EDGE, stem[-1]) else ""
    return stem, f"{before}{re.escape(stem)}{after}"


class Rules(NamedTuple):
    """The rules in force, in order, all and for each sort of work."""

    every: tuple[Matcher, ...]
    of: Mapping[Sort, tuple[Matcher, ...]]

    @classmethod
    def made(cls, own: Sequence[Rule], *, models: bool = False) -> "Rules":
        """Puts the config's rules before the built-in ones; with `models`, prompts go to models first."""
        names = {rule.name for rule in own}
        swapped = {GENERAL_WITH_MODELS.name: GENERAL_WITH_MODELS} if models else {}
        others = ((swapped.get(rule.name, rule), sorts) for rule, sorts in BUILT_IN if rule.name not in names)
        built_in = (Matcher(rule, sorts, built_in=True) for rule, sorts in others)
        every = (*map(Matcher, own), *built_in)
        return cls(every, {sort: tuple(one for one in every if sort in one.sorts) for sort in EVERY})

    def executors_for(self, kind: str) -> frozenset[str]:
        """Names the executors to which prompts of a kind are sent because they are of it."""
        return frozenset(name for one in self.of["model"] if kind in one.rule.kind for name in one.rule.executor)


def remarks(own: Sequence[Rule], ways: Mapping[str, Way]) -> list[Problem]:
    """Gives what is strange about rules of the config, though each is right by itself."""
    found: list[Problem] = []
    for position, rule in enumerate(own):
        for name in rule.executor:
            if name not in ways:
                near = get_close_matches(name, ways, 1)
                hint = f" (did you mean {near[0]}?)" if near else ""
                found.append(Problem.make("rule_unknown_executor", rule=rule.name, executor=name, hint=hint))
        earlier = next((one for one in own[:position] if _covers(one, rule, ways)), None)
        if earlier is not None:
            found.append(Problem.make("rule_unreachable", rule=rule.name, earlier=earlier.name))
    return found


def _covers(earlier: Rule, later: Rule, ways: Mapping[str, Way]) -> bool:
    """Tells whether the earlier rule decides about all that the later one fits."""
    return (
        set(earlier.labels) <= set(later.labels)
        and all(_wider(getattr(earlier, name), getattr(later, name)) for name in ("kind", "lane", "text"))
        and earlier.bytes_min <= later.bytes_min
        and (earlier.bytes_max is None or (later.bytes_max is not None and later.bytes_max <= earlier.bytes_max))
        and earlier.hours in ("", later.hours)
        and _takes(later, ways) <= _takes(earlier, ways)
    )


def _wider(earlier: tuple[str, ...], later: tuple[str, ...]) -> bool:
    return not earlier or (bool(later) and set(later) <= set(earlier))


def _takes(rule: Rule, ways: Mapping[str, Way]) -> set[Sort]:
    """Gives the sorts of work that the rule is for; what an executor that isn't there would take nobody knows."""
    found: set[Sort] = set()
    for name in rule.executor:
        way = ways.get(name)
        found |= set(EVERY) if way is None else way.takes - {"command"} if way.profile else way.takes
    return found
