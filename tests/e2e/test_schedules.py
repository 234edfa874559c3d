"""Schedules of a real daemon: at times, at its start, over a kill, and by hand."""

from contextlib import closing

import pytest

from omnid.ctl.demo_ways import SocketWay
from omnid.errors import Rejected
from tests.e2e.harness import Home, assert_says, until

PRESET = """
[[preset]]
name = "backup"
task = { argv = ["sh", "-c", "echo {params.path} >> saved"], cwd = "%s" }
params = { path = "home" }
on = ["start"]
"""


def runs(home: Home, name: str) -> int:
    """Gives how often it has run; 0 where there is none of that name yet."""
    listed = home.client.call("omnid/schedule.list", {})["schedules"]
    return next((one["runs"] for one in listed if one["name"] == name), 0)


def test_a_schedule_runs_at_its_times_and_over_a_kill(omnid: Home) -> None:
    said = omnid.ctl(
        "schedule", "add", "tick", "--every", "1s", "--cwd", str(omnid.work), "--", "sh", "-c", "echo x >> ticks"
    )
    assert said.code == 0, said
    until(lambda: runs(omnid, "tick") >= 2, "it didn't run")
    omnid.kill()
    omnid.start()
    before = runs(omnid, "tick")
    until(lambda: runs(omnid, "tick") >= before + 2, "it didn't go on")
    assert omnid.ctl("schedule", "disable", "tick").code == 0
    for task in omnid.client.call("omnid/task.list", {"labels": ["schedule:tick"]})["tasks"]:
        assert omnid.wait(task["id"])["task"]["state"] == "completed"
    shown = omnid.ctl("schedule", "list")
    assert "disabled" in shown.out
    assert len(omnid.lines("ticks")) == runs(omnid, "tick")
    assert omnid.ctl("doctor").code == 0


def test_one_that_runs_once_does_so_over_a_kill(omnid: Home) -> None:
    for at, name in (("+1s", "soon"), ("2026-01-01T00:00", "past"), ("+1d", "later")):
        command = ("--cwd", str(omnid.work), "--", "sh", "-c", f"echo {name} >> {name}")
        assert omnid.ctl("schedule", "add", name, "--at", at, *command).code == 0
    omnid.kill()
    omnid.start()
    for name in ("soon", "past"):
        until(lambda name=name: runs(omnid, name) == 1, f"{name} didn't run")
        assert omnid.ctl("schedule", "disable", name).code == 0
        assert omnid.ctl("schedule", "enable", name).code == 0
    omnid.kill()
    omnid.start()
    assert omnid.ctl("run", "soon").code == 0
    until(lambda: omnid.lines("soon") == ["soon", "soon"], "it didn't run by hand")
    until(lambda: omnid.lines("past") == ["past"], "what had passed didn't run")
    assert [runs(omnid, name) for name in ("soon", "past", "later")] == [1, 1, 0]
    shown = omnid.client.call("omnid/schedule.list", {})["schedules"]
    assert [one["name"] for one in shown if one["next_at_ms"] is not None] == ["later"]


def test_a_preset_runs_at_the_start_and_by_hand(home: Home) -> None:
    home.configure(PRESET % home.work)
    home.start()
    until(lambda: runs(home, "backup") == 1, "it didn't run at the start")
    assert home.wait("config/t1")["task"]["state"] == "completed"
    said = home.ctl("run", "backup", "--param", "path=srv")
    assert said.out == "t1\n"
    assert home.wait("t1")["task"]["state"] == "completed"
    assert home.lines("saved") == ["home", "srv"]
    home.kill()
    home.start()
    until(lambda: runs(home, "backup") == 2, "it didn't run at the second start")
    assert home.wait("config/t2")["task"]["state"] == "completed"
    home.configure("")
    assert home.ctl("config", "reload").code == 0
    until(lambda: "backup" not in home.ctl("schedule").out, "the preset stayed")


def test_a_run_by_hand_beside_one_that_goes_on_is_refused(home: Home) -> None:
    home.configure(
        PRESET.replace("echo {params.path} >> saved", "read x < go").replace('on = ["start"]', "") % home.work
    )
    home.start()
    with home.gate() as gate:
        task = home.ctl("run", "backup").out.strip()
        said = home.ctl("run", "backup")
        assert said.code == 1
        assert_says("schedule_busy", said.err)
        assert f"{task}, its last run" in said.err
        gate.let()
        assert home.wait(task)["task"]["state"] == "completed"
    assert runs(home, "backup") == 0


def test_whose_a_schedule_is(home: Home) -> None:
    home.configure(PRESET % home.work)
    home.start()
    until(lambda: runs(home, "backup") == 1, "the preset isn't there")
    said = home.ctl("schedule", "rm", "backup")
    assert said.code == 1
    assert_says("schedule_of_config", said.err)
    assert home.ctl("schedule", "add", "mine", "--", "true").code == 0
    said = home.ctl("schedule", "add", "mine", "--", "false")
    assert said.code == 1
    assert_says("schedule_taken", said.err)
    with closing(home.agent("helper")) as agent, pytest.raises(Rejected) as caught:
        agent.call("omnid/schedule.switch", {"name": "mine", "enabled": False})
    assert_says("other_schedule", str(caught.value))


def test_a_preset_runs_when_a_client_goes_whose_work_goes_on_and_when_it_returns(home: Home) -> None:
    presets = "".join(
        f'[[preset]]\nname = "{name}"\non = ["client.{name}:claude"]\n'
        f'task = {{ argv = ["sh", "-c", "echo {name} >> heard"], cwd = "{home.work}" }}\n'
        for name in ("away", "back")
    )
    home.configure(f'{presets}[agents]\nallow = ["command"]\n')
    home.start()
    client = SocketWay(str(home.socket), "claude")
    with home.gate() as gate:
        task = client.submit({"argv": ["sh", "-c", "read x < go"], "cwd": str(home.work)})
        client.close()
        until(lambda: home.lines("heard") == ["away"], "the absence to be noticed")
        (outage,) = home.client.call("omnid/outage.list", {})["outages"]
        assert (outage["cause"], outage["subject"], outage["parked"]) == ("client", "claude", 1)
        client.results(None, 10)
        until(lambda: home.lines("heard") == ["away", "back"], "the return to be noticed")
        gate.let()
        assert home.wait(task["id"])["task"]["state"] == "completed"
    client.close()
