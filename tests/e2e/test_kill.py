"""The kill test: daemons and supervisors are killed at random moments under load, and nothing is lost or done twice.

Every task leaves its effect in a ledger that no daemon writes to, and the ledger is what counts. `OMNID_KILLS` says how
often it kills; `OMNID_SEED` repeats the choices of an earlier run (not its timing).
"""

import contextlib
import os
import random
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from omnid.api.client import Client
from omnid.errors import OmnidError, Retryable
from tests.e2e.harness import FAKES, LOOK_S, Home, home_at, until

KILLS = int(os.environ.get("OMNID_KILLS", "200"))
SEED = int(os.environ.get("OMNID_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
OPEN_MAX = 14
"""How many tasks are open at once: more than there are slots, so that some wait while others run."""
DAEMON_SHARE = 0.35
"""Which part of the kills meets the daemon; the others meet a supervisor."""
END_S = 120.0
STEP_S_MAX = 20.0

CONFIG = """
[daemon]
slots_max = 6
[task]
kill_grace_s = 0.5
[[executor]]
name = "safe"
kind = "command"
idempotent = true
[[executor]]
name = "server"
kind = "mcp"
argv = [{python}, {server}, {options}]
restart_base_s = 0.05
restart_max_s = 0.2
[[executor]]
name = "safe-server"
kind = "mcp"
idempotent = true
argv = [{python}, {server}, {options}]
restart_base_s = 0.05
restart_max_s = 0.2
"""

EFFECT = 'printf "%s %s\\n" {key} "$OMNID_ATTEMPT" >> ledger'


class Kind(NamedTuple):
    """A kind of task: its share of the load, and what is submitted."""

    share: int
    script: str
    fields: Mapping[str, Any] = MappingProxyType({})
    repeatable: bool = False
    """Declared idempotent, so that it may be done again when nobody knows whether it was done."""


KINDS = {
    "quick": Kind(6, EFFECT),
    "slow": Kind(4, f"sleep 0.7; {EFFECT}; sleep 0.5"),
    "flaky": Kind(2, "[ -e tried.{key} ] || {{ : > tried.{key}; exit 1; }}; " + EFFECT, {"backoff_s": 0.05}),
    "checked": Kind(3, f"sleep 0.1; {EFFECT}", {"check": ["/bin/sh", "-c", "sleep 0.3; grep -q '^{key} ' ledger"]}),
    "lane": Kind(3, f"sleep 0.1; {EFFECT}", {"lane": "repository"}),
    "after": Kind(3, EFFECT),
    "forks": Kind(2, f"(sleep 0.4; {EFFECT}) & wait"),
    "safe": Kind(4, f"sleep 0.3; {EFFECT}; sleep 0.2", {"executor": "safe"}, repeatable=True),
    "tool": Kind(1, "", {"server": "server"}),
    "safe-tool": Kind(1, "", {"server": "safe-server"}, repeatable=True),
}


class Load:
    """Submits tasks, remembers what was acknowledged, and looks after those that became uncertain."""

    def __init__(self, home: Home, chance: random.Random) -> None:
        self._home = home
        self._chance = chance
        self._client = Client(str(home.socket), timeout_s=STEP_S_MAX)
        self._next: tuple[str, str, dict[str, Any]] | None = None
        self._last: str | None = None
        self.kinds: dict[str, str] = {}
        """Key -> kind, of what was acknowledged."""
        self.tasks: dict[str, str] = {}
        """Key -> id."""
        self.open: deque[str] = deque()
        self.uncertain = 0
        self.resolved_as_done: set[str] = set()

    def close(self) -> None:
        self._client.close()

    @property
    def is_done(self) -> bool:
        """Whether all that was submitted is acknowledged and has ended."""
        return not self.open and self._next is None

    def step(self, *, submit: bool) -> None:
        """Does one thing: submits, or looks at an open task. What the daemon can't answer now is asked again later."""
        try:
            if (submit and len(self.open) < OPEN_MAX) or self._next is not None:
                self._submit()
            elif self.open:
                self._look()
                time.sleep(LOOK_S)
        except Retryable:
            time.sleep(LOOK_S)

    def _submit(self) -> None:
        if self._next is None:
            kind = self._chance.choices(list(KINDS), [kind.share for kind in KINDS.values()])[0]
            key = f"k{len(self.tasks)}"
            self._next = key, kind, self._fields(kind, key)
        key, kind, fields = self._next
        # The same key until it is acknowledged: the daemon may have taken it and died before its answer.
        task = self._client.call("omnid/task.submit", fields)
        assert key not in self.tasks
        self.tasks[key], self.kinds[key] = task["id"], kind
        self.open.append(key)
        self._last, self._next = task["id"], None

    def _fields(self, name: str, key: str) -> dict[str, Any]:
        kind = KINDS[name]
        fields: dict[str, Any] = {"key": key, "attempts_max": 5, **kind.fields}
        if "server" in fields:
            return {**fields, "tool": "slow", "arguments": {"s": 0.3, "text": key}}
        if "check" in fields:
            fields["check"] = [text.format(key=key) for text in fields["check"]]
        if name == "after" and self._last is not None:
            fields["after"] = [self._last]
        argv = ["/bin/sh", "-c", kind.script.format(key=key)]
        return {**fields, "argv": argv, "cwd": str(self._home.work)}

    def _look(self) -> None:
        key = self.open[0]
        view = self._client.get(self.tasks[key])
        state = view["task"]["state"]
        if state == "uncertain":
            self._resolve(key)
        elif state in ("completed", "failed", "cancelled"):
            assert state == "completed", f"{key} ({self.kinds[key]}): {view['why']}"
            self.open.popleft()
            return
        self.open.rotate(-1)

    def _resolve(self, key: str) -> None:
        """Does what a person is asked to: looks at what the attempt left, and says whether it was done."""
        assert not KINDS[self.kinds[key]].repeatable, f"{key} was declared idempotent and is uncertain"
        done = key in effects(self._home)
        try:
            self._client.control(self.tasks[key], "done" if done else "again")
        except OmnidError as error:
            # The answer to the resolve before was lost with its daemon.
            if error.code != "not_in_state":
                raise
            return
        self.uncertain += 1
        if done:
            self.resolved_as_done.add(key)


def effects(home: Home) -> dict[str, list[str]]:
    """Counts the ledger: key -> the attempts that left its effect (for a tool: the calls)."""
    found: dict[str, list[str]] = {}
    for line in home.lines("ledger"):
        key, attempt = line.split(" ")
        found.setdefault(key, []).append(attempt)
    for number, line in enumerate(home.lines("calls")):
        if '"text": "' in line:
            key = line.partition('"text": "')[2].partition('"')[0]
            found.setdefault(key, []).append(f"call {number}")
    return found


class Killer:
    """Kills, and starts the daemon again."""

    def __init__(self, home: Home, chance: random.Random) -> None:
        self._home = home
        self._chance = chance
        self.kills: Counter[str] = Counter()
        self._started_s = 0.0

    @property
    def count(self) -> int:
        return self.kills.total()

    def once(self) -> None:
        """Kills the daemon or a supervisor, whichever chance says."""
        if self._chance.random() < DAEMON_SHARE:
            self._kill_daemon()
        else:
            self._kill_supervisor()

    def start(self) -> None:
        """Starts a daemon; now and then two at once, of which one must refuse, or one that dies while it starts."""
        home = self._home
        if self._chance.random() < 0.3:
            home.process = home.spawn()
            time.sleep(self._chance.uniform(0.0, 0.5))
            home.kill()
            self.kills["daemon, starting"] += 1
        if self._chance.random() < 0.1:
            self._start_two()
            return
        home.start()

    def _start_two(self) -> None:
        home = self._home
        both = [home.spawn(), home.spawn()]
        until(lambda: any(process.poll() is not None for process in both), "one of two daemons to refuse")
        (refused,) = [process for process in both if process.poll() is not None]
        (home.process,) = [process for process in both if process is not refused]
        assert refused.returncode == 1
        assert "Another omnid already uses" in home.said.read_text()
        until(lambda: home.answers(home.process), "the other daemon to answer")

    def _kill_daemon(self) -> None:
        self._home.kill()
        self.kills["daemon"] += 1
        while self._chance.random() < 0.3:
            self._kill_supervisor()
        self.start()

    def _kill_supervisor(self) -> None:
        living = self._home.supervisors()
        if living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._chance.choice(living), signal.SIGKILL)
                self.kills["supervisor"] += 1


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    root = tmp_path / "h"
    root.mkdir(mode=0o700)
    with home_at(root, covered=False) as home:
        options = f'{{"ledger": "{home.work}/calls"}}'
        quoted = {"python": sys.executable, "server": str(FAKES / "mcp_server.py"), "options": options}
        home.configure(CONFIG.format(**{name: f"'{text}'" for name, text in quoted.items()}))
        yield home


@pytest.mark.timeout(KILLS * 3 + 300)
def test_nothing_is_lost_and_nothing_is_done_twice(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\nkill test: seed {SEED}")
    chance = random.Random(SEED)
    load, killer = Load(home, random.Random(SEED)), Killer(home, chance)
    with contextlib.closing(load):
        home.start()
        while killer.count < KILLS:
            next_s = time.monotonic() + chance.uniform(0.0, 1.0)
            while time.monotonic() < next_s:
                load.step(submit=True)
            killer.once()
        deadline_s = time.monotonic() + END_S
        while not load.is_done:
            assert time.monotonic() < deadline_s, [home.client.why(load.tasks[key])["text"] for key in load.open]
            load.step(submit=False)
    doctor = home.ctl("doctor")
    assert doctor.code == 0, doctor
    assert home.client.status()["tasks"] == {"completed": len(load.tasks)}
    lost, twice = judge(home, load)
    home.stop()
    home.assert_nothing_left()
    with capsys.disabled():
        print(", ".join(f"{count} of a {what}" for what, count in sorted(killer.kills.items())))
        print(
            f"{killer.count} kills, {len(load.tasks)} tasks, {len(lost)} lost, {len(twice)} done twice, "
            f"{load.uncertain} uncertain"
        )
    assert (lost, twice) == ([], [])
    # Some kills must have met a command that nobody can answer for, or the test was too kind.
    assert load.uncertain or KILLS < 100


def judge(home: Home, load: Load) -> tuple[list[str], list[str]]:
    """Compares the ledger with what was acknowledged: what was lost, and what was done twice."""
    counted = effects(home)
    assert counted.keys() <= load.tasks.keys()
    lost = [key for key in load.tasks if key not in counted]
    twice: list[str] = []
    for key, attempts in counted.items():
        # An attempt never begins twice, and a task that isn't declared idempotent has its effect once.
        if len(attempts) > (len(set(attempts)) if KINDS[load.kinds[key]].repeatable else 1):
            twice.append(f"{key} ({load.kinds[key]}): {attempts}")
    return lost, twice
