"""Whole lives of tasks: a real daemon behind its socket, real commands, and what is seen of them from outside."""

import os
import signal
import subprocess
import time

import pytest

from omnid.errors import Rejected, Retryable
from tests.e2e.harness import OMNICTL, WAIT_S, Home, now_ms, until


def test_a_command_runs_where_and_as_it_was_asked_to(omnid: Home) -> None:
    task = omnid.submit(["/bin/sh", "-c", "pwd; cat; echo $HOME; echo no >&2"], stdin="given\n", labels=["a", "b"])
    view = omnid.wait(task)
    assert view["task"]["state"] == "completed"
    (attempt,) = view["attempts"]
    assert sorted(attempt["output"].splitlines()) == sorted([str(omnid.work), "given", str(omnid.root), "no"])
    assert (attempt["exit_code"], attempt["outcome"], attempt["cost_usd"]) == (0, "success", None)
    assert [task["name"] for task in omnid.client.list(labels=["b"])["tasks"]] == [task]
    assert omnid.client.why(task)["text"].startswith(f"{task} was completed 0 s ago by command")


def test_directory_and_socket_are_private_and_secrets_stay_outside(home: Home) -> None:
    secret = "hush-" + os.urandom(8).hex()
    home.environ["TOKEN_OF_MINE"] = secret
    reference = '{ API_TOKEN = "env:TOKEN_OF_MINE" }'
    home.configure(f'[log]\nlevel = "debug"\n[[executor]]\nname = "key"\nkind = "command"\nenv_set = {reference}')
    home.start()
    assert home.socket.stat().st_mode & 0o777 == 0o600
    script = '[ "${#API_TOKEN}" = 21 ] && [ -z "$TOKEN_OF_MINE" ]'
    assert home.wait(home.sh(script, executor="key"))["task"]["state"] == "completed"
    assert home.wait(home.sh('[ -z "$API_TOKEN" ]'))["task"]["state"] == "completed"
    home.stop()
    assert home.state.stat().st_mode & 0o777 == 0o700
    for path in home.state.rglob("*"):
        assert not path.stat().st_mode & 0o077, path
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path


def test_priority_goes_first_and_then_the_order_of_submission(home: Home) -> None:
    home.configure("[daemon]\nslots_max = 1")
    home.start()
    with home.gate() as gate:
        first = home.sh("read x < go")
        home.wait(first, "executing")
        tasks = [home.sh(f"echo {n} >> order", priority=priority) for n, priority in enumerate((0, 5, -5, 5, 0))]
        raised = home.sh("echo raised >> order")
        home.client.control(raised, "priority", priority=10)
        assert "for a free slot" in home.client.why(tasks[0])["text"]
        gate.let()
        for task in tasks:
            home.wait(task)
    assert home.lines("order") == ["raised", "1", "3", "0", "4", "2"]


def test_a_lane_runs_one_at_a_time_and_blocks_nobody_else(omnid: Home) -> None:
    with omnid.gate() as gate:
        first = omnid.sh("read x < go; echo first >> order", lane="repository")
        omnid.wait(first, "executing")
        second = omnid.sh("echo second >> order", lane="repository")
        omnid.wait(omnid.sh("echo beside >> order", lane="other"))
        omnid.wait(omnid.sh("echo without >> order", priority=-10))
        assert omnid.states(first, second) == ["executing", "idle"]
        assert f"its lane repository, where {first} runs" in omnid.client.why(second)["text"]
        gate.let()
        omnid.wait(second)
    assert omnid.lines("order") == ["beside", "without", "first", "second"]


def test_an_executor_takes_no_more_than_its_slots(home: Home) -> None:
    home.configure('[[executor]]\nname = "two"\nkind = "command"\nconcurrency = 2')
    home.start()
    with home.gate() as gate:
        tasks = [home.sh("read x < go", executor="two") for _ in range(3)]
        home.wait(tasks[0], "executing")
        home.wait(tasks[1], "executing")
        home.wait(home.sh("true"))
        assert home.states(*tasks) == ["executing", "executing", "idle"]
        assert "executor two" in home.client.why(tasks[2])["text"]
        gate.let(3)
        for task in tasks:
            home.wait(task)


def test_a_task_comes_after_others_and_fails_with_them(omnid: Home) -> None:
    with omnid.gate() as gate:
        first = omnid.sh("read x < go; echo first >> order")
        second = omnid.sh("echo second >> order", after=[first])
        third = omnid.sh("echo third >> order", after=[first, second])
        assert f"for {first} to succeed" in omnid.waiting(second, "dependency")["why"]
        gate.let()
        omnid.wait(third)
    assert omnid.lines("order") == ["first", "second", "third"]
    with omnid.gate("stop") as gate:
        failing = omnid.sh("read x < stop; exit 3", attempts_max=1)
        chain = [omnid.sh("true", after=[failing])]
        chain.append(omnid.sh("true", after=[chain[0], third]))
        gate.let()
        assert omnid.problem(failing) == "exit_code"
        assert [omnid.problem(task) for task in chain] == ["dependency_failed"] * 2
    with pytest.raises(Rejected, match=f"comes after {failing}"):
        omnid.sh("true", after=[failing])


