"""The redis.conf of docs/links.md, tried by a real server: it keeps what was confirmed, and its user can do all."""

import re
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from redis import Redis as Client

from omnid.link.interface import LinkFull
from tests.contract.links import Kit, command, names, take, until_ping
from tests.fakes.brokers import Redis

pytestmark = [pytest.mark.parametrize("anyio_backend", ["asyncio"]), pytest.mark.anyio]

DOCS = Path(__file__).parents[2] / "docs" / "links.md"
HALF = b"*5\r\n$4\r\nXADD\r\n$20\r\nomnid:{r-"
"""What a power cut leaves of an entry."""
CHUNK = "x" * 20_000
CHANGES = [("", "", 1), ("user default off ~* +@all", "user default off", 0), (" +acl|dryrun", "", 0)]
"""What is changed in these settings, and how many transactions are made of one batch then."""


class OfTheDocs(Redis):
    """A server with these settings and no others, but for its place, its port and its password."""

    user = "omnid"

    def write(self, old: str, new: str) -> None:
        """Writes its file, with this change."""
        (said,) = re.findall(r"^```conf\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        for there, here in (
            ("0.0.0.0", "127.0.0.1"),
            ("6379", self.tls_port),
            ("/etc/redis/broker.pem", self.certificate),
            ("/etc/redis/broker.key", self.key),
            (">PASSWORD", f">{self.password}"),
            *([(old, new)] if old else []),
        ):
            assert said.count(there) == 1
            said = said.replace(there, str(here))
        (self.directory / "redis.conf").write_text(f"{said}\ndir {self.directory}\n", encoding="utf-8")

    def _spawn(self) -> None:
        self._run(["redis-server", str(self.directory / "redis.conf"), *self.settings])

    def client(self) -> Client:
        place: dict[str, Any] = {"port": self.tls_port, "ssl": True, "ssl_ca_certs": str(self.certificate)}
        return Client("localhost", username=self.user, password=self.password, protocol=2, **place)

    @property
    def log(self) -> Path:
        """Where it writes what it confirms."""
        (log,) = (self.directory / "appendonlydir").glob("*.incr.aof")
        return log


@pytest.mark.parametrize(("old", "new", "transactions"), CHANGES, ids=["as-they-are", "no-rights", "not-asked"])
async def test_the_settings_of_the_docs_keep_what_was_confirmed(
    tmp_path: Path, old: str, new: str, transactions: int
) -> None:
    broker = OfTheDocs(tmp_path)
    broker.write(old, new)
    kit, fields = Kit("redis", broker, "docs"), {"url": f"{broker.tls_url}/0", "ca": str(broker.certificate)}
    try:
        broker.start()
        async with kit.daemon(**fields) as daemon, kit.runner(**fields) as runner:
            await daemon.send(kit.runner_name, [command(1), command(2)])
            await daemon.send(kit.runner_name, [command(3)])
            # A transaction is dropped at the start where the user default has no right to it.
            assert broker.log.read_bytes().count(b"MULTI") == transactions
            assert names(await take(runner, 3)) == ["a1", "a2", "a3"]
            broker.kill()
        with broker.log.open("ab") as file:
            file.write(HALF)
        broker.settings = ("--maxmemory", "4mb")
        await anyio.to_thread.run_sync(broker.start)
        sent = 4
        async with kit.daemon(**fields) as daemon, kit.runner(**fields) as runner:
            with pytest.raises(LinkFull):
                while True:
                    await daemon.send(kit.runner_name, [command(sent, stdin=CHUNK)])
                    sent += 1
            received = await take(runner, sent - 1)
            assert names(received) == [f"a{number}" for number in range(1, sent)]
            await runner.ack(received[:-1])
            await until_ping(daemon, None)
            await runner.refuse(received[-1], "why")
            await daemon.send(kit.runner_name, [command(sent)])
            await runner.ack(await take(runner, 1))
    finally:
        broker.close()
    assert sent > 50
