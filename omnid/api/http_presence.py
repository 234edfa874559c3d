"""Who asks over HTTP is there, as long as a request goes on and for a while after it; see `flow.presence`."""

from itertools import count

from omnid.api.http_gate import App, Receive, Scope, Send, guest_of
from omnid.flow.presence import QUIET_S, Presence
from omnid.model import AGENT_ORIGIN

_ASKER = "omnid.asker"


class Asker:
    """One request, as a client of the origins that it names itself."""

    def __init__(self, presence: Presence, id: int) -> None:
        self._presence = presence
        self._id = id
        self._origins: set[str] = set()
        self._is_done = False

    def named(self, origin: str) -> None:
        """Hears for whom it asks; who has no name of its own is missed by nobody."""
        if origin not in self._origins and origin != AGENT_ORIGIN:
            self._origins.add(origin)
            self._presence.came(origin, self._id)
            if self._is_done:
                self._presence.went(origin, self._id, QUIET_S)

    def done(self) -> None:
        """Hears that it has been answered, or was broken off; its name may come later all the same."""
        self._is_done = True
        for origin in self._origins:
            self._presence.went(origin, self._id, QUIET_S)


class Attended:
    """Notes who asks, before `app` answers."""

    def __init__(self, presence: Presence, app: App) -> None:
        self._presence = presence
        self._app = app
        self._ids = count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        asker = Asker(self._presence, -next(self._ids))  # Those of the socket's clients are positive.
        scope[_ASKER] = asker
        if (origin := guest_of(scope).origin) is not None:
            asker.named(origin)
        try:
            await self._app(scope, receive, send)
        finally:
            asker.done()


def tell(scope: Scope, origin: str) -> None:
    """Says for whom a request asks whose token didn't; where nobody attends to it, that goes nowhere."""
    asker = scope.get(_ASKER)
    if isinstance(asker, Asker):
        asker.named(origin)
