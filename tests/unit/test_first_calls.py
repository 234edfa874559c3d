"""An attempt's first call is reserved in the transaction that claims it: all of it is there, or nothing."""

from typing import Any

import msgspec
import pytest
from msgspec import structs

from omnid.channels import whole
from omnid.errors import Retryable
from omnid.executor.interface import Found
from omnid.executor.model import Call, ModelExecutor, NoCall, Wanted, Ways
from omnid.executor.model_wire import Answer
from omnid.flow.dispatcher import Dispatcher
from omnid.flow.model_calls import ModelCalls
from omnid.flow.runner import JournalPorts, lost, unbegun
from omnid.link.embedded import EmbeddedLink
from omnid.model import Command, Submit
from omnid.settings import Channel, ChannelModel
from omnid.settings import ModelExecutor as Section
from omnid.store import journal
from tests.fakes.clock import FakeClock
from tests.fakes.invariants import broken
from tests.fakes.purse import SECTIONS, Purse

pytestmark = pytest.mark.anyio
PRICED = ChannelModel(name="fake-1", input_usd=1, output_usd=2)
SECTION = Section(name="model", output_tokens_max=50)
WANTED = Wanted(None, "", 50)
ONE_CALL_USD = 0.0002


class House(Purse):
    """A purse with two channels, and the parts of a daemon that start prompts."""

    def __init__(self, path: Any, clock: FakeClock) -> None:
        super().__init__(path, clock)
        self.channels()
        self.calls_made = ModelCalls(self.context, has_gateway=False)
        ways: Any = Ways(self.calls_made, None, None)
        nothing: Any = None
        self.executor = ModelExecutor(
            SECTION, ways, nothing, nothing, tasks=nothing, clock=clock, log=nothing, limits=self.context.config.limits
        )
        self.context.take_executors({**self.context.executors, "model": self.executor})
        self.context.paused_starts = False
        self.link = EmbeddedLink()
        self.dispatcher = Dispatcher(self.context, self.gates, self.link)

    def channels(self, **fields: Any) -> None:
        channels = tuple(
            whole(Channel(name=name, base_url="http://127.0.0.1:9/v1", models=(PRICED,), **fields))
            for name in ("p1", "p2")
        )
        config = structs.replace(self.context.config, channel=channels, executor=(*SECTIONS, SECTION))
        self.context.config = config

    async def start(self, count: int = 1) -> list[Command]:
        """Submits prompts in one transaction, so that it claims them all, and gives their commands."""
        await self.submit(*[Submit(prompt="say hello", backoff_s=0)] * count)
        commands: list[Any] = []
        while len(commands) < count:
            commands += [received.message for received in await self.link.receive()]
        return commands

    async def begin(self, command: Command) -> Call | NoCall:
        return await self.calls_made.begin(command, WANTED, ())

    async def spent(self) -> list[tuple[str, int | None, str | None]]:
        return [(call.channel or "", call.spent_microusd, call.outcome) for call in await self.calls()]

    async def written(self) -> int:
        row = await self.store.read(lambda reader: reader.one("last_seq"))
        assert row is not None
        return row[0]


@pytest.fixture
async def house(tmp_path: Any, clock: FakeClock) -> Any:
    made = House(tmp_path / "world", clock)
    try:
        yield made
        assert await broken(made) == []
    finally:
        made.close()


async def test_it_is_written_with_its_attempt_and_asked_for_without_another_commit(house: House) -> None:
    (command,) = await house.start()
    assert await house.spent() == [("p1", None, None)]
    assert await house.store.read(lambda reader: len(journal.notes(reader, command.attempt_id, "call"))) == 1
    before = await house.written()
    call = await house.begin(command)
    assert isinstance(call, Call)
    assert (call.id, call.channel.name) == (f"{command.attempt_id}/1", "p1")
    assert await house.written() == before
    assert house.context.first_calls == {}
    (reserved,) = await house.calls()
    assert reserved.reserved_microusd == call.most_microusd > 0


