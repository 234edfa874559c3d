"""The world behind the executors: what attempts do to it stays, whatever becomes of the daemon."""

import math
from typing import TYPE_CHECKING, NamedTuple

import trio

from omnid.errors import Rejected, Retryable
from omnid.executor.interface import Found, Ports
from omnid.model import Command, Outcome, Park, Problem, Result, Work

if TYPE_CHECKING:
    from tests.sim.daemon import SimDaemon
    from tests.sim.run import Sim


class Profile(NamedTuple):
    """A kind of executor."""

    idempotent: bool
    supervised: bool
    """Whether an attempt goes on while the daemon is dead."""
    concurrency: int | None


EXECUTORS = {
    "safe": Profile(idempotent=True, supervised=False, concurrency=2),
    "once": Profile(idempotent=False, supervised=False, concurrency=2),
    "kept": Profile(idempotent=False, supervised=True, concurrency=None),
}
LOOK = "look"
"""Work that only reads: the executor notes that it may be repeated before it begins."""


class Job:
    """One attempt, as the world sees it."""

    def __init__(self, command: Command, profile: Profile, length_s: float, end: str) -> None:
        self.command = command
        self.profile = profile
        self.length_s = length_s
        self.end = end
        """`success`, `failure`, `rejected`, `raise` (it breaks off) or `hang` (it heeds no timeout)."""
        self.harmless = profile.idempotent
        self.began = False
        self.effect = False
        self.lost = False
        """Its supervisor was ended: nobody will say what became of it."""
        self.settled = False
        self.result: Result | None = None
        self.stop = trio.Event()
        self.done = trio.Event()


