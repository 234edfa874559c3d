"""The flow put together as `omnid.daemon` does it, over a simulated world; it is killed and started again."""

import os
import sys
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio
from msgspec import Struct

from omnid import settings as shapes
from omnid.api.methods import Api
from omnid.errors import Fatal, OmnidError
from omnid.flow.caller import Caller
from omnid.flow.context import Context
from omnid.flow.control import Cancelling
from omnid.flow.dispatcher import Dispatcher
from omnid.flow.gates import Gates
from omnid.flow.keep import keep
from omnid.flow.recovery import Recovery
from omnid.flow.results import Results
from omnid.flow.retention import Retention
from omnid.flow.runner import Runner
from omnid.flow.wakeup import Wakeup
from omnid.link.embedded import EmbeddedLink
from omnid.model import Result
from tests.sim.model import View
from tests.sim.store import SimStore
from tests.sim.world import SimSpool

if TYPE_CHECKING:
    from tests.sim.run import Sim

SLOTS_MAX = 3
TIMEOUT_S = 20.0
FINISHED_MAX = 12


class Reply:
    """The answer to one request; none of `value` and `error` is set where the daemon died first."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.value: Any = None
        self.error: OmnidError | None = None


class SimLog:
    """Puts what the flow logs into the trace; a fault that nobody expected is a violation."""

    def __init__(self, daemon: "SimDaemon") -> None:
        self._daemon = daemon

    def _say(self, event: str, **fields: Any) -> None:
        error = fields.get("exc_info")
        self._daemon.sim.trace(f"log {event} {fields.get('code') or fields.get('name') or fields.get('loop') or ''}")
        if isinstance(error, BaseException) and not self._daemon.dead:
            self._daemon.sim.fail(f"{event}: {error!r}", error)

    debug = info = warning = error = _say

    def exception(self, event: str, **fields: Any) -> None:
        self._say(event, **fields)
        if event != "executor_fault" and not self._daemon.dead:
            self._daemon.sim.fail(f"{event} {fields}", sys.exc_info()[1])


class SimDaemon:
    """One life of the daemon. `live` returns when it is killed or its disk breaks."""

    def __init__(self, sim: "Sim", path: Path) -> None:
        self.sim = sim
        self.dead = False
        self.ready = trio.Event()
        self.started_s = trio.current_time()
        self._scope = trio.CancelScope()
        self._replies: list[Reply] = []
        self._link = EmbeddedLink()
        spool = SimSpool(sim)
        log: Any = SimLog(self)
        self.store = SimStore(path, self)
        self.context = Context(
            store=self.store,
            clock=sim.clock,
            log=log,
            config=sim.settings(path.parent),
            executors={},
            spool=spool,
            set_aside=spool.set_aside,
        )
        self.context.take_executors(sim.executors(self))
        self.gates = Gates(self.context)
        self.results = Results(self.context, self.gates)
        self.cancelling = Cancelling(self.context)

    def view(self, begun: Iterable[str] = (), ended: Iterable[str] = ()) -> View:
        """Gives what the dispatcher decides on; `begun` and `ended` in the transaction in which it does."""
        context = getattr(self, "context", None)
        if context is None:
            return View({}, frozenset())
        running = Counter(context.running.values())
        running.update(begun)
        running.subtract(context.running[id] for id in ended if id in context.running)
        return View(dict(running), self.gates.closed())

    def kill(self, why: str) -> None:
        """Ends it as SIGKILL does: nothing more is written, and whoever waits for an answer gets none."""
        if not self.dead:
            self.dead = True
            self.sim.crashes += 1
            self.sim.trace(f"killed {why}")
            self.store.let_go()
            self._scope.cancel()

    async def live(self) -> None:
        try:
            with self._scope:
                await self._serve()
        except* OmnidError as group:
            self.dead = True
            self.sim.trace(f"ended by {_leaf(group)}")
            self.sim.crashes += 1
        finally:
            self.dead = True
            self._link.close()
            self.store.close()
            for reply in self._replies:
                reply.done.set()

    async def _serve(self) -> None:
        """The order of `omnid.daemon.Daemon._open`."""
        context = self.context
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self.store.serve)
            await self.gates.load()
            link = self._link
            runner = Runner(context, self.gates, self.results)
            recovery = Recovery(context, runner, self.results)
            async with trio.open_nursery() as work:
                self.work = work
                group: Any = work
                await recovery.run(group)
                context.paused_starts = False
                loops = {
                    "runner": partial(runner.run, group, link),
                    "dispatcher": Dispatcher(context, self.gates, link).run,
                    "wakeup": Wakeup(context, self.gates, self.cancelling).run,
                    "retention": partial(_clean_up, recovery, Retention(context)),
                }
                for name, loop in loops.items():
                    work.start_soon(partial(keep, name, loop, clock=context.clock, log=context.log))
                self.api = Api(context, self.gates, self.cancelling, _Host())
                self.ready.set()
                await trio.sleep_forever()

    def ask(self, caller: Caller, method: str, params: Struct) -> Reply:
        """Takes a request; its reply is done when it is answered or the daemon is dead."""
        reply = Reply()
        self._replies.append(reply)
        self.work.start_soon(self._answer, caller, method, params, reply)
        return reply

    async def _answer(self, caller: Caller, method: str, params: Struct, reply: Reply) -> None:
        try:
            value = await self.api.call(caller, method, params)
        except Fatal:
            raise
        except OmnidError as error:
            if not self.dead:
                reply.error = error
        except Exception as error:  # noqa: BLE001 - whatever else comes is a fault in omnid.
            if not self.dead:
                self.sim.fail(f"{method} raised {error!r}", error)
        else:
            if not self.dead:
                reply.value = value
        reply.done.set()

    def hear_again(self, result: Result) -> None:
        """A link brings a result that was given before."""
        self.work.start_soon(self._hear_again, result)

    async def _hear_again(self, result: Result) -> None:
        stale = self.sim.model.is_stale(result.task_id, result.number)
        self.sim.trace(f"result of {self.sim.name(result.attempt_id)} comes again: {result.outcome}")
        if await self.results.settle(result) and stale:
            self.sim.fail(f"a late result of {self.sim.name(result.attempt_id)} counted")


async def _clean_up(recovery: Recovery, retention: Retention) -> None:
    """As `omnid.daemon.Daemon._clean_up`."""
    await recovery.tidy()
    await retention.run()


class _Host:
    """See `api.methods.Host`; nothing here asks it."""

    started_at_ms = 0
    pid = os.getpid()


def _leaf(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return getattr(error, "code", repr(error))


def settings(directory: Path) -> shapes.Config:
    """Gives the config of a run: small limits, so that all of them are met."""
    return shapes.Config(
        state=shapes.State(dir=str(directory)),
        daemon=shapes.Daemon(slots_max=SLOTS_MAX),
        store=shapes.Store(free_bytes_min=1024),
        task=shapes.Task(timeout_s=TIMEOUT_S),
        retention=shapes.Retention(finished_max=FINISHED_MAX, kept_days_min=0, batch=5),
        retry=shapes.Retry(attempts_max=3, backoff_base_s=1.0, backoff_max_s=10.0),
        agents=shapes.Agents(allow=("safe",)),
    )
