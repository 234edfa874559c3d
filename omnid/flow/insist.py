"""Insists on writing: what must be written down is tried until the store takes it."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from omnid.errors import Retryable
from omnid.flow.context import Context
from omnid.retry import Backoff

T = TypeVar("T")

BACKOFF = Backoff(base_s=0.5, max_s=30.0)


async def insist(context: Context, write: Callable[[], Awaitable[T]], waits: str, **fields: object) -> T | None:
    """Gives what `write` gives, or None where the store was closed; the first failure is logged as `waits`."""
    failures = 0
    while True:
        try:
            return await write()
        except Retryable as error:
            if error.code == "store_closed":
                return None
            failures += 1
            if failures == 1:
                context.log.warning(waits, **fields, **error.as_dict())
        await anyio.sleep(BACKOFF.delay_s(failures, context.clock.uniform))
