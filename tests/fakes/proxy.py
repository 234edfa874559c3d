"""A cable between a client and a broker that tests cut: at once, only on the way back, or without a word."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
from anyio.abc import SocketStream

Change = Callable[[bytes], bytes]


class Proxy:
    """Passes bytes both ways; `mute` loses all that the broker says from then on, and `pull` lets nothing through.

    `change` is done to what the broker says.
    """

    def __init__(self, to_port: int, change: Change | None = None) -> None:
        self._to_port = to_port
        self._change: Change = change or bytes
        self._muted = False
        self._passed = anyio.Event()
        self._plugged = anyio.Event()
        self._plugged.set()
        self._streams: list[SocketStream] = []
        self.port = 0

    def mute(self) -> None:
        """Loses the broker's answers, and notices the next request."""
        self._muted = True
        self._passed = anyio.Event()

    async def request(self) -> None:
        """Waits until a request has gone to the broker since `mute`."""
        await self._passed.wait()

    async def cut(self) -> None:
        """Ends all connections; new ones are passed on again."""
        self._muted = False
        for stream in self._streams:
            await stream.aclose()
        self._streams.clear()

    async def pull(self) -> None:
        """Lets nothing through any more, and ends nothing: as a pulled cable, of which neither side is told."""
        self._plugged = anyio.Event()

    async def plug(self) -> None:
        """Lets all through again, and what was on its way too."""
        self._plugged.set()

    async def serve(self, near: SocketStream) -> None:
        await self._plugged.wait()
        try:
            far = await anyio.connect_tcp("127.0.0.1", self._to_port)
        except OSError:
            await near.aclose()
            return
        self._streams += [near, far]
        async with near, far, anyio.create_task_group() as group:
            group.start_soon(self._pass, near, far, True)
            group.start_soon(self._pass, far, near, False)

    async def _pass(self, source: SocketStream, target: SocketStream, forth: bool) -> None:
        try:
            async for data in source:
                await self._plugged.wait()
                if forth:
                    await target.send(data)
                    self._passed.set()
                elif not self._muted:
                    await target.send(self._change(data))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
        for stream in (source, target):
            await stream.aclose()


@asynccontextmanager
async def proxied(port: int, change: Change | None = None) -> AsyncIterator[Proxy]:
    proxy = Proxy(port, change)
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as group:
        proxy.port = listener.extra(anyio.abc.SocketAttribute.local_port)
        group.start_soon(listener.serve, proxy.serve)
        yield proxy
        group.cancel_scope.cancel()
