"""A world for the tests of the flow; whatever a test does in it, the invariants hold at its end."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.clock import FakeClock
from tests.fakes.invariants import broken
from tests.fakes.world import World


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def world(tmp_path: Path, clock: FakeClock) -> AsyncIterator[World]:
    made = World(tmp_path / "world", clock)
    try:
        yield made
        assert await broken(made) == []
    finally:
        made.close()
