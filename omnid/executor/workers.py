"""How the programs of `omnid.worker` are started: by their paths or, where omnid is one binary, as its verbs."""

import sys
from types import ModuleType

FROZEN: bool = getattr(sys, "frozen", False)
"""Whether omnid is one binary, which has no Python to give a path to."""


def argv_of(worker: ModuleType, *, site: bool = True, frozen: bool = FROZEN) -> tuple[str, ...]:
    """Gives the command that runs a worker, without `site` faster and with the standard library alone.

    `omnid.__main__` knows its verb.
    """
    if frozen:
        return (sys.executable, "worker", worker.__name__.rpartition(".")[2])
    return (sys.executable, "-I", *(() if site else ("-S",)), "-X", "utf8", str(worker.__file__))
