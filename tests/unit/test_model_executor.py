"""An attempt of the model executor: one call after another, as long as there is time."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from omnid.channels import whole
from omnid.executor.model import CUT, UNSENT, Call, ModelExecutor, NoCall, Tried, Ways, timed_out
from omnid.executor.model_errors import Failure, Usage
from omnid.executor.model_wire import Answer, Ask
from omnid.executor.spool import Spool
from omnid.log import Log
from omnid.model import Command, Result, Work
from omnid.secrets import Secrets
from omnid.settings import Channel, ChannelModel, Limits
from omnid.settings import ModelExecutor as Section
from tests.fakes.clock import FakeClock

pytestmark = pytest.mark.anyio
AWAY = Failure("cloud", "nothing came from it in time", may_cost=True)
MODEL = ChannelModel(name="fake-1")


class Hanging:
    """Secrets that are waited for."""

    async def resolve(self, reference: str) -> str:
        await anyio.sleep_forever()
        raise AssertionError(reference)


class House:
    """An executor, whose calls are decided here, and the two ways in which they are made."""

    def __init__(self, tmp_path: Path, clock: FakeClock, key: str = "") -> None:
        self.clock = clock
        self.tmp_path = tmp_path
        self.key = key
        self.secrets: Any = Hanging() if key else Secrets({})
        self.asked: list[str] = []
        self.ended: list[Answer | Failure] = []
        self.on_call: Callable[[float], Any] = lambda _: None
        self.hangs = False
        self.begun = anyio.Event()

    async def run(self, meanwhile: Callable[[ModelExecutor], Any] | None = None) -> Result:
        """Runs a prompt that has 20 s; `meanwhile` is called once its first call has begun."""
        nothing: Any = None
        limits, results = Limits(), list[Result]()
        async with anyio.create_task_group() as tasks:
            executor = ModelExecutor(
                Section(name="model"),
                Ways(self, self, self),
                self.secrets,
                Spool(self.tmp_path, limits),
                tasks=tasks,
                clock=self.clock,
                log=Log(self.clock, str).logger(),
                limits=limits,
            )
            if meanwhile is not None:

                async def interrupt() -> None:
                    await self.begun.wait()
                    await anyio.wait_all_tasks_blocked()
                    await meanwhile(executor)

                tasks.start_soon(interrupt)
            command = Command("a", "t", 1, "t1", "model", Work(prompt="hi"), 20.0)
            results.append(await executor.run(command, nothing))
        (result,) = results
        return result

    def check(self, model: str) -> None:
        """See `Calls.check`."""

    async def begin(self, command: Command, wanted: object, tried: Sequence[Tried]) -> Call | NoCall:
        """See `Calls.begin`: there are as many channels as are asked for."""
        name = f"p{len(tried) + 1}"
        self.asked.append(name)
        self.begun.set()
        channel = whole(Channel(name=name, base_url="http://127.0.0.1:9/v1", models=(MODEL,)))
        return Call(name, channel, self.key, MODEL, "direct", 50)

    def late(self, command: Command, tried: Sequence[Tried]) -> NoCall:
        """See `Calls.late`."""
        return NoCall("timeout", timed_out(command))

    async def end(self, call: Call, said: Answer | Failure, took_s: float) -> int | None:
        """See `Calls.end`."""
        self.ended.append(said)
        return None if isinstance(said, Failure) and said.may_cost else 0

    async def call(self, channel: Channel, key: str, ask: Ask, deadline_s: float, on_text: Any = None) -> Any:
        """See `Caller.call`."""
        if self.hangs:
            await anyio.sleep_forever()
        return self.on_call(deadline_s)


async def test_no_other_call_is_made_once_the_time_is_up(tmp_path: Path, clock: FakeClock) -> None:
    house = House(tmp_path, clock)

    def slow(deadline_s: float) -> Failure:
        clock.now_s += deadline_s
        return AWAY

    house.on_call = slow
    result = await house.run()
    assert (result.outcome, result.problem and result.problem.code) == ("timeout", "attempt_timeout")
    assert house.asked == ["p1"], "nothing is reserved either"


async def test_the_next_call_has_the_time_that_is_left(tmp_path: Path, clock: FakeClock) -> None:
    house, given = House(tmp_path, clock), []

    def answer(deadline_s: float) -> Answer | Failure:
        given.append(deadline_s)
        clock.now_s += 15.0
        return AWAY if len(given) == 1 else Answer("Hello.", "stop", Usage())

    house.on_call = answer
    assert (await house.run()).outcome == "success"
    assert given == [20.0, 5.0]


@pytest.mark.parametrize("how", ["cancel", "park"])
@pytest.mark.parametrize("key", ["exec:slow", ""], ids=["the_key_is_waited_for", "it_is_sent"])
async def test_what_is_cut_before_it_was_sent_costs_nothing(
    tmp_path: Path, clock: FakeClock, how: str, key: str
) -> None:
    house = House(tmp_path, clock, key)
    house.hangs = True
    result = await house.run(lambda executor: executor.cancel("a") if how == "cancel" else executor.park())
    assert result.outcome == ("cancelled" if how == "cancel" else "parked")
    assert (house.ended, result.cost_usd) == (([UNSENT], 0) if key else ([CUT], None))


@pytest.mark.parametrize("key", ["file:/nowhere/key", "env:NOWHERE"])
async def test_a_key_that_can_not_be_read_is_left_out_for_a_while(tmp_path: Path, clock: FakeClock, key: str) -> None:
    house = House(tmp_path, clock)
    house.key, house.on_call = key, lambda _: Answer("Hello.", "stop", Usage())

    async def next_without_key(call: Call, said: Answer | Failure, took_s: float) -> int | None:
        house.key = ""
        house.ended.append(said)
        return 0

    house.end = next_without_key
    assert (await house.run()).outcome == "success"
    unread = house.ended[0]
    assert isinstance(unread, Failure)
    assert (unread.kind, unread.may_cost) == ("secret", False)
    assert unread.until_ms == (clock.now_ms + 60_000 if key.startswith("file") else None), "the environment stays"
