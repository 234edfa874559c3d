"""The links to runners on other hosts: kept open, listened to, and answered for while they or the runners are away."""

from collections.abc import Callable, Sequence
from functools import partial

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint
from msgspec import structs

from omnid.errors import Rejected, Retryable
from omnid.flow import outages, poison
from omnid.flow.comeback import CameBack, Comeback
from omnid.flow.commands import COMMAND, Commands
from omnid.flow.context import Bell, Context
from omnid.flow.drain import Drain
from omnid.flow.fleet import queue_of
from omnid.flow.gates import LINK, Gates
from omnid.flow.guard import guard
from omnid.flow.insist import insist
from omnid.flow.keep import keep
from omnid.flow.leases import STALL_S, Leases, owner_of
from omnid.flow.line import Line
from omnid.flow.results import LEFT, Results
from omnid.link.connection import Connection
from omnid.link.destination import Destination
from omnid.link.interface import LinkDown, Poison, Received
from omnid.model import Heartbeat, Problem, Result
from omnid.settings_links import Link as Section
from omnid.store import outbox
from omnid.store.interface import Tx

REFUSED = "message_refused"
"""The code with which a runner says that it has set a command aside."""
RESULTS_AT_ONCE = 64
"""How many results wait for the store at once: they share commits, and are acknowledged together."""
Connect = Callable[[Section, Callable[[], None], Callable[[float], None]], Connection]
"""Makes the daemon's end of a link, which isn't dialled yet; see `Connection` for the functions that it calls."""


