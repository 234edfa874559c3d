"""How the daemon looks after runners on other hosts: it asks how they are, and settles what lost ones had."""

from collections.abc import Callable, Sequence
from functools import partial

import anyio

from omnid.errors import Retryable
from omnid.flow.commands import recall
from omnid.flow.context import Context
from omnid.flow.explain import span
from omnid.flow.fleet import MISSING_LEASES, Peer
from omnid.flow.line import Line
from omnid.flow.results import Results
from omnid.model import Problem, Result, Watch
from omnid.store import journal
from omnid.store.interface import Reader, Tx

WATCHES_IN_LEASE = 3
"""How often in its lease a runner is asked for heartbeats: one that was started anew knows nobody to tell."""
WATCH_S_MAX = 600.0
"""How long one that doesn't answer is left in peace at most: what it was asked before still waits for it."""
NAP_S_MAX = 3600.0
LEASE, MISSING = "lease", "missing"
STALL_S = 5.0
"""By how much later than it should this may wake before it takes itself for the one who was away."""


class Leases:
    """Those of all runners. `line_of` gives the link of a name; None where it isn't in use."""

    def __init__(self, context: Context, results: Results, line_of: Callable[[str], Line | None]) -> None:
        self._context = context
        self._results = results
        self._line_of = line_of
        self._heard_out: dict[tuple[str, str], int] = {}
        """Until which batch the last words of a runner may still come, about its lease or about what it lacks."""
        self._due_s = context.clock.monotonic_s()
        """When it is to look again (monotonic)."""
        self._unheard: frozenset[str] = frozenset()
        """The runners for whose labels tasks may wait."""

    @property
    def hears_out(self) -> bool:
        """Whether somebody is judged once what has come is taken."""
        return bool(self._heard_out)

    async def look(self) -> None:
        """Asks for heartbeats, and settles what those had whose leases are over."""
        self.is_back()
        await self._watch()
        self._due_s = self._context.clock.monotonic_s()  # Whom nothing can be sent to held up nobody else.
        await self._look_at_leases()
        self.is_back()
        await self._look_for_missing()
        self._look_for_unheard()

    def is_back(self) -> None:
        """Looks how late it is: who was held up, by a disk or by a sleep, hasn't asked anybody meanwhile."""
        now_s = self._context.clock.monotonic_s()
        if now_s > self._due_s + STALL_S:
            self._context.fleet.bear_with()
        self._due_s = now_s

    async def _watch(self) -> None:
        """Asks those for heartbeats whose time it is, side by side: one that can't be asked holds up no other."""
        now_s, fleet = self._context.clock.monotonic_s(), self._context.fleet
        due = [peer for peer in fleet.peers.values() if fleet.is_up(peer.link) and _watch_due_s(peer) <= now_s]
        if len(due) == 1:
            await self._ask(due[0], now_s)
            return
        async with anyio.create_task_group() as group:
            for peer in due:
                group.start_soon(self._ask, peer, now_s)

    async def _ask(self, peer: Peer, now_s: float) -> None:
        line = self._line_of(peer.link or "")
        if line is None:
            return
        peer.watched_s = now_s
        peer.unanswered += 1
        try:
            await line.connection.send(peer.name, [Watch(2 * peer.lease_s, peer.token, peer.leaves)])
        except Retryable as error:
            self._context.log.debug("watch_failed", detail=error.what)  # It is asked again.

    def nap_s(self) -> float:
        """Gives for how long nothing has to be looked at, as far as is known now; `look` counts from here."""
        self.is_back()
        fleet, now_s = self._context.fleet, self._context.clock.monotonic_s()
        times = [NAP_S_MAX + now_s, *fleet.unheard().values()]
        for peer in fleet.peers.values():
            ends_s = fleet.lease_ends_s(peer)
            times += [] if ends_s is None or (LEASE, peer.name) in self._heard_out else [ends_s]
            times += [_watch_due_s(peer)] if fleet.is_up(peer.link) else []
        nap_s = max(0.0, min(times) - now_s)
        self._due_s += nap_s
        return nap_s

    async def _look_at_leases(self) -> None:
        """Calls those lost whose leases are over, and settles what they have: also what became theirs meanwhile."""
        fleet, now_s = self._context.fleet, self._context.clock.monotonic_s()
        self._heard_out = {key: until for key, until in self._heard_out.items() if key[1] in fleet.peers}
        for peer in tuple(fleet.peers.values()):
            ends_s = fleet.lease_ends_s(peer)
            silent_s = fleet.silent_s(peer)
            if ends_s is None or ends_s > now_s:
                self._heard_out.pop((LEASE, peer.name), None)
            elif self._is_heard_out(peer, LEASE):
                fleet.lose(peer)
                self._context.log.warning(
                    "runner_lost", runner=peer.name, silent_s=round(silent_s), attempts=len(peer.open)
                )
            if peer.lost_at_ms is not None and peer.open:
                await self._lost(peer, list(peer.open), partial(_away, peer.name, span(silent_s)))
                fleet.forget_gone()

    async def _look_for_missing(self) -> None:
        """Settles what a runner that lives has nothing of: its broker has lost the command, or the result."""
        for peer in tuple(self._context.fleet.peers.values()):
            gone = self._context.fleet.gone(peer)
            if not gone:
                self._heard_out.pop((MISSING, peer.name), None)
            elif self._line_of(peer.link or "") is not None and self._is_heard_out(peer, MISSING):
                self._context.log.warning("attempts_missing", runner=peer.name, attempts=gone)
                silent = span(MISSING_LEASES * peer.lease_s)
                await self._lost(peer, gone, partial(_silent, peer.name, silent))

    def _is_heard_out(self, peer: Peer, about: str) -> bool:
        """Tells whether all was taken that had come by the time at which a runner was first to be judged.

        That is the batch which was being taken and the next two: the connection and its link may have read them.
        """
        line, key = self._line_of(peer.link or ""), (about, peer.name)
        if line is not None and line.settling and line.taken < self._heard_out.setdefault(key, line.taken + 3):
            return False
        self._heard_out.pop(key, None)
        return True

    def _look_for_unheard(self) -> None:
        """Lets tasks start that need not wait any longer for what a runner says of its labels."""
        unheard = frozenset(self._context.fleet.unheard())
        if self._unheard - unheard:
            self._context.dispatch.ring()
        self._unheard = unheard

    async def _lost(self, peer: Peer, attempts: Sequence[str], said: Callable[[str], Problem]) -> None:
        """Settles attempts of which nobody knows how far they came: promise 3."""
        context = self._context
        owners = await context.store.read(lambda reader: [owner_of(reader, id) for id in attempts])
        results: list[Result] = []
        for id, (task_id, number, name) in zip(attempts, owners, strict=True):
            results.append(Result(id, task_id, number, "lost", said(name)))
        async with anyio.create_task_group() as group:
            for result in results:
                group.start_soon(self._results.settle, result)
        if attempts:
            await context.store.write(partial(_recall_superseded, runner=peer.name, attempts=attempts))
        context.dispatch.ring()
        context.failover.ring()


