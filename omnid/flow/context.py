"""What the parts of the flow share: the store, the clock, the config in use, the executors, and their bells."""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Protocol

import anyio

from omnid import platform
from omnid.clock import Clock
from omnid.executor.interface import Executor
from omnid.flow.fleet import Fleet
from omnid.flow.modes import Modes
from omnid.flow.turned import Turned
from omnid.log import Logger
from omnid.model import Gate, Problem
from omnid.route.budget import Budget
from omnid.route.router import Facts
from omnid.route.rules import Rules
from omnid.route.ways import way_of
from omnid.settings import Config
from omnid.store.interface import Store

CANCELS_MAX = 1_000
TROUBLE_S_MAX = 60.0


class Bell:
    """Wakes one waiter; rings that nobody waits for are kept as one."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def ring(self) -> None:
        """Wakes the waiter, now or when it next waits."""
        self._event.set()

    async def wait(self) -> None:
        """Waits for a ring since the last wait."""
        await self._event.wait()
        self._event = anyio.Event()


class Watch:
    """Tells those who wait for a task that something about it has changed."""

    def __init__(self) -> None:
        self._events: dict[str, tuple[anyio.Event, int]] = {}

    def event(self, task_id: str) -> anyio.Event:
        """Gives the event of the task's next change: ask before you look at the task, then wait, then `forget`."""
        event, holders = self._events.get(task_id) or (anyio.Event(), 0)
        self._events[task_id] = event, holders + 1
        return event

    def tell(self, task_ids: Iterable[str]) -> None:
        """Wakes all who wait for these tasks."""
        for task_id in task_ids:
            held = self._events.pop(task_id, None)
            if held is not None:
                held[0].set()

    def forget(self, task_id: str, event: anyio.Event) -> None:
        """Lets go of an event; the last one to do so ends it."""
        held = self._events.get(task_id)
        if held is not None and held[0] is event:
            if held[1] == 1:
                del self._events[task_id]
            else:
                self._events[task_id] = event, held[1] - 1


class Alarms:
    """Times at which loops of the daemon want to be woken; the one timer keeps them."""

    def __init__(self, timer: Bell) -> None:
        self._timer = timer
        self._times: dict[str, tuple[int, Bell]] = {}

    def set(self, name: str, at_ms: int, bell: Bell) -> None:
        """Has the bell rung at a time; a name has one alarm, the last that was set."""
        self._times[name] = at_ms, bell
        self._timer.ring()

    def drop(self, name: str) -> None:
        """Forgets an alarm, if there is one."""
        self._times.pop(name, None)

    def next_ms(self) -> int | None:
        """Gives the time of the next alarm."""
        return min((at_ms for at_ms, _ in self._times.values()), default=None)

    def ring_due(self, now_ms: int | None) -> None:
        """Rings what is due by `now_ms` (None: all of them), and forgets it."""
        due = [name for name, (at_ms, _) in self._times.items() if now_ms is None or at_ms <= now_ms]
        for name in due:
            self._times.pop(name)[1].ring()


class Spool(Protocol):
    """The part of the attempts' spool that the flow uses; see `executor.spool` and `executor.supervised`."""

    async def attempts(self) -> list[str]:
        """Gives the ids of the attempts that have a directory."""
        ...

    async def forget_control_files(self, attempt_id: str) -> None:
        """Removes an ended attempt's control files; its output stays."""
        ...

    async def remove(self, attempt_id: str) -> None:
        """Removes everything that is left of an attempt."""
        ...

    async def shrink(self, total_bytes_max: int, keep: frozenset[str], before: str) -> list[str]:
        """Removes the oldest outputs of ids below `before` until the rest fits; gives the ids whose output went."""
        ...

    async def read(self, attempt_id: str, offset_bytes: int, bytes_max: int) -> bytes:
        """Reads a piece of an attempt's output; empty where there is no more (yet)."""
        ...

    async def size_bytes(self, attempt_id: str) -> int:
        """Gives how much an attempt has printed."""
        ...

    async def excerpt(self, attempt_id: str, *, check: bool = False) -> str:
        """Gives head and tail of what the attempt (or its check) has printed."""
        ...


