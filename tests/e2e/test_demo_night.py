"""The demo of the night as people run it, and the scripted agent that it needs."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from omnid.ctl import demo_agent
from omnid.ctl.demo import night_zone
from omnid.ctl.demo_night import Count
from tests.e2e.ground import DEMO
from tests.e2e.harness import WAIT_S

NIGHT = (*DEMO, "--scenario", "night")
GOOD = "9 done, 0 lost, 0 repeated, spent $1.80 of $2.50"
CHANGED = """
import sys
from omnid.ctl import demo_agent, demo_night, demo_night_tasks
from omnid.ctl.main import main
%s
sys.exit(main(["demo", "--scenario", "night"]))
"""
TODAY = {"amounts": {"spent_usd": 0.4, "reserved_usd": 0.0, "unknown_usd": 0.2, "calls": 3}, "limit_usd": 1.0}


def flat(text: str) -> str:
    return " ".join(text.split())


def test_it_tells_the_night_without_a_terminal_and_without_a_network(ground):
    ground.cut_network()
    code, out = ground.run(NIGHT)
    assert (code, out.splitlines()[-1]) == (0, GOOD), out
    story = flat(out)
    for part in (
        "The agent is a script that stands in for Claude Code",
        "t4 waits because claude-code can take no work for now: Claude AI usage limit reached|",
        "t4 was completed 0 s ago by claude-code at attempt 2",
        "t7 waits for money: budget.day_usd of $1.40 leaves too little today: $1.20 spent, $0.20 unknown",
        "6 done, 2 parked until 00:00, 1 needs you; $1.20 of $1.40 and up to $0.20 unknown; 1 limit waited out",
        "claude-code/t1 wants to run on claude-code",
        "attempt 1 lost on claude-code",
        "settings.toml | 2 ++",
        "t1 is merged into main of",
        "9 done; $1.80 of $2.50",
    ):
        assert part in story, out
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out
    ground.assert_untouched()


def test_without_git_it_says_so_and_goes_on(ground):
    ground.environ["PATH"] = str(ground.home / "nowhere")
    code, out = ground.run(NIGHT)
    assert (code, out.splitlines()[-1]) == (0, GOOD), out
    assert "There is no git (2.38 or newer) here" in flat(out)
    assert "omnictl merge" not in out
    ground.assert_untouched()


def test_two_at_once_keep_out_of_each_other_s_way(ground):
    ground.assert_two_at_once(NIGHT, NIGHT, GOOD)


def test_as_json_it_is_one_line(ground):
    code, out = ground.run([*NIGHT, "--json"])
    (line,) = out.splitlines()
    assert code == 0
    assert json.loads(line)["result"] == {
        "done": 9,
        "lost": 0,
        "repeated": 0,
        "spent_usd": 1.8,
        "cap_usd": 2.5,
        "agrees": True,
    }
    ground.assert_untouched()


@pytest.mark.parametrize(
    ("number", "mark"),
    [
        (signal.SIGINT, b"your own"),
        (signal.SIGINT, b"2. A usage limit"),
        (signal.SIGTERM, b"3. The power goes"),
        (signal.SIGINT, b"kill -9"),
        (signal.SIGHUP, b"5. The morning"),
    ],
)
def test_a_signal_ends_it_and_nothing_is_left(ground, number, mark):
    ground.assert_ended_by(number, NIGHT, mark, " repeated, spent")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            "of = demo_night.NightPlace.effects\ndemo_night.NightPlace.effects = lambda place: of(place)[1:]",
            "8 done, 1 lost, 0 repeated, spent $1.80 of $2.50",
        ),
        (
            "of = demo_night.NightPlace.prompts\ndemo_night.NightPlace.prompts = lambda place: [*of(place), 'login']",
            "9 done, 0 lost, 1 repeated, spent $1.80 of $2.50",
        ),
        (
            "of = demo_night.NightPlace.spent_usd\ndemo_night.NightPlace.spent_usd = lambda place: of(place) + 0.2",
            GOOD,
        ),
    ],
)
def test_what_the_ledgers_lack_or_have_twice_is_no_good_end(ground, change, said):
    code, out = ground.run([sys.executable, "-c", CHANGED % change])
    assert (code, out.splitlines()[-1]) == (1, said), out
    ground.assert_untouched()


def test_an_unknown_scenario_is_named_with_those_that_there_are(ground):
    code, out = ground.run([*DEMO, "--scenario", "dusk"])
    assert code == 2
    assert "--scenario is one of day, night, outage, online, client-away, broker-away, offline, not 'dusk'" in flat(out)


@pytest.mark.parametrize(
    ("effects", "prompts", "told_usd", "count", "good"),
    [
        (["a", "b"], ["a", "b"], 0.4, (2, 0, 0), True),
        (["a"], ["a", "b"], 0.4, (1, 1, 0), False),
        (["a", "b", "b"], ["a", "b"], 0.4, (2, 0, 1), False),
        (["a", "b"], ["a", "b", "b again"], 0.4, (2, 0, 1), False),
        (["a", "b"], ["a", "b"], 0.6, (2, 0, 0), False),
    ],
)
def test_the_count(effects, prompts, told_usd, count, good):
    found = Count.of(effects, prompts, ["a", "b"], told_usd, TODAY)
    assert (found[:3], found.good) == (count, good)
    assert not Count.of(["a"], ["a"], ["a"], 0.4, {**TODAY, "limit_usd": 0.5}).good, "more than the lid"


@pytest.mark.parametrize("hour", range(24))
def test_it_is_night_where_the_demo_is(hour):
    at = datetime(2026, 11, 26, hour, 30, tzinfo=UTC).astimezone(ZoneInfo(night_zone(hour)))
    assert (at.hour, at.minute) == (1, 30)


def agent(place: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, demo_agent.__file__, str(place), *words]
    return subprocess.run(argv, cwd=place, capture_output=True, text=True, timeout=WAIT_S, check=False)


def test_the_agent_keeps_its_sessions_as_the_real_one_does(tmp_path):
    first = agent(tmp_path, "-p", "--output-format", "json", "--session-id", "s1", "--", "mend it")
    assert (first.returncode, json.loads(first.stdout)["session_id"]) == (0, "s1")
    again = agent(tmp_path, "-p", "--session-id", "s1", "--", "mend it")
    assert (again.returncode, "already in use" in again.stderr) == (1, True)
    unknown = agent(tmp_path, "-p", "--resume", "s2", "--", "continue")
    assert (unknown.returncode, "No conversation found" in unknown.stderr) == (1, True)
    assert agent(tmp_path, "-p", "--resume", "s1", "--", "continue").returncode == 0
    assert (tmp_path / "prompts").read_text().splitlines() == ["mend it", "mend it again"]
    assert (tmp_path / "effects").read_text().splitlines() == ["mend it"]
    assert (tmp_path / "notes.txt").read_text() == "mend it: done by a scripted agent\n"


def test_the_agent_says_its_limit_in_the_real_one_s_words(tmp_path):
    (tmp_path / "script.json").write_text(json.dumps({"x": {"name": "x", "limit_s": 60}}))
    for words in (["--session-id", "s", "--", "x"], ["--resume", "s", "--", "continue"]):
        said = agent(tmp_path, "-p", *words)
        answer = json.loads(said.stdout)
        assert (said.returncode, answer["is_error"]) == (1, True)
        assert re.fullmatch(r"Claude AI usage limit reached\|\d{10}", answer["result"])
    os.remove(tmp_path / "limit")
    assert agent(tmp_path, "-p", "--resume", "s", "--", "continue").returncode == 0
    assert (tmp_path / "effects").read_text() == "x\n"


def test_git_that_can_do_nothing_counts_as_none(ground, tmp_path):
    broken = tmp_path / "bin"
    broken.mkdir()
    (broken / "git").write_text("#!/bin/sh\nexit 1\n")
    (broken / "git").chmod(0o700)
    ground.environ["PATH"] = str(broken)
    assert shutil.which("git", path=str(broken))
    code, out = ground.run(NIGHT)
    assert "There is no git" in flat(out), (code, out)
    ground.assert_untouched()
