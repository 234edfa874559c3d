"""What the ledgers of commands that crossed a link to one runner with one slot add up to."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Self


class Ledgers(NamedTuple):
    """What was written down by whom, as the names of commands; they are all different."""

    submitted: Sequence[Sequence[str]]
    """What was acknowledged, in that order; one list for each priority."""
    sent: Sequence[str]
    """The order in which they were given to the runner."""
    started: Sequence[str]
    """By each command, as the first thing that it does."""
    done: Sequence[str]
    """By each command, as the last thing."""
    read: Sequence[Sequence[str]]
    """Which results each client was given."""


class Count(NamedTuple):
    """How the ledgers compare."""

    submitted: int
    done: int
    lost: int
    """Not done, or without a result at the client."""
    twice: int
    """How often something was started, done or answered again, or was never submitted."""
    disordered: int
    """Starts that differ from the order of sending, sends from that of submission, results from that of the ends."""

    @classmethod
    def of(cls, ledgers: Ledgers) -> Self:
        """Counts."""
        wanted = {name for names in ledgers.submitted for name in names}
        read = [name for names in ledgers.read for name in names]
        started, done, answered = Counter(ledgers.started), Counter(ledgers.done), Counter(read)
        return cls(
            len(wanted),
            len(wanted & done.keys()),
            len(wanted - (started.keys() & done.keys() & answered.keys())),
            sum(
                max(started[name], done[name], answered[name]) - (name in wanted)
                for name in started.keys() | done.keys() | answered.keys()
            ),
            overtaken(ledgers.sent, ledgers.started)
            + sum(overtaken(names, ledgers.sent) for names in ledgers.submitted)
            + sum(overtaken(ledgers.done, names) for names in ledgers.read),
        )

    def __str__(self) -> str:
        return (
            f"{self.submitted} submitted, {self.done} done, {self.lost} lost, {self.twice} done twice, "
            f"{self.disordered} out of order"
        )

    @property
    def good(self) -> bool:
        """Whether each was done once, and in order."""
        return self.lost == self.twice == self.disordered == 0


def overtaken(wanted: Iterable[str], found: Iterable[str]) -> int:
    """Counts those in `found` that come behind one which `wanted` has later; others don't count, nor do repeats."""
    place = {name: number for number, name in enumerate(dict.fromkeys(wanted))}
    furthest, count = -1, 0
    for at in (place[name] for name in dict.fromkeys(found) if name in place):
        count += at < furthest
        furthest = max(furthest, at)
    return count
