"""A connection to a real broker that is killed, frozen, and locked: it notices in time, and comes back by itself."""

from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread
import pytest

from omnid.errors import Retryable
from omnid.link.interface import Link, LinkDown
from omnid.link.rabbitmq_queues import queue_of
from omnid.model import Cancel
from tests.contract.links import PING_S, WAIT_S, Kit, Watched, command, names, take
from tests.fakes.brokers import Broker
from tests.fakes.proxy import proxied

pytestmark = pytest.mark.anyio

TIMEOUT_S = 2.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def put(kit: Kit, number: int) -> None:
    async with kit.daemon() as daemon:
        await daemon.send(kit.runner_name, [command(number)])


async def test_a_killed_broker_is_noticed_at_once_and_its_return_too(kit: Kit) -> None:
    watched = Watched(kit)

    async def do() -> None:
        await put(kit, 1)
        received = await watched.connection.receive()
        kit.broker.kill()
        assert await watched.until(up=False) < 1.0
        with pytest.raises(LinkDown):
            await watched.connection.send(kit.daemon_name, [Cancel("a")])
        with pytest.raises(LinkDown):
            await watched.connection.ack(received)
        await anyio.to_thread.run_sync(kit.broker.start)
        await watched.until(up=True)
        again = await watched.connection.receive()
        assert names(again) == ["a1"]
        await watched.connection.ack(again)
        assert (watched.lines("link_down"), watched.lines("link_up")) == (1, 2)

    await watched.during(do)
    assert await kit.broker.held(kit.runner_name) == 0


async def test_a_frozen_broker_is_noticed_within_the_deadline(kit: Kit) -> None:
    watched = Watched(kit, TIMEOUT_S)

    async def do() -> None:
        kit.broker.freeze()
        try:
            assert await watched.until(up=False) < PING_S + TIMEOUT_S + 1.0
        finally:
            kit.broker.thaw()
        await watched.until(up=True)
        await put(kit, 1)
        received = await watched.connection.receive()
        assert names(received) == ["a1"]
        await watched.connection.ack(received)

    await watched.during(do)
    said = kit.logged.getvalue()
    assert "no answer within 2 s" in said
    assert watched.lines("link_up") == 2


async def test_a_changed_password_keeps_it_down_until_it_is_known(kit: Kit) -> None:
    watched, before = Watched(kit), kit.broker.password
    watched.kit = Kit(kit.kind, kit.broker, "locked")
    known = kit.broker.password

    async def dial() -> Any:
        return watched.kit.runner(password=known)

    watched.connection._dial = dial

    async def do() -> None:
        nonlocal known
        await anyio.to_thread.run_sync(kit.broker.set_password, "another-password")
        try:
            await watched.until(up=False)
            with anyio.fail_after(WAIT_S):
                while watched.connection.problem is None or watched.connection.problem.code != "link_refused":
                    watched.changed = anyio.Event()
                    await watched.changed.wait()
            known = "another-password"
            await watched.until(up=True)
        finally:
            await anyio.to_thread.run_sync(kit.broker.set_password, before)

    await watched.during(do)
    said = kit.logged.getvalue() + watched.kit.logged.getvalue()
    assert "another-password" not in said


async def test_a_batch_that_finds_its_queue_gone_is_sent_again_as_a_whole(brokers: Callable[[str], Broker]) -> None:
    broker: Any = brokers("rabbitmq")
    kit = Kit("rabbitmq", broker, "gone")
    async with kit.daemon() as daemon:
        await daemon.send(kit.runner_name, [command(0)])
        connection, channel = await broker._channel()
        async with connection:
            await channel.queue_delete(queue_of(kit.runner_name))
        batch = [command(1), command(2), command(3)]
        with pytest.raises(Retryable) as caught:
            await daemon.send(kit.runner_name, batch)
        assert caught.value.code == "delivery_failed"
        await daemon.send(kit.runner_name, batch)
        async with kit.runner() as runner:
            assert names(await take(runner, 3)) == ["a1", "a2", "a3"]


@pytest.mark.parametrize("known", [True, False])
async def test_who_sends_when_the_link_is_closed_hears_that_it_is_down(kit: Kit, known: bool) -> None:
    """Also in the middle of making the queue of an end that it has sent nothing yet."""
    said: list[str] = []

    async def send(daemon: Link) -> None:
        with pytest.raises(LinkDown) as caught:
            await daemon.send(kit.runner_name, [command(1), command(2)])
        said.append(caught.value.code)

    async with (
        proxied(kit.broker.port) as proxy,
        anyio.create_task_group() as group,
        kit.daemon(url=f"{kit.broker.scheme}://127.0.0.1:{proxy.port}") as daemon,
    ):
        if known:
            await daemon.send(kit.runner_name, [command(0)])
        proxy.mute()
        group.start_soon(send, daemon)
        await proxy.request()
    assert said == ["link_down"]


async def test_whose_queue_is_deleted_under_it_hears_that_its_link_is_down(brokers: Callable[[str], Broker]) -> None:
    broker: Any = brokers("rabbitmq")
    kit = Kit("rabbitmq", broker, "cancelled")
    async with kit.runner() as runner:
        connection, channel = await broker._channel()
        async with connection:
            await channel.queue_delete(queue_of(kit.runner_name))
        with anyio.fail_after(WAIT_S), pytest.raises(LinkDown, match="cancelled its consumer"):
            await runner.receive()
    async with kit.runner() as runner, kit.daemon() as daemon:
        await daemon.send(kit.runner_name, [command(1)])
        assert names(await take(runner, 1)) == ["a1"]
