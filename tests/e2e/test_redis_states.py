"""A daemon and a runner while Redis says that it can't: the gate says why, and what waits goes once it can."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.links import Kit
from tests.e2e.harness import until
from tests.e2e.runners import Fleet
from tests.fakes.redis_states import Replica, Snapshot, State, stateful


@pytest.fixture(params=[Snapshot, Replica])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[State]:
    directory = tmp_path / "broker"
    directory.mkdir()
    with stateful(request.param, directory) as made:
        yield made


def test_what_redis_says_is_the_cause_of_the_gate_and_nothing_is_lost(state: State, tmp_path: Path) -> None:
    root = tmp_path / "h"
    root.mkdir(mode=0o700)
    fleet = Fleet(root, Kit("redis", state.broker, "states"))
    try:
        fleet.link()
        fleet.start()
        fleet.run(OMNID_DAEMON__SLOTS_MAX="1")
        fleet.wait(fleet.sh("true"))
        with fleet.gate() as gate:
            running = fleet.sh("echo x >> begun; read x < go; echo running >> order")
            fleet.file("begun")
            sent = fleet.sh("echo sent >> order")  # In the window of the runner.
            state.enter()
            until(lambda: state.code in cause(fleet), "the gate of the link, with its cause")
            tasks = [fleet.sh(f"echo {number} >> order", priority=number) for number in range(3)]
            assert state.code in fleet.waiting(tasks[0], "link")["why"]
            gate.let()
            until(lambda: fleet.lines("order"), "the end of what runs")
            state.leave()
            for task in (running, sent, *tasks):
                assert fleet.wait(task)["task"]["state"] == "completed"
        assert fleet.lines("order") == ["running", "sent", "2", "1", "0"]
        assert fleet.client.status()["gates"] == []
        assert len(fleet.logged("link_down")) == 1
    finally:
        fleet.close()


def cause(fleet: Fleet) -> str:
    """Gives what the gate of the link says; "" while there is none."""
    return "".join(gate["problem"]["what"] for gate in fleet.client.status()["gates"])
