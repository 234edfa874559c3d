"""A disk so small that it fills up: a tmpfs in a namespace of its own, so that nobody has to be root for it."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def small_disk(directory: Path, options: str) -> Iterator[Path]:
    """Makes the directory and mounts the disk there, as long as it is open; gives the path that leads to it."""
    directory.mkdir()
    flags = [] if os.geteuid() == 0 else ["--map-root-user"]
    script = 'mount -t tmpfs -o "$1,mode=0700" tmpfs "$2" && echo there && read x'
    command = ["unshare", "--mount", *flags, "/bin/sh", "-c", script, "sh", options, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as keeper:
        assert keeper.stdin
        assert keeper.stdout
        assert keeper.stdout.readline() == b"there\n", "nobody may mount a file system here, not even for himself"
        yield Path(f"/proc/{keeper.pid}/root{directory}")
        keeper.stdin.close()


def inside(path: Path) -> tuple[str, ...]:
    """Gives the command that runs another one where the disk is mounted, and becomes it.

    SQLite looks for where a link leads, and from outside that path leads past the disk.
    """
    spaces = Path(*path.parts[:3], "ns")
    user = () if os.geteuid() == 0 else (f"--user={spaces / 'user'}", "--preserve-credentials")
    return ("nsenter", f"--mount={spaces / 'mnt'}", *user)
