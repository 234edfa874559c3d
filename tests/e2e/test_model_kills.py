"""The kill test of models: gateways, daemons and local servers are killed at random moments, with calls in flight.

No prompt may be lost, done twice or billed twice, no lid passed, no key seen anywhere, and no process left. Billed
twice is what was asked again after its answer was written down; what was answered into a call that a kill has cut is
counted beside it. The cloud counts, and the journal. `OMNID_MODEL_KILLS` says how often it kills; `OMNID_SEED` repeats
the choices of an earlier run (not its timing).
"""

import contextlib
import json
import os
import random
import signal
import sqlite3
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from omnid.api.client import Client
from omnid.errors import Retryable
from tests.e2e.harness import LOOK_S, Home, home_at
from tests.e2e.test_kill import SEED
from tests.fakes.cloud import COST_USD, Cloud, cloud

KILLS = int(os.environ.get("OMNID_MODEL_KILLS", "12"))
KEYS = {"P1_KEY": "sk-planted-p1", "P1_BACKUP": "sk-planted-backup", "P2_KEY": "sk-planted-p2"}
OPEN_MAX = 8
PAUSE_S_MAX = 0.8
"""From a new call on, so that a kill meets calls in flight; an answer takes a third of it."""
CALL_S_MAX = 8.0
STEP_S_MAX, END_S, LOCAL_S = 20.0, 180.0, 30.0
LID_USD, RAISE_USD, CALL_USD_MAX = 0.003, 0.002, 0.0002
MODES = ("slow", "slow", "slow", "ok", "broken_stream", "reset")
LOCAL = "tests.fakes.cloud"
ROOT = Path(__file__).parents[2]

CONFIG = """
[daemon]
slots_max = 6
[notify]
to = []
[budget]
day_usd = {lid_usd}
[retry]
backoff_base_s = 0.05
backoff_max_s = 2.0
[models]
output_tokens_max = 50
connect_timeout_s = 2.0
silence_timeout_s = 2.0
[mode]
gateway_probe_every_s = 0.3
cloud_probe_every_s = 0.4
[brainstem]
argv = {local}
base_url = "http://127.0.0.1:{local_port}/slow/v1"
memory_bytes_min = 50000000
[[channel]]
name = "p1"
profile = "openrouter"
base_url = "http://127.0.0.1:{port}/p1/v1"
key = "env:P1_KEY"
backup_keys = ["env:P1_BACKUP"]
models = [{{ name = "fake-1", input_usd = 1, output_usd = 2 }}]
[[channel]]
name = "p2"
profile = "openrouter"
base_url = "http://127.0.0.1:{port}/slow/v1"
key = "env:P2_KEY"
models = [{{ name = "fake-1", input_usd = 1, output_usd = 2 }}]
"""


class Sky:
    """The cloud, which goes and comes back at the same port, and counts across all that."""

    def __init__(self, portal: BlockingPortal) -> None:
        self._portal = portal
        self._up = contextlib.ExitStack()
        self._clouds: list[Cloud] = []
        self.port = 0

    def rise(self) -> None:
        made = self._up.enter_context(self._portal.wrap_async_context_manager(cloud(self.port, p1="slow")))
        self.port = made.port
        self._clouds.append(made)

    def fall(self) -> None:
        self._up.close()

    def turn(self, mode: str) -> None:
        """Changes what P1 does from here on."""
        self._clouds[-1].modes["p1"] = mode

    @property
    def calls(self) -> int:
        return sum(bool(one.body) for made in self._clouds for one in made.seen)

    def count(self) -> tuple[Counter[str], Counter[str]]:
        """Gives how often each prompt was asked, and how often it was answered to the end."""
        seen = [one for made in self._clouds for one in made.seen if one.body]
        answered = [one for made in self._clouds for one in made.answered]
        return Counter(map(prompt_of, seen)), Counter(map(prompt_of, answered))


def prompt_of(seen: Any) -> str:
    return str(seen.body["messages"][-1]["content"])


