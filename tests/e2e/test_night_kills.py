"""A night of twenty agents in which daemons, supervisors and agents are killed at random moments.

No first prompt may come twice, no worktree may be left that should be gone, and no lid may be passed. The agents'
ledgers count, and git. `OMNID_NIGHT_KILLS` says how often it kills; `OMNID_SEED` repeats the choices of an earlier run.
"""

import contextlib
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from omnid.api.client import Client
from omnid.ctl import demo_agent
from omnid.ctl.demo import night_zone
from omnid.errors import OmnidError, Retryable
from tests.e2e.harness import LOOK_S, Home, home_at, until
from tests.e2e.test_kill import SEED, Killer

KILLS = int(os.environ.get("OMNID_NIGHT_KILLS", "15"))
AGENTS = 20
OPEN_MAX = 26
STEP_S_MAX = 20.0
END_S = 120.0
RUN_USD, COST_USD, LID_USD, RAISE_USD = 0.05, 0.005, 0.8, 0.4
"""A run costs no more than the least that is reserved for it. The lid is reached now and then, and raised."""
PROMPTS_MAX = 2_000

CONFIG = """
[daemon]
slots_max = {agents}
zone = "{zone}"
keep_awake = false
[notify]
to = []
[task]
kill_grace_s = 0.5
[budget]
day_usd = {lid_usd}
[workspace]
kept_max = 1000
[[executor]]
name = "claude-code"
kind = "command"
concurrency = {agents}
cost_max_usd = {run_usd}
"""


class Shop:
    """The repository, and the place of the agents with their ledgers."""

    def __init__(self, home: Home, chance: random.Random) -> None:
        self.home = home
        self.path = home.root / "shop"
        self.agents = home.root / "agents"
        self.agents.mkdir()
        self.script = {f"do number {number}": self._step(number, chance) for number in range(PROMPTS_MAX)}
        (self.agents / demo_agent.SCRIPT).write_text(json.dumps(self.script))
        claude = home.root / "bin" / "claude"
        claude.parent.mkdir()
        argv = [sys.executable, "-I", "-S", demo_agent.__file__, str(self.agents)]
        claude.write_text(f'#!/bin/sh\nexec {shlex.join(argv)} "$@"\n')
        claude.chmod(0o700)
        home.environ["PATH"] = f"{claude.parent}:{home.environ['PATH']}"
        self.path.mkdir()
        (self.path / "README").write_text("shop\n")
        self.git("init", "-q", "-b", "main")
        self.git("config", "user.name", "me")
        self.git("config", "user.email", "me@localhost")
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "shop")
        self.zone = night_zone(time.gmtime().tm_hour)
        self.lid_usd = LID_USD
        self.configure()

    @staticmethod
    def _step(number: int, chance: random.Random) -> dict[str, Any]:
        """A fourth of the agents changes nothing, and a few hit a limit."""
        step: dict[str, Any] = {"name": f"n{number}", "cost_usd": COST_USD, "work_s": round(chance.uniform(0, 2), 2)}
        step["file"] = "" if chance.random() < 0.25 else f"n{number}.txt"
        return {**step, "text": f"{number}\n", "limit_s": 0.5 if chance.random() < 0.03 else 0.0}

    def configure(self) -> None:
        text = CONFIG.format(agents=AGENTS, zone=self.zone, lid_usd=round(self.lid_usd, 2), run_usd=RUN_USD)
        self.home.configure(text)

    def git(self, *words: str) -> str:
        done = subprocess.run(["git", *words], cwd=self.path, check=True, capture_output=True, text=True)
        return done.stdout

    def ledger(self, name: str) -> list[str]:
        path = self.agents / name
        return path.read_text().splitlines() if path.exists() else []

    def spent_usd(self) -> float:
        return sum(float(line.split()[1]) for line in self.ledger(demo_agent.COSTS))


