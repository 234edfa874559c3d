"""Writes that must not be given up: what a full disk keeps out of the journal is tried until it is there."""

from collections.abc import Callable

import anyio

from omnid.errors import Retryable
from omnid.flow.context import Context
from omnid.retry import Backoff
from omnid.store.interface import Tx

AGAIN = Backoff(base_s=2.0, max_s=300.0)


async def patiently(context: Context, fn: Callable[[Tx], None]) -> None:
    """Writes, however long that takes; that it waits is logged once."""
    failures = 0
    while True:
        try:
            await context.store.write(fn)
        except Retryable as error:
            failures += 1
            if failures == 1:
                context.log.warning("mode_waits", **error.as_dict())
            await anyio.sleep(AGAIN.delay_s(failures, context.clock.uniform))
        else:
            return
