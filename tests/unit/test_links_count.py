"""What the ledgers of a link add up to, and the faults that a run meets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnid.ctl.demo_links_count import Count, Ledgers, overtaken
from tests.scenarios.faults import BROKER, SCENARIOS, drawn

NAMES = tuple("abcd")
GOOD = Ledgers([NAMES], NAMES, NAMES, NAMES, [NAMES])


@pytest.mark.parametrize(
    ("changed", "count"),
    [
        ({}, (4, 4, 0, 0, 0)),
        ({"done": "abc"}, (4, 3, 1, 0, 0)),
        ({"started": "abc", "done": "abc", "read": ["abc"]}, (4, 3, 1, 0, 0)),
        ({"read": ["abc"]}, (4, 4, 1, 0, 0)),
        ({"done": "abcdb"}, (4, 4, 0, 1, 0)),
        ({"started": "abbbcd"}, (4, 4, 0, 2, 0)),
        ({"read": ["abcd", "a"]}, (4, 4, 0, 1, 0)),
        ({"done": "abcdx"}, (4, 4, 0, 1, 0)),
        ({"started": "acbd"}, (4, 4, 0, 0, 1)),
        ({"read": ["bad", "c"]}, (4, 4, 0, 0, 1)),
        ({"read": ["ac", "bd"]}, (4, 4, 0, 0, 0)),
        ({"sent": "acbd", "started": "acbd"}, (4, 4, 0, 0, 1)),
        ({"submitted": ["abd", "c"], "sent": "acbd", "started": "acbd"}, (4, 4, 0, 0, 0)),
        ({"sent": "abacd"}, (4, 4, 0, 0, 0)),
    ],
)
def test_the_count(changed: dict[str, list[str]], count: tuple[int, ...]) -> None:
    found = Count.of(GOOD._replace(**changed))
    assert found == count
    assert found.good == (count == (4, 4, 0, 0, 0))


def test_its_line() -> None:
    assert str(Count(5, 4, 1, 2, 3)) == "5 submitted, 4 done, 1 lost, 2 done twice, 3 out of order"


@given(st.permutations(range(7)))
def test_those_that_were_overtaken_are_those_behind_a_later_one(order: list[int]) -> None:
    found = [str(number) for number in order]
    wanted = [str(number) for number in range(7)]
    assert overtaken(wanted, found) == sum(
        any(later > number for later in order[:at]) for at, number in enumerate(order)
    )


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_seed_draws_the_same_faults_and_every_kind_of_them(scenario: str) -> None:
    faults = drawn(scenario, 7, 20)
    assert faults == drawn(scenario, 7, 20) != drawn(scenario, 8, 20)
    assert len(faults) == 20
    kinds = {(fault.broker, fault.clients, fault.daemon, fault.runner) for fault in faults[:5]}
    assert len(kinds) == (5 if scenario in ("broker-away", "offline") else 3)
    assert {fault.broker for fault in drawn("offline", 7, 5)} == set(BROKER)
