"""What omnid can reach: the gateway and the cloud, and when each counts as gone and as back. Pure.

Both are counted the same way: so many failures in a row and it is gone, so many good signs in a row and it is back. A
single sign of either kind changes nothing, so that nothing flaps.
"""

from typing import Literal, NamedTuple

Mode = Literal["normal", "degraded", "brainstem"]
Event = Literal["gone", "back"]


class Health(NamedTuple):
    """How one thing is, by the signs that came of it."""

    is_gone: bool = False
    row: int = 0
    """Signs in a row that speak against what it counts as now."""

    def saw(self, *, good: bool, gone_after: int, back_after: int) -> "tuple[Health, Event | None]":
        """Takes a sign, and tells whether it is gone or back with it."""
        if good is not self.is_gone:
            return Health(self.is_gone), None
        row = self.row + 1
        if row < (back_after if self.is_gone else gone_after):
            return Health(self.is_gone, row), None
        return Health(not self.is_gone), "back" if self.is_gone else "gone"


def mode_of(*, gateway_gone: bool, cloud_gone: bool) -> Mode:
    """Gives the mode: without the cloud, the gateway doesn't matter."""
    if cloud_gone:
        return "brainstem"
    return "degraded" if gateway_gone else "normal"
