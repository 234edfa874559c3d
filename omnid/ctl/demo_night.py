"""The demo of the night: nine tasks of an agent that meets a limit, a power cut, a lid on money and a question."""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Self

from omnid.api.client import Client
from omnid.ctl import demo_agent, demo_night_tasks
from omnid.ctl.context import Context
from omnid.ctl.demo import Daemon, End, Place, Signals, Teller, night_zone, place, toml
from omnid.ctl.demo_night_tasks import ASKED, CAP_USD, JOBS, KILLED, RAISED_USD, RUN_USD
from omnid.states import TERMINAL

_STEP_S = 30.0
"""How long each step may take."""
_GIT_S = 30.0
_CENT_USD = 0.01
_CONFIG = """\
[daemon]
slots_max = 4
zone = {zone}
keep_awake = false
[notify]
to = []
[budget]
day_usd = {cap_usd}
[[executor]]
name = "claude-code"
kind = "command"
concurrency = 3
cost_max_usd = {run_usd}
"""


def run(context: Context, signals: Signals) -> End:
    """Tells it, in a place of its own."""
    with place(context.world.environ, NightPlace) as made:
        return _Story(Teller(context, signals), made).tell()


class NightPlace(Place):
    """A small repository, a daemon, and a program named ``claude`` that is a script with ledgers."""

    def __init__(self, root: str, environ: Mapping[str, str]) -> None:
        super().__init__(root, environ)
        self.agents = os.path.join(root, "agents")
        os.mkdir(self.agents)
        demo_night_tasks.lay_out(self.agents, self.work)
        programs = os.path.join(root, "bin")
        os.mkdir(programs)
        claude = os.path.join(programs, "claude")
        argv = [sys.executable, "-I", "-S", demo_agent.__file__, self.agents]
        with open(claude, "w", encoding="utf-8") as file:
            file.write(f'#!/bin/sh\nexec {shlex.join(argv)} "$@"\n')
        os.chmod(claude, 0o700)
        self.outside["PATH"] = f"{programs}{os.pathsep}{self.outside['PATH']}"
        self.has_git = _repository(self.work, self.outside)
        self.zone = night_zone(time.gmtime().tm_hour)
        self.daemon = Daemon(os.path.join(root, "daemon"), self._config(CAP_USD), self.outside)

    def _config(self, cap_usd: float) -> str:
        return _CONFIG.format(zone=toml(self.zone), cap_usd=cap_usd, run_usd=RUN_USD)

    def raise_lid(self, cap_usd: float) -> None:
        """Changes the day's cap, and has the daemon take it over."""
        self.daemon.configure(self._config(cap_usd))
        self.daemon.client.call("omnid/config.reload", {})

    def processes(self, name: str) -> tuple[int, int]:
        """Gives the pids of the agent that works for a task and of its supervisor; 0 where it hasn't begun."""
        agent, _, supervisor = "".join(self._lines(f"{name}.begun")).partition(" ")
        return int(agent or 0), int(supervisor or 0)

    def open_door(self) -> None:
        """Lets the held agents go on."""
        with open(os.path.join(self.agents, demo_agent.DOOR), "w", encoding="ascii"):
            pass

    def prompts(self) -> list[str]:
        """Gives the names of the sessions that got a first prompt, as often as they got one."""
        return self._lines(demo_agent.PROMPTS)

    def effects(self) -> list[str]:
        """Gives the names of the sessions whose work is done, in that order."""
        return self._lines(demo_agent.EFFECTS)

    def spent_usd(self) -> float:
        """Adds up what the agents say that they have cost."""
        return sum(float(line.rpartition(" ")[2]) for line in self._lines(demo_agent.COSTS))

    def _lines(self, ledger: str) -> list[str]:
        try:
            with open(os.path.join(self.agents, ledger), encoding="utf-8") as file:
                return file.read().splitlines()
        except FileNotFoundError:
            return []

    def close(self) -> None:
        """See `Place.close`: the daemon, then what its supervisors still hold."""
        self.daemon.kill()
        self.open_door()
        # An agent that waits for the limit of another one waits no longer.
        with open(os.path.join(self.agents, demo_agent.LIMIT), "a", encoding="ascii"):
            pass
        self.daemon.wait_for_supervisors()


