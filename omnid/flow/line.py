"""One link of the daemon with what runs on it; see `lines`."""

import anyio

from omnid.flow.comeback import Comeback
from omnid.flow.context import Bell
from omnid.link.connection import Connection
from omnid.settings_links import Link as Section


class Line:
    """A link of the config, and how far it is."""

    def __init__(self, section: Section, connection: Connection, comeback: Comeback) -> None:
        self.section = section
        self.connection = connection
        self.comeback = comeback
        self.scope = anyio.CancelScope()
        self.bell = Bell()
        """Rung when it has gone up or down."""
        self.tried = False
        """Whether it has been up or down yet."""
        self.settling = False
        """Whether results that have come are being written down."""
        self.taken = 0
        """How many batches of what comes were."""
        self.ended = anyio.Event()
        """Set once it has said goodbye."""
