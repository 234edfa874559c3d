"""uvicorn as the daemon uses it: within a task of its own, ended by a call, with the daemon's signals left alone.

uvicorn knows asyncio only, so this is the adapter that does not run on trio; `http` imports it where HTTP is asked for.
"""

import contextlib
from collections.abc import Generator
from functools import partial
from typing import Any, cast

import anyio
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from omnid.api.http_gate import App
from omnid.settings import Http as Settings

KEEP_ALIVE_S = 75
HEADER_BYTES_MAX = 32 << 10
STOP_S = 2
"""How long a stop waits for answers that are being made or sent; a stream that a client listens to has no end."""
STALL_S = 30.0
"""How long a client may take nothing of what is sent to it."""


class Protocol(H11Protocol):
    """A connection that is cut where its client keeps the daemon waiting.

    uvicorn counts the time only from an answer to the next byte, so that who sends nothing, or one byte of a request,
    or reads no answer would keep its place among `http.connections_max` for ever. Where all places are taken, a new
    connection takes that of the one that asks nothing and would be closed first.
    """

    def __init__(self, *args: Any, head_s: float, **more: Any) -> None:
        """`head_s` bounds how long the head of a request may take, that of the first one from the connection on."""
        super().__init__(*args, **more)
        self._head_s = head_s
        self._late: Any = None
        self._stalled: Any = None

    def connection_made(self, transport: Any) -> None:
        """Waits for the first request."""
        super().connection_made(transport)
        self._make_room()
        self._late = self.loop.call_later(self._head_s, self.transport.abort)

    def data_received(self, data: bytes) -> None:
        """Takes bytes; while a request is answered it has deadlines of its own."""
        super().data_received(data)
        # None before the first request, whatever its type says.
        cycle = cast("RequestResponseCycle | None", self.cycle)
        answers = cycle is not None and not cycle.response_complete
        if answers and self._late is not None:
            self._late.cancel()
            self._late = None
        elif not answers and self._late is None:
            self._late = self.loop.call_later(self._head_s, self.transport.abort)

    def pause_writing(self) -> None:
        """Waits for the client to take what is there for it."""
        super().pause_writing()
        self._look_again(None)

    def resume_writing(self) -> None:
        """The client has taken enough for now."""
        if self._stalled is not None:
            self._stalled.cancel()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """There is nobody to wait for."""
        for timer in (self._late, self._stalled):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def _make_room(self) -> None:
        open_now = [one for one in cast("set[Protocol]", self.connections) if not one.transport.is_closing()]
        due_s = {one: one.due_s for one in open_now if one.due_s}
        if due_s and len(open_now) >= (self.limit_concurrency or 0):
            min(due_s, key=due_s.__getitem__).transport.abort()

    @property
    def due_s(self) -> float:
        """When it is closed if it goes on asking nothing, by the loop's clock; 0: it is being answered, or new."""
        timer: Any = self._late or self.timeout_keep_alive_task
        return timer.when() if timer else 0.0

    def _look_again(self, before_bytes: int | None) -> None:
        """Cuts the connection where nothing was taken since the last look; a close would wait for the client."""
        left_bytes = self.transport.get_write_buffer_size()
        if before_bytes is not None and left_bytes >= before_bytes:
            self.transport.abort()
        else:
            self._stalled = self.loop.call_later(STALL_S, self._look_again, left_bytes)


class Server(uvicorn.Server):
    """A server that takes no signals, doesn't wake up ten times a second, and leaves nothing behind."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stopped = anyio.Event()

    def stop(self) -> None:
        """Makes `serve` end once the answers that are being made are out."""
        self.should_exit = True
        self._stopped.set()

    async def main_loop(self) -> None:
        """Waits for `stop`."""
        await self.on_tick(0)
        await self._stopped.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leaves signals to the daemon."""
        yield

    def abandon(self) -> None:
        """Ends what `serve` left open when it was cancelled: its requests run in tasks of uvicorn's own."""
        for listener in getattr(self, "servers", ()):
            listener.close()
        for task in list(self.server_state.tasks):
            task.cancel()
        for connection in list(self.server_state.connections):
            transport: Any = connection.transport
            transport.abort()


def server_of(settings: Settings, app: App) -> Server:
    """Makes the server, with its keys read; raises OSError and ValueError (ssl.SSLError is the one) for bad ones."""
    config = uvicorn.Config(
        app,
        loop="none",
        http=cast("Any", partial(Protocol, head_s=settings.body_s)),
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        limit_concurrency=settings.connections_max,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=STOP_S,
        h11_max_incomplete_event_size=HEADER_BYTES_MAX,
        ssl_certfile=settings.certificate or None,
        ssl_keyfile=settings.private_key or None,
    )
    config.load()
    return Server(config)