class Count(NamedTuple):
    """What the ledgers of the agents add up to, and the journal's money beside theirs."""

    done: int
    lost: int
    repeated: int
    spent_usd: float
    cap_usd: float
    agrees: bool
    """Whether the journal has booked what the agents say, and no more counts against the cap than it allows."""

    @classmethod
    def of(
        cls,
        effects: Iterable[str],
        prompts: Iterable[str],
        names: Iterable[str],
        told_usd: float,
        today: Mapping[str, Any],
    ) -> Self:
        """Counts: each name belongs once among the effects and once among the first prompts, and nothing else does."""
        wanted, worked, prompted = set(names), Counter(effects), Counter(prompts)
        done = len(wanted & worked.keys())
        repeated = worked.total() - done + prompted.total() - len(wanted & prompted.keys())
        amounts, cap_usd = today["amounts"], today["limit_usd"]
        spent_usd = amounts["spent_usd"]
        counted_usd = spent_usd + amounts["reserved_usd"] + amounts["unknown_usd"]
        agrees = abs(told_usd - spent_usd) < _CENT_USD and counted_usd < cap_usd + _CENT_USD
        return cls(done, len(wanted) - done, repeated, spent_usd, cap_usd, agrees)

    def __str__(self) -> str:
        return (
            f"{self.done} done, {self.lost} lost, {self.repeated} repeated, "
            f"spent ${self.spent_usd:.2f} of ${self.cap_usd:.2f}"
        )

    @property
    def good(self) -> bool:
        """Whether nothing was lost, repeated or spent beyond the lid."""
        return self.lost == self.repeated == 0 and self.agrees


