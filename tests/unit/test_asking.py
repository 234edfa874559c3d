"""Input requests: on the disk before anybody waits, answered once, bounded, and known to the next daemon."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from omnid.errors import Rejected
from omnid.executor.allowance import Allowance
from omnid.flow import asking
from omnid.flow.asking import UNANSWERED, Asking
from omnid.flow.results import Results
from omnid.flow.runner import Runner
from omnid.model import Command, InputRequest, InputResponse, Result
from tests.fakes.clock import FakeClock
from tests.fakes.world import World
from tests.unit.test_recovery import Scripted

pytestmark = pytest.mark.anyio

NAME = InputRequest("elicitation/create", {"message": "Your name?"})
COLOUR = InputRequest("elicitation/create", {"message": "Which colour?"})
ADA = InputResponse("accept", {"name": "Ada"})


class Asked:
    """A task whose attempt asks, and what it is answered."""

    def __init__(self, world: World, command: Command) -> None:
        self.world, self.command = world, command
        self.got: dict[str, InputResponse] = {}
        self.ended = anyio.Event()

    async def ask(self, requests: dict[str, InputRequest]) -> None:
        self.got |= await Asking(self.world.context).ask(self.command.attempt_id, requests)
        self.ended.set()

    async def keys(self) -> list[str]:
        task = await self.world.task(self.command.task_id)
        found = await self.world.store.read(lambda reader: asking.open_requests(reader, task))
        return [request.key for request in found]

    async def until_open(self, count: int) -> None:
        with anyio.fail_after(10):
            while len(await self.keys()) != count:
                await anyio.lowlevel.checkpoint()

    async def answer(self, key: str, response: InputResponse = ADA) -> str:
        task = await self.world.task(self.command.task_id)
        task = await self.world.write(lambda tx: asking.respond(tx, task, key, response, "user"))
        self.world.context.watch.tell([task.id])
        return task.state

    async def state(self) -> str:
        return (await self.world.task(self.command.task_id)).state


@asynccontextmanager
async def asked(
    world: World, requests: dict[str, InputRequest], command: Command | None = None
) -> AsyncIterator[Asked]:
    if command is None:
        await world.add("x")
        (command,) = await world.claim()
    one = Asked(world, command)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(one.ask, requests)
            await one.until_open(len(requests))
            yield one
            group.cancel_scope.cancel()


async def test_an_attempt_goes_on_when_all_is_answered(world: World) -> None:
    async with asked(world, {"name": NAME, "colour": COLOUR}) as one:
        assert (await one.keys(), await one.state()) == (["q1", "q2"], "input_required")
        assert await one.answer("q2", InputResponse("decline")) == "input_required"
        assert await one.answer("q1") == "executing"
        await one.ended.wait()
        assert one.got == {"name": ADA, "colour": InputResponse("decline")}
    await world.finish(one.command, "success")
    assert await one.state() == "completed"


async def test_what_is_not_open_takes_no_answer(world: World) -> None:
    async with asked(world, {"name": NAME}) as one:
        for key in ("q2", "name"):
            with pytest.raises(Rejected) as caught:
                await one.answer(key)
            assert caught.value.code == "no_question"
        await one.answer("q1")
        with pytest.raises(Rejected) as caught:
            await one.answer("q1", InputResponse("decline"))
        assert caught.value.code == "no_question"
        await one.ended.wait()
        assert one.got == {"name": ADA}, "the first answer stands"


async def test_a_later_daemon_finds_the_question_and_the_answer(world: World) -> None:
    async with asked(world, {"name": NAME}) as one:
        pass
    await world.restart()
    assert (await one.keys(), await one.state()) == (["q1"], "input_required")
    async with asked(world, {"name": NAME}, one.command) as again:
        assert await again.keys() == ["q1"], "asked again, it is the same question"
    await again.answer("q1")
    await world.restart()
    await again.ask({"name": NAME})
    assert again.got == {"name": ADA}


async def test_keys_are_never_used_again(world: World) -> None:
    async with asked(world, {"name": NAME}) as one:
        await one.answer("q1")
        await one.ended.wait()
    async with asked(world, {"other": NAME}, one.command) as two:
        assert await two.keys() == ["q2"]
    await world.finish(one.command, "unstarted")
    assert await two.keys() == [], "a question ends with its attempt"
    await world.control("t1", "retry")
    (again,) = await world.claim()
    async with asked(world, {"name": NAME}, again) as three:
        assert await three.keys() == ["q3"]


async def test_nobody_answers_in_time(world: World, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "NAP_S_MAX", 0.001)
    async with asked(world, {"name": NAME}) as one:
        clock.now_ms += 86_399_000
        with anyio.move_on_after(0.05):
            await one.ended.wait()
        assert await one.keys() == ["q1"]
        clock.now_ms += 1_000
        await one.ended.wait()
        assert one.got == {"name": UNANSWERED}
        assert await one.state() == "executing"


async def test_a_question_is_withdrawn(world: World) -> None:
    async with asked(world, {"name": NAME, "colour": COLOUR}) as one:
        await Asking(world.context).withdraw(one.command.attempt_id, ["colour", "never"])
        assert await one.keys() == ["q1"]
        await one.answer("q1")
        await one.ended.wait()
        assert one.got == {"name": ADA, "colour": UNANSWERED}
    await world.finish(one.command, "success")
    await Asking(world.context).withdraw(one.command.attempt_id, ["name"])
    assert await one.state() == "completed"


@pytest.mark.parametrize(
    ("requests", "setting"),
    [
        ({str(n): NAME for n in range(3)}, "limits.asks_max"),
        ({"name": InputRequest("elicitation/create", {"message": "x" * 2000})}, "limits.ask_bytes_max"),
    ],
)
async def test_questions_are_bounded(world: World, requests: dict[str, InputRequest], setting: str) -> None:
    world.set("limits", asks_max=2, ask_bytes_max=1024)
    await world.add("x")
    (command,) = await world.claim()
    with pytest.raises(Rejected) as caught:
        await Asking(world.context).ask(command.attempt_id, requests)
    assert (caught.value.code, caught.value.fields["setting"]) == ("too_many", setting)
    assert (await world.task(command.task_id)).state == "executing"
    assert await world.rows("SELECT 1 FROM note") == []


async def test_an_attempt_that_is_over_asks_nothing(world: World) -> None:
    await world.add("x")
    (command,) = await world.claim()
    await world.finish(command, "success")
    for attempt_id in (command.attempt_id, "unknown"):
        with pytest.raises(Rejected) as caught:
            await Asking(world.context).ask(attempt_id, {"name": NAME})
        assert caught.value.code == "not_in_state"


async def test_a_question_ends_with_its_attempt(world: World) -> None:
    with pytest.RaisesGroup(Rejected):
        async with asked(world, {"name": NAME}) as one:
            world.context.watch.tell(await world.finish(one.command, "lost"))
            await one.ended.wait()
    assert await one.state() == "uncertain"


class Curious(Scripted):
    """Asks, and takes longer over the answer than the attempt may last."""

    async def run(self, command: Command, ports: Any) -> Result:
        allowance = ports.allowances[command.attempt_id]
        self.before_s = allowance.scope.deadline
        async with anyio.create_task_group() as group:
            group.start_soon(ports.ask, command.attempt_id, {"a": NAME})
            group.start_soon(ports.ask, command.attempt_id, {"b": COLOUR})
            await anyio.wait_all_tasks_blocked()
            self.meanwhile_s = allowance.scope.deadline
            await ports.withdraw(command.attempt_id, ["a"])
            await anyio.wait_all_tasks_blocked()
            self.half_s = allowance.scope.deadline
            await ports.withdraw(command.attempt_id, ["b"])
        self.after_s = allowance.scope.deadline
        return await super().run(command, ports)


async def test_the_clock_of_an_attempt_stands_while_it_asks(world: World) -> None:
    executor = Curious("command")
    context = world.context
    context.take_executors({**context.executors, "command": executor})
    runner = Runner(context, world.gates, Results(context, world.gates))
    await world.add("x")
    (command,) = await world.claim()
    context.take_on(command.attempt_id, "command")
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            runner.begin(group, command)
    never: Any = float("inf")
    assert (executor.meanwhile_s, executor.half_s) == (never, never)
    assert executor.before_s < executor.after_s < executor.before_s + 10
    assert (await world.task(command.task_id)).state == "completed"


async def test_an_allowance_ends_when_its_time_is_over() -> None:
    allowance = Allowance(0.05)
    with allowance.scope:
        with allowance.held():
            await anyio.sleep(0.1)
        await anyio.sleep(10)
    assert allowance.scope.cancelled_caught
