"""A host whose clock is moved: `moved_clock.py FILE PYTHON -m omnid ...` runs omnid, whose wall time is off by the
milliseconds that FILE holds, now and whenever they change.
"""

import os
import runpy
import sys
import time
from pathlib import Path

from omnid.clock import SystemClock


def main(path: str, argv: list[str]) -> None:
    def wall_ms(_clock: SystemClock) -> int:
        return time.time_ns() // 1_000_000 + int(os.pread(file, 32, 0))

    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    SystemClock.wall_ms = wall_ms
    sys.argv = argv
    runpy.run_module("omnid", run_name="__main__", alter_sys=True)


def move(path: Path, off_ms: int) -> None:
    """Moves the clock; the file's length stays, so that nobody reads a half of it."""
    with path.open("r+b" if path.exists() else "xb") as file:
        file.write(b"%+032d" % off_ms)


if __name__ == "__main__":
    # The interpreter and `-m omnid` in between are those of the command that this one stands before.
    main(sys.argv[1], sys.argv[4:])
