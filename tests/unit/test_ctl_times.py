"""Times on the command line."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnid.ctl import times
from omnid.errors import Rejected

NOW_MS = 1_795_000_000_000


@pytest.fixture(autouse=True)
def zone(monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("10min", 600), ("1h30m", 5400), ("1.5h", 5400), ("2d", 172_800), ("250ms", 0.25)],
)
def test_durations(text, seconds):
    assert times.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "h", "10x", "1..5h", ".h", "-5s", "5s!", "1h 30m", "ten minutes", "٣s"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(Rejected) as caught:
        times.parse_duration(text)
    assert caught.value.code == "bad_time"


@given(st.integers(0, 400), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_parts_of_a_duration_add_up(days, hours, minutes, seconds):
    text = f"{days}d{hours}h{minutes}m{seconds}s"
    assert times.parse_duration(text) == ((days * 24 + hours) * 60 + minutes) * 60 + seconds


@given(st.text(max_size=20))
def test_any_text_is_a_time_or_refused(text):
    for parse in (times.parse_future, times.parse_past):
        try:
            assert isinstance(parse(text, NOW_MS), int)
        except Rejected as error:
            assert error.code == "bad_time"


@pytest.mark.parametrize(
    ("text", "at_ms"),
    [
        ("+2h", NOW_MS + 7_200_000),
        ("now", NOW_MS),
        ("1795000001234", 1_795_000_001_234),
        ("2026-11-21T08:00:00+01:00", 1_795_244_400_000),
        ("2026-11-21T07:00:00Z", 1_795_244_400_000),
        ("2026-11-21 08:00", 1_795_244_400_000),
        ("2026-11-21", 1_795_215_600_000),
    ],
)
def test_times_to_come(text, at_ms):
    assert times.parse_future(text, NOW_MS) == at_ms


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("+2h", "2026-11-18T14:06:40+01:00"),
        ("1795000001234", "2026-11-18T12:06:41.234+01:00"),
        ("2026-11-21T08:00:00z", "2026-11-21T09:00:00+01:00"),
        ("2026-11-21 08:00", "2026-11-21T08:00:00"),
        ("2026-11-21", "2026-11-21T00:00:00"),
        ("2026120112000", "2034-03-16T12:08:32+01:00"),
    ],
)
def test_a_schedules_time_is_local_where_no_zone_stands(text, at):
    assert times.parse_at(text, NOW_MS) == at


def test_a_schedules_time_beyond_the_calendar_is_refused():
    for text in ("+9999999d", "9" * 15, "soon"):
        with pytest.raises(Rejected) as caught:
            times.parse_at(text, NOW_MS)
        assert caught.value.code == "bad_time"


@pytest.mark.parametrize(
    ("text", "at_ms"),
    [
        ("2h", NOW_MS - 7_200_000),
        ("90s", NOW_MS - 90_000),
        ("1795000001234", 1_795_000_001_234),
        ("2026-11-21T07:00:00z", 1_795_244_400_000),
    ],
)
def test_times_gone_by(text, at_ms):
    assert times.parse_past(text, NOW_MS) == at_ms


def test_today_is_the_midnight_before_now_also_in_the_night_of_a_change_to_summer_time():
    noon_ms = times.parse_moment("2026-03-29T12:00", 0)
    assert times.parse_moment("today", noon_ms) == times.parse_moment("2026-03-29T00:00", 0)
    assert times.parse_moment("yesterday", noon_ms) == times.parse_moment("2026-03-28T00:00", 0)
    assert times.parse_moment("yesterday", times.parse_moment("2026-01-01T01:00", 0)) == times.parse_moment(
        "2025-12-31T00:00", 0
    )


def test_small_numbers_are_seqs_and_large_ones_times():
    assert times.is_seq("0")
    assert times.is_seq("99999999999")
    assert not times.is_seq("1795000001234")
    assert not times.is_seq("2h")
    assert not times.is_seq("")


@pytest.mark.parametrize(
    ("duration_ms", "text"),
    [
        (0, "0 s"),
        (400, "0.4 s"),
        (3000, "3 s"),
        (12_900, "12 s"),
        (59_999, "59 s"),
        (180_000, "3 min"),
        (3_600_000, "1 h"),
        (7_500_000, "2 h 5 min"),
        (86_400_000 * 9, "9 d"),
        (-5000, "0 s"),
    ],
)
def test_durations_as_said(duration_ms, text):
    assert times.span(duration_ms) == text


def test_distances_as_said():
    assert times.distance(NOW_MS - 180_000, NOW_MS) == "3 min ago"
    assert times.distance(NOW_MS + 480_000, NOW_MS) == "in 8 min"
    assert times.distance(NOW_MS + 2_700, NOW_MS) == "in 2 s"
    assert times.distance(NOW_MS - 999, NOW_MS) == "now"
    assert times.stamp(1_795_244_400_000) == "2026-11-21 08:00:00"
