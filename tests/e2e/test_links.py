"""A daemon, a real broker, and runners as their own processes: what holds whichever of them is away."""

import json

import pytest

from tests.contract.links import WAIT_S
from tests.e2e.harness import now_ms, until
from tests.e2e.runners import Fleet

only_redis = pytest.mark.parametrize("kit", ["redis"], indirect=True)
"""Where it takes many seconds and no broker has a part in what is tested: rows of the journal, signatures."""


def test_commands_run_on_a_runner_and_their_results_come_back_in_order(fleet: Fleet) -> None:
    fleet.link()
    fleet.start()
    early = fleet.sh("echo early >> order; echo said early")  # There is no runner yet.
    fleet.run(OMNID_DAEMON__SLOTS_MAX="1")
    view = fleet.wait(early)
    assert view["task"]["state"] == "completed", view
    assert view["attempts"][0]["output"] == "said early\n"
    with fleet.gate() as gate:
        first = fleet.sh("echo first >> order; read x < go")
        until(lambda: fleet.lines("order")[-1:] == ["first"], "the first to begin")
        second = fleet.sh("echo second >> order")  # In the window behind the first: it has been sent.
        rest = [fleet.sh(f"echo {number} >> order", priority=number % 3) for number in range(6)]
        gate.let()
        for task in (first, second, *rest):
            assert fleet.wait(task)["task"]["state"] == "completed"
    assert fleet.lines("order") == ["early", "first", "second", "2", "5", "1", "4", "0", "3"]
    failed = fleet.wait(fleet.sh("exit 3", attempts_max=1))
    assert (failed["task"]["state"], failed["attempts"][0]["exit_code"]) == ("failed", 3)


def test_while_the_broker_is_away_tasks_wait_behind_one_gate_and_go_by_priority_when_it_is_back(fleet: Fleet) -> None:
    fleet.link()
    fleet.start()
    fleet.run(OMNID_DAEMON__SLOTS_MAX="1")
    fleet.wait(fleet.sh("true"))
    with fleet.gate() as gate:
        running = fleet.sh("echo x >> begun; read x < go; echo running >> order")
        fleet.file("begun")
        fleet.kit.broker.kill()
        until(lambda: fleet.client.status()["gates"], "the gate of the link")
        (shut,) = fleet.client.status()["gates"]
        assert (shut["cause"], shut["subject"]) == ("link", "cable")
        tasks = [fleet.sh(f"echo {number} >> order", priority=number) for number in range(4)]
        view = fleet.waiting(tasks[0], "link")
        assert "for the link cable (The link cable is down" in view["why"]
        gate.let()
        until(lambda: fleet.lines("order"), "the end of what runs")
        assert fleet.states(running, *tasks) == ["executing", *["idle"] * 4]
        fleet.kit.broker.start()
        for task in (running, *tasks):
            assert fleet.wait(task)["task"]["state"] == "completed"
    assert fleet.lines("order") == ["running", "3", "2", "1", "0"]
    assert fleet.client.status()["gates"] == []


def test_a_daemon_that_is_killed_finds_its_commands_and_their_results_again(fleet: Fleet) -> None:
    fleet.link()
    fleet.start()
    fleet.run(OMNID_DAEMON__SLOTS_MAX="1")
    with fleet.gate() as gate:
        running = fleet.sh("echo x >> running; read x < go")
        fleet.file("running")
        queued = [fleet.sh(f"echo {number} >> order") for number in range(5)]
        fleet.kill()
        gate.let()
        fleet.start()
        for task in (running, *queued):
            view = fleet.wait(task)
            assert (view["task"]["state"], len(view["attempts"])) == ("completed", 1)
    assert fleet.lines("order") == ["0", "1", "2", "3", "4"]
    assert fleet.lines("running") == ["x"]


def test_a_lost_runner_leaves_a_task_uncertain_until_its_late_result_comes(fleet: Fleet) -> None:
    fleet.link(remote="lease_s = 1.0\n")
    fleet.start()
    fleet.run()
    with fleet.gate() as gate:
        task = fleet.sh("echo x >> begun; read x < go")
        fleet.file("begun")
        fleet.end()
        view = fleet.wait(task, "uncertain")
        assert f"Runner {fleet.name(0)} was lost" in view["why"]
        late = fleet.sh("true")
        assert "for a runner (No runner takes executor command" in fleet.waiting(late, "executor")["why"]
        fleet.run()
        gate.let()
        assert fleet.wait(task, "completed")["attempts"][0]["outcome"] == "success"
        assert fleet.wait(late)["task"]["state"] == "completed"
    assert fleet.lines("begun") == ["x"]


