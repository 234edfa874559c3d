"""A runner away from its daemon: takes commands from a link into its ledger, starts them, and owes their results.

A command is acknowledged once the ledger has it, and started only then; what waits for a slot is left at the broker.
"""

import os
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeVarTuple

import anyio
import msgspec
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from omnid import __version__
from omnid.errors import Retryable
from omnid.flow.backlog import Backlog
from omnid.flow.context import Bell, Context
from omnid.flow.fleet import WINDOW_OF_SLOTS
from omnid.flow.guard import guard
from omnid.flow.insist import insist
from omnid.flow.recovery import executor_for
from omnid.flow.runner import Runner, left, lost, unbegun
from omnid.flow.standings import Standings
from omnid.link.interface import LinkDown, Messenger, Poison, Received, Station
from omnid.model import Cancel, Command, Delivery, Heartbeat, Mark, Problem, Result, Watch, Work
from omnid.store.ledger import Begun, Ledger

Args = TypeVarTuple("Args")

HELD_MIN = 1_024
TOLD_MAX = 1_024
"""How many attempts a heartbeat names at most."""
NO_WORKSPACE = "none"
ATTEMPT_ID = re.compile(r"[0-9a-z][0-9a-z-]{0,63}")
"""It names a directory of the spool, and whoever can write to the broker may have chosen it."""
WATCHERS_MAX = 64
"""How many daemons are told how it is, because others send it nothing; and how many that only say they are some."""
WATCH_S_MAX = 3_600.0
HEARD_S_MAX = 2.0
"""How long a runner that leaves waits for its daemons to say that they have heard of it; some of them may be away."""
LINGER_S = 0.5
"""How long it waits then for what was on its way when they heard."""
BATCH_MAX = 64
SEND_S_MAX = 120.0


def held_max(slots: int) -> int:
    """Gives how many messages may wait for a slot in memory; the rest waits at the broker, cancels too.

    It is what all daemons send at once that hear of a runner, so that no cancel has to wait behind commands.
    """
    return max(HELD_MIN, WATCHERS_MAX * WINDOW_OF_SLOTS * slots)


class Owed:
    """Takes results into the ledger, and is the destination that they are drained to; see `runner.Settles`."""

    batch_max = BATCH_MAX
    timeout_s = SEND_S_MAX
    rings = True

    def __init__(self, context: Context, ledger: Ledger, messenger: Messenger, daemon: str = "") -> None:
        self._context = context
        self._ledger = ledger
        self._messenger = messenger
        self._daemon = daemon

    def to(self, daemon: str) -> "Owed":
        """Gives the destination of one daemon's results."""
        return Owed(self._context, self._ledger, self._messenger, daemon)

    async def settle(self, result: Result) -> bool:
        """See `runner.Settles`; while the ledger can't take it, it is tried again."""
        settle = insist(self._context, lambda: self._ledger.settle(result), "result_waits", attempt=result.attempt_id)
        return bool(await settle)

    def due_ms(self, batch: Sequence[Delivery], now_ms: int) -> int:  # noqa: ARG002 - it takes whatever comes.
        """See `Destination.due_ms`."""
        return now_ms

    async def send(self, batch: Sequence[Delivery]) -> None:
        """See `Destination.send`: while the link is down it fails at once, and its return rings."""
        await self._messenger.send(self._daemon, [msgspec.convert(one.body, Result) for one in batch])


class Place(NamedTuple):
    """What a runner offers."""

    slots: int
    labels: tuple[str, ...]
    beat_s: float


class Watcher(NamedTuple):
    """A daemon that is told how the runner is: until when (monotonic), and the token of its last watch."""

    until_s: float
    token: str


class Refused(NamedTuple):
    """What a runner has set aside since its start."""

    total: int = 0
    why: str | None = None
    """The last of it."""


class Held(NamedTuple):
    """A command that waits for a slot, and the messages that brought it: it may have come more than once."""

    begun: Begun
    came: list[Received]


