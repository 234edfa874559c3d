"""Changes of the machine's network, as the system tells of them: a cable, a radio, an address came or went.

What exactly has changed is not read: whoever hears of it looks for itself. Where the system tells nothing (or may not,
in a sandbox), there are only the probes.
"""

import errno
import socket
import sys
from collections.abc import AsyncGenerator

import anyio

NETLINK_ROUTE = 0
GROUPS = 0x1 | 0x10 | 0x100
"""Links, addresses of IPv4, addresses of IPv6. Source: rtnetlink(7), ``RTMGRP_*`` of linux/rtnetlink.h."""
MESSAGE_BYTES_MAX = 65536
SETTLE_S = 1.0
"""One change comes as many messages; and an address comes a moment after its link."""


async def changes() -> AsyncGenerator[None]:
    """Yields after each change, once it has settled; ends at once where the system can't tell. The caller closes it.

    On macOS a routing socket, see route(4): unverified.
    """
    try:
        events = _listen()
    except OSError:
        return
    with events:
        while True:
            await anyio.wait_readable(events)
            await anyio.sleep(SETTLE_S)
            _drain(events)
            yield


def _listen() -> socket.socket:
    """Opens a socket that the system writes its messages to; raises OSError."""
    if sys.platform == "linux":
        events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE)
        try:
            events.bind((0, GROUPS))
        except OSError:
            events.close()
            raise
    elif sys.platform == "darwin":
        events = socket.socket(socket.AF_ROUTE, socket.SOCK_RAW, 0)
    else:
        raise OSError("this system tells nothing of its links")
    events.setblocking(False)
    return events


def _drain(events: socket.socket) -> None:
    """Reads all that is there. An overflow (ENOBUFS) means that there was more, which is no less of a change."""
    while True:
        try:
            events.recv(MESSAGE_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
