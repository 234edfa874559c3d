"""The router: the user's defaults, rules of one's own, and what is said about all that was turned down."""

from collections.abc import Mapping
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnid.errors import Rejected
from omnid.model import Gate, Problem, Route, Work
from omnid.route.router import Facts, choose, said
from omnid.route.rules import BUILT_IN, TEXT_CHARS_MAX, Asked, Matcher, Rules, remarks
from omnid.route.ways import Way, way_of
from omnid.settings import CommandExecutor, McpExecutor, Rule

UTC = ZoneInfo("UTC")
NOON_MS = 1_795_003_200_000
LIMIT = Problem("limit", "You've hit your session limit.", "w", "d")


def agent(name: str, **fields: Any) -> Way:
    return way_of("command", CommandExecutor(name=name, profile=name, **fields))


COMMAND = way_of("command", CommandExecutor(name="command"))
NOTES = way_of("mcp", McpExecutor(name="notes", argv=("notes",)))
AGENTS = {name: agent(name) for name in ("claude-code", "codex", "gemini", "openclaw")}
ALL: Mapping[str, Way] = {"command": COMMAND, "notes": NOTES, "mine": way_of("in_process", None), **AGENTS}
WITH_MOLTWORKER = {**ALL, "moltworker": agent("moltworker")}


def gate(subject: str, cause: str = "rate_limit", problem: Problem | None = LIMIT) -> Gate:
    return Gate(f"{cause}:{subject}", cause, subject, NOON_MS, None, problem)


def facts(*rules: Rule, ways: Mapping[str, Way] = ALL, closed: tuple[Gate, ...] = (), now_ms: int = NOON_MS) -> Facts:
    return Facts(ways, Rules.made(rules), now_ms, UTC, {one.subject: one for one in closed})


def prompt(text: str, **fields: Any) -> Asked:
    return Asked(Work(prompt=text), **fields)


def run(*argv: str, **fields: Any) -> Asked:
    return Asked(Work(argv=argv), **fields)


def code(asked: Asked, sight: Facts) -> str:
    with pytest.raises(Rejected) as caught:
        choose(asked, sight)
    return caught.value.code


DEFAULTS = [
    # What the user's rules say: programming goes to Claude Code, anything else to OpenClaw, ...
    (prompt("fix the login bug"), "claude-code", "code"),
    (prompt("Refactoring the parser"), "claude-code", "code"),
    (prompt("please look at this STACK  TRACE"), "claude-code", "code"),
    (prompt("請幫我修復登入問題"), "claude-code", "code"),
    (prompt("把這段代碼重構一下"), "claude-code", "code"),
    (prompt("anything", kind="programming"), "claude-code", "programming"),
    (prompt("the gateway is down", kind="repair"), "claude-code", "programming"),
    (prompt("book a table for two"), "openclaw", "general"),
    (prompt("digit sums of legitimate numbers"), "openclaw", "general"),
    (prompt("幫我訂位"), "openclaw", "general"),
    (prompt("debugging is fun", kind="fun"), "openclaw", "general"),
    # ... a program of an agent to that agent, other commands to this machine, a tool call to its server.
    (run("claude", "-p", "x"), "claude-code", "agents"),
    (run("/opt/bin/codex", "exec", "x"), "codex", "agents"),
    (run("gemini", "-p", "x"), "gemini", "agents"),
    (run("openclaw", "agent"), "openclaw", "agents"),
    (run("claude", "-p", "x", labels=["local"]), "command", "local"),
    (run("make", "test"), "command", None),
    (run("make", kind="programming"), "command", None),
    (run("git", "commit"), "command", None),
    (Asked(Work(server="notes", tool="add")), "notes", None),
]


@pytest.mark.parametrize(("asked", "executor", "rule"), DEFAULTS)
def test_the_users_defaults(asked: Asked, executor: str, rule: str | None) -> None:
    route = choose(asked, facts())
    assert (route.executor, route.rule) == (executor, rule)
    # The slot for what is always on or heavy changes nothing for the others.
    assert choose(asked, facts(ways=WITH_MOLTWORKER)).executor == executor


