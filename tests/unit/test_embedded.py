"""The embedded link: commands in order, a bounded window, and an end that both sides notice."""

import anyio
import pytest

from omnid.link.embedded import EmbeddedLink
from omnid.link.interface import EMBEDDED
from omnid.model import Command, Work

pytestmark = pytest.mark.anyio


def command(number: int) -> Command:
    return Command(f"a{number}", f"i{number}", 1, f"t{number}", "command", Work(argv=("true",)), 1.0)


async def test_commands_arrive_in_order_and_at_once(anyio_backend: object) -> None:
    link = EmbeddedLink()
    for number in range(3):
        assert link.offer(command(number))
    assert link.held == 3
    assert [(await link.receive())[0].message.name for _ in range(3)] == ["t0", "t1", "t2"]
    link.close()


async def test_a_full_window_takes_no_more_until_one_is_received(anyio_backend: object) -> None:
    link = EmbeddedLink(window_max=1)
    assert link.offer(command(0))
    assert not link.offer(command(1))
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(link.send, EMBEDDED, (command(1),))
            await anyio.wait_all_tasks_blocked()
            assert link.held == 1
            assert [(await link.receive())[0].message.name for _ in range(2)] == ["t0", "t1"]
    link.close()


async def test_a_close_ends_both_sides(anyio_backend: object) -> None:
    link = EmbeddedLink(window_max=1)
    ended: list[str] = []

    async def receive() -> None:
        with pytest.raises(anyio.EndOfStream):
            await link.receive()
        ended.append("receive")

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(receive)
            await anyio.wait_all_tasks_blocked()
            link.close()
    assert ended == ["receive"]
    assert not link.offer(command(0))
    with pytest.raises(anyio.ClosedResourceError):
        await link.send(EMBEDDED, (command(0),))
