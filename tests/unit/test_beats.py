"""Beats: what pings show, and a day as cells."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnid.link.beats import BADNESS, BEAT_MS, BEATS_MAX, LOOKS, Beats, Quality, mark, place_of

MINUTES = 60


def test_latency_and_loss_are_those_of_the_last_pings() -> None:
    beats = Beats(slow_s=0.5)
    assert (beats.latency_s, beats.loss, beats.is_slow, beats.is_lossy) == (None, None, False, False)
    beats.ping(0, 0.1)
    beats.ping(0, None)
    assert (beats.latency_s, beats.loss, beats.is_lossy) == (0.1, 0.5, True)
    for _ in range(LOOKS):
        beats.ping(0, 0.6)
    assert (beats.latency_s, beats.loss, beats.is_slow, beats.is_lossy) == (0.6, 0.0, True, False)


def test_a_few_lost_pings_are_borne() -> None:
    beats = Beats()
    for number in range(LOOKS):
        beats.ping(number * BEAT_MS, None if number < 2 else 0.1)
    assert (beats.loss, beats.is_lossy) == (pytest.approx(0.1), False)
    beats.ping(LOOKS * BEAT_MS, None)
    assert not beats.is_lossy  # The first has fallen out.
    beats.ping(LOOKS * BEAT_MS, None)
    beats.ping(LOOKS * BEAT_MS, None)
    assert beats.is_lossy


def test_a_cell_is_as_bad_as_the_worst_that_was_seen_in_it_and_empty_where_nobody_looked() -> None:
    beats = Beats(slow_s=0.5)
    for at_ms, latency_s in ((0, 0.1), (1, 0.9), (2, 0.1), (BEAT_MS, 0.1), (3 * BEAT_MS, None), (3 * BEAT_MS, 0.1)):
        beats.ping(at_ms, latency_s)
    assert beats.cells(0, 4 * BEAT_MS, 4) == ["degraded", "up", None, "down"]
    assert beats.cells(0, 4 * BEAT_MS, 2) == ["degraded", "down"]
    assert beats.cells(BEAT_MS, 3 * BEAT_MS, 2) == ["up", None]


def test_a_clock_that_is_set_back_changes_the_last_beat_and_a_day_is_all_that_is_kept() -> None:
    beats = Beats()
    beats.look(5 * BEAT_MS, "up")
    beats.look(2 * BEAT_MS, "down")
    assert beats.cells(0, 6 * BEAT_MS, 6) == [None, None, None, None, None, "down"]
    for minute in range(6, 2 * BEATS_MAX):
        beats.look(minute * BEAT_MS, "up")
    assert len(beats._beats) == BEATS_MAX


@given(st.lists(st.tuples(st.integers(0, MINUTES - 1), st.sampled_from(sorted(BADNESS)))), st.integers(1, MINUTES))
def test_nothing_bad_is_lost_in_any_width(looks: list[tuple[int, Quality]], count: int) -> None:
    beats = Beats()
    for minute, quality in sorted(looks):
        beats.look(minute * BEAT_MS, quality)
    to_ms = MINUTES * BEAT_MS
    cells = beats.cells(0, to_ms, count)
    wanted: list[Quality | None] = [None] * count
    for minute, quality in looks:
        mark(wanted, place_of(minute * BEAT_MS, 0, to_ms, count), quality)
    assert cells == wanted
