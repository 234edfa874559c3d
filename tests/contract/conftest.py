"""Brokers that the suites of links share: they are started when they are first asked for."""

import re
from collections.abc import Callable, Iterator

import pytest

from tests.contract.links import KINDS, Kit, started
from tests.fakes.brokers import Broker


@pytest.fixture(scope="session")
def brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Broker]]:
    """Starts a broker when it is first asked for."""
    running: dict[str, Broker] = {}

    def broker(kind: str) -> Broker:
        if kind not in running:
            running[kind] = started(kind, tmp_path_factory.mktemp(kind))
        return running[kind]

    yield broker
    for made in running.values():
        made.close()


def kit_of(request: pytest.FixtureRequest, brokers: Callable[[str], Broker]) -> Kit:
    name = re.sub(r"[^a-z0-9]+", "-", request.node.originalname.removeprefix("test_"))[:40].strip("-")
    return Kit(request.param, brokers(request.param), name)


@pytest.fixture(params=KINDS)
def kit(request: pytest.FixtureRequest, brokers: Callable[[str], Broker]) -> Kit:
    return kit_of(request, brokers)
