"""A broker, a daemon at one end of a link and runners that do nothing at the other, each a process of its own."""

import contextlib
import mmap
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Self

from bench.served import NAME, SLOT_BYTES
from bench.world import environ, real_daemon, request
from omnid import __version__
from omnid.ctl.demo_broker import BROKERS, Broker
from omnid.link.message import Codec
from omnid.link.redis import stream_of
from omnid.model import Heartbeat

HERE = Path(__file__).parent.parent
END_S = 30.0
STALL_S = 120.0
RUNNER_SLOTS, WINDOW_MAX = 64, 256
TIMEOUT_S, PING_EVERY_S = 1.0, 0.5
_CONFIG = """
[[executor]]
name = "{executor}"
kind = "command"
[runner]
link = "broker"
executors = ["{executor}"]
[[link]]
name = "broker"
url = "{scheme}://127.0.0.1:{port}"
user = "{user}"
password = "file:{directory}/password"
timeout_s = {timeout_s}
retry_base_s = 0.05
retry_max_s = 0.2
ping_every_s = {ping_every_s}
"""
_REMOTE = """
[[remote]]
name = "{name}"
link = "broker"
executors = ["{executor}"]
window_max = {window_max}
"""


class Fleet:
    """A context manager; the broker goes on where it is another's."""

    def __init__(
        self,
        directory: Path,
        broker: Broker,
        runners: int,
        slots: int,
        *,
        runner_slots: int = RUNNER_SLOTS,
        window_max: int = WINDOW_MAX,
    ) -> None:
        """Takes the `slots` of the stamps, how many commands each runner runs at once, and how many it is sent.

        Without `runners` there is one in the config alone, for which `say_room` speaks.
        """
        self.broker = broker
        self._runner_slots = runner_slots
        self._names = [f"r{number}" for number in range(max(1, runners))]
        self._mute = not runners
        self._daemon = f"d-{directory.name}"
        directory.mkdir()
        (directory / "password").write_text(broker.password)
        config = _CONFIG.format(
            executor=NAME,
            scheme=broker.scheme,
            port=broker.port,
            user=broker.user,
            directory=directory,
            timeout_s=TIMEOUT_S,
            ping_every_s=PING_EVERY_S,
        )
        path = directory / "config.toml"
        remote = [_REMOTE.format(name=name, executor=NAME, window_max=window_max) for name in self._names]
        path.write_text(config + "".join(remote))
        stamps = directory / "stamps"
        stamps.write_bytes(bytes(slots * SLOT_BYTES))
        with open(stamps, "r+b") as file:
            self._stamps = mmap.mmap(file.fileno(), 0)
        self._directory = directory
        self._environ = {**environ(directory, daemon__name=self._daemon), "OMNID_CONFIG": str(path)}
        self._stack = contextlib.ExitStack()
        self._runners: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self.process, self.client = self._stack.enter_context(real_daemon(self._environ))
        self.socket_path = f"{self._environ['OMNID_STATE']}/omnid.sock"
        for name in () if self._mute else self._names:
            self._stack.enter_context(self._runner(name))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        self._stamps.close()

    @contextlib.contextmanager
    def _runner(self, name: str) -> Iterator[None]:
        """Runs a runner; its pipe ends it, even where the bench is killed."""
        settings = {"OMNID_STATE": str(self._directory / name), "OMNID_DAEMON__SLOTS_MAX": str(self._runner_slots)}
        argv = [sys.executable, "-m", "bench.served_runner", str(self._directory / "stamps"), name]
        with subprocess.Popen(argv, env={**self._environ, **settings}, cwd=HERE, stdin=subprocess.PIPE) as process:
            self._runners.append(process)
            try:
                yield
            finally:
                if process.stdin is not None:
                    process.stdin.close()
                try:
                    process.wait(END_S)
                except subprocess.TimeoutExpired:
                    process.kill()

    @property
    def pids(self) -> list[int]:
        """Of the runners."""
        return [process.pid for process in self._runners]

    def started_ns(self, slot: int) -> int:
        """Gives when the command of this slot was started at its runner; 0: not yet."""
        return struct.unpack_from("q", self._stamps, slot * SLOT_BYTES)[0]

    def states(self) -> dict[str, int]:
        """Counts the tasks by their states."""
        return self.client.call("status", {})["tasks"]

    def done(self) -> int:
        """Counts the tasks whose result is in the journal."""
        return self.states().get("completed", 0)

    def until_done(self, count: int, look_every_s: float = 0.02) -> float:
        """Waits until so many results are in the journal, and gives the time (monotonic)."""
        before, until_s = -1, 0.0
        while (now := self.done()) < count:
            now_s = time.monotonic()
            if now != before:
                before, until_s = now, now_s + STALL_S
            elif now_s > until_s:
                raise TimeoutError(f"{now} of {count} are done, and nothing goes on: {self.states()}")
            time.sleep(look_every_s)
        return time.monotonic()

    def say_room(self) -> None:
        """Says to the daemon, over a Redis, that the first runner has room for all; nobody takes what is sent to it."""
        codec = Codec("broker", self._names[0], {})
        most = 10**9
        there = Heartbeat(version=__version__, incarnation=1, slots=most, running=0, load=0.0, executors={NAME: most})
        (entry,) = codec.encode(self._daemon, [there])
        self.redis().xadd(stream_of(self._daemon), {"m": entry})

    def until_sent(self, count: int, look_every_s: float) -> float:
        """Waits until the broker, a Redis, has so many messages for the first runner; gives the time (monotonic)."""
        redis = self.redis()
        until_s = time.monotonic() + STALL_S
        while (sent := redis.xlen(stream_of(self._names[0]))) < count:
            if time.monotonic() > until_s:
                raise TimeoutError(f"{sent} of {count} were sent: {self.states()}")
            time.sleep(look_every_s)
        return time.monotonic()

    def redis(self) -> Any:
        """Connects to the broker, a Redis."""
        library: Any = import_module("redis")
        return library.Redis(port=self.broker.port, password=self.broker.password)

    def logged(self, event: str) -> int:
        """Counts an event in the daemon's log."""
        return (Path(self._environ["OMNID_STATE"]) / "omnid.log").read_text().count(f'"event":"{event}"')


@contextlib.contextmanager
def broker(kind: str, directory: Path) -> Iterator[Broker]:
    """Runs a broker that syncs what it confirms."""
    made = BROKERS[kind](str(directory), {"PATH": os.environ["PATH"]})
    missing = made.missing()
    if missing is not None:
        raise RuntimeError(missing)
    try:
        made.start()
        yield made
    finally:
        made.close()
        shutil.rmtree(directory, ignore_errors=True)


def message(slot: int) -> bytes:
    """Makes a submit whose command says when it was started, with an idempotency key."""
    return request("task.submit", {"argv": [str(slot)], "executor": NAME, "key": f"{slot:032x}"})


def batch(slots: range) -> bytes:
    """Makes a batch with one task for each slot."""
    tasks = [{"argv": [str(slot)], "executor": NAME, "key": f"{slot:032x}"} for slot in slots]
    return request("task.submit_batch", {"tasks": tasks})