class Night:
    """Submits tasks, looks after them as a person would, and watches the lid."""

    def __init__(self, shop: Shop, chance: random.Random) -> None:
        self._shop = shop
        self._chance = chance
        self._client = Client(str(shop.home.socket), timeout_s=STEP_S_MAX)
        self.tasks: dict[str, str] = {}
        """Prompt -> id."""
        self.open: deque[str] = deque()
        self.unmerged: list[str] = []
        self.uncertain = self.raised = 0
        self.passed: list[str] = []

    def close(self) -> None:
        self._client.close()

    def step(self, *, submit: bool) -> None:
        """Does one thing; what the daemon can't answer now is asked again later."""
        try:
            if submit and len(self.open) < OPEN_MAX:
                self._submit()
                return
            self._watch_lid()
            if self.open:
                self._look()
            if self.unmerged and self._chance.random() < 0.3:
                self.merge(self.unmerged[0])
                self.unmerged.pop(0)
            time.sleep(LOOK_S)
        except Retryable:
            time.sleep(LOOK_S)

    def _submit(self) -> None:
        prompt = f"do number {len(self.tasks)}"
        fields = {"argv": ["claude", "-p", prompt], "cwd": str(self._shop.path), "attempts_max": 100}
        # The prompt is the key: the daemon may have taken it and died before its answer.
        task = self._client.call("omnid/task.submit", {**fields, "backoff_s": 0.05, "key": prompt})
        self.tasks[prompt] = task["id"]
        self.open.append(prompt)

    def _look(self) -> None:
        prompt = self.open[0]
        view = self._client.get(self.tasks[prompt])
        state = view["task"]["state"]
        if state == "uncertain":
            self._resolve(prompt)
        elif state in ("completed", "failed", "cancelled"):
            assert state == "completed", f"{prompt}: {view['why']}"
            self.open.popleft()
            if self._shop.script[prompt]["file"]:
                self.unmerged.append(prompt)
            return
        self.open.rotate(-1)

    def _resolve(self, prompt: str) -> None:
        """Does what a person is asked to: looks whether the agent has done it."""
        done = self._shop.script[prompt]["name"] in self._shop.ledger(demo_agent.EFFECTS)
        try:
            self._client.control(self.tasks[prompt], "done" if done else "again")
        except OmnidError as error:
            if error.code != "not_in_state":
                raise
            return
        self.uncertain += 1

    def merge(self, prompt: str) -> None:
        """Merges a task's work; the daemon may have done it and died before its answer."""
        try:
            self._client.call("omnid/workspace.merge", {"task": self.tasks[prompt]})
        except OmnidError as error:
            if error.code != "no_workspace":
                raise

    def _watch_lid(self) -> None:
        status = self._client.status()
        amounts, lid_usd = status["today"]["amounts"], status["today"]["limit_usd"]
        counted_usd = amounts["spent_usd"] + amounts["reserved_usd"] + amounts["unknown_usd"]
        if counted_usd > lid_usd + 1e-6:
            self.passed.append(f"{counted_usd} of {lid_usd}")
        reached = any(gate["problem"] and gate["problem"]["code"] == "budget_reached" for gate in status["gates"])
        if reached and lid_usd >= self._shop.lid_usd - 1e-6:
            self._shop.lid_usd += RAISE_USD
            self._shop.configure()
            self.raised += 1
        if lid_usd < self._shop.lid_usd - 1e-6:
            self._client.call("omnid/config.reload", {})


class NightKiller(Killer):
    """Kills agents too."""

    def once(self) -> None:
        if self._chance.random() < 0.4:
            agents = [pid for pid, line in self._home.processes().items() if "demo_agent.py" in line]
            if agents:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._chance.choice(agents), signal.SIGKILL)
                    self.kills["agent"] += 1
            return
        super().once()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    root = tmp_path / "h"
    root.mkdir(mode=0o700)
    with home_at(root, covered=False) as home:
        yield home


@pytest.mark.timeout(KILLS * 5 + 300)
def test_a_night_of_kills(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\nnight kill test: seed {SEED}")
    chance = random.Random(SEED)
    shop = Shop(home, random.Random(SEED))
    night, killer = Night(shop, random.Random(SEED)), NightKiller(home, chance)
    with contextlib.closing(night):
        home.start()
        while killer.count < KILLS:
            next_s = time.monotonic() + chance.uniform(0.0, 1.2)
            while time.monotonic() < next_s:
                night.step(submit=True)
            killer.once()
        deadline_s = time.monotonic() + END_S
        while night.open or night.unmerged:
            assert time.monotonic() < deadline_s, [home.client.why(night.tasks[one])["text"] for one in night.open]
            night.step(submit=False)
    found = judge(shop, night)
    assert home.ctl("doctor").code == 0
    home.stop()
    home.assert_nothing_left()
    today = f"${shop.spent_usd():.2f} of ${shop.lid_usd:.2f}"
    with capsys.disabled():
        print(", ".join(f"{count} of a {what}" for what, count in sorted(killer.kills.items())))
        counts = ", ".join(f"{len(faults)} {what}" for what, faults in found.items())
        print(f"{killer.count} kills, {len(night.tasks)} tasks, {counts}, {night.uncertain} uncertain, {today}")
    assert not any(found.values()), found


def judge(shop: Shop, night: Night) -> dict[str, list[str]]:
    """Says what is wrong, by what the agents, git and the journal say."""
    names = [shop.script[prompt]["name"] for prompt in night.tasks]
    worked, prompted = Counter(shop.ledger(demo_agent.EFFECTS)), Counter(shop.ledger(demo_agent.PROMPTS))
    amounts = shop.home.client.status()["today"]["amounts"]
    if shop.spent_usd() > amounts["spent_usd"] + amounts["unknown_usd"] + 1e-6:
        night.passed.append(f"{shop.spent_usd()} were spent, and the journal says {amounts}")
    files = set(shop.git("ls-files").split())
    wanted = {shop.script[prompt]["file"] for prompt in night.tasks} - {""}
    return {
        "lost": [name for name in names if not worked[name]] + sorted(wanted - files),
        "done twice": [name for name, count in worked.items() if count > 1],
        "prompts twice": [name for name, count in prompted.items() if count > 1 or name not in names],
        "worktrees left over": left_over(shop),
        "lids passed": night.passed,
    }


def left_over(shop: Shop) -> list[str]:
    """Gives what there is of worktrees when all work is merged; the daemon looks through them when it starts."""
    home = shop.home
    home.stop()
    home.start()
    root = home.state / "workspaces"

    def left() -> list[str]:
        found = shop.git("worktree", "list").splitlines()[1:]
        found += shop.git("branch", "--list", "omnid/*").split()
        return found + [path.name for path in root.iterdir() if path.is_dir() and path.name != "pool"]

    with contextlib.suppress(AssertionError):
        until(lambda: not left(), "an empty place", 10.0)
    return left()
