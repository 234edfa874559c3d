"""Whether a runner has read what lay at its broker when it dialled; before that it begins nothing.

The cancel of a command may lie far behind it, as where a person has decided about it while the runner was away. So each
dial is followed by a mark, which the runner sends to itself: once that comes, all before it has come.
"""

import anyio

from omnid.errors import Retryable
from omnid.flow.context import Bell, Context
from omnid.link.interface import LinkDown, LinkFull, Messenger
from omnid.model import Mark

AGAIN_S = 5.0
"""After how long a mark that hasn't come is sent again: the broker may have lost it."""


class Backlog:
    """See the module. Where no mark can be sent, because the broker is full, say, nothing waits for it."""

    def __init__(self, context: Context, messenger: Messenger, name: str) -> None:
        self._context = context
        self._messenger = messenger
        self._name = name
        self._token = context.clock.uuid()
        self._bell = Bell()
        self._read = anyio.Event()

    def link_changed(self, *, up: bool) -> None:
        """Hears that the link has gone up or down, or may take something again."""
        if not up:
            self._token = self._context.clock.uuid()
            if self.is_read:  # Else those who wait for it wait on.
                self._read = anyio.Event()
        self._bell.ring()

    @property
    def is_read(self) -> bool:
        """Whether all has come that lay there."""
        return self._read.is_set()

    async def read(self) -> None:
        """Waits until it has, over however many dials."""
        while not self.is_read:
            await self._read.wait()

    def came(self, token: str) -> None:
        """Hears that a mark has come, of this dial or of an earlier one."""
        if token == self._token:
            self.go_on()

    def go_on(self) -> None:
        """Lets what has come begin."""
        if not self.is_read:
            self._read.set()
            self._context.activity.ring()

    async def run(self) -> None:
        """Sends the mark of each dial until it has come; ends when it is cancelled."""
        while True:
            if not self.is_read:
                await self._mark()
            with anyio.move_on_after(None if self.is_read else AGAIN_S):
                await self._bell.wait()

    async def _mark(self) -> None:
        try:
            await self._messenger.send(self._name, [Mark(self._token)])
        except Retryable as error:
            if isinstance(error, LinkFull) or not isinstance(error, LinkDown):
                self._context.log.debug("backlog_unmarked", detail=error.what)
                self.go_on()
