"""Where tasks go, seen from the terminal: the rules, what they would decide, what they decided, and hours."""

import json
from datetime import UTC, datetime, timedelta

from tests.e2e.harness import Home, assert_says, until

WIDE = {"COLUMNS": "1000"}


def hours(begin_h: int, end_h: int) -> str:
    """A window that begins and ends so many hours from now."""
    now = datetime.now(UTC)
    return "-".join(f"{now + timedelta(hours=hours):%H:%M}" for hours in (begin_h, end_h))


CONFIG = """
[daemon]
zone = "UTC"
[[executor]]
name = "night"
kind = "command"
only = "{closed}"
[[executor]]
name = "day"
kind = "command"
[[executor]]
name = "claude-code"
kind = "command"
profile = "claude-code"
[[rule]]
name = "builds"
executor = ["nihgt", "night", "day"]
text = ["build*"]
[[rule]]
name = "secrets"
executor = ["vault"]
labels = ["secret"]
[[rule]]
name = "big-builds"
executor = ["day"]
text = ["build*"]
bytes_min = 10
"""


def test_rules_are_shown_decide_and_say_why(home: Home) -> None:
    home.configure(CONFIG.format(closed=hours(3, 5)))
    home.start()
    said = home.ctl("route", environ=WIDE)
    assert said.code == 0, said
    first, second, *_, last = (line.split() for line in said.out.splitlines()[1:])
    assert (first[0], first[1], first[-3:]) == ("builds", "config", ["(nihgt),", "night,", "day"])
    assert second[:2] == ["secrets", "config"]
    assert last[:2] == ["commands", "built-in"]

    said = home.ctl("route", "--dry-run", "--", "sh", "-c", ": build")
    assert said.out.splitlines()[0] == "day  rule builds"
    assert "not  nihgt isn't in the config" in said.out
    assert "not  night works within" in said.out
    said = home.ctl("route", "--dry-run", "--json", "--", "true")
    assert json.loads(said.out)["result"]["route"] == {
        "executor": "command",
        "reason": "the default for a command (argv)",
    }
    assert home.client.status()["tasks"] == {}, "nothing was submitted"

    task = home.submit(["sh", "-c", ": build"])
    assert home.wait(task)["task"]["executor"] == "day"
    why = home.ctl("why", task, environ=WIDE).out
    assert f"{task} was completed" in why
    assert "It went to day by rule builds; turned down: nihgt isn't in the config, night works within" in why
    route = json.loads(home.ctl("why", task, "--json").out)["result"]["route"]
    assert (route["executor"], route["rule"], [one["cause"] for one in route["turned_down"]]) == (
        "day",
        "builds",
        ["missing", "hours"],
    )
    assert "It went to day by rule builds" in home.ctl("show", task, environ=WIDE).out
    home.stop()
    home.start()
    assert "It went to day by rule builds" in home.ctl("why", task, environ=WIDE).out


def test_a_sentence_is_a_prompt_and_goes_to_the_agent(home: Home) -> None:
    home.configure(CONFIG.format(closed=hours(3, 5)))
    home.start()
    said = home.ctl("route", "--dry-run", "--executor", "night", "fix the login bug")
    assert_says("wrong_executor", said.err)
    said = home.ctl("add", "fix the login bug", "--label", "local", environ=WIDE)
    assert_says("kind_missing", said.err)
    assert "claude-code works in the cloud, and the task is labelled local" in said.err
    said = home.ctl("add", "--label", "secret", "fix the login bug", environ=WIDE)
    assert_says("rule_unusable", said.err)


def test_an_executor_outside_its_hours_is_shown_and_waits(home: Home) -> None:
    home.configure(CONFIG.format(closed=hours(3, 5)))
    home.start()
    task = home.submit(["true"], executor="night")
    said = home.ctl("why", task, environ=WIDE).out
    assert "outside its hours" in said
    assert "it goes on in" in said
    status = home.ctl("status", environ=WIDE).out
    assert "hours: night, closed" in status
    assert "opens in" in status
    (gate,) = home.client.status()["gates"]
    assert_says("outside_hours", " ".join(gate["problem"][part] for part in ("what", "why", "do")))
    home.configure(CONFIG.format(closed=hours(-1, 5)))
    assert home.ctl("config", "reload").code == 0
    assert home.wait(task)["task"]["state"] == "completed"


def test_what_waits_goes_to_the_next_of_its_rule_when_the_hours_end(home: Home) -> None:
    config = CONFIG.replace('only = "{closed}"', 'only = "{closed}"\nconcurrency = 1')
    home.configure(config.format(closed=hours(-1, 5)))
    home.start()
    first = home.sh("echo build > began; until [ -e go ]; do sleep 0.05; done")
    home.file("began")
    second = home.sh(": build; echo done > second")
    assert home.client.get(second)["task"]["executor"] == "night"
    home.configure(config.format(closed=hours(3, 5)))
    assert home.ctl("config", "reload").code == 0
    assert home.wait(second)["task"]["executor"] == "day"
    assert "night works within" in home.client.why(second)["text"]
    (home.work / "go").touch()
    assert home.wait(first)["task"]["executor"] == "night", "what runs is left alone"


def test_a_task_with_hours_waits_for_them(omnid: Home) -> None:
    omnid.configure('[daemon]\nzone = "UTC"')
    assert omnid.ctl("config", "reload").code == 0
    said = omnid.ctl("add", "--only", hours(3, 5), "--", "true", environ=WIDE)
    assert (said.code, said.out) == (0, "t1\n")
    assert "for its hours" in said.err
    brief = omnid.client.get("t1")["task"]
    assert (brief["state"], brief["reason"]) == ("waiting", "hours")
    omnid.configure(f'[daemon]\nzone = "Etc/GMT-{4}"')  # There it is four hours later.
    assert omnid.ctl("config", "reload").code == 0
    until(lambda: omnid.client.get("t1")["task"]["state"] == "completed", "its hours in another zone")


def test_what_is_strange_about_rules_is_told_and_keeps_nothing(home: Home) -> None:
    home.configure(CONFIG.format(closed=hours(3, 5)))
    said = home.ctl("config", "check", environ=WIDE)
    assert said.code == 0, said
    assert "it can be used all the same" in said.out
    assert_says("rule_unknown_executor", said.out)
    assert_says("rule_unreachable", said.out)
    assert "nihgt (did you mean night?)" in said.out
    assert "Rule big-builds never decides: rule builds" in said.out
    home.start()
    assert len(json.loads(home.ctl("config", "check", "--json").out)["result"]["remarks"]) == 3
