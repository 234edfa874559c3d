"""When schedules run, over days on which the clocks change, and what becomes of times that have passed."""

from datetime import datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnid.model import Schedule
from omnid.recurrence import AT_YEARS, COUNTED_MAX, at_ms, due, next_ms, problem_of, problems_of
from omnid.settings import Preset

BERLIN, LORD_HOWE, UTC = ZoneInfo("Europe/Berlin"), ZoneInfo("Australia/Lord_Howe"), ZoneInfo("UTC")
HOUR_MS = 3_600_000
CRONS = (
    "30 2 * * *",
    "*/30 * * * *",
    "0 * * * *",
    "15 1,2,3 * * *",
    "0 0 1 * *",
    "*/7 2 * * 0",
    "59 23 * * 5",
    "@daily",
)


def at(text: str, zone: ZoneInfo = BERLIN, fold: int = 0) -> int:
    """Gives a local time in Unix milliseconds."""
    return round(datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold).timestamp() * 1000)


def times(schedule: Schedule, zone: ZoneInfo, from_ms: int, until_ms: int) -> list[int]:
    """Gives all times after one and up to another, one by one."""
    found: list[int] = []
    now_ms = from_ms
    while (following := next_ms(schedule, zone, 0, now_ms)) is not None and following <= until_ms:
        found.append(following)
        now_ms = following
    return found


def test_an_hour_that_never_comes_runs_once_after_the_gap() -> None:
    found = times(Schedule(cron="30 2 * * *"), BERLIN, at("2026-03-28T12:00"), at("2026-03-30T12:00"))
    assert found == [at("2026-03-29T03:00"), at("2026-03-30T02:30")]


def test_an_hour_that_comes_twice_runs_once() -> None:
    found = times(Schedule(cron="30 2 * * *"), BERLIN, at("2026-10-24T12:00"), at("2026-10-26T12:00"))
    assert found == [at("2026-10-25T02:30"), at("2026-10-26T02:30")]


def test_what_runs_every_hour_goes_on_as_if_the_clocks_were_not_moved() -> None:
    for day in ("2026-03-29", "2026-10-25"):
        found = times(Schedule(cron="0 * * * *"), BERLIN, at(f"{day}T00:30"), at(f"{day}T06:30"))
        assert {b - a for a, b in pairwise(found)} == {HOUR_MS}


@pytest.mark.parametrize(
    ("text", "expected_ms"),
    [
        ("2026-12-01T09:00", at("2026-12-01T09:00")),
        ("2026-12-01", at("2026-12-01T00:00")),
        ("2026-12-01T09:00:01.25", at("2026-12-01T09:00:01.250")),
        ("2026-12-01t09:00:01.25z", at("2026-12-01T09:00:01.250", UTC)),
        ("2026-12-01T09:00+08:00", at("2026-12-01T01:00", UTC)),
        ("2026-03-29T02:30", at("2026-03-29T03:00")),
        ("2026-10-25T02:30", at("2026-10-25T02:30")),
        ("2026-10-25T02:30+01:00", at("2026-10-25T02:30", fold=1)),
        ("2028-02-29T23:59", at("2028-02-29T23:59")),
    ],
)
def test_a_moment_is_local_or_has_an_offset(text: str, expected_ms: int) -> None:
    assert at_ms(Schedule(at=text), BERLIN) == expected_ms


@given(
    st.datetimes(datetime(1970, 1, 1), datetime(2037, 12, 31)),  # noqa: DTZ001 - they are local.
    st.sampled_from([BERLIN, LORD_HOWE, UTC]),
    st.integers(-(10**11), 10**11),
)
def test_a_moment_comes_once_and_when_cron_has_it(local: datetime, zone: ZoneInfo, off_ms: int) -> None:
    local = local.replace(second=0, microsecond=0)
    schedule = Schedule(at=local.isoformat())
    moment_ms = at_ms(schedule, zone)
    assert moment_ms is not None
    cron = Schedule(cron=f"{local.minute} {local.hour} {local.day} {local.month} *")
    assert next_ms(cron, zone, 0, moment_ms - 1) == moment_ms
    assert next_ms(schedule, zone, 0, moment_ms + off_ms) == (moment_ms if off_ms < 0 else None)
    assert due(schedule, zone, 0, moment_ms, moment_ms + abs(off_ms), 0).times == (moment_ms,)


@given(st.text(max_size=40) | st.datetimes(timezones=st.none() | st.timezones()).map(datetime.isoformat))
def test_any_text_is_a_moment_or_a_problem(text: str) -> None:
    schedule = Schedule(at=text)
    problem = problem_of(schedule)
    for zone in (BERLIN, LORD_HOWE, UTC):
        assert problem is not None or text == "" or isinstance(at_ms(schedule, zone), int)


def test_every_is_counted_from_the_begin_and_not_from_the_last_run() -> None:
    schedule = Schedule(every_s=300)
    assert next_ms(schedule, UTC, 1_000, 1_000) == 301_000
    assert next_ms(schedule, UTC, 1_000, 300_999) == 301_000
    assert next_ms(schedule, UTC, 1_000, 301_000) == 601_000
    # A clock that was set to before the begin doesn't stop it.
    assert next_ms(schedule, UTC, 1_000, 0) == 1_000


