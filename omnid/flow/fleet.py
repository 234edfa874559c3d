"""The runners on other hosts: how they are by their heartbeats, which attempts are theirs, and what they can take."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Literal

from msgspec import structs

from omnid.clock import Clock
from omnid.link.connection import Connection
from omnid.links import given_away
from omnid.model import Gate, Heartbeat, Problem
from omnid.route.runners import Seat, Seats
from omnid.settings_links import Remote

QUEUE = "runner/"
"""What the names of the queues of commands begin with; the name of the runner follows."""
WINDOW_OF_SLOTS = 2
"""How many times its slots a runner gets at once: the next attempts lie ready when one ends, and what isn't sent yet is
overtaken by whatever has a higher priority."""
MISSING_LEASES = 2
"""After how many leases an attempt is lost of which its runner, though it lives, has nothing."""
LEASE_S = 60.0
"""The lease of a runner that left the config."""

State = Literal["up", "leaving", "expected", "lost", "link_down"]
"""`expected`: it has not been heard since its link came up, and its lease still runs."""


def queue_of(runner: str) -> str:
    """Gives the queue of what is sent to a runner."""
    return f"{QUEUE}{runner}"


class Peer:
    """One runner, as the daemon knows it. Attempts of a runner that left the config have one too."""

    def __init__(self, name: str, section: Remote | None, now_s: float) -> None:
        self.name = name
        self.section = section
        """None: it is in the config no more, so nothing new is sent to it."""
        self.awaited_s = now_s
        """Since when it could be heard (monotonic)."""
        self.heartbeat: Heartbeat | None = None
        """The last one; None: none since the daemon started."""
        self.token = ""
        """What its heartbeats carry since its link came up: others have lain at the broker, and say how it was."""
        self.heard_s = float("-inf")
        self.heard_at_ms: int | None = None
        self.lost_at_ms: int | None = None
        """Since when its lease is over."""
        self.open: dict[str, str] = {}
        """Its open attempts, and their executors."""
        self.by_executor: Counter[str] = Counter()
        self.watched_s = float("-inf")
        """When it was last asked for heartbeats."""
        self.unanswered = 0
        """How often it has been asked since it was last heard."""
        self.missing: dict[str, float] = {}
        """Attempts that its heartbeats should name and don't, and since when (monotonic)."""
        self.bounced: set[str] = set()
        """Executors whose commands it has given back since its last heartbeat."""

    @property
    def link(self) -> str | None:
        """The link that leads to it."""
        return None if self.section is None else self.section.link

    @property
    def executors(self) -> tuple[str, ...]:
        """Those whose tasks it may get."""
        return () if self.section is None else self.section.executors

    @property
    def leaves(self) -> bool:
        """Whether it has said that it takes nothing new, because it is about to end."""
        return self.heartbeat is not None and self.heartbeat.leaving

    @property
    def lease_s(self) -> float:
        """For how long its silence is borne."""
        return LEASE_S if self.section is None else self.section.lease_s

    @property
    def labels(self) -> frozenset[str]:
        """What it can do that others can't, by the config and by its own word."""
        said = () if self.heartbeat is None else self.heartbeat.labels
        return frozenset((*(() if self.section is None else self.section.labels), *said))

    def look_for_missing(self, said: Heartbeat, now_s: float, is_unsent: Callable[[str], bool]) -> None:
        """Compares what a heartbeat names with what was sent.

        Commands are taken in the order in which they were sent: one that isn't there has not arrived or has ended
        where a later one is there, or where nothing waits for a slot.
        """
        if said.attempts is None:
            self.missing.clear()
            return
        there = frozenset(said.attempts)
        behind = len(there) <= said.running
        missing: dict[str, float] = {}
        for attempt_id in reversed(self.open):
            if attempt_id in there:
                behind = True
            elif behind and not is_unsent(attempt_id):
                missing[attempt_id] = self.missing.get(attempt_id, now_s)
        self.missing = missing

    def left_before(self, said: Heartbeat) -> bool:
        """Takes from a heartbeat that lay at the broker that this very process leaves; tells whether that is news."""
        known = self.heartbeat
        if not said.leaving or known is None or known.leaving or known.incarnation != said.incarnation:
            return False
        self.heartbeat, self.watched_s = structs.replace(known, leaving=True), float("-inf")
        return True

    def offers(self, executor: str) -> int:
        """Gives how many attempts of an executor it says it runs at once; 0: it doesn't take it."""
        if self.heartbeat is None or self.section is None or executor not in self.section.executors:
            return 0
        return 0 if executor in self.bounced else self.heartbeat.executors.get(executor, 0)


