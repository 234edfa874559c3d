"""Network namespaces: a machine whose cable is pulled, and one that has no network at all.

They need Linux, `unshare`, `nsenter` and `ip`; who isn't root becomes it in a user namespace.
"""

import contextlib
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Self

STEP_S = 20.0
FAR, NEAR = "10.213.0.1", "10.213.0.2"
_IS_ROOT = os.geteuid() == 0
_NEW = ("unshare", *(() if _IS_ROOT else ("--map-root-user",)), "--net")


def alone(argv: Sequence[str]) -> list[str]:
    """Gives the command that runs another where there is nothing but loopback."""
    return [*_NEW, "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *argv]


class Cable:
    """Two places with a cable between them: `near` and `far` are commands that run another one there."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        far = self._place(_NEW)
        self.far = _inside(far)
        near = self._place((*self.far, "unshare", "--net", "--mount"))
        self.near = (*_inside(near), "--mount")
        self._ip(self.far, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", str(near))
        for place, address in ((self.far, FAR), (self.near, NEAR)):
            self._ip(place, "addr", "add", f"{address}/24", "dev", "cable")
            self._ip(place, "link", "set", "lo", "up")
            self._ip(place, "link", "set", "cable", "up")

    def pull(self) -> None:
        self._ip(self.far, "link", "set", "cable", "down")

    def plug(self) -> None:
        self._ip(self.far, "link", "set", "cable", "up")

    def resolve(self, text: str, path: Path) -> None:
        """Has the near side resolve names as the text says, which is written to the path."""
        path.write_text(text)
        argv = [*self.near, "mount", "--bind", str(path), "/etc/resolv.conf"]
        subprocess.run(argv, check=True, capture_output=True, timeout=STEP_S)

    def be_silent(self) -> None:
        """Has the near side send into a pulled cable as if the far side were a router whose own cable is pulled."""
        shown = self._ip(self.far, "-o", "link", "show", "cable")
        address = shown.partition("link/ether ")[2].split()[0]
        self._ip(self.near, "neigh", "replace", FAR, "lladdr", address, "dev", "cable", "nud", "permanent")

    def _place(self, argv: Sequence[str]) -> int:
        """Starts a process that holds a namespace as long as its input is open, and gives its pid."""
        argv = [*argv, "sh", "-c", "echo; exec cat"]
        process = self._stack.enter_context(
            subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        )
        assert process.stdin is not None
        assert process.stdout is not None
        self._stack.callback(process.stdin.close)
        assert process.stdout.readline() == b"\n", f"{' '.join(argv)} makes no network namespace"
        return process.pid

    @staticmethod
    def _ip(place: Sequence[str], *words: str) -> str:
        done = subprocess.run([*place, "ip", *words], check=True, capture_output=True, text=True, timeout=STEP_S)
        return done.stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()


def _inside(pid: int) -> tuple[str, ...]:
    user = () if _IS_ROOT else ("--user", "--preserve-credentials")
    return ("nsenter", "--target", str(pid), *user, "--net")
