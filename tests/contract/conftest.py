"""Kits of brokers for the suites of links."""

from collections.abc import Callable

import pytest

from tests.contract.links import KINDS, Kit, kit_of
from tests.fakes.brokers import Broker


@pytest.fixture(params=KINDS)
def kit(request: pytest.FixtureRequest, brokers: Callable[[str], Broker]) -> Kit:
    return kit_of(request, brokers)
