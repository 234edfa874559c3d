"""The daemons of these tests."""

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.contract.links import KINDS, Kit, kit_of
from tests.e2e.ground import Ground
from tests.e2e.harness import Home, home_at
from tests.e2e.runners import Fleet, Host
from tests.fakes.brokers import Broker

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


@pytest.fixture(params=KINDS)
def kit(request: pytest.FixtureRequest, brokers: Callable[[str], Broker]) -> Iterator[Kit]:
    """Ends at a broker of each kind, which runs again afterwards."""
    made = kit_of(request, brokers)
    yield made
    if made.broker.process is None:
        made.broker.start()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """The host of a runner."""
    made = Host(tmp_path)
    yield made
    made.close()


@pytest.fixture
def fleet(tmp_path: Path, kit: Kit) -> Iterator[Fleet]:
    """A daemon and its runners, not started yet."""
    root = tmp_path / "h"
    root.mkdir(mode=0o700)
    made = Fleet(root, kit)
    yield made
    made.close()
