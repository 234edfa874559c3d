"""Money along the way of a task: reserved with its claim, settled with its end; gates, waits, notices, and loops."""

from functools import partial
from typing import Any

import anyio
import pytest
from msgspec import structs

from omnid.errors import Rejected, Retryable
from omnid.flow import money
from omnid.flow.caller import Caller
from omnid.flow.dispatcher import Dispatcher
from omnid.flow.doctor import Doctor
from omnid.flow.recovery import Recovery
from omnid.flow.results import Results
from omnid.flow.runner import Runner
from omnid.flow.turned import Turned
from omnid.link.embedded import EmbeddedLink
from omnid.model import Command, Problem, Result, Submit
from omnid.retry import Backoff
from omnid.settings import Cap
from omnid.states import NEVER_MS
from omnid.store.calls import check_spend
from tests.fakes.clock import FakeClock
from tests.fakes.invariants import broken
from tests.fakes.purse import Purse
from tests.fakes.world import AGENT

pytestmark = pytest.mark.anyio
HOUR_MS = 3_600_000
Told = list[tuple[str, str, dict[str, str]]]


@pytest.fixture
async def purse(tmp_path: Any, clock: FakeClock) -> Any:
    made = Purse(tmp_path / "world", clock)
    try:
        yield made
        assert await broken(made) == []
    finally:
        made.close()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    said: Told = []

    def tell(_tx: Any, _config: Any, kind: str, subject: str, **fields: str) -> None:
        said.append((kind, subject, fields))

    monkeypatch.setattr("omnid.flow.notify.tell", tell)
    return said


async def started(purse: Purse, text: str = "x", executor: str = "claude", **fields: Any) -> Command:
    await purse.add("do", text, executor=executor, **fields)
    (command,) = await purse.claim()
    return command