def test_nothing_starts_before_its_time(omnid: Home) -> None:
    at_ms = now_ms() + 700
    task = omnid.sh("true", not_before_ms=at_ms)
    assert omnid.waiting(task, "not_before")["task"]["wake_at_ms"] == at_ms
    assert omnid.wait(task)["attempts"][0]["started_at_ms"] >= at_ms


def test_a_deadline_ends_what_waits_and_what_runs(omnid: Home) -> None:
    deadline_ms = now_ms() + 700
    running = omnid.sh("sleep 60", deadline_ms=deadline_ms)
    waiting = omnid.sh("true", not_before_ms=deadline_ms + 60_000, deadline_ms=deadline_ms)
    assert [omnid.problem(task) for task in (waiting, running)] == ["deadline_passed"] * 2
    assert omnid.client.get(running)["task"]["finished_at_ms"] >= deadline_ms
    assert not omnid.supervisors()
    with pytest.raises(Rejected, match="deadline"):
        omnid.sh("true", deadline_ms=now_ms() - 1)


def test_a_failure_is_tried_again_and_what_can_never_work_is_not(omnid: Home) -> None:
    flaky = omnid.sh("[ -e tried ] || { : > tried; exit 1; }", backoff_s=0.1)
    view = omnid.wait(flaky)
    assert [attempt["outcome"] for attempt in view["attempts"]] == ["failure", "success"]
    hopeless = omnid.sh("exit 7", attempts_max=3, backoff_s=0.05)
    view = omnid.wait(hopeless)
    assert (view["task"]["state"], view["attempts_total"]) == ("failed", 3)
    assert "exit code 7" in view["why"]
    missing = omnid.submit(["no-such-program"])
    assert omnid.problem(missing) == "command_not_found"
    assert omnid.client.get(missing)["attempts_total"] == 1
    later = omnid.sh("exit 1", backoff_s=3600, attempts_max=2)
    assert "before it tries again" in omnid.waiting(later, "backoff")["why"]
    omnid.client.control(later, "retry")
    assert omnid.problem(later) == "exit_code"


def test_an_attempt_that_takes_too_long_is_ended_with_all_it_started(omnid: Home) -> None:
    task = omnid.sh("sleep 60 & echo $! > child; wait", timeout_s=0.5, attempts_max=1)
    assert omnid.problem(task) == "attempt_timeout"
    assert not [line for line in omnid.processes().values() if line.startswith("sleep")]


def test_a_check_decides_whether_done_is_done(omnid: Home) -> None:
    assert omnid.problem(omnid.sh("true", check=["test", "-e", "result"], attempts_max=1)) == "check_failed"
    view = omnid.wait(omnid.sh(": > result", check=["test", "-e", "result"]))
    assert view["task"]["state"] == "completed"


def test_cancel_ends_what_waits_and_what_runs(omnid: Home) -> None:
    waiting = omnid.sh("true", not_before_ms=now_ms() + 60_000)
    omnid.client.control(waiting, "cancel")
    running = omnid.sh(": > began; sleep 60")
    omnid.file("began")
    omnid.client.control(running, "cancel")
    omnid.wait(running)
    assert omnid.states(waiting, running) == ["cancelled", "cancelled"]
    assert not omnid.supervisors()
    omnid.client.control(waiting, "retry")
    omnid.waiting(waiting, "not_before")


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_running_command_is_adopted_and_does_its_work_once(omnid: Home, end: str) -> None:
    with omnid.gate() as gate:
        task = omnid.sh("echo $OMNID_ATTEMPT > began; read x < go; echo $OMNID_ATTEMPT >> effect; echo late")
        omnid.file("began")
        began_s = time.monotonic()
        getattr(omnid, end)()
        assert time.monotonic() - began_s < 10
        assert len(omnid.supervisors()) == 1
        omnid.start()
        assert omnid.client.status()["running"] == 1
        gate.let()
        view = omnid.wait(task)
    (attempt,) = view["attempts"]
    assert (attempt["outcome"], attempt["output"]) == ("success", "late\n")
    assert omnid.lines("effect") == [attempt["id"]]