HEAVY = [{"labels": ["always-on"]}, {"labels": ["heavy", "x"]}, {"labels": ["gpu"]}, {"kind": "always-on"}]


@pytest.mark.parametrize("fields", HEAVY)
def test_what_is_always_on_or_heavy_goes_to_the_moltworker_where_there_is_one(fields: dict[str, Any]) -> None:
    assert choose(prompt("watch the prices", **fields), facts(ways=WITH_MOLTWORKER)).executor == "moltworker"
    route = choose(prompt("watch the prices", **fields), facts())
    assert route.executor == "openclaw"
    assert next((one.executor, one.cause, one.why) for one in route.turned_down) == (
        "moltworker",
        "missing",
        "isn't in the config",
    )
    assert said(route) == "It went to openclaw by rule general; turned down: moltworker isn't in the config."
    assert choose(run("train", **fields), facts()).executor == "command"


def test_a_slot_that_is_for_other_work_says_so() -> None:
    ways = {**ALL, "moltworker": way_of("mcp", McpExecutor(name="moltworker", argv=("molt",)))}
    route = choose(prompt("watch the prices", labels=["always-on"]), facts(ways=ways))
    assert said(route) == "It went to openclaw by rule general; turned down: moltworker doesn't take a prompt."
    assert choose(Asked(Work(tool="watch"), labels=["always-on"]), facts(ways=ways)).executor == "moltworker"


def test_a_command_slot_of_its_own_takes_heavy_commands() -> None:
    ways = {**ALL, "moltworker": way_of("command", CommandExecutor(name="moltworker", argv=("ssh", "gpu-box")))}
    assert choose(run("train", labels=["heavy"]), facts(ways=ways)).executor == "moltworker"


def test_what_is_labelled_local_never_goes_to_the_cloud_by_itself() -> None:
    with pytest.raises(Rejected) as caught:
        choose(prompt("sum up my diary", labels=["local"]), facts())
    assert caught.value.code == "kind_missing"
    assert "openclaw works in the cloud, and the task is labelled local" in caught.value.why
    ways = {**ALL, "claude-code": ALL["claude-code"]._replace(local=True)}
    assert choose(prompt("sum up my diary", labels=["local"]), facts(ways=ways)).executor == "claude-code"
    own = Rule(name="mine", executor=("codex",), labels=("local",))
    assert choose(prompt("x", labels=["local"]), facts(own)).executor == "codex", "one's own rule is meant so"


def test_without_the_cloud_only_what_runs_here_is_used() -> None:
    gone = gate("*cloud", "cloud")
    own = Rule(name="report", executor=("claude-code", "mine"), text=("report",))
    assert choose(prompt("report"), facts(own)).executor == "claude-code"
    route = choose(prompt("report"), facts(own, closed=(gone,)))
    assert route.executor == "mine"
    assert said(route) == "It went to mine by rule report; turned down: claude-code needs the cloud, which is gone."
    assert choose(run("make"), facts(closed=(gone,))).executor == "command"
    assert choose(prompt("fix the bug"), facts(closed=(gone,))).executor == "claude-code", "it waits for the cloud"


def test_the_next_is_taken_where_the_first_is_closed_and_all_is_said() -> None:
    own = Rule(name="work", executor=("nobody", "notes", "claude-code", "codex", "gemini"))
    night = {**ALL, "claude-code": agent("claude-code", only="23:00-07:00")}
    closed = (gate("claude-code", "hours", None), gate("codex"))
    route = choose(prompt("x"), facts(own, ways=night, closed=closed))
    assert (route.executor, route.reason) == ("gemini", "rule work")
    assert [(one.executor, one.cause) for one in route.turned_down] == [
        ("nobody", "missing"),
        ("notes", "kind"),
        ("claude-code", "hours"),
        ("codex", "rate_limit"),
    ]
    assert said(route) == (
        "It went to gemini by rule work; turned down: nobody isn't in the config, notes doesn't take a prompt, "
        "claude-code works within 23:00-07:00 only, codex can't be used now (You've hit your session limit)."
    )
    route = choose(prompt("x"), facts(own, ways=night))
    assert [one.why for one in route.turned_down][2:] == ["comes after claude-code", "comes after claude-code"]


