"""Backoff and the decaying count of failures."""

import random

from hypothesis import given
from hypothesis import strategies as st

from omnid.retry import Backoff, FailureCount


@given(st.floats(0, 10), st.floats(0, 1000), st.integers(1, 10_000), st.integers())
def test_a_wait_stays_within_its_bounds(base_s: float, more_s: float, failures: int, seed: int) -> None:
    backoff = Backoff(base_s, base_s + more_s)
    delay_s = backoff.delay_s(failures, random.Random(seed).uniform)
    assert base_s / 2 - 1e-9 <= delay_s <= backoff.max_s + 1e-9


def test_waits_grow_up_to_the_limit() -> None:
    waits = [Backoff(1, 60).delay_s(n, lambda _, high: high) for n in range(1, 9)]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]


def test_failures_in_a_row_are_counted_and_forgotten() -> None:
    count = FailureCount(forget_s=10).failed(0).failed(5)
    assert count.failures == 2
    assert count.failed(14).failures == 3
    assert count.failed(16).failures == 1
    assert count.succeeded().failures == 0
