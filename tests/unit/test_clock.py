"""Ids and the real clock."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnid.clock import SystemClock, is_uuid, uuid7


@given(st.integers(0, (1 << 48) - 1), st.integers(0, (1 << 74) - 1))
def test_a_uuid7_holds_its_time_and_its_random_part(wall_ms: int, bits: int) -> None:
    value = UUID(uuid7(wall_ms, bits))
    assert value.version == 7
    assert value.variant == "specified in RFC 4122"
    assert value.int >> 80 == wall_ms
    assert (value.int >> 64 & 0xFFF) << 62 | value.int & (1 << 62) - 1 == bits
    assert is_uuid(str(value))


def test_what_is_no_uuid_is_told_apart() -> None:
    assert not is_uuid("t7")
    assert not is_uuid("01A1FC63-8B56-7AAC-A354-1BA6903B9583")


def test_the_system_clock_gives_new_ids_and_jitter_in_bounds() -> None:
    clock = SystemClock()
    assert len({clock.uuid() for _ in range(1000)}) == 1000
    assert all(1 <= clock.uniform(1, 2) <= 2 for _ in range(100))
    assert clock.monotonic_s() <= clock.monotonic_s()


def test_ids_of_one_process_grow_within_a_millisecond_and_when_the_clock_is_set_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SystemClock()
    ids = [clock.uuid() for _ in range(20_000)]
    now_ms = clock.wall_ms()
    for wall_ms in (now_ms, now_ms - 3_600_000, now_ms + 5):
        monkeypatch.setattr(clock, "wall_ms", lambda wall_ms=wall_ms: wall_ms)
        ids += [clock.uuid() for _ in range(20_000)]
    assert ids == sorted(set(ids))
    assert all(is_uuid(id) for id in ids)
