"""The table of operations: what a session asks for twice is done once, and answered twice, whatever came between."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from omnid.api import repeats
from omnid.api.methods import METHODS
from omnid.api.workspace_views import WorkspaceViews
from omnid.flow import asking
from omnid.flow.caller import Caller
from omnid.model import InputRequest, NamedSchedule, Problem, Schedule, Submit
from omnid.store import outbox
from tests.fakes.calls import Calls, code
from tests.fakes.repository import Repository, write
from tests.fakes.workspaces import Places
from tests.fakes.world import World

pytestmark = pytest.mark.anyio

SESSION = Caller(session="s", request_id="1")
TASK = Submit(argv=("x",), executor="safe")
LOOKS = {
    *("task.get", "task.list", "task.log", "task.why", "task.receipt", "away", "route.explain", "mode.show"),
    *("outage.list", "channel.check", "executor.check", "model.rehearse", "state.ask", "status", "spend"),
    *("operations", "replay", "doctor", "dead.list", "dead.show", "config.show", "config.check", "workspace.list"),
    *("workspace.diff", "schedule.list", "schedule.show", "runner.list", "link.list"),
}
IN_MEMORY = {"mode.hold", "config.reload", "daemon.stop"}
"""They change the daemon that runs and nothing that the next one would know."""


class House(NamedTuple):
    world: World
    call: Calls
    path: Path


@pytest.fixture
def house(world: World, tmp_path: Path) -> House:
    return House(world, Calls(world), tmp_path)


Case = Callable[[House], Awaitable[dict[str, Any]]]
CASES: dict[str, list[Case]] = {}
"""By operation: what makes the world ready for it and gives its parameters."""


def case(*names: str) -> Callable[[Case], Case]:
    def take(made: Case) -> Case:
        for name in names:
            CASES.setdefault(name, []).append(made)
        return made

    return take


@case("task.submit")
async def _task(house: House) -> dict[str, Any]:
    return {"argv": ("x",), "executor": "safe"}


@case("task.submit")
async def _task_at_times(house: House) -> dict[str, Any]:
    return {"argv": ("x",), "executor": "safe", "schedule": NamedSchedule(name="nightly", every_s=60)}


@case("task.submit_batch")
async def _tasks(house: House) -> dict[str, Any]:
    return {"tasks": [TASK] * 2}


@case("task.control")
async def _cancel(house: House) -> dict[str, Any]:
    await house.world.add("x")
    return {"task": "t1", "action": "cancel"}


@case("task.control")
async def _delete(house: House) -> dict[str, Any]:
    await house.world.add("x")
    return {"task": "t1", "action": "delete"}


@case("task.answer")
async def _answer(house: House) -> dict[str, Any]:
    await _asks(house)
    return {"task": "t1", "value": "Ada"}


@case("task.control")
async def _answer_by_control(house: House) -> dict[str, Any]:
    await _asks(house)
    return {"task": "t1", "action": "answer", "text": "Ada"}


@case("task.control")
async def _answer_by_reply(house: House) -> dict[str, Any]:
    await _asks(house)
    return {"task": "t1", "action": "reply", "text": "Ada"}


@case("gate.pause")
async def _pause(house: House) -> dict[str, Any]:
    return {"executor": "safe"}


@case("gate.resume")
async def _resume(house: House) -> dict[str, Any]:
    await house.world.gates.pause("safe")
    return {"executor": "safe"}


@case("dead.retry", "dead.drop")
async def _dead(house: House) -> dict[str, Any]:
    problem = Problem.make("delivery_failed", destination="a", detail="no")
    id = await house.world.write(lambda tx: outbox.put(tx, "a", "answer", "t", {}, rows_max=9))
    await house.world.write(lambda tx: outbox.bury(tx, id, problem, rows_max=9))
    return {"id": id}


@case("schedule.add")
async def _schedule(house: House) -> dict[str, Any]:
    return {"name": "nightly", "schedule": Schedule(every_s=60), "task": TASK}


@case("schedule.switch")
async def _switched(house: House) -> dict[str, Any]:
    await house.call("schedule.add", **await _schedule(house))
    return {"name": "nightly", "enabled": False}


@case("schedule.run", "schedule.remove")
async def _scheduled(house: House) -> dict[str, Any]:
    await house.call("schedule.add", **await _schedule(house))
    return {"name": "nightly"}


@case("workspace.merge", "workspace.remove")
async def _workspace(house: House) -> dict[str, Any]:
    places, repository = Places(house.path / "workspaces"), Repository(house.path / "repo")
    house.call.api.workspaces = WorkspaceViews(house.world.context, house.world.gates, places.workspaces)
    at = await places.enter(task := places.task("t9"), repository.path)
    write(at / "new.txt", "x")
    await places.leave(task)
    return {"task": "t9"}


async def _asks(house: House) -> None:
    await house.world.add("x")
    (command,) = await house.world.claim()
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    request = InputRequest("elicitation/create", {"message": "Who?", "requestedSchema": schema})
    config = house.world.context.config
    await house.world.write(lambda tx: asking.record(tx, command.attempt_id, {"who": request}, config))


async def _worst(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the world one in which nothing can be done, and little of what was is still there."""
    world = house.world
    await world.restart()
    for listed in (await house.call("schedule.list")).schedules:
        await house.call("schedule.remove", name=listed.name)
    for (number,) in await world.rows("SELECT number FROM task WHERE state != 'executing'"):
        await world.control(f"t{number}", "delete")
    world.context.take_executors({"command": world.context.executors["command"]})
    world.clock.now_s += 5  # The free space was looked at a moment ago.
    monkeypatch.setattr("omnid.platform.free_bytes", lambda path: 1)


def test_each_operation_is_a_look_or_done_once() -> None:
    assert METHODS.keys() == repeats.KEPT | repeats.KEPT_AFTER | LOOKS | IN_MEMORY
    assert set(CASES) == repeats.KEPT | repeats.KEPT_AFTER


@pytest.mark.parametrize(
    ("name", "made"),
    [pytest.param(name, made, id=f"{name}-{made.__name__}") for name, cases in CASES.items() for made in cases],
)
async def test_a_repeat_is_answered_and_not_done(
    house: House, monkeypatch: pytest.MonkeyPatch, name: str, made: Case
) -> None:
    params = await made(house)
    done = await house.call(name, SESSION, **params)
    await _worst(house, monkeypatch)
    (before,) = await house.world.rows("SELECT max(seq), count(*) FROM change")
    assert await house.call(name, SESSION, **params) == done
    assert await house.world.rows("SELECT max(seq), count(*) FROM change") == [before]
    other = "gate.resume" if name == "gate.pause" else "gate.pause"
    assert await code(house.call(other, SESSION, executor="*")) == "busy_key"