class Prompts:
    """Submits prompts, looks after them as a person would, and watches the lid."""

    def __init__(self, home: Home, chance: random.Random, sky: Sky, local_port: int) -> None:
        self._home = home
        self._chance = chance
        self._sky = sky
        self._local_port = local_port
        self._client = Client(str(home.socket), timeout_s=STEP_S_MAX)
        self.lid_usd = LID_USD
        self.tasks: dict[str, str] = {}
        """Prompt -> id."""
        self.open: deque[str] = deque()
        self.passed: list[str] = []
        self.said: list[str] = []
        """Errors that clients were given."""
        self.configure()

    def configure(self) -> None:
        argv = ["/usr/bin/env", f"PYTHONPATH={ROOT}", sys.executable, "-m", LOCAL, str(self._local_port)]
        given = {"local": json.dumps(argv), "local_port": self._local_port, "port": self._sky.port}
        self._home.configure(CONFIG.format(lid_usd=round(self.lid_usd, 4), **given))

    def close(self) -> None:
        self._client.close()

    def work(self, until_s: float, *, submit: bool = True) -> None:
        """Goes on as long as that; what the daemon can't answer now is asked again later."""
        while time.monotonic() < until_s:
            try:
                if submit and len(self.open) < OPEN_MAX:
                    self._submit()
                    continue
                self._watch_lid()
                if self.open:
                    self._look()
            except Retryable as error:
                self.said.append(str(error.as_dict()))
            time.sleep(LOOK_S)

    def _submit(self) -> None:
        prompt = f"say k{len(self.tasks)}"
        # The prompt is the key: the daemon may have taken it and died before its answer.
        fields = {"prompt": prompt, "key": prompt, "attempts_max": 1000, "backoff_s": 0.05}
        offline = "local" if len(self.tasks) % 3 == 0 else "park"
        self.tasks[prompt] = self._client.call("omnid/task.submit", {**fields, "offline": offline})["id"]
        self.open.append(prompt)

    def _look(self) -> None:
        prompt = self.open[0]
        view = self._client.get(self.tasks[prompt])
        state = view["task"]["state"]
        if state in ("completed", "failed", "cancelled"):
            assert state == "completed", f"{prompt}: {view['why']}"
            self.open.popleft()
            return
        self.open.rotate(-1)

    def _watch_lid(self) -> None:
        today = self._client.status()["today"]
        counted_usd = sum(today["amounts"][name] for name in ("spent_usd", "reserved_usd", "unknown_usd"))
        lid_usd = today["limit_usd"]
        if counted_usd > lid_usd + 1e-7:
            self.passed.append(f"{counted_usd} of {lid_usd}")
        if counted_usd > lid_usd - CALL_USD_MAX and lid_usd > self.lid_usd - 1e-7:
            self.lid_usd += RAISE_USD
            self.configure()
        if lid_usd < self.lid_usd - 1e-7:
            self._client.call("omnid/config.reload", {})


class ModelKiller:
    """Kills, starts the daemon again, and takes the cloud away to get at the local server."""

    def __init__(self, home: Home, chance: random.Random, prompts: Prompts, sky: Sky) -> None:
        self._home = home
        self._chance = chance
        self._prompts = prompts
        self._sky = sky
        self.kills: Counter[str] = Counter()
        self.keys: list[str] = []
        """Where a key was seen among the processes."""

    @property
    def count(self) -> int:
        return self.kills.total()

    def once(self) -> None:
        self._watch_keys()
        what = self._chance.choices(["gateway", "daemon", "local server"], [4, 3, 2])[0]
        if what == "local server":
            self._outage()
        elif what == "daemon" or not self._kill("worker/gateway.py", "gateway"):
            self._kill_daemon()
        self._sky.turn(self._chance.choice(MODES))

    def pause(self) -> None:
        before, deadline_s = self._sky.calls, time.monotonic() + CALL_S_MAX
        while self._sky.calls == before and time.monotonic() < deadline_s:
            self._prompts.work(time.monotonic() + LOOK_S)
        self._prompts.work(time.monotonic() + self._chance.uniform(0.0, PAUSE_S_MAX))

    def _outage(self) -> None:
        """Takes the cloud away until the local server works, kills that, and at times the daemon too."""
        self._sky.fall()
        deadline_s = time.monotonic() + LOCAL_S
        while not self._pids(LOCAL) and time.monotonic() < deadline_s:
            self._prompts.work(time.monotonic() + 0.1)
        self._prompts.work(time.monotonic() + self._chance.uniform(0.0, PAUSE_S_MAX))
        self._kill(LOCAL, "local server")
        if self._chance.random() < 0.3:
            self._kill_daemon()
        self._sky.rise()

    def _kill_daemon(self) -> None:
        self._home.kill()
        self.kills["daemon"] += 1
        if self._chance.random() < 0.3:
            self._kill("worker/gateway.py", "gateway")
        self._home.start()

    def _kill(self, name: str, what: str) -> bool:
        living = self._pids(name)
        if not living:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(max(living), signal.SIGKILL)
            self.kills[what] += 1
        return True

    def _pids(self, name: str) -> list[int]:
        return [pid for pid, line in self._home.processes().items() if name in line]

    def _watch_keys(self) -> None:
        """Looks whether a key stands in a command line, or in the environment of another process than the daemon."""
        for pid, line in self._home.processes().items():
            with contextlib.suppress(OSError):
                environ = b"" if "omnid run" in line else Path(f"/proc/{pid}/environ").read_bytes()
                self.keys += [f"{line}: {key}" for key in KEYS.values() if key in line or key.encode() in environ]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    root = tmp_path / "h"
    root.mkdir(mode=0o700)
    with home_at(root, covered=False) as home:
        home.environ |= KEYS
        yield home


