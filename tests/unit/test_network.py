"""The system tells of changes of the network: in a namespace of the test's own, where nobody else is disturbed."""

import os
import subprocess
import sys

import anyio
import pytest

from omnid.link import network

WAIT_S = 30
UP = """
import fcntl, socket, struct, sys, anyio
from contextlib import aclosing
from omnid.link import network

def raise_loopback():
    # Source: netdevice(7): SIOCSIFFLAGS, IFF_UP.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 1))

async def main():
    network.SETTLE_S = 0.05
    with anyio.fail_after(20):
        async with aclosing(network.changes()) as changes, anyio.create_task_group() as group:
            async def change():
                await anyio.wait_all_tasks_blocked()
                raise_loopback()
            group.start_soon(change)
            await anext(changes)
            print("changed")

anyio.run(main, backend=sys.argv[1])
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_link_that_comes_up_is_told_of(backend: str) -> None:
    alone = ["unshare", *([] if os.geteuid() == 0 else ["--map-root-user"]), "--net"]
    argv = [*alone, sys.executable, "-c", UP, backend]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert (done.returncode, done.stdout) == (0, "changed\n"), done.stderr


async def test_where_the_system_tells_nothing_it_ends_at_once(
    anyio_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network.sys, "platform", "plan9")
    with anyio.fail_after(WAIT_S):
        assert [change async for change in network.changes()] == []