async def amounts(purse: Purse, scope: str = "all") -> tuple[int, ...]:
    """Gives spent, reserved, unknown and calls, in cents."""
    row = await purse.store.read(lambda reader: reader.one("spend_between", scope, 0, 1 << 62))
    return (*(value // 10_000 for value in row[:3]), row[3])


async def test_an_executor_that_costs_nothing_has_no_calls(purse: Purse) -> None:
    purse.cap(day_usd=0.01)
    command = await started(purse, executor="command")
    assert command.cost_max_usd is None
    await purse.finish(command, "success", cost_usd=3)
    assert await purse.calls() == []


async def test_what_is_reserved_is_passed_on_and_settled_by_what_came_back(purse: Purse) -> None:
    command = await started(purse, labels=("night",))
    assert command.cost_max_usd == 5
    assert await amounts(purse) == (0, 500, 0, 1)
    await purse.finish(command, "success", cost_usd=1.25)
    for scope in ("all", "executor:claude", "label:night"):
        assert await amounts(purse, scope) == (125, 0, 0, 1)
    await purse.finish(command, "success", cost_usd=4)
    assert await amounts(purse) == (125, 0, 0, 1), "a late result settles nothing twice"


@pytest.mark.parametrize(
    ("outcome", "cost_usd", "problem", "after"),
    [
        ("success", None, None, (0, 0, 500, 1)),
        ("failure", 0.5, None, (50, 0, 0, 1)),
        ("timeout", None, None, (0, 0, 500, 1)),
        ("unstarted", None, None, (0, 0, 0, 1)),
        ("parked", 0.1, None, (10, 0, 0, 1)),
        ("parked", None, None, (0, 0, 500, 1)),
        ("rejected", None, Problem.make("command_not_found", program="claude", detail="x"), (0, 0, 0, 1)),
        ("rejected", None, Problem.make("bad_result", executor="claude", detail="x", task="t1"), (0, 0, 500, 1)),
        ("success", -3, None, (0, 0, 0, 1)),
        ("success", 7, None, (700, 0, 0, 1)),
    ],
)
async def test_how_an_end_settles(
    purse: Purse, outcome: str, cost_usd: float | None, problem: Problem | None, after: tuple[int, ...]
) -> None:
    await purse.finish(await started(purse), outcome, cost_usd=cost_usd, problem=problem)
    assert await amounts(purse) == after


async def test_a_result_that_resolves_what_was_unknown_settles_it(purse: Purse) -> None:
    command = await started(purse)
    await purse.finish(command, "lost")
    assert await amounts(purse) == (0, 0, 500, 1)
    await purse.finish(command, "success", cost_usd=2)
    assert await amounts(purse) == (200, 0, 0, 1)


async def test_a_crash_keeps_the_reservation_and_recovery_its_amount(purse: Purse) -> None:
    await started(purse, executor="codex")
    await purse.restart()
    assert await amounts(purse) == (0, 200, 0, 1)
    seen: list[Command] = []

    class Watched(Runner):
        def begin(self, group: Any, command: Command, name: str | None = None) -> None:
            seen.append(command)

    results = Results(purse.context, purse.gates)
    runner = Watched(purse.context, purse.gates, results)
    async with anyio.create_task_group() as group:
        assert await Recovery(purse.context, runner, results).run(group) == 1
    assert seen[0].cost_max_usd == 2


async def test_a_full_cap_closes_the_gate_until_the_next_day(purse: Purse, clock: FakeClock, told: Told) -> None:
    purse.cap(day_usd=5)
    await purse.finish(await started(purse), "success", cost_usd=4.8)
    await purse.add("do", "y", executor="claude")
    await purse.add("do", "z", executor="command")
    assert [command.executor for command in await purse.claim()] == ["command"]
    gate = purse.gates.of("claude")
    assert gate is not None
    assert gate.problem is not None
    assert (gate.cause, gate.problem.code) == ("budget", "budget_reached")
    assert gate.wake_at_ms == 1_800_057_600_000
    assert [(kind, subject, fields["percent"]) for kind, subject, fields in told] == [
        ("budget", "budget.day_usd", "80"),
        ("budget", "budget.day_usd", "100"),
    ]
    await purse.restart()
    assert purse.gates.of("claude") == gate
    await purse.gates.look_at_budget()
    assert purse.gates.of("claude") is not None, "it is too early"
    clock.now_ms = gate.wake_at_ms
    async with anyio.create_task_group() as group:
        purse.gates.probe_due(group)
    assert purse.gates.all() == []
    (command,) = await purse.claim()
    assert command.cost_max_usd == 5
    assert len(told) == 2, "once for each window"


async def test_what_a_run_gives_back_opens_the_gate_at_once(purse: Purse) -> None:
    purse.cap(day_usd=3)
    first = await started(purse, executor="codex")
    await purse.add("do", "y", executor="codex")
    assert await purse.claim() == []
    gate = purse.gates.of("codex")
    assert gate is not None
    assert gate.problem is not None
    assert gate.problem.code == "budget_reserved"
    result = Result(first.attempt_id, first.task_id, first.number, "success", cost_usd=0.5)
    assert await Results(purse.context, purse.gates).settle(result)
    assert purse.gates.all() == []
    assert len(await purse.claim()) == 1


async def test_a_gate_says_anew_why_it_is_closed_when_what_ran_gives_nothing_back(purse: Purse) -> None:
    purse.cap(day_usd=3)
    first = await started(purse, executor="codex")
    await purse.add("do", "y", executor="codex")
    assert await purse.claim() == []
    result = Result(first.attempt_id, first.task_id, first.number, "success", cost_usd=2.0)
    assert await Results(purse.context, purse.gates).settle(result)
    gate = purse.gates.of("codex")
    assert gate is not None
    assert gate.problem is not None
    assert (gate.problem.code, "$2.00 spent, and" in gate.problem.what) == ("budget_reached", True), gate.problem.what


async def test_a_run_that_never_fits_says_so_and_a_raised_cap_lets_it_go(purse: Purse) -> None:
    purse.cap(day_usd=1)
    await purse.add("do", "y", executor="codex")
    assert await purse.claim() == []
    gate = purse.gates.of("codex")
    assert gate is not None
    assert gate.problem is not None
    assert (gate.problem.code, gate.wake_at_ms) == ("budget_never", None)
    purse.cap(day_usd=2)
    await purse.gates.look_at_budget(release=True)
    assert len(await purse.claim()) == 1


async def test_a_labels_cap_makes_its_tasks_wait_and_no_others(purse: Purse, clock: FakeClock) -> None:
    purse.cap(Cap(name="n", label="night", day_usd=2))
    first = await started(purse, executor="codex", labels=("night",))
    for number in range(3):
        await purse.add("do", f"n{number}", executor="codex", labels=("night",))
    await purse.add("do", "other", executor="codex")
    assert [command.name for command in await purse.claim()] == ["t5"]
    task = await purse.task((await purse.rows("SELECT id FROM task WHERE number = 2"))[0][0])
    assert (task.state, task.reason, task.wake_at_ms) == ("waiting", "budget", 1_800_057_600_000)
    assert purse.gates.all() == []
    await purse.finish(first, "success", cost_usd=0)
    assert [command.name for command in await purse.claim()] == ["t2"], "what was given back is used"
    clock.now_ms += 24 * HOUR_MS
    await purse.wake()
    assert [command.name for command in await purse.claim()] == ["t3"]


async def test_a_tasks_own_lid_waits_for_a_person_who_raises_it(purse: Purse, told: Told) -> None:
    command = await started(purse, cost_max_usd=2, backoff_s=0)
    assert command.cost_max_usd == 2
    await purse.finish(command, "failure", cost_usd=1.9)
    assert await purse.claim() == []
    task = await purse.task(command.task_id)
    assert (task.reason, task.wake_at_ms, task.budget_at_ms) == ("budget", None, NEVER_MS)
    assert task.problem is not None
    assert task.problem.code == "budget_task"
    assert told[-1][:2] == ("needs_you", task.id)
    await purse.gates.look_at_budget(release=True)
    assert await purse.claim() == [], "a changed config doesn't raise it"
    with pytest.raises(Rejected) as refused:
        await purse.control("t1", "budget", AGENT, cost_max_usd=9)
    assert refused.value.code == "not_allowed"
    with pytest.raises(Rejected) as refused:
        await purse.control("t1", "budget")
    assert refused.value.code == "bad_request"
    await purse.control("t1", "budget", cost_max_usd=4)
    (command,) = await purse.claim()
    assert command.cost_max_usd == 2.1
    await purse.finish(command, "success", cost_usd=1)
    with pytest.raises(Rejected) as refused:
        await purse.control("t1", "budget", cost_max_usd=9)
    assert refused.value.code == "not_in_state"


async def test_a_task_that_waits_for_money_goes_on_where_it_costs_less(purse: Purse) -> None:
    purse.cap(Cap(name="night", label="night", day_usd=1.0))
    for lid in ({"labels": ("night",)}, {"cost_max_usd": 0.0}):
        task = await purse.add("x", executor="codex", **lid)
        assert await purse.claim() == []
        assert (await purse.task(task.id)).reason == "budget"
        await purse.control(task.id, "assign", executor="safe")
        (command,) = await purse.claim()
        assert (command.task_id, command.executor) == (task.id, "safe")


async def test_the_dispatcher_goes_on_behind_tasks_that_wait_for_money(purse: Purse) -> None:
    purse.cap(Cap(name="n", label="night", day_usd=2))
    purse.set("daemon", slots_max=2)
    await started(purse, executor="codex", labels=("night",))
    for number in range(5):
        await purse.add("do", f"n{number}", executor="codex", labels=("night",))
    await purse.add("do", "other", executor="codex")
    link = EmbeddedLink()
    purse.context.paused_starts = False
    dispatcher = Dispatcher(purse.context, purse.gates, link)
    while await dispatcher.start_some():
        pass
    assert (await link.receive())[0].message.name == "t7"
    link.close()


async def test_more_calls_of_one_attempt_each_have_their_own_reservation(purse: Purse) -> None:
    """A call that is cut keeps its whole reservation; the whole cost of the attempt settles the last one."""
    command = await started(purse, executor="codex")
    task = await purse.task(command.task_id)
    turned = Turned.nothing()
    (first,) = await purse.calls()
    budget = purse.context.budget
    await purse.write(lambda tx: money.settle_one(tx, budget, first, None, "cut", turned))
    id = await purse.write(lambda tx: money.reserve(tx, task, command.attempt_id, 3_000_000, channel="P2", model="m"))
    assert id == f"{command.attempt_id}/2"
    assert await amounts(purse) == (0, 300, 200, 2)
    assert await amounts(purse, "model:m") == (0, 300, 0, 1)
    await purse.finish(command, "success", cost_usd=0.5)
    assert await amounts(purse) == (0, 0, 500, 2), "nobody knows whose cost that is"


async def test_half_of_the_cost_is_not_counted_twice(purse: Purse) -> None:
    command = await started(purse, executor="codex")
    task = await purse.task(command.task_id)
    (first,) = await purse.calls()
    budget, turned = purse.context.budget, Turned.nothing()
    await purse.write(lambda tx: money.settle_one(tx, budget, first, 400_000, "success", turned))
    await purse.write(lambda tx: money.reserve(tx, task, command.attempt_id, 3_000_000))
    await purse.finish(command, "success", cost_usd=1)
    assert await amounts(purse) == (100, 0, 0, 2)


async def test_a_gate_that_cannot_be_written_is_tried_again(purse: Purse, clock: FakeClock, monkeypatch: Any) -> None:
    purse.cap(day_usd=5)
    await purse.finish(await started(purse), "success", cost_usd=5)
    await purse.add("do", "y", executor="claude")
    await purse.claim()
    clock.now_ms += 24 * HOUR_MS
    monkeypatch.setattr("omnid.flow.gates.PROBE_BACKOFF", Backoff(0.001, 0.001))
    write = purse.store.write

    async def full(fn: Any, **how: Any) -> Any:
        raise Retryable("disk_full", path="/", detail="x")

    for now, left in ((full, 1), (write, 0)):
        purse.store.write = now
        async with anyio.create_task_group() as group:
            purse.gates.probe_due(group)
        assert len(purse.gates.all()) == left
    assert '"budget_waits"' in purse.logged.getvalue()


async def test_spending_outlives_its_task_and_goes_when_it_is_old(purse: Purse, clock: FakeClock) -> None:
    command = await started(purse)
    await purse.finish(command, "success", cost_usd=1)
    await purse.control("t1", "delete")
    clock.now_ms += 40 * 24 * HOUR_MS
    await purse.retain()
    assert await amounts(purse) == (100, 0, 0, 1)
    clock.now_ms += 60 * 24 * HOUR_MS
    await purse.retain()
    assert await amounts(purse) == (0, 0, 0, 0)
    assert await purse.rows("SELECT * FROM spend") == []


async def test_doctor_finds_sums_that_are_wrong(purse: Purse) -> None:
    await purse.finish(await started(purse), "success", cost_usd=1)
    assert (await Doctor(purse.context).examine()).differences == []
    await purse.write(lambda tx: tx.run("spend_add", "all", 0, 0, 5, 0, 1))
    (line,) = (await Doctor(purse.context).examine()).differences
    assert "spend all 0" in line
    await purse.write(lambda tx: tx.run("spend_add", "all", 0, 0, -5, 0, -1))
    await purse.write(lambda tx: tx.run("spend_drop_empty", "all", 0))
    assert await purse.store.read(check_spend) == []


async def test_an_agent_in_a_loop_is_refused_and_told_of_the_tasks_before(purse: Purse, clock: FakeClock) -> None:
    purse.set("budget", repeats_max=2)
    purse.set("agents", allow=("claude", "command"))
    for _ in range(2):
        await purse.add("do", "same", executor="claude", caller=AGENT)
    with pytest.raises(Rejected) as refused:
        await purse.add("do", "same", executor="claude", caller=AGENT)
    assert refused.value.code == "loop"
    assert "claude/t2, claude/t1" in refused.value.what
    await purse.add("do", "other", executor="claude", caller=AGENT)
    for _ in range(3):
        await purse.add("do", "same", executor="command", caller=AGENT)
    clock.now_ms += HOUR_MS
    await purse.add("do", "same", executor="claude", caller=AGENT)


async def test_a_loop_inside_a_batch_is_refused_whole(purse: Purse) -> None:
    purse.set("budget", repeats_max=2)
    purse.set("agents", allow=("claude", "command"))
    same = Submit(argv=("do",), executor="claude")
    with pytest.raises(Rejected) as refused:
        await purse.submit(same, same, same, caller=AGENT)
    assert refused.value.code == "batch_task"
    assert await purse.rows("SELECT 1 FROM task") == []


async def test_a_person_in_a_loop_is_asked(purse: Purse) -> None:
    purse.set("budget", repeats_max=1)
    await purse.add("do", "same", executor="claude")
    task = await purse.add("do", "same", executor="claude")
    assert (task.reason, task.problem and task.problem.code) == ("approval", "loop")
    await purse.control("t2", "approve", always=True)
    assert (await purse.task(task.id)).problem is None
    assert len(await purse.claim()) == 2
    assert (await purse.add("do", "same", executor="claude")).state == "idle", "it was permitted for good"


async def test_an_agent_retries_what_costs_money_only_so_often(purse: Purse, clock: FakeClock) -> None:
    purse.set("budget", repeats_max=2)
    purse.set("agents", allow=("claude", "command"))
    await purse.add("do", executor="claude", caller=AGENT, attempts_max=1)
    for _ in range(2):
        (command,) = await purse.claim()
        await purse.finish(command, "failure", cost_usd=0.1)
        retry = partial(purse.control, "claude/t1", "retry", AGENT)
        if command.number == 1:
            await retry()
    with pytest.raises(Rejected) as refused:
        await retry()
    assert refused.value.code == "loop"
    clock.now_ms += 2 * HOUR_MS
    await retry()


async def test_a_tree_of_tasks_has_its_limits(purse: Purse) -> None:
    purse.set("agents", depth_max=2, children_max=2, allow=("command",))
    root = await purse.add("root")
    inside = Caller("agent", "claude", parent=root.id)
    child = await purse.add("a", caller=inside)
    assert child.parent == root.id
    grandchild = await purse.add("b", caller=structs.replace(inside, parent=child.id))
    with pytest.raises(Rejected) as refused:
        await purse.add("c", caller=structs.replace(inside, parent=grandchild.id))
    assert refused.value.code == "tree_too_deep"
    await purse.add("d", caller=inside)
    with pytest.raises(Rejected) as refused:
        await purse.add("e", caller=inside)
    assert refused.value.code == "tree_too_wide"
    assert "t1 has submitted 2 tasks" in refused.value.what
