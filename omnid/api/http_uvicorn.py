"""uvicorn as the daemon uses it: within a task of its own, ended by a call, with the daemon's signals left alone.

uvicorn knows asyncio only, so this is the adapter that does not run on trio; `http` imports it where HTTP is asked for.
"""

import contextlib
from collections.abc import Generator
from typing import Any

import anyio
import uvicorn

from omnid.api.http_gate import App
from omnid.settings import Http as Settings

KEEP_ALIVE_S = 75
HEADER_BYTES_MAX = 32 << 10
STOP_S = 2
"""How long a stop waits for answers that are being made or sent; a stream that a client listens to has no end."""


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
        http="h11",
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
