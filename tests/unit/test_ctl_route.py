"""``omnictl route``, sentences as prompts, and hours on the screen."""

import pytest

from omnid.api import shapes
from tests.fakes.ctl_world import DECIDED, NOW_MS, RULES, SUBMITTED, WHY, Daemon, Ran, status


@pytest.mark.parametrize(
    "text", ["fix the login bug", "make the tests of the parser pass", "修復登入錯誤", "Why does `ls` print nothing?"]
)
def test_add_takes_a_sentence_as_a_prompt(text):
    ran = Ran("add", text, "--kind", "programming", daemon=Daemon(task__submit=SUBMITTED, task__why=WHY))
    assert (ran.code, ran.out) == (0, "t7\n")
    fields = ran.calls[0][1]
    assert (fields["prompt"], fields["kind"], "argv" in fields) == (text, "programming", False)


def test_route_shows_the_rules_and_what_it_would_decide():
    ran = Ran("route", daemon=Daemon(route__explain=RULES))
    assert ran.calls == [("route.explain", {})]
    assert "kind a or b; label x and y" in " ".join(ran.out.split())
    assert "prompts" in ran.out
    assert "(moltworker), codex" in ran.out
    words = ["--dry-run", "fix it", "--kind", "k", "--label", "a", "--label", "b", "--lane", "l"]
    ran = Ran("route", *words, daemon=Daemon(route__explain=DECIDED))
    assert ran.calls == [("route.explain", {"prompt": "fix it", "kind": "k", "lane": "l", "labels": ["a", "b"]})]
    assert ran.out.splitlines() == [
        "codex  rule night",
        "  not  moltworker isn't in the config (rule heavy)",
        "  not  gemini comes after codex",
        "  A person would have to approve it.",
    ]
    ran = Ran("route", "--dry-run", "--", "make", "x", daemon=Daemon(route__explain=DECIDED))
    assert ran.calls == [("route.explain", {"argv": ["make", "x"]})]


def test_status_says_when_hours_begin():
    gate = shapes.GateView("hours:night", "hours", "night", NOW_MS - 7_200_000, NOW_MS + 3_600_000, None)
    ran = Ran("status", daemon=Daemon(status=status(gates=[gate]), task__list=shapes.Page([], None)))
    assert "hours: night, closed 2 h ago, opens in 1 h" in ran.out, ran.out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["add", "make"], "to run it: omnictl add -- make"),
        (["add", "make test"], "for an agent: omnictl add --prompt 'make test'"),
        (["add", "grep -r bug src and tell me"], "could be a command or a prompt"),
        (["add", "ls | head"], "could be a command or a prompt"),
        (["add", "./deploy the site to production"], "could be a command or a prompt"),
        (["add", "fix the login bug", "--prompt", "x"], "what is to be done is said already"),
        (["add", "fix the login bug", "--", "make"], "what is to be done is said already"),
        (["route", "--dry-run"], "--dry-run needs a task"),
        (["route", "fix the login bug"], "It submits nothing"),
    ],
)
def test_what_could_be_meant_otherwise_is_refused_with_both_ways_to_say_it(argv, says):
    ran = Ran(*argv)
    assert (ran.code, ran.calls) == (2, [])
    assert says in ran.err


def test_strange_rules_are_told_and_the_config_is_fine_all_the_same():
    remark = shapes.Problem("rule_unreachable", "Rule b never decides.", "w", "d")
    ran = Ran("config", "check", daemon=Daemon(config__check=shapes.ConfigChecked("/c", [], remarks=[remark])))
    assert ran.code == 0
    assert "Rule b never decides." in ran.out
    assert "/c: it can be used all the same." in ran.out
