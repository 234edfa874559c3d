"""What all tests share: both of anyio's backends, and a home in which nothing of the user's is found."""

import os
from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings

from tests.fakes.brokers import Broker

settings.register_profile("omnid", deadline=None, database=None, print_blob=True)
settings.load_profile("omnid")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session", autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps the tests, and every process that they start, away from the user's config and daemon."""
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name.startswith(("OMNID_", "XDG_")) and name != "OMNID_KILLS":
                patch.delenv(name)
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="session")
def brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Broker]]:
    """Gives brokers by kind; each is started when it is first asked for."""
    from tests.contract.links import started

    running: dict[str, Broker] = {}

    def broker(kind: str) -> Broker:
        if kind not in running:
            running[kind] = started(kind, tmp_path_factory.mktemp(kind))
        return running[kind]

    yield broker
    for made in running.values():
        made.close()
