"""What the values of settings may be, and what all parts of the config have in common."""

from typing import Annotated

from msgspec import Meta, Struct

from omnid.patterns import HOURS_OR_NONE, NAME, WORDS

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
Count = Annotated[int, Meta(ge=1)]
Bytes = Annotated[int, Meta(ge=1024)]
Seconds = Annotated[float, Meta(gt=0, le=366 * 86400)]
Usd = Annotated[float, Meta(ge=0, le=1e9)]
ExitCode = Annotated[int, Meta(ge=0, le=255)]
Name = Annotated[str, Meta(pattern=NAME)]
Hours = Annotated[str, Meta(pattern=HOURS_OR_NONE)]
"""A daily window of local time, ``23:00-07:00``, or nothing; see `times.Window`."""
Words = Annotated[str, Meta(pattern=WORDS, max_length=200)]
"""A word or words to look for in a text; a ``*`` at the end stands for the rest of the word."""


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all parts of the config have in common."""
