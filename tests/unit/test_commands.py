"""What is sent to a runner: nothing that has ended, and all that hasn't, however early its row is read."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from omnid.clock import SystemClock
from omnid.flow.commands import Commands
from omnid.flow.fleet import Fleet
from omnid.link.interface import Message
from omnid.model import Delivery
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


@pytest.mark.parametrize(("ended_at_ms", "sent"), [(None, ["a1"]), (5, [])])
async def test_a_row_that_is_read_before_the_fleet_hears_of_it_is_sent(
    ended_at_ms: int | None, sent: list[str]
) -> None:
    fleet, messenger = Fleet(SystemClock()), Sent()
    fleet.configure([Remote(name="r1", link="cable", executors=("command",))])
    fleet.link_up("cable")
    context: Any = SimpleNamespace(fleet=fleet, store=Journal(fleet, ended_at_ms))
    settles: Any = None
    link: Any = messenger
    commands = Commands(context, settles, "r1", lambda _: link)
    row = Delivery(1, "d1", "runner/r1", "command", "a1", msgspec.to_builtins(command(1)), 0)
    await commands.send([row])
    assert [one.attempt_id for one in messenger.messages] == sent
