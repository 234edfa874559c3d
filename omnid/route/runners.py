"""Which runner on another host gets a task. Pure."""

from collections.abc import Collection, Iterable, Iterator

from msgspec import Struct

UNHEARD = "*"
"""Stands for the labels of a runner that has not been heard yet."""


class Seat(Struct):
    """What a runner can take now; it is counted down while tasks are chosen for it."""

    runner: str
    labels: frozenset[str]
    window: int
    """How many attempts may be on their way to it and on it at once."""
    free: int
    """How many more it can take."""
    offered: dict[str, int]
    """The executors that it offers, and how many more attempts each takes."""
    load: float = 0.0

    def room(self, executor: str) -> int:
        """Gives how many more attempts of an executor it takes."""
        return min(self.free, self.offered.get(executor, 0))


class Seats:
    """The runners that can take something, while one transaction claims tasks for them."""

    _NOTHING: frozenset[str] = frozenset()

    def __init__(
        self,
        seats: Iterable[Seat] = (),
        capabilities: frozenset[str] = frozenset(),
        unheard: frozenset[str] = frozenset(),
    ) -> None:
        """`capabilities` are all labels that any runner has: what else a task is labelled with says nothing here.

        Unless its executor is among the `unheard`: a runner of theirs has yet to say which labels it has.
        """
        self._seats = list(seats)
        self._capabilities = capabilities
        self._unheard = unheard

    def rooms(self) -> dict[str, int]:
        """Gives how many tasks may start on each executor."""
        found: dict[str, int] = {}
        for seat in self._seats:
            for executor in seat.offered:
                room = seat.room(executor)
                if room > 0:
                    found[executor] = found.get(executor, 0) + room
        return found

    def lacks(self, executor: str) -> frozenset[frozenset[str]]:
        """Gives which labels those lack that have room for an executor: a task with none of one's is for that one.

        Among them is `UNHEARD` while any label may be one; see `holds`.
        """
        more = frozenset((UNHEARD,) if executor in self._unheard else ())
        return frozenset((self._capabilities - seat.labels) | more for seat in self._seats if seat.room(executor) > 0)

    def holds(self, executor: str, labels: Collection[str]) -> bool:
        """Tells whether a runner that has not been heard yet may be the one that a task's labels mean."""
        return executor in self._unheard and not self._capabilities.issuperset(labels)

    def could(self, executor: str, labels: Collection[str]) -> bool:
        """Tells whether some runner can take a task now."""
        return next(self._fits(executor, labels), None) is not None

    def take(self, executor: str, labels: Collection[str]) -> str | None:
        """Gives the runner for a task, and counts it there; None where none can take it now.

        It is the one that is filled least, and of those the one whose machine has the least to do.
        """
        best = min(self._fits(executor, labels), key=_rank, default=None)
        if best is None:
            return None
        best.free -= 1
        best.offered[executor] -= 1
        return best.runner

    def _fits(self, executor: str, labels: Collection[str]) -> Iterator[Seat]:
        if not self.holds(executor, labels):
            wanted = self._capabilities.intersection(labels) if labels else self._NOTHING
            for seat in self._seats:
                if seat.room(executor) > 0 and wanted <= seat.labels:
                    yield seat


def _rank(seat: Seat) -> tuple[float, float, str]:
    return -seat.free / seat.window, seat.load, seat.runner
