"""Whatever the order of crashes, reservations, settlements and days: no cap is passed, and the sums are right."""

from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from omnid.flow.caller import Caller
from omnid.flow.doctor import Doctor
from omnid.model import Submit
from omnid.settings import Cap, Origin
from omnid.store.calls import Call, check_spend, set_zone
from tests.fakes.acted import Acted
from tests.fakes.clock import FakeClock
from tests.fakes.invariants import broken
from tests.fakes.purse import Purse
from tests.fakes.world import AGENT, PERSON

HOUR_MS = 3_600_000
SPEND = "SELECT * FROM spend ORDER BY scope, day_at_ms"
OUTCOMES = st.sampled_from(["success", "failure", "rejected", "timeout", "cancelled", "lost", "unstarted", "parked"])
ZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Pacific/Kiritimati"])
USD = st.sampled_from([0, 3, 6, 11])


class Broken(Exception):
    """The machine dies in the middle of a transaction."""


def counts(call: Call) -> int:
    return call.reserved_microusd if call.spent_microusd is None else call.spent_microusd


class Lid(Acted):
    def __init__(self) -> None:
        super().__init__(FakeClock(1_772_300_000_000))  # The end of a February, before the clocks change.
        self.zone = ZoneInfo("UTC")

    @initialize(zone=ZONES)
    def start(self, zone: str) -> None:
        self.begin(Purse)
        self.world.set("retention", finished_max=2, kept_days_min=0, calls_days=32)
        self.world.set("agents", allow=("codex",))
        self.caps(11, 0, 6, 0, 6, 6, 0)
        self.other_zone(zone)
        for text in "abc":
            self.submit("claude", ("night",), None, text, PERSON)
            self.submit("codex", (), 4, text, PERSON)

    def teardown(self) -> None:
        try:
            if hasattr(self, "world"):
                self.replay()
        finally:
            super().teardown()

    @rule(
        executor=st.sampled_from(["claude", "claude", "codex", "command"]),
        labels=st.sampled_from([(), ("night",), ("night", "x")]),
        cost_max_usd=st.sampled_from([None, None, 0.5, 4]),
        text=st.text("abcdefgh", min_size=3, max_size=3),
        caller=st.sampled_from([PERSON, AGENT, Caller("agent", "mallory")]),
    )
    def submit(self, executor: str, labels: Any, cost_max_usd: float | None, text: str, caller: Any) -> None:
        asked = Submit(argv=("do", text), executor=executor, labels=labels, cost_max_usd=cost_max_usd, backoff_s=0)
        self.ask(self.world.submit, asked, caller=caller)

    @rule(slots=st.integers(1, 4))
    def claim(self, slots: int) -> None:
        started = self.do(self.world.claim, slots)
        self.commands += started
        calls = {call.attempt_id: call for call in self.do(self.world.calls)}
        for command in started:
            if command.executor == "command":
                assert command.attempt_id not in calls
                continue
            call = calls[command.attempt_id]
            assert call.reserved_microusd == round((command.cost_max_usd or 0) * 1e6) > 0
            for label, scope, month, limit in self.lids():
                if scope in (None, call.executor, *call.labels, f"origin:{call.origin}"):
                    total = sum(counts(one) for one in calls.values() if self.stands_under(one, scope, month))
                    assert total <= limit, f"{label}: {total}"
            own_usd = self.do(self.world.task, command.task_id).work.cost_max_usd
            if own_usd is not None:
                total = sum(counts(one) for one in calls.values() if one.task_id == command.task_id)
                assert total <= round(own_usd * 1e6), "the lid of the task itself"

    def lids(self) -> list[tuple[str, str | None, bool, int]]:
        config = self.world.context.config
        found = [("all", None, False, config.budget.day_usd), ("all", None, True, config.budget.month_usd)]
        for cap in config.cap:
            found += [
                (cap.name, cap.label or cap.executor, month, usd)
                for month, usd in ((False, cap.day_usd), (True, cap.month_usd))
            ]
        own, others = config.origin
        found += [
            ("own", f"origin:{own.name}", False, own.day_usd),
            ("others", "origin:mallory", True, others.month_usd),
        ]
        return [(name, scope, month, round(usd * 1e6)) for name, scope, month, usd in found if usd]

    def stands_under(self, call: Call, scope: str | None, month: bool) -> bool:
        """Tells whether a call counts in the present window, by dates alone."""
        then, now = (
            datetime.fromtimestamp(at_ms / 1000, UTC).astimezone(self.zone).date()
            for at_ms in (call.started_at_ms, self.clock.now_ms)
        )
        same = (then.year, then.month) == (now.year, now.month) if month else then == now
        return same and scope in (None, call.executor, *call.labels, f"origin:{call.origin}")

    @rule(slots=st.integers(1, 4))
    def claim_that_dies(self, slots: int) -> None:
        before = self.do(self.world.calls)
        write = self.world.write

        async def dying(fn: Any) -> Any:
            def broken_off(tx: Any) -> Any:
                fn(tx)
                raise Broken

            return await write(broken_off)

        self.world.write = dying
        try:
            self.do(self.world.claim, slots)
        except Broken:
            pass
        finally:
            self.world.write = write
        self.do(self.world.restart)
        assert self.do(self.world.calls) == before

    @rule(data=st.data(), outcome=OUTCOMES, share=st.sampled_from([None, 0, 0.3, 1]))
    def finish(self, data: st.DataObject, outcome: str, share: float | None) -> None:
        if not self.commands:
            return
        command = data.draw(st.sampled_from(self.commands))
        before = self.do(self.world.calls)
        cost_usd = None if share is None else share * (command.cost_max_usd or 0)
        counted = self.do(self.world.finish, command, outcome, cost_usd=cost_usd)
        after = self.do(self.world.calls)
        mine = [call for call in after if call.attempt_id == command.attempt_id]
        if not counted:
            assert before == after, "a refused result settled something"
        elif mine:
            (call,) = mine
            (was,) = [one.spent_microusd for one in before if one.id == call.id]
            spent = 0 if cost_usd is None and outcome == "unstarted" else cost_usd
            assert call.settled_at_ms is not None
            # What is known is settled once; only what nobody knew can still be said.
            assert call.spent_microusd == (was if was is not None or spent is None else round(spent * 1e6))

    @rule(data=st.data(), action=st.sampled_from(["retry", "cancel", "delete", "again", "approve", "budget"]))
    def control(self, data: st.DataObject, action: str) -> None:
        rows = self.do(self.world.rows, "SELECT id FROM task ORDER BY ord")
        if rows:
            id = data.draw(st.sampled_from(rows))[0]
            self.ask(self.world.control, id, action, cost_max_usd=data.draw(st.sampled_from([0.5, 4, 9])))

    @rule(hours=st.sampled_from([0.1, 5, 24, 40, 24 * 20]))
    def time_passes(self, hours: float) -> None:
        self.clock.now_ms += round(hours * HOUR_MS)
        self.do(self.world.wake)
        due = [gate for gate in self.world.gates.all() if gate.wake_at_ms and gate.wake_at_ms <= self.clock.now_ms]
        if due:
            self.do(self.world.gates.look_at_budget)

    @rule(day=USD, month=USD, label=USD, label_month=USD, executor=USD, origin=USD, others=USD)
    def caps(
        self,
        day: float,
        month: float,
        label: float,
        label_month: float,
        executor: float,
        origin: float,
        others: float,
    ) -> None:
        """A changed config is taken over, as the daemon does it."""
        self.world.cap(
            Cap(name="night", label="night", day_usd=label, month_usd=label_month),
            Cap(name="codex", executor="codex", day_usd=executor),
            origins=(Origin(name="claude", day_usd=origin), Origin(name="*", month_usd=others)),
            day_usd=day,
            month_usd=month,
        )
        self.do(self.world.gates.look_at_budget, release=True)

    @rule(zone=ZONES)
    def other_zone(self, zone: str) -> None:
        self.zone = ZoneInfo(zone)
        self.do(self.world.write, lambda tx: set_zone(tx, ZoneInfo(zone)))

    @rule()
    def restart(self) -> None:
        self.do(self.world.restart)

    @rule()
    def retain(self) -> None:
        self.do(self.world.retain)

    @rule()
    def replay(self) -> None:
        """What the log adds up to is what was kept in step."""

        async def rebuilt() -> Any:
            last = (await self.world.rows("SELECT coalesce(max(seq), 0) FROM change"))[0][0]
            async with Doctor(self.world.context).state_at(last) as replica:
                return list(replica.connection.execute(SPEND))

        assert self.do(rebuilt) == self.do(self.world.rows, SPEND)
        assert self.do(broken, self.world) == []

    @invariant()
    def everything_holds(self) -> None:
        if hasattr(self, "world"):
            assert self.do(self.world.store.read, check_spend) == []
            gates = {row[0] for row in self.do(self.world.rows, "SELECT id FROM gate")}
            assert gates == {gate.id for gate in self.world.gates.all()}, "memory and journal differ"


TestLid = Lid.TestCase
TestLid.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
    report_multiple_bugs=False,
    phases=(Phase.explicit, Phase.generate),
)
