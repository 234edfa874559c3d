"""What is written down of a prompt's calls, and when: an answer is settled with its result or not at all."""

import shutil
from typing import Any

import msgspec
import pytest
from msgspec import structs

from omnid.channels import whole
from omnid.config import BUILT_IN
from omnid.executor.model import CUT as CUT_BY_US
from omnid.executor.model import Call, NoCall, Tried, Wanted
from omnid.executor.model_errors import Failure, Kind, Usage
from omnid.executor.model_wire import Answer
from omnid.flow.model_calls import SERVED_S, ModelCalls
from omnid.model import Command, Submit
from omnid.settings import Channel, ChannelModel, CommandExecutor, Rule
from tests.fakes.clock import FakeClock
from tests.fakes.executor import InProcessExecutor
from tests.fakes.purse import Purse
from tests.fakes.world import nothing

pytestmark = pytest.mark.anyio
NOW_MS = 1_900_000_000_000
CUT = Failure("cut", "it broke off", may_cost=True)
LIMITED = Failure("limited", "HTTP 429", 429, until_ms=NOW_MS + 600_000)
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
    models = {name: InProcessExecutor(name, nothing) for name in ("model", "model-offline")}
    for model in models.values():
        model.kind, model.idempotent, model.takes_prompts = "model", True, True
        model.accepts = lambda work: None
    made.context.take_executors({**made.context.executors, **models})
    yield made
    made.close()


@pytest.fixture
def calls(purse: Purse) -> ModelCalls:
    return ModelCalls(purse.context, has_gateway=False)


async def started(purse: Purse, **fields: Any) -> Command:
    await purse.submit(Submit(prompt="say hello", backoff_s=0, **fields))
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
    assert await calls.end(first, CUT, 1.0) is None
    assert await spent(purse) == [(None, "cut")]
    second = await begun(calls, command, Tried(first, CUT))
    await purse.finish(command, "success", call_costs={second.id: await calls.end(second, ANSWER, 1.0)})
    assert await spent(purse) == [(None, "cut"), (123, "success")]


async def left(purse: Purse, calls: ModelCalls, command: Command, *said: Failure) -> NoCall:
    """Has one channel after the other fail, and gives what becomes of the attempt then."""
    tried: list[Tried] = []
    for failure in said:
        call = await begun(calls, command, *tried)
        await calls.end(call, failure, 1.0)
        tried.append(Tried(call, failure))
    end = await calls.begin(command, WANTED, tried)
    assert isinstance(end, NoCall)
    return end


@pytest.mark.parametrize("kind", ["cut", "silent", "provider"])
async def test_what_may_pass_is_tried_again_before_a_limit_is_waited_out(
    purse: Purse, calls: ModelCalls, clock: FakeClock, kind: Kind
) -> None:
    clock.now_ms = NOW_MS
    purse.set("retry", attempts_max=3)
    command = await started(purse)
    for _ in range(2):
        end = await left(purse, calls, command, *([LIMITED] if command.number == 1 else []), Failure(kind, "x"))
        assert (end.outcome, end.problem.code) == ("failure", "model_failed")
        await purse.finish(command, end.outcome, problem=end.problem)
        await purse.wake()
        (command,) = await purse.claim()
    end = await left(purse, calls, command, Failure(kind, "x"))
    assert (end.outcome, end.park and end.park.wake_at_ms) == ("parked", LIMITED.until_ms), "but not for ever"


async def test_a_cloud_that_is_away_is_looked_for_before_a_limit_lifts(
    purse: Purse, calls: ModelCalls, clock: FakeClock
) -> None:
    clock.now_ms = NOW_MS
    away = Failure("cloud", "no connection")
    end = await left(purse, calls, await started(purse), LIMITED, away)
    assert (end.problem.code, end.park and end.park.wake_at_ms) == ("cloud_gone", NOW_MS + 5_000)
    end = await left(purse, calls, await started(purse, offline="fail"), away)
    assert (end.problem.code, end.park and end.park.wake_at_ms) == ("no_channel", LIMITED.until_ms)


async def test_an_attempt_whose_time_is_up_waits_for_the_cloud_only_where_that_is_away(
    purse: Purse, calls: ModelCalls, clock: FakeClock
) -> None:
    command = await started(purse)
    call = await begun(calls, command)
    end = calls.late(command, [Tried(call, Failure("silent", "nothing came"))])
    assert (end.outcome, end.problem.code, end.park) == ("timeout", "attempt_timeout", None)
    end = calls.late(command, [Tried(call, Failure("cloud", "no connection"))])
    assert (end.problem.code, end.park and end.park.wake_at_ms) == ("cloud_gone", clock.now_ms + 5_000)
    command = await started(purse, offline="fail")
    assert calls.late(command, [Tried(call, Failure("cloud", "no connection"))]).outcome == "timeout"


async def test_a_refused_key_is_no_reason_to_give_up_what_may_pass(purse: Purse, calls: ModelCalls) -> None:
    refused = Failure("key", "HTTP 401", 401)
    command = await started(purse)
    end = await left(purse, calls, command, refused, CUT)
    assert (end.outcome, end.problem.code) == ("failure", "model_failed")


