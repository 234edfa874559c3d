"""A snapshot of the journal for each outage of the cloud: a state to go back to, made while everything else goes on."""

from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from omnid import platform
from omnid.errors import Retryable
from omnid.flow import notify
from omnid.flow.context import Bell, Context
from omnid.flow.patiently import patiently
from omnid.model import Problem
from omnid.retry import Backoff
from omnid.store.interface import Tx
from omnid.store.snapshots import Shelf, Snapshot

DIRECTORY = "snapshots"
TRIES_MAX = 3
AGAIN = Backoff(base_s=5.0, max_s=60.0)


class Snapshots:
    """Makes them when `Modes.cloud_lost` is called, and keeps as many as the config says; nothing waits for them."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._directory = Path(context.config.state.dir) / DIRECTORY
        self._shelf = Shelf(self._directory)
        self._bell = Bell()
        self._began_ms: int | None = None
        context.modes.cloud_lost = self._ask

    async def run(self) -> None:
        """Tidies up, then makes a snapshot whenever the cloud has gone; ends when it is cancelled."""
        await self._tidy()
        while True:
            await self._bell.wait()
            began_ms, self._began_ms = self._began_ms, None
            if began_ms is not None and self._context.config.mode.snapshots_max:
                await self._make(began_ms)

    def _ask(self, began_ms: int) -> None:
        self._began_ms = began_ms
        self._bell.ring()

    async def _make(self, began_ms: int) -> None:
        """Makes the snapshot of an outage; what stands in the way of the last try, people are told."""
        context, modes = self._context, self._context.modes
        for failures in range(1, TRIES_MAX + 1):
            try:
                made = await self._made(began_ms)
            except Retryable as error:
                if failures < TRIES_MAX:
                    await anyio.sleep(AGAIN.delay_s(failures, context.clock.uniform))
                    continue
                modes.no_snapshot = Problem.of(error)
                context.log.warning("no_snapshot", **error.as_dict())
                await patiently(context, partial(self._tell, said=str(error.fields.get("detail", error.what))))
                return
            context.log.info("snapshot", path=made.path, size_bytes=made.size_bytes)
            await self._tidy()
            modes.no_snapshot = None
            return

    async def _made(self, began_ms: int) -> Snapshot:
        settings = self._context.config
        try:
            path = await anyio.to_thread.run_sync(self._shelf.place, began_ms)
            room_bytes = platform.free_bytes(settings.state.dir) - settings.store.free_bytes_min
        except OSError as error:
            detail = error.strerror or str(error)
            raise Retryable("no_snapshot", path=self._directory, detail=detail) from error
        size_bytes = await self._context.store.copy(path, min(room_bytes, settings.mode.snapshots_bytes_max))
        return Snapshot(str(path), began_ms, size_bytes)

    async def _tidy(self) -> None:
        """Removes what is beyond the limits, and looks what is there."""
        settings, modes = self._context.config.mode, self._context.modes
        shrink = partial(self._shelf.shrink, settings.snapshots_max, settings.snapshots_bytes_max)
        try:
            modes.snapshots = await anyio.to_thread.run_sync(shrink)
        except OSError as error:
            self._context.log.warning("snapshots_unseen", path=str(self._directory), detail=error.strerror or error)

    def _tell(self, tx: Tx, *, said: str) -> None:
        notify.tell(tx, self._context.config, "mode", "omnid", mode="no_snapshot", said=said)
