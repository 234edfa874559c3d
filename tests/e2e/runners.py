"""Runners as their own processes: one on a host of its own, and those of a daemon."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.contract.links import WAIT_S, Kit
from tests.e2e.harness import Home

RUNNER = (sys.executable, "-m", "omnid", "runner")


class Host(Home):
    """The host of a runner: the directories of a daemon, and no daemon."""

    runner: "subprocess.Popen[bytes] | None" = None

    def link(self, kit: Kit, more: str = "") -> None:
        """Writes the config of a runner at the kit's broker."""
        (self.root / "password").write_text(kit.broker.password)
        self.configure(
            f'[runner]\nlink = "cable"\nname = "{kit.runner_name}"\nlabels = ["gpu"]\nbeat_s = 0.5\n'
            f'[[link]]\nname = "cable"\nurl = "{kit.broker.url}"\nuser = "{kit.broker.user}"\n'
            f'password = "file:{self.root}/password"\nretry_base_s = 0.1\nretry_max_s = 1.0\n{more}'
        )

    def drain(self, seconds: float) -> None:
        """Says for how long a stop waits for what runs."""
        self.config.write_text(self.config.read_text().replace("[runner]\n", f"[runner]\ndrain_s = {seconds}\n"))

    def run(self) -> None:
        """Starts the runner."""
        with self.said.open("ab") as said:
            self.runner = subprocess.Popen(
                (*self.through, *RUNNER),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env=self.environ,
                cwd=self.root,
            )

    def tell(self, number: int = signal.SIGTERM) -> None:
        assert self.runner is not None
        self.runner.send_signal(number)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Ends it; gives its exit code."""
        self.tell(number)
        return self.ended()

    def ended(self) -> int:
        """Waits for its end; gives its exit code."""
        assert self.runner is not None
        code = self.runner.wait(WAIT_S)
        self.runner = None
        return code

    def call(self, *argv: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*self.through, *RUNNER, *argv],
            check=False,
            env=self.environ,
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
        )

    def how_it_is(self) -> str:
        """Says how the runner is, or what it ended with."""
        code = None if self.runner is None else self.runner.poll()
        if self.runner is None or code is not None:
            return f"ended with {code}: {self.said.read_text(errors='replace')[-1000:]}"
        return self.call("--health").stdout

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [line for line in _lines(self.state / "runner" / "runner.log") if line["event"] == event]

    def close(self) -> None:
        if self.runner is not None:
            self.end(signal.SIGKILL)
        super().close()


class Fleet(Home):
    """A daemon and its runners on one host: they share a config, and each runner has a directory of its own."""

    def __init__(self, root: Path, kit: Kit) -> None:
        super().__init__(root)
        self.kit = kit
        self.runners: dict[str, subprocess.Popen[bytes]] = {}
        (root / "password").write_text(kit.broker.password)

    def name(self, number: int) -> str:
        return f"{self.kit.runner_name}-{number}"

    def link(self, count: int = 1, more: str = "", remote: str = "", link: str = "") -> None:
        """Writes the config of them all, with that many runners."""
        self.configure(
            f'[daemon]\nname = "{self.kit.daemon_name}"\nslots_max = 4\n'
            f"[runner]\nbeat_s = 0.2\n{more}"
            f'[[link]]\nname = "cable"\nurl = "{self.kit.broker.url}"\nuser = "{self.kit.broker.user}"\n'
            f'password = "file:{self.root}/password"\nretry_base_s = 0.1\nretry_max_s = 0.5\n{link}'
            + "".join(
                f'[[remote]]\nname = "{self.name(number)}"\nlink = "cable"\nexecutors = ["command"]\n{remote}'
                for number in range(count)
            )
        )

    def run(self, number: int = 0, **environ: str) -> str:
        """Starts a runner, and gives its name."""
        name = self.name(number)
        directory = self.root / name
        directory.mkdir(exist_ok=True)
        with self.said.open("ab") as said:
            self.runners[name] = subprocess.Popen(
                (*RUNNER, "--link", "cable", "--name", name),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env={**self.environ, "OMNID_STATE": str(directory), **environ},
                cwd=self.root,
            )
        return name

    def end(self, number: int = 0, how: int = signal.SIGKILL) -> None:
        """Ends a runner; its commands go on under their supervisors."""
        process = self.runners.pop(self.name(number))
        process.send_signal(how)
        process.wait(WAIT_S)

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [line for line in _lines(self.state / "omnid.log") if line["event"] == event]

    def warned(self) -> list[list[str]]:
        """Gives the events of warnings and errors in the logs of the daemon and of its runners."""
        paths = self.state / "omnid.log", *(self.root / name / "runner" / "runner.log" for name in sorted(self.runners))
        return [[line["event"] for line in _lines(path) if line["level"] != "info"] for path in paths]

    def refused(self, kind: str, part: str) -> dict[str, Any] | None:
        """Gives a message of a kind that the daemon has set aside, with that part in it.

        A result whose confirmation was cut off comes again, and is refused as well.
        """
        dead = self.client.call("omnid/dead.list", {})["deliveries"]
        return next((one for one in dead if one["body"].get("message") == kind and part in one["body"]["text"]), None)

    def close(self) -> None:
        for process in self.runners.values():
            process.kill()
            process.wait(WAIT_S)
        super().close()


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
