"""The demo of the day: twelve tasks, a daemon that is killed while they run, and a ledger that is counted."""

import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Self

from omnid.ctl import demo_day_tasks
from omnid.ctl.context import Context
from omnid.ctl.demo import Daemon, End, Place, Signals, Teller, place, toml
from omnid.errors import Retryable
from omnid.states import TERMINAL

_BEGIN_S = 30.0
"""How long the held tasks may take until they are in the middle of their work."""

_FINISH_S = 60.0
"""How long everything may take from the daemon's return to the last line of the ledger."""

_FIRST = """\
[daemon]
slots_max = 8
[task]
kill_grace_s = 1.0
[[executor]]
name = "second"
kind = "mcp"
argv = {argv}
env = ["PYTHONPATH", "PYTHONUSERBASE"]
env_set = {{ {variables} }}
tool = "task_submit"
# The same key makes it the same task however often it is handed over: that is why it may be declared idempotent.
arguments = {{ key = "{{task.id}}" }}
idempotent = true
"""
_SECOND = '[agents]\nallow = ["command"]\n'


def run(context: Context, signals: Signals) -> End:
    """Tells it, in a place of its own."""
    with place(context.world.environ, DayPlace) as made:
        return _Story(Teller(context, signals), made).tell()


class DayPlace(Place):
    """Two daemons, of which the first hands tasks to the second, and the ledger that the tasks write."""

    def __init__(self, root: str, environ: Mapping[str, str]) -> None:
        super().__init__(root, environ)
        demo_day_tasks.lay_out(self.work)
        self.second = Daemon(os.path.join(root, "second"), _SECOND, self.outside)
        variables = ", ".join(f"{name} = {toml(value)}" for name, value in self.second.variables.items())
        config = _FIRST.format(argv=toml([sys.executable, "-m", "omnid", "mcp"]), variables=variables)
        self.first = Daemon(os.path.join(root, "first"), config, self.outside)

    def begun(self, job: str) -> bool:
        """Tells whether a held task is in the middle of its work."""
        return os.path.exists(os.path.join(self.work, f"{job}.begun"))

    def open_door(self) -> None:
        """Lets the held tasks go on."""
        with open(os.path.join(self.work, demo_day_tasks.DOOR), "w", encoding="ascii"):
            pass

    def ledger(self) -> list[str]:
        """Reads the ledger: the names of the tasks that had their effect, in that order."""
        try:
            with open(os.path.join(self.work, demo_day_tasks.LEDGER), encoding="utf-8") as file:
                return file.read().splitlines()
        except FileNotFoundError:
            return []

    def close(self) -> None:
        """See `Place.close`: both daemons, then what their supervisors still hold."""
        self.first.kill()
        self.open_door()
        # With it ends the relay, so nothing can start the second daemon again.
        self.first.wait_for_supervisors()
        self.second.kill()
        self.second.wait_for_supervisors()


class Count(NamedTuple):
    """What the ledger adds up to."""

    done: int
    lost: int
    twice: int

    @classmethod
    def of(cls, ledger: Iterable[str], names: Iterable[str]) -> Self:
        """Counts: each name belongs into the ledger once, and nothing else does."""
        lines, wanted = Counter(ledger), set(names)
        done = len(wanted & lines.keys())
        return cls(done, len(wanted) - done, lines.total() - done)

    def __str__(self) -> str:
        return f"{self.done} done, {self.lost} lost, {self.twice} done twice"

    @property
    def good(self) -> bool:
        """Whether nothing was lost and nothing was done twice."""
        return self.lost == self.twice == 0


