"""How long the decision takes which executor gets a task."""

import time
from collections.abc import Callable
from statistics import median
from zoneinfo import ZoneInfo

from bench.report import Report
from omnid.model import Work
from omnid.route.router import Facts, choose
from omnid.route.rules import Asked, Rules
from omnid.route.ways import way_of
from omnid.settings import CommandExecutor, Rule

RULES = 20
TURNS = 20_000
NOW_MS = 1_795_000_000_000
PROMPT = (
    "Please fix the login bug: after a wrong password the form forgets the name, and the test for that is red. " * 4
)


async def decisions(report: Report) -> None:
    """Adds the router's figure."""
    report.add(f"router decision with {RULES} rules, p50", _decision_us(), "us", "<=", 100)


def _decision_us() -> float:
    """Decides about prompts with rules of all kinds before the built-in ones, the last of which fits."""
    names = ("claude-code", "codex", "gemini", "openclaw")
    ways = {name: way_of("command", CommandExecutor(name=name, profile=name)) for name in names}
    ways["command"] = way_of("command", CommandExecutor(name="command"))
    fits = [
        lambda n: Rule(name=f"r{n}", executor=("codex",), labels=(f"label-{n}",)),
        lambda n: Rule(name=f"r{n}", executor=("codex",), kind=(f"kind-{n}",)),
        lambda n: Rule(name=f"r{n}", executor=("codex",), text=(f"word{n}", f"deploy{n}*", "release notes")),
        lambda n: Rule(name=f"r{n}", executor=("gemini", "codex"), bytes_min=50_000, hours="23:00-07:00"),
    ]
    own = [fits[n % len(fits)](n) for n in range(RULES - 1)]
    own.append(Rule(name="last", executor=("nobody", "claude-code", "codex"), text=("bug",)))
    facts = Facts(ways, Rules.made(own), NOW_MS, ZoneInfo("Europe/Berlin"))
    work = Work(prompt=PROMPT)
    route = choose(Asked(work, labels=("nightly",)), facts)
    if (route.rule, route.executor) != ("last", "claude-code"):
        raise RuntimeError(f"it decided {route}")
    return _median_us(lambda: choose(Asked(work, labels=("nightly",)), facts))


def _median_us(turn: Callable[[], object]) -> float:
    taken: list[int] = []
    for _ in range(TURNS):
        since_ns = time.perf_counter_ns()
        turn()
        taken.append(time.perf_counter_ns() - since_ns)
    return median(taken) / 1000
