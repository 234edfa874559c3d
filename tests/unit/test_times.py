"""Days, months and daily windows: across midnight, where an hour comes twice, and where one never comes."""

from datetime import date, datetime, time
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnid.times import Window, day_ms, instant_ms, local, month_ms, next_ms

BERLIN = ZoneInfo("Europe/Berlin")
"""2026: 02:00 to 03:00 never comes on March 29th, and comes twice on October 25th."""

HOUR_MS = 3_600_000
ZONES = [
    ZoneInfo(name)
    for name in (
        "UTC",
        "Europe/Berlin",
        "America/New_York",
        "Asia/Taipei",
        "Asia/Kathmandu",
        "Australia/Lord_Howe",  # Its clocks move by half an hour.
        "America/Havana",  # They move at midnight.
        "Pacific/Apia",  # It left out December 30th of 2011.
    )
]
zones = st.sampled_from(ZONES)
moved = ["2026-03-29T01:00Z", "2026-10-25T01:00Z", "2026-11-01T06:00Z", "2026-04-04T15:00Z", "2011-12-30T10:00Z"]
"""When the clocks of some of these zones were moved."""
instants = st.integers(1_230_768_000_000, 2_208_988_800_000) | st.builds(
    lambda at, off: round(datetime.fromisoformat(at).timestamp() * 1000) + off,
    st.sampled_from(moved),
    st.integers(-30 * HOUR_MS, 30 * HOUR_MS),
)
hours = st.times().map(lambda at: at.replace(second=0, microsecond=0))
windows = st.builds(Window, hours, hours)


def ms(text: str) -> int:
    """The instant of an ISO time with its offset."""
    return round(datetime.fromisoformat(text).timestamp() * 1000)


@pytest.mark.parametrize(
    ("day", "at", "expected"),
    [
        ("2026-03-28", "02:30", "2026-03-28T02:30+01:00"),
        ("2026-03-29", "01:59", "2026-03-29T01:59+01:00"),
        ("2026-03-29", "02:00", "2026-03-29T03:00+02:00"),
        ("2026-03-29", "02:30", "2026-03-29T03:00+02:00"),
        ("2026-03-29", "02:59", "2026-03-29T03:00+02:00"),
        ("2026-03-29", "03:00", "2026-03-29T03:00+02:00"),
        ("2026-10-25", "02:00", "2026-10-25T02:00+02:00"),
        ("2026-10-25", "02:30", "2026-10-25T02:30+02:00"),
        ("2026-10-25", "03:00", "2026-10-25T03:00+01:00"),
    ],
)
def test_a_local_time_is_one_instant(day: str, at: str, expected: str) -> None:
    assert instant_ms(date.fromisoformat(day), time.fromisoformat(at), BERLIN) == ms(expected)


@given(st.dates(date(2009, 1, 1), date(2040, 1, 1)), hours, zones)
def test_an_instant_has_the_local_time_or_the_first_after_it(day: date, at: time, zone: ZoneInfo) -> None:
    found = local(instant_ms(day, at, zone), zone).replace(tzinfo=None)
    wanted = datetime.combine(day, at)
    assert found >= wanted
    if found != wanted:
        before = local(instant_ms(day, at, zone) - 1, zone).replace(tzinfo=None)
        assert before < wanted, "the moment before the gap comes before it"


@given(instants, hours, zones)
def test_the_next_time_comes_within_a_day_and_a_gap(after_ms: int, at: time, zone: ZoneInfo) -> None:
    found = next_ms(after_ms, at, zone)
    assert after_ms < found <= after_ms + 50 * HOUR_MS
    assert found == instant_ms(local(found, zone).date(), at, zone)


@given(instants, zones)
def test_each_instant_lies_in_its_day_and_its_month(at_ms: int, zone: ZoneInfo) -> None:
    for begin, end in (day_ms(at_ms, zone), month_ms(at_ms, zone)):
        assert begin <= at_ms < end
    begin, end = day_ms(at_ms, zone)
    assert day_ms(begin, zone) == day_ms(end - 1, zone) == (begin, end)
    first, last = month_ms(at_ms, zone)
    assert month_ms(first, zone) == month_ms(last - 1, zone) == (first, last)
    assert first <= begin < end <= last


