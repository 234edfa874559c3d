"""Which executors of a runner can be used now."""

from omnid.errors import Retryable
from omnid.flow.context import Context

REST_S = 30.0
"""How long an executor that was down is not offered, unless an attempt on it ends before."""


class Standings:
    """What `Gates` are to a daemon, which looks after tasks and has probes."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._down: dict[str, float] = {}

    async def executor_down(self, executor: str, error: Retryable) -> None:
        """See `runner.Standing`."""
        if executor not in self._down:
            self._context.log.warning("executor_down", executor=executor, **error.as_dict())
        self._down[executor] = self._context.clock.monotonic_s() + REST_S

    def executor_worked(self, executor: str) -> None:
        """See `runner.Standing`."""
        if self._down.pop(executor, None) is not None:
            self._context.log.info("executor_up", executor=executor)

    def is_down(self, executor: str) -> bool:
        """Tells whether it is not offered now."""
        return self._down.get(executor, 0.0) > self._context.clock.monotonic_s()
