"""The state directory, as it is looked at before a task is taken: its room, and whether it is still there."""

from pathlib import Path

import anyio
import pytest

from omnid.errors import Fatal, Retryable
from omnid.flow import diskroom
from omnid.flow.diskroom import DiskRoom
from tests.fakes.clock import FakeClock
from tests.fakes.signals import WAIT_S


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


@pytest.mark.parametrize("replaced", [True, False])
def test_a_place_that_was_taken_is_fatal_and_one_that_is_gone_is_too(place: Path, *, replaced: bool) -> None:
    clock = FakeClock()
    room = DiskRoom(str(place), clock)
    room.check(1)
    with pytest.raises(Retryable, match="are free"):
        room.check(1 << 62)
    place.rename(place.with_name("aside"))
    if replaced:
        place.mkdir()
    with pytest.raises(Fatal) as caught:
        room.stays()
    assert caught.value.code == "state_moved"
    room.check(1)  # It has looked a moment ago.
    clock.now_s += diskroom.LOOK_EVERY_S
    for _ in range(2):  # The second is within the moment after a look that found nothing good.
        with pytest.raises(Fatal):
            room.check(1)


@pytest.mark.anyio
async def test_it_is_watched_while_nobody_submits(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diskroom, "WATCH_EVERY_S", 0.001)
    room = DiskRoom(str(place), FakeClock())
    place.rename(place.with_name("aside"))
    with anyio.fail_after(WAIT_S), pytest.raises(Fatal):
        await room.watch()