def test_where_all_are_closed_the_first_gets_it_and_it_waits() -> None:
    route = choose(prompt("x"), facts(closed=(gate("openclaw"), gate("claude-code", "login"))))
    assert route.executor == "openclaw"
    assert route.reason == "rule general, though it can't be used now (You've hit your session limit)"
    assert said(route).startswith("It went to openclaw by rule general; turned down: claude-code can't")


def test_a_pause_holds_tasks_back_and_sends_none_elsewhere() -> None:
    assert choose(prompt("x"), facts(closed=(gate("openclaw", "paused", None),))).executor == "openclaw"


def test_a_rule_that_leads_to_nobody_is_no_reason_to_go_elsewhere() -> None:
    own = Rule(name="secret", executor=("lokal",), labels=("secret",))
    with pytest.raises(Rejected) as caught:
        choose(prompt("x", labels=["secret"]), facts(own))
    assert caught.value.code == "rule_unusable"
    assert "secret" in caught.value.what
    assert "lokal isn't in the config" in caught.value.what
    assert choose(prompt("x"), facts(own)).executor == "openclaw"


def test_a_rule_for_other_work_is_passed_over() -> None:
    own = Rule(name="all", executor=("claude-code",))
    assert choose(run("make"), facts(own)).executor == "command"
    assert choose(run("claude", "-p"), facts(own)).rule == "all"
    assert choose(prompt("book a table"), facts(own)).rule == "all"


def test_a_rule_of_the_same_name_replaces_the_built_in_one() -> None:
    own = Rule(name="code", executor=("codex",), text=("kernel",))
    assert choose(prompt("fix the login bug"), facts(own)).executor == "openclaw"
    assert choose(prompt("a kernel"), facts(own)).executor == "codex"


def test_without_an_agent_a_prompt_is_refused_and_what_is_missing_is_named() -> None:
    with pytest.raises(Rejected) as caught:
        choose(prompt("fix the bug"), facts(ways={"command": COMMAND, "notes": NOTES}))
    assert caught.value.code == "kind_missing"
    assert "claude-code isn't in the config" in caught.value.why
    assert "docs/routing.md" in caught.value.do
    assert choose(run("claude", "-p"), facts(ways={"command": COMMAND})).executor == "command"


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (Work(argv=("ls",), executor="mine"), "mine"),
        (Work(prompt="x", executor="mine"), "mine"),
        (Work(prompt="x", executor="codex"), "codex"),
        (Work(argv=("x",), executor="codex"), "codex"),
        (Work(tool="add", executor="notes"), "notes"),
        (Work(executor="command"), "command"),
        (Work(executor="notes"), "notes"),
        (Work(), "nothing_to_do"),
        (Work(argv=("ls",), prompt="x"), "nothing_to_do"),
        (Work(argv=("ls",), executor="notes"), "wrong_executor"),
        (Work(prompt="x", executor="command"), "wrong_executor"),
        (Work(argv=("ls",), executor="comand"), "unknown_executor"),
        (Work(server="nots", tool="add"), "unknown_executor"),
        (Work(tool="add"), "kind_missing"),
        (Work(server="command", tool="add"), "wrong_executor"),
    ],
)
def test_what_is_asked_for_by_name_is_taken_or_refused(work: Work, expected: str) -> None:
    if expected in ALL:
        route = choose(Asked(work), facts(Rule(name="all", executor=("gemini",))))
        assert route == Route(expected, "asked for by name")
        assert said(route) == ""
        return
    assert code(Asked(work), facts()) == expected


