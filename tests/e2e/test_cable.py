"""A cable is pulled, in a network namespace: omnid notices whether it is busy or idle, and goes on when it is back.

The times are those of the default config divided by `OMNID_CABLE_SCALE`, and the goals with them; 1 takes four minutes.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from omnid.ctl.demo_broker import free_port, redis_argv
from omnid.settings import Mode, Models
from tests.e2e.harness import LOOK_S, Home, now_ms, until
from tests.e2e.netns import FAR, Cable

SCALE = float(os.environ.get("OMNID_CABLE_SCALE", "20"))
GONE_S, BACK_S = 45.0 / SCALE, 65.0 / SCALE
SLACK_S = 0.0 if SCALE == 1 else 4.0
"""What can't be scaled: pauses of a second, and the machine."""
CALL_S = 60.0
HANG_S = 30
"""How long the system's resolver waits for an answer."""
OPEN = 3
ROOT = Path(__file__).parents[2]
CONFIG = f"""
[notify]
to = []
[models]
connect_timeout_s = {Models().connect_timeout_s / SCALE}
[mode]
cloud_probe_every_s = {Mode().cloud_probe_every_s / SCALE}
[[channel]]
name = "p1"
profile = "compatible"
base_url = "http://{FAR}:%d/slow/v1"
models = ["fake-1"]
free = true
"""

NAMES_CONFIG = CONFIG.replace(f"http://{FAR}:", "http://cloud.test:")

pytestmark = pytest.mark.timeout(60 + 6 * (GONE_S + BACK_S))


@pytest.fixture
def cable() -> Iterator[Cable]:
    with Cable() as made:
        yield made


@pytest.fixture
def near(home: Home, cable: Cable, request: pytest.FixtureRequest) -> Iterator[Home]:
    """A home at one end of the cable, whose cloud is at the other; a test may give another config."""
    argv = [*cable.far, sys.executable, "-m", "tests.fakes.cloud", "0", FAR]
    with subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as cloud:
        assert cloud.stdin is not None
        assert cloud.stdout is not None
        home.through = cable.near
        home.configure(getattr(request, "param", CONFIG) % int(cloud.stdout.readline()))
        home.start()
        yield home
        home.stop()
        cloud.stdin.close()


class Client:
    """Keeps some prompts open, and waits for modes meanwhile."""

    def __init__(self, home: Home, *, busy: bool) -> None:
        self._home = home
        self._busy = busy
        self._open: list[str] = []

    def until_mode(self, mode: str, limit_s: float) -> float:
        """Gives how long it takes; fails where it takes too long."""
        since_s = time.monotonic()
        while self._home.client.status()["mode"] != mode:
            assert time.monotonic() - since_s < limit_s, f"not {mode} after {limit_s} s"
            self.step()
            time.sleep(LOOK_S)
        return time.monotonic() - since_s

    def step(self) -> None:
        if self._busy:
            self._open = [id for id in self._open if not self._is_done(id)]
            while len(self._open) < OPEN:
                self._open.append(self._home.client.call("omnid/task.submit", {"prompt": "say hello"})["id"])

    def finish(self) -> None:
        until(lambda: all(map(self._is_done, self._open)), "all prompts to be answered", CALL_S)

    def _is_done(self, id: str) -> bool:
        view = self._home.client.get(id)
        assert view["task"]["state"] != "failed", view["why"]
        return bool(view["task"]["state"] == "completed")


@pytest.mark.parametrize(("busy", "silent"), [(False, True), (True, False)])
def test_a_pulled_cable_is_noticed_and_so_is_its_return(
    near: Home, cable: Cable, busy: bool, silent: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if silent:
        cable.be_silent()
    client = Client(near, busy=busy)
    if busy:
        client.step()
        client.finish()
        client.step()
    else:
        # What was just heard of the cloud counts as long as it would in an idle hour.
        near.client.call("omnid/channel.check", {})
    cable.pull()
    gone_s = client.until_mode("brainstem", GONE_S + SLACK_S)
    cable.plug()
    back_s = client.until_mode("normal", BACK_S + SLACK_S)
    client.finish()
    with capsys.disabled():
        print(f"\n{'busy' if busy else 'idle'}, 1/{SCALE:g} of the times: gone {gone_s:.1f} s, back {back_s:.1f} s")


class Resolver:
    """The resolver of names at the far end of the cable."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._heard()

    def be(self, how: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{how}\n")
        self._process.stdin.flush()
        self._heard()

    def _heard(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "\n"


@pytest.fixture
def resolver(cable: Cable, tmp_path: Path) -> Iterator[Resolver]:
    argv = [*cable.far, sys.executable, "-m", "tests.fakes.names", FAR, FAR]
    with subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        made = Resolver(process)
        cable.resolve(f"nameserver {FAR}\noptions timeout:{HANG_S:.0f} attempts:1\n", tmp_path / "resolv.conf")
        yield made
        assert process.stdin is not None
        process.stdin.close()


@pytest.mark.parametrize("near", [NAMES_CONFIG], indirect=True)
@pytest.mark.parametrize("busy", [False, True])
def test_names_that_nobody_resolves_are_waited_for_no_longer_than_connections(
    near: Home, resolver: Resolver, busy: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    client = Client(near, busy=busy)
    near.client.call("omnid/channel.check", {})
    resolver.be("silent")
    gone_s = client.until_mode("brainstem", GONE_S + SLACK_S)
    began_s = time.monotonic()
    near.stop()
    stop_s = time.monotonic() - began_s
    assert stop_s < HANG_S / 2, "the daemon's end waits for no name"
    near.start()
    resolver.be("answers")
    back_s = client.until_mode("normal", BACK_S + SLACK_S)
    client.finish()
    with capsys.disabled():
        print(f"\nno names, 1/{SCALE:g} of the times: gone {gone_s:.1f} s, stop {stop_s:.1f} s, back {back_s:.1f} s")


LINK_CONFIG = f"""
[[executor]]
name = "far"
kind = "command"
[[link]]
name = "cable"
url = "redis://{FAR}:%d"
unsigned = true
timeout_s = 1.0
retry_base_s = 600.0
retry_max_s = 600.0
[[remote]]
name = "gpu"
link = "cable"
executors = ["far"]
"""
LONG_MS = 60_000


@pytest.fixture
def broker(cable: Cable, tmp_path: Path) -> Iterator[int]:
    """A broker at the far end of the cable; gives its port."""
    port = free_port()
    argv = [*cable.far, *redis_argv(str(tmp_path), port), "--bind", FAR, "--protected-mode", "no"]
    with subprocess.Popen(argv, cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
        yield port
        process.kill()


def test_a_broker_is_dialled_when_the_cable_is_back(
    home: Home, cable: Cable, broker: int, capsys: pytest.CaptureFixture[str]
) -> None:
    home.through = cable.near
    home.configure(LINK_CONFIG % broker)
    cable.pull()
    home.start()

    def waits() -> bool:
        gates = home.client.status()["gates"]
        return bool(gates) and (gates[0]["wake_at_ms"] or 0) > now_ms() + LONG_MS

    until(waits, "a long wait for the next dial")
    began_s = time.monotonic()
    cable.plug()
    until(lambda: not home.client.status()["gates"], "the link to be up")
    with capsys.disabled():
        print(f"\nthe broker is back {time.monotonic() - began_s:.1f} s after the cable")
