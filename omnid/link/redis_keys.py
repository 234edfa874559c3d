"""The keys of an end on Redis, and by what is there whether another program has them: told before anything is written.

A stream is omnid's by its group, which both make: who reads it, and who sends to it. One without that group is taken
where its entries look like ours, because whoever has the format may send to an end that has never been there.
"""

from collections.abc import Sequence
from typing import NamedTuple

GROUP = "omnid"
FIELD = b"m"
"""The field of an entry in which its message stands."""
WHY = b"why"
"""The field in which an entry that was set aside says why."""
NO_END_MS = -1
"""What PTTL says of a key that never ends."""

Entry = tuple[bytes, dict[bytes, bytes] | None]
"""The id and the fields of a message in a stream; without any where what was in it is deleted."""


def stream_of(name: str) -> str:
    """Gives the key of what was sent to an end; the braces keep all of its keys in one slot of a cluster."""
    return f"omnid:{{{name}}}:in"


class Keys(NamedTuple):
    """The keys of one end."""

    stream: str
    """What was sent to it and is not acknowledged."""
    dead: str
    """What it has set aside."""
    lease: str
    """Who has its name, and for how long."""
    probe: str
    """Where a ping writes nothing, as far as it would be let."""

    @staticmethod
    def of(name: str) -> "Keys":
        """Gives those of the end with this name."""
        own = f"omnid:{{{name}}}"
        return Keys(stream_of(name), f"{own}:dead", f"{own}:lease", f"{own}:lease:probe")


class Found(NamedTuple):
    """What stands under one of these keys."""

    kind: str
    """The type that Redis gives it; "none" where nothing is there."""
    groups: frozenset[bytes] = frozenset()
    ends: Sequence[Entry] = ()
    """The first entry of a stream and its last; not looked at where it has omnid's group."""
    ttl_ms: int = NO_END_MS
    """For how long it stays there, as PTTL says it."""

    @property
    def has_group(self) -> bool:
        """Tells whether it is a stream with the group that makes it omnid's."""
        return GROUP.encode() in self.groups


def foreign_stream(found: Found) -> str:
    """Tells what another program has where messages to an end go; "" where it is free or omnid's."""
    if found.kind == "none" or found.has_group:
        return ""
    if found.kind != "stream":
        return f"a {found.kind}"
    if found.groups:
        return f"a stream with the group {min(found.groups)[:100].decode(errors='replace')!r}"
    if not found.ends:
        return f"a stream without entries and without the group {GROUP!r}"
    return _foreign([entry for entry in found.ends if set(entry[1] or {}) != {FIELD}])


def foreign_dead(found: Found) -> str:
    """Tells what another program has where an end sets messages aside; "" where it is free or omnid's."""
    if found.kind not in ("none", "stream"):
        return f"a {found.kind}"
    return _foreign([entry for entry in found.ends if WHY not in (entry[1] or {})])


def foreign_lease(found: Found) -> str:
    """Tells what another program has where the name of an end is written down; "" where it is free or omnid's."""
    if found.kind not in ("none", "string"):
        return f"a {found.kind}"
    return "a string that never ends" if found.kind == "string" and found.ttl_ms == NO_END_MS else ""


def foreign_probe(found: Found) -> str:
    """Tells what another program has where pings write nothing; a string stays as it is there."""
    return "" if found.kind in ("none", "string") else f"a {found.kind}"


FOREIGN = (foreign_stream, foreign_dead, foreign_lease, foreign_probe)
"""By what each key of an end is told from one of another program, in the order of `Keys`."""


def _foreign(entries: Sequence[Entry]) -> str:
    return f"a stream with the entry {entries[0][0].decode()}, which isn't omnid's" if entries else ""
