"""The daemons of these tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import Home, home_at


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A home without a daemon."""
    root = tmp_path / "h"
    root.mkdir(mode=0o700)
    with home_at(root) as home:
        yield home


@pytest.fixture
def omnid(home: Home) -> Home:
    """A home with a running daemon."""
    home.start()
    return home
