"""Two agents that submit commands and read their results, over the socket and over HTTP; both can be cut in a call."""

import random
import threading
import time
from typing import Any, NamedTuple

from omnid.ctl.demo_ways import ANSWER_S, Gone, Way
from tests.e2e.harness import LOOK_S

PAGE = 100
READ_EVERY_S = 0.05
URGENT_SHARE = 0.1
SLOW_SHARE = 0.1
SCRIPT = 'echo "{key} $OMNID_ATTEMPT" >> started; {work}echo "{key} $OMNID_ATTEMPT" >> done'


class Took(NamedTuple):
    """How long a submit took, and whether the broker was there meanwhile."""

    s: float
    broker_away: bool


class Agent(threading.Thread):
    """Submits its commands in order, so that at most `open_max` have no result yet, and reads the results."""

    def __init__(self, name: str, way: Way, count: int, chance: random.Random, cwd: str, open_max: int) -> None:
        super().__init__(name=name, daemon=True)
        self._way = way
        self._chance = chance
        self._cwd = cwd
        self._fields = [self._command(f"{name}-{number}") for number in range(count)]
        self._names: dict[str, str] = {}
        """Task -> key, of what was acknowledged."""
        self._cursor: str | None = None
        self._cut = threading.Event()
        self._back = threading.Event()
        self._away = threading.Event()
        self._waiting: int | None = None
        """How many results it has to find at once when it reads for the first time after an absence."""
        self._ended = threading.Event()
        self._open_max = open_max
        self._more = 0
        """How many may be open beyond that, while the broker is away."""
        self.submitted: list[str] = []
        self._read_ids: list[str] = []
        self.batches: list[int] = []
        """How many results came at once."""
        self.took: list[Took] = []
        self.error: BaseException | None = None

    def _command(self, key: str) -> dict[str, Any]:
        work = f"sleep {self._chance.uniform(0.05, 0.3):.3f}; " if self._chance.random() < SLOW_SHARE else ""
        argv = ["/bin/sh", "-c", SCRIPT.format(key=key, work=work)]
        priority = 5 if self._chance.random() < URGENT_SHARE else 0
        return {"argv": argv, "executor": "afar", "cwd": self._cwd, "key": key, "priority": priority}

    def run(self) -> None:
        try:
            while not self._ended.is_set():
                try:
                    self._step()
                except Gone:
                    self._ended.wait(LOOK_S)
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread of the scenario.
            self.error = error
        finally:
            self._way.close()

    def _step(self) -> None:
        if self._cut.is_set():
            self._leave()
        elif not self.has_submitted_all and self.open < self._open_max + self._more:
            self._submit()
        elif not self._read():
            self._ended.wait(READ_EVERY_S)

    @property
    def open(self) -> int:
        """How many have no result yet that it has read."""
        return len(self.submitted) - len(self._read_ids)

    @property
    def read(self) -> list[str]:
        """The keys of the results, as they came; of those whose submit was never answered, the ids."""
        return [self._names.get(id, id) for id in self._read_ids]

    @property
    def has_all(self) -> bool:
        return self.has_submitted_all and not self.open

    def _submit(self) -> None:
        fields, away, since_s = self._fields[len(self.submitted)], self._more > 0, time.monotonic()
        # The same key until it is acknowledged: the daemon may have taken it and died before its answer.
        task = self._way.submit(fields)
        self.took.append(Took(time.monotonic() - since_s, away and self._more > 0))
        self._names[task["id"]] = fields["key"]
        self.submitted.append(fields["key"])

    def _read(self) -> bool:
        waiting, self._waiting = self._waiting, None
        page = self._way.results(self._cursor, PAGE)
        ended = [task for task in page["tasks"] if task["state"] in ("completed", "failed", "cancelled")]
        assert all(task["state"] == "completed" for task in ended), ended
        assert len(ended) >= min(waiting or 0, PAGE), f"{len(ended)} of {waiting} that waited came at once"
        self._read_ids += [task["id"] for task in ended]
        if page.get("next") is not None:
            self._cursor = page["next"]
            self.batches.append(len(ended))
        return bool(page["tasks"])

    def _leave(self) -> None:
        """Is cut in the middle of a call, and stays away until it may come back."""
        try:
            if not self.has_submitted_all and self._chance.random() < 0.7:
                share = self._chance.choice([1.0, self._chance.random()])
                self._way.cut(self._fields[len(self.submitted)], share)
            elif self._names:
                self._way.cut_wait(self._chance.choice(list(self._names)))
        except Gone:
            pass  # The daemon is away too.
        self._cut.clear()
        self._away.set()
        self._back.wait()
        self._away.clear()

    @property
    def is_away(self) -> bool:
        """Whether it was cut, and has not come back."""
        return self._away.is_set()

    @property
    def has_read(self) -> int:
        """How many results it has read."""
        return len(self._read_ids)

    @property
    def has_submitted_all(self) -> bool:
        return len(self.submitted) == len(self._fields)

    def go(self) -> None:
        """Has it cut in its next call."""
        self._back.clear()
        self._cut.set()

    def come(self, waiting: int | None = None) -> None:
        """Lets it come back, to so many results that have waited."""
        self._waiting = waiting
        self._back.set()

    def broker_gone(self, more: int) -> None:
        """Has it submit so many more than it would, because nothing is done meanwhile."""
        self._more = more

    def broker_back(self) -> None:
        """Has it submit as before."""
        self._more = 0

    def end(self) -> None:
        """Ends it, and raises what has ended it before."""
        self._ended.set()
        self._back.set()
        self.join(2 * ANSWER_S)
        if self.error is not None:
            raise self.error
