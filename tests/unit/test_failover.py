"""Failover: tasks of a closed executor go to the next of their rule, one by one as it has room, and never twice."""

from typing import Any

import anyio
import msgspec
import pytest

from omnid.errors import Retryable
from omnid.flow import failover
from omnid.flow.dispatcher import Dispatcher
from omnid.flow.failover import PAUSE_S, Failover
from omnid.model import Command, Route
from omnid.settings import Rule
from omnid.store import journal
from tests.fakes.clock import FakeClock
from tests.fakes.executor import InProcessExecutor
from tests.fakes.world import AGENT, World, nothing

pytestmark = pytest.mark.anyio

RULE = Rule(name="work", executor=("first", "second"), labels=("x",))
DOWN = Retryable("executor_down", executor="first", detail="gone")


class Link:
    """What the dispatcher sends goes nowhere."""

    async def send(self, command: Command) -> None:
        pass

    def offer(self, command: Command) -> bool:
        return True

    async def receive(self) -> Command:
        raise AssertionError("nobody receives here")


class House:
    """Two executors of one rule, and what moves tasks between them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.context = world.context
        self.context.paused_starts = False
        self.second = InProcessExecutor("second", nothing)
        self.second.concurrency = 2
        executors = {**self.context.executors, "first": InProcessExecutor("first", nothing), "second": self.second}
        self.context.config = msgspec.structs.replace(self.context.config, rule=(RULE,))
        self.context.take_executors(executors)
        world.store.attend = lambda *_: None  # Nothing starts but by the tests' own calls.
        self.dispatcher = Dispatcher(self.context, world.gates, Link())
        self.failover = Failover(self.context, self.dispatcher.room)

    async def add(self, **fields: Any) -> str:
        return (await self.world.add("do", labels=("x",), **fields)).id

    async def where(self) -> list[str]:
        return [row[0] for row in await self.world.rows("SELECT executor FROM task ORDER BY number")]


@pytest.fixture
def house(world: World) -> House:
    return House(world)


async def test_no_more_moves_than_can_start_and_the_first_by_priority_and_order(house: House) -> None:
    for priority in (0, 0, 5, 0):
        await house.add(priority=priority)
    assert await house.where() == ["first"] * 4
    assert await house.failover.move_some() == [], "no gate is closed"
    await house.world.gates.executor_down("first", DOWN)
    assert len(await house.failover.move_some()) == 2
    assert await house.where() == ["second", "first", "second", "first"]
    while await house.dispatcher.start_some():
        pass
    assert await house.failover.move_some() == [], "it is full"
    assert await house.where() == ["second", "first", "second", "first"]


async def test_the_decision_is_written_and_told(house: House) -> None:
    id = await house.add()
    task = await house.world.task(id)
    assert task.route is not None
    assert (task.route.executor, task.route.rule) == ("first", "work")
    await house.world.gates.executor_down("first", DOWN)
    assert await house.failover.move_some() == [id]
    (command,) = await house.world.claim()
    assert command.executor == "second"
    row = await house.world.store.read(lambda reader: reader.one("attempt_by_number", id, 1))
    assert row is not None
    route = msgspec.convert(journal.attempt_of(row).route, Route)
    assert (route.executor, route.rule) == ("second", "work")
    assert [(one.executor, one.cause) for one in route.turned_down] == [("first", "executor")]
    assert "gone" in route.turned_down[0].why


async def test_a_new_task_goes_to_the_open_one_at_once(house: House) -> None:
    await house.world.gates.executor_down("first", DOWN)
    await house.add()
    assert await house.where() == ["second"]
    await house.world.gates.pause("*")
    await house.add()
    assert await house.where() == ["second", "second"]


async def test_a_task_that_has_begun_stays_unless_nothing_of_it_did(house: House, clock: FakeClock) -> None:
    begun, unstarted = await house.add(), await house.add()
    for command in await house.world.claim():
        await house.world.finish(command, "failure" if command.task_id == begun else "unstarted")
    clock.now_ms += 60_000
    await house.world.wake()
    await house.world.gates.executor_down("first", DOWN)
    assert await house.failover.move_some() == [unstarted]
    assert await house.where() == ["first", "second"]


async def test_what_was_asked_for_by_name_or_given_by_hand_stays(house: House) -> None:
    await house.add(executor="first")
    await house.add()
    await house.world.control("t2", "assign", executor="safe")
    await house.world.control("t2", "assign", executor="first")
    assert await house.world.rows("SELECT number FROM task WHERE route IS NULL") == [(1,), (2,)]
    await house.world.gates.executor_down("first", DOWN)
    assert await house.failover.move_some() == []


async def test_a_pause_moves_nothing(house: House) -> None:
    await house.add()
    await house.world.gates.pause("first")
    assert await house.failover.move_some() == []
    await house.world.gates.executor_down("first", DOWN)
    assert await house.failover.move_some() == []


async def test_an_agents_task_goes_only_where_agents_may_go(house: House) -> None:
    house.world.set("agents", allow=("first",))
    id = await house.add(caller=AGENT)
    assert (await house.world.task(id)).approval is None
    await house.world.gates.executor_down("first", DOWN)
    assert await house.failover.move_some() == []
    house.world.set("agents", allow=("first", "second"))
    assert await house.failover.move_some() == [id]


async def test_an_approved_task_stays_where_it_was_approved(house: House) -> None:
    id = await house.add(caller=AGENT)
    await house.world.control("claude/t1", "approve")
    house.world.set("agents", allow=("first", "second"))
    assert (await house.world.task(id)).state == "idle"
    await house.world.gates.executor_down("first", DOWN)
    assert await house.failover.move_some() == []


async def test_what_the_other_does_not_accept_stays(house: House) -> None:
    await house.add()

    def refuse(work: object) -> None:
        raise failover.Rejected("bad_cwd", cwd="/x", why="It is gone.")

    house.second.accepts = refuse
    await house.world.gates.executor_down("first", DOWN)
    assert await house.failover.move_some() == []


async def test_what_happened_meanwhile_holds(house: House) -> None:
    id = await house.add()
    await house.world.gates.executor_down("first", DOWN)
    read = house.world.store.read

    async def read_and_cancel(fn: Any) -> Any:
        found = await read(fn)
        await house.world.control("t1", "priority", priority=3)
        return found

    house.world.store.read = read_and_cancel
    assert await house.failover.move_some() == []
    house.world.store.read = read
    assert (await house.world.task(id)).executor == "first"


async def test_tasks_of_another_rule_before_them_keep_nobody_from_moving(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failover, "PAGE", 3)
    monkeypatch.setattr(failover, "LOOKED_AT_MAX", 9)
    alone = Rule(name="alone", executor=("first",), labels=("y",))
    house.context.config = msgspec.structs.replace(house.context.config, rule=(alone, RULE))
    house.context.take_executors(house.context.executors)
    for _ in range(8):
        await house.world.add("do", labels=("y",))
    id = await house.add()
    await house.world.gates.executor_down("first", DOWN)
    assert await house.failover.move_some() == [id]


async def test_it_looks_when_a_gate_closes_and_when_the_dispatcher_runs_dry(house: House) -> None:
    looks: list[float] = []
    third = anyio.Event()
    found = [["a"], [], ["b"]]

    async def move_some() -> list[str]:
        looks.append(anyio.current_time())
        if len(looks) == 3:
            third.set()
        return found.pop(0)

    house.failover.move_some = move_some
    async with anyio.create_task_group() as group:
        group.start_soon(house.failover.run)
        await anyio.wait_all_tasks_blocked()
        assert not await house.dispatcher.start_some()
        await anyio.wait_all_tasks_blocked()
        assert looks == [], "no gate is closed"
        await house.world.gates.executor_down("first", DOWN)
        await anyio.wait_all_tasks_blocked()
        assert len(looks) == 1
        assert not await house.dispatcher.start_some()
        await anyio.wait_all_tasks_blocked()
        assert len(looks) == 2
        assert not await house.dispatcher.start_some()
        with anyio.fail_after(PAUSE_S + 5):
            await third.wait()
        assert looks[2] - looks[1] >= PAUSE_S * 0.9, "after a look for nothing it takes its time"
        group.cancel_scope.cancel()


async def test_the_index_of_movable_tasks_is_used(world: World) -> None:
    sql = (
        "EXPLAIN QUERY PLAN SELECT id FROM task WHERE executor = ? AND ready = 1 AND route IS NOT NULL "
        "AND (attempt IS NULL OR NOT EXISTS (SELECT 1 FROM attempt a WHERE a.task_id = task.id "
        "AND (a.outcome IS NULL OR a.outcome <> 'unstarted'))) ORDER BY priority DESC, ord LIMIT ? OFFSET ?"
    )
    plan = " ".join(row[3] for row in await world.rows(sql, "x", 1, 0))
    assert "task_movable" in plan
    assert "TEMP B-TREE" not in plan
