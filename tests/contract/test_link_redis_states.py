"""States of Redis, each of a real server: the link is down, says why, and comes back."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from omnid.errors import Rejected
from omnid.link.interface import LinkDown
from tests.contract.links import WAIT_S, Kit, Watched, command, names, take
from tests.fakes import disk
from tests.fakes.brokers import Redis
from tests.fakes.redis_states import STATES, Cluster, State, running, stateful

pytestmark = [pytest.mark.parametrize("anyio_backend", ["asyncio"]), pytest.mark.anyio]

MIB = 1 << 20
CHUNK = "x" * 20_000


@pytest.fixture(params=STATES)
def state(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[State]:
    with stateful(request.param, tmp_path) as made:
        yield made


async def test_a_state_that_passes_loses_nothing_and_is_named(state: State) -> None:
    kit = Kit("redis", state.broker, "state")
    watched = Watched(kit)

    async def do() -> None:
        async with kit.daemon() as daemon:
            await daemon.send(kit.runner_name, [command(1)])
            received = await watched.connection.receive()
            await anyio.to_thread.run_sync(state.enter)
            await watched.until_says(state.code)
            with pytest.raises(LinkDown):
                await daemon.send(kit.runner_name, [command(2)])
        with pytest.raises(LinkDown):
            await watched.connection.ack(received)
        with pytest.raises(LinkDown, match=state.code):
            async with kit.daemon():
                pass
        await anyio.to_thread.run_sync(state.leave)
        await watched.until(up=True)
        again = await watched.connection.receive()
        async with kit.daemon() as daemon:
            await daemon.send(kit.runner_name, [command(2)])
        again += await take(watched.connection, 1)
        assert names(again) == ["a1", "a2"]
        await watched.connection.ack(again)
        assert watched.lines("link_down") == 1

    await watched.during(do)
    assert await kit.broker.held(kit.runner_name) == 0


async def test_a_cluster_has_one_database_alone(tmp_path: Path) -> None:
    with running(tmp_path, Cluster.settings()) as broker, pytest.raises(Rejected) as caught:
        async with Kit("redis", broker, "cluster").daemon(url=f"{broker.url}/1"):
            pass
    assert "a cluster has no other database than 0" in caught.value.what


@contextmanager
def on_a_small_disk(directory: Path, fsync: str) -> Iterator[tuple[Redis, Path]]:
    """A server on a disk of 4 MiB; gives the path to it too."""
    place = directory / "disk"
    with disk.small_disk(place, "size=4m") as path:
        settings = ("--dir", str(place), "--appendfsync", fsync)
        with running(directory, settings, disk.inside(path)) as broker:
            yield broker, path


@pytest.mark.parametrize(
    ("fsync", "why"),
    # Redis ends itself rather than say that it has what it couldn't write.
    [("everysec", "MISCONF Errors writing to the AOF file: No space left on device"), ("always", "onnect")],
)
async def test_a_full_disk_is_a_link_that_is_down_and_what_was_confirmed_is_there(
    tmp_path: Path, fsync: str, why: str
) -> None:
    with on_a_small_disk(tmp_path, fsync) as (broker, path):
        kit = Kit("redis", broker, "disk")
        watched = Watched(kit)

        async def do() -> None:
            ballast = path / "ballast"
            ballast.write_bytes(bytes(3 * MIB))
            sent = await filled(kit)
            assert 10 < sent < MIB // len(CHUNK)
            await watched.until_says(why)
            ballast.unlink()
            if fsync == "always":
                await anyio.to_thread.run_sync(broker.process.wait)
                await anyio.to_thread.run_sync(broker.start)
            await watched.until(up=True)
            async with kit.daemon() as daemon:
                await daemon.send(kit.runner_name, [command(-1)])
            came: list[str] = []
            with anyio.fail_after(WAIT_S):
                while "a-1" not in came:
                    received = await watched.connection.receive()
                    await watched.connection.ack(received)
                    came += [name for name in names(received) if name not in came]
            assert came[:sent] == [f"a{number}" for number in range(sent)]
            # What Redis has taken and not confirmed may be there, as after any failure.
            assert set(came[sent:]) <= {f"a{sent}", "a-1"}

        await watched.during(do)
        assert await kit.broker.held(kit.runner_name) == 0


async def filled(kit: Kit) -> int:
    """Sends until nothing is taken any more; gives how many were confirmed."""
    sent = 0
    async with kit.daemon() as daemon:
        with pytest.raises(LinkDown):
            while True:
                await daemon.send(kit.runner_name, [command(sent, stdin=CHUNK)])
                sent += 1
    return sent