def test_what_ended_while_the_daemon_was_away_counts(omnid: Home) -> None:
    with omnid.gate() as gate:
        good = omnid.sh("echo >> effect; read x < go; echo done")
        bad = omnid.sh("echo >> effect; read x < go; exit 3", attempts_max=1)
        until(lambda: len(omnid.lines("effect")) == 2, "both commands")
        omnid.kill()
        gate.let(2)
        until(lambda: not omnid.supervisors(), "the end of both")
        omnid.start()
        assert omnid.wait(good)["attempts"][0]["output"] == "done\n"
        assert omnid.problem(bad) == "exit_code"
    assert len(omnid.lines("effect")) == 2


def test_an_adopted_attempt_can_be_cancelled(omnid: Home) -> None:
    task = omnid.sh(": > began; sleep 60")
    omnid.file("began")
    omnid.kill()
    omnid.start()
    omnid.client.control(task, "cancel")
    view = omnid.wait(task)
    assert (view["task"]["state"], view["attempts_total"]) == ("cancelled", 1)
    assert not omnid.supervisors()


def test_the_same_key_is_the_same_task(omnid: Home) -> None:
    first = omnid.client.submit(argv=["true"], cwd="/", key="once")
    omnid.wait(first["name"])
    omnid.kill()
    omnid.start()
    again = omnid.client.submit(argv=["true"], cwd="/", key="once")
    assert (again["id"], again["created"], first["created"]) == (first["id"], False, True)
    with pytest.raises(Rejected) as refused:
        omnid.client.submit(argv=["false"], cwd="/", key="once")
    assert refused.value.code == "key_reused"


def test_a_batch_is_taken_whole_or_not_at_all(omnid: Home) -> None:
    def batch(*tasks: dict[str, object]) -> list[str]:
        whole = [{"argv": ["true"], "cwd": "/", **task} for task in tasks]
        return [task["name"] for task in omnid.client.call("omnid/task.submit_batch", {"tasks": whole})["tasks"]]

    omnid.client.submit(argv=["true"], cwd="/", key="taken")
    for code, wrong in (
        ("batch_task", [{}, {"key": "taken", "argv": ["false"]}]),
        ("batch_task", [{}, {"after": ["t99"]}]),
        ("batch_task", [{}, {"executor": "nobody"}]),
        ("dependency_cycle", [{"ref": "a", "after": ["b"]}, {"ref": "b", "after": ["a"]}]),
        ("duplicate_ref", [{"ref": "a"}, {"ref": "a"}]),
    ):
        with pytest.raises(Rejected) as refused:
            batch(*wrong)
        assert refused.value.code == code
    assert sum(omnid.client.status()["tasks"].values()) == 1
    last, first = batch({"ref": "last", "after": ["first"]}, {"ref": "first"})
    assert omnid.wait(last)["task"]["started_at_ms"] >= omnid.wait(first)["task"]["finished_at_ms"]


def test_finished_tasks_go_when_their_time_is_over(home: Home) -> None:
    home.start()
    tasks = [home.wait(home.sh("echo output"))["task"]["name"] for _ in range(5)]
    kept = home.sh("true", not_before_ms=now_ms() + 3_600_000)
    home.stop()
    home.configure("[retention]\nfinished_max = 2\nkept_days_min = 0")
    home.start()
    until(lambda: home.client.status()["tasks"].get("completed") == 2, "retention")
    assert {task["name"] for task in home.client.list()["tasks"]} == {*tasks[3:], kept}
    home.stop()
    home.configure("[retention]\nfinished_days = 0.000001")
    home.start()
    until(lambda: "completed" not in home.client.status()["tasks"], "retention")
    until(lambda: not list((home.state / "spool").iterdir()), "an empty spool")
    assert home.ctl("doctor").code == 0


def test_a_changed_config_is_taken_over_whole_or_not_at_all(omnid: Home) -> None:
    assert omnid.process
    omnid.configure('[[executor]]\nname = "new"\nkind = "command"\n[daemon]\nslots_max = 3')
    omnid.process.send_signal(signal.SIGHUP)
    until(lambda: omnid.client.status()["slots"] == 3, "the new config")
    assert omnid.wait(omnid.sh("true", executor="new"))["task"]["state"] == "completed"
    omnid.configure("[daemon]\nslots_max = 2\nslots_min = 1")
    omnid.process.send_signal(signal.SIGHUP)
    until(lambda: omnid.client.status()["config_problem"], "a complaint")
    status = omnid.client.status()
    assert (status["config_problem"]["code"], status["slots"]) == ("config_unknown_key", 3)
    assert omnid.wait(omnid.sh("true", executor="new"))["task"]["state"] == "completed"
    omnid.configure("[daemon]\nslots_max = 2")
    assert omnid.ctl("config", "reload").code == 0
    assert omnid.client.status()["slots"] == 2
    assert omnid.client.status()["config_problem"] is None