class World:
    """All attempts that ever began, and what they did."""

    def __init__(self, sim: "Sim") -> None:
        self.sim = sim
        self.jobs: dict[str, Job] = {}
        self.given: list[Result] = []
        """Results that executors gave; a link may bring them again."""
        self.down_until_s: dict[str, float] = {}
        self.limited_until_s: dict[str, float] = {}

    def is_down(self, name: str) -> bool:
        return trio.current_time() < self.down_until_s.get(name, 0.0)

    def job(self, command: Command, profile: Profile) -> Job:
        """Gives the attempt's job, and draws what will become of it where it is new."""
        job = self.jobs.get(command.attempt_id)
        if job is None:
            chance, weather = self.sim.chance, self.sim.weather
            length_s = chance.expovariate(1 / 8)
            end = "success"
            for fate, odds in (("hang", weather.hangs), ("raise", weather.raises), ("rejected", weather.rejects)):
                if chance.random() < odds:
                    end = fate
            if chance.random() < weather.fails:
                end = "failure"
            if end == "hang":
                length_s += command.timeout_s + chance.uniform(0, 120)
            job = self.jobs[command.attempt_id] = Job(command, profile, length_s, end)
        return job

    async def work(self, job: Job) -> Result:
        """Does an attempt's work; raises RuntimeError where the executor breaks off."""
        chance = self.sim.chance
        job.began = True
        parked = self._park(job)
        if parked is not None:
            return parked
        limit_s = math.inf if job.end == "hang" else job.command.timeout_s
        with trio.move_on_after(min(job.length_s, limit_s)):
            await job.stop.wait()
        if job.lost:
            return self.answer(job, "lost")
        if job.stop.is_set():
            return self.answer(job, "cancelled")
        if job.length_s > limit_s:
            return self.answer(job, "timeout")
        if job.end == "raise":
            if chance.random() < 0.5:
                self.take_effect(job)
            raise RuntimeError("it broke off")
        outcome: Outcome = "success"
        if job.end in ("failure", "rejected"):
            outcome = "failure" if job.end == "failure" else "rejected"
        else:
            self.take_effect(job)
        if chance.random() < 0.3:
            await trio.sleep(chance.uniform(0, 3))
        return self.answer(job, outcome)

    def _park(self, job: Job) -> Result | None:
        """Parks an attempt that a limit stops before it does anything."""
        chance, now_s = self.sim.chance, trio.current_time()
        name = job.command.executor
        if chance.random() < self.sim.weather.limits:
            self.limited_until_s[name] = now_s + chance.uniform(1, 90)
        left_s = self.limited_until_s.get(name, 0.0) - now_s
        if left_s <= 0:
            return None
        told = chance.random() < 0.9
        wake_at_ms = self.sim.clock.wall_ms() + round(left_s * 1000 * chance.choice((0, 0.5, 1, 1.2)))
        return self.answer(job, "parked", Park("rate_limit", wake_at_ms if told else None))

    async def supervise(self, job: Job) -> None:
        """Does the work beside the daemon; it may lose its supervisor at any moment."""
        sim = self.sim
        if sim.chance.random() < sim.weather.supervisor_dies:
            sim.world_nursery.start_soon(self._lose, job, sim.chance.uniform(0, job.length_s + 2))
        try:
            job.result = await self.work(job)
        except RuntimeError:
            job.result = self.answer(job, "failure" if job.profile.idempotent else "lost")
        job.done.set()

    async def _lose(self, job: Job, after_s: float) -> None:
        await trio.sleep(after_s)
        if not job.done.is_set() and not job.settled:
            self.sim.trace(f"supervisor of {self.sim.name(job.command.attempt_id)} dies")
            job.lost = True
            job.stop.set()

    def cut(self, job: Job, *, with_daemon: bool) -> None:
        """Cuts an attempt that nobody waits for any more: what was on its way may still arrive, or arrive later."""
        fate = self.sim.chance.random()
        if job.effect or not job.began or job.end not in ("success", "hang", "raise") or fate < 0.5:
            return
        if with_daemon or fate < 0.75:
            self.take_effect(job)
        else:
            self.sim.world_nursery.start_soon(self._finish_late, job)

    async def _finish_late(self, job: Job) -> None:
        await trio.sleep(self.sim.chance.uniform(0, 60))
        self.take_effect(job)
        self.answer(job, "success")

    def take_effect(self, job: Job) -> None:
        job.effect = True
        self.sim.trace(f"effect of {self.sim.name(job.command.attempt_id)}")
        self.sim.model.effect(job.command.task_id, job.command.attempt_id, harmless=job.harmless)

    def answer(self, job: Job, outcome: Outcome, park: Park | None = None) -> Result:
        command = job.command
        problem = None
        if outcome != "success":
            problem = Problem.make("exit_code", code=1, detail=outcome, task=command.name)
        result = Result(
            command.attempt_id, command.task_id, command.number, outcome, problem=problem, output="said", park=park
        )
        self.given.append(result)
        return result


