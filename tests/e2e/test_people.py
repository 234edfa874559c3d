"""What people decide about tasks, and what agents may not: approval, uncertain ends, pauses, and the work of hands."""

import os
import shlex
import signal
from contextlib import closing

import pytest

from omnid.errors import Rejected
from tests.e2e.harness import OMNICTL, Home, now_ms


@pytest.mark.parametrize(
    ("how", "state", "effects"), [("done", "completed", 1), ("again", "completed", 2), ("fail", "failed", 1)]
)
def test_an_uncertain_task_asks_a_person(omnid: Home, how: str, state: str, effects: int) -> None:
    task = omnid.sh("echo >> effect; [ -e second ] || { : > second; sleep 60; }")
    omnid.file("second")
    (supervisor,) = omnid.supervisors()
    os.kill(supervisor, signal.SIGKILL)
    view = omnid.wait(task, "uncertain")
    assert f"omnictl resolve {task} --done" in view["why"]
    assert [needs["task"] for needs in omnid.client.status()["needs_you"]] == [task]
    assert not omnid.supervisors()
    said = omnid.ctl("resolve", task, f"--{how}")
    assert said.code == 0, said
    assert omnid.wait(task)["task"]["state"] == state
    assert len(omnid.lines("effect")) == effects
    assert not omnid.client.status()["needs_you"]


def test_what_a_command_submits_is_a_child_of_its_task(omnid: Home) -> None:
    omnictl = shlex.join(OMNICTL)
    outer = omnid.sh(f"{omnictl} add --origin nightly -- true > child", env=["OMNID_STATE", "PYTHONPATH"])
    assert omnid.wait(outer)["task"]["state"] == "completed"
    (child,) = omnid.lines("child")
    assert child == "nightly/t1"
    assert omnid.wait(child)["parent"] == outer
    assert f"(submitted by {outer})" in omnid.ctl("why", child).out
    assert "parent" in omnid.ctl("show", child).out
    assert omnid.client.get(outer)["parent"] is None


def test_a_missing_key_ends_the_wait_with_4_until_it_is_there(home: Home) -> None:
    key = home.root / "key"
    home.configure(f'[[executor]]\nname = "keyed"\nkind = "command"\nenv_set = {{ KEY = "file:{key}" }}')
    home.start()
    said = home.ctl("add", "--wait", "--executor", "keyed", "--", "sh", "-c", "test $KEY = opensesame")
    assert said.code == 4
    assert "needs a key or a login" in said.out
    assert home.ctl("wait", "t1").code == 4
    assert "waiting: login" in home.ctl("list").out
    assert home.ctl("doctor").code == 1
    key.write_text("opensesame")
    assert home.ctl("doctor").code == 0
    assert home.ctl("wait", "t1").code == 0


def test_an_idempotent_executor_runs_again_without_asking(home: Home) -> None:
    home.configure('[[executor]]\nname = "safe"\nkind = "command"\nidempotent = true')
    home.start()
    task = home.sh("echo >> effect; [ -e second ] || { : > second; sleep 60; }", executor="safe")
    home.file("second")
    (supervisor,) = home.supervisors()
    home.kill()
    os.kill(supervisor, signal.SIGKILL)
    home.start()
    view = home.wait(task)
    assert [attempt["outcome"] for attempt in view["attempts"]] == ["lost", "success"]
    assert len(home.lines("effect")) == 2


def test_a_person_finishes_assigns_and_deletes(home: Home) -> None:
    home.configure('[[executor]]\nname = "other"\nkind = "command"\nargv = ["/bin/echo"]')
    home.start()
    soon_ms = now_ms() + 60_000
    task = home.submit(["ignored"], not_before_ms=soon_ms)
    home.client.control(task, "assign", executor="other", assignee="ada")
    view = home.client.get(task)
    assert (view["task"]["executor"], view["assignee"]) == ("other", "ada")
    after = home.sh("true", after=[task])
    home.client.control(task, "complete", output="by hand")
    assert home.wait(after)["task"]["state"] == "completed"
    assert "completed by hand" in home.client.why(task)["text"]
    home.client.control(task, "delete")
    with pytest.raises(Rejected, match=f"no task {task}"):
        home.client.get(task)
    deleted = [entry for entry in home.client.call("omnid/operations", {})["operations"] if entry["kind"] == "delete"]
    assert view["task"]["id"] in [entry["id"] for entry in deleted]
    assert home.sh("true") != task


