"""The near end of the gateway's socket: a connection for each call and each probe. `worker.gateway` is the far end."""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, cast

import anyio
import anyio.abc
import msgspec
from msgspec import Struct

from omnid.channels import profile_of
from omnid.clock import Clock
from omnid.errors import Rejected
from omnid.executor.model_errors import CallFailed, Failure, Signs, classify
from omnid.executor.model_wire import Answer, Ask, Parts, extras, usage_from
from omnid.settings import Channel, Models
from omnid.wire import LineSplitter
from omnid.worker.gateway import LINE_BYTES_MAX

KEPT_MAX = 16
OVERTIME_S = 0.5
"""How long a gateway may be late with the end of a call, before it counts as stuck."""

OnText = Callable[[str], None]


class GatewayState(Struct, frozen=True):
    """How the gateway's process is."""

    pid: int
    memory_bytes: int
    running: int
    """Calls that are open in it."""
    calls: int
    """All that it has had."""


class GatewayClient:
    """Talks to a gateway that listens at the path."""

    def __init__(self, path: str, clock: Clock, models: Models) -> None:
        self.path = path
        self.memory_bytes = 0
        """What the gateway held when its last call ended."""
        self._clock = clock
        self._models = models
        self._kept: list[_Lines] = []
        self._open: set[_Lines] = set()
        self._closed = False

    async def call(
        self, channel: Channel, key: str, ask: Ask, deadline_s: float, on_text: OnText | None = None
    ) -> Answer | Failure:
        """Asks a model and gives its answer, or what its failure means; see `Direct.call`."""
        heard: list[str] = []
        began_s = self._clock.monotonic_s()
        first_s: list[float] = []

        def take(text: str) -> None:
            if not heard:
                first_s.append(self._clock.monotonic_s() - began_s)
            heard.append(text)
            if on_text is not None:
                on_text(text)

        sent = [False]
        try:
            with anyio.fail_after(deadline_s + OVERTIME_S):
                done = await self._exchange(self._message(channel, key, ask, deadline_s), take, sent)
            text = done.get("text")
            if isinstance(text, str) and text:
                take(text)
            return _parts(done).answer("".join(heard), first_s[0] if first_s else None)
        except CallFailed as error:
            signs = error.signs
        except TimeoutError:
            signs = Signs(what="gateway", detail="it doesn't keep the deadline", sent=sent[0], began=bool(heard))
        except (OSError, anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            signs = Signs(what="gateway", detail="its process has gone", sent=sent[0], began=bool(heard))
        except (Rejected, msgspec.DecodeError, msgspec.ValidationError):
            signs = Signs(what="gateway", detail="it can't be understood", sent=sent[0], began=bool(heard))
        return classify(signs, self._clock.wall_ms(), key)

    async def probe(self, timeout_s: float) -> GatewayState | None:
        """Asks the gateway how it is, apart from all calls; None where it doesn't answer in time."""
        try:
            with anyio.fail_after(timeout_s):
                async with await anyio.connect_unix(self.path) as stream:
                    await stream.send(b'{"op":"probe"}\n')
                    return msgspec.json.decode(await _Lines(stream).next(), type=GatewayState)
        except (OSError, anyio.EndOfStream, anyio.BrokenResourceError, Rejected, msgspec.MsgspecError):
            # TimeoutError is an OSError.
            return None

    async def aclose(self) -> None:
        """Closes all connections. Calls that are open end now: a process that is stuck may take its time to end."""
        self._closed = True
        for lines in (*self._kept, *self._open):
            await lines.aclose()
        self._kept.clear()

    async def _exchange(self, message: Mapping[str, Any], take: OnText, sent: list[bool]) -> Mapping[str, Any]:
        """Sends a call and gives its end; leaving early closes the connection, which cancels the call."""
        lines = self._kept.pop() if self._kept else _Lines(await anyio.connect_unix(self.path))
        whole = False
        self._open.add(lines)
        try:
            if self._closed:
                raise anyio.ClosedResourceError
            sent[0] = True
            await lines.stream.send(msgspec.json.encode(message) + b"\n")
            while True:
                said = msgspec.json.decode(await lines.next(), type=dict[str, Any])
                whole = "failed" in said or "done" in said
                if "failed" in said:
                    raise CallFailed(msgspec.convert(said["failed"], Signs))
                if "done" in said:
                    done = cast("dict[str, Any]", said["done"])
                    self.memory_bytes = int(done.get("memory_bytes") or 0)
                    return done
                take(str(said.get("text")))
        finally:
            self._open.discard(lines)
            if whole and len(self._kept) < KEPT_MAX and not self._closed:
                self._kept.append(lines)
            else:
                await lines.aclose()

    def _message(self, channel: Channel, key: str, ask: Ask, deadline_s: float) -> dict[str, Any]:
        return {
            "op": "call",
            "model": f"{profile_of(channel).litellm if channel.wire == 'openai' else channel.wire}/{ask.model}",
            "api_base": channel.base_url,
            "api_key": key,
            "messages": ask.messages,
            "stream": ask.stream,
            "extra": _extra(channel, ask),
            "deadline_s": deadline_s,
            "connect_s": self._models.connect_timeout_s,
            "silence_s": self._models.silence_timeout_s,
            "answer_bytes_max": self._models.answer_bytes_max,
        }


def _extra(channel: Channel, ask: Ask) -> dict[str, Any]:
    """Gives what LiteLLM takes beside the messages; what it doesn't know itself goes into the body as it is."""
    fields: dict[str, Any] = {"max_tokens": ask.output_tokens_max}
    if channel.wire == "openai":
        fields = extras(channel, ask)
        if "usage" in fields:
            fields["extra_body"] = {"usage": fields.pop("usage")}
    elif ask.stream:
        fields["stream_options"] = {"include_usage": True}
    return fields if ask.temperature is None else {**fields, "temperature": ask.temperature}


def _parts(done: Mapping[str, Any]) -> Parts:
    usage = cast("dict[str, Any]", done.get("usage") or {})
    told = usage_from(usage.get("prompt_tokens"), usage.get("completion_tokens"), usage.get("cost"))
    return Parts(finish=str(done.get("finish") or ""), usage=told, model=str(done.get("model") or ""))


class _Lines:
    """The lines that come over a stream."""

    def __init__(self, stream: anyio.abc.SocketStream) -> None:
        self.stream = stream
        self._splitter = LineSplitter(LINE_BYTES_MAX)
        self._ready: deque[bytes] = deque()

    async def next(self) -> bytes:
        """Gives the next line; raises anyio.EndOfStream, or Rejected for one that is too long."""
        while not self._ready:
            self._ready.extend(self._splitter.feed(await self.stream.receive()))
        return self._ready.popleft()

    async def aclose(self) -> None:
        """Closes the stream."""
        await self.stream.aclose()