class Lines:
    """All of them, as the config has them."""

    def __init__(self, context: Context, gates: Gates, results: Results, connect: Connect, drain: Drain) -> None:
        self._context = context
        self._gates = gates
        self._results = results
        self._connect = connect
        self._drain = drain
        self._lines: dict[str, Line] = {}
        context.fleet.next_try = self._next_try_at_ms
        context.fleet.connection = self._connection
        context.fleet.strayed = self._strayed
        self._configured = Bell()
        self._bell = Bell()
        self._came_back: list[CameBack] = []
        """Comebacks that have yet to be written into their outages."""
        self._ended: dict[str, anyio.Event] = {}
        """Of the last line over each link."""
        self._leases = Leases(context, results, self._lines.get)

    def configure(self) -> None:
        """Takes a changed config over: a link whose section changed is dialled anew."""
        self._configured.ring()
        self._bell.ring()

    async def run(self) -> None:
        """Keeps the links of the config open; ends when it is cancelled."""
        try:
            async with anyio.create_task_group() as group:
                while True:
                    self._take_config(group)
                    await self._configured.wait()
        finally:
            self._lines.clear()

    def _take_config(self, group: TaskGroup) -> None:
        config = self._context.config
        used = {remote.link for remote in config.remote}
        sections = {section.name: section for section in config.link if section.name in used}
        for name, line in tuple(self._lines.items()):
            if sections.get(name) != line.section:
                del self._lines[name]
                line.scope.cancel()
                self._context.fleet.link_down(name)
        down = self._gates.links_down()
        for name, section in sections.items():
            if name not in self._lines:
                connection = self._connect(section, partial(self._changed, name), partial(self._back, name))
                if name in down:  # By an earlier daemon, or with an earlier config.
                    connection.was_down(max(0, self._context.clock.wall_ms() - down[name]) / 1000)
                comeback = Comeback(name, self._context.clock, self._context.log, self._told)
                line = self._lines[name] = Line(section, connection, comeback)
                before, self._ended[name] = self._ended.get(name), line.ended
                group.start_soon(self._keep_open, line, before)
        self._bell.ring()

    async def _keep_open(self, line: Line, before: anyio.Event | None) -> None:
        """Keeps a link open until its scope is cancelled; the one `before` it says goodbye first, to its name too."""
        context, name = self._context, line.section.name
        try:
            if before is not None:
                await before.wait()
            with line.scope:
                await checkpoint()  # It may have been changed again meanwhile.
                async with anyio.create_task_group() as group:
                    for what, loop in (
                        ("link", line.connection.run),
                        ("gate", partial(self._keep_gate, line)),
                        ("results", partial(self._listen, line)),
                    ):
                        group.start_soon(partial(keep, f"{what} {name}", loop, clock=context.clock, log=context.log))
        finally:
            line.ended.set()

    def _changed(self, name: str) -> None:
        """A link has gone up or down."""
        line = self._lines.get(name)
        if line is None:
            return
        line.tried = True
        if line.connection.trouble is not None:
            self._context.fleet.link_down(name)
            line.comeback.gone(self._behind(name))
            self._context.dispatch.ring()
        elif self._context.fleet.is_up(name):
            self._let_go(line)  # One of its destinations may take something again.
            return
        line.bell.ring()

    async def _keep_gate(self, line: Line) -> None:
        """Keeps the gate of a link; what waits for it is counted when the gate is opened, and goes out then."""
        name = line.section.name
        while True:
            problem = line.connection.trouble
            if problem is None:
                try:
                    await self._gates.link_up(name)
                except Retryable:
                    self._let_go(line)  # What can go out waits for no store.
                    raise
                self._let_go(line)
            elif line.tried:
                await self._gates.link_down(name, problem)
            await line.bell.wait()

    def _let_go(self, line: Line) -> None:
        """Has what waits for a link go out, where it is still up."""
        fleet, name = self._context.fleet, line.section.name
        if line.connection.trouble is None:
            fleet.link_up(name)
            for peer in fleet.on_link(name):
                self._drain.ring(queue_of(peer.name))
            self._context.dispatch.ring()
            self._bell.ring()

    def _back(self, name: str, down_s: float) -> None:
        """A link is up again after an outage; its queues haven't been rung yet."""
        line = self._lines.get(name)
        if line is not None:
            line.comeback.back(down_s, self._behind(name))

    def _behind(self, name: str) -> dict[str, int]:
        return self._drain.behind(queue_of(peer.name) for peer in self._context.fleet.on_link(name))

    def caught_up(self, queue: str, sent: int) -> None:
        """See `drain.CaughtUp`."""
        for line in self._lines.values():
            line.comeback.caught_up(queue, sent)

    def _strayed(self) -> None:
        self._bell.ring()

    def _told(self, came_back: CameBack) -> None:
        if came_back.left:
            self._came_back.append(came_back)
            self._bell.ring()

    def open(self, runner: str) -> Destination:
        """Gives the destination of a runner's queue."""
        return Commands(self._context, self._results, runner, self._messenger)

    def _messenger(self, runner: str) -> Connection | None:
        peer = self._context.fleet.peers.get(runner)
        line = None if peer is None else self._lines.get(peer.link or "")
        return None if line is None else line.connection

    def _connection(self, link: str) -> Connection | None:
        line = self._lines.get(link)
        return None if line is None else line.connection

    def _next_try_at_ms(self, link: str) -> int | None:
        line = self._lines.get(link)
        return None if line is None else line.connection.next_try_at_ms

    async def _listen(self, line: Line) -> None:
        """Takes what comes from runners, and acknowledges it once it is in the journal."""
        clock = self._context.clock
        while True:
            received = await line.connection.receive()
            line.settling, since_s = True, clock.monotonic_s()
            try:
                for begin in range(0, len(received), RESULTS_AT_ONCE):
                    await self._take(line, received[begin : begin + RESULTS_AT_ONCE])
            finally:
                line.settling = False
                line.taken += 1
                if clock.monotonic_s() > since_s + STALL_S:
                    self._context.fleet.bear_with(line.section.name)
                if self._leases.hears_out:
                    self._bell.ring()

    async def _take(self, line: Line, received: Sequence[Received]) -> None:
        fleet = self._context.fleet
        done: list[Received] = []
        plain: list[tuple[Received, Result]] = []
        alone: list[Received] = []
        for one in received:
            match one.message:
                case Heartbeat() as heartbeat:
                    done.append(one)
                    if fleet.hear(one.sender, heartbeat):
                        self._context.dispatch.ring()
                        self._bell.ring()
                case Result() as result if self._is_plain(one, result):
                    plain.append((one, result))
                case Result() | Poison():
                    alone.append(one)
                case _:  # The door lets in nothing else.
                    done.append(one)
        for one, _ in plain:
            fleet.alive(one.sender)
        written = await self._results.try_all([result for _, result in plain])
        for (one, _), is_written in zip(plain, written, strict=True):
            (done if is_written else alone).append(one)
        async with anyio.create_task_group() as group:
            for one in alone:
                # What one fails with is none of the others' business; it comes again at the next connection.
                look_at = partial(self._look_at, line, one, done)
                group.start_soon(partial(guard, f"message from {one.sender}", look_at, log=self._context.log))
        try:
            await line.connection.ack(done)
        except LinkDown as error:
            self._context.log.debug("ack_failed", detail=error.what)  # It comes again, and is refused as known.

    async def _look_at(self, line: Line, received: Received, done: list[Received]) -> None:
        """Takes what has to be looked at by itself."""
        match received.message:
            case Result() as result:
                await self._settle(line, received, result, done)
            case Poison(why=why):
                await self._refuse(line, received, why)
            case _:
                pass  # Nothing else has to be.

    def _is_plain(self, received: Received, result: Result) -> bool:
        """Tells whether a result can be written down as it is, together with others."""
        runner = self._context.fleet.where(result.attempt_id)
        return result.outcome != "unstarted" and runner in (None, received.sender)

    async def _settle(self, line: Line, received: Received, result: Result, done: list[Received]) -> None:
        """Writes a result down; in `done` goes what may be acknowledged, because the journal has it or knows better."""
        fleet, sender = self._context.fleet, received.sender
        runner = fleet.where(result.attempt_id)
        if runner is not None and runner != sender:
            await self._refuse(line, received, f"its attempt is none of {sender}'s")
            return
        fleet.alive(sender)
        try:
            if await self._results.write_down(await self._read(sender, result)) is not None:
                done.append(received)
        except Rejected as error:
            await self._refuse(line, received, error.what)

    async def _read(self, runner: str, result: Result) -> Result:
        """Gives a result as the journal takes it: of what a runner gave back, its own words say why."""
        if result.outcome != "unstarted":
            return result
        context = self._context
        context.fleet.bounce(result.attempt_id)
        find = partial(owner_of, attempt_id=result.attempt_id)
        owner = await insist(context, lambda: context.store.read(find), "result_waits", attempt=result.attempt_id)
        if owner is None:
            return result  # Nor can it be written down.
        task_id, _, name = owner
        if result.problem is not None and result.problem.code == LEFT:
            return structs.replace(result, problem=Problem.make("runner_left", runner=runner, task=name))
        detail = "it said no more" if result.problem is None else result.problem.what.rstrip(".")
        problem = Problem.make("runner_refused", runner=runner, task=name, detail=detail)
        if result.problem is not None and result.problem.code == REFUSED:
            # Before the result, so that it is there however this ends; a second time it takes its own place.
            set_aside = partial(outbox.set_aside, problem=problem, rows_max=context.config.outbox.rows_max)
            body = {"task": name, "text": detail}

            def write(tx: Tx) -> None:
                head = tx.one("attempt_head", result.attempt_id)
                if head is not None and head[4] is None:  # Else a person may have dealt with it already.
                    set_aside(tx, queue_of(runner), COMMAND, task_id, body)

            await insist(context, lambda: context.store.write(write), "refusal_waits", attempt=result.attempt_id)
        return structs.replace(result, problem=problem)

    async def _refuse(self, line: Line, received: Received, why: str) -> None:
        """Sets a message aside: first among the dead here, where people look, then at the broker."""
        if not await poison.bury(self._context, line.section.name, received, why):
            return  # It comes again.
        try:
            await line.connection.refuse(received, why)
        except LinkDown as error:
            self._context.log.debug("refuse_failed", detail=error.what)

    async def tend(self) -> None:
        """Opens the gates of unused links, and looks after the runners; ends when it is cancelled."""
        while True:
            self._leases.is_back()
            await self._open_unused()
            await self._write_comebacks()
            await self._leases.look()
            with anyio.move_on_after(self._leases.nap_s()):
                await self._bell.wait()

    async def _open_unused(self) -> None:
        """Opens the gates of links that nothing uses any more."""
        used = {remote.link for remote in self._context.config.remote}
        for link in self._gates.links_down():
            if link not in used:
                await self._gates.link_up(link)

    async def _write_comebacks(self) -> None:
        """Writes into the outages that are over what of them didn't go out before the next one."""
        while self._came_back:
            one = self._came_back[0]

            def write(tx: Tx, one: CameBack = one) -> None:
                left = sum(row[0] for queue in one.left if (row := tx.one("outbox_count", queue)) is not None)
                outages.left_behind(tx, LINK, one.link, since_ms=one.up_at_ms, left=left)

            await self._context.store.write(write)
            self._came_back.pop(0)
