"""Shared reasons why tasks can't start: one row per cause, opened by time, by a probe, or by a person."""

from collections.abc import Mapping, Sequence
from functools import partial

import anyio
from anyio.abc import TaskGroup
from msgspec import structs

from omnid.errors import OmnidError, Retryable
from omnid.executor.interface import Executor
from omnid.flow import limits, money, outages
from omnid.flow.context import Context
from omnid.flow.fleet import queue_of
from omnid.flow.hours import Hours
from omnid.flow.turned import Turned
from omnid.model import Gate, Problem
from omnid.retry import Backoff, FailureCount
from omnid.route.admission import LIMITS, is_ajar
from omnid.route.budget import Budget
from omnid.settings import MODEL
from omnid.store import journal
from omnid.store.interface import Reader, Tx

PROBE_BACKOFF = Backoff(base_s=2.0, max_s=300.0)
PROBE_S_MAX = 60.0
PARKED_MAX = 100_000
"""Up to how many tasks of an executor are counted that waited for a link."""
LINK = "link"
"""The cause of gates whose subject is a link: it keeps the tasks of all executors whose runners are behind it."""
LOGIN_CODES = frozenset({"secret_missing"})
"""Errors of an executor that a person ends, with a key or a login: the tasks behind its gate wait for `login`."""


