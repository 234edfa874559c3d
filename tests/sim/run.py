"""One run: a seed, its weather, clients, a daemon that dies and comes back, and what must hold at the end."""

import random
import shutil
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import trio
import trio.testing

from omnid.executor.interface import Executor
from omnid.model import Result
from omnid.settings import Config
from omnid.store.interface import COLLECTIONS
from omnid.store.queries import queries
from omnid.store.replay import Replica, apply_page, compare_page
from omnid.store.sqlite import SqliteReader
from tests.sim import weather
from tests.sim.chance import DAY_MS, SimClock, Trace, seed_scheduler
from tests.sim.clients import RESOLVE, Client
from tests.sim.daemon import FINISHED_MAX, SLOTS_MAX, SimDaemon, settings
from tests.sim.model import ENDED, Limits, Model, Row
from tests.sim.world import EXECUTORS, SimExecutor, World

CLIENTS = 3
ACTIONS_MAX = 13
END_S_MAX = 3 * 3600.0
STEPS_MAX = 100_000
LOOK_S = 5.0
QUIET_S = 40.0
"""How long after a fault, a start or a jump of the clock a wait may still be owed to it."""
OVERSLEEP_MS = 31_000
"""The longest nap of the timer, and a second."""
SHOWN = {
    "task": (
        "state",
        "attempt",
        "executor",
        "priority",
        "lane",
        "reason",
        "wake_at_ms",
        "paused",
        "approval",
        "cancel",
    ),
    "attempt": ("task_id", "number", "executor", "outcome", "ended_at_ms", "idempotent"),
    "gate": ("cause", "subject", "closed_at_ms", "wake_at_ms", "failures"),
}


class Outcome(NamedTuple):
    """What a run came to."""

    seed: int
    steps: int
    tasks: int
    crashes: int
    digest: str
    violations: list[str]
    trace: list[str]