async def test_where_the_commit_fails_there_is_neither(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.context.paused_starts = True
    await house.submit(Submit(prompt="say hello"))
    house.context.paused_starts = False
    unit: Any = house.store._unit
    commit = unit.commit

    def full() -> None:
        unit.rollback()
        raise Retryable("disk_full", path="/", detail="no space is left")

    monkeypatch.setattr(unit, "commit", full)
    with pytest.raises(Retryable):
        await house.dispatcher.start_some()
    monkeypatch.setattr(unit, "commit", commit)
    assert (await house.calls(), house.context.first_calls) == ([], {})
    await house.dispatcher.start_some()
    assert len(await house.calls()) == 1


async def test_the_lid_holds_for_those_that_one_transaction_claims(house: House) -> None:
    house.cap(day_usd=ONE_CALL_USD)
    first, second = await house.start(2)
    assert len(await house.calls()) == 1
    assert isinstance(await house.begin(first), Call)
    refused = await house.begin(second)
    assert isinstance(refused, NoCall)
    assert (refused.outcome, refused.problem.code) == ("parked", "no_money")


@pytest.mark.parametrize("limit", [{"concurrency": 1}, {"requests_per_minute_max": 1}])
async def test_those_of_one_transaction_and_those_not_asked_for_yet_count_for_limits(
    house: House, limit: dict[str, int]
) -> None:
    house.channels(**limit)
    await house.start(2)
    assert [call.channel for call in await house.calls()] == ["p1", "p2"]
    (third,) = await house.start()
    assert len(await house.calls()) == 2
    assert isinstance(await house.begin(third), NoCall)


async def test_one_that_was_never_asked_for_counts_no_more_once_its_attempt_is_over(house: House) -> None:
    house.channels(concurrency=1)
    for command in await house.start(2):
        house.context.let_go(command.attempt_id)
    (third,) = await house.start()
    assert isinstance(await house.begin(third), Call)


async def test_after_a_crash_it_may_have_gone_out_and_keeps_its_reservation(house: House) -> None:
    house.cap(day_usd=3 * ONE_CALL_USD)
    (command,) = await house.start()
    await house.restart()
    house.context.let_go(command.attempt_id)
    assert await house.executor.recover(command, JournalPorts(house.context)) is Found.LOST
    await house.finish(command, lost(command).outcome, problem=lost(command).problem)
    assert await house.spent() == [("p1", None, "lost")]
    task = await house.task(command.task_id)
    assert task.state == "idle"
    (again,) = await house.claim()
    assert again.number == 2
    assert [one[2] for one in await house.spent()] == ["lost", None]


async def test_a_cancel_before_it_is_asked_for_gives_everything_back(house: House) -> None:
    (command,) = await house.start()
    result = unbegun(command)
    await house.finish(command, result.outcome, problem=result.problem, cost_usd=result.cost_usd)
    assert await house.spent() == [("p1", 0, "cancelled")]


@pytest.mark.parametrize("change", ["config", "brainstem"])
async def test_one_for_a_world_that_has_changed_is_given_back_and_decided_anew(house: House, change: str) -> None:
    (command,) = await house.start()
    if change == "config":
        house.context.config = msgspec.structs.replace(house.context.config, channel=house.context.config.channel[1:])
    else:
        house.context.modes.hold = "brainstem"
    call = await house.begin(command)
    assert isinstance(call, Call)
    second = ("p2" if change == "config" else "p1", None, None)
    assert await house.spent() == [("p1", 0, "unstarted"), second]
    assert await house.calls_made.end(call, Answer("Hello.", "stop", None), 1.0) is None


async def test_nothing_is_reserved_with_a_claim_while_the_cloud_is_gone(house: House) -> None:
    house.context.modes.hold = "brainstem"
    await house.start()
    assert await house.calls() == []
