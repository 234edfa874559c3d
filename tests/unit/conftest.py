"""A world for the tests of the flow; whatever a test does in it, the invariants hold at its end."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.fakes.clock import FakeClock
from tests.fakes.invariants import broken
from tests.fakes.world import World
from tests.unit.mcp_kit import Kit


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


@pytest.fixture
async def kit(anyio_backend: str, era: str, transport: str, tmp_path: Path) -> AsyncIterator[Kit]:
    made = Kit(tmp_path, era, transport)
    async with AsyncExitStack() as stack:
        if transport == "http":
            stack.enter_context(made.listen())
        await stack.enter_async_context(made.daemon())
        yield made
    made.fifo.close()
