"""Keeps a loop of the daemon going: what it fails with is logged once, and it is started again after a wait."""

from collections.abc import Awaitable, Callable

import anyio

from omnid.clock import Clock
from omnid.errors import Fatal, Retryable
from omnid.log import Logger
from omnid.retry import Backoff, FailureCount

AGAIN = Backoff(base_s=0.5, max_s=30.0)


async def keep(name: str, loop: Callable[[], Awaitable[None]], *, clock: Clock, log: Logger) -> None:
    """Runs `loop` until it is cancelled or returns; only Fatal passes.

    A Retryable (a full disk, say) is logged when it first comes and when it is over, anything else each time.
    """
    count = FailureCount()
    while True:
        try:
            return await loop()
        except Fatal:
            raise
        except Retryable as error:
            count = count.failed(clock.monotonic_s())
            if count.failures == 1:
                log.warning("loop_waits", loop=name, **error.as_dict())
        except Exception:
            count = count.failed(clock.monotonic_s())
            log.exception("loop_failed", loop=name)
        await anyio.sleep(AGAIN.delay_s(count.failures, clock.uniform))