def test_what_a_runner_that_is_told_to_stop_has_not_begun_goes_to_another_at_once(fleet: Fleet) -> None:
    fleet.link(2)
    fleet.start()
    first = fleet.run(0, OMNID_DAEMON__SLOTS_MAX="1", OMNID_RUNNER__DRAIN_S="60")
    with fleet.gate() as gate:
        running = fleet.sh("echo x >> begun; read x < go")
        fleet.file("begun")
        queued = fleet.sh("echo y >> begun")
        until(lambda: fleet.states(queued) == ["executing"], "the command to be in the window")
        fleet.runners[first].terminate()
        until(lambda: fleet.client.get(queued)["attempts"][:1] and fleet.states(queued) == ["idle"], "it to come back")
        runners = fleet.client.call("omnid/runner.list", {})["runners"]
        assert {one["name"]: one["state"] for one in runners}[first] == "leaving"
        fleet.run(1)
        view = fleet.wait(queued)
        assert [one["outcome"] for one in view["attempts"]] == ["unstarted", "success"]
        assert fleet.states(running) == ["executing"]
        gate.let()
        assert [one["outcome"] for one in fleet.wait(running)["attempts"]] == ["success"]
    assert fleet.runners[first].wait(WAIT_S) == 0
    (attempt,) = fleet.wait(fleet.sh("true"))["attempts"]
    assert attempt["outcome"] == "success", "nothing goes to one that is gone, though its lease still runs"


def test_what_may_be_repeated_goes_from_a_lost_runner_to_another_and_its_late_result_is_refused(fleet: Fleet) -> None:
    fleet.link(2, '[[executor]]\nname = "safe"\nkind = "command"\nidempotent = true\n', "lease_s = 1.0\n")
    fleet.config.write_text(fleet.config.read_text().replace('executors = ["command"]', 'executors = ["safe"]'))
    fleet.start()
    first = fleet.run(0)
    with fleet.gate() as gate:
        task = fleet.sh("echo $OMNID_ATTEMPT >> begun; read x < go", executor="safe")
        fleet.file("begun")
        fleet.end(0)
        fleet.run(1)
        until(lambda: len(fleet.lines("begun")) == 2, "the second attempt to begin")
        gate.let(2)
        view = fleet.wait(task)
        assert [one["outcome"] for one in view["attempts"]] == ["lost", "success"]
        fleet.run(0)
        until(lambda: fleet.logged("late_result_refused"), "the late result")
    assert fleet.client.get(task)["task"]["state"] == "completed"
    # The other one may have been awaited for longer than its lease before it was started.
    assert first in [line["runner"] for line in fleet.logged("runner_lost")]


def test_cancels_and_deadlines_reach_a_runner(fleet: Fleet) -> None:
    fleet.link()
    fleet.start()
    fleet.run(OMNID_DAEMON__SLOTS_MAX="1")
    running = fleet.sh("echo x >> begun; exec sleep 60")
    fleet.file("begun")
    queued = fleet.sh("echo y >> begun")
    waiting = fleet.sh("echo z >> begun")
    fleet.client.control(waiting, "cancel")
    assert fleet.states(waiting) == ["cancelled"]
    for task in (queued, running):
        fleet.client.control(task, "cancel")
    for task in (queued, running):
        assert fleet.wait(task)["task"]["state"] == "cancelled"
    assert fleet.lines("begun") == ["x"]
    slow = fleet.sh("exec sleep 60", timeout_s=0.3, attempts_max=1)
    assert fleet.problem(slow) == "attempt_timeout"
    late = fleet.sh("exec sleep 60", deadline_ms=now_ms() + 1500)
    assert fleet.problem(late) == "deadline_passed"


def test_an_outage_is_one_row_and_two_lines_and_rings_for_presets(fleet: Fleet) -> None:
    local = '[[executor]]\nname = "here"\nkind = "command"\nargv = ["echo"]\n'
    presets = "".join(
        f'[[preset]]\nname = "{name}"\non = ["link.{name}:cable"]\ntask = {{ executor = "here", argv = ["{name}"] }}\n'
        for name in ("down", "up")
    )
    fleet.link(more=local + presets)
    fleet.start()
    fleet.run()
    running = fleet.sh("echo x >> begun; exec sleep 60")
    fleet.file("begun")
    fleet.kit.broker.kill()
    until(lambda: fleet.client.status()["gates"], "the gate of the link")
    fleet.client.control(running, "cancel")  # It lies in the outbox.
    (open_one,) = fleet.client.call("omnid/outage.list", {})["outages"]
    assert (open_one["cause"], open_one["subject"], open_one["ended_at_ms"]) == ("link", "cable", None)
    fleet.kit.broker.start()
    assert fleet.wait(running)["task"]["state"] == "cancelled"
    until(lambda: fleet.client.call("omnid/outage.list", {})["outages"][0]["resumed"] == 1, "the row of the outage")
    (outage,) = fleet.client.call("omnid/outage.list", {})["outages"]
    assert (outage["parked"], outage["ended_at_ms"] > outage["began_at_ms"]) == (1, True)
    assert "is down" in outage["problem"]["what"]
    clients, broker, internet = fleet.client.call("omnid/link.list", {})["links"]
    assert (clients["quality"], internet["quality"]) == ("up", None)
    assert (clients["latency_s"], clients["loss"]) == (None, None), "nobody measures them"
    assert (broker["name"], broker["quality"], broker["waiting"], broker["loss"] < 1) == ("cable", "up", 0, True)
    assert broker["latency_s"] > 0
    assert (broker["beats"][-1], set(broker["beats"][:-2])) == ("down", {None})  # The last minutes were as bad as that.
    assert fleet.warned() == [["link_down"], ["link_down"]], "a line of the daemon, and one of the runner"
    first, second = fleet.logged("link_up")
    assert (first["down_s"], second["sent"]) == (None, 1)
    assert second["down_s"] > 0
    for name in ("down", "up"):
        schedule = next(one for one in fleet.client.call("omnid/schedule.list", {})["schedules"] if one["name"] == name)
        assert schedule["runs"] == 1


