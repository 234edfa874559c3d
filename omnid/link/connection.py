"""A link that is kept open: dialled again with jittered backoff, and watched.

A broker that is frozen takes connections and says nothing, so only a ping tells; one that answers late is slow.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing

import anyio

from omnid.clock import Clock
from omnid.errors import Rejected, Retryable
from omnid.link import network
from omnid.link.beats import Beats, Quality
from omnid.link.interface import Link, LinkDown, LinkFull, Message, Received
from omnid.log import Logger
from omnid.model import Problem
from omnid.retry import Backoff
from omnid.settings_links import Link as Section

Dial = Callable[[], Awaitable[Link]]
"""Makes a link that isn't connected yet, with its secrets as they are now; raises Rejected."""

REFUSED_TRIES = 64
"""So often a link counts as tried that a person has to mend: as the longest wait there is."""


class Connection:
    """See `interface.Messenger`: it sends and receives over one link after the other, while `run` runs.

    `back` hears for how long it was down, in the place of the log: whoever knows what goes out now says more.
    `changed` is called when it goes up, when it goes down, and when it becomes slow or quick, full or not. `moves`
    yields when the machine's network has changed.
    """

    def __init__(
        self,
        section: Section,
        dial: Dial,
        clock: Clock,
        log: Logger,
        changed: Callable[[], None],
        back: Callable[[float], None] | None = None,
        *,
        moves: Callable[[], AsyncGenerator[None]] = network.changes,
    ) -> None:
        self._section = section
        self._dial = dial
        self._clock = clock
        self._log = log
        self._changed = changed
        self._back = back
        self._moves = moves
        self._pause: anyio.CancelScope | None = None
        """Around the wait for the next dial."""
        self._link: Link | None = None
        self._broken = anyio.Event()
        self._error: LinkDown | Rejected = LinkDown("link_down", link=section.name, detail="it hasn't been dialled yet")
        self._named_until_s = float("-inf")
        """Until when this end surely has its name (boottime)."""
        self._down_at_s: float | None = None
        """Since when it is down; None while it is up, and before the first dial."""
        self._logged = False
        """Whether the outage that goes on stands in the log."""
        self._full: LinkFull | None = None
        self._refusing: set[str] = set()
        """The destinations that can't take what is sent to them although it is up; they are tried with each ping."""
        self._received: list[Received] = []
        self._arrived = anyio.Event()
        self._taken = anyio.Event()
        self.beats = Beats(section.slow_s)
        """What its pings and dials have shown."""
        self.next_try_at_ms: int | None = None
        """When it is dialled again (wall time); None while it is up or being dialled."""

    @property
    def problem(self) -> Problem | None:
        """Why it is down; None while it is up."""
        return None if self._link is not None else Problem.of(self._error)

    @property
    def full(self) -> Problem | None:
        """Why it takes nothing now although it is up; None where it does."""
        return None if self._full is None else Problem.of(self._full)

    @property
    def trouble(self) -> Problem | None:
        """Why nothing can be sent now: it is down, or full."""
        return self.problem or self.full

    @property
    def quality(self) -> Quality:
        """How it does now."""
        if self._link is None:
            return "down"
        return "degraded" if self._full is not None or self.beats.is_slow or self.beats.is_lossy else "up"

    def was_down(self, down_s: float) -> None:
        """Takes an outage over that began so long before this connection was made; called before `run`."""
        self._down_at_s = self._clock.monotonic_s() - down_s

    async def run(self) -> None:
        """Keeps it open until it is cancelled."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._hurry)
            await self._dial_on()

    async def _hurry(self) -> None:
        """Ends the wait for the next dial when the network has changed: it may be there again."""
        async with aclosing(self._moves()) as moves:
            async for _ in moves:
                if self._pause is not None:
                    self._pause.cancel()

    async def _dial_on(self) -> None:
        """Dials again and again; the pauses grow, however one of them may end."""
        section, failures = self._section, 0
        backoff = Backoff(section.retry_base_s, max(section.retry_base_s, section.retry_max_s))
        while True:
            pause = self._pause = anyio.CancelScope()  # Before the dial, so that a change in its midst counts too.
            up_s = await self._once()
            failures = 1 if up_s >= section.stable_s else failures + 1
            # What only a person can mend needn't be tried often, but isn't given up either.
            tries = failures if isinstance(self._error, LinkDown) else REFUSED_TRIES
            wait_s = backoff.delay_s(tries, self._clock.uniform)
            self.next_try_at_ms = self._clock.wall_ms() + round(1000 * wait_s)
            with pause:
                await anyio.sleep(wait_s)
            self.next_try_at_ms = None

    async def _once(self) -> float:
        """Dials and lets messages through until that fails; gives for how long it was up."""
        up_s, began_s = 0.0, self._clock.boottime_s()
        try:
            async with await self._dial() as link:
                up_at_s = self._clock.monotonic_s()
                self._named_until_s = began_s + link.name_s
                self._went_up(link, up_at_s)
                try:
                    await self._serve(link)
                except Exception:  # Whoever keeps this going logs it; all others hear that the link is down.
                    detail = "omnid failed over it, and its log says how"
                    self._went_down(LinkDown("link_down", link=self._section.name, detail=detail))
                    raise
                up_s = self._clock.monotonic_s() - up_at_s
                self._went_down(self._error)  # Before the goodbye, which may take a moment.
        except (LinkDown, Rejected) as error:
            self._went_down(error)
        return up_s

    def _went_up(self, link: Link, now_s: float) -> None:
        down_s = None if self._down_at_s is None else round(now_s - self._down_at_s, 3)
        if down_s is None or self._back is None:
            self._log.info("link_up", link=self._section.name, down_s=down_s)
        else:
            self._back(down_s)
        self._down_at_s, self._logged = None, False
        self._broken = anyio.Event()
        self._link = link
        self._changed()

    def _went_down(self, error: LinkDown | Rejected) -> None:
        self._error = error
        self.beats.look(self._clock.wall_ms(), "down")
        if self._down_at_s is None:
            self._down_at_s = self._clock.monotonic_s()
        if not self._logged:
            self._logged = True
            self._log.warning("link_down", link=self._section.name, **error.as_dict())
        self._changed()

    async def _serve(self, link: Link) -> None:
        """Lets messages through until the link breaks."""
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._breaks, link, self._pings)
                group.start_soon(self._breaks, link, self._receives)
                await self._broken.wait()
                group.cancel_scope.cancel()
        finally:
            self._link = None
            self._received = []  # They come again.
            self._full = None
            self._refusing.clear()

    async def _breaks(self, link: Link, loop: Callable[[Link], Awaitable[None]]) -> None:
        try:
            await loop(link)
        except LinkDown as error:
            self._break(link, error)

    def _break(self, link: Link, error: LinkDown) -> None:
        """Ends a link that has failed; the first error is the one that counts."""
        if link is self._link and not self._broken.is_set():
            self._error = error
            self._broken.set()

    async def _pings(self, link: Link) -> None:
        """Pings on and on: no answer in time is a frozen broker, a late one is a slow one."""
        while True:
            began_s, was_slow = self._clock.monotonic_s(), self.beats.is_slow
            full: LinkFull | None = None
            try:
                await self._ping(link)
            except LinkFull as error:
                full = error
            except LinkDown:
                self.beats.ping(self._clock.wall_ms(), None)
                raise
            latency_s = self._clock.monotonic_s() - began_s
            self.beats.ping(self._clock.wall_ms(), latency_s)
            if full is not None:
                self.beats.look(self._clock.wall_ms(), "degraded")
            if self.beats.is_slow != was_slow:
                self._log.info("link_quick" if was_slow else "link_slow", link=self._section.name, s=latency_s)
            if self._fills(link, full) or self.beats.is_slow != was_slow or self._refusing:
                self._changed()
            await anyio.sleep(self._section.ping_every_s)

    async def _ping(self, link: Link) -> None:
        """Pings: an answer says that this end has its name, and so may one that there is no room; see `Link.name_s`."""
        began_s = self._clock.boottime_s()
        try:
            await link.ping()
        except LinkFull:
            self._named_until_s = began_s + link.name_s
            raise
        self._named_until_s = began_s + link.name_s

    def _fills(self, link: Link, full: LinkFull | None) -> bool:
        """Takes that the other side has no room for more, or has some again; tells whether that is news."""
        was_full, is_full = self._full is not None, full is not None
        if link is not self._link or was_full == is_full:
            return False
        self._full = full
        if full is not None:
            self._log.warning("link_full", link=self._section.name, **full.as_dict())
        else:
            self._log.info("link_has_room", link=self._section.name)
        return True

    async def _receives(self, link: Link) -> None:
        """Hands on what comes, and takes no more before that is taken."""
        while True:
            self._received = [one._replace(tag=(link, one.tag)) for one in await link.receive()]
            self._taken = anyio.Event()
            self._arrived.set()
            await self._taken.wait()

    async def send(self, to: str, batch: Sequence[Message]) -> None:
        """See `Messenger.send`; raises LinkDown at once while it is down, and LinkFull while it is full."""
        if self._full is not None:
            raise LinkFull("link_full", link=self._section.name, detail=self._full.fields["detail"])
        try:
            await self._through(lambda link: link.send(to, batch))
        except LinkDown:
            raise
        except Retryable as error:
            if to not in self._refusing:
                self._log.warning("destination_down", link=self._section.name, destination=to, **error.as_dict())
            self._refusing.add(to)
            raise
        self._refusing.discard(to)

    async def keep_name(self) -> None:
        """See `Station.keep_name`: who was stopped, or slept with the machine, asks before anything else."""

        async def keep(link: Link) -> None:
            if self._clock.boottime_s() >= self._named_until_s:
                await self._ping(link)

        try:
            await self._through(keep)
        except LinkFull:
            if self._link is None or not self._link.name_s:
                raise

    async def receive(self) -> list[Received]:
        """See `Messenger.receive`; waits while it is down. It may be cancelled."""
        while not self._received:
            self._arrived = anyio.Event()
            await self._arrived.wait()
        received, self._received = self._received, []
        self._taken.set()
        return received

    async def ack(self, received: Sequence[Received]) -> None:
        """See `Messenger.ack`; what came over an earlier link is left out, because it comes again."""
        await self._through(lambda link: link.ack(_of(link, received)))

    async def refuse(self, received: Received, why: str) -> None:
        """See `Messenger.refuse`; what came over an earlier link is left out, because it comes again."""

        async def refuse(link: Link) -> None:
            for one in _of(link, (received,)):
                await link.refuse(one, why)

        await self._through(refuse)

    async def _through(self, call: Callable[[Link], Awaitable[None]]) -> None:
        link = self._link
        if link is None:
            raise LinkDown("link_down", link=self._section.name, detail=self._reason)
        try:
            await call(link)
        except LinkFull as error:
            if self._fills(link, error):
                self._changed()
            raise
        except LinkDown as error:
            self._break(link, error)
            raise

    @property
    def _reason(self) -> str:
        return str(self._error.fields.get("detail") or self._error.what.rstrip("."))


def _of(link: Link, received: Sequence[Received]) -> list[Received]:
    """Gives what came over this link, as the link knows it."""
    return [one._replace(tag=one.tag[1]) for one in received if one.tag[0] is link]