class Fleet:
    """All of them. It is kept in memory: what must last is in the journal, and a heartbeat tells the rest anew."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.peers: dict[str, Peer] = {}
        """By name; replaced and not changed, because readers look at it from their threads."""
        self._of: dict[str, Peer] = {}
        """The open attempts on runners."""
        self._unsent: set[str] = set()
        """Those of them that were claimed since the start and never tried to be sent."""
        self._withdrawn: set[str] = set()
        """Those of them that are not to be sent any more."""
        self.executors: frozenset[str] = frozenset()
        """Those that work on runners, and not in the daemon."""
        self.next_try: Callable[[str], int | None] = lambda _: None
        """Gives when a link that is down is dialled again (wall time); `Lines` sets it."""
        self.connection: Callable[[str], Connection | None] = lambda _: None
        """Gives the connection of a link that is in use; `Lines` sets it."""
        self.strayed: Callable[[], None] = lambda: None
        """Hears that an attempt became a runner's which was lost meanwhile; `Lines` sets it."""
        self._up: set[str] = set()
        """The links that are up."""

    def configure(self, remotes: Sequence[Remote]) -> None:
        """Takes the runners of a config over; one that left it stays as long as it has attempts."""
        sections = {remote.name: remote for remote in remotes}
        peers: dict[str, Peer] = {}
        now_s = self._clock.monotonic_s()
        for name in {**self.peers, **sections}:
            section = sections.get(name)
            peer = self.peers.get(name) or Peer(name, None, now_s)
            if peer.link != (section and section.link):
                # Over another link it is heard anew, and nobody has asked it there yet.
                peer.heartbeat, peer.awaited_s = None, now_s
                if section is not None:
                    peer.token, peer.watched_s, peer.unanswered = self._clock.uuid(), float("-inf"), 0
            peer.section = section
            if section is not None or peer.open:
                peers[name] = peer
        self.peers = peers
        self.executors = given_away(remotes)

    def of(self, executor: str) -> list[Peer]:
        """Gives the runners that may get an executor's tasks."""
        peers = self.peers.values()
        return [peer for peer in peers if executor in peer.executors]

    def on_link(self, link: str) -> list[Peer]:
        """Gives the runners that a link leads to."""
        return [peer for peer in self.peers.values() if peer.link == link]

    def link_up(self, link: str) -> None:
        """Hears that a link is up: leases begin anew, because nobody could be heard before."""
        if link not in self._up:
            self._up.add(link)
            for peer in self.on_link(link):
                peer.awaited_s = self._clock.monotonic_s()
                peer.token, peer.watched_s = self._clock.uuid(), float("-inf")
                peer.missing.clear()

    def link_down(self, link: str) -> None:
        """Hears that a link is down: nothing is sent, and nobody is called lost."""
        self._up.discard(link)

    def reaches(self, runner: str) -> bool:
        """Tells whether something can be sent to a runner now."""
        peer = self.peers.get(runner)
        return peer is not None and peer.link in self._up

    def is_up(self, link: str | None) -> bool:
        """Tells whether a link is up."""
        return link in self._up

    def state(self, peer: Peer) -> State:
        """Says how a runner is."""
        if peer.link is not None and peer.link not in self._up:
            return "link_down"
        if peer.lost_at_ms is not None:
            return "lost"
        if peer.heartbeat is None or peer.heard_s + peer.lease_s <= self._clock.monotonic_s():
            return "expected"  # Or heard so long before the link was down that it may be gone.
        return "leaving" if peer.leaves else "up"

    def hear(self, name: str, heartbeat: Heartbeat) -> bool:
        """Takes a heartbeat; tells whether it may let something start. Of an unknown runner it says nothing.

        Nor does one that answers an earlier watch: whoever sent it may be dead by now. But that it leaves stays true.
        """
        peer = self.peers.get(name)
        if peer is None:
            return False
        if heartbeat.token not in (peer.token, None):
            return peer.left_before(heartbeat)
        before, was_away = peer.heartbeat, self.state(peer) in ("lost", "expected")
        news = was_away or before is None or bool(peer.bounced) or _ability(before) != _ability(heartbeat)
        if heartbeat.leaving and not peer.leaves:
            peer.watched_s = float("-inf")  # It is told at once that this was heard.
        peer.heartbeat, peer.heard_s, peer.heard_at_ms = heartbeat, self._clock.monotonic_s(), self._clock.wall_ms()
        peer.lost_at_ms = None
        peer.unanswered = 0
        peer.bounced.clear()
        peer.look_for_missing(heartbeat, peer.heard_s, self._is_unsent)
        return news

    def lease_ends_s(self, peer: Peer) -> float | None:
        """Gives when a runner's lease is over (monotonic); None while its link is down, and where it is over."""
        if peer.lost_at_ms is not None or (peer.link is not None and peer.link not in self._up):
            return None
        return max(peer.awaited_s, peer.heard_s) + peer.lease_s

    def alive(self, name: str) -> None:
        """Hears anything of a runner that lives since its link came up: as good as a heartbeat while its lease runs."""
        peer = self.peers.get(name)
        if peer is not None and peer.lost_at_ms is None and peer.heard_s >= peer.awaited_s:
            peer.heard_s, peer.heard_at_ms = self._clock.monotonic_s(), self._clock.wall_ms()

    def silent_s(self, peer: Peer) -> float:
        """Gives for how long nothing was heard of a runner that could be heard."""
        return self._clock.monotonic_s() - max(peer.awaited_s, peer.heard_s)

    def bear_with(self, link: str | None = None) -> None:
        """Begins leases anew, all or those on a link: the daemon itself could not ask or listen for a while."""
        for peer in self.peers.values() if link is None else self.on_link(link):
            peer.awaited_s = self._clock.monotonic_s()
            peer.missing.clear()

    def gone(self, peer: Peer) -> list[str]:
        """Gives the attempts of which a runner has had nothing for so long that their results are lost too."""
        limit_s = self._clock.monotonic_s() - MISSING_LEASES * peer.lease_s
        return [attempt_id for attempt_id, since_s in peer.missing.items() if since_s <= limit_s]

    def lose(self, peer: Peer) -> None:
        """Takes down that a runner's lease is over."""
        peer.lost_at_ms = self._clock.wall_ms()

    def forget_gone(self) -> None:
        """Forgets the runners that left the config and have no attempts any more."""
        self.peers = {name: peer for name, peer in self.peers.items() if peer.section is not None or peer.open}

    def took(self, attempt_id: str, runner: str, executor: str, *, unsent: bool = False) -> None:
        """Counts an attempt that is a runner's from now on; `unsent`: its command was not tried to be sent yet."""
        peer = self.peers.get(runner)
        if peer is None:
            peer = Peer(runner, None, self._clock.monotonic_s())
            self.peers = {**self.peers, runner: peer}
        self._of[attempt_id] = peer
        peer.open[attempt_id] = executor
        peer.by_executor[executor] += 1
        if unsent:
            self._unsent.add(attempt_id)
        if peer.lost_at_ms is not None:
            self.strayed()

    def sends(self, attempt_ids: Iterable[str]) -> None:
        """Hears that commands are being sent: whether they arrive nobody knows before their results."""
        self._unsent.difference_update(attempt_ids)

    def withdraw(self, attempt_id: str) -> None:
        """Keeps a command from being sent, where it surely has not gone out yet."""
        if attempt_id in self._unsent:
            self._unsent.discard(attempt_id)
            self._withdrawn.add(attempt_id)

    def is_spared(self, attempt_id: str) -> bool:
        """Tells whether its runner leaves and its command has surely not gone out: it needn't any more."""
        return attempt_id in self._unsent and self._of[attempt_id].leaves

    def is_withdrawn(self, attempt_id: str) -> bool:
        """Tells whether the attempt is over before its command goes out."""
        return attempt_id in self._withdrawn

    def _is_unsent(self, attempt_id: str) -> bool:
        return attempt_id in self._unsent or attempt_id in self._withdrawn

    def let_go(self, attempt_id: str) -> bool:
        """Forgets an attempt that has ended; tells whether it was a runner's."""
        peer = self._of.pop(attempt_id, None)
        if peer is None:
            return False
        self._unsent.discard(attempt_id)
        self._withdrawn.discard(attempt_id)
        peer.missing.pop(attempt_id, None)
        peer.by_executor[peer.open.pop(attempt_id)] -= 1
        return True

    def running_by_executor(self) -> Counter[str]:
        """Counts the open attempts by executor."""
        return sum((peer.by_executor for peer in self.peers.values()), Counter[str]())

    def where(self, attempt_id: str) -> str | None:
        """Gives the runner that an open attempt was given to."""
        peer = self._of.get(attempt_id)
        return None if peer is None else peer.name

    def bounce(self, attempt_id: str) -> None:
        """Hears that a runner gave a command back: until its next heartbeat it gets no more of that kind."""
        peer = self._of.get(attempt_id)
        if peer is not None:
            peer.bounced.add(peer.open[attempt_id])

    def seats(self, closed: frozenset[str] = frozenset(), ended: Iterable[str] = ()) -> Seats:
        """Gives what the runners can take, but of executors that are closed; `*` in `closed` closes all.

        `ended` are attempts of a transaction that isn't committed yet.
        """
        if not self.executors or "*" in closed:
            return Seats()
        freed: dict[str, Counter[str]] = {}
        for attempt_id in ended:
            peer = self._of.get(attempt_id)
            if peer is not None:
                freed.setdefault(peer.name, Counter())[peer.open[attempt_id]] += 1
        peers = self.peers.values()
        found = (self._seat(peer, closed, freed.get(peer.name, Counter())) for peer in peers)
        seats = [seat for seat in found if seat is not None]
        unheard = frozenset(executor for name in self.unheard() for executor in self.peers[name].executors)
        return Seats(seats, frozenset(label for peer in peers for label in peer.labels), unheard)

    def unheard(self) -> dict[str, float]:
        """Gives the runners that have yet to say which labels they have, and until when that is waited for (monotonic).

        A link that is down keeps nobody waiting for longer than a lease.
        """
        new = (peer for peer in self.peers.values() if peer.heartbeat is None and peer.lost_at_ms is None)
        ends = {peer.name: peer.awaited_s + peer.lease_s for peer in new}
        now_s = self._clock.monotonic_s()
        return {name: ends_s for name, ends_s in ends.items() if ends_s > now_s}

    def _seat(self, peer: Peer, closed: frozenset[str], freed: Counter[str]) -> Seat | None:
        heartbeat, section = peer.heartbeat, peer.section
        if heartbeat is None or section is None or self.state(peer) != "up":
            return None
        window = min(WINDOW_OF_SLOTS * heartbeat.slots, section.window_max)
        free = window - len(peer.open) + freed.total()
        if free <= 0:
            return None
        offered = {
            name: WINDOW_OF_SLOTS * peer.offers(name) - peer.by_executor[name] + freed[name]
            for name in section.executors
            if name not in closed
        }
        return Seat(peer.name, peer.labels, window, free, offered, heartbeat.load)

    def gate(self, executor: str, links: dict[str, Gate]) -> Gate | None:
        """Gives what keeps all tasks of an executor from every runner now: a link's gate, or that none offers it.

        `links` are the closed gates of links. None: some runner takes them, or may be heard any moment.
        """
        peers = self.of(executor)
        states = {peer.name: self.state(peer) for peer in peers}
        if any(states[peer.name] == "up" and peer.offers(executor) for peer in peers):
            return None
        shut = [links[peer.link] for peer in peers if peer.link in links and states[peer.name] == "link_down"]
        if shut:
            return structs.replace(shut[0], wake_at_ms=self.next_try(shut[0].subject))
        if any(state in ("expected", "link_down") for state in states.values()):
            return None  # It may be heard any moment.
        since_ms = max((peer.lost_at_ms or peer.heard_at_ms or 0 for peer in peers), default=0)
        detail = "; ".join(self._said(peer, executor, frozenset()) for peer in peers)
        problem = Problem.make("no_runner", executor=executor, detail=detail)
        return Gate(f"executor:{executor}", "executor", executor, since_ms, None, problem)

    def waits(self, executor: str, labels: Collection[str]) -> str | None:
        """Says why no runner takes a task now; None where one does, or the executor works in the daemon."""
        seats = self.seats()
        if executor not in self.executors or seats.could(executor, labels):
            return None
        peers = self.peers.values()
        wanted = frozenset(labels).intersection(label for peer in peers for label in peer.labels)
        unheard = self.unheard() if seats.holds(executor, labels) else None
        meant = (peer for peer in self.of(executor) if unheard is None or peer.name in unheard)
        return "; ".join(self._said(peer, executor, wanted) for peer in meant)

    def _said(self, peer: Peer, executor: str, wanted: frozenset[str]) -> str:
        match self.state(peer):
            case "leaving":
                return f"{peer.name} is leaving"
            case "expected":
                return f"{peer.name} has not been heard yet"
            case "link_down":
                return f"the link {peer.link} to {peer.name} is down"
            case "lost":
                return f"{peer.name} is lost"
            case "up" if not peer.offers(executor):
                return f"{peer.name} doesn't offer it"
            case "up" if not wanted <= peer.labels:
                return f"{peer.name} isn't labelled {', '.join(sorted(wanted - peer.labels))}"
            case "up":
                return f"{peer.name} has all that it takes at once ({len(peer.open)})"


def _ability(heartbeat: Heartbeat) -> tuple[object, ...]:
    """Gives what of a heartbeat decides about new commands, its load apart."""
    return heartbeat.slots, heartbeat.executors, heartbeat.labels, heartbeat.leaving, heartbeat.incarnation
