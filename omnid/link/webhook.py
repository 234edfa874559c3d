"""A webhook as a destination: JSON by POST, signed as Standard Webhooks 1.0 says (www.standardwebhooks.com)."""

import base64
import binascii
import hmac
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from hashlib import sha256
from importlib import import_module
from math import ceil
from typing import Any

import anyio.to_thread
import msgspec

from omnid import __version__
from omnid.clock import Clock
from omnid.errors import Rejected, Retryable
from omnid.link.destination import AFTER_S_MAX, Single, resolved
from omnid.model import Delivery
from omnid.secrets import Secrets
from omnid.settings import Destination

SECRET_PREFIX = "whsec_"
AGAIN = frozenset({408, 425, 429})
"""What a server answers that may take it later; any other 4xx, and a redirect, is for good."""
ROUTE = frozenset({"text", "target", "session", "event"})
"""What of a body is not data: it stands elsewhere in the message, or is meant for other kinds of destinations."""


def key_of(secret: str) -> bytes:
    """Gives the key of a signing secret: ``whsec_`` and base64, or any other text as it is."""
    if secret.startswith(SECRET_PREFIX):
        try:
            return base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
        except binascii.Error:
            pass
    return secret.encode()


def signature(key: bytes, id: str, timestamp_s: int, body: bytes) -> str:
    """Signs ``id.timestamp.body`` with HMAC-SHA256, as the header ``webhook-signature`` holds it."""
    signed = b"%b.%d.%b" % (id.encode(), timestamp_s, body)
    return f"v1,{base64.b64encode(hmac.new(key, signed, sha256).digest()).decode()}"


def payload(delivery: Delivery) -> bytes:
    """Gives the body of the request: ``type``, ``timestamp`` (when it happened) and ``data``, with the text in it."""
    event = delivery.body.get("event")
    kind = f"task.{event}" if delivery.kind == "answer" else f"{delivery.kind}.{event}" if event else delivery.kind
    data: dict[str, Any] = {
        "text": delivery.body.get("text", ""),
        "target": delivery.body.get("target"),
        "session": delivery.body.get("session"),
        **{name: value for name, value in delivery.body.items() if name not in ROUTE},
    }
    at = datetime.fromtimestamp(delivery.created_at_ms / 1000, UTC)
    return msgspec.json.encode({"type": kind, "timestamp": at, "data": data})


def retry_after_s(value: str, now_ms: int) -> int | None:
    """Reads ``Retry-After``, seconds or a date (RFC 9110 section 10.2.3); None where it is neither."""
    if value.strip().isdigit():
        return min(int(value), AFTER_S_MAX)
    try:
        at_ms = parsedate_to_datetime(value).timestamp() * 1000
    except (TypeError, ValueError):
        return None
    return min(max(0, ceil((at_ms - now_ms) / 1000)), AFTER_S_MAX)


def _said(error: BaseException) -> str:
    """Gives what is behind an error: the library's own may say nothing, where the system's names the cause."""
    cause: BaseException | None = error
    while cause is not None:
        if str(cause):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__


class WebhookDestination(Single):
    """Implements `destination.Destination` for the kind ``webhook``.

    TLS is verified, redirects aren't followed, and each delivery has a connection of its own: they are rare, and a
    kept one may be dead. The receiver knows a second one by ``webhook-id`` (also sent as ``Idempotency-Key``).
    """

    def __init__(self, section: Destination, secrets: Secrets, clock: Clock) -> None:
        super().__init__(section.name, section.timeout_s)
        self._url = section.url
        self._secret = section.secret
        self._secrets = secrets
        self._clock = clock

    async def send(self, batch: Sequence[Delivery]) -> None:
        """See `Destination.send`."""
        url = await resolved(self.name, self._url, self._secrets)
        key = key_of(await resolved(self.name, self._secret, self._secrets)) if self._secret else None
        for delivery in batch:
            body = payload(delivery)
            # The time of this try: receivers refuse what is signed minutes ago.
            timestamp_s = self._clock.wall_ms() // 1000
            headers = {
                "content-type": "application/json",
                "user-agent": f"omnid/{__version__}",
                "webhook-id": delivery.id,
                "webhook-timestamp": str(timestamp_s),
                "idempotency-key": delivery.id,
            }
            if key is not None:
                headers["webhook-signature"] = signature(key, delivery.id, timestamp_s, body)
            status, answered = await self._post(url, headers, body)
            self._judge(status, answered)

    async def _post(self, url: str, headers: Mapping[str, str], body: bytes) -> tuple[int, Mapping[str, str]]:
        """Makes the request and gives status and headers; what the server says beyond them isn't read."""
        # It takes a third of a second to import, and most daemons never need it.
        http = await anyio.to_thread.run_sync(import_module, "httpcore2")
        try:
            async with (
                http.AsyncConnectionPool(max_connections=1, retries=0) as pool,
                pool.stream("POST", url, headers=list(headers.items()), content=body) as response,
            ):
                answered = {name.decode().lower(): value.decode("latin-1") for name, value in response.headers}
                return response.status, answered
        except (http.NetworkError, http.TimeoutException, http.ProtocolError, http.ProxyError, OSError) as error:
            raise Retryable("delivery_failed", destination=self.name, detail=_said(error)) from error
        except (http.UnsupportedProtocol, ValueError) as error:
            raise Rejected("delivery_refused", destination=self.name, detail=f"its URL: {error}") from error

    def _judge(self, status: int, answered: Mapping[str, str]) -> None:
        """Takes any 2xx for a confirmation; raises what another status means."""
        if 200 <= status < 300:
            return
        detail = f"the server answered {status}"
        if 300 <= status < 500 and status not in AGAIN:
            raise Rejected("delivery_refused", destination=self.name, detail=detail)
        after_s = retry_after_s(answered.get("retry-after", ""), self._clock.wall_ms())
        if after_s is None:
            raise Retryable("delivery_failed", destination=self.name, detail=detail)
        raise Retryable("delivery_delayed", destination=self.name, detail=detail, after_s=after_s)