@pytest.mark.parametrize(
    ("installed", "rule", "model"),
    [
        (True, None, "cheap-1"),
        (False, None, "strong-1"),
        (False, Rule(name="programming", executor=("coder",), kind=("programming",)), "cheap-1"),
        (True, Rule(name="programming", executor=("model",), kind=("programming",)), "strong-1"),
        (True, Rule(name="programming", executor=("nobody",), kind=("programming",)), "strong-1"),
        (True, Rule(name="programming", executor=("command",), kind=("programming",)), "strong-1"),
    ],
    ids=["the_agent_is_installed", "it_is_not", "a_rule_of_the_config", "to_a_model", "to_nobody", "to_commands"],
)
async def test_a_prompt_of_a_hard_kind_is_hard_where_no_executor_is_there_for_it(
    purse: Purse,
    calls: ModelCalls,
    monkeypatch: pytest.MonkeyPatch,
    installed: bool,
    rule: Rule | None,
    model: str,
) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: f"/bin/{program}" if installed else None)
    context = purse.context
    models = tuple(structs.replace(PRICED, name=name) for name in ("cheap-1", "strong-1"))
    channel = whole(Channel(name="p1", base_url="http://127.0.0.1:9/v1", models=models))
    sections = (BUILT_IN["command"], BUILT_IN["claude-code"], CommandExecutor(name="coder", profile="codex"))
    rules = () if rule is None else (rule,)
    context.config = structs.replace(context.config, channel=(channel,), executor=sections, rule=rules)
    agents = {section.name: InProcessExecutor(section.name, nothing) for section in sections}
    for agent in agents.values():
        agent.kind = "command"
    context.take_executors({**context.executors, **agents})
    call = await begun(calls, await started(purse, kind="programming", executor="model"))
    assert call.model.name == model


