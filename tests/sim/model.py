"""What must hold, kept apart from the code that must hold it: plain dicts, fed by the log, by clients and by the world.

Each entry of the log is checked against the state before it (promises 2 and 4), each effect in the world against what
people asked for (promise 3), and the tables against these dicts at every start and whenever nothing moves.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

Row = dict[str, Any]

ENDED = ("completed", "failed", "cancelled")
OPEN = ("idle", "waiting")
NEXT = {
    "idle": {"waiting", "executing", *ENDED},
    "waiting": {"idle", *ENDED},
    "executing": {"idle", "waiting", "uncertain", *ENDED},
    "uncertain": {"idle", "waiting", *ENDED},
    "failed": {"idle", "waiting", "completed"},
    "cancelled": {"idle", "waiting", "completed"},
    "completed": set[str](),
}
TIMED = ("not_before", "backoff")
REPEATABLE = ("failure", "timeout", "unstarted", "parked")
LIMITS = ("login", "rate_limit")
SET_BACK_MS = 1000
PROVEN_MS = 300_000


class View(NamedTuple):
    """What the daemon holds in memory when it asks for a write: what runs by executor, and what is closed."""

    running: dict[str, int]
    closed: frozenset[str]


class Entry(NamedTuple):
    """One entry of the log."""

    seq: int
    hlc: int
    collection: str
    id: str
    kind: str
    fields: Row

    @classmethod
    def of(cls, row: Sequence[Any]) -> "Entry":
        return cls(*row[:5], json.loads(row[5]).get("f", {}))


class Limits(NamedTuple):
    """What the config allows."""

    slots: int
    concurrency: dict[str, int | None]
    idempotent: dict[str, bool]
    agents_allow: tuple[str, ...]
    finished_max: int


class Model:
    """The journal as it must be. `fail` is called with the first thing that must not be."""

    def __init__(self, limits: Limits, fail: Callable[[str], None], trace: Callable[[str], None]) -> None:
        self._limits = limits
        self._fail = fail
        self._trace = trace
        self.tasks: dict[str, Row] = {}
        self.attempts: dict[str, Row] = {}
        self.gates: dict[str, Row] = {}
        self.answers: set[str] = set()
        self.deleted: set[str] = set()
        self.acknowledged: set[str] = set()
        self.paused: set[str] = set()
        """Subjects of gates whose pause was acknowledged."""
        self.effects: Counter[str] = Counter()
        self.created: Counter[str] = Counter()
        """Tasks made, by the label that names their submit."""
        self.orders: defaultdict[tuple[str, str], int] = defaultdict(int)
        """Orders that clients gave and that were not carried out yet, by (task, action)."""
        self.repeats: Counter[str] = Counter()
        """How often a person let a task run once more."""
        self._numbers: dict[str, int] = {}
        self._wall_max_ms = 0

    # What the world and the clients say.

    def effect(self, task_id: str, attempt_id: str, *, harmless: bool) -> None:
        """An attempt had its effect (promise 3)."""
        if harmless:
            return
        self.effects[task_id] += 1
        if self.effects[task_id] > 1 + self.repeats[task_id]:
            self._fail(f"{self.name(task_id)} had its effect {self.effects[task_id]} times (attempt {attempt_id[-6:]})")

    def settled(self, attempt_id: str) -> None:
        """What was kept for a recovery goes."""
        attempt = self.attempts.get(attempt_id)
        if attempt is not None and attempt.get("ended_at_ms") is None:
            self._fail(f"attempt {attempt_id[-6:]} is let go of, and is open")

    def ordered(self, task_id: str, action: str) -> None:
        """A client is about to give an order."""
        self.orders[task_id, action] += 1
        if action in ("again", "retry"):
            self.repeats[task_id] += 1

    def refused(self, task_id: str, action: str) -> None:
        """The order was refused for good."""
        self.orders[task_id, action] -= 1
        if action in ("again", "retry"):
            self.repeats[task_id] -= 1

    def submitted(self, task_id: str, asked: Row) -> None:
        """A client was told that its task is taken (promise 2)."""
        self.acknowledged.add(task_id)
        task = self.tasks.get(task_id)
        if task is None:
            if task_id not in self.deleted:
                self._fail(f"a task was acknowledged and isn't there: {asked}")
        elif any(task.get(name) != value for name, value in asked.items()):
            self._fail(f"{self.name(task_id)} isn't what was asked for: {asked}")

    def is_stale(self, task_id: str, number: int) -> bool:
        """Tells whether an attempt's result comes too late to count."""
        task = self.tasks.get(task_id)
        return task is None or number != task["attempt"] or task["state"] in ENDED

    def name(self, task_id: str) -> str:
        task = self.tasks.get(task_id)
        return f"{task['origin']}/t{task['number']}" if task else f"task {task_id[-6:]}"

    # What the log says.

    def committed(self, entries: list[Entry], view: View, now_ms: int) -> None:
        """One function's changes are durable."""
        self._wall_max_ms = max(self._wall_max_ms, now_ms)
        starts = [e.id for e in entries if e.collection == "task" and e.fields.get("state") == "executing"]
        unknown = [id for id in starts if id not in self.tasks]
        if unknown:
            self._fail(f"a task starts that the log doesn't know: {unknown}")
            return
        if starts:
            self._check_starts(starts, view, now_ms)
        touched: dict[str, Row] = {}
        for entry in entries:
            self._trace(f"{entry.kind} {entry.collection} {entry.id[-6:]} {_short(entry.fields)}")
            if entry.collection == "task":
                before = self.tasks.get(entry.id)
                touched.setdefault(entry.id, dict(before) if before else {})
            self._take(entry)
        ended = {e.id for e in entries if e.collection == "attempt" and "outcome" in e.fields}
        for id, before in touched.items():
            if id in self.tasks:
                self._check_task(id, before, ended)

    def _take(self, entry: Entry) -> None:
        table = {"task": self.tasks, "attempt": self.attempts, "gate": self.gates}.get(entry.collection)
        if entry.collection == "answer":
            self.answers.add(entry.id)
        if table is None:
            return
        if entry.kind == "delete":
            row = table.pop(entry.id)
            if entry.collection == "task":
                self._deleted(entry.id, row)
        elif entry.kind == "create":
            table[entry.id] = {**entry.fields, "ord": entry.hlc, "id": entry.id}
            if entry.collection == "task":
                self._created(table[entry.id])
            elif entry.collection == "attempt":
                self._begun(table[entry.id])
        else:
            if entry.collection == "attempt" and "outcome" in entry.fields:
                self._ends(entry)
            table[entry.id].update(entry.fields)

    def _created(self, task: Row) -> None:
        task.setdefault("attempt", 0)
        label = task["labels"][0]
        self.created[label] += 1
        if self.created[label] > 1 and task.get("key") is None:
            self._fail(f"{label} was submitted once and taken twice")
        if task["number"] <= self._numbers.get(task["origin"], 0):
            self._fail(f"the name {task['origin']}/t{task['number']} is given a second time")
        self._numbers[task["origin"]] = task["number"]
        key = (task["origin"], task.get("key"))
        # Those that have ended may have been taken by retention in the meantime.
        twins = [t for t in self.tasks.values() if (t["origin"], t.get("key")) == key and t["state"] not in ENDED]
        if key[1] is not None and len(twins) > 1:
            self._fail(f"two tasks have the key {key}")
        unknown = [id for id in task["work"].get("after", ()) if id not in self.tasks and id not in self.deleted]
        if unknown:
            self._fail(f"{label} waits for a task that isn't there: {unknown}")

    def _deleted(self, id: str, task: Row) -> None:
        self._use(id, "delete")
        self.deleted.add(id)
        if task["state"] not in (*OPEN, *ENDED, "uncertain"):
            self._fail(f"a task was deleted while it ran: {task}")
        for attempt_id in [a["id"] for a in self.attempts.values() if a["task_id"] == id]:
            del self.attempts[attempt_id]

    def _begun(self, attempt: Row) -> None:
        task = self.tasks[attempt["task_id"]]
        if attempt["number"] != task["attempt"] + 1:
            self._fail(f"attempt {attempt['number']} of {self.name(task['id'])} follows {task['attempt']}")

    def _ends(self, entry: Entry) -> None:
        attempt = self.attempts[entry.id]
        task = self.tasks[attempt["task_id"]]
        if attempt["number"] != task["attempt"]:
            self._fail(f"a result of an old attempt of {self.name(task['id'])} was taken")
        if attempt.get("ended_at_ms") is not None and task["state"] != "uncertain":
            self._fail(f"attempt {attempt['number']} of {self.name(task['id'])} ended twice")

    def _use(self, id: str, *actions: str) -> bool:
        for action in actions:
            if self.orders[id, action] > 0:
                self.orders[id, action] -= 1
                return True
        self._fail(f"{self.name(id)}: nobody asked for any of {actions}")
        return False

    def _check_task(self, id: str, before: Row, ended: set[str]) -> None:
        """Looks at one task after a transaction that changed it."""
        task = self.tasks[id]
        was, state = before.get("state"), task["state"]
        current = [a for a in self.attempts.values() if a["task_id"] == id]
        unfinished = [a["number"] for a in current if a.get("ended_at_ms") is None]
        if unfinished != ([task["attempt"]] if state == "executing" else []):
            self._fail(f"{self.name(id)} is {state} at attempt {task['attempt']}, and open are {unfinished}")
        if (task.get("finished_at_ms") is not None) != (state in ENDED):
            self._fail(f"{self.name(id)} is {state} with finished_at_ms {task.get('finished_at_ms')}")
        self._check_wait(task)
        if was is not None and was != state:
            if state not in NEXT[was]:
                self._fail(f"{self.name(id)} went from {was} to {state}")
            last = max(current, key=lambda a: a["number"], default=None)
            self._check_move(task, before, last if last is not None and last["id"] in ended else None)

    def _check_wait(self, task: Row) -> None:
        state, reason = task["state"], task.get("reason")
        name = self.name(task["id"])
        if (state == "waiting") != (reason is not None):
            self._fail(f"{name} is {state} with the reason {reason}")
        if (task.get("wake_at_ms") is not None) != (reason in TIMED):
            self._fail(f"{name} is {state} for {reason} and wakes at {task.get('wake_at_ms')}")
        own = "paused" if task.get("paused") else "approval" if task.get("approval") == "needed" else None
        if state in OPEN and own is not None and reason != own:
            self._fail(f"{name} is {state} for {reason}, and {own} comes first")

    def _check_move(self, task: Row, before: Row, ended: Row | None) -> None:
        """Looks at whether something happened that accounts for a move."""
        id, was, state = task["id"], before["state"], task["state"]
        outcome = ended and ended["outcome"]
        if was == "executing":
            again = outcome in REPEATABLE or (outcome == "lost" and ended is not None and ended.get("idempotent"))
            fits = {
                "completed": outcome == "success",
                "uncertain": outcome == "lost" and ended is not None and not ended.get("idempotent"),
                "failed": outcome not in (None, "success"),
                "cancelled": outcome not in (None, "success") and bool(task.get("cancel")),
            }
            if not fits.get(state, again):
                self._fail(f"{self.name(id)} became {state} by {outcome}")
            if outcome == "parked" and state == "idle" and (task.get("failures") or 0) > (before.get("failures") or 0):
                self._fail(f"{self.name(id)} was parked, and that counts against it")
        elif was == "uncertain" and ended is not None:
            if outcome == "lost":
                self._fail(f"{self.name(id)} was resolved by a result that knows nothing")
        elif was == "uncertain":
            orders = {"completed": ("done", "complete"), "failed": ("fail",), "cancelled": ("cancel", "delete")}
            self._use(id, *orders.get(state, ("again",)))
        elif was in ENDED:
            self._use(id, "complete" if state == "completed" else "retry")
        elif state in ("completed", "cancelled"):
            self._use(id, "complete" if state == "completed" else "cancel")

    # Promise 4.

    def rank(self, task: Row) -> tuple[int, int]:
        """Gives a task's place: smaller starts first."""
        return -task.get("priority", 0), task["ord"]

    def _check_starts(self, ids: list[str], view: View, now_ms: int) -> None:
        """Looks at a claim: each may start, no limit is passed, and nothing of a lower rank took another's place."""
        for id in ids:
            self._check_start(self.tasks[id], now_ms)
        lanes = [lane for id in ids if (lane := self.tasks[id].get("lane")) is not None]
        if len(lanes) != len(set(lanes)):
            self._fail(f"two tasks of a lane start at once: {lanes}")
        running = self.running()
        running.update(self.tasks[id]["executor"] for id in ids)
        if running.total() > self._limits.slots:
            self._fail(f"{running.total()} attempts run in {self._limits.slots} slots")
        for name, count in running.items():
            most = self._limits.concurrency[name]
            if most is not None and count > most:
                self._fail(f"{count} attempts run on {name}, which takes {most}")
        self._check_probes(ids, now_ms)
        self._check_order(ids, view, now_ms)

    def _check_probes(self, ids: list[str], now_ms: int) -> None:
        """Behind a limit nothing starts before its time, and then one at a time."""
        for gate in [gate for gate in self.gates.values() if gate["cause"] in LIMITS]:
            starts = [self.name(id) for id in ids if self.tasks[id]["executor"] == gate["subject"]]
            if starts and not self.is_due(gate, now_ms):
                self._fail(f"{starts} start on {gate['subject']}, whose limit lifts at {gate['wake_at_ms']}")
            if starts and len(starts) + len(self._probes(gate)) > 1 and not self._got_through(gate, now_ms):
                self._fail(f"{starts} try {gate['subject']} beside {self._probes(gate)}")

    def is_due(self, gate: Row, now_ms: int) -> bool:
        """Tells whether a task may try what a limit has closed."""
        return gate["wake_at_ms"] <= now_ms or gate["closed_at_ms"] > now_ms + SET_BACK_MS

    def _tries(self, gate: Row) -> list[Row]:
        return [
            attempt
            for attempt in self.attempts.values()
            if attempt["executor"] == gate["subject"] and attempt["ord"] > gate["ord"]
            if attempt.get("ended_at_ms") is None
        ]

    def _probes(self, gate: Row) -> list[str]:
        return [self.name(attempt["task_id"]) for attempt in self._tries(gate)]

    def _got_through(self, gate: Row, now_ms: int) -> bool:
        """Tells whether a task has tried for so long that the limit must be over."""
        return any(attempt["started_at_ms"] <= now_ms - PROVEN_MS for attempt in self._tries(gate))

    def _shut(self, gate: Row, started: Iterable[Row], now_ms: int) -> bool:
        """Tells whether a gate keeps a task from its start beside those that start now."""
        if gate["cause"] not in LIMITS or not self.is_due(gate, now_ms):
            return True
        if self._got_through(gate, now_ms):
            return False
        return bool(self._probes(gate)) or any(task["executor"] == gate["subject"] for task in started)

    def _check_start(self, task: Row, now_ms: int) -> None:
        name = self.name(task["id"])
        why = self.held(task, now_ms)
        if why is None and (task.get("not_before_ms") or 0) > self._wall_max_ms:
            why = "it is too early"
        if why is None and self.paused & {"*", task["executor"]}:
            why = "its executor was paused"
        if why is not None:
            self._fail(f"{name} was started, but {why}")
        for before in task["work"].get("after", ()):
            found = self.tasks.get(before)
            if found is not None and found["state"] != "completed" and not self.repeats[task["id"]]:
                self._fail(f"{name} was started before {self.name(before)} was done")

    def held(self, task: Row, now_ms: int) -> str | None:
        """Says what of its own or of its lane keeps a task from its start, or None."""
        if task["state"] != "idle":
            return f"it was {task['state']}"
        if task.get("paused") or task.get("approval") in ("needed", "denied") or task.get("cancel"):
            return "a person holds it"
        if (task.get("deadline_ms") or now_ms + 1) <= now_ms:
            return "its deadline has passed"
        lane = task.get("lane")
        if lane is not None and any(t.get("lane") == lane and t["state"] == "executing" for t in self.tasks.values()):
            return f"the lane {lane} is busy"
        return None

    def _check_order(self, ids: list[str], view: View, now_ms: int) -> None:
        """Nothing that could start may be kept from it by what started and ranks lower."""
        started = [self.tasks[id] for id in ids]
        for task in self.tasks.values():
            if task["id"] in ids or self.held(task, now_ms) is not None:
                continue
            higher = [t for t in started if self.rank(t) < self.rank(task)]
            if self._fits(task, higher, view, now_ms) and not self._fits(task, started, view, now_ms):
                overtook = [self.name(t["id"]) for t in started if t not in higher]
                self._fail(f"{self.name(task['id'])} was overtaken by {overtook}")

    def _fits(self, task: Row, started: Sequence[Row], view: View, now_ms: int) -> bool:
        """Tells whether a task may start beside others, as far as the daemon knew when it decided."""
        closed = view.closed | {g["subject"] for g in self.gates.values() if self._shut(g, started, now_ms)}
        if closed & {"*", task["executor"]}:
            return False
        running = Counter(view.running)
        lanes: set[str] = set()
        for other in started:
            running[other["executor"]] += 1
            lanes.add(other.get("lane") or "")
        most = self._limits.concurrency[task["executor"]]
        return (
            running.total() < self._limits.slots
            and (most is None or running[task["executor"]] < most)
            and (task.get("lane") is None or task["lane"] not in lanes)
        )

    def running(self) -> Counter[str]:
        """Counts the open attempts by executor."""
        return Counter(a["executor"] for a in self.attempts.values() if a.get("ended_at_ms") is None)

    def check_nothing_idles(self, now_ms: int) -> None:
        """When nothing moves, no task waits that could run."""
        view = View(dict(self.running()), frozenset())
        for task in self.tasks.values():
            if self.held(task, now_ms) is None and self._fits(task, (), view, now_ms):
                self._fail(f"{self.name(task['id'])} could run, and waits")

    def check_nothing_oversleeps(self, now_ms: int, grace_ms: int) -> None:
        """What time ends has ended, but for the grace of the timer."""
        for task in self.tasks.values():
            wake_ms, deadline_ms = task.get("wake_at_ms"), task.get("deadline_ms")
            if wake_ms is not None and wake_ms < now_ms - grace_ms:
                self._fail(f"{self.name(task['id'])} oversleeps by {now_ms - wake_ms} ms")
            if deadline_ms is not None and deadline_ms < now_ms - grace_ms and task["state"] in OPEN:
                self._fail(f"{self.name(task['id'])} outlives its deadline by {now_ms - deadline_ms} ms")

    # The tables.

    def compare(self, tables: dict[str, list[Row]]) -> None:
        """Compares the tables with what the log said; retention may have taken what had ended."""
        for name, mine in (("task", self.tasks), ("attempt", self.attempts), ("gate", self.gates)):
            theirs = {row["id"]: row for row in tables[name]}
            for id in [id for id in mine if id not in theirs]:
                row = mine.pop(id)
                if name == "task" and row["state"] in ENDED:
                    self.deleted.add(id)
                elif name != "attempt" or row["task_id"] not in self.deleted:
                    self._fail(f"{name} {id[-6:]} is lost: {_short(row)}")
            for id, row in theirs.items():
                known = mine.get(id)
                wrong = [
                    f for f, v in row.items() if f != "id" and (known is None or (known.get(f) or None) != (v or None))
                ]
                if wrong:
                    self._fail(f"{name} {id[-6:]} differs in {wrong}: {row}")
        for id in self.acknowledged - self.tasks.keys() - self.deleted:
            self._fail(f"task {id[-6:]} was acknowledged and is lost")

    def unfinished(self) -> list[Row]:
        """Gives the tasks that have not ended and that no person is asked about."""
        return [task for task in self.tasks.values() if not self._rests(task, set())]

    def _rests(self, task: Row, seen: set[str]) -> bool:
        state, reason = task["state"], task.get("reason")
        if state in (*ENDED, "uncertain") or reason in ("paused", "approval"):
            return True
        if state == "idle" and {f"paused:{task['executor']}", "paused:*"} & self.gates.keys():
            return True
        if reason != "dependency" or task["id"] in seen:
            return False
        open_before = [b for id in task["work"]["after"] if (b := self.tasks.get(id)) and b["state"] not in ENDED]
        return bool(open_before) and all(self._rests(b, {*seen, task["id"]}) for b in open_before)

    def check_effects(self) -> None:
        """What is told to be done was done, once at least."""
        for attempt in self.attempts.values():
            told = attempt.get("outcome") == "success" and not attempt.get("idempotent")
            if told and not self.effects[attempt["task_id"]]:
                self._fail(f"{self.name(attempt['task_id'])} is told to be done and had no effect")


def _short(fields: Row) -> str:
    shown = {name: value for name, value in fields.items() if name not in ("work", "problem", "body_hash", "result")}
    problem = fields.get("problem")
    return json.dumps({**shown, **({"problem": problem["code"]} if problem else {})}, sort_keys=True)
