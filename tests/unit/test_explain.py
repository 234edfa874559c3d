"""The sentence why: it says for every state what happened, why, and what comes next."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnid.flow.explain import Situation, calls_text, span, why
from omnid.model import Attempt, Gate, Problem, Task, Work
from omnid.states import STATES

NOW_MS = 1_800_000_000_000
EXIT = Problem.make("exit_code", code=7, detail="x", task="t7")
LOST = Problem.make("uncertain", executor="command", detail="it died", task="t7")


def task(state: str, **fields: Any) -> Task:
    return Task(1, "i", "user", 7, Work(), "command", state, **fields)


def facts(**fields: Any) -> Situation:
    plain: dict[str, Any] = {
        "now_ms": NOW_MS,
        "last": None,
        "attempts_max": 3,
        "open_before": (),
        "gate": None,
        "lane_holder": None,
        "executor_known": True,
        "executor_full": False,
        "slots_full": False,
        "running": 0,
    }
    return Situation(**{**plain, **fields})


def attempt(number: int = 1, **fields: Any) -> Attempt:
    return Attempt("a", "i", number, "command", False, NOW_MS - 90_000, **fields)


def gate(cause: str, subject: str, **fields: Any) -> Gate:
    return Gate(f"{cause}:{subject}", cause, subject, NOW_MS - 1000, fields.pop("wake_at_ms", None), **fields)


def test_a_task_from_inside_another_names_it() -> None:
    text = why(task("idle"), facts(parent="t3"))
    assert text == "t7 (submitted by t3) waits for its turn and starts as soon as a slot is free."


FULL = Problem.make("disk_full", path="/x", detail="y")
DOWN = gate("executor", "command", wake_at_ms=NOW_MS + 40_000, problem=EXIT)

OUTSIDE = gate(
    "hours",
    "night",
    wake_at_ms=NOW_MS + 18_000_000,
    problem=Problem.make("outside_hours", executor="night", only="23:00-07:00", zone="UTC"),
)
MONEY = Problem.make(
    "budget_reached",
    lid="budget.day_usd",
    limit="$5.00",
    window="today",
    used="$5.00 spent",
    executor="c",
    need="$1.00",
)
NEVER = Problem.make("budget_never", lid="l", limit="$1.00", executor="c", need="$2.00")
OWN = Problem.make("budget_task", task="t7", limit="$2.00", used="$1.90 spent", need="$0.20")
LOOP = Problem.make("loop", executor="c", count=5, seconds_s=3600, tasks="t1, t2")

CASES: list[tuple[Task, Situation, tuple[str, ...]]] = [
    (task("idle"), facts(), ("for its turn",)),
    (
        task("idle"),
        facts(gate=gate("budget", "command", wake_at_ms=NOW_MS + 7_200_000, problem=MONEY)),
        ("for money", "budget.day_usd of $5.00 leaves too little today", "in 2 h"),
    ),
    (task("idle"), facts(gate=gate("budget", "command", problem=NEVER)), ("for money", "Raise l in the config")),
    (task("waiting", reason="budget", problem=OWN), facts(), ("$1.90 spent", "`omnictl budget t7 USD` raises it")),
    (
        task("waiting", reason="budget", problem=MONEY, wake_at_ms=NOW_MS + 60_000),
        facts(),
        ("leaves too little", "goes on in 1 min at the latest"),
    ),
    (task("waiting", reason="approval", approval="needed", problem=LOOP), facts(), ("t1, t2", "`omnictl approve t7`")),
    (task("completed"), facts(cost="$1.84 spent, of at most $5.00"), ("(cost: $1.84 spent, of at most $5.00).",)),
    (task("idle"), facts(gate=gate("paused", "*")), ("everything is paused", "`omnictl resume`")),
    (task("idle"), facts(gate=gate("paused", "safe")), ("safe is paused", "`omnictl resume --executor safe`")),
    (task("idle"), facts(gate=DOWN), ("command is down", "exit code 7", "tried again in 40 s")),
    (task("idle"), facts(gate=DOWN, login=True), ("needs a key or a login", "exit code 7", "in 40 s", "provide it")),
    (task("idle"), facts(trouble=FULL), ("nothing can be written (The disk is full", "free some space", "by itself")),
    (task("executing", attempt=2), facts(unwritten=FULL), ("t7 has ended on command (attempt 2)", "free some space")),
    (task("executing"), facts(unclear=EXIT), ("when omnid ended", "exit code 7", "looked at again by itself")),
    (task("executing"), facts(unwritten=EXIT), ("`omnictl doctor`",)),
    (task("idle"), facts(executor_known=False), ("no executor command any more", "omnictl assign t7")),
    (task("idle", lane="l"), facts(lane_holder="t3"), ("lane l", "t3 runs")),
    (task("idle"), facts(slots_full=True, running=4), ("free slot", "4 tasks run", "daemon.slots_max")),
    (task("idle"), facts(executor_full=True), ("as many tasks as it may",)),
    (task("waiting", reason="paused"), facts(), ("paused", "`omnictl resume t7`")),
    (task("waiting", reason="approval"), facts(), ("approval", "`omnictl approve t7` or `omnictl deny t7`")),
    (task("waiting", reason="dependency"), facts(open_before=("t1", "t2")), ("t1, t2",)),
    (task("idle"), facts(gate=OUTSIDE), ("outside its hours", "within 23:00-07:00 only (UTC)", "goes on in 5 h")),
    (
        Task(1, "i", "user", 7, Work(only="23:00-07:00"), "command", "waiting", reason="hours", wake_at_ms=NOW_MS),
        facts(),
        ("for its hours (23:00-07:00)", "starts now"),
    ),
    (task("waiting", reason="not_before", wake_at_ms=NOW_MS + 7_200_000), facts(), ("its time", "in 2 h")),
    (task("waiting", reason="not_before", wake_at_ms=NOW_MS - 1), facts(), ("starts now",)),
    (
        task("waiting", reason="backoff", wake_at_ms=NOW_MS + 5_000, failures=2),
        facts(last=attempt(2, problem=EXIT)),
        ("tries again in 5 s", "2 of 3 attempts failed", "attempt 2 ended with: ", "exit code 7"),
    ),
    (task("waiting", reason="backoff", wake_at_ms=NOW_MS + 5_000), facts(), ("did not start",)),
    (task("waiting", reason="login"), facts(), ("login", "when that is settled")),
    (task("executing", attempt=1), facts(last=attempt()), ("runs on command", "started 1 min ago", "2 more times")),
    (
        task("executing", attempt=1),
        facts(last=attempt(), may_ask=True),
        ("runs on command", "without saying in which of its open calls", "nobody is asked yet", "as the others end"),
    ),
    (task("executing", attempt=3, failures=2), facts(last=attempt(3)), ("a failure would end it",)),
    (task("executing", attempt=1, cancel=True), facts(last=attempt()), ("a cancel was asked for",)),
    (task("uncertain", problem=LOST), facts(), ("Nobody knows", "it died", "`omnictl resolve t7 --done`, `--again`")),
    (task("uncertain"), facts(), ("Nobody knows whether it finished",)),
    (
        task("completed", finished_at_ms=NOW_MS - 3_000, attempt=2),
        facts(last=attempt(2, outcome="success")),
        ("completed 3 s ago by command at attempt 2",),
    ),
    (task("completed", finished_at_ms=NOW_MS), facts(last=attempt(outcome="failure")), ("by hand",)),
    (task("completed", finished_at_ms=NOW_MS), facts(), ("by hand",)),
    (
        task("failed", finished_at_ms=NOW_MS - 60_000, attempt=3, problem=EXIT),
        facts(),
        ("failed 1 min ago after 3 attempts", "exit code 7", "`omnictl retry t7`"),
    ),
    (task("cancelled", finished_at_ms=NOW_MS), facts(), ("was cancelled", "`omnictl retry t7`")),
]


@pytest.mark.parametrize(("about", "situation", "says"), CASES)
def test_it_says_why(about: Task, situation: Situation, says: tuple[str, ...]) -> None:
    text = why(about, situation)
    assert text.startswith("t7 ")
    assert text.endswith(".")
    assert "\n" not in text
    assert ".." not in text
    assert "None" not in text
    for part in says:
        assert part in text, text


def test_every_state_has_a_sentence() -> None:
    for state in STATES:
        assert why(task(state), facts()).endswith(".")


@pytest.mark.parametrize(
    ("seconds_s", "text"),
    [
        (-5, "0 s"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (3599, "59 min"),
        (3600, "1 h"),
        (11_400, "3 h 10 min"),
        (48 * 3600 - 1, "47 h 59 min"),
        (48 * 3600, "2 d"),
    ],
)
def test_durations_are_written_as_people_say_them(seconds_s: float, text: str) -> None:
    assert span(seconds_s) == text


@given(st.floats(0, 1e9))
def test_a_duration_is_short(seconds_s: float) -> None:
    assert len(span(seconds_s)) <= 11


def test_the_ways_of_calls_are_told_with_all_that_came_before():
    first = {"channel": "p1", "model": "m", "way": "gateway", "why": "the first in order", "turned_down": []}
    assert calls_text([]) == ""
    assert calls_text([first]) == "The call went to p1 (m) through the gateway: the first in order."
    second = {**first, "channel": "p2", "way": "direct", "why": "next in order", "after": "p1: it refuses"}
    text = calls_text([first, {**second, "turned_down": ["p1 (its key is limited)", "p3 (it has no model m)"]}])
    assert text == (
        "Call 2 went to p2 (m) directly: next in order; before it, p1: it refuses; "
        "turned down: p1 (its key is limited), p3 (it has no model m)."
    )
