"""Network namespaces, for tests of a machine whose cable is pulled, and of one that has no network at all.

They need Linux, `unshare` and `ip`; who isn't root becomes it in a user namespace.
"""

import os
from collections.abc import Sequence

_NEW = ("unshare", *(() if os.geteuid() == 0 else ("--map-root-user",)), "--net")


def alone(argv: Sequence[str]) -> list[str]:
    """Gives the command that runs another where there is nothing but loopback."""
    return [*_NEW, "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *argv]