def test_days_are_as_long_as_their_clocks_make_them() -> None:
    lengths = [
        (end - begin) // HOUR_MS
        for begin, end in (day_ms(ms(f"{day}T12:00+01:00"), BERLIN) for day in ("2026-03-29", "2026-10-25"))
    ]
    assert lengths == [23, 25]


@pytest.mark.parametrize(
    ("window", "at", "opens", "closes"),
    [
        ("23:00-07:00", "2026-06-01T22:59+02:00", "2026-06-01T23:00+02:00", None),
        ("23:00-07:00", "2026-06-01T23:00+02:00", "2026-06-01T23:00+02:00", "2026-06-02T07:00+02:00"),
        ("23:00-07:00", "2026-06-02T06:59+02:00", "2026-06-02T06:59+02:00", "2026-06-02T07:00+02:00"),
        ("23:00-07:00", "2026-06-02T07:00+02:00", "2026-06-02T23:00+02:00", None),
        ("08:00-09:00", "2026-06-01T10:00+02:00", "2026-06-02T08:00+02:00", None),
        ("12:00-12:00", "2026-06-01T10:00+02:00", "2026-06-01T10:00+02:00", None),
        # The night in which an hour never comes is an hour shorter, and a window inside it is left out.
        ("23:00-07:00", "2026-03-29T01:00+01:00", "2026-03-29T01:00+01:00", "2026-03-29T07:00+02:00"),
        ("02:10-02:50", "2026-03-29T00:00+01:00", "2026-03-30T02:10+02:00", None),
        ("02:30-03:30", "2026-03-29T00:00+01:00", "2026-03-29T03:00+02:00", None),
        ("02:30-03:30", "2026-03-29T03:10+02:00", "2026-03-29T03:10+02:00", "2026-03-29T03:30+02:00"),
        # The hour that comes twice opens its window once: at first.
        ("02:15-02:45", "2026-10-25T02:20+02:00", "2026-10-25T02:20+02:00", "2026-10-25T02:45+02:00"),
        ("02:15-02:45", "2026-10-25T02:20+01:00", "2026-10-26T02:15+01:00", None),
        ("23:00-02:30", "2026-10-25T02:20+01:00", "2026-10-25T23:00+01:00", None),
        ("02:30-04:00", "2026-10-25T02:10+01:00", "2026-10-25T02:10+01:00", "2026-10-25T04:00+01:00"),
    ],
)
def test_a_window_opens_and_closes(window: str, at: str, opens: str, closes: str | None) -> None:
    found = Window.parse(window)
    assert found.opens_ms(ms(at), BERLIN) == ms(opens)
    assert found.closes_ms(ms(at), BERLIN) == (None if closes is None else ms(closes))
    assert found.holds(ms(at), BERLIN) == (at == opens)


@given(windows, instants, zones, st.floats(0, 1))
def test_nothing_of_a_window_is_missed(window: Window, at_ms: int, zone: ZoneInfo, part: float) -> None:
    opens = window.opens_ms(at_ms, zone)
    assert at_ms <= opens <= at_ms + 75 * HOUR_MS
    assert window.holds(opens, zone)
    if opens > at_ms:
        assert not window.holds(opens - 1, zone)
        assert not window.holds(at_ms + int(part * (opens - 1 - at_ms)), zone)
    closes = window.closes_ms(opens, zone)
    if closes is None:
        assert window.begin == window.end
        return
    assert opens < closes <= opens + 26 * HOUR_MS
    assert window.holds(closes - 1, zone)
    assert window.holds(opens + int(part * (closes - 1 - opens)), zone)
    assert not window.holds(closes, zone) or local(closes, zone).utcoffset() != local(closes - 1, zone).utcoffset()


@given(windows, instants)
def test_a_window_is_what_the_clock_on_the_wall_says(window: Window, at_ms: int) -> None:
    zone = ZoneInfo("Asia/Taipei")  # Its clocks never move in these years.
    now = local(at_ms, zone).time()
    inside = window.begin <= now < window.end if window.begin < window.end else now >= window.begin or now < window.end
    assert window.holds(at_ms, zone) == inside


def test_what_is_no_window_is_refused() -> None:
    for text in ("", "23:00", "25:00-07:00", "23:00-07:00:", "a-b"):
        with pytest.raises(ValueError, match=r"."):
            Window.parse(text)
    assert Window.parse("23:00-07:00") == (time(23), time(7))
