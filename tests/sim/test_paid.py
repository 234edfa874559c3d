"""Some seeds with prompts that cost money, and that the bill can fail."""

from collections.abc import Callable
from typing import Any

import pytest

from omnid.executor.interface import Found
from omnid.executor.model import Call, ModelExecutor
from omnid.flow import money
from omnid.flow.context import FirstCall
from omnid.flow.model_calls import ModelCalls
from tests.sim.paid import PROMPTS, run

SEEDS = 20
MUTANT_SEEDS = 200


def test_every_call_is_written_before_it_goes_out_and_every_bill_is_covered() -> None:
    outcomes = [run(seed) for seed in range(SEEDS)]
    assert [(o.seed, o.violations) for o in outcomes if o.violations] == []
    assert sum(o.tasks for o in outcomes) == PROMPTS * SEEDS
    assert sum(o.crashes for o in outcomes) > SEEDS


def chooses_the_first_call_and_writes_nothing(patch: pytest.MonkeyPatch) -> None:
    def first(self: ModelCalls, calls: dict[str, FirstCall], _tx: object, task: Any, attempt_id: str) -> int:
        config = self._context.config
        (model,) = config.channel[0].models
        call = Call(f"{attempt_id}/1", config.channel[0], "", model, "direct", 50)
        calls[attempt_id] = FirstCall(call, config)
        return 0

    patch.setattr(ModelCalls, "reserve_first", first)


def takes_a_first_call_for_one_that_never_went_out(patch: pytest.MonkeyPatch) -> None:
    settle_one = money.settle_one

    def settled(tx: Any, budget: Any, call: Any, cost: int | None, outcome: str, turned: Any) -> None:
        settle_one(tx, budget, call, 0 if outcome == "lost" else cost, outcome, turned)

    patch.setattr(money, "settle_one", settled)


def runs_an_attempt_again_after_its_call(patch: pytest.MonkeyPatch) -> None:
    async def recover(*_: object) -> Found:
        return Found.NEVER_RAN

    begin = ModelCalls.begin

    async def again(self: ModelCalls, command: Any, wanted: Any, tried: Any) -> Any:
        rows = await self._context.store.read(lambda reader: reader.all("calls_of_attempt", command.attempt_id))
        if not rows or tried or command.attempt_id in self._context.first_calls:
            return await begin(self, command, wanted, tried)
        channel = self._context.config.channel[0]
        return Call(f"{command.attempt_id}/1", channel, "", channel.models[0], "direct", 50)

    patch.setattr(ModelExecutor, "recover", recover)
    patch.setattr(ModelCalls, "begin", again)


def looks_at_no_lid(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ModelCalls, "_room", lambda *_: None)


@pytest.mark.timeout(480)
@pytest.mark.parametrize(
    "break_it",
    [
        chooses_the_first_call_and_writes_nothing,
        takes_a_first_call_for_one_that_never_went_out,
        runs_an_attempt_again_after_its_call,
        looks_at_no_lid,
    ],
)
def test_the_bill_sees_a_broken_promise(
    break_it: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_it(monkeypatch)
    assert any(run(seed).violations for seed in range(MUTANT_SEEDS))
