"""When the gateway and the cloud count as gone and as back: by signs in a row, and never by a single one."""

from hypothesis import given
from hypothesis import strategies as st

from omnid.flow.modes import Modes
from omnid.route.modes import Health, mode_of
from omnid.settings import Config
from tests.fakes.clock import FakeClock


def test_so_many_in_a_row_and_none_before() -> None:
    health, event = Health().saw(good=False, gone_after=2, back_after=2)
    assert (health.is_gone, event) == (False, None)
    health, event = health.saw(good=True, gone_after=2, back_after=2)
    health, event = health.saw(good=False, gone_after=2, back_after=2)
    assert (health.is_gone, event) == (False, None)
    health, event = health.saw(good=False, gone_after=2, back_after=2)
    assert (health.is_gone, event) == (True, "gone")
    health, event = health.saw(good=True, gone_after=2, back_after=2)
    assert (health.is_gone, event) == (True, None)
    health, event = health.saw(good=True, gone_after=2, back_after=2)
    assert (health.is_gone, event) == (False, "back")


@given(st.lists(st.booleans()), st.integers(1, 4), st.integers(1, 4))
def test_it_turns_only_after_signs_in_a_row_and_tells_each_turn_once(
    signs: list[bool], gone_after: int, back_after: int
) -> None:
    health = Health()
    for position, good in enumerate(signs):
        before = health.is_gone
        health, event = health.saw(good=good, gone_after=gone_after, back_after=back_after)
        assert (health.is_gone != before) == (event is not None)
        if event is not None:
            needed = back_after if before else gone_after
            assert signs[position + 1 - needed : position + 1] == [before] * needed


def test_without_the_cloud_the_gateway_does_not_matter() -> None:
    assert mode_of(gateway_gone=False, cloud_gone=False) == "normal"
    assert mode_of(gateway_gone=True, cloud_gone=False) == "degraded"
    assert mode_of(gateway_gone=True, cloud_gone=True) == "brainstem"


def test_failures_on_one_channel_raise_doubts_and_an_answer_lays_them() -> None:
    modes = Modes(Config, FakeClock())
    for away in (True, True, False, True, True):
        modes.channel_was("p1", away=away)
        modes.channel_was("p2", away=False)
    assert not modes.cloud_suspect.is_set()
    assert modes.away() == {"p1": 2}
    modes.channel_was("p1", away=True)
    assert modes.cloud_suspect.is_set()


def test_what_fails_soon_after_the_machine_slept_does_not_count() -> None:
    clock = FakeClock()
    modes = Modes(Config, clock)
    clock.now_ms += 3_600_000  # It slept: only the wall clock went on.
    for _ in range(5):
        modes.channel_was("p1", away=True)
    assert not modes.cloud_suspect.is_set()
    clock.now_ms, clock.now_s = clock.now_ms + 31_000, clock.now_s + 31
    for _ in range(3):
        modes.channel_was("p1", away=True)
    assert modes.cloud_suspect.is_set()