class Sim(trio.abc.Instrument):
    """Everything of one run that outlives the daemon."""

    def __init__(self, seed: int, directory: Path, *, keep_trace: bool) -> None:
        self.seed = seed
        self.chance = random.Random(f"{seed}/world")
        self.weather = weather.draw(random.Random(f"{seed}/weather"))
        self.clock = SimClock(random.Random(f"{seed}/clock"))
        self.trace = Trace(keep=keep_trace)
        self.world = World(self)
        self.steps = 0
        self.crashes = 0
        self.violations: list[str] = []
        config = settings(directory)
        limits = Limits(
            SLOTS_MAX,
            {name: profile.concurrency for name, profile in EXECUTORS.items()},
            {name: profile.idempotent for name, profile in EXECUTORS.items()},
            config.agents.allow,
            FINISHED_MAX,
        )
        self.model = Model(limits, self.fail, self.trace)
        self._path = directory / "journal.db"
        self._scope = trio.CancelScope()
        self._life: SimDaemon | None = None
        self._daemon: SimDaemon | None = None
        """The same, once it takes requests."""
        self._up = trio.Event()
        self._kill_at = 0

    # What the parts ask for.

    def settings(self, directory: Path) -> Config:
        """Gives the config of a daemon."""
        return settings(directory)

    def executors(self, daemon: SimDaemon) -> dict[str, Executor]:
        """Makes the executors of a daemon."""
        return {name: SimExecutor(name, daemon) for name in EXECUTORS}

    def fail(self, what: str, error: BaseException | None = None) -> None:
        """A promise is broken: the run ends."""
        if not self.violations:
            self.trace(f"VIOLATION {what}")
            self.violations.append(what + ("\n" + "".join(traceback.format_exception(error)) if error else ""))
            self._scope.cancel()
            if self._life is not None:
                self._life.kill("at the end")

    def name(self, attempt_id: str) -> str:
        """Gives an attempt's name in the trace."""
        attempt = self.model.attempts.get(attempt_id)
        return f"{self.model.name(attempt['task_id'])}#{attempt['number']}" if attempt else f"attempt {attempt_id[-6:]}"

    async def daemon_up(self) -> SimDaemon:
        """Gives the daemon, as soon as one takes requests."""
        while self._daemon is None or self._daemon.dead:
            await self._up.wait()
            await trio.lowlevel.checkpoint()
        return self._daemon

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Counts the scheduler's steps: the daemon can be killed at each of them, so at any of its awaits."""
        self.steps += 1
        if self.steps > STEPS_MAX:
            self.fail(f"more than {STEPS_MAX} steps: something spins")
        if self.steps == self._kill_at and self._life is not None:
            self._life.kill("between two awaits")

    # The run.

    async def main(self) -> None:
        with self._scope:
            async with trio.open_nursery() as nursery:
                self.world_nursery = nursery
                nursery.start_soon(self._keep_daemon)
                nursery.start_soon(self._watch)
                nursery.start_soon(self._disturb)
                people = [Client(self, number) for number in range(CLIENTS)]
                async with trio.open_nursery() as clients:
                    for client in people:
                        clients.start_soon(client.run, client.chance.randrange(3, ACTIONS_MAX))
                await trio.sleep(self.chance.uniform(0, 60))
                self._calm_down()
                await self._until("rests", lambda: not self.model.unfinished())
                await self._answer_all(people[0])
                await self._until("ends", self._all_ended)
                await self._finish()
                nursery.cancel_scope.cancel()

    async def _keep_daemon(self) -> None:
        while True:
            daemon = self._life = SimDaemon(self, self._path)
            self._compare(daemon)
            self.trace(f"start {daemon.store.incarnation}")
            if self.weather.kill_steps:
                self._kill_at = self.steps + 1 + int(self.chance.expovariate(1 / self.weather.kill_steps))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._announce, daemon, nursery.cancel_scope)
                await daemon.live()
                nursery.cancel_scope.cancel()
            self._daemon = None
            if self._up.is_set():
                self._up = trio.Event()
            await trio.sleep(self.chance.choice((0, 0.1, self.chance.uniform(0, 30))))

    async def _announce(self, daemon: SimDaemon, _scope: trio.CancelScope) -> None:
        await daemon.ready.wait()
        self._daemon = daemon
        self._up.set()

    async def _disturb(self) -> None:
        """Sets the clock, and lets a link bring old results again."""
        while True:
            await trio.sleep(self.chance.expovariate(1 / 5))
            if self.chance.random() < self.weather.clock_jumps / 5:
                by_ms = self.chance.choice((-DAY_MS, DAY_MS, self.chance.randrange(-60_000, 60_000)))
                self.trace(f"the clock jumps by {by_ms} ms")
                self.clock.jump(by_ms)
            if self.world.given and self.chance.random() < self.weather.repeats:
                self._repeat(self.chance.choice(self.world.given))

    def _repeat(self, result: Result) -> None:
        """Brings a result again that has been taken, or that nobody waits for any more."""
        job = self.world.jobs.get(result.attempt_id)
        heard = job is not None and not job.settled and self._is_heard(result.attempt_id)
        if self._daemon is not None and not self._daemon.dead and not heard:
            self._daemon.hear_again(result)

    def _is_heard(self, attempt_id: str) -> bool:
        """Tells whether somebody still waits for the attempt's first answer."""
        return self._daemon is not None and attempt_id in self._daemon.context.running

    async def _watch(self) -> None:
        """Whenever nothing moves: looks at what should have."""
        while True:
            await trio.sleep(self.chance.uniform(1, 2 * LOOK_S))
            await trio.testing.wait_all_tasks_blocked()
            daemon = self._daemon
            if daemon is None or daemon.dead or daemon.store.busy:
                continue
            self._compare(daemon)
            held = set(daemon.context.running)
            still = {a["id"] for a in self.model.attempts.values() if a.get("ended_at_ms") is None}
            now_s, now_ms = trio.current_time(), self.clock.wall_ms()
            since_s = max(daemon.store.faulty_s, daemon.started_s, self.clock.set_s)
            if now_s - since_s < QUIET_S:
                continue
            if held != still:
                self.fail(f"open are {sorted(map(self.name, still))}, looked after {sorted(map(self.name, held))}")
            self.model.check_nothing_idles(now_ms)
            self.model.check_nothing_oversleeps(now_ms, OVERSLEEP_MS)

    def _compare(self, daemon: SimDaemon) -> None:
        """Holds the tables against the model."""
        tables: dict[str, list[Row]] = {}
        for name, columns in SHOWN.items():
            rows = daemon.store.connection.execute(f"SELECT id, {', '.join(columns)} FROM {name}")
            tables[name] = [dict(zip(("id", *columns), row, strict=True)) for row in rows]
        self.model.compare(tables)

    # The end.

    def _calm_down(self) -> None:
        """Ends all faults; the clock is put right."""
        self.trace("faults off")
        self.weather = weather.CALM
        self._kill_at = 0
        self.world.down_until_s.clear()
        self.world.limited_until_s.clear()
        self.clock.put_right()

    async def _until(self, what: str, reached: Callable[[], bool]) -> None:
        """Lets time run until all is well, for a bounded time."""
        end_s = trio.current_time() + END_S_MAX
        while not reached():
            if trio.current_time() > end_s:
                left = [t for t in self.model.tasks.values() if t["state"] not in ENDED]
                shown = [(self.model.name(t["id"]), t["state"], t.get("reason"), t.get("wake_at_ms")) for t in left]
                self.fail(f"not everything {what}: {shown}")
            await trio.sleep(LOOK_S)

    def _all_ended(self) -> bool:
        return all(task["state"] in ENDED for task in self.model.tasks.values())

    async def _answer_all(self, person: Client) -> None:
        """A person opens every pause and answers every question, until nothing is left to answer."""
        for gate in list(self.model.gates.values()):
            if gate["cause"] == "paused":
                await person.gate(gate["subject"], close=False)
        for _ in range(20):
            for id, task in list(self.model.tasks.items()):
                if task["state"] == "uncertain":
                    await person.control(id, person.chance.choice(RESOLVE))
                elif task.get("reason") == "paused":
                    await person.control(id, "resume")
                elif task.get("reason") == "approval":
                    await person.control(id, person.chance.choice(("approve", "deny")))
            if self._all_ended():
                return
            await trio.sleep(LOOK_S)

    async def _finish(self) -> None:
        """The log alone gives the tables, and what is told to be done was done."""
        await trio.sleep(1)
        daemon = await self.daemon_up()
        self._compare(daemon)
        self.model.check_effects()
        reader = SqliteReader(daemon.store.connection)
        replica = Replica()
        try:
            until = reader.all("last_seq")[0][0]
            while apply_page(reader, replica, until):
                pass
            replica.seq = until
            for name in COLLECTIONS:
                found, _ = compare_page(reader, replica, name, 0)
                if found:
                    self.fail(f"the log and the tables differ: {found}")
        finally:
            replica.close()


def run(seed: int, *, keep_trace: bool = False) -> Outcome:
    """Runs one seed; everything in it follows from the seed."""
    return run_with(Sim, seed, keep_trace=keep_trace)


def run_with(kind: type[Sim], seed: int, *, keep_trace: bool) -> Outcome:
    """Runs one seed of a kind of simulation."""
    queries()
    seed_scheduler(seed)
    memory = Path("/dev/shm")
    directory = Path(tempfile.mkdtemp(prefix="omnid-sim-", dir=memory if memory.is_dir() else None))
    sim: Any = None

    async def main() -> None:
        nonlocal sim
        sim = kind(seed, directory, keep_trace=keep_trace)
        trio.lowlevel.add_instrument(sim)
        await sim.main()

    try:
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        shutil.rmtree(directory)
    return Outcome(
        seed, sim.steps, len(sim.model.tasks), sim.crashes, sim.trace.digest, sim.violations, sim.trace.lines
    )
