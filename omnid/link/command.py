"""A command as a destination: it gets the text on its standard input, and what it is about in its environment."""

from collections.abc import Mapping, Sequence

from omnid.errors import Rejected, Retryable
from omnid.link.destination import Single, place_of, text_of
from omnid.link.program import run
from omnid.model import Delivery
from omnid.settings import Destination

EX_DATAERR = 65
"""The exit code of a command that will never take this (sysexits.h); any other failure is tried again."""


class CommandDestination(Single):
    """Implements `destination.Destination` for the kind ``command``. `environ` is what the command gets of omnid's."""

    def __init__(self, section: Destination, environ: Mapping[str, str]) -> None:
        super().__init__(section.name, section.timeout_s)
        self._argv = section.argv
        self._environ = environ

    async def send(self, batch: Sequence[Delivery]) -> None:
        """See `Destination.send`: exit code 0 means that it has been delivered."""
        for delivery in batch:
            environ = {
                **self._environ,
                "OMNID_DELIVERY": delivery.id,
                "OMNID_KIND": delivery.kind,
                "OMNID_EVENT": str(delivery.body.get("event", "")),
                "OMNID_TASK": str(delivery.body.get("task") or ""),
                "OMNID_TARGET": place_of(delivery, "target"),
                "OMNID_SESSION": place_of(delivery, "session"),
            }
            done = await run(self.name, self._argv, text_of(delivery), environ)
            if done.code == EX_DATAERR:
                raise Rejected("delivery_refused", destination=self.name, detail=done.detail)
            if done.code != 0:
                raise Retryable("delivery_failed", destination=self.name, detail=done.detail)