def test_pause_and_resume_of_a_task_an_executor_and_everything(home: Home) -> None:
    home.configure('[[executor]]\nname = "other"\nkind = "command"')
    home.start()
    with home.gate() as gate:
        before = home.sh("true", not_before_ms=now_ms() + 60_000)
        home.client.control(before, "pause")
        assert home.client.get(before)["task"]["reason"] == "paused"
        assert home.ctl("pause", "--executor", "other").code == 0
        here, there = home.sh("read x < go"), home.sh("true", executor="other")
        home.wait(here, "executing")
        assert home.ctl("pause").code == 0
        second = home.sh("true")
        gate.let()
        home.wait(here)
        home.kill()
        home.start()
        assert home.states(second, there) == ["idle", "idle"]
        assert "everything is paused" in home.client.why(second)["text"]
        assert home.ctl("resume").code == 0
        home.wait(second)
        assert home.states(there) == ["idle"]
        assert "executor other is paused" in home.client.why(there)["text"]
        assert home.ctl("resume", "--executor", "other").code == 0
        home.wait(there)
        home.client.control(before, "resume")
        home.waiting(before, "not_before")


def test_a_task_of_an_agent_waits_for_approval(omnid: Home) -> None:
    work = {"argv": ["/bin/sh", "-c", "echo done"], "cwd": str(omnid.work)}
    with closing(omnid.agent("bot")) as agent:
        names = [agent.submit(**work)["name"] for _ in range(2)]
        assert names == ["bot/t1", "bot/t2"]
        assert "for a person's approval" in omnid.waiting(names[0], "approval")["why"]
        for method, params in (
            ("omnid/task.control", {"task": names[0], "action": "approve"}),
            ("omnid/gate.pause", {}),
            ("omnid/daemon.stop", {}),
            ("omnid/hello", {"role": "person"}),
        ):
            with pytest.raises(Rejected) as refused:
                agent.call(method, params)
            assert refused.value.code == "not_allowed"
        said = omnid.ctl("approve", names[0], environ={"COLUMNS": "500"})
        assert "/bin/sh" in said.out
        assert str(omnid.work) in said.out
        assert omnid.wait(names[0])["attempts"][0]["output"] == "done\n"
        omnid.waiting(names[1], "approval")
        assert omnid.ctl("deny", names[1]).code == 0
        assert omnid.problem(names[1]) == "not_approved"


def test_a_lasting_approval_is_bound_to_the_exact_command_and_directory(omnid: Home) -> None:
    other = omnid.root / "other"
    other.mkdir()
    work = {"argv": ["/bin/sh", "-c", "echo done"], "cwd": str(omnid.work)}
    with closing(omnid.agent("bot")) as agent, closing(omnid.agent("cat")) as stranger:
        assert omnid.ctl("approve", agent.submit(**work)["name"], "--always").code == 0
        assert omnid.wait(agent.submit(**work)["name"])["task"]["state"] == "completed"
        for asks, changed in (
            (agent, {"argv": [*work["argv"], "more"]}),
            (agent, {"cwd": str(other)}),
            (agent, {"env": ["PATH"]}),
            (agent, {"stdin": "x"}),
            (agent, {"check": ["true"]}),
            (stranger, {}),
        ):
            assert asks.submit(**{**work, **changed})["state"] == "waiting", changed
        never = {**work, "argv": ["/bin/false"]}
        assert omnid.ctl("deny", agent.submit(**never)["name"], "--always").code == 0
        with pytest.raises(Rejected) as refused:
            agent.submit(**never)
        assert refused.value.code == "not_approved"


def test_an_agent_uses_what_the_config_allows(home: Home) -> None:
    home.configure('[agents]\nallow = ["command"]')
    home.start()
    with closing(home.agent("bot")) as agent:
        name = agent.submit(argv=["true"], cwd="/")["name"]
        assert home.wait(name)["task"]["state"] == "completed"
