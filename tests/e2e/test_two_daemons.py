"""Two daemons send to one runner: each has its own commands, results and cancels, whatever happens to the other."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import until
from tests.e2e.runners import Fleet

COUNT = 8


@pytest.fixture
def other(tmp_path: Path, fleet: Fleet) -> Iterator[Fleet]:
    """A second daemon, with a name and a state of its own, that sends to the first one's runner."""
    root = tmp_path / "o"
    root.mkdir(mode=0o700)
    kit = copy.copy(fleet.kit)
    kit.daemon_name += "-2"
    made = Fleet(root, kit)
    yield made
    made.close()


def submit(daemon: Fleet, key: object, priority: int = 0) -> str:
    return daemon.sh(f"echo {key} >> done; echo {daemon.root.name} {key}", priority=priority)


def shown(daemon: Fleet) -> tuple[str, int, int]:
    """Gives state, runs and slots of the runner as `omnictl runners` shows them."""
    (one,) = daemon.ctl("runners", "--json").json()["runners"]
    return one["state"], one["running"], one["slots"]


def test_each_of_two_daemons_gets_what_is_its_own(fleet: Fleet, other: Fleet) -> None:
    both = (fleet, other)
    for daemon in both:
        daemon.link()
        daemon.start()
    name = fleet.run(OMNID_DAEMON__SLOTS_MAX="1")
    for daemon in both:
        assert daemon.wait(submit(daemon, "first"))["task"]["state"] == "completed"
    with fleet.gate() as gate, other.gate() as second:
        running = fleet.sh("echo x >> begun; read x < go")
        fleet.file("begun")
        until(lambda: [shown(daemon) for daemon in both] == [("up", 1, 1)] * 2, "both to see the runner at work")
        window = {daemon: [submit(daemon, "sent")] for daemon in both}  # It lies at the runner already.
        gone = other.sh("echo gone >> done")  # As does this one.
        until(lambda: other.states(gone, *window[other]) == ["executing"] * 2, "the window to be full")
        later = {daemon: [submit(daemon, key, key % 3) for key in range(COUNT)] for daemon in both}
        other.client.control(gone, "cancel")
        assert other.wait(gone)["task"]["state"] == "cancelled"
        held = other.sh("echo x >> begun; read x < go", priority=9)
        assert fleet.states(running, *window[fleet]) == ["executing"] * 2

        gate.let()
        other.file("begun")
        other.kill()  # While its command runs, and the other's wait behind it.
        second.let()
        for task in (running, *window[fleet], *later[fleet]):
            assert fleet.wait(task)["task"]["state"] == "completed"
        other.start()
        for task in (held, *window[other], *later[other]):
            assert other.wait(task)["task"]["state"] == "completed"

    order = ["first", "sent", *(str(key) for rest in (2, 1, 0) for key in range(COUNT) if key % 3 == rest)]
    for daemon in both:
        assert daemon.lines("done") == order
        assert daemon.lines("begun") == ["x"]
        for key, task in enumerate(later[daemon]):
            (attempt,) = daemon.client.get(task)["attempts"]
            assert attempt["output"] == f"{daemon.root.name} {key}\n"
        assert daemon.client.call("omnid/dead.list", {})["deliveries"] == []
        until(lambda daemon=daemon: shown(daemon) == ("up", 0, 1), "the runner to be idle")
    health = json.loads((fleet.root / name / "runner" / "health").read_text())
    assert (health["refused"], health["turned_away"]) == (0, 0)


def test_a_cancel_ends_what_is_its_own_and_a_killed_runner_answers_both(fleet: Fleet, other: Fleet) -> None:
    both = (fleet, other)
    for daemon in both:
        daemon.link()
        daemon.start()
    fleet.run(OMNID_DAEMON__SLOTS_MAX="3")
    with fleet.gate() as gate, other.gate() as second:
        tasks = {daemon: daemon.sh("echo x >> begun; read x < go; echo out") for daemon in both}
        for daemon in both:
            daemon.file("begun")
        gone = other.sh("echo x >> gone; exec sleep 60")
        other.file("gone")
        other.client.control(gone, "cancel")
        assert other.wait(gone)["task"]["state"] == "cancelled"
        assert [daemon.states(task) for daemon, task in tasks.items()] == [["executing"]] * 2
        fleet.end()
        fleet.run(OMNID_DAEMON__SLOTS_MAX="3")
        gate.let()
        second.let()
        for daemon, task in tasks.items():
            view = daemon.wait(task)
            assert [(one["outcome"], one["output"]) for one in view["attempts"]] == [("success", "out\n")]
            assert daemon.lines("begun") == ["x"]