class Context:
    """Made once by the daemon and handed to every part of the flow. `config` is replaced whole on a reload."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        log: Logger,
        config: Config,
        executors: Mapping[str, Executor],
        spool: Spool,
        set_aside: Callable[[str], Awaitable[None]],
    ) -> None:
        self.store = store
        self.clock = clock
        self.log = log
        self.config = config
        self.fleet = Fleet(clock)
        """The runners on other hosts."""
        self.take_executors(executors)
        self.shut: Callable[[], Mapping[str, Gate]] = lambda: MappingProxyType({})
        """Gives the closed gates by what they close; `Gates` sets it."""
        self.took: Callable[[Turned], None] = lambda _: None
        """Follows what a committed transaction did to gates and tasks; `Gates` sets it."""
        self.spool = spool
        self.set_aside = set_aside
        """Ends an attempt that the journal doesn't know, and moves its files away."""
        self.modes = Modes(lambda: self.config, clock)
        self.dispatch = Bell()
        self.timer = Bell()
        self.failover = Bell()
        self.alarms = Alarms(self.timer)
        self.activity = Bell()
        """Rings when attempts begin and when they end."""
        self.watch = Watch()
        self.running: dict[str, str] = {}
        """Open attempts of this daemon: attempt id -> executor."""
        self.active: dict[str, Executor] = {}
        """The executors that work on them; after a reload of the config these may be others than `executors`."""
        self.unwritten: dict[str, Problem] = {}
        """Attempts that have ended while the store can't take their result, and why it can't."""
        self.unclear: dict[str, Problem] = {}
        """Attempts of an earlier daemon of which nobody can tell yet what became, and why."""
        self.may_ask: set[str] = set()
        """Attempts one of which asks, while it isn't known which, so that nobody is asked yet."""
        self.damage: list[Problem] = []
        """What a check of the database found at the start, a table each."""
        self.channel_problems: list[Problem] = []
        """What was wrong with channels when they were last asked."""
        self.preset_problems: list[Problem] = []
        """Presets of the config that could not be taken, because a schedule has their name."""
        self._cancel_asked: dict[str, None] = {}
        self._retiring: dict[Executor, anyio.Event] = {}
        self.paused_starts = True
        """True until recovery is done, and again while the daemon stops: nothing starts then."""

    def take_executors(self, executors: Mapping[str, Executor]) -> None:
        """Sets the executors that new attempts get, and what follows from them and the config."""
        self.executors = executors
        self.fleet.configure(self.config.remote)
        sections = self.config.executors()
        self.ways = {name: way_of(executor.kind, sections.get(name)) for name, executor in executors.items()}
        self.rules = Rules.made(self.config.rule, models=bool(self.config.channel))
        self.zone = self.store.zone = platform.zone(self.config.daemon.zone)
        self._budget: Budget | None = None

    @property
    def budget(self) -> Budget:
        """The money part of the config in use."""
        if self._budget is None or self._budget.config is not self.config:
            self._budget = Budget(self.config, {name: executor.kind for name, executor in self.executors.items()})
        return self._budget

    @property
    def end_name(self) -> str:
        """What this daemon is called on links: a name that stays, and that no other daemon on a broker has."""
        return self.config.daemon.name or f"omnid-{self.store.node.rpartition('-')[2]}"

    def facts(self) -> Facts:
        """Gives what the router decides on now."""
        return Facts(self.ways, self.rules, self.clock.wall_ms(), self.zone, self.shut())

    def ask_cancel(self, attempt_id: str) -> None:
        """Remembers that an attempt is to end, for the moment before its executor knows it; bounded."""
        self._cancel_asked[attempt_id] = None
        if len(self._cancel_asked) > CANCELS_MAX:
            del self._cancel_asked[next(iter(self._cancel_asked))]

    def cancel_was_asked(self, attempt_id: str) -> bool:
        """Tells whether the attempt is to end."""
        return attempt_id in self._cancel_asked

    def take_on(self, attempt_id: str, executor: str) -> None:
        """Counts an attempt among those that run."""
        self.running[attempt_id] = executor
        self.activity.ring()

    def let_go(self, attempt_id: str) -> None:
        """Forgets an attempt that has ended."""
        self.running.pop(attempt_id, None)
        self.activity.ring()
        self.active.pop(attempt_id, None)
        self.unwritten.pop(attempt_id, None)
        self.unclear.pop(attempt_id, None)
        self.may_ask.discard(attempt_id)
        self._cancel_asked.pop(attempt_id, None)
        if self._retiring:
            self._tell_retired()

    async def out_of_use(self, executor: Executor) -> None:
        """Waits until no attempt is left on an executor that gets no new ones."""
        self._retiring[executor] = unused = anyio.Event()
        try:
            self._tell_retired()
            await unused.wait()
        finally:
            self._retiring.pop(executor, None)

    def _tell_retired(self) -> None:
        used = set(self.active.values())
        for executor, unused in self._retiring.items():
            if executor not in used:
                unused.set()

    def running_by_executor(self) -> Counter[str]:
        """Counts the open attempts by executor, those on runners elsewhere too."""
        return Counter(self.running.values()) + self.fleet.running_by_executor()

    def trouble(self) -> Problem | None:
        """Gives why nothing can be written just now; what is tried again and again keeps this up to date."""
        trouble = self.store.trouble
        fresh = trouble is not None and self.clock.monotonic_s() - trouble.at_s < TROUBLE_S_MAX
        return trouble.problem if trouble is not None and fresh else None

    def wake(self) -> None:
        """Lets the dispatcher and the timer look again."""
        self.dispatch.ring()
        self.timer.ring()
