"""Many sockets that can be read at once: each has its turn, and so has the rest of the loop."""

import socket
from collections.abc import Iterator
from itertools import pairwise

import anyio
import pytest
from anyio.lowlevel import checkpoint

from omnid.api.poller import TURN_MAX, Poller

pytestmark = pytest.mark.anyio

COUNT = 3 * TURN_MAX


class Client:
    """A client that has sent something, and sends again as soon as it was read."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.free = True
        self.mine, self.watched = socket.socketpair()
        self.watched.setblocking(False)

    def again(self) -> None:
        self.watched.recv(1)
        self.mine.send(b"x")


@pytest.fixture
def clients() -> Iterator[list[Client]]:
    made = [Client(number) for number in range(COUNT)]
    yield made
    for client in made:
        client.mine.close()
        client.watched.close()


async def test_nobody_is_passed_over_by_those_who_send_at_once(clients: list[Client]) -> None:
    seen: list[int] = []
    steps = [0]

    def look(client: Client) -> None:
        client.again()
        seen.append(client.number)

    poller = Poller(look)
    for client in clients:
        client.mine.send(b"x")
        poller.add(client, client.watched)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(poller.run)
            while len(seen) < 3 * COUNT:
                await checkpoint()
                steps.append(len(seen))
            group.cancel_scope.cancel()
    # trio goes through its tasks in any order: between two turns of one there may be two of another.
    assert max(after - before for before, after in pairwise(steps)) <= 2 * TURN_MAX, "the loop had no turn in between"
    assert sorted(seen[:COUNT]) == sorted(seen[COUNT : 2 * COUNT]) == list(range(COUNT))


async def test_who_leaves_before_its_turn_is_not_looked_at(clients: list[Client]) -> None:
    seen: list[int] = []

    def look(client: Client) -> None:
        client.again()
        seen.append(client.number)
        for other in clients:
            if other.number not in seen and other.free:
                other.free = False
                poller.remove(other)

    poller = Poller(look)
    for client in clients:
        client.mine.send(b"x")
        poller.add(client, client.watched)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(poller.run)
            while len(seen) < 3:
                await checkpoint()
            group.cancel_scope.cancel()
    assert len(set(seen)) == 1