def test_an_attempt_outlives_its_executor(home: Home) -> None:
    home.configure('[[executor]]\nname = "gone"\nkind = "command"')
    home.start()
    with home.gate() as gate:
        task = home.sh(": > began; read x < go", executor="gone")
        home.file("began")
        waiting = home.sh("true", executor="gone", not_before_ms=now_ms() + 1500)
        home.configure("")
        assert home.ctl("config", "reload").code == 0
        home.wait(waiting, "idle")
        assert "no executor gone any more" in home.client.why(waiting)["text"]
        home.kill()
        home.start()
        gate.let()
        assert home.wait(task)["task"]["state"] == "completed"


def test_output_is_kept_within_its_limits(home: Home) -> None:
    home.configure("[limits]\noutput_head_bytes = 1024\noutput_tail_bytes = 1024\nspool_bytes_max = 8192")
    home.start()
    some = home.wait(home.sh("head -c 5000 /dev/zero | tr '\\0' x; echo; echo end"))["attempts"][0]
    assert (some["output_bytes"], some["output"][-5:]) == (5005, "\nend\n")
    assert 2048 < len(some["output"]) < 2300
    many = home.sh("head -c 1000000 /dev/zero | tr '\\0' x")
    attempt = home.wait(many)["attempts"][0]
    assert (attempt["output_bytes"], attempt["outcome"]) == (1_000_000, "success")
    assert "were dropped" in attempt["output"]
    assert len(home.client.logs(many, limit_bytes=1 << 20)["text"]) == 8192


def test_logs_follow_a_running_attempt_to_its_end(omnid: Home) -> None:
    with omnid.gate() as gate:
        task = omnid.sh("echo first; read x < go; echo last")
        with subprocess.Popen([*OMNICTL, "logs", task, "-f"], stdout=subprocess.PIPE, env=omnid.environ) as follower:
            assert follower.stdout
            assert follower.stdout.readline() == b"first\n"
            assert omnid.states(task) == ["executing"]
            gate.let()
            assert follower.stdout.read() == b"last\n"
            assert follower.wait(WAIT_S) == 0


def test_omnictl_waits_over_a_restart_of_the_daemon(omnid: Home) -> None:
    with omnid.gate() as gate:
        task = omnid.sh("read x < go")
        omnid.wait(task, "executing")
        with subprocess.Popen([*OMNICTL, "wait", task], stdout=subprocess.PIPE, env=omnid.environ) as waiting:
            until(lambda: omnid.client.status()["clients"] == 2, "omnictl")
            omnid.kill()
            omnid.start()
            gate.let()
            assert b"was completed" in waiting.communicate(timeout=WAIT_S)[0]
            assert waiting.returncode == 0


def test_a_stop_through_the_socket_ends_the_daemon(omnid: Home) -> None:
    said = omnid.ctl("down")
    assert said.code == 0, said
    assert omnid.process
    assert omnid.process.wait(WAIT_S) == 0
    assert not omnid.socket.exists()
    omnid.client.close()
    with pytest.raises(Retryable) as down:
        omnid.client.status()
    assert down.value.code == "daemon_down"
    said = omnid.ctl("up")
    assert said.code == 0, said
    os.kill(omnid.client.status()["pid"], signal.SIGTERM)
    omnid.assert_nothing_left()


def test_a_daemon_whose_socket_was_removed_is_ended_and_started_anew(omnid: Home) -> None:
    with omnid.gate() as gate:
        running = omnid.sh("read x < go; echo >> effect")
        omnid.wait(running, "executing")
        assert omnid.process
        omnid.socket.unlink()
        omnid.client.close()
        said = omnid.ctl("status")
        assert said.code == 3
        assert f"pid {omnid.process.pid}" in said.err
        said = omnid.ctl("down", environ={"OMNID_SOCKET": str(omnid.root / "other.sock")})
        assert said.code == 3, "it was another daemon that was meant"
        assert omnid.process.poll() is None
        said = omnid.ctl("down")
        assert said.code == 0, said
        assert "it gets SIGTERM" in said.err
        assert omnid.process.wait(WAIT_S) == 0
        assert omnid.ctl("down").code == 3
        omnid.start()
        gate.let()
        assert omnid.wait(running)["task"]["state"] == "completed"
        assert len(omnid.lines("effect")) == 1


def test_the_past_can_be_seen_as_it_was(omnid: Home) -> None:
    task = omnid.sh("true")
    omnid.wait(task)
    entries = omnid.client.call("omnid/operations", {"task": task})["operations"]
    state = [entry["fields"]["state"] for entry in entries if "state" in entry["fields"]]
    assert state == ["idle", "executing", "completed"]
    then = omnid.client.call("omnid/replay", {"until_seq": entries[0]["seq"]})
    assert [(task["name"], task["state"]) for task in then["list"]] == [(task, "idle")]
    assert omnid.ctl("doctor").code == 0