async def test_programs_are_looked_for_now_and_then_and_not_for_each_call(
    purse: Purse, calls: ModelCalls, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    monkeypatch.setattr(shutil, "which", looks.append)
    context = purse.context
    agent = InProcessExecutor("claude-code", nothing)
    agent.kind = "command"
    context.config = structs.replace(context.config, executor=(BUILT_IN["claude-code"],))
    context.take_executors({**context.executors, "claude-code": agent})
    command = await started(purse)
    looked: list[int] = []
    for _ in range(2):
        await begun(calls, command)
        await begun(calls, command)
        looked.append(len(looks))
        clock.now_s += SERVED_S
    context.config = structs.replace(context.config)
    await begun(calls, command)
    await begun(calls, command)
    assert [*looked, len(looks)] == [1, 2, 3]


async def test_a_call_that_we_cut_ourselves_says_nothing_good_of_the_gateway(purse: Purse) -> None:
    modes = purse.context.modes
    calls = ModelCalls(purse.context, has_gateway=True)
    command = await started(purse)
    for said in (Failure("gateway", "it broke off"), CUT_BY_US, Failure("gateway", "it broke off")):
        call = await begun(calls, command)
        assert call.way == "gateway"
        await calls.end(call, said, 1.0)
    assert modes.gateway.is_gone


@pytest.mark.parametrize("kind", ["limited", "overloaded"])
async def test_a_shorter_limit_does_not_end_a_longer_one(
    purse: Purse, calls: ModelCalls, clock: FakeClock, kind: Kind
) -> None:
    clock.now_ms = NOW_MS
    command = await started(purse)
    one, other = await begun(calls, command), await begun(calls, command)
    for call, wait_s in ((one, 3600), (other, 60)):
        await calls.end(call, Failure(kind, f"for {wait_s} s", until_ms=NOW_MS + 1000 * wait_s), 1.0)
    facts = calls.facts("direct", NOW_MS)
    known = facts.keys[one.channel.name, one.key] if kind == "limited" else facts.channels[one.channel.name]
    assert known.closed_until_ms == NOW_MS + 3_600_000
    if kind == "overloaded":
        assert facts.channels[one.channel.name].why_closed == "for 3600 s"


def far_away(purse: Purse) -> None:
    """Has the channels be none of this machine's."""
    channels = tuple(structs.replace(one, local=False) for one in purse.context.config.channel)
    purse.context.config = structs.replace(purse.context.config, channel=channels)


async def test_a_key_that_can_not_be_read_is_tried_again_soon_and_says_nothing_of_the_cloud(
    purse: Purse, clock: FakeClock
) -> None:
    far_away(purse)
    calls, modes = ModelCalls(purse.context, has_gateway=True), purse.context.modes
    soon_ms = clock.now_ms + 60_000
    unread = Failure("secret", "no answer in 10.0 s", until_ms=soon_ms)
    modes.gateway_was(good=False)
    modes.channel_was("p1", away=True)
    end = await left(purse, calls, await started(purse), unread, unread)
    assert (end.outcome, end.park and end.park.wake_at_ms) == ("parked", soon_ms)
    assert "its key can't be read: no answer in 10.0 s until" in str(end.problem)
    assert (modes.gateway.row, modes.away()) == (1, {"p1": 1}), "nothing was sent"
    clock.now_ms += 60_001
    await begun(calls, await started(purse))


async def test_a_key_that_is_never_there_waits_for_a_person(purse: Purse, calls: ModelCalls) -> None:
    missing = Failure("secret", "the variable is not set")
    end = await left(purse, calls, await started(purse), missing, missing)
    assert (end.problem.code, end.park and end.park.cause) == ("no_channel_key", "login")


@pytest.mark.parametrize("how", ["one", "all", "resume"])
async def test_a_refused_key_is_taken_again_once_it_is_found_good(purse: Purse, calls: ModelCalls, how: str) -> None:
    refused = Failure("key", "HTTP 401", 401)
    await left(purse, calls, await started(purse), refused, refused)
    if how == "resume":
        await purse.gates.resume("model")
    else:
        purse.context.modes.trust_keys([("p2", "")] if how == "one" else None)
    assert (await begun(calls, await started(purse))).channel.name == ("p2" if how == "one" else "p1")


async def test_a_gateway_that_is_still_starting_is_neither_well_nor_broken(purse: Purse) -> None:
    calls, modes = ModelCalls(purse.context, has_gateway=True), purse.context.modes
    modes.gateway_was(good=False)
    command = await started(purse)
    await calls.end(await begun(calls, command), Failure("deadline", "the gateway was still starting"), 1.0)
    assert modes.gateway.row == 1
    await calls.end(await begun(calls, command), Failure("deadline", "it dripped", may_cost=True), 1.0)
    assert modes.gateway.row == 0, "what was sent shows that it is there"


async def test_a_provider_that_takes_too_long_uses_up_the_attempts_of_a_prompt(
    purse: Purse, calls: ModelCalls, clock: FakeClock
) -> None:
    purse.set("retry", attempts_max=2)
    clock.now_s, clock.now_ms = clock.now_s + 1000, clock.now_ms + 1_000_000
    slow = Failure("cloud", "nothing came from it in time", may_cost=True)
    command, ends = await started(purse), list[tuple[str, str]]()
    for _ in range(9):
        end = await left(purse, calls, command, slow, slow)
        ends.append((end.outcome, end.problem.code))
        await purse.finish(command, end.outcome, problem=end.problem, park=end.park)
        if (await purse.task(command.task_id)).state == "failed":
            break
        clock.now_s, clock.now_ms = clock.now_s + 60, clock.now_ms + 60_000
        await purse.wake()
        (command,) = await purse.claim()
    assert ends == [("parked", "cloud_gone")] * 2 + [("failure", "model_failed")] * 2


async def test_a_provider_that_takes_too_long_does_not_wait_out_the_limit_of_another(
    purse: Purse, calls: ModelCalls, clock: FakeClock
) -> None:
    limited = Failure("limited", "HTTP 429", 429, until_ms=clock.now_ms + 600_000)
    slow = Failure("cloud", "nothing came from it in time", may_cost=True)
    end = await left(purse, calls, await started(purse), limited, slow)
    assert (end.outcome, end.problem.code) == ("failure", "model_failed")


async def test_a_channel_that_can_not_be_reached_goes_behind_and_one_call_tries_it_again(
    purse: Purse, calls: ModelCalls, clock: FakeClock
) -> None:
    far_away(purse)
    away, command = Failure("cloud", "no connection"), await started(purse)
    for _ in range(3):
        call = await begun(calls, command)
        assert call.channel.name == "p1"
        await calls.end(call, away, 1.0)
    until_ms = clock.now_ms + 30_000
    assert calls.facts("direct", clock.now_ms).channels["p1"].away_until_ms == until_ms
    second = await begun(calls, command)
    assert second.channel.name == "p2"
    last = await begun(calls, command, Tried(second, CUT))
    assert last.channel.name == "p1", "the only way left stays open"
    await calls.end(last, CUT, 1.0)
    clock.now_s, clock.now_ms = clock.now_s + 30, until_ms
    probe, beside = await begun(calls, command), await begun(calls, command)
    assert (probe.channel.name, beside.channel.name) == ("p1", "p2")
    await calls.end(probe, ANSWER, 1.0)
    assert (await begun(calls, command)).channel.name == "p1"


async def test_no_channel_goes_behind_for_a_cloud_that_is_gone(purse: Purse, calls: ModelCalls) -> None:
    far_away(purse)
    command = await started(purse)
    open_calls = [await begun(calls, command) for _ in range(4)]
    purse.context.modes.cloud_was(good=False)
    for call in open_calls:
        await calls.end(call, Failure("cloud", "no connection"), 1.0)
    purse.context.modes.cloud_was(good=True)
    purse.context.modes.cloud_was(good=True)
    assert not purse.context.modes.cloud.is_gone
    assert (await begun(calls, command)).channel.name == "p1"
