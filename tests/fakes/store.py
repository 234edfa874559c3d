"""A store on a real file, for what is tested beneath the flow."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from omnid.clock import SystemClock
from omnid.store.database import SqliteStore, StoreSettings
from omnid.store.interface import GATE, Tx
from tests.fakes.signals import WAIT_S


@asynccontextmanager
async def opened(path: Path, **settings: Any) -> AsyncGenerator[SqliteStore]:
    """Opens the store in a directory and serves it, for at most `WAIT_S`."""
    store = SqliteStore(path / "journal.db", SystemClock(), StoreSettings(**settings))
    try:
        with anyio.fail_after(WAIT_S):
            async with anyio.create_task_group() as group:
                group.start_soon(store.serve)
                await anyio.wait_all_tasks_blocked()
                yield store
                group.cancel_scope.cancel()
    finally:
        store.close()


def gate(name: str) -> Callable[[Tx], int]:
    """Gives a write: the gate of that name is closed."""
    fields = {"cause": "paused", "subject": name, "closed_at_ms": 1}
    return lambda tx: tx.create(GATE, f"paused:{name}", fields)
