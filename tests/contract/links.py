"""What the suites of links share: brokers, ends, and the messages that go between them."""

import re
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any

import anyio
import pytest

from omnid.clock import SystemClock
from omnid.errors import OmnidError
from omnid.link.connection import Connection
from omnid.link.endpoint import Endpoint, Holder
from omnid.link.interface import Link, LinkDown, LinkFull, Poison, Received
from omnid.link.message import COMMANDS, RESULTS, Codec
from omnid.link.rabbitmq import RabbitLink
from omnid.link.redis import RedisLink
from omnid.log import Log
from omnid.model import Command, Result, Work
from omnid.settings_links import Link as Section
from tests.fakes.brokers import Broker, RabbitMQ, Redis

KINDS: dict[str, tuple[type[Broker], type[RedisLink] | type[RabbitLink]]] = {
    "redis": (Redis, RedisLink),
    "rabbitmq": (RabbitMQ, RabbitLink),
}
WAIT_S = 60.0
PING_S = 0.5


def command(number: int, **work: Any) -> Command:
    return Command(f"a{number}", f"i{number}", 1, f"t{number}", "command", Work(**{"argv": ("true",), **work}), 1.0)


def result(number: int) -> Result:
    return Result(f"a{number}", f"i{number}", 1, "success", output="ß ✓")


class Kit:
    """One kind of broker, and ends at it."""

    def __init__(self, kind: str, broker: Broker, name: str) -> None:
        self.kind = kind
        self.broker = broker
        self.runner_name, self.daemon_name = f"r-{name}", f"d-{name}"
        self.logged = StringIO()
        self.log = Log(SystemClock(), lambda text: text, stream=self.logged).logger()

    def runner(self, **fields: Any) -> Link:
        """An end that takes commands."""
        return self.end(self.runner_name, COMMANDS, **fields)

    def daemon(self, **fields: Any) -> Link:
        """An end that takes results."""
        return self.end(self.daemon_name, RESULTS, **fields)

    def end(self, name: str, takes: Any, *, key: str = "", **fields: Any) -> Link:
        """An end; those of one kit count as the same that comes back."""
        endpoint = Endpoint(
            Codec("cable", name, takes, key),
            self.broker.url,
            self.broker.user,
            self.broker.password,
            holder=Holder("kit", "this test"),
        )._replace(**fields)
        return KINDS[self.kind][1](endpoint, self.log)


class Watched:
    """A connection of a runner, and what is told of it."""

    def __init__(self, kit: Kit, timeout_s: float = 10.0) -> None:
        self.kit = kit
        self.timeout_s = timeout_s
        self.changed = anyio.Event()
        section = Section(
            name="cable", url=kit.broker.url, retry_base_s=0.1, retry_max_s=0.5, ping_every_s=PING_S, stable_s=0.1
        )
        self.connection = Connection(section, self._dial, SystemClock(), kit.log, self._tell)

    async def _dial(self) -> Any:
        return self.kit.runner(timeout_s=self.timeout_s, password=self.kit.broker.password)

    def _tell(self) -> None:
        self.changed.set()

    async def until(self, up: bool) -> float:
        """Waits until it is up, or down; gives how long that took."""
        began_s = time.monotonic()
        with anyio.fail_after(WAIT_S):
            while (self.connection.problem is None) != up:
                self.changed = anyio.Event()
                await self.changed.wait()
        return time.monotonic() - began_s

    async def until_says(self, what: str) -> None:
        """Waits until it is down, and says so as the reason."""
        with anyio.fail_after(WAIT_S):
            while (problem := self.connection.problem) is None or what not in problem.what:
                self.changed = anyio.Event()
                await self.changed.wait()

    def lines(self, event: str) -> int:
        return self.kit.logged.getvalue().count(f'"event":"{event}"')

    async def during(self, do: Callable[[], Awaitable[None]]) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self.connection.run)
            await self.until(up=True)
            await do()
            group.cancel_scope.cancel()


def kit_of(request: pytest.FixtureRequest, brokers: Callable[[str], Broker]) -> Kit:
    """Gives the kit of the parameter's broker; its ends are named after the test."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.originalname.removeprefix("test_"))[:40].strip("-")
    return Kit(request.param, brokers(request.param), name)


def started(kind: str, directory: Path) -> Broker:
    broker = KINDS[kind][0](directory)
    try:
        broker.start()
    except BaseException:
        broker.close()
        raise
    return broker


async def take(link: Any, count: int) -> list[Received]:
    """Receives that many messages, without acknowledging them."""
    taken: list[Received] = []
    with anyio.fail_after(WAIT_S):
        while len(taken) < count:
            taken += await link.receive()
    return taken


def names(received: Sequence[Received]) -> list[str]:
    return [one.message.attempt_id for one in received]


async def sifted(link: Any, received: Sequence[Received]) -> list[Received]:
    """Refuses the poison of what has come, where the broker takes that now, and gives the messages."""
    for one in received:
        if isinstance(one.message, Poison):
            with suppress(LinkFull):
                await link.refuse(one, one.message.why)
    return [one for one in received if not isinstance(one.message, Poison)]


async def until_ping(link: Link, kind: type[LinkDown] | None) -> None:
    """Pings until it says so: a broker finds out in its own time that it is full, or not any more."""
    with anyio.fail_after(WAIT_S):
        while (error := await pinged(link)) is None or type(error) is not kind:
            if error is kind:
                return
            assert isinstance(error, LinkFull | None)


async def refused(link: Link) -> OmnidError:
    """Dials in vain; gives why."""
    with pytest.raises(OmnidError) as caught:
        async with link:
            pass
    return caught.value


async def pinged(link: Link) -> LinkDown | None:
    try:
        await link.ping()
    except LinkDown as error:
        return error
    return None


async def occupy(kit: Kit, name: str) -> None:
    """Puts something of another program where the messages to an end go."""
    if kit.kind == "redis":
        with kit.broker.client() as client:
            client.set(f"omnid:{{{name}}}:in", "mine")
    else:
        connection, channel = await kit.broker._channel()
        async with connection:
            await channel.declare_queue(f"omnid.{name}", durable=True)
