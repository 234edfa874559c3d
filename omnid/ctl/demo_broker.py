"""Brokers for the demos of links: Redis and RabbitMQ on free ports, with all that they keep in one directory."""

import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from omnid.errors import Retryable

START_S, END_S = 90.0, 30.0
_LOOK_S = 0.02
_DEBIAN = Path("/usr/lib/rabbitmq/bin")
"""Debian's programs in the path change to another user first; these don't."""


def redis_argv(directory: str, port: int) -> list[str]:
    """Gives the command that runs Redis with the settings that keep what it has confirmed."""
    argv = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--dir", directory]
    return [*argv, "--save", "", "--appendonly", "yes", "--appendfsync", "always"]


def rabbitmq_program(name: str) -> str | None:
    """Finds a program of RabbitMQ; None where it isn't there."""
    own = _DEBIAN / name
    return str(own) if own.exists() else shutil.which(name)


def epmd() -> str | None:
    """Finds Erlang's port mapper; the server would start one that outlives it."""
    found = sorted(Path("/usr/lib/erlang").glob("erts-*/bin/epmd"))
    return str(found[-1]) if found else shutil.which("epmd")


def rabbitmq_environ(directory: str, port: int, path: str) -> dict[str, str]:
    """Writes the files of a node with a name, a cookie and ports of its own, and gives its environment.

    `path` is that of its programs. Its config is the directory's ``rabbitmq.conf``, its pid file ``pid``.
    """
    place = Path(directory)
    (place / "plugins").write_text("[].\n")
    (place / "rabbitmq.conf").write_text(f"listeners.tcp.1 = 127.0.0.1:{port}\n")
    return {
        "PATH": path,
        "HOME": directory,  # Its cookie is made there.
        "RABBITMQ_NODENAME": f"omnid-{port}@localhost",
        "RABBITMQ_DIST_PORT": str(free_port()),
        "ERL_EPMD_PORT": str(free_port()),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_MNESIA_BASE": str(place / "data"),
        "RABBITMQ_LOG_BASE": str(place / "log"),
        "RABBITMQ_CONFIG_FILE": str(place / "rabbitmq.conf"),
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(place / "plugins"),
        "RABBITMQ_PID_FILE": str(place / "pid"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none",
    }


def free_port() -> int:
    """Gives a port of loopback that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


class Broker(ABC):
    """One broker; what it has confirmed outlives its end."""

    label: str
    scheme: str
    user = ""
    package: str
    """What omnid needs to speak with it, as Python imports it."""
    extra: str
    """The extra of omnid's that brings it."""
    server: str
    """The program, and the name of its package where there is one."""

    def __init__(self, directory: str, environ: Mapping[str, str]) -> None:
        os.mkdir(directory, 0o700)
        self._directory = directory
        self._environ = dict(environ)
        self.port = free_port()
        self.password = secrets.token_hex(16)
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def missing(cls) -> str | None:
        """Says what isn't installed here, and how it is; None where nothing is missing."""
        if cls._program() is None:
            return f"{cls.label} isn't installed here: apt install {cls.server}, or brew install {cls.extra}"
        if importlib.util.find_spec(cls.package) is None:
            return f"the client of {cls.label} isn't installed here: pip install 'omnid[{cls.extra}]'"
        return None

    @classmethod
    @abstractmethod
    def _program(cls) -> str | None:
        """Finds the program that serves."""

    @abstractmethod
    def _spawn(self) -> None:
        """Starts it."""

    @property
    def pid(self) -> int:
        """The process that serves."""
        return 0 if self._process is None else self._process.pid

    def start(self) -> None:
        """Starts it, anew where it was killed, and waits until it takes connections."""
        self._spawn()
        until_s = time.monotonic() + START_S
        while not self._listens():
            if self._process is None or self._process.poll() is not None or time.monotonic() > until_s:
                raise Retryable("demo_failed", detail=f"{self.label} doesn't start: {self._said()}")
            time.sleep(_LOOK_S)

    def _run(self, argv: list[str]) -> None:
        with open(os.path.join(self._directory, "said"), "wb") as said:
            self._process = self._started(argv, said)

    def _started(self, argv: list[str], output: "IO[bytes] | int" = subprocess.DEVNULL) -> "subprocess.Popen[bytes]":
        """Starts a program, out of reach of the terminal's Ctrl-C: the demo ends it in its turn."""
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=self._directory,
            env=self._environ,
            start_new_session=True,
        )

    def _said(self) -> str:
        said = Path(self._directory, "said").read_text(errors="replace").strip()
        return said[-300:] or "it says nothing"

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def freeze(self) -> None:
        """Stops it: its connections stay, and nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Ends it with SIGKILL, where it runs."""
        if self._process is not None:
            for pid in {self.pid, self._process.pid} - {0}:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            self._process.wait(END_S)
            self._process = None

    def close(self) -> None:
        """Ends it, and all that was started for it."""
        self.kill()


class Redis(Broker):
    """Redis that syncs each write before it confirms it."""

    label, scheme, package, extra, server = "Redis", "redis", "redis", "redis", "redis-server"

    @classmethod
    def _program(cls) -> str | None:
        return shutil.which("redis-server")

    def _spawn(self) -> None:
        # Not in the command line, where every user of the machine could read it.
        path = os.path.join(self._directory, "redis.conf")
        with open(path, "w", encoding="ascii", opener=_private) as file:
            file.write(f"requirepass {self.password}\n")
        program, *options = redis_argv(self._directory, self.port)
        self._run([program, path, *options])


class RabbitMQ(Broker):
    """A RabbitMQ of one node."""

    label, scheme, package, extra, server = "RabbitMQ", "amqp", "aio_pika", "rabbitmq", "rabbitmq-server"
    user = "omnid"

    def __init__(self, directory: str, environ: Mapping[str, str]) -> None:
        super().__init__(directory, environ)
        self._environ = rabbitmq_environ(directory, self.port, environ.get("PATH", os.defpath))
        with open(os.path.join(directory, "rabbitmq.conf"), "a", encoding="ascii", opener=_private) as file:
            file.write(f"default_user = {self.user}\ndefault_pass = {self.password}\n")
        self._epmd: subprocess.Popen[bytes] | None = None

    @classmethod
    def _program(cls) -> str | None:
        return rabbitmq_program("rabbitmq-server")

    def _spawn(self) -> None:
        mapper, server = epmd(), self._program()
        if self._epmd is None and mapper is not None:
            self._epmd = self._started([mapper])
        Path(self._directory, "pid").unlink(missing_ok=True)
        self._run([server or self.server])

    @property
    def pid(self) -> int:
        """See `Broker.pid`: what was started is a shell, which may not be it."""
        try:
            return int(Path(self._directory, "pid").read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            return super().pid

    def close(self) -> None:
        """See `Broker.close`."""
        super().close()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait(END_S)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


BROKERS: Mapping[str, type[Broker]] = {"redis": Redis, "rabbitmq": RabbitMQ}
