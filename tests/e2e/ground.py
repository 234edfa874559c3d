"""Where a demo is tested: a TMPDIR and a home of its own, and the certainty that nothing of it is left."""

import contextlib
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.e2e.harness import OMNICTL, WAIT_S, until

DEMO = (*OMNICTL, "demo")

NO_NETWORK = """
import os, sys
def refuse(event, given):
    if event == "socket.getaddrinfo" or event in ("socket.connect", "socket.bind") and given[0].family != 1:
        with open(os.environ["HOME"] + "/network", "a") as file:
            print(event, given, file=file)
        raise OSError("there is no network here")
sys.addaudithook(refuse)
"""


class Ground:
    """A place that a demo may use: a TMPDIR, a home, and the state directory of somebody's own daemon."""

    def __init__(self, root: Path) -> None:
        self.tmp, self.home, self.own = root / "t", root / "home", root / "own"
        self.tmp.mkdir()
        self.home.mkdir()
        self.environ = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
        self.environ |= {
            "TMPDIR": str(self.tmp),
            "HOME": str(self.home),
            "OMNID_STATE": str(self.own),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }

    def start(self, argv=DEMO, **streams) -> "subprocess.Popen[bytes]":
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **streams}
        return subprocess.Popen(argv, env=self.environ, cwd=self.home, start_new_session=True, **streams)

    def run(self, argv=DEMO) -> tuple[int, str]:
        with self.start(argv) as process:
            out, _ = process.communicate(timeout=2 * WAIT_S)
        return process.returncode, out.decode()

    def processes(self) -> list[str]:
        mark = os.fsencode(self.tmp)
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    line = (entry / "cmdline").read_bytes()
                    if line and (mark in line or mark in (entry / "environ").read_bytes()):
                        found.append(f"{entry.name} {line!r}")
        return found

    def cut_network(self) -> None:
        """Has every Python here refuse all sockets but Unix ones, and note it."""
        guard = self.home.parent / "guard"
        guard.mkdir()
        (guard / "sitecustomize.py").write_text(NO_NETWORK)
        self.environ["PYTHONPATH"] += f":{guard}"

    def assert_two_at_once(self, first: Sequence[str], second: Sequence[str], good: str) -> tuple[str, str]:
        """Runs two demos at once, which keep out of each other's way, and gives what they say; both end so."""
        with self.start(first) as one, self.start(second) as other:
            said = [process.communicate(timeout=4 * WAIT_S)[0].decode() for process in (one, other)]
        for process, out in zip((one, other), said, strict=True):
            assert (process.returncode, out.splitlines()[-1:]) == (0, [good]), out
        self.assert_untouched()
        return said[0], said[1]

    def assert_ended_by(self, number: int, argv: Sequence[str], mark: bytes, unsaid: str) -> None:
        """Sends a demo a signal, and once more, when it has come to the mark: it ends without its last line."""
        with self.start(argv) as process:
            out = read_until(process, mark)
            process.send_signal(number)
            # A second one, by somebody who is impatient, changes nothing.
            process.send_signal(number)
            rest, _ = process.communicate(timeout=2 * WAIT_S)
        assert process.returncode == 128 + number, (out + rest).decode()
        assert b"Traceback" not in rest
        assert unsaid.encode() not in rest
        self.assert_untouched()

    def assert_untouched(self) -> None:
        assert self.processes() == []
        assert list(self.tmp.iterdir()) == list(self.home.iterdir()) == []
        assert not self.own.exists()


def read_until(process, mark: bytes) -> bytes:
    """Reads what it says until the mark is there."""
    out = b""

    def found() -> bool:
        nonlocal out
        out += os.read(process.stdout.fileno(), 4096)
        assert process.poll() is None or mark in out, out
        return mark in out

    until(found, lambda: f"{mark!r} in {out!r}")
    return out
