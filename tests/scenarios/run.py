"""One run: 2,000 commands of two clients through one broker to one runner with one slot, and faults among them."""

import contextlib
import random
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

from omnid.ctl.demo_broker import free_port
from omnid.ctl.demo_links_count import Count, Ledgers
from omnid.ctl.demo_ways import HttpWay, SocketWay
from omnid.errors import OmnidError
from tests.contract.links import Kit
from tests.e2e.harness import FAKES, LOOK_S, Home
from tests.e2e.runners import Host
from tests.fakes.moved_clock import move
from tests.fakes.proxy import Proxy, proxied
from tests.fakes.web import TOKEN
from tests.scenarios.clients import Agent
from tests.scenarios.faults import DAY_MS, Fault

OPEN_MIN, OPEN_MAX, OPEN_SHARE = 3, 50, 0.05
"""How many commands of each client wait or run at once, and which share of all at most."""
MORE = 50
"""How many more it submits in each absence of the broker."""
STALL_S = 60.0
"""How long nothing may be done, outside a fault."""
LINK = """
[[executor]]
name = "afar"
kind = "command"
[[link]]
name = "cable"
url = "{scheme}://127.0.0.1:{port}"
user = "{user}"
password = "file:{root}/password"
timeout_s = 1.0
retry_base_s = 0.1
retry_max_s = 1.0
ping_every_s = 0.5
"""
DAEMON = """
[daemon]
name = "{daemon}"
[agents]
allow = ["afar"]
[http]
listen = "127.0.0.1:{http_port}"
[[origin]]
name = "by-http"
token = "file:{root}/token"
[[remote]]
name = "{runner}"
link = "cable"
executors = ["afar"]
"""
RUNNER = """
[daemon]
slots_max = 1
[runner]
link = "cable"
name = "{runner}"
executors = ["afar"]
beat_s = 0.5
[retention]
finished_days = {kept_days}
"""
KEPT_DAYS = 0.1
"""For how long the runner's ledger remembers what has ended: for less than its clock jumps."""

H = TypeVar("H", bound=Home)


class Outcome(NamedTuple):
    """What a run adds up to."""

    counted: Count
    submit_ms: float
    """Median of the submits while the broker was there; NaN where there were none."""
    away_ms: float
    """Of those while it was away."""
    batch_max: int
    """How many results a client was given at once at most."""


class World:
    """The parts of a run: a broker at the end of a cable, a daemon, a runner, and two clients."""

    def __init__(self, root: Path, kit: Kit, portal: BlockingPortal, stack: contextlib.ExitStack) -> None:
        self.broker = kit.broker
        self._portal = portal
        self._proxy: Proxy = stack.enter_context(portal.wrap_async_context_manager(proxied(kit.broker.port)))
        self._clocks = root / "daemon's clock", root / "runner's clock"
        self.home, self.host = self._place(root / "d", Home), self._place(root / "r", Host)
        stack.callback(self.home.close)
        stack.callback(self.host.close)
        self.move_clocks(0, 0)
        for home, clock in zip((self.home, self.host), self._clocks, strict=True):
            home.through = (sys.executable, str(FAKES / "moved_clock.py"), str(clock))
        self.http_port = free_port()
        (self.home.root / "token").write_text(TOKEN)
        self._write_password()
        names = {"daemon": kit.daemon_name, "runner": kit.runner_name, "kept_days": KEPT_DAYS}
        for home, config in ((self.home, DAEMON), (self.host, RUNNER)):
            more = {"scheme": self.broker.scheme, "user": self.broker.user, "port": self._proxy.port, "root": home.root}
            home.configure((config + LINK).format(**names, **more, http_port=self.http_port))

    def _place(self, root: Path, make: Callable[..., H]) -> H:
        root.mkdir(mode=0o700, parents=True)
        return make(root, covered=False)

    def _write_password(self) -> None:
        for home in (self.home, self.host):
            (home.root / "password").write_text(self.broker.password)

    def move_clocks(self, *off_ms: int) -> None:
        """Moves the clocks of the daemon's host and of the runner's."""
        for clock, ms in zip(self._clocks, off_ms, strict=True):
            move(clock, ms)

    @contextlib.contextmanager
    def away(self, how: str) -> Iterator[None]:
        """Takes the broker away meanwhile."""
        broker, proxy = self.broker, self._proxy
        match how:
            case "killed":
                go, come = broker.kill, broker.start
            case "frozen":
                go, come = broker.freeze, broker.thaw
            case "cut off":
                go, come = lambda: self._portal.call(proxy.pull), lambda: self._portal.call(proxy.plug)
            case "full":
                go, come = broker.fill, broker.clear
            case _:
                go, come = lambda: broker.set_password(f"{broker.password}x"), self._write_password
        go()
        try:
            yield
        finally:
            come()