MATCHES: list[tuple[dict[str, Any], Asked, bool]] = [
    ({"text": ("fix",)}, prompt("Fix it"), True),
    ({"text": ("fix",)}, prompt("prefix, fixed, fix_it"), False),
    ({"text": ("fix",)}, prompt("fixé"), False),
    ({"text": ("fix",)}, prompt("請fix登入"), True),
    ({"text": ("fix*",)}, prompt("it was fixed"), True),
    ({"text": ("fix*",)}, prompt("prefixed"), False),
    ({"text": ("größe",)}, prompt("die GRÖSSE"), True),
    ({"text": ("größe",)}, prompt("die GRÖßE."), True),
    ({"text": ("登入",)}, prompt("修復登入錯誤"), True),
    ({"text": ("pull request",)}, prompt("a pull\n request"), True),
    ({"text": ("c++", ".net")}, prompt("in C++?"), True),
    ({"text": ("a.c",)}, prompt("abc"), False),
    ({"text": ("end",)}, prompt("x" * TEXT_CHARS_MAX + " end"), False),
    ({"text": ("deploy",)}, run("make", "deploy"), True),
    ({"text": ("blue",)}, Asked(Work(server="s", tool="t", arguments={"colour": "blue"})), True),
    ({"text": ("colour",)}, Asked(Work(server="s", tool="t", arguments={"colour": "blue"})), False),
    ({"kind": ("a", "b")}, prompt("x", kind="b"), True),
    ({"kind": ("a", "b")}, prompt("x"), False),
    ({"labels": ("a", "b")}, prompt("x", labels=["b", "c", "a"]), True),
    ({"labels": ("a", "b")}, prompt("x", labels=["a"]), False),
    ({"lane": ("l",)}, prompt("x", lane="l"), True),
    ({"lane": ("l",)}, prompt("x"), False),
    ({"bytes_min": 6}, prompt("äää"), True),
    ({"bytes_min": 7}, prompt("äää"), False),
    ({"bytes_max": 5}, prompt("äää"), False),
    ({"bytes_max": 6}, prompt("äää"), True),
    ({"bytes_min": 8}, Asked(Work(argv=("cat",), stdin="12345")), True),
    ({"bytes_max": 0}, prompt("x"), False),
    ({"hours": "11:00-13:00"}, prompt("x"), True),
    ({"hours": "13:00-11:00"}, prompt("x"), False),
    ({"kind": ("a",), "labels": ("l",)}, prompt("x", kind="a"), False),
]


@pytest.mark.parametrize(("fields", "asked", "expected"), MATCHES)
def test_all_that_a_rule_names_must_fit(fields: dict[str, Any], asked: Asked, expected: bool) -> None:
    rule = Rule(name="r", executor=("x",), **fields)
    assert (
        Matcher(rule).fits(asked, 1_795_003_200_000 - 1_795_003_200_000 % 86_400_000 + 12 * 3_600_000, UTC) == expected
    )


names = st.sampled_from([*ALL, "nobody"])
rules = st.lists(
    st.builds(
        Rule,
        name=st.sampled_from("abcdefgh"),
        executor=st.lists(names, min_size=1, max_size=4, unique=True).map(tuple),
        kind=st.lists(st.sampled_from(["general", "programming"]), max_size=1).map(tuple),
        labels=st.lists(st.sampled_from("xy"), max_size=1).map(tuple),
        text=st.lists(st.sampled_from(["bug", "table"]), max_size=1).map(tuple),
    ),
    max_size=6,
    unique_by=lambda rule: rule.name,
)
tasks = st.builds(
    Asked,
    st.sampled_from([Work(prompt="fix the bug"), Work(prompt="a table"), Work(argv=("ls",)), Work(argv=("claude",))]),
    kind=st.sampled_from(["general", "programming"]),
    labels=st.lists(st.sampled_from("xy"), unique=True),
)
gates = st.lists(
    st.builds(gate, st.sampled_from([*AGENTS, "command", "mine"]), st.sampled_from(["rate_limit", "login", "hours"])),
    max_size=4,
)