class Remote:
    """Holds what has come and waits for a slot, and tells daemons that ask how the runner is."""

    def __init__(self, context: Context, ledger: Ledger, messenger: Station, place: Place) -> None:
        self._context = context
        self._ledger = ledger
        self._messenger = messenger
        self._place = place
        self._name = context.config.runner.name
        self.owed = Owed(context, ledger, messenger)
        self.standings = Standings(context)
        self.backlog = Backlog(context, messenger, self._name)
        self.runner = Runner(context, self.standings, self.owed, self.backlog.read)
        self._held: dict[str, Held] = {}
        """Commands without a slot, by attempt."""
        self._returning: dict[str, Command] = {}
        """What is to go back, by attempt: it is answered once the broker has let go of it."""
        self._room = anyio.Event()
        self._begins = anyio.Lock()
        """Held by whoever writes down that commands begin, or go back."""
        self._watchers: dict[str, Watcher] = {}
        """The daemons that are told how it is."""
        self._claimed: set[str] = set()
        """Those that were answered because a message said that it was theirs, without anybody vouching for it."""
        self._turned_away: dict[str, float] = {}
        """Those that have asked beyond `WATCHERS_MAX`, and until when they want to know (monotonic)."""
        self._asked = Bell()
        self._heard: set[str] = set()
        """The daemons that have heard that it leaves."""
        self._hears = Bell()
        self.refused = Refused()
        self.leaving = False
        self.idle = anyio.Event()
        """Set once it leaves and nothing runs any more."""
        self.given_back = 0
        """How many commands its daemons got back."""

    async def recover(self, group: TaskGroup) -> int:
        """Hands what an earlier process had begun to the runner, which adopts or settles it; gives how many.

        What never ran begins once all has come that lay at the broker: somebody may have decided otherwise meanwhile.
        """
        open_ = await self._ledger.open()
        for one in open_:
            command = msgspec.structs.replace(one.begun.command, recover=True)
            if one.back:
                self._returning[command.attempt_id] = command
                continue
            if one.cancelled:
                self._context.ask_cancel(command.attempt_id)
            name = executor_for(self._context, command)
            if name is None:
                self._context.log.warning("executor_gone", executor=command.executor, task=command.name)
                group.start_soon(self.owed.settle, lost(command))
            else:
                self._start(group, command, name)
        return len(open_)

    async def take(self) -> None:
        """Takes what comes; ends when it is cancelled."""
        while True:
            while sum(len(held.came) for held in self._held.values()) >= held_max(self._place.slots):
                self._room = anyio.Event()
                self.backlog.go_on()  # More can't come before something begins.
                await self._room.wait()
            done: list[Received] = []
            for received in await self._messenger.receive():
                # What one fails with is none of the others' business; it comes again at the next connection.
                await guard(f"message of {received.sender}", self._one, received, done, log=self._context.log)
            await self._let_back(done)
            if self.leaving:
                await self._give_back()
            self._context.activity.ring()

    async def _one(self, received: Received, done: list[Received]) -> None:
        match received.message:
            case Command() as command:
                if command.attempt_id in self._context.running or command.attempt_id in self._returning:
                    done.append(received)
                elif (why := self._wrong(command)) is None:
                    held = Held(Begun(received.sender, command), [])
                    self._held.setdefault(command.attempt_id, held).came.append(received)
                else:
                    await self._refuse(received, command, why, done)
            case Cancel(attempt_id):
                if await self._cancel(attempt_id, done):
                    done.append(received)
            case Watch(for_s, token, heard_leaving):
                self._watch(received.sender, min(for_s, WATCH_S_MAX), token)
                if heard_leaving and self.leaving:  # Else it was said to a process before this one.
                    self._heard.add(received.sender)
                    self._hears.ring()
                done.append(received)
            case Poison() as poison:
                await self._poisoned(received, poison)
            case other:
                if isinstance(other, Mark):
                    self.backlog.came(other.token)
                done.append(received)  # The door lets in nothing else.

    def _wrong(self, command: Command) -> str | None:
        """Says why a command can't run here; None where it can."""
        if ATTEMPT_ID.fullmatch(command.attempt_id) is None:
            return "the id of its attempt is none"
        if command.executor not in self._context.executors:
            return f"this runner doesn't offer its executor {command.executor}"
        if command.work.workspace not in (None, NO_WORKSPACE):
            return "this runner makes no workspaces"
        return None

    async def _refuse(self, received: Received, command: Command, why: str, done: list[Received]) -> None:
        """Sets a command aside that can't run here, and says so to its daemon.

        One that the ledger knows has begun before the config changed, or was given back before; it is dropped.
        """
        match await self._withdrawn(received.sender, command, why):
            case None:
                return
            case False:
                self._context.log.info("known_commands_dropped", attempts=[command.attempt_id])
                done.append(received)
            case True:
                await self._set_aside(received, why)

    async def _withdrawn(self, daemon: str, command: Command, why: str) -> bool | None:
        """Answers a command that it has had no effect, and never will; False where the ledger knows it.

        None where the ledger was closed. An id that no daemon gives stays out of the ledger, and nobody is answered:
        with what the ledger forgets the directories go that its ids name.
        """
        if ATTEMPT_ID.fullmatch(command.attempt_id) is None:
            return True
        problem = Problem.make("message_refused", link=self._context.config.runner.link, detail=why)
        begun = Begun(daemon, msgspec.structs.replace(command, work=Work()))
        withdraw = partial(self._ledger.withdraw, begun, command.ended("unstarted", problem))
        return await insist(self._context, withdraw, "result_waits", attempt=command.attempt_id)

    async def _poisoned(self, received: Received, poison: Poison) -> None:
        """Sets aside what is no message for this end, and tells whoever it says has sent it.

        Nobody vouches for that, so a command is answered only where it never begins: what is forged can do no more than
        taking the command away would.
        """
        daemon, command = received.sender, poison.command
        if daemon and self._may_answer(daemon):
            if command is not None and command.attempt_id not in self._held:
                if await self._withdrawn(daemon, command, poison.why) is None:
                    return
            elif poison.kind == "watch":
                await self._tell_one(daemon, "")  # It answers no watch, but shows that somebody is there.
        await self._set_aside(received, poison.why)

    async def _set_aside(self, received: Received, why: str) -> None:
        self.refused = Refused(self.refused.total + 1, why)
        try:
            await self._messenger.refuse(received, why)
        except LinkDown:
            return  # It comes again, and counts again.

    def _may_answer(self, daemon: str) -> bool:
        """Tells whether one is answered that only says that it is a daemon: not many are, because anybody can."""
        if daemon not in self._watchers and len(self._claimed) < WATCHERS_MAX:
            self._claimed.add(daemon)
        return daemon in self._watchers or daemon in self._claimed

    async def _cancel(self, attempt_id: str, done: list[Received]) -> bool:
        """Has an attempt end, or never begin where it has no slot yet; tells whether that is written down."""
        context = self._context
        context.ask_cancel(attempt_id)
        executor = context.active.get(attempt_id)
        if executor is not None:
            await guard(f"cancel {attempt_id}", executor.cancel, attempt_id, log=context.log)
        held = self._held.get(attempt_id)
        if held is not None:
            result = unbegun(held.begun.command)
            if not await self._written("cancel_waits", attempt_id, self._ledger.withdraw, held.begun, result):
                return False
            self._held.pop(attempt_id, None)
            done += held.came
            self._room.set()
        # Where it has begun at this very moment, that goes for it.
        return await self._written("cancel_waits", attempt_id, self._ledger.cancel, attempt_id)

    async def _written(
        self, waits: str, attempt_id: str, write: Callable[[*Args], Awaitable[object]], *args: *Args
    ) -> bool:
        """Insists on writing to the ledger; False where it was closed, so that nothing may be acknowledged."""

        async def insisted() -> bool:
            await write(*args)
            return True

        return bool(await insist(self._context, insisted, waits, attempt=attempt_id))

    def _watch(self, daemon: str, for_s: float, token: str) -> None:
        until_s = self._context.clock.monotonic_s() + for_s
        self._forget_watchers()
        if daemon in self._watchers or len(self._watchers) < WATCHERS_MAX:
            self._turned_away.pop(daemon, None)
            self._watchers[daemon] = Watcher(until_s, token)
            self._asked.ring()
            return
        if daemon not in self._turned_away:
            self._context.log.warning("watcher_turned_away", daemon=daemon, most=WATCHERS_MAX)
        if daemon in self._turned_away or len(self._turned_away) < WATCHERS_MAX:
            self._turned_away[daemon] = until_s

    def _forget_watchers(self) -> None:
        """Forgets the daemons that have not asked again in time."""
        now_s = self._context.clock.monotonic_s()
        self._watchers = {daemon: watcher for daemon, watcher in self._watchers.items() if watcher.until_s > now_s}
        self._turned_away = {daemon: until_s for daemon, until_s in self._turned_away.items() if until_s > now_s}

    @property
    def turned_away(self) -> int:
        """How many daemons want to be told how it is and are not, because too many are."""
        now_s = self._context.clock.monotonic_s()
        return sum(until_s > now_s for until_s in self._turned_away.values())

    async def start(self, group: TaskGroup) -> None:
        """Starts what fits, whenever something has come or ended; ends when it is cancelled."""
        self.runner.keep_tasks()
        while True:
            while begun := await self._startable():
                known = {one.command.attempt_id for one in begun}
                async with self._begins:
                    for fresh in await self._ledger.begin(begun):
                        known.discard(fresh.command.attempt_id)
                        self._start(group, fresh.command)
                    held = self._let_go(begun)
                if known:
                    self._context.log.info("known_commands_dropped", attempts=sorted(known))
                await checkpoint()  # They start before this goes to the broker.
                await self._ack([received for one in held for received in one.came])
            if self.leaving and not self._context.running:
                self.idle.set()
            await self._context.activity.wait()

    async def _startable(self) -> list[Begun]:
        """Gives what fits, where this runner surely has its name: else another may have got what it holds."""
        if not self._fitting():
            return []
        try:
            await self._messenger.keep_name()
        except LinkDown as error:
            self._context.log.debug("start_waits", detail=error.what)  # What it holds comes again, or is another's.
            return []
        return self._fitting()

    def _fitting(self) -> list[Begun]:
        """Gives those of the commands held that have a slot now, in the order in which they came."""
        context, chosen = self._context, list[Begun]()
        if self.leaving or not self.backlog.is_read:
            return chosen
        running = Counter(context.running.values())
        for begun, _ in self._held.values():
            if running.total() >= self._place.slots:
                break
            executor = begun.command.executor
            most = context.executors[executor].concurrency
            if most is None or running[executor] < most:
                running[executor] += 1
                chosen.append(begun)
        return chosen

    def _let_go(self, begun: Sequence[Begun]) -> list[Held]:
        """Holds no longer what the ledger has; gives what of it was held still."""
        held = [self._held.pop(one.command.attempt_id, None) for one in begun]
        self._room.set()
        return [one for one in held if one is not None]

    def _start(self, group: TaskGroup, command: Command, name: str | None = None) -> None:
        self._context.take_on(command.attempt_id, command.executor)
        self.runner.begin(group, command, name)

    def held_ids(self) -> frozenset[str]:
        """Gives the attempts whose commands have come and are not acknowledged: none of them may be forgotten."""
        return frozenset(self._held)

    def link_down(self) -> None:
        """Lets go of what has no slot yet: it comes again."""
        self.backlog.link_changed(up=False)
        self._held.clear()
        self._room.set()

    async def leave(self) -> None:
        """Begins nothing any more, gives back what has not begun, and lets its daemons hear of it, for a time."""
        self.leaving = True
        self._context.activity.ring()
        async with anyio.create_task_group() as group:  # Side by side: one that can't be told holds up no other.
            group.start_soon(self.tell)
            group.start_soon(partial(guard, "give back", self._give_back, log=self._context.log))
        if self._watchers:
            with anyio.move_on_after(HEARD_S_MAX):
                while self._watchers.keys() - self._heard:
                    await self._hears.wait()
            await anyio.sleep(LINGER_S)

    async def _give_back(self) -> None:
        """Has the daemons send elsewhere what has no slot yet.

        It counts as begun until the broker has let go of it: where that fails it comes again, to this process or the
        next, and goes back then. Said before, it could come to another end that has the name by then, and run twice.
        """
        async with self._begins:
            begun = [one.begun for one in self._held.values()]
            if not begun:
                return
            try:
                await self._messenger.keep_name()
            except LinkDown:
                return  # It comes again, or is another's.
            fresh = await self._ledger.begin(begun, back=True)
            self._returning |= {one.command.attempt_id: one.command for one in fresh}
            held = self._let_go(begun)  # Without what an outage of the link took meanwhile.
        await self._let_back([received for one in held for received in one.came])

    async def _let_back(self, done: Sequence[Received]) -> None:
        """Acknowledges what is done, and answers what of it was to go back."""
        if not await self._ack(done):
            return
        ids = dict.fromkeys(one.message.attempt_id for one in done if isinstance(one.message, Command))
        commands = [self._returning.pop(id) for id in ids if id in self._returning]
        async with anyio.create_task_group() as group:  # Side by side, so that they share commits.
            for command in commands:
                group.start_soon(self.owed.settle, left(command, self._name))
        self.given_back += len(commands)

    async def _ack(self, received: Sequence[Received]) -> bool:
        """Acknowledges what is durable here; False where that fails: it comes again, and is dropped as known."""
        if not received:
            return True
        try:
            await self._messenger.ack(received)
        except LinkDown as error:
            self._context.log.debug("ack_failed", detail=error.what)
            return False
        return True

    def heartbeat(self, token: str = "") -> Heartbeat:
        """Says how the runner is, to whoever asked with that token."""
        context, slots = self._context, self._place.slots
        offered = {
            name: min(slots, executor.concurrency or slots)
            for name, executor in context.executors.items()
            if not self.standings.is_down(name)
        }
        there = (*context.running, *self._held)
        return Heartbeat(
            version=__version__,
            incarnation=context.store.incarnation,
            slots=slots,
            running=len(context.running),
            load=round(os.getloadavg()[0] / (os.cpu_count() or 1), 2),
            executors=offered,
            labels=self._place.labels,
            leaving=self.leaving,
            attempts=there if len(there) <= TOLD_MAX else None,
            token=token,
        )

    async def beat(self) -> None:
        """Tells the daemons that have asked, at once and then regularly; ends when it is cancelled."""
        while True:
            with anyio.move_on_after(self._place.beat_s if self._watchers else None):
                await self._asked.wait()
            await self.tell()

    async def tell(self) -> None:
        """Tells them now."""
        self._forget_watchers()
        async with anyio.create_task_group() as group:
            for daemon, watcher in self._watchers.items():
                group.start_soon(self._tell_one, daemon, watcher.token)  # Where that fails it asks again.

    async def _tell_one(self, daemon: str, token: str) -> None:
        try:
            await self._messenger.send(daemon, [self.heartbeat(token)])
        except Retryable as error:
            self._context.log.debug("beat_failed", daemon=daemon, detail=error.what)