def _away(runner: str, silent: str, task: str) -> Problem:
    return Problem.make("runner_lost", runner=runner, silent=silent, task=task)


def _silent(runner: str, silent: str, task: str) -> Problem:
    return Problem.make("runner_silent", runner=runner, silent=silent, task=task)


def _watch_due_s(peer: Peer) -> float:
    """Gives when a runner is asked for heartbeats next."""
    return peer.watched_s + min(WATCH_S_MAX, peer.lease_s / WATCHES_IN_LEASE * 2.0 ** min(peer.unanswered, 10))


def owner_of(reader: Reader, attempt_id: str) -> tuple[str, int, str]:
    """Gives the task of an attempt: its id, the attempt's number, and its name."""
    head = reader.one("attempt_head", attempt_id)
    task = None if head is None else journal.task_by_id(reader, head[2])
    return ("", 0, "a task") if head is None or task is None else (task.id, head[3], task.name)


def _recall_superseded(tx: Tx, *, runner: str, attempts: Sequence[str]) -> None:
    """Has a lost runner told, for when it comes back, to end what is done again; an uncertain result may yet count."""
    for attempt_id in attempts:
        head = tx.one("attempt_head", attempt_id)
        task = None if head is None else journal.task_by_id(tx, head[2])
        if task is not None and task.state != "uncertain":
            recall(tx, runner, attempt_id)