@given(
    st.sampled_from(CRONS),
    st.sampled_from([(BERLIN, "2026-03-27"), (BERLIN, "2026-10-23"), (LORD_HOWE, "2026-04-03"), (UTC, "2026-12-30")]),
    st.integers(0, 72 * 3_600),
    st.integers(1, 60 * 3_600),
)
def test_looking_back_finds_what_looking_ahead_did(
    cron: str, where: tuple[ZoneInfo, str], skip_s: int, away_s: int
) -> None:
    """The times that a daemon which was away makes up for are those at which it would have run."""
    zone, day = where
    from_ms = at(f"{day}T00:00", zone) + skip_s * 1000
    schedule = Schedule(cron=cron, missed="run_all", missed_max=1000)
    ahead = times(schedule, zone, from_ms, from_ms + away_s * 1000)
    if ahead:
        found = due(schedule, zone, 0, ahead[0], from_ms + away_s * 1000, 60_000)
        assert list(found.times) == ahead
        assert found.skipped == 0
        assert found.next_at_ms is not None
        assert found.next_at_ms > from_ms + away_s * 1000


@pytest.mark.parametrize(
    ("missed", "late_ms", "kept", "skipped"),
    [
        ("run_once", 60_000, [10], 9),
        ("run_all", 60_000, [8, 9, 10], 7),
        ("skip", 60_000, [10], 9),
        ("skip", 10_000, [], 10),
    ],
)
def test_times_that_passed(missed: str, late_ms: int, kept: list[int], skipped: int) -> None:
    schedule = Schedule(every_s=100, missed=missed, missed_max=3)
    found = due(schedule, UTC, 0, 100_000, 1_000_000 + 30_000, late_ms)
    assert [time // 100_000 for time in found.times] == kept
    assert found.skipped == skipped
    assert found.next_at_ms == 1_100_000


def test_a_long_absence_is_counted_up_to_a_limit() -> None:
    year_ms = 365 * 24 * HOUR_MS
    for schedule in (Schedule(every_s=1), Schedule(cron="* * * * *")):
        found = due(schedule, UTC, 0, 60_000, year_ms, 60_000)
        assert len(found.times) == 1
        assert found.skipped == COUNTED_MAX - 1


def test_a_time_that_an_event_set_is_kept() -> None:
    assert due(Schedule(on=("start",)), UTC, 0, 5_000, 6_000, 60_000) == ((5_000,), 0, None)
    # Also one that isn't a time of the schedule's own.
    noon = at("2026-11-26T12:34")
    found = due(Schedule(cron="0 3 * * *"), BERLIN, 0, noon, noon, 60_000)
    assert found == ((noon,), 0, at("2026-11-27T03:00"))
    # A moment that comes while it waits is on time.
    once = Schedule(at="2026-11-26T13:00", on=("start",), missed="skip")
    assert due(once, BERLIN, 0, noon, at("2026-11-26T13:00"), 60_000) == ((at("2026-11-26T13:00"),), 0, None)


@pytest.mark.parametrize(
    ("given", "where"),
    [
        (Schedule(cron="61 * * * *"), "cron"),
        (Schedule(cron="0 0 30 2 *"), "cron"),
        (Schedule(cron="* * *"), "cron"),
        (Schedule(cron="@daily", every_s=5), "every"),
        (Schedule(zone="Europe/Berlin"), "zone"),
        (Schedule(cron="@daily", zone="Mars/Base"), "zone"),
        (Schedule(times_max=3), "times_max"),
        (Schedule(at="2026-12-01T09:00", times_max=3), "times_max"),
        (Schedule(at="tomorrow"), "at"),
        (Schedule(at=f"{AT_YEARS[-1] + 1}-01-01T00:00"), "at"),
        (Schedule(at=f"{AT_YEARS[0] - 1}-12-31T23:59Z"), "at"),
        (Schedule(at="2026-12-01T09:00", cron="@daily"), "at"),
        (Schedule(at="2026-12-01T09:00", every_s=5), "at"),
        (Schedule(at="2026-12-01T09:00Z", zone="Asia/Taipei"), "zone"),
    ],
)
def test_what_makes_no_sense_is_named(given: Schedule, where: str) -> None:
    problem = problem_of(given)
    assert problem is not None
    assert problem[0] == where


def test_what_can_be_used_has_no_problem() -> None:
    for schedule in (Schedule(), Schedule(cron="0 3 * * 1-5", zone="Asia/Taipei"), Schedule(every_s=5, times_max=2)):
        assert problem_of(schedule) is None
    for schedule in (
        Schedule(at="2026-12-01T09:00", zone="Asia/Taipei", on=("start",)),
        Schedule(at="2026-12-01T09:00Z"),
    ):
        assert problem_of(schedule) is None


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"every": "5 apples"}, "every"),
        ({"every": "0.5s"}, "every"),
        ({"on": ("cloud.gone",)}, "on"),
        ({"task": {"argv": ["x"], "wrong": 1}}, "task"),
        ({"task": {"argv": ["x"], "key": "k"}}, "task.key"),
        ({"cron": "x"}, "cron"),
        ({"at": "x"}, "at"),
    ],
)
def test_a_preset_that_cant_be_used_says_where(fields: dict[str, object], where: str) -> None:
    preset = Preset(**{"name": "p", "task": {"argv": ["x"]}, **fields})
    assert [key for key, _ in problems_of(preset)] == [where]


@given(st.integers(1, 10_000), st.integers(0, 10**12), st.integers(0, 10**12))
def test_every_time_is_on_the_grid_and_the_next_one(every_s: int, began_ms: int, after_ms: int) -> None:
    found = next_ms(Schedule(every_s=every_s), UTC, began_ms, after_ms)
    assert found is not None
    assert 0 < found - after_ms <= every_s * 1000
    assert (found - began_ms) % (every_s * 1000) == 0


def test_the_zone_of_days_matters() -> None:
    schedule = Schedule(cron="0 3 * * *")
    noon = at("2026-11-26T12:00", UTC)
    berlin, utc = (next_ms(schedule, zone, 0, noon) for zone in (BERLIN, UTC))
    assert berlin is not None
    assert utc is not None
    assert utc - berlin == timedelta(hours=1) // timedelta(milliseconds=1)