class Run:
    """One run, from its start to its count."""

    def __init__(self, world: World, agents: Sequence[Agent], faults: Sequence[Fault], chance: random.Random) -> None:
        self._world = world
        self._agents = agents
        self._faults = faults
        self._chance = chance
        self._ahead_ms = 0
        """By how much the clock of the runner's host was ahead at most."""
        self._forgets = False
        """Whether the runner's ledger has to have forgotten something."""

    def go(self, commands: int, tell: Callable[[str], None]) -> Outcome:
        """Starts everything, lets all faults happen, each when its share of the commands is done, and counts."""
        world = self._world
        world.home.start()
        world.host.run()
        for agent in self._agents:
            agent.start()
        try:
            for number, fault in enumerate(self._faults, 1):
                self._wait(commands * number // (len(self._faults) + 1))
                tell(f"  {self._done():>5} done: {fault}")
                self._suffer(fault)
            self._wait(commands)
            self._until(lambda: all(agent.has_all for agent in self._agents), "all results to be read")
        finally:
            for agent in self._agents:
                agent.end()
        wrong = [one for one in world.home.ctl("doctor", "--json").json()["findings"] if not one["ok"]]
        # Of the last fault nobody may have needed the end, and a busy machine may answer a ping too late.
        assert not [one for one in wrong if one["name"] != "link cable"], wrong
        return self._outcome()

    def _suffer(self, fault: Fault) -> None:
        world, agents = self._world, [self._agents[number] for number in fault.clients]
        alone = bool(agents) and not fault.broker and not fault.daemon
        if alone:
            self._until(lambda: all(one.open > 1 or one.has_submitted_all for one in agents), "clients with open tasks")
        for agent in agents:
            agent.go()
        if fault.clock_ms or fault.runner_clock_ms:
            world.move_clocks(fault.clock_ms, fault.runner_clock_ms)
        share = self._chance.random()
        with contextlib.ExitStack() as back:
            if fault.broker:
                back.enter_context(world.away(fault.broker))
                for agent in self._agents:
                    agent.broker_gone(MORE)
            time.sleep(share * fault.lasts_s)
            self._kill(fault)
            time.sleep((1 - share) * fault.lasts_s)
            if fault.early:
                self._start(fault)
            for agent in self._agents:
                agent.broker_back()
        if not fault.early:
            self._start(fault)
        if alone:
            self._until(lambda: all(self._waiting(one) is not None for one in agents), "the work of those who are away")
        for agent in agents:
            agent.come(self._waiting(agent) if alone else None)

    def _waiting(self, agent: Agent) -> int | None:
        """Gives how many results wait for an agent that is away; None while any of its tasks goes on."""
        with contextlib.closing(sqlite3.connect(self._world.home.state / "journal.db")) as database:
            found = database.execute("SELECT state FROM task WHERE key GLOB ?", (f"{agent.name}-*",)).fetchall()
        ended = agent.is_away and all(state == "completed" for (state,) in found)
        return len(found) - agent.has_read if ended else None

    def _kill(self, fault: Fault) -> None:
        if fault.daemon:
            self._world.home.kill()
        if fault.runner:
            self._world.host.end(signal.SIGKILL)

    def _start(self, fault: Fault) -> None:
        if fault.daemon:
            self._world.home.start()
        if fault.runner:
            self._world.host.run()
            self._forgets |= fault.runner_clock_ms > self._ahead_ms + KEPT_DAYS * DAY_MS
        self._ahead_ms = max(self._ahead_ms, fault.runner_clock_ms)

    def _done(self) -> int:
        return len(self._keys("done"))

    def _keys(self, ledger: str) -> list[str]:
        return [line.split(" ")[0] for line in self._world.home.lines(ledger)]

    def _wait(self, done: int) -> None:
        self._until(lambda: self._done() >= done, f"{done} commands to be done")

    def _until(self, holds: Callable[[], bool], what: str) -> None:
        """Waits as long as something goes on."""
        before, until_s = -1, 0.0
        while not holds():
            for agent in self._agents:
                if agent.error is not None:
                    raise agent.error
            now, now_s = self._done() + sum(agent.open for agent in self._agents), time.monotonic()
            if now != before:
                before, until_s = now, now_s + STALL_S
            assert now_s < until_s, f"nothing goes on; waits for {what}: {self._state()}"
            time.sleep(5 * LOOK_S)

    def _state(self) -> str:
        said = [f"{self._done()} done", f"runner: {self._world.host.how_it_is()}"]
        try:
            waiting = self._world.home.client.list(states=["idle", "waiting", "executing", "uncertain"], limit=3)
            said += [self._world.home.client.why(task["name"])["text"] for task in waiting["tasks"]]
            said.append(self._world.home.ctl("links").out)
        except OmnidError as error:
            said.append(f"the daemon doesn't answer: {error}")
        return "\n".join(said)

    def _outcome(self) -> Outcome:
        with contextlib.closing(sqlite3.connect(self._world.home.state / "journal.db")) as database:
            tasks = database.execute("SELECT id, key, priority FROM task ORDER BY ord").fetchall()
            attempts = database.execute("SELECT task_id FROM attempt ORDER BY ord").fetchall()
        with contextlib.closing(sqlite3.connect(self._world.host.state / "runner" / "runner.db")) as database:
            ((known,),) = database.execute("SELECT count(*) FROM attempt").fetchall()
        assert known < len(attempts) or not self._forgets, f"the ledger still knows all {known}"
        key_of = {id: key for id, key, _ in tasks}
        acknowledged = {key for agent in self._agents for key in agent.submitted}
        assert acknowledged == set(key_of.values())
        count = Count.of(
            Ledgers(
                [[key for _, key, of in tasks if of == priority] for priority in {priority for *_, priority in tasks}],
                [key_of[id] for (id,) in attempts],
                self._keys("started"),
                self._keys("done"),
                [agent.read for agent in self._agents],
            )
        )
        took = [took for agent in self._agents for took in agent.took]
        up, away = ([1000 * one.s for one in took if one.broker_away == gone] for gone in (False, True))
        return Outcome(
            count,
            median(up or [float("nan")]),
            median(away or [float("nan")]),
            max(batch for agent in self._agents for batch in agent.batches),
        )


def run(
    kit: Kit, root: Path, faults: Sequence[Fault], seed: int, commands: int, tell: Callable[[str], None]
) -> Outcome:
    """Lets the faults happen, in an empty directory with a short path; leaves no process of it."""
    with contextlib.ExitStack() as stack:
        world = World(root, kit, stack.enter_context(start_blocking_portal()), stack)
        ways = (SocketWay(str(world.home.socket), "by-socket"), HttpWay(world.http_port, TOKEN))
        open_max = max(OPEN_MIN, min(OPEN_MAX, round(OPEN_SHARE * commands)))
        agents = [
            Agent(name, way, commands // 2, random.Random(f"{seed} {name}"), str(world.home.work), open_max)
            for name, way in zip(("socket", "http"), ways, strict=True)
        ]
        made = Run(world, agents, faults, random.Random(seed))
        outcome = made.go(commands // 2 * 2, tell)
        assert world.host.end() == 0
        world.home.stop()
        world.home.assert_nothing_left()
        world.host.assert_nothing_left()
        return outcome