@only_redis
def test_an_outage_in_which_the_daemon_is_killed_is_one_row_with_all_that_waited(fleet: Fleet) -> None:
    fleet.link()
    fleet.start()
    fleet.run(OMNID_DAEMON__SLOTS_MAX="1")
    for back_before_the_daemon in (True, False):
        running = fleet.sh("echo x >> begun; exec sleep 60")
        fleet.file("begun")
        fleet.kit.broker.kill()
        until(lambda: fleet.client.status()["gates"], "the gate of the link")
        fleet.client.control(running, "cancel")  # It lies in the outbox.
        waiting = [fleet.sh("true") for _ in range(3)]
        fleet.kill()
        if back_before_the_daemon:
            fleet.kit.broker.start()
        fleet.start()
        if not back_before_the_daemon:
            until(lambda: fleet.client.status()["gates"][0]["wake_at_ms"], "a dial that failed")
            fleet.kit.broker.start()
        for task, state in ((running, "cancelled"), *((task, "completed") for task in waiting)):
            assert fleet.wait(task)["task"]["state"] == state
        outage, *_ = fleet.client.call("omnid/outage.list", {})["outages"]
        assert (outage["parked"], outage["resumed"], outage["ended_at_ms"] > outage["began_at_ms"]) == (4, 4, True)
        (fleet.work / "begun").unlink()
    assert len(fleet.client.call("omnid/outage.list", {})["outages"]) == 2
    _, broker, _ = fleet.client.call("omnid/link.list", {})["links"]
    assert (broker["quality"], broker["waiting"], broker["beats"][-1]) == ("up", 0, "down")


@only_redis
def test_with_two_keys_both_ends_say_what_they_refuse(fleet: Fleet) -> None:
    fleet.link(link='key = "env:LINK_KEY"\n')
    fleet.environ["LINK_KEY"] = "the key of the daemon"
    fleet.start()
    fleet.run(LINK_KEY="the key of the daemon")
    assert fleet.wait(fleet.sh("true"))["task"]["state"] == "completed"
    fleet.end()
    name = fleet.run(LINK_KEY="another key than that")
    fleet.sh("echo x >> begun")  # It goes out, because the runner's lease still runs.
    unstarted = '"outcome":"unstarted"'
    found = until(lambda: fleet.refused("result", unstarted), "the answer that the daemon can't take")
    assert found["destination"] == "link/cable"
    said = fleet.ctl("dead", "show", found["id"])
    assert f"result from {name} over link/cable" in said.out
    assert "its signature is wrong" in said.out
    health = fleet.root / name / "runner" / "health"
    until(lambda: json.loads(health.read_text())["refused_why"] == "its signature is wrong", "the health line")
    assert "came over the link cable" in fleet.ctl("dead", "retry", found["id"]).err
    assert fleet.ctl("dead", "drop", found["id"]).code == 0
    assert not fleet.refused("result", unstarted)
    assert not (fleet.work / "begun").exists()


def test_keys_are_exchanged_while_tasks_run(fleet: Fleet) -> None:
    for name in ("old", "new"):
        (fleet.root / name).write_text(f"the {name} key of this link")

    def known(key: str, *accepted: str) -> None:
        others = ", ".join(f'"file:{fleet.root}/{name}"' for name in accepted)
        fleet.link(link=f'key = "file:{fleet.root}/{key}"\naccepted_keys = [{others}]\n')

    known("old")
    fleet.start()
    fleet.run()
    assert fleet.wait(fleet.sh("true"))["task"]["state"] == "completed"
    with fleet.gate() as gate:
        for step in (("old", "new"), ("new", "old"), ("new",)):
            known(*step)
            assert fleet.ctl("config", "reload").code == 0
            running = fleet.sh("echo x >> begun; read x < go")  # The runner is one step behind.
            fleet.file("begun")
            fleet.end()
            queued = fleet.sh("true")
            fleet.run()
            gate.let()
            for task in (running, queued):
                view = fleet.wait(task)
                assert (view["task"]["state"], len(view["attempts"])) == ("completed", 1)
            (fleet.work / "begun").unlink()
    assert fleet.client.call("omnid/dead.list", {})["deliveries"] == []
    assert not fleet.logged("message_set_aside")
