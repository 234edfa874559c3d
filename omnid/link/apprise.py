"""Apprise as a destination: its hundred services, through its library in a process of its own.

The URL of a service holds its keys, so it goes to the process on standard input, never on its command line. The
library is an optional extra and large, so the daemon never imports it.
"""

import json
import sys
from collections.abc import Mapping, Sequence

from omnid.errors import Rejected, Retryable
from omnid.link.destination import Single, resolved, text_of
from omnid.link.program import run
from omnid.model import Delivery
from omnid.secrets import Secrets
from omnid.settings import Destination

MISSING, BAD_URL = 3, 4
_SCRIPT = f"""
import json, sys
try:
    import apprise
except ImportError:
    sys.exit({MISSING})
job = json.load(sys.stdin)
service = apprise.Apprise()
if not service.add(job["url"]):
    sys.exit({BAD_URL})
sys.exit(0 if service.notify(body=job["text"], title="omnid") else 1)
"""


class AppriseDestination(Single):
    """Implements `destination.Destination` for the kind ``apprise``; `argv` names another Python that has the library.

    Apprise knows no ids: where a confirmation is lost, the notice comes twice.
    """

    def __init__(self, section: Destination, secrets: Secrets, environ: Mapping[str, str]) -> None:
        super().__init__(section.name, section.timeout_s)
        self._argv = section.argv or (sys.executable,)
        self._url = section.url
        self._secrets = secrets
        self._environ = environ

    async def send(self, batch: Sequence[Delivery]) -> None:
        """See `Destination.send`."""
        url = await resolved(self.name, self._url, self._secrets)
        for delivery in batch:
            job = json.dumps({"url": url, "text": text_of(delivery)})
            done = await run(self.name, (*self._argv, "-c", _SCRIPT), job, self._environ)
            if done.code == MISSING:
                detail = f"{self._argv[0]} has no apprise (pip install 'omnid[apprise]')"
                raise Retryable("delivery_failed", destination=self.name, detail=detail)
            if done.code == BAD_URL:
                raise Rejected("delivery_refused", destination=self.name, detail="Apprise doesn't know its URL")
            if done.code != 0:
                raise Retryable("delivery_failed", destination=self.name, detail=done.detail)