class SimExecutor:
    """See `executor.interface.Executor`; made anew by each daemon, over the same world."""

    kind = "sim"

    def __init__(self, name: str, daemon: "SimDaemon") -> None:
        self.name = name
        self.profile = EXECUTORS[name]
        self.concurrency = self.profile.concurrency
        self.idempotent = self.profile.idempotent
        self.takes_prompts = False
        self._daemon = daemon
        self._sim = daemon.sim
        self._world = daemon.sim.world

    def accepts(self, work: Work) -> None:
        if not work.argv:
            raise Rejected("nothing_to_do", detail="no program")

    def exact(self, work: Work) -> Work:
        return work

    async def probe(self) -> None:
        if self._sim.chance.random() < self._sim.weather.probe_hangs:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        self._raise_if_down()

    def _raise_if_down(self) -> None:
        if self._world.is_down(self.name):
            raise Retryable("executor_down", executor=self.name, detail="it is away")

    async def run(self, command: Command, ports: Ports) -> Result:
        sim, world = self._sim, self._world
        if sim.chance.random() < sim.weather.executor_down:
            world.down_until_s[self.name] = trio.current_time() + sim.chance.uniform(0, 30)
        await trio.lowlevel.checkpoint()
        self._raise_if_down()
        job = world.job(command, self.profile)
        if command.work.argv and command.work.argv[0] == LOOK:
            await ports.note(command.attempt_id, "idempotent", True)
            job.harmless = True
        self._expect_unbegun(job)
        if self.profile.supervised:
            job.began = True
            sim.world_nursery.start_soon(world.supervise, job)
            return await self.adopt(command, ports)
        try:
            return await world.work(job)
        except trio.Cancelled:
            world.cut(job, with_daemon=self._daemon.dead)
            raise

    def _expect_unbegun(self, job: Job) -> None:
        if job.began and not job.harmless:
            self._sim.fail(f"attempt {self._sim.name(job.command.attempt_id)} was run twice")

    async def recover(self, command: Command, ports: Ports) -> Found:
        sim = self._sim
        job = self._world.jobs.get(command.attempt_id)
        await ports.notes(command.attempt_id, "idempotent")
        if sim.chance.random() < 0.3:
            await trio.sleep(sim.chance.uniform(0, 5))
        if not self.profile.supervised:
            self._raise_if_down()
        if sim.chance.random() < sim.weather.raises / 2:
            raise RuntimeError("its spool can't be read")
        if job is None or not job.began:
            return Found.NEVER_RAN
        if job.settled:
            sim.fail(f"{sim.name(command.attempt_id)} was settled and is recovered")
        return Found.RUNNING if self.profile.supervised and not job.lost else Found.LOST

    async def adopt(self, command: Command, ports: Ports) -> Result:
        job = self._world.jobs[command.attempt_id]
        await job.done.wait()
        if job.result is None:
            raise AssertionError("a job that is done has a result")
        return job.result

    async def cancel(self, attempt_id: str) -> None:
        job = self._world.jobs.get(attempt_id)
        await trio.lowlevel.checkpoint()
        if job is not None and not self._daemon.dead and self._sim.chance.random() >= self._sim.weather.deaf_to_cancel:
            job.stop.set()

    async def settled(self, attempt_id: str) -> None:
        job = self._world.jobs.get(attempt_id)
        if job is not None and not self._daemon.dead:
            job.settled = True
            self._sim.model.settled(attempt_id)

    async def aclose(self) -> None:
        """Nothing is kept open."""


class SimSpool:
    """See `flow.context.Spool`: the attempts whose files lie in the world."""

    def __init__(self, sim: "Sim") -> None:
        self._sim = sim
        self._world = sim.world

    async def attempts(self) -> list[str]:
        await trio.lowlevel.checkpoint()
        return [id for id, job in self._world.jobs.items() if job.profile.supervised]

    async def forget_control_files(self, attempt_id: str) -> None:
        await trio.lowlevel.checkpoint()
        self._sim.model.settled(attempt_id)

    async def remove(self, attempt_id: str) -> None:
        await trio.lowlevel.checkpoint()
        self._world.jobs.pop(attempt_id, None)

    async def shrink(self, total_bytes_max: int, keep: frozenset[str], before: str) -> list[str]:
        return []

    async def read(self, attempt_id: str, offset_bytes: int, bytes_max: int) -> bytes:
        return b""

    async def size_bytes(self, attempt_id: str) -> int:
        return 0

    async def excerpt(self, attempt_id: str, *, check: bool = False) -> str:
        return ""

    async def append_log(self, attempt_id: str, text: str) -> None:
        await trio.lowlevel.checkpoint()

    async def set_aside(self, attempt_id: str) -> None:
        """Sets aside what a deleted task left behind."""
        attempt = self._sim.model.attempts.get(attempt_id)
        if attempt is not None and attempt.get("ended_at_ms") is None:
            self._sim.fail(f"attempt {self._sim.name(attempt_id)} was set aside, and is open")
        self._world.jobs.pop(attempt_id, None)