class Gates:
    """The closed gates, kept in memory as the journal has them; only these methods change either."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._closed: dict[str, Gate] = {}
        self._probing: set[str] = set()
        self._counts: dict[str, FailureCount] = {}
        """Failures of each executor; a probe that succeeds doesn't end the count, so that flapping slows down."""
        self._hours = Hours(context)
        context.shut = self.shut
        context.took = self.took

    async def load(self) -> None:
        """Reads the gates that were closed when the daemon ended."""
        self._closed = {gate.id: gate for gate in await self._context.store.read(_all)}

    def all(self) -> list[Gate]:
        """Gives the closed gates, the oldest first."""
        away = (gate for gate in self._away().values() if gate.cause != LINK)
        gates = [*map(self._dated, self._closed.values()), *self._hours.closed().values(), *away]
        return sorted(gates, key=lambda gate: (gate.closed_at_ms, gate.id))

    def _dated(self, gate: Gate) -> Gate:
        """Gives a gate with the time of its next try: a link's changes with each dial, and isn't written down."""
        if gate.cause != LINK:
            return gate
        return structs.replace(gate, wake_at_ms=self._context.fleet.next_try(gate.subject))

    def closed(self) -> frozenset[str]:
        """Gives the executors on which nothing starts, `*` being all of them; a limit that is due lets one task try."""
        hours, stored = self._hours.closed(), frozenset[str]()
        if self._closed:
            now_ms = self._context.clock.wall_ms()
            # What a link closes, the runners behind it say.
            shut = (gate for gate in self._closed.values() if gate.cause != LINK and not is_ajar(gate, now_ms))
            stored = frozenset(gate.subject for gate in shut)
        return stored.union(hours) if hours else stored

    def shut(self) -> Mapping[str, Gate]:
        """Gives the closed gates by what they close, a pause before all others."""
        stored, away = self._closed, self._away()
        if not stored and not away:
            return self._hours.closed()
        last = sorted(stored.values(), key=lambda gate: gate.cause == "paused")
        return {**self._hours.closed(), **away, **{gate.subject: gate for gate in last if gate.cause != LINK}}

    def _away(self) -> dict[str, Gate]:
        """Gives the gates of executors that no runner takes now, by executor."""
        fleet = self._context.fleet
        if not fleet.executors:
            return {}
        links = {gate.subject: gate for gate in self._closed.values() if gate.cause == LINK}
        return {name: gate for name in fleet.executors if (gate := fleet.gate(name, links)) is not None}

    def of(self, executor: str) -> Gate | None:
        """Gives the gate that keeps this executor's tasks from their start: a pause first, or None."""
        closed = self._closed.values()
        found = [gate for gate in closed if gate.subject in ("*", executor) and gate.cause != LINK]
        others = (self._hours.closed().get(executor), self._away().get(executor))
        found += [gate for gate in others if gate is not None]
        return min(found, key=lambda gate: (gate.cause != "paused", gate.id)) if found else None

    def login(self, executor: str) -> Gate | None:
        """Gives the gate that is closed for lack of a key or a login; None where there is none, or a pause first."""
        gate = self.of(executor)
        if gate is None or gate.cause == "login":
            return gate
        return gate if gate.problem is not None and gate.problem.code in LOGIN_CODES else None

    async def pause(self, subject: str) -> None:
        """Closes the gate `paused` for an executor or, with `*`, for all; it stays until `resume`."""
        await self._close(Gate(f"paused:{subject}", "paused", subject, self._context.clock.wall_ms(), None))

    async def resume(self, subject: str) -> bool:
        """Opens the gate `paused`, and an executor's limits: a person knows better; tells whether one was closed."""
        executor = self._context.executors.get(subject)
        if executor is not None and executor.kind == MODEL:
            self._context.modes.trust_keys(None)
        was_paused = await self._open(f"paused:{subject}")
        lifted = partial(limits.open_limits, executor=subject, config=self._context.config)
        opened = await self._context.store.write(lifted, then=self._opened)
        return was_paused or bool(opened)

    async def executor_down(self, executor: str, error: Retryable) -> None:
        """Closes an executor's gate with the reason, until a probe succeeds; logs the first failure only."""
        context = self._context
        now_ms = context.clock.wall_ms()
        known = self._closed.get(f"executor:{executor}")
        count = self._counts.get(executor, FailureCount()).failed(context.clock.monotonic_s())
        self._counts[executor] = count
        failures = count.failures
        wake_at_ms = now_ms + round(PROBE_BACKOFF.delay_s(failures, context.clock.uniform) * 1000)
        since_ms = known.closed_at_ms if known else now_ms
        if known is None:
            context.log.warning("executor_down", executor=executor, **error.as_dict())
        problem = Problem.of(error)
        await self._close(Gate(f"executor:{executor}", "executor", executor, since_ms, wake_at_ms, problem, failures))

    def took(self, turned: Turned) -> None:
        """Follows what a committed transaction did to gates, and wakes the tasks that it let go on."""
        if turned.closed or turned.opened:
            self._log_limits(turned)
            kept = {id: gate for id, gate in self._closed.items() if id not in turned.opened}
            self._closed = {**kept, **turned.closed}
            self._context.failover.ring()
        if any(turned):
            self._context.watch.tell(turned.tasks)
            self._context.wake()

    def _log_limits(self, turned: Turned) -> None:
        for gate in turned.closed.values():
            if gate.cause in LIMITS and gate.id not in self._closed:
                self._context.log.info("limit", executor=gate.subject, cause=gate.cause, wake_at_ms=gate.wake_at_ms)
        over = [id for id in turned.opened if id in self._closed and self._closed[id].cause in LIMITS]
        if over:
            self._context.log.info("limit_over", gates=over)

    async def look_at_budget(self, *, release: bool = False) -> None:
        """Opens the gates whose caps leave room again; with `release` also lets the tasks go on that wait for caps."""
        more = True
        while more:
            turned = Turned.nothing()
            look = partial(_look_at_budget, budget=self._context.budget, turned=turned, release=release)
            more = await self._context.store.write(look, bulk=release, then=lambda _, turned=turned: self.took(turned))

    async def link_down(self, link: str, problem: Problem) -> None:
        """Closes a link's gate with the reason, until it is up."""
        known = self._closed.get(f"{LINK}:{link}")
        if known is None or known.problem is None or known.problem.what != problem.what:
            since_ms = self._context.clock.wall_ms() if known is None else known.closed_at_ms
            await self._close(Gate(f"{LINK}:{link}", LINK, link, since_ms, None, problem))

    async def link_up(self, link: str) -> None:
        """Opens a link's gate."""
        id, fleet = f"{LINK}:{link}", self._context.fleet
        if id in self._closed:
            alone = [name for name in fleet.executors if {peer.link for peer in fleet.of(name)} == {link}]
            queues = [queue_of(peer.name) for peer in fleet.on_link(link)]
            open_link = partial(_open_link, link=link, executors=alone, queues=queues)
            await self._context.store.write(open_link, then=lambda _: self._opened((id,)))

    def links_down(self) -> dict[str, int]:
        """Gives the links whose gates are closed, and since when (wall time)."""
        return {gate.subject: gate.closed_at_ms for gate in self._closed.values() if gate.cause == LINK}

    def refused_links(self) -> list[Gate]:
        """Gives the gates of links that a person must mend: a password, a certificate, the config."""
        closed = self._closed.values()
        return [gate for gate in closed if gate.cause == LINK and gate.problem and gate.problem.code == "link_refused"]

    def executor_worked(self, executor: str) -> None:
        """Forgets an executor's failures: it has brought an attempt to its end."""
        self._counts.pop(executor, None)

    async def room_made(self) -> None:
        """Opens the gates of executors that found no room for a workspace, because one went."""
        for gate in self.all():
            if gate.problem is not None and gate.problem.code == "workspace_full":
                await self._open(gate.id)

    def probe_due(self, group: TaskGroup) -> None:
        """Probes the executors whose gates are due, side by side in the group; opens those that are well again.

        Where the hours of one have begun, its tasks are looked at.
        """
        if self._hours.changed():
            self._context.dispatch.ring()
        now_ms = self._context.clock.wall_ms()
        # A time that no backoff reaches is left from before the clock was set back.
        latest_ms = now_ms + round(PROBE_BACKOFF.max_s * 1000)
        due = {gate.id for gate in self._closed.values() if gate.cause == money.GATE and _is_due(gate, now_ms)}
        if due - self._probing:
            self._probing |= due
            group.start_soon(self._budget_due, due)
        if any(is_ajar(gate, now_ms) for gate in self._closed.values()):
            self._context.dispatch.ring()
        for gate in self._closed.values():
            if gate.cause != "executor" or gate.wake_at_ms is None or now_ms < gate.wake_at_ms <= latest_ms:
                continue
            if gate.subject not in self._probing:
                self._probing.add(gate.subject)
                group.start_soon(self._probe, gate.subject)

    def next_wake_at_ms(self) -> int | None:
        """Gives when the next gate is due, or None; one that is being probed, or waits for a task to try, is not."""
        now_ms = self._context.clock.wall_ms()
        due_ms = [
            gate.wake_at_ms
            for gate in self._closed.values()
            if gate.wake_at_ms is not None
            and not is_ajar(gate, now_ms)
            and gate.id not in self._probing
            and (gate.cause != "executor" or gate.subject not in self._probing)
        ]
        hours_ms = self._hours.next_ms()
        return min(due_ms if hours_ms is None else [*due_ms, hours_ms], default=None)

    async def _budget_due(self, ids: set[str]) -> None:
        """Looks at gates whose window has ended; a store that can't take it is tried again by the timer."""
        try:
            await self.look_at_budget()
        except Retryable as error:
            self._context.log.warning("budget_waits", **error.as_dict())
            await anyio.sleep(PROBE_BACKOFF.delay_s(1, self._context.clock.uniform))
        finally:
            self._probing -= ids
            self._context.timer.ring()

    async def _probe(self, name: str) -> None:
        """Probes until what it found is written; a store that can't take it is tried again after a wait."""
        context = self._context
        failures = 0
        try:
            while True:
                try:
                    await self.probe(name, PROBE_S_MAX)
                except Retryable as error:
                    failures += 1
                    if failures == 1:
                        context.log.warning("probe_waits", executor=name, **error.as_dict())
                else:
                    return
                await anyio.sleep(PROBE_BACKOFF.delay_s(failures, context.clock.uniform))
        finally:
            self._probing.discard(name)
            context.timer.ring()

    async def probe(self, name: str, limit_s: float) -> Retryable | None:
        """Probes an executor, closes or opens its gate by what was found, and gives what is wrong.

        Raises Retryable where the gate can't be written.
        """
        executor = self._context.executors.get(name)
        error = None if executor is None else await _ask(executor, limit_s)
        if self._context.executors.get(name) is not executor:
            return None  # The config has changed meanwhile, and what was found is of one that has gone.
        if error is not None:
            await self.executor_down(name, error)
            return error
        gate = self._closed.get(f"executor:{name}")
        if gate is not None:
            await self._open(gate.id)
            down_s = (self._context.clock.wall_ms() - gate.closed_at_ms) / 1000
            self._context.log.info("executor_up", executor=name, down_s=round(down_s, 1))
        return None

    async def _close(self, gate: Gate) -> None:
        def closed(_: None) -> None:
            self._closed = {**self._closed, gate.id: gate}  # A copy, because readers look at it from their threads.
            self._context.timer.ring()
            self._context.failover.ring()

        close = partial(_close_gate, gate=gate, outage_id=self._context.clock.uuid())
        await self._context.store.write(close, then=closed)

    async def _open(self, id: str) -> bool:
        return await self._context.store.write(partial(_open_gate, id=id), then=lambda _: self._opened((id,)))

    def _opened(self, ids: Sequence[str]) -> None:
        self._closed = {key: gate for key, gate in self._closed.items() if key not in ids}
        self._context.dispatch.ring()


