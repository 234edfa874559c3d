"""Questions that name no call, as servers of the older era ask over standard streams: nobody is asked by a guess."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest

from omnid.executor.mcp_nameless import Nameless
from omnid.model import Command, InputRequest, InputResponse, Result
from tests.contract.executors import Ports
from tests.fakes.signals import WAIT_S, Fifo
from tests.unit.test_mcp_executor import Bench, bench

pytestmark = pytest.mark.anyio

ADA = InputResponse("accept", {"name": "Ada"})


class Asked(Ports):
    """A person who answers, and which attempt asked them what."""

    def __init__(self) -> None:
        super().__init__(ADA)
        self.by: list[tuple[str, Any]] = []

    async def ask(self, attempt_id: str, requests: Mapping[str, InputRequest]) -> dict[str, InputResponse]:
        self.by += [(attempt_id, request.params["message"]) for request in requests.values()]
        return await super().ask(attempt_id, requests)


class Calls:
    """Calls of one server side by side, and what became of them."""

    def __init__(self, fake: Bench, path: Path) -> None:
        self.fake = fake
        self.ports = fake.ports = Asked()
        self.fifo = Fifo(path / "fifo")
        self.until = str(path / "until")
        os.mkfifo(self.until)
        self.results: dict[str, Result] = {}

    async def run(self, command: Command) -> None:
        self.results[command.attempt_id] = await self.fake.attempt(command)

    def held(self) -> Command:
        return self.fake.command("held", fifo=self.fifo.path, until=self.until)

    def confirm(self, what: str, **more: Any) -> Command:
        return self.fake.command("confirm", what=what, fifo=self.fifo.path, **more)

    async def release(self) -> None:
        await anyio.to_thread.run_sync(Path(self.until).write_text, "released")

    async def asks(self) -> None:
        """Waits until what the server has asked is known here."""
        await self.fifo.line()
        with anyio.fail_after(WAIT_S):
            while self.fake.executor.concurrency != 1:  # noqa: ASYNC110 - the server is another process.
                await anyio.sleep(0.01)


@pytest.fixture
async def calls(anyio_backend: str, tmp_path: Path) -> Any:
    async with bench(tmp_path, concurrency=4) as fake:
        made = Calls(fake, tmp_path)
        yield made
        made.fifo.close()


async def test_the_question_is_that_of_the_call_which_is_not_answered(calls: Calls) -> None:
    held, confirm = calls.held(), calls.confirm("Delete it?")
    async with anyio.create_task_group() as group:
        group.start_soon(calls.run, held)
        await calls.fifo.line()
        group.start_soon(calls.run, confirm)
        await calls.asks()
        assert calls.ports.by == []
        assert calls.ports.may_be_asking == {held.attempt_id, confirm.attempt_id}
        await calls.release()
    assert calls.ports.may_be_asking == set()
    for command in (held, confirm):
        assert "it is held back until that is known" in await calls.fake.printed(calls.results[command.attempt_id])
    assert calls.ports.by == [(confirm.attempt_id, "Delete it?")]
    assert json.loads(calls.results[confirm.attempt_id].output or "")["content"] == {"name": "Ada"}
    assert calls.results[held.attempt_id].output == "released"


async def test_the_only_call_is_asked_at_once_and_from_then_on_they_come_one_at_a_time(calls: Calls) -> None:
    confirm = calls.confirm("Delete it?")
    assert calls.fake.executor.concurrency == 4
    await calls.run(confirm)
    assert calls.ports.by == [(confirm.attempt_id, "Delete it?")]
    assert calls.fake.executor.concurrency == 1
    assert "held back" not in await calls.fake.printed(calls.results[confirm.attempt_id])
    await calls.run(calls.confirm("And this?"))
    assert len(calls.fake.log("mcp_one_at_a_time")) == 1


async def test_of_as_many_questions_as_calls_the_last_is_given_back(calls: Calls) -> None:
    confirms = [(calls.confirm(what, together=3), what) for what in ("Delete A?", "Delete B?", "Delete C?")]
    async with anyio.create_task_group() as group:
        for command, _ in confirms:
            group.start_soon(calls.run, command)
    assert calls.ports.may_be_asking == set()
    assert {*calls.ports.by} <= {(command.attempt_id, what) for command, what in confirms}
    outputs = {command.attempt_id: calls.results[command.attempt_id].output for command, _ in confirms}
    ((asked, _),) = calls.ports.by
    assert "Ada" in (outputs.pop(asked) or "")
    assert [*outputs.values()] == ["it was not asked"] * 2


@pytest.mark.parametrize("which", ["held", "confirm"])
async def test_nobody_is_asked_when_the_one_that_asks_may_have_gone(calls: Calls, which: str) -> None:
    commands = {"held": calls.held(), "confirm": calls.confirm("Delete it?")}
    async with anyio.create_task_group() as group:
        group.start_soon(calls.run, commands["held"])
        await calls.fifo.line()
        group.start_soon(calls.run, commands["confirm"])
        await calls.asks()
        await calls.fake.executor.cancel(commands[which].attempt_id)
        if which == "confirm":
            await calls.release()
    assert calls.ports.by == []


async def test_a_question_waits_for_all_but_one_of_the_calls_that_were_open(anyio_backend: str) -> None:
    nameless, found = Nameless(), list[Any]()

    async def ask(*open_calls: str) -> None:
        found.append(await nameless.whose(open_calls))

    await ask("a")
    await ask()
    assert found == ["a", None]
    async with anyio.create_task_group() as group:
        group.start_soon(ask, "a", "b", "c")
        await anyio.wait_all_tasks_blocked()
        nameless.answered("a")
        nameless.left("a")
        nameless.answered("d")
        nameless.left("d")
        await anyio.wait_all_tasks_blocked()
        assert len(found) == 2
        group.start_soon(ask, "b", "c")
        await anyio.wait_all_tasks_blocked()
        assert found[2:] == [None], "each of the two asks, and one has to end"
        nameless.answered("c")
    assert found[3:] == ["b"]
