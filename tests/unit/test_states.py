"""The task's state machine and the reasons to wait."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnid import states
from omnid.errors import Rejected

EVENTS = sorted({event for _, event in states.TABLE})


@given(st.sampled_from(states.STATES), st.sampled_from(EVENTS))
def test_a_listed_event_advances_and_any_other_is_refused(state: str, event: str) -> None:
    if (state, event) in states.TABLE:
        assert states.advance(state, event) in states.STATES
    else:
        with pytest.raises(Rejected) as caught:
            states.advance(state, event)
        assert caught.value.code == "bad_event"


def test_every_state_can_be_reached_and_every_open_state_can_end() -> None:
    reachable = {"idle"}
    for _ in states.STATES:
        reachable |= {after for (before, _), after in states.TABLE.items() if before in reachable}
    assert reachable == set(states.STATES)
    for state in set(states.STATES) - states.TERMINAL:
        seen, todo = set[str](), [state]
        while todo:
            at = todo.pop()
            seen.add(at)
            todo += [after for (before, _), after in states.TABLE.items() if before == at and after not in seen]
        assert seen >= states.TERMINAL, state


def test_a_completed_task_stays_completed() -> None:
    assert not [key for key in states.TABLE if key[0] == "completed"]


def test_only_running_states_take_a_result() -> None:
    takes = {state for state, event in states.TABLE if event == "succeed"}
    assert takes == states.RUNNING | {"uncertain"}


@given(
    st.booleans(),
    st.sampled_from([None, "needed", "granted"]),
    st.integers(0, 3),
    st.one_of(st.none(), st.integers(0, 200)),
    st.one_of(st.none(), st.integers(0, 200)),
)
def test_a_task_waits_for_the_first_reason_that_holds(
    paused: bool, approval: str | None, before: int, not_before_ms: int | None, retry_at_ms: int | None
) -> None:
    wait = states.own_wait(states.Facts(100, paused, approval, before, not_before_ms, retry_at_ms))
    holds = {
        "paused": paused,
        "approval": approval == "needed",
        "dependency": before > 0,
        "not_before": not_before_ms is not None and not_before_ms > 100,
        "backoff": retry_at_ms is not None and retry_at_ms > 100,
    }
    expected = [reason for reason in states.REASONS if holds.get(reason)]
    assert (wait and wait.reason) == (expected[0] if expected else None)
    if wait is not None and wait.reason in ("not_before", "backoff"):
        assert wait.wake_at_ms is not None
        assert wait.wake_at_ms > 100