class _Story:
    """Six chapters."""

    def __init__(self, teller: Teller, made: NightPlace) -> None:
        self._teller = teller
        self._place = made
        self._client = made.daemon.client
        self._names: dict[str, str] = {}
        self._held = [job.name for job in JOBS if demo_agent.DOOR in job.waits_for]

    def tell(self) -> End:
        """Goes through all chapters."""
        self._introduce()
        pid = self._submit()
        self._limit()
        self._cut_power(pid)
        self._reach_lid()
        self._wake_up()
        self._take_over()
        ledgers = (self._place.effects(), self._place.prompts(), [job.name for job in JOBS], self._place.spent_usd())
        count = Count.of(*ledgers, self._client.status()["today"])
        if not count.agrees:
            self._teller.say(f"The journal's money doesn't agree with what the agents say: ${ledgers[3]:.2f}.")
        done = self._completed()
        if done != len(JOBS):
            self._teller.say(f"The journal has {done} tasks completed.")
        return End(count._asdict(), str(count), count.good and done == len(JOBS))

    def _introduce(self) -> None:
        self._teller.say(
            f"{len(JOBS)} tasks for an agent, and a night in which much goes wrong. The agent is a script that stands "
            "in for Claude Code: it takes its flags, keeps sessions, prints what the real one prints, and costs "
            f"nothing. omnid doesn't know the difference. All of it happens in {self._place.root}; your own "
            "omnid, if you have one, is not touched."
        )
        if not self._place.has_git:
            self._teller.say("")
            self._teller.say(
                "There is no git (2.38 or newer) here, so the agents work in one directory and not in worktrees of "
                "their own, and nothing is merged at the end."
            )

    def _submit(self) -> int:
        self._teller.chapter("1. The tasks are queued")
        pid = self._place.daemon.start()
        self._teller.signals.check()
        own = [job for job in JOBS if job.name != ASKED]
        answer = self._client.call("omnid/task.submit_batch", {"tasks": [job.submit(self._place.work) for job in own]})
        self._names = {job.name: task["name"] for job, task in zip(own, answer["tasks"], strict=True)}
        with contextlib.closing(Client(self._client.path)) as agent:
            agent.call("omnid/hello", {"role": "agent", "origin": "claude-code"})
            (job,) = (job for job in JOBS if job.name == ASKED)
            asked = agent.submit(**job.submit(self._place.work))["id"]
        self._names[ASKED] = self._client.get(asked)["task"]["name"]
        self._teller.say(
            f"They may run from 22:00 to 06:00 only, and where this daemon (pid {pid}) lives, in {self._place.zone}, "
            f"that is now. {len(own)} are yours; the last one was submitted by an agent, so it waits for your word."
        )
        self._teller.table([(self._names[job.name], job.name, job.prompt) for job in JOBS])
        return pid

    def _limit(self) -> None:
        self._teller.chapter("2. A usage limit")
        self._need(lambda: self._parked() == 3, "a limit")
        first, second, waits = (self._names[job.name] for job in (JOBS[0], JOBS[1], JOBS[3]))
        self._teller.say(
            f"{second} runs into a usage limit; the two beside it stop as well, and nothing else is started into it."
        )
        self._teller.omnictl(self._place.daemon, "why", waits)
        self._need(lambda: all(self._state(job.name) == "completed" for job in JOBS[:3]), "the limit to lift")
        self._teller.say(
            f"It has lifted. {first} tried first and got through, then the others went on, each in its session: "
            f"`claude --resume SESSION continue`. No prompt was sent twice."
        )

    def _cut_power(self, pid: int) -> None:
        self._teller.chapter("3. The power goes")
        self._need(lambda: all(self._place.processes(name)[0] for name in self._held), "three agents to be at work")
        task, agent, supervisor = self._names[KILLED], *self._place.processes(KILLED)
        others = " and ".join(self._names[name] for name in self._held if name != KILLED)
        # The supervisor before its agent, or it would write down how that one ended.
        for number in (supervisor, agent):
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        self._place.daemon.kill()
        new_pid = self._place.daemon.start()
        self._teller.signals.check()
        self._teller.say(
            f"kill -9 {pid} {supervisor} {agent}: the daemon, and the supervisor and the agent of {task} in the middle "
            f"of its work. The daemon is back (pid {new_pid}). {others} didn't notice and were adopted. {task} is lost "
            "with nobody to say how far it came, so it goes on in the same session, after a moment."
        )
        self._need(lambda: self._place.processes(KILLED)[0] not in (0, agent), f"{task} to go on")
        self._place.open_door()
        self._need(lambda: all(self._state(name) == "completed" for name in self._held), "them to finish")
        self._teller.omnictl(self._place.daemon, "why", task)

    def _reach_lid(self) -> None:
        self._teller.chapter("4. The lid on money")
        blocked = [job.name for job in JOBS if job.needs]
        self._need(self._lid_reached, "the lid")
        self._teller.say(
            f"A day may cost ${CAP_USD:.2f}, and a run up to ${RUN_USD:.2f}, which is reserved before it starts. "
            "Nobody knows what the killed run has cost, so all of its reservation counts. There is no room "
            "for another one."
        )
        self._teller.omnictl(self._place.daemon, "why", self._names[blocked[0]])

    def _wake_up(self) -> None:
        self._teller.chapter("5. The morning")
        self._teller.omnictl(self._place.daemon, "away")
        asked = self._names[ASKED]
        self._teller.say(
            f"You raise the lid to ${RAISED_USD:.2f} in the config, which the daemon takes over at once, and answer."
        )
        self._place.raise_lid(RAISED_USD)
        self._teller.omnictl(self._place.daemon, "approve", asked)
        # With --json nobody types.
        if self._client.get(asked)["task"]["reason"] == "approval":
            self._client.control(asked, "approve")
        self._need(self._all_ended, "the rest to finish")

    def _take_over(self) -> None:
        self._teller.chapter("6. What came of it")
        self._teller.omnictl(self._place.daemon, "receipt", self._names[KILLED])
        if self._place.has_git:
            first = self._names[JOBS[0].name]
            self._teller.omnictl(self._place.daemon, "merge", first)
            self._teller.say("The work of the others waits on branches of its own for your `omnictl merge`.")
        self._teller.omnictl(self._place.daemon, "away", "--since", "1h")

    def _need(self, found: Callable[[], bool], what: str) -> None:
        self._teller.need(found, _STEP_S, what)

    def _lid_reached(self) -> bool:
        gates = self._client.status()["gates"]
        return any(gate["problem"] and gate["problem"]["code"] == "budget_reached" for gate in gates)

    def _parked(self) -> int:
        views = [self._client.get(self._names[job.name]) for job in JOBS[:3]]
        return sum(any(attempt["outcome"] == "parked" for attempt in view["attempts"]) for view in views)

    def _state(self, name: str) -> str:
        return str(self._client.get(self._names[name])["task"]["state"])

    def _completed(self) -> int:
        return int(self._client.status()["tasks"].get("completed", 0))

    def _all_ended(self) -> bool:
        return all(self._state(job.name) in TERMINAL for job in JOBS)


def _repository(directory: str, environ: Mapping[str, str]) -> bool:
    """Makes a repository of the directory; False where there is no git that could merge in it."""
    git = shutil.which("git", path=environ["PATH"])
    if git is None:
        return False
    environ = {**environ, "GIT_CONFIG_NOSYSTEM": "1"}
    who = ("-c", "user.name=demo", "-c", "user.email=demo@localhost", "-c", "init.defaultBranch=main")
    for words in (("init", "--quiet"), ("add", "--all"), ("commit", "--quiet", "--message=The shop")):
        argv = [git, *who, *words]
        done = subprocess.run(
            argv, cwd=directory, env=environ, stdin=subprocess.DEVNULL, capture_output=True, timeout=_GIT_S, check=False
        )
        if done.returncode:
            return False
    return True