@pytest.fixture
def sky() -> Iterator[Sky]:
    with start_blocking_portal() as portal:
        made = Sky(portal)
        made.rise()
        yield made
        made.fall()


@pytest.mark.timeout(KILLS * 10 + 300)
def test_models_under_kills(home: Home, sky: Sky, free_tcp_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\nmodel kill test: seed {SEED}")
    chance = random.Random(SEED)
    prompts = Prompts(home, random.Random(SEED), sky, free_tcp_port)
    killer = ModelKiller(home, chance, prompts, sky)
    with contextlib.closing(prompts):
        home.start()
        while killer.count < KILLS:
            killer.pause()
            killer.once()
        sky.turn("slow")
        deadline_s = time.monotonic() + END_S
        while prompts.open:
            assert time.monotonic() < deadline_s, [home.client.why(prompts.tasks[one])["text"] for one in prompts.open]
            prompts.work(time.monotonic() + 1.0, submit=False)
    doctor = home.ctl("doctor")
    assert doctor.code == 0, doctor
    found, beside = judge(home, prompts, sky)
    found["keys seen"] = [*killer.keys, *keys_in(home, prompts)]
    home.stop()
    home.assert_nothing_left()
    with capsys.disabled():
        print(", ".join(f"{count} of a {what}" for what, count in sorted(killer.kills.items())))
        counts = ", ".join(f"{len(faults)} {what}" for what, faults in found.items())
        print(f"{killer.count} kills, {len(prompts.tasks)} prompts, {counts}; {beside}")
    assert not any(found.values()), found


def judge(home: Home, prompts: Prompts, sky: Sky) -> tuple[dict[str, list[str]], str]:
    """Says what is wrong, by what the cloud and the journal say; and what is counted beside."""
    asked, answered = sky.count()
    with contextlib.closing(sqlite3.connect(home.state / "journal.db")) as database:
        calls = database.execute("SELECT task_id, channel, outcome FROM call ORDER BY ord").fetchall()
        ends = database.execute("SELECT task_id FROM attempt WHERE outcome = 'success'").fetchall()
        done = database.execute("SELECT id FROM task WHERE state = 'completed'").fetchall()
    finished, completed = Counter(id for (id,) in ends), {id for (id,) in done}
    billed: dict[str, list[bool]] = {}
    for id, channel, outcome in calls:
        if channel != "brainstem":
            billed.setdefault(id, []).append(outcome == "success")
    again = [id for id, good in billed.items() if any(good[:-1])]
    unwritten = [one for one, count in asked.items() if count > len(billed.get(prompts.tasks.get(one, ""), []))]
    amounts = home.client.status()["today"]["amounts"]
    cost_usd = answered.total() * COST_USD
    if cost_usd > amounts["spent_usd"] + amounts["unknown_usd"] + 1e-7:
        prompts.passed.append(f"{cost_usd} were spent, and the journal says {amounts}")
    cut = sum(outcome != "success" for _, _, outcome in calls)
    twice = answered.total() - len(answered)
    return {
        "lost": [prompt for prompt, id in prompts.tasks.items() if id not in completed],
        "done twice": [id for id, count in finished.items() if count > 1],
        "billed twice": again,
        "calls not written down": unwritten,
        "lids passed": prompts.passed,
    }, f"{cut} calls failed or cut, {twice} of them answered, ${amounts['spent_usd']:.4f} of ${prompts.lid_usd:.4f}"


def keys_in(home: Home, prompts: Prompts) -> list[str]:
    """Gives where a key stands that is meant for the daemon and the providers alone."""
    some = list(prompts.tasks.values())[:3]
    words = [[verb] for verb in ("status", "mode", "outages", "doctor", "list", "spend")]
    words += [[verb, id] for id in some for verb in ("why", "show", "logs")]
    words += [["config", "show"], ["config", "check", "--live"]]
    said = {" ".join(argv): home.ctl(*argv, *more) for argv in words for more in ((), ("--json",))}
    texts = {"an error": "".join(prompts.said)} | {name: one.out + one.err for name, one in said.items()}
    found = [f"{name}: {key}" for name, text in texts.items() for key in KEYS.values() if key in text]
    for path in home.root.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            found += [f"{path}: {key}" for key in KEYS.values() if key.encode() in data]
    return found
