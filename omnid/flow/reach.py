"""Tells a cloud that is away from a provider that is only slow: the one is waited for, the other costs each time.

All of it is kept in memory: after a restart it is found out once more.
"""

from collections.abc import Sequence

from omnid.executor.model import Tried
from omnid.executor.model_errors import CLOUD_TIMEOUT_S, Kind
from omnid.flow.context import Context

AWAY: frozenset[Kind] = frozenset({"cloud"})
SLOW_PARKS_MAX = 2
"""How often a task waits for the cloud after a call that may be billed, where nothing tells whether that was away."""
TASKS_MAX = 1000
"""Of how many tasks that is kept; the oldest are forgotten."""


class Reach:
    """What calls have shown of the way to the providers."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._parks: dict[str, int] = {}

    def is_away(self, task_id: str, tried: Sequence[Tried]) -> bool:
        """Tells whether an attempt waits for the cloud, and has not failed at a provider that takes too long.

        What was never sent waits: it costs nothing. When the cable is pulled, connections hang as slow ones do.
        """
        failures = [one.failure for one in tried if one.failure.kind in AWAY]
        if not any(failure.may_cost for failure in failures):
            return bool(failures)
        modes = self._context.modes
        if modes.cloud.is_gone or modes.mode == "brainstem" or modes.just_woken():
            return True
        if self._context.clock.monotonic_s() - modes.heard_at_s < CLOUD_TIMEOUT_S:
            return False
        return self._parks.get(task_id, 0) < SLOW_PARKS_MAX

    def parked(self, task_id: str, tried: Sequence[Tried]) -> None:
        """Takes that a task waits for the cloud."""
        if any(one.failure.may_cost and one.failure.kind in AWAY for one in tried):
            self._parks[task_id] = self._parks.pop(task_id, 0) + 1
            if len(self._parks) > TASKS_MAX:
                del self._parks[next(iter(self._parks))]
