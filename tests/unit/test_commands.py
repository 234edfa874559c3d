"""What is sent to a runner: nothing that has ended, and all that hasn't, however early its row is read."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import anyio
import msgspec
import pytest
from anyio.lowlevel import checkpoint

from omnid.clock import SystemClock
from omnid.flow.commands import CANCEL, COMMAND, Commands
from omnid.flow.fleet import Fleet
from omnid.link.interface import Message
from omnid.model import Cancel, Delivery, Result
from omnid.settings_links import Remote
from tests.contract.links import command

pytestmark = pytest.mark.anyio


class Journal:
    """Has one attempt; the fleet hears of it only when it has been read twice."""

    def __init__(self, fleet: Fleet, ended_at_ms: int | None) -> None:
        self._fleet = fleet
        self._ended_at_ms = ended_at_ms
        self._reads = 0

    async def read(self, _look: Any) -> Sequence[Any]:
        self._reads += 1
        if self._reads == 2:
            self._fleet.took("a1", "r1", "command")
        return (1, "a1", "i1", 1, self._ended_at_ms)


class Sent:
    def __init__(self) -> None:
        self.messages: list[Any] = []

    async def send(self, _to: str, batch: Sequence[Message]) -> None:
        self.messages += batch


@pytest.fixture
def fleet() -> Fleet:
    made = Fleet(SystemClock())
    made.configure([Remote(name="r1", link="cable", executors=("command",))])
    made.link_up("cable")
    return made


def row(number: int, kind: str = COMMAND) -> Delivery:
    body = msgspec.to_builtins(command(number) if kind == COMMAND else Cancel(f"a{number}"))
    return Delivery(number, f"{kind}{number}", "runner/r1", kind, f"a{number}", body, 0)


@pytest.mark.parametrize(("ended_at_ms", "sent"), [(None, ["a1"]), (5, [])])
async def test_a_row_that_is_read_before_the_fleet_hears_of_it_is_sent(
    fleet: Fleet, ended_at_ms: int | None, sent: list[str]
) -> None:
    messenger = Sent()
    context: Any = SimpleNamespace(fleet=fleet, store=Journal(fleet, ended_at_ms))
    settles: Any = None
    link: Any = messenger
    commands = Commands(context, settles, "r1", lambda _: link)
    await commands.send([row(1)])
    assert [one.attempt_id for one in messenger.messages] == sent


class Ended:
    """A journal whose attempts have all ended."""

    async def read(self, _look: Any) -> Sequence[Any]:
        return (1, "a", "i", 1, 5)


class Settles:
    """Ends attempts, unless the store is closed, and lets something happen while it writes."""

    def __init__(self, fleet: Fleet, meanwhile: Callable[[], None], *, closed: bool = False) -> None:
        self.ended: list[str] = []
        self._fleet = fleet
        self._meanwhile = meanwhile
        self._closed = closed

    async def settle(self, result: Result) -> bool:
        await checkpoint()
        self._meanwhile()
        if self._closed:
            return False
        self.ended.append(result.attempt_id)
        return self._fleet.let_go(result.attempt_id)


def withdrawn(fleet: Fleet, *, closed: bool) -> tuple[Commands, Settles, Sent]:
    """Gives commands of which a2 is withdrawn, and a1 while the end of a2 is written."""
    for number in range(3):
        fleet.took(f"a{number}", "r1", "command", unsent=True)
    fleet.withdraw("a2")
    settles: Any = Settles(fleet, lambda: fleet.withdraw("a1"), closed=closed)
    messenger: Any = Sent()
    context: Any = SimpleNamespace(fleet=fleet, store=Ended())
    return Commands(context, settles, "r1", lambda _: messenger), settles, messenger


@pytest.mark.parametrize(("closed", "ended"), [(False, ["a2", "a1"]), (True, [])])
async def test_what_is_withdrawn_while_the_batch_is_made_is_not_sent(
    fleet: Fleet, closed: bool, ended: list[str]
) -> None:
    commands, settles, messenger = withdrawn(fleet, closed=closed)
    with anyio.fail_after(10):
        await commands.send([*map(row, range(3)), row(2, CANCEL)])
    assert (settles.ended, messenger.messages) == (ended, [command(0), Cancel("a2")])
