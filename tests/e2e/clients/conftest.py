"""The homes of these tests."""

import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.clients.user import User


@pytest.fixture
def user() -> Iterator[User]:
    """A short path, because that of a socket has a limit."""
    with tempfile.TemporaryDirectory(prefix="o-", dir="/tmp") as root, closing(User(Path(root))) as user:
        yield user