class _Story:
    """Four chapters."""

    def __init__(self, teller: Teller, made: DayPlace) -> None:
        self._teller = teller
        self._place = made
        self._client = made.first.client
        self._names: dict[str, str] = {}
        self._held = [job.name for job in demo_day_tasks.JOBS if job.held]

    def tell(self) -> End:
        """Goes through all chapters."""
        pid = self._submit()
        back_s = self._kill(pid)
        self._explain()
        self._finish()
        count = self._count()
        return End({**count._asdict(), "back_s": round(back_s, 3)}, str(count), count.good)

    def _submit(self) -> int:
        directory = os.path.dirname(self._place.work)
        self._teller.say(
            f"{len(demo_day_tasks.JOBS)} tasks, a daemon that is killed among them, and a ledger that says what became "
            f"of them. All of it happens in {directory}; your own omnid, if you have one, is not touched."
        )
        self._teller.chapter("1. The tasks go in")
        self._place.second.start()
        self._teller.signals.check()
        pid = self._place.first.start()
        self._teller.signals.check()
        tasks = [job.submit(self._place.work) for job in demo_day_tasks.JOBS]
        began_s = time.monotonic()
        answer = self._client.call("omnid/task.submit_batch", {"tasks": tasks})
        took_ms = 1000 * (time.monotonic() - began_s)
        self._names = {job.name: task["name"] for job, task in zip(demo_day_tasks.JOBS, answer["tasks"], strict=True)}
        self._teller.say(
            f"The daemon (pid {pid}) answered after {took_ms:.0f} ms, when all of them were on the disk. From here on "
            "none may get lost. Each is a small script over a week of logs; the last thing it does is to write its "
            "name into the ledger."
        )
        self._teller.table([(self._names[job.name], job.name, job.about) for job in demo_day_tasks.JOBS])
        return pid

    def _kill(self, pid: int) -> float:
        self._teller.chapter("2. The daemon is killed")
        self._teller.need(self._all_begun, _BEGIN_S, "the first tasks to be at work")
        held = " and ".join(self._names[name] for name in self._held)
        finished = len(self._place.ledger())
        self._place.first.kill()
        began_s = time.monotonic()
        self._teller.say(
            f"kill -9 {pid}, with {finished} tasks done, {held} in the middle of their work, and the others waiting or "
            "just begun. Nobody had time to tidy up. The two commands don't notice: each runs under a small "
            "supervisor of its own."
        )
        new_pid = self._place.first.start()
        back_s = time.monotonic() - began_s
        self._teller.signals.check()
        for name in self._held:
            view = self._client.get(self._names[name])
            if (view["task"]["state"], view["task"]["attempt"]) != ("executing", 1):
                raise Retryable("demo_failed", detail=f"a running command was not adopted: {view['why'].rstrip('.')}")
        self._teller.say(
            f"Back after {back_s:.1f} s (pid {new_pid}). It read its journal and adopted {held}: still attempt 1, not "
            "started again."
        )
        return back_s

    def _explain(self) -> None:
        self._teller.chapter("3. Ask it why")
        for name in ("report-2", "archive"):
            self._why(name)

    def _finish(self) -> None:
        self._teller.chapter("4. All of them finish")
        self._place.open_door()
        self._teller.wait(self._all_ended, _FINISH_S, "the tasks to finish")
        self._why("fetch")
        for job in demo_day_tasks.JOBS:
            if self._client.get(self._names[job.name])["task"]["state"] != "completed":
                self._why(job.name)

    def _count(self) -> Count:
        ledger = self._place.ledger()
        self._teller.say(
            f"{self._names['sizes']} and {self._names['clients']} were handed to a second omnid, through its MCP "
            "tool. It may have been asked twice; the key in the call makes that one task."
        )
        self._teller.say("")
        self._teller.say("The ledger, as the tasks wrote it:")
        self._teller.say(", ".join(ledger), indent=2)
        return Count.of(ledger, [job.name for job in demo_day_tasks.JOBS])

    def _all_begun(self) -> bool:
        return all(self._place.begun(name) for name in self._held)

    def _all_ended(self) -> bool:
        return _open(self._client.status()) == 0 == _open(self._place.second.client.status())

    def _why(self, name: str) -> None:
        self._teller.omnictl(self._place.first, "why", self._names[name])


def _open(status: Mapping[str, Any]) -> int:
    """Counts the tasks that have not ended."""
    return sum(count for state, count in status["tasks"].items() if state not in TERMINAL)
