"""Calls to models past the gateway: one request over HTTP/1.1, small and fast, with every limit of its own.

Redirects are not followed, because they would take the key along. A cancelled call closes its connection, so that the
provider can stop. The HTTP library is imported when the first call is made.
"""

import contextlib
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import TYPE_CHECKING, Any

import anyio
from msgspec import structs

from omnid import platform
from omnid.channels import profile_of
from omnid.clock import Clock
from omnid.executor.model_errors import BODY_BYTES_MAX, CallFailed, Failure, Signs, classify
from omnid.executor.model_wire import STREAM, Answer, Ask, HttpRequest, StreamReader, build, read_answer, read_listing
from omnid.settings import Channel, Models
from omnid.worker.gateway_signs import trouble_of

if TYPE_CHECKING:
    import httpcore2

CONNECTIONS_MAX, KEPT_MAX, KEPT_S = 128, 16, 30.0
EVENT_BYTES_MAX = 1 << 20
PROBE_S = 10.0
LISTED_MAX, LISTING_BYTES_MAX = 1000, 8 << 20
"""The most models of a list; the wire that has pages gives so many on one at most."""

OnText = Callable[[str], None]


class Direct:
    """Calls channels directly. Its connections are kept for the next call; `aclose` closes them."""

    def __init__(self, clock: Clock, models: Models, tls: ssl.SSLContext | None = None) -> None:
        self._clock = clock
        self._models = models
        self._tls = tls
        self._made: httpcore2.AsyncConnectionPool | None = None

    def configure(self, models: Models) -> None:
        """Takes over the limits of a changed config; calls that are open keep theirs."""
        self._models = models

    async def call(
        self, channel: Channel, key: str, ask: Ask, deadline_s: float, on_text: OnText | None = None
    ) -> Answer | Failure:
        """Asks a model and gives its answer, or what its failure means; takes `deadline_s` at most.

        `key` is the key itself. `on_text` gets the pieces of a streamed answer as they come, and must not block.
        """
        heard = _Heard(self._clock.monotonic_s(), on_text)
        try:
            with anyio.fail_after(deadline_s):
                return await self._call(channel, build(channel, key, ask), heard)
        except TimeoutError:
            waited_s = self._clock.monotonic_s() - heard.quiet_since_s
            signs = Signs(what="deadline", waited_s=waited_s, sent=heard.sent, began=heard.began)
        except CallFailed as error:
            signs = error.signs
        return self._failure(signs, key)

    async def probe(self, channel: Channel, key: str, timeout_s: float = PROBE_S) -> Failure | None:
        """Asks the channel something that costs nothing; None: it answers, and takes the key."""
        got = await self._got(channel, key, profile_of(channel).probe_path, timeout_s, 0)
        return got if isinstance(got, Failure) else None

    async def listing(self, channel: Channel, key: str, timeout_s: float = PROBE_S) -> frozenset[str] | Failure:
        """Asks which models the channel has, which costs nothing; gives the provider's names for them."""
        path = f"/models?limit={LISTED_MAX}" if channel.wire == "anthropic" else "/models"
        got = await self._got(channel, key, path, timeout_s, LISTING_BYTES_MAX)
        try:
            return got if isinstance(got, Failure) else read_listing(got)
        except CallFailed as error:
            return self._failure(error.signs, key)

    async def aclose(self) -> None:
        """Closes the connections that were kept."""
        made, self._made = self._made, None
        if made is not None:
            await made.aclose()

    async def _got(self, channel: Channel, key: str, path: str, timeout_s: float, bytes_max: int) -> bytes | Failure:
        """Gives what a GET is answered with; with `bytes_max` 0 its body isn't read."""
        request = build(channel, key, Ask("", (), 1))
        url = channel.base_url.removesuffix("/v1") + "/v1" if channel.wire == "anthropic" else channel.base_url
        request = HttpRequest(url + path, request.headers, b"")
        heard = _Heard(self._clock.monotonic_s(), None)
        try:
            with anyio.fail_after(timeout_s):
                async with self._sent(request, heard, "GET") as response:
                    await self._checked(response, heard)
                    return await self._whole(response, heard, bytes_max) if bytes_max else b""
        except TimeoutError:
            signs = Signs(what="silence", sent=False)
        except CallFailed as error:
            signs = error.signs
        return self._failure(signs, key)

    async def _call(self, channel: Channel, request: HttpRequest, heard: "_Heard") -> Answer:
        async with self._sent(request, heard, "POST") as response:
            headers = await self._checked(response, heard)
            if not headers.get("content-type", "").startswith(STREAM):
                body = await self._whole(response, heard, self._models.answer_bytes_max)
                answer = read_answer(channel.wire, body)
                heard.text(answer.text, self._clock.monotonic_s())
                return structs.replace(answer, first_text_s=heard.first_text_s)
            reader = StreamReader(channel.wire, min(EVENT_BYTES_MAX, self._models.answer_bytes_max))
            async with contextlib.aclosing(self._pieces(response, heard, self._models.answer_bytes_max)) as pieces:
                async for piece in pieces:
                    for text in reader.feed(piece):
                        heard.text(text, self._clock.monotonic_s())
            return reader.finish("".join(heard.texts), heard.first_text_s)

    @contextlib.asynccontextmanager
    async def _sent(self, request: HttpRequest, heard: "_Heard", method: str) -> "AsyncGenerator[httpcore2.Response]":
        """Sends a request and gives its response; maps what the library raises."""
        limits = self._models
        timeouts = {
            "pool": limits.connect_timeout_s,
            "connect": limits.connect_timeout_s,
            "write": limits.silence_timeout_s,
            "read": limits.silence_timeout_s,
        }
        try:
            async with self._pool().stream(
                method,
                request.url,
                headers=request.headers,
                content=request.body,
                extensions={"timeout": timeouts, "trace": heard.trace},
            ) as response:
                yield response
        except (CallFailed, TimeoutError):
            raise
        except Exception as error:  # noqa: BLE001 - Whatever the library or the system raises here ends this call only.
            what, sent = trouble_of(error)
            waited_s = self._clock.monotonic_s() - heard.quiet_since_s
            # Not the error itself: what it says of a header that can't be written holds the key.
            signs = Signs(
                what=what, detail=_detail(error), waited_s=waited_s, sent=sent and heard.sent, began=heard.began
            )
            raise CallFailed(signs) from None

    def _pool(self) -> "httpcore2.AsyncConnectionPool":
        if self._made is None:
            import httpcore2

            self._made = httpcore2.AsyncConnectionPool(
                ssl_context=self._tls,
                max_connections=CONNECTIONS_MAX,
                max_keepalive_connections=KEPT_MAX,
                keepalive_expiry=KEPT_S,
                socket_options=platform.watchful(self._models.connect_timeout_s),
            )
        return self._made

    async def _checked(self, response: "httpcore2.Response", heard: "_Heard") -> Mapping[str, str]:
        """Gives the headers of a good answer; raises `CallFailed` for any other."""
        heard.since(self._clock.monotonic_s())
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
        if 200 <= response.status < 300:
            return headers
        if 300 <= response.status < 400:
            raise CallFailed(Signs(what="redirect", status=response.status))
        body = await self._whole(response, heard, BODY_BYTES_MAX, cut=True)
        text = body.decode(errors="replace")
        raise CallFailed(Signs(what="status", status=response.status, headers=headers, body=text))

    async def _whole(
        self, response: "httpcore2.Response", heard: "_Heard", bytes_max: int, *, cut: bool = False
    ) -> bytes:
        """Reads a body; beyond the limit it is cut, or raises `CallFailed`."""
        body = bytearray()
        try:
            async with contextlib.aclosing(self._pieces(response, heard, bytes_max)) as pieces:
                async for piece in pieces:
                    body += piece
        except CallFailed:
            if not cut:
                raise
        return bytes(body)

    async def _pieces(self, response: "httpcore2.Response", heard: "_Heard", bytes_max: int) -> AsyncGenerator[bytes]:
        read_bytes = 0
        async with contextlib.aclosing(response.aiter_stream()) as stream:
            async for piece in stream:
                heard.since(self._clock.monotonic_s())
                read_bytes += len(piece)
                if read_bytes > bytes_max:
                    detail = f"it has more than {bytes_max} bytes"
                    raise CallFailed(Signs(what="too_large", detail=detail, began=heard.began))
                yield piece

    def _failure(self, signs: Signs, key: str) -> Failure:
        return classify(signs, self._clock.wall_ms(), key)


class _Heard:
    """What has been heard of a call so far."""

    def __init__(self, began_s: float, on_text: OnText | None) -> None:
        self.quiet_since_s = began_s
        self.texts: list[str] = []
        self.first_text_s: float | None = None
        self.sent = False
        self._began_s = began_s
        self._on_text = on_text

    @property
    def began(self) -> bool:
        return bool(self.texts)

    def since(self, now_s: float) -> None:
        """Something has come."""
        self.quiet_since_s = now_s

    def text(self, text: str, now_s: float) -> None:
        if self.first_text_s is None:
            self.first_text_s = now_s - self._began_s
        self.texts.append(text)
        if self._on_text is not None:
            self._on_text(text)

    async def trace(self, event: str, _: Mapping[str, Any]) -> None:
        """Hears from the library when the request begins to leave."""
        if event == "http11.send_request_headers.started":
            self.sent = True


def _detail(error: Exception) -> str:
    """Says in words what the system said, for errors of the system alone."""
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OSError) and cause.strerror):
        cause = cause.__cause__ or cause.__context__
    return "" if cause is None else str(cause.strerror)
