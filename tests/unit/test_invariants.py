"""Any sequence of what can happen to tasks leaves the tables, the log and the tally as they must be."""

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from omnid.flow import asking
from omnid.model import InputRequest, Submit
from omnid.store import journal
from tests.fakes.acted import Acted
from tests.fakes.clock import FakeClock
from tests.fakes.invariants import broken
from tests.fakes.world import AGENT, PERSON, World

CALLERS = st.sampled_from([PERSON, PERSON, AGENT])
ACTIONS = st.sampled_from(
    [
        "cancel",
        "retry",
        "pause",
        "resume",
        "complete",
        "assign",
        "priority",
        "delete",
        "approve",
        "deny",
        "done",
        "again",
        "fail",
    ]
)
OUTCOMES = st.sampled_from(["success", "success", "failure", "rejected", "timeout", "cancelled", "lost", "unstarted"])
BIG = "x" * 20_000
DAY_MS = 86_400_000
READY = "SELECT id FROM task WHERE ready = 1 AND (deadline_ms IS NULL OR deadline_ms > ?)"


class Flow(Acted):
    def __init__(self) -> None:
        super().__init__(FakeClock())
        self.names: dict[str, str] = {}

    @initialize()
    def start(self) -> None:
        self.begin(World)
        self.world.set("retention", finished_max=3, kept_days_min=0, batch=2)
        self.world.set("agents", allow=("safe",))

    def known(self) -> list[str]:
        return sorted(self.names, key=lambda name: (len(name), name))

    @rule(data=st.data(), caller=CALLERS, count=st.integers(1, 4))
    def submit(self, data: st.DataObject, caller: Any, count: int) -> None:
        refs = [f"r{n}" for n in range(count)] if count > 1 else []
        asked: list[Submit] = []
        for n in range(count):
            could = [*refs[:n], *self.unfailed()]
            before = st.lists(st.sampled_from(could), max_size=2) if could else st.just([])
            asked.append(
                Submit(
                    argv=("do", data.draw(st.sampled_from(["a", "b", BIG]))),
                    executor=data.draw(st.sampled_from(["command", "safe"])),
                    priority=data.draw(st.integers(-1, 1)),
                    lane=data.draw(st.sampled_from([None, "x", "y"])),
                    labels=tuple(data.draw(st.lists(st.sampled_from("pq"), max_size=2, unique=True))),
                    after=tuple(data.draw(before)),
                    key=data.draw(st.sampled_from([None, None, "k", "l"])),
                    ref=refs[n] if refs else None,
                    attempts_max=data.draw(st.sampled_from([None, 1])),
                    backoff_s=data.draw(st.sampled_from([0, 10])),
                    not_before_ms=data.draw(self.times()),
                    deadline_ms=data.draw(self.times()),
                )
            )
        for done in self.ask(self.world.submit, *asked, caller=caller) or ():
            assert self.names.setdefault(done.name, done.id) == done.id, "a name is given twice"

    def unfailed(self) -> list[str]:
        rows = self.do(self.world.rows, "SELECT id FROM task WHERE state NOT IN ('failed', 'cancelled') ORDER BY ord")
        return [row[0] for row in rows]

    def times(self) -> st.SearchStrategy[int | None]:
        return st.sampled_from([None, None, self.clock.now_ms + 20_000, self.clock.now_ms + 200_000])

    @rule(slots=st.integers(1, 5))
    def claim(self, slots: int) -> None:
        now_ms = self.clock.now_ms
        ready = {row[0]: self.do(self.world.task, row[0]) for row in self.do(self.world.rows, READY, now_ms)}
        rank = {id: (-task.priority, task.ord) for id, task in ready.items()}
        started = self.do(self.world.claim, slots)
        self.commands += started
        ids = [command.task_id for command in started]
        assert set(ids) <= ready.keys()
        assert [rank[id] for id in ids] == sorted(rank[id] for id in ids)
        taken = {ready[id].lane for id in ids} - {None}
        for id, task in ready.items():
            if id not in ids and ids and task.lane not in taken:
                assert rank[id] > rank[ids[-1]], "a task of lower rank went first"

    @rule(data=st.data(), names=st.sets(st.sampled_from("abc"), min_size=1))
    def ask_a_person(self, data: st.DataObject, names: set[str]) -> None:
        """An attempt asks; one that is over is refused."""
        if self.commands:
            command = data.draw(st.sampled_from(self.commands))
            requests = {name: InputRequest("elicitation/create", {"message": name}) for name in sorted(names)}
            config = self.world.context.config
            self.ask(self.world.write, lambda tx: asking.record(tx, command.attempt_id, requests, config))

    @rule(data=st.data(), again=st.booleans())
    def answer(self, data: st.DataObject, again: bool) -> None:
        """Somebody answers what is open, or once more what they have just answered."""
        rows = self.do(self.world.rows, "SELECT id FROM task WHERE state = 'input_required' ORDER BY ord")
        if rows:
            task = self.do(self.world.task, data.draw(st.sampled_from(rows))[0])
            asked = self.do(self.world.store.read, lambda reader: asking.open_requests(reader, task))
            key = data.draw(st.sampled_from(asked)).key

            def respond(tx: Any) -> None:
                asking.respond(tx, journal.need_task(tx, task.id), key, asking.UNANSWERED, "user")

            for _ in range(2 if again else 1):
                self.ask(self.world.write, respond)

    @rule(data=st.data(), outcome=OUTCOMES, output=st.sampled_from([None, "short", BIG]))
    def finish(self, data: st.DataObject, outcome: str, output: str | None) -> None:
        if not self.commands:
            return
        command = data.draw(st.sampled_from(self.commands))
        before = self.do(self.world.rows, "SELECT state, attempt FROM task WHERE id = ?", command.task_id)
        touched = self.do(self.world.finish, command, outcome, output=output)
        counts = bool(before) and before[0][1] == command.number
        ending = ["executing", "input_required"] if outcome == "lost" else ["executing", "input_required", "uncertain"]
        counts &= bool(before) and before[0][0] in ending
        assert bool(touched) == counts, "a late or double result counted, or a good one didn't"

    @rule(data=st.data(), action=ACTIONS, caller=CALLERS, always=st.booleans(), priority=st.integers(-1, 1))
    def control(self, data: st.DataObject, action: str, caller: Any, always: bool, priority: int) -> None:
        if self.names:
            name = data.draw(st.sampled_from(self.known()))
            fields = {"executor": data.draw(st.sampled_from(["command", "safe"]))} if action == "assign" else {}
            self.ask(self.world.control, name, action, caller, always=always, priority=priority, **fields)

    @rule(seconds_s=st.sampled_from([1, 15, 250]))
    def time_passes(self, seconds_s: int) -> None:
        self.clock.now_ms += seconds_s * 1000
        self.do(self.world.wake)
        overdue = "SELECT 1 FROM task WHERE state IN ('idle', 'waiting') AND (wake_at_ms <= ?1 OR deadline_ms <= ?1)"
        assert self.do(self.world.rows, overdue, self.clock.now_ms) == []

    @rule(days=st.sampled_from([0, 3, 40]))
    def retain(self, days: int) -> None:
        self.clock.now_ms += days * DAY_MS
        self.do(self.world.wake)
        self.clock.now_ms += 1  # What has ended in this very millisecond is kept.
        self.do(self.world.retain)
        finished = [row[0] for row in self.do(self.world.rows, "SELECT finished_at_ms FROM task") if row[0] is not None]
        assert len(finished) <= 3
        assert all(at_ms >= self.clock.now_ms - 30 * DAY_MS for at_ms in finished)

    @rule()
    def restart(self) -> None:
        incarnation = self.world.store.incarnation
        self.do(self.world.restart)
        assert self.world.store.incarnation == incarnation + 1

    @invariant()
    def everything_holds(self) -> None:
        if hasattr(self, "world"):
            assert self.do(broken, self.world) == []
            assert all(task.state for task in self.do(self.world.store.read, _tasks))


def _tasks(reader: Any) -> list[Any]:
    return [journal.need_task(reader, row[0]) for row in reader.connection.execute("SELECT id FROM task")]


TestFlow = Flow.TestCase
TestFlow.settings = settings(
    max_examples=15, stateful_step_count=30, suppress_health_check=list(HealthCheck), print_blob=True
)
