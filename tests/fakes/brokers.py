"""Real brokers for tests: started on free ports in a directory of their own, killed, frozen, and ended with them."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omnid.ctl.demo_broker import epmd, free_port, rabbitmq_environ, rabbitmq_program, redis_argv

START_S = 90.0
LOOK_S = 0.02
PASSWORD = "a-password"


def until(condition: Callable[[], bool]) -> None:
    """Waits until it holds: a server tells nobody of what it becomes."""
    end_s = time.monotonic() + START_S
    while not condition():
        assert time.monotonic() < end_s, "it stays as it is"
        time.sleep(LOOK_S)


def certificate(directory: Path) -> tuple[Path, Path]:
    """Makes a certificate for localhost, and its key."""
    key, made = directory / "key.pem", directory / "cert.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    argv += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*argv, "-keyout", str(key), "-out", str(made)], check=True, capture_output=True, timeout=60)
    key.chmod(0o644)
    return key, made


class Broker:
    """One broker; `start` returns when it takes connections, and it keeps its data until the tests end."""

    scheme: str
    user = ""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.tls_port = free_port()
        self.key, self.certificate = certificate(directory)
        self.said = directory / "said"
        self.process: subprocess.Popen[bytes] | None = None
        self.password = PASSWORD
        self._frozen = False

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def tls_url(self) -> str:
        return f"{self.scheme}s://localhost:{self.tls_port}"

    def start(self) -> None:
        """Starts it, anew where it was killed."""
        self._spawn()
        end_s = time.monotonic() + START_S
        while not self._answers():
            if self.process is None or self.process.poll() is not None or time.monotonic() > end_s:
                raise AssertionError(f"the broker doesn't start: {self.said.read_text()[-2000:]}")
            time.sleep(LOOK_S)

    def kill(self) -> None:
        """Ends it with SIGKILL, as a power cut does."""
        if self.process is not None:
            self.thaw()
            os.kill(self.pid, signal.SIGKILL)
            self.process.wait(30)
            self.process = None

    def freeze(self) -> None:
        """Lets it take connections and answer nothing."""
        self._frozen = True
        os.kill(self.pid, signal.SIGSTOP)
        until(lambda: all(_stopped(task) for task in Path(f"/proc/{self.pid}/task").iterdir()))

    def thaw(self) -> None:
        if self._frozen:
            self._frozen = False
            os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """The process that serves."""
        assert self.process is not None
        return self.process.pid

    def _run(self, argv: Sequence[str], environ: dict[str, str] | None = None) -> None:
        with self.said.open("ab") as said:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said, cwd=self.directory, env=environ
            )

    def _spawn(self) -> None:
        raise NotImplementedError

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def set_password(self, password: str) -> None:
        """Changes the password, and drops those who are connected."""
        raise NotImplementedError

    def fill(self) -> None:
        """Has it think that it is full."""
        raise NotImplementedError

    def clear(self) -> None:
        """Has it think that there is room again."""
        raise NotImplementedError

    async def put(self, name: str, data: bytes) -> None:
        """Gives an end something as another program would."""
        raise NotImplementedError

    async def dead(self, name: str) -> list[bytes]:
        """Gives what an end has set aside; the list is taken along."""
        raise NotImplementedError

    async def held(self, name: str) -> int:
        """Gives how many messages for an end the broker keeps."""
        raise NotImplementedError


class Redis(Broker):
    scheme = "redis"
    through: Sequence[str] = ()
    """The command that runs it somewhere else, and becomes it."""
    settings: Sequence[str] = ()
    """What it is started with besides; of two of one name the later counts."""

    @property
    def tls_url(self) -> str:
        return f"rediss://localhost:{self.tls_port}"

    def _spawn(self) -> None:
        argv = [*self.through, *redis_argv(str(self.directory), self.port), "--requirepass", self.password]
        argv += ["--tls-port", str(self.tls_port), "--tls-auth-clients", "no", "--tls-ca-cert-file"]
        argv += [str(self.certificate), "--tls-cert-file", str(self.certificate), "--tls-key-file", str(self.key)]
        self._run([*argv, *self.settings])

    def _answers(self) -> bool:
        from redis.exceptions import RedisError

        try:
            with self.client() as client:
                return bool(client.ping())
        except RedisError:
            return False

    def client(self) -> Any:
        from redis import Redis as Client

        return Client(port=self.port, password=self.password, socket_timeout=30, protocol=2)

    def set_password(self, password: str) -> None:
        with self.client() as client:
            client.config_set("requirepass", password)
            client.client_kill_filter(_type="normal", skipme=True)
        self.password = password

    def fill(self) -> None:
        with self.client() as client:
            client.config_set("maxmemory", 1)

    def clear(self) -> None:
        with self.client() as client:
            client.config_set("maxmemory", 0)

    async def put(self, name: str, data: bytes) -> None:
        with self.client() as client:
            client.xadd(f"omnid:{{{name}}}:in", {"m": data})

    async def dead(self, name: str) -> list[bytes]:
        key = f"omnid:{{{name}}}:dead"
        with self.client() as client:
            found = client.xrange(key)
            client.delete(key)
        assert all(fields[b"why"] for _, fields in found)
        return [fields.get(b"m", b"") for _, fields in found]

    async def held(self, name: str) -> int:
        with self.client() as client:
            return int(client.xlen(f"omnid:{{{name}}}:in"))


class RabbitMQ(Broker):
    scheme = "amqp"
    user = "guest"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.password = "guest"
        self._epmd: subprocess.Popen[bytes] | None = None
        self._environ = rabbitmq_environ(str(directory), self.port, os.environ["PATH"])
        with (directory / "rabbitmq.conf").open("a") as file:
            file.write(
                f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}\n"
                f"ssl_options.cacertfile = {self.certificate}\n"
                f"ssl_options.certfile = {self.certificate}\n"
                f"ssl_options.keyfile = {self.key}\n"
            )

    def _spawn(self) -> None:
        if self._epmd is None:
            # The server would start one that outlives it.
            self._epmd = subprocess.Popen([epmd() or "epmd"], env=self._environ, stdin=subprocess.DEVNULL)
        (self.directory / "pid").unlink(missing_ok=True)
        self._run([rabbitmq_program("rabbitmq-server") or "rabbitmq-server"], self._environ)

    @property
    def pid(self) -> int:
        return int((self.directory / "pid").read_text())

    def kill(self) -> None:
        if self.process is not None and not (self.directory / "pid").exists():
            self.process.kill()
            self.process.wait(30)
            self.process = None
        super().kill()

    def close(self) -> None:
        super().close()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait(30)

    def set_password(self, password: str) -> None:
        self._control("change_password", self.user, password)
        self._control("close_all_connections", "test")
        self.password = password

    def fill(self) -> None:
        self._control("set_disk_free_limit", "900000GB")

    def clear(self) -> None:
        self._control("set_disk_free_limit", "1MB")

    def _control(self, *argv: str) -> None:
        program = rabbitmq_program("rabbitmqctl") or "rabbitmqctl"
        subprocess.run([program, *argv], env=self._environ, check=True, capture_output=True, timeout=60)

    async def _channel(self) -> Any:
        import aio_pika

        connection = await aio_pika.connect(port=self.port, login=self.user, password=self.password)
        return connection, await connection.channel()

    async def put(self, name: str, data: bytes) -> None:
        import aio_pika

        connection, channel = await self._channel()
        async with connection:
            await channel.default_exchange.publish(aio_pika.Message(data), f"omnid.{name}")

    async def dead(self, name: str) -> list[bytes]:
        connection, channel = await self._channel()
        async with connection:
            queue = await channel.get_queue(f"omnid.{name}.dead", ensure=False)
            found: list[bytes] = []
            while (message := await queue.get(no_ack=True, fail=False)) is not None:
                found.append(message.body)
            return found

    async def held(self, name: str) -> int:
        connection, channel = await self._channel()
        async with connection:
            queue = await channel.declare_queue(f"omnid.{name}", passive=True)
            return int(queue.declaration_result.message_count)


def _stopped(task: Path) -> bool:
    return (task / "stat").read_text().rpartition(")")[2].split()[0] == "T"
