"""The daemons of these tests."""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.ground import Ground
from tests.e2e.harness import Home, home_at

# Network namespaces are Linux's.
collect_ignore = [] if sys.platform == "linux" else ["test_cable.py"]


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


@pytest.fixture
def ground() -> Iterator[Ground]:
    """Short paths, because that of a socket has a limit, and the demo would use another directory."""
    with tempfile.TemporaryDirectory(prefix="o-", dir="/tmp") as root:
        yield Ground(Path(root))
