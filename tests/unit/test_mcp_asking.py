"""What a server asks during a call or in a task: a person is asked, and the answer travels back."""

import json
from collections.abc import Mapping

import anyio
import pytest

from omnid.errors import Rejected
from omnid.executor.interface import Found
from omnid.model import InputRequest, InputResponse, Result
from tests.contract.executors import Ports
from tests.fakes.mcp_server import QUESTION
from tests.fakes.signals import WAIT_S
from tests.unit.mcp_kit import DONE, Kit, Noted, each_new_way, each_way, left_behind
from tests.unit.test_mcp_executor import problem

pytestmark = pytest.mark.anyio

ADA = InputResponse("accept", {"name": "Ada"})
ASKS = {"status": "input_required", "inputRequests": {"who": QUESTION}}


@each_way
async def test_a_task_that_asks_gets_its_answer(kit: Kit) -> None:
    kit.ports = kit.fake.ports = Noted(ADA)
    result = await kit.ended(kit.job(), ASKS)
    assert json.loads(result.output or "") == {"who": {"action": "accept", "content": {"name": "Ada"}}}
    (request,) = kit.ports.asked.values()
    assert request == InputRequest("elicitation/create", QUESTION["params"])


@each_way
async def test_the_attempts_clock_stands_meanwhile(kit: Kit) -> None:
    class Slow(Noted):
        async def ask(self, attempt_id: str, requests: Mapping[str, InputRequest]) -> dict[str, InputResponse]:
            await anyio.sleep(2.5)
            return dict.fromkeys(requests, ADA)

    kit.ports = kit.fake.ports = Slow()
    assert (await kit.ended(kit.job(timeout_s=2), ASKS)).outcome == "success"


@each_way
async def test_the_next_daemon_asks_on(kit: Kit) -> None:
    command, id = await left_behind(kit)
    kit.set(id, **ASKS)
    async with kit.daemon() as fake:
        kit.ports._answer = ADA
        assert await fake.executor.recover(command, kit.ports) is Found.RUNNING
        with anyio.fail_after(WAIT_S):
            result = await fake.executor.adopt(command, kit.ports)
        assert "Ada" in (result.output or "")
        assert fake.ledger("called") == ["job"]


@each_new_way
async def test_a_question_that_the_task_no_longer_asks_is_withdrawn(kit: Kit) -> None:
    asking, results = anyio.Event(), list[Result]()

    class Nobody(Noted):
        async def ask(self, attempt_id: str, requests: Mapping[str, InputRequest]) -> dict[str, InputResponse]:
            asking.set()
            return await super().ask(attempt_id, requests)

    kit.ports = kit.fake.ports = Nobody()
    command = kit.job()

    async def run() -> None:
        results.append(await kit.fake.attempt(command))

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        id = await kit.fifo.line()
        kit.set(id, **ASKS)
        await asking.wait()
        kit.set(id, **DONE, inputRequests={})
    assert results[0].output == "done"
    assert kit.ports.withdrawn == ["task:who"]
    assert "tasks/update" not in kit.fake.ledger("of_task")


@each_new_way
async def test_a_task_that_asks_nothing_yet_is_looked_at_again(kit: Kit) -> None:
    command, results = kit.job(status="input_required", inputRequests={}), list[Result]()

    async def run() -> None:
        results.append(await kit.fake.attempt(command))

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        id = await kit.fifo.line()
        with anyio.fail_after(WAIT_S):
            while "tasks/get" not in kit.fake.ledger("of_task"):  # noqa: ASYNC110 - the server is another process.
                await anyio.sleep(0.02)
        kit.set(id, **DONE)
    assert results[0].output == "done"


@each_new_way
async def test_what_no_person_can_give_ends_the_task(kit: Kit) -> None:
    asks = {"who": {"method": "sampling/createMessage", "params": {}}}
    result = await kit.ended(kit.job(), {"status": "input_required", "inputRequests": asks, "obeys": True})
    assert problem(result)[:2] == ("failure", "reported_error")
    assert "it asks for sampling/createMessage, which omnid doesn't give" in problem(result)[2]
    assert "tasks/cancel" in kit.fake.ledger("of_task")


@each_way
async def test_what_can_not_be_asked_is_answered_with_cancel(kit: Kit) -> None:
    class Full(Noted):
        async def ask(self, attempt_id: str, requests: Mapping[str, InputRequest]) -> dict[str, InputResponse]:
            raise Rejected("too_many", count=9, things="questions of one attempt", limit=8, setting="limits.asks_max")

    kit.ports = kit.fake.ports = Full()
    result = await kit.ended(kit.job(), ASKS)
    assert json.loads(result.output or "") == {"who": {"action": "cancel"}}
    assert len(kit.fake.log("mcp_not_asked")) == 1


@each_new_way
async def test_a_call_that_asks_first_is_made_again_with_the_answers(kit: Kit) -> None:
    kit.fake.ports = ports = Ports(ADA)
    result = await kit.fake.run("ask_first")
    assert json.loads(result.output or "") == {"who": {"action": "accept", "content": {"name": "Ada"}}}
    assert len(ports.asked) == 2, "the same again is a new question"
    assert kit.fake.ledger("called") == ["ask_first"] * 3
    assert (await kit.fake.executor.call_tool("ask_first", {}, "a call")).kind == "error"
