"""The link to clients: which named origins are at the socket or ask over HTTP, and whose work goes on without them.

An origin is away when its last client has gone, stays gone for a moment, and left work that has not ended. That is an
outage with the cause `client`; it rings `client.away`, and `client.back` when the origin returns. Over HTTP a client is
a request, and the moment is longer: nobody hears that one has gone who asks now and then.
"""

from functools import partial

import anyio

from omnid.errors import Retryable
from omnid.flow import outages
from omnid.flow.context import Bell, Context
from omnid.model import USER_ORIGIN, Gate
from omnid.store.interface import Tx

CLIENT = outages.CLIENT
GRACE_S = 5.0
"""How long the last client of an origin must be gone: one that is started anew is not away."""
QUIET_S = 90.0
"""The same for one that asks over HTTP: longer than a wait for results lasts there, with the pause before the next."""
WORK_MAX = 1_000
"""Up to how many tasks of an origin are counted."""


class Presence:
    """Keeps count of who is there; `run` writes down who went and who came back."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._there: dict[str, set[int]] = {}
        self._until_s: dict[str, float] = {}
        """Until when (monotonic) an origin without a client counts as there."""
        self._returned: set[str] = set()
        self._bell = Bell()

    def came(self, origin: str, client: int) -> None:
        """A client has said whose it is. People's own origin is nobody's who could be away."""
        if origin == USER_ORIGIN:
            return
        if origin not in self._there and origin not in self._until_s:
            self._returned.add(origin)
            self._bell.ring()
        self._there.setdefault(origin, set()).add(client)

    def went(self, origin: str, client: int, grace_s: float | None = None) -> None:
        """A client has gone; `grace_s`: how long its origin counts as there all the same (`GRACE_S`)."""
        clients = self._there.get(origin)
        if clients is None:
            return
        clients.discard(client)
        if not clients:
            del self._there[origin]
        until_s = self._context.clock.monotonic_s() + (GRACE_S if grace_s is None else grace_s)
        is_news = origin not in self._until_s
        self._until_s[origin] = max(until_s, self._until_s.get(origin, until_s))
        if is_news:
            self._bell.ring()  # Else it wakes in time, and finds that it is later.

    async def run(self) -> None:
        """Writes it down, each in its time; ends when it is cancelled."""
        while True:
            await self._write_returns()
            next_s = await self._write_absences()
            with anyio.move_on_after(next_s):
                await self._bell.wait()

    async def _write_returns(self) -> None:
        for origin in tuple(self._returned):
            await self._context.store.write(lambda tx, origin=origin: outages.over(tx, CLIENT, origin))
            self._returned.discard(origin)

    async def _write_absences(self) -> float | None:
        """Writes down who is away by now; gives when the next may be, in seconds."""
        clock = self._context.clock
        if self._context.paused_starts:
            return None  # The daemon is stopping, and it is that which goes.
        for origin, until_s in tuple(self._until_s.items()):
            if clock.monotonic_s() < until_s:
                continue
            # First, so that whoever comes while it is written has returned.
            del self._until_s[origin]
            if origin in self._there:
                continue
            try:
                await self._context.store.write(partial(_away, origin=origin, id=clock.uuid()))
            except Retryable:
                self._until_s.setdefault(origin, until_s)
                raise
        return min((until_s - clock.monotonic_s() for until_s in self._until_s.values()), default=None)


def _away(tx: Tx, *, origin: str, id: str) -> None:
    row = tx.one("unfinished_of", origin, WORK_MAX)
    if row is not None and row[0]:
        outages.began(tx, Gate(f"{CLIENT}:{origin}", CLIENT, origin, tx.now_ms, None), id, parked=row[0])
