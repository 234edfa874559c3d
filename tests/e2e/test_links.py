"""A daemon, a real broker, and runners as their own processes: what holds whichever of them is away."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.links import KINDS, WAIT_S, Kit, kit_of
from tests.e2e.harness import Home, until
from tests.fakes.brokers import Broker

RUNNER = (sys.executable, "-m", "omnid", "runner")


class Fleet(Home):
    """A daemon and its runners on one host: they share a config, and each runner has a directory of its own."""

    def __init__(self, root: Path, kit: Kit) -> None:
        super().__init__(root)
        self.kit = kit
        self.runners: dict[str, subprocess.Popen[bytes]] = {}
        (root / "password").write_text(kit.broker.password)

    def name(self, number: int) -> str:
        return f"{self.kit.runner_name}-{number}"

    def link(self, count: int = 1, more: str = "", remote: str = "") -> None:
        """Writes the config of them all, with that many runners."""
        self.configure(
            f'[daemon]\nname = "{self.kit.daemon_name}"\nslots_max = 4\n'
            f"[runner]\nbeat_s = 0.2\n{more}"
            f'[[link]]\nname = "cable"\nurl = "{self.kit.broker.url}"\nuser = "{self.kit.broker.user}"\n'
            f'password = "file:{self.root}/password"\nretry_base_s = 0.1\nretry_max_s = 0.5\n'
            + "".join(
                f'[[remote]]\nname = "{self.name(number)}"\nlink = "cable"\nexecutors = ["command"]\n{remote}'
                for number in range(count)
            )
        )

    def run(self, number: int = 0, **environ: str) -> str:
        """Starts a runner, and gives its name."""
        name = self.name(number)
        directory = self.root / name
        directory.mkdir(exist_ok=True)
        with self.said.open("ab") as said:
            self.runners[name] = subprocess.Popen(
                (*RUNNER, "--link", "cable", "--name", name),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env={**self.environ, "OMNID_STATE": str(directory), **environ},
                cwd=self.root,
            )
        return name

    def end(self, number: int = 0, how: int = signal.SIGKILL) -> None:
        """Ends a runner; its commands go on under their supervisors."""
        process = self.runners.pop(self.name(number))
        process.send_signal(how)
        process.wait(WAIT_S)

    def logged(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (self.state / "omnid.log").read_text().splitlines()]
        return [line for line in lines if line["event"] == event]

    def close(self) -> None:
        for process in self.runners.values():
            process.kill()
            process.wait(WAIT_S)
        super().close()


@pytest.fixture(params=KINDS)
def kit(request: pytest.FixtureRequest, brokers: Callable[[str], Broker]) -> Kit:
    return kit_of(request, brokers)


@pytest.fixture
def fleet(tmp_path: Path, kit: Kit) -> Iterator[Fleet]:
    root = tmp_path / "h"
    root.mkdir(mode=0o700)
    made = Fleet(root, kit)
    yield made
    made.close()


only_redis = pytest.mark.parametrize("kit", ["redis"], indirect=True)


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