async def _ask(executor: Executor, limit_s: float) -> Retryable | None:
    """Gives what an executor's probe finds wrong."""
    name = executor.name
    try:
        with anyio.fail_after(limit_s):
            await executor.probe()
    except TimeoutError:
        detail = f"its probe gave no answer within {limit_s:.0f} s"
        return Retryable("executor_down", executor=name, detail=detail)
    except Retryable as error:
        return error
    except OmnidError as error:
        return Retryable("executor_down", executor=name, detail=error.what)
    return None


def _is_due(gate: Gate, now_ms: int) -> bool:
    return gate.wake_at_ms is not None and gate.wake_at_ms <= now_ms


def _look_at_budget(tx: Tx, *, budget: Budget, turned: Turned, release: bool) -> bool:
    money.look_again(tx, budget, turned)
    return release and money.release_all(tx, turned)


def _close_gate(tx: Tx, *, gate: Gate, outage_id: str) -> None:
    journal.close_gate(tx, gate)
    outages.began(tx, gate, outage_id)


def _open_gate(tx: Tx, *, id: str) -> bool:
    was_closed = journal.open_gate(tx, id)
    cause, _, subject = id.partition(":")
    if was_closed:
        outages.over(tx, cause, subject)
    return was_closed


def _open_link(tx: Tx, *, link: str, executors: Sequence[str], queues: Sequence[str]) -> None:
    """Opens the gate of a link, and counts what waited for it: behind the gate, and in the outboxes.

    Nothing has gone out yet, or it would be missing.
    """
    journal.open_gate(tx, f"{LINK}:{link}")
    rows = [*(tx.one("count_ready", name, PARKED_MAX) for name in executors)]
    rows += [tx.one("outbox_count", queue) for queue in queues]
    outages.over(tx, LINK, link, waited=sum(row[0] for row in rows if row is not None))


def _all(reader: Reader) -> list[Gate]:
    return [journal.gate_of(row) for row in reader.all("gates")]
