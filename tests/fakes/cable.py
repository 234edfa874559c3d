"""A link in memory that a test holds the other end of, and the lines of a daemon over it."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import msgspec

from omnid.errors import Rejected
from omnid.flow.commands import runner_of
from omnid.flow.dispatcher import Dispatcher
from omnid.flow.drain import Drain
from omnid.flow.lines import Lines
from omnid.flow.recovery import Recovery
from omnid.flow.results import Results
from omnid.flow.runner import Runner
from omnid.link.embedded import EmbeddedLink
from omnid.link.interface import LinkDown, Message, Received
from omnid.model import Cancel, Command, Heartbeat, Problem, Task
from omnid.settings_links import Link, Remote
from tests.fakes.world import World

DOWN = Problem("link_down", "The link cable is down: no.", "", "")


class Cable:
    """A connection in the hands of the test; see `link.connection.Connection`."""

    def __init__(self, section: Link, changed: Callable[[], None], back: Callable[[float], None]) -> None:
        self.section = section
        self._back = back
        self.sent: list[tuple[str, Message]] = []
        self.acked: list[str] = []
        self.refused: list[str] = []
        self.problem: Problem | None = DOWN
        self.next_try_at_ms: int | None = None
        self.poison = "poison"
        """What is never sent: a command with that argument."""
        self.lose = False
        """Whether the next confirmation is lost."""
        self._changed = changed
        self._come: list[Received] = []
        self._bell = anyio.Event()
        self.told = anyio.Event()
        self.down_s: float | None = None

    def was_down(self, down_s: float) -> None:
        self.down_s = down_s

    async def run(self) -> None:
        await anyio.sleep_forever()

    @property
    def trouble(self) -> Problem | None:
        return self.problem

    def turn(self, problem: Problem | None) -> None:
        if problem is not None:
            self.down_s = self.down_s or 1.0
        elif self.down_s is not None:
            self._back(self.down_s)
            self.down_s = None
        self.problem = problem
        self._changed()

    def bring(self, sender: str, *messages: Message) -> None:
        self._come += [Received(message, None, sender) for message in messages]
        self._bell.set()

    async def send(self, to: str, batch: Sequence[Message]) -> None:
        if self.problem is not None:
            raise LinkDown("link_down", link="cable", detail="no")
        if any(isinstance(message, Command) and message.work.argv == (self.poison,) for message in batch):
            raise Rejected("message_refused", link="cable", detail="it is too large")
        self.sent += [(to, message) for message in batch]
        self._tell()
        if self.lose:
            self.lose = False
            self.turn(DOWN)
            raise LinkDown("link_down", link="cable", detail="the confirmation is lost")

    async def receive(self) -> list[Received]:
        while not self._come:
            self._bell = anyio.Event()
            await self._bell.wait()
        came, self._come = self._come, []
        return came

    async def ack(self, received: Sequence[Received]) -> None:
        self.acked += [getattr(one.message, "attempt_id", "beat") for one in received]
        self._tell()

    async def refuse(self, received: Received, why: str) -> None:
        self.refused.append(why)
        self._tell()

    def _tell(self) -> None:
        self.told.set()

    def commands(self, to: str = "a") -> list[Command]:
        return [message for name, message in self.sent if name == to and isinstance(message, Command)]

    def cancels(self) -> list[str]:
        return [message.attempt_id for _, message in self.sent if isinstance(message, Cancel)]

    async def until(self, holds: Callable[[], object]) -> None:
        """Waits for what something that is sent, acknowledged or refused brings about."""
        while not holds():
            self.told = anyio.Event()
            with anyio.move_on_after(0.02):
                await self.told.wait()


def beat(slots: int = 4, *executors: str, **fields: Any) -> Heartbeat:
    return Heartbeat("1", 1, slots, 0, 0.0, dict.fromkeys(executors or ("command", "safe"), slots), **fields)


class Bench:
    """A daemon's flow with two runners behind one cable."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.context = world.context
        for executor in world.context.executors.values():
            executor.takes_prompts = False
        self.config()
        self.results = Results(self.context, world.gates)
        self.cables: list[Cable] = []
        self.lines: Lines
        self.drain: Drain

    def config(self, *names: str, links: Sequence[str] = ("cable",), **fields: Any) -> None:
        world = self.world
        remotes = [
            Remote(name=name, link=links[0], executors=("command", "safe"), **fields) for name in names or ("a", "b")
        ]
        world.context.config = msgspec.structs.replace(
            world.context.config,
            link=tuple(Link(name=name, url="redis://127.0.0.1") for name in links),
            remote=tuple(remotes),
        )
        world.context.take_executors(world.context.executors)

    @property
    def cable(self) -> Cable:
        return self.cables[-1]

    def _connect(self, section: Link, changed: Callable[[], None], back: Callable[[float], None]) -> Any:
        self.cables.append(Cable(section, changed, back))
        return self.cables[-1]

    @asynccontextmanager
    async def runs(self, *, up: bool = True) -> AsyncIterator[None]:
        """Runs the loops of a daemon's start, with the cable up and nobody heard, or with a dial that failed."""
        context, gates = self.context, self.world.gates
        self.drain = Drain(context, lambda queue: self.lines.open(runner_of(queue) or ""))
        context.store.rung = self.drain.ring
        self.lines = Lines(context, gates, self.results, self._connect, self.drain)
        self.drain.caught_up = self.lines.caught_up
        dispatcher = Dispatcher(context, gates, EmbeddedLink())
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                await Recovery(context, Runner(context, gates, self.results), self.results).run(group)
                context.paused_starts = False
                for loop in (self.lines.run, self.lines.tend, dispatcher.run, partial(self.drain.run, group)):
                    group.start_soon(loop)
                await anyio.wait_all_tasks_blocked()
                self.cable.turn(None if up else DOWN)
                await anyio.wait_all_tasks_blocked()
                yield
                group.cancel_scope.cancel()

    async def sent(self, count: int, to: str = "a") -> list[Command]:
        """Waits until that many commands have gone to a runner, and all that follows is done."""
        await self.cable.until(lambda: len(self.cable.commands(to)) >= count)
        await anyio.wait_all_tasks_blocked()
        return self.cable.commands(to)

    async def task(self, task: Task) -> Task:
        return await self.world.task(task.id)

    async def ends(self, command: Command, outcome: Any = "success", sender: str = "a") -> Task:
        """Brings the result of a command, and waits until it is acknowledged."""
        self.cable.bring(sender, command.ended(outcome, None))
        await self.cable.until(lambda: command.attempt_id in self.cable.acked)
        await anyio.wait_all_tasks_blocked()
        return await self.world.task(command.task_id)
