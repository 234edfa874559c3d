"""What is written down of a prompt's calls, and when: an answer is settled with its result or not at all."""

from typing import Any

import msgspec
import pytest

from omnid.channels import whole
from omnid.executor.model import Call, Tried, Wanted
from omnid.executor.model_errors import Failure, Usage
from omnid.executor.model_wire import Answer
from omnid.flow.model_calls import ModelCalls
from omnid.model import Command, Submit
from omnid.settings import Channel, ChannelModel
from tests.fakes.clock import FakeClock
from tests.fakes.executor import InProcessExecutor
from tests.fakes.purse import Purse
from tests.fakes.world import nothing

pytestmark = pytest.mark.anyio
PRICED = ChannelModel(name="fake-1", input_usd=1, output_usd=2)
ANSWER = Answer("Hello.", "stop", usage=Usage(11, 5, 123))
WANTED = Wanted(None, "", 50)


@pytest.fixture
async def purse(tmp_path: Any, clock: FakeClock) -> Any:
    made = Purse(tmp_path / "world", clock)
    channels = tuple(
        whole(Channel(name=name, base_url="http://127.0.0.1:9/v1", models=(PRICED,))) for name in ("p1", "p2")
    )
    made.context.config = msgspec.structs.replace(made.context.config, channel=channels)
    model = InProcessExecutor("model", nothing)
    model.kind, model.idempotent, model.takes_prompts = "model", True, True
    model.accepts = lambda work: None
    made.context.take_executors({**made.context.executors, "model": model})
    yield made
    made.close()


@pytest.fixture
def calls(purse: Purse) -> ModelCalls:
    return ModelCalls(purse.context, has_gateway=False)


async def started(purse: Purse) -> Command:
    await purse.submit(Submit(prompt="say hello", executor="model", backoff_s=0))
    (command,) = await purse.claim()
    return command


async def begun(calls: ModelCalls, command: Command, *tried: Tried) -> Call:
    call = await calls.begin(command, WANTED, tried)
    assert isinstance(call, Call)
    return call


async def spent(purse: Purse) -> list[tuple[int | None, str | None]]:
    return [(call.spent_microusd, call.outcome) for call in await purse.calls()]


async def test_an_answer_is_settled_with_its_result_and_not_before(purse: Purse, calls: ModelCalls) -> None:
    command = await started(purse)
    call = await begun(calls, command)
    cost = await calls.end(call, ANSWER, 1.0)
    assert (cost, await spent(purse)) == (123, [(None, None)])
    await purse.finish(command, "success", cost_usd=0.000123, call_costs={call.id: cost})
    assert await spent(purse) == [(123, "success")]


async def test_an_answer_that_was_lost_with_the_daemon_is_no_answer(purse: Purse, calls: ModelCalls) -> None:
    command = await started(purse)
    await calls.end(await begun(calls, command), ANSWER, 1.0)
    await purse.finish(command, "lost")
    assert await spent(purse) == [(None, "lost")]
    assert (await purse.task(command.task_id)).state == "idle"


async def test_the_answer_s_cost_is_known_where_that_of_a_cut_call_is_not(purse: Purse, calls: ModelCalls) -> None:
    command = await started(purse)
    first = await begun(calls, command)
    cut = Failure("cut", "it broke off", may_cost=True)
    assert await calls.end(first, cut, 1.0) is None
    assert await spent(purse) == [(None, "cut")]
    second = await begun(calls, command, Tried(first, cut))
    await purse.finish(command, "success", call_costs={second.id: await calls.end(second, ANSWER, 1.0)})
    assert await spent(purse) == [(None, "cut"), (123, "success")]
