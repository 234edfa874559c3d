"""The flow on a real journal, without a daemon around it: what unit tests of the flow and the store work on."""

from collections.abc import Callable, Mapping
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from omnid import config
from omnid.clock import Clock
from omnid.executor.interface import Executor
from omnid.executor.spool import Spool
from omnid.flow import control, intake
from omnid.flow.caller import Caller
from omnid.flow.context import Context
from omnid.flow.control import Cancelling
from omnid.flow.dispatcher import claim
from omnid.flow.gates import Gates
from omnid.flow.results import finish
from omnid.flow.retention import Retention
from omnid.flow.turned import Turned
from omnid.flow.wakeup import Wakeup
from omnid.log import Log
from omnid.model import Command, Result, Submit, Submitted, Task
from omnid.store import journal
from omnid.store.database import SqliteStore, StoreSettings
from omnid.store.interface import COLLECTIONS, Tx
from omnid.store.replay import Replica, apply_page, compare_page
from tests.fakes.executor import InProcessExecutor

T = TypeVar("T")
PERSON = Caller()
AGENT = Caller("agent", "claude")


async def nothing(argv: tuple[str, ...]) -> Any:
    return "success", b""


class World:
    """A journal, a context, and the steps of the flow as calls."""

    def __init__(self, path: Path, clock: Clock, environ: Mapping[str, str] | None = None) -> None:
        path.mkdir(exist_ok=True)
        home = {"HOME": str(path), "OMNID_STATE": str(path / "state"), **(environ or {})}
        (path / "state").mkdir(exist_ok=True)
        self.path = path
        self.clock = clock
        settings = config.load(home).config
        self.store = self._open()
        self.set_aside: list[str] = []
        self.logged = StringIO()
        executors: dict[str, Executor] = {
            "command": InProcessExecutor("command", nothing),
            "safe": InProcessExecutor("safe", nothing),
        }
        executors["safe"].idempotent = True
        self.context = Context(
            store=self.store,
            clock=clock,
            log=Log(clock, lambda text: text, stream=self.logged).logger(),
            config=settings,
            executors=executors,
            spool=Spool(path / "state" / "spool", settings.limits),
            set_aside=self._aside,
        )
        self.gates = Gates(self.context)

    def _open(self) -> SqliteStore:
        store = SqliteStore(self.path / "state" / "journal.db", self.clock, StoreSettings(inline=True))
        store._connection.pragma("synchronous", "off")  # Nobody pulls the plug here.
        return store

    async def restart(self) -> None:
        """Opens the journal anew, as the next daemon does."""
        self.store.close()
        self.store = self.context.store = self._open()
        await self.gates.load()

    def set(self, section: str, **values: Any) -> None:
        """Changes settings of one section of the config."""
        before = self.context.config
        part = msgspec.structs.replace(getattr(before, section), **values)
        self.context.config = msgspec.structs.replace(before, **{section: part})

    async def _aside(self, attempt_id: str) -> None:
        self.set_aside.append(attempt_id)

    async def write(self, fn: Callable[[Tx], T]) -> T:
        return await self.store.write(fn)

    async def submit(self, *asked: Submit, caller: Caller = PERSON) -> list[Submitted]:
        return await self.write(intake.plan(self.context, caller, asked))

    async def add(self, *argv: str, caller: Caller = PERSON, **fields: Any) -> Task:
        done = await self.submit(Submit(argv=argv or ("true",), **fields), caller=caller)
        return await self.task(done[0].id)

    async def task(self, id: str) -> Task:
        return await self.store.read(lambda reader: journal.need_task(reader, id))

    async def claim(self, slots: int = 8, **free: int) -> list[Command]:
        limits = free or dict.fromkeys(self.context.executors, slots)
        claimed = await self.write(lambda tx: claim(tx, self.context, free=limits, slots_free=slots))
        self.context.first_calls.update(claimed.calls)
        self.gates.took(claimed.turned)
        return claimed.commands

    async def finish(self, command: Command, outcome: Any, **fields: Any) -> list[str]:
        result = Result(command.attempt_id, command.task_id, command.number, outcome, **fields)
        turned = Turned.nothing()
        touched = await self.write(
            lambda tx: finish(
                tx,
                result=result,
                config=self.context.config,
                chance=self.clock.uniform,
                budget=self.context.budget,
                turned=turned,
            )
        )
        self.gates.took(turned)
        return touched

    async def control(self, ref: str, action: str, caller: Caller = PERSON, **fields: Any) -> control.Effect:
        return await self.write(control.order(self.context, caller, control.Order(ref, action, **fields)))

    async def wake(self) -> None:
        """Does what the timer would do now."""
        await Wakeup(self.context, self.gates, Cancelling(self.context)).work_off()

    async def retain(self) -> int:
        """Does a round of the retention; gives how many tasks went."""
        return await Retention(self.context).round()

    async def rows(self, sql: str, *args: Any) -> list[Any]:
        """Runs a query of the test's own on the tables."""
        return await self.store.read(lambda reader: list(reader.connection.execute(sql, args)))

    async def differences(self) -> list[str]:
        """Replays the whole log and compares it with the tables."""
        replica = Replica()
        found: list[str] = []
        last = await self.store.read(lambda reader: reader.one("last_seq"))
        assert last is not None
        while await self.store.read(lambda reader: apply_page(reader, replica, last[0])):
            pass
        replica.seq = last[0]
        for name in COLLECTIONS:
            after: int | None = 0
            while after is not None:
                at: int = after
                page, after = await self.store.read(lambda reader: compare_page(reader, replica, name, at))  # noqa: B023
                found += [f"{one.collection} {one.id} {one.detail}" for one in page]
        replica.close()
        return found

    def close(self) -> None:
        self.store.close()
