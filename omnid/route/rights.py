"""What the config lets an origin do: which executors it may use, which tasks it sees. Pure.

A section of the origin's own name decides, else the one named `EVERY_OTHER`, else there are no bounds.
"""

from collections.abc import Iterable
from typing import NamedTuple

from omnid.model import USER_ORIGIN, Work
from omnid.settings import COMMAND, EVERY_OTHER, MODEL, OFFLINE, Origin


class Rights(NamedTuple):
    """What one origin may do; None is no bound."""

    origin: str = USER_ORIGIN
    executors: frozenset[str] | None = None
    """The executors that it may use."""
    labels: frozenset[str] | None = None
    """The labels of the tasks that it sees beside its own."""
    complete: bool = False
    """Whether it may end its own tasks by hand."""

    @property
    def sees_all(self) -> bool:
        """Whether it sees the tasks of all origins."""
        return self.labels is None

    def sees(self, origin: str, labels: Iterable[str] = ()) -> bool:
        """Tells whether it sees a task of that origin with those labels."""
        return self.labels is None or origin == self.origin or not self.labels.isdisjoint(labels)

    def opens(self, executor: str) -> bool:
        """Tells whether it may use an executor; `OFFLINE` is open with `MODEL`."""
        return self.executors is None or (MODEL if executor == OFFLINE else executor) in self.executors

    def within(self, outer: "Rights") -> "Rights":
        """Gives what is left of it inside of what another origin may do; its own tasks it sees in any case."""
        return Rights(
            self.origin,
            _both(self.executors, outer.executors),
            _both(self.labels, outer.labels),
            self.complete and outer.complete,
        )

    def needs(self, executor: str, work: Work) -> str | None:
        """Gives the executor that the work needs and that isn't open, if any. A check is a command of its own."""
        used = (executor,) if work.check is None else (executor, COMMAND)
        return next((name for name in used if not self.opens(name)), None)


def _both(one: frozenset[str] | None, other: frozenset[str] | None) -> frozenset[str] | None:
    return other if one is None else one if other is None else one & other


UNBOUND = Rights()
"""What a person may do."""


def section_of(sections: Iterable[Origin], origin: str) -> Origin | None:
    """Gives the section that holds for an origin; none ever holds for people's own."""
    if origin == USER_ORIGIN:
        return None
    others = None
    for section in sections:
        if section.name == origin:
            return section
        if section.name == EVERY_OTHER:
            others = section
    return others


def rights_of(sections: Iterable[Origin], origin: str) -> Rights:
    """Gives what an origin may do."""
    section = section_of(sections, origin)
    if section is None:
        return Rights(origin)
    return Rights(
        origin,
        None if section.executors is None else frozenset(section.executors),
        None if section.labels is None else frozenset(section.labels),
        section.complete,
    )
