"""What can fail: four kinds of errors, each of which says what happened, why, and what to do.

Standard library only, because the relay and ``omnictl`` import it. An error is raised by its code, and the code's entry
in `messages.CATALOGUE` gives the three sentences; tests hold every raise in the source against the table.
"""

from collections.abc import Mapping
from typing import Any

from omnid.messages import CATALOGUE


class OmnidError(Exception):
    """An error with a code from `CATALOGUE`; `what`, `why` and `do` are its sentences, filled in.

    Raises KeyError where the code or one of its fields is missing: that is a fault of the raise, not of the user.
    """

    def __init__(self, code: str, /, **fields: object) -> None:
        self.code = code
        self.fields = fields
        self.what, self.why, self.do = sentences(code, fields)
        super().__init__(self.what)

    def as_dict(self) -> dict[str, Any]:
        """Gives ``{code, what, why, do}``, the shape in which errors cross the socket and lie in the journal."""
        return {"code": self.code, "what": self.what, "why": self.why, "do": self.do}

    def __str__(self) -> str:
        return f"{self.what} {self.why} {self.do}"


def sentences(code: str, fields: Mapping[str, object]) -> tuple[str, str, str]:
    """Fills in what, why and do of a code; raises KeyError where it or one of its fields is missing."""
    what, why, do = CATALOGUE[code]
    return _filled(what, fields), _filled(why, fields), _filled(do, fields)


def _filled(text: str, fields: Mapping[str, object]) -> str:
    said = text.format(**fields)
    # A field at the end may be a sentence itself, which has its full stop.
    return said[:-1] if said.endswith("..") and not said.endswith("...") else said


class Retryable(OmnidError):
    """It may work later, unchanged: a full disk, a busy store, an executor that is down."""


class Rejected(OmnidError):
    """It will never work as it is: a wrong parameter, an unknown name, a state that forbids it."""


class Fatal(OmnidError):
    """The process can't go on: it stops, and the next start recovers. The only error that passes `guard`."""
