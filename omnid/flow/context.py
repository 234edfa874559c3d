"""What the parts of the flow share: the store, the clock, the config in use, the executors, and their bells."""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Protocol

import anyio

from omnid.clock import Clock
from omnid.executor.interface import Executor
from omnid.log import Logger
from omnid.settings import Config
from omnid.store.interface import Store

CANCELS_MAX = 1_000


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
        self.take_executors(executors)
        self.spool = spool
        self.set_aside = set_aside
        """Ends an attempt that the journal doesn't know, and moves its files away."""
        self.dispatch = Bell()
        self.timer = Bell()
        self.activity = Bell()
        """Rings when attempts begin and when they end."""
        self.watch = Watch()
        self.running: dict[str, str] = {}
        """Open attempts of this daemon: attempt id -> executor."""
        self.active: dict[str, Executor] = {}
        """The executors that work on them; after a reload of the config these may be others than `executors`."""
        self._cancel_asked: dict[str, None] = {}
        self.paused_starts = True
        """True until recovery is done, and again while the daemon stops: nothing starts then."""

    def take_executors(self, executors: Mapping[str, Executor]) -> None:
        """Sets the executors that new attempts get."""
        self.executors = executors
        self.kinds = {name: executor.kind for name, executor in executors.items()}
        self.prompted = frozenset(name for name, executor in executors.items() if executor.takes_prompts)

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
        self._cancel_asked.pop(attempt_id, None)

    def running_by_executor(self) -> Counter[str]:
        """Counts the open attempts by executor."""
        return Counter(self.running.values())

    def wake(self) -> None:
        """Lets the dispatcher and the timer look again."""
        self.dispatch.ring()
        self.timer.ring()
