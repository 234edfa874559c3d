"""A comeback: one line when all that had waited is out, or when the link is down again."""

from io import StringIO

import pytest

from omnid.flow.comeback import CameBack, Comeback
from omnid.log import Log
from tests.fakes.clock import FakeClock


class Told:
    """A comeback, and what is told of it."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.at_ms = self.clock.wall_ms()
        self.logged = StringIO()
        self.heard: list[CameBack] = []
        log = Log(self.clock, lambda text: text, stream=self.logged).logger()
        self.comeback = Comeback("cable", self.clock, log, self.heard.append)


@pytest.fixture
def told() -> Told:
    return Told()


def test_where_nothing_has_waited_it_is_over_at_once(told: Told) -> None:
    told.comeback.back(7.5, {})
    assert told.heard == [CameBack("cable", told.at_ms, 0, frozenset())]
    assert '"down_s":7.5,"sent":0' in told.logged.getvalue()


def test_it_is_over_when_every_queue_has_caught_up(told: Told) -> None:
    told.comeback.back(60.0, {"a": 0, "b": 5})
    told.comeback.caught_up("c", 9)
    told.comeback.caught_up("a", 3)
    assert told.heard == []
    told.clock.now_s += 2
    told.clock.now_ms -= 60_000
    told.comeback.caught_up("b", 11)
    told.comeback.caught_up("b", 1)
    told.comeback.gone({})
    assert told.heard == [CameBack("cable", told.at_ms, 9, frozenset())]
    assert '"down_s":60.0,"sent":9,"took_s":2.0' in told.logged.getvalue()


def test_a_link_that_is_down_again_ends_it_with_what_is_out_by_then(told: Told) -> None:
    told.comeback.back(1.0, {"a": 0, "b": 2})
    told.comeback.caught_up("a", 4)
    told.comeback.gone({"b": 5, "c": 7})
    assert told.heard == [CameBack("cable", told.at_ms, 7, frozenset({"b"}))]
    assert told.logged.getvalue().count("link_up") == 1
