"""A runner of another host over a link in memory that a test holds the other end of."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from omnid.errors import Retryable
from omnid.executor.interface import Found, Ports
from omnid.flow.keep import keep
from omnid.flow.remote import Place, Remote
from omnid.link.interface import LinkDown, Message, Received
from omnid.model import Command, Work
from omnid.store import outbox
from omnid.store.ledger import Ledger
from tests.fakes.clock import FakeClock
from tests.fakes.executor import InProcessExecutor
from tests.fakes.world import World


class Cable:
    """A link in the hands of the test."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Message]] = []
        self.acked: list[Any] = []
        self.refused: list[Any] = []
        self.down = self.nameless = False
        self._come: list[Received] = []
        self._filled = anyio.Event()

    def bring(self, *messages: Message, tag: Any = None, sender: str = "home") -> None:
        self._come += [Received(message, tag, sender) for message in messages]
        self._filled.set()

    def _fail(self) -> None:
        if self.down:
            raise LinkDown("link_down", link="cable", detail="down")

    async def keep_name(self) -> None:
        await checkpoint()
        if self.nameless:
            raise LinkDown("name_taken", name="r", link="cable", holder="elsewhere")

    async def send(self, to: str, batch: Sequence[Message]) -> None:
        self._fail()
        self.sent += [(to, message) for message in batch]

    async def receive(self) -> list[Received]:
        while not self._come:
            self._filled = anyio.Event()
            await self._filled.wait()
        came, self._come = self._come, []
        return came

    async def ack(self, received: Sequence[Received]) -> None:
        self._fail()
        self.acked += [one.tag or key(one.message) for one in received]

    async def refuse(self, received: Received, why: str) -> None:
        self._fail()
        self.refused.append(key(received.message))


def key(message: Message) -> Any:
    return getattr(message, "attempt_id", type(message).__name__)


def command(number: int, executor: str = "command") -> Command:
    return Command(f"a{number}", f"i{number}", 1, f"t{number}", executor, Work(argv=(str(number),)), 5.0)


class Deaf(InProcessExecutor):
    """An executor that hears no cancel (`deaf`), or fails with it (`broken`); an earlier attempt of it never ran."""

    deaf = broken = False

    async def recover(self, command: Command, ports: Ports) -> Found:
        return Found.NEVER_RAN

    async def cancel(self, attempt_id: str) -> None:
        if self.broken:
            raise OSError("the pipe is gone")
        if not self.deaf:
            await super().cancel(attempt_id)


class Bench:
    """A runner with two slots, whose commands end when the test says so."""

    def __init__(self, world: World, clock: FakeClock) -> None:
        self.world, self.clock = world, clock
        self.cable = Cable()
        self.started: list[str] = []
        self.gates: dict[str, anyio.Event] = {}
        self.down = False
        executors = {name: Deaf(name, self._do) for name in ("command", "single")}
        executors["single"].concurrency = 1
        self.executor = executors["command"]
        world.context.take_executors(executors)
        self.again()

    def again(self) -> None:
        """Has the next runner begin where the last has ended."""
        self.ledger = Ledger(self.world.store, self.world.context.log)
        self.cable.acked.clear()
        self.remote = Remote(self.world.context, self.ledger, self.cable, Place(2, ("gpu",), 5.0))

    async def _do(self, argv: tuple[str, ...]) -> Any:
        if self.down:
            raise Retryable("executor_down", executor="command", detail="no")
        self.started.append(argv[0])
        await self.gates.setdefault(argv[0], anyio.Event()).wait()
        return "success", b"done"

    def let(self, number: int) -> None:
        self.gates.setdefault(str(number), anyio.Event()).set()

    @asynccontextmanager
    async def runs(self) -> AsyncIterator[None]:
        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                await self.remote.recover(group)
                for loop in (self.remote.take, lambda: self.remote.start(group), self.remote.beat):
                    group.start_soon(partial(keep, "loop", loop, clock=self.clock, log=self.world.context.log))
                yield
                group.cancel_scope.cancel()

    async def owed(self) -> list[tuple[str, str]]:
        rows = await self.world.store.read(lambda reader: outbox.peek(reader, "home", 100))
        return [(row.body["attempt_id"], row.body["outcome"]) for row in rows]