@given(rules, tasks, gates)
def test_the_first_rule_that_fits_decides_by_its_order(own: list[Rule], asked: Asked, closed: list[Gate]) -> None:
    sight = facts(*own, closed=tuple(closed))
    sort = "command" if asked.work.argv else "model"

    def takes(name: str) -> bool:
        way = ALL.get(name)
        runs_it = way is not None and (
            sort == "model" or way.profile is None or (way.profile == "claude-code" and asked.work.argv == ("claude",))
        )
        return way is not None and sort in way.takes and runs_it

    fitting = [one for one in sight.rules.of[sort] if one.fits(asked, NOON_MS, UTC)]
    deciding = next(
        one
        for one in fitting
        if any(map(takes, one.rule.executor)) or (not one.built_in and "nobody" in one.rule.executor)
    )
    if not any(map(takes, deciding.rule.executor)):
        assert code(asked, sight) == "rule_unusable"
        return
    route = choose(asked, sight)
    assert choose(asked, sight) == route, "the same facts, the same decision"
    assert route.rule in (deciding.rule.name, None)
    able = [name for name in deciding.rule.executor if takes(name)]
    assert route.executor == next((name for name in able if name not in sight.closed), able[0])
    of_rule = [one.executor for one in route.turned_down if one.rule == deciding.rule.name]
    assert sorted([*of_rule, route.executor]) == sorted(deciding.candidates(asked)), "each candidate is accounted for"
    assert all(one.why for one in route.turned_down)


def test_strange_rules_are_told() -> None:
    def told(*own: Rule) -> list[str]:
        return [one.what for one in remarks(own, ALL)]

    all_prompts = Rule(name="all", executor=("claude-code",))
    assert told(all_prompts, Rule(name="b", executor=("openclaw",), kind=("x",))) == [
        "Rule b never decides: rule all, which stands before it, takes all that it fits."
    ]
    assert told(Rule(name="a", executor=("command",)), Rule(name="b", executor=("openclaw",))) == []
    assert told(Rule(name="a", executor=("claud-code", "codex"))) == [
        "Rule a names an executor that isn't in the config: claud-code (did you mean claude-code?)."
    ]
    narrow: list[tuple[dict[str, Any], dict[str, Any], bool]] = [
        ({"kind": ("a", "b")}, {"kind": ("a",)}, True),
        ({"kind": ("a",)}, {"kind": ("a", "b")}, False),
        ({"kind": ("a",)}, {}, False),
        ({"labels": ("a",)}, {"labels": ("a", "b")}, True),
        ({"labels": ("a", "b")}, {"labels": ("a",)}, False),
        ({"text": ("a", "b")}, {"text": ("b",), "lane": ("l",)}, True),
        ({"bytes_min": 5}, {"bytes_min": 9}, True),
        ({"bytes_max": 5}, {"bytes_min": 9}, False),
        ({"bytes_max": 9}, {"bytes_max": 5}, True),
        ({"hours": "08:00-09:00"}, {}, False),
        ({}, {"hours": "08:00-09:00"}, True),
        ({"hours": "08:00-09:00"}, {"hours": "08:00-09:00"}, True),
    ]
    for earlier, later, shadowed in narrow:
        own = [Rule(name="a", executor=("codex",), **earlier), Rule(name="b", executor=("gemini",), **later)]
        assert len(told(*own)) == shadowed, (earlier, later)


def test_the_built_in_rules_are_not_strange() -> None:
    by_sort = {sort: [rule for rule, sorts in BUILT_IN if sort in sorts] for sort in ("command", "mcp", "model")}
    assert [remarks(rules, WITH_MOLTWORKER) for rules in by_sort.values()] == [[], [], []]
