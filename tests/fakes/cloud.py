"""A provider of models on loopback that misbehaves as the real ones do; the first part of the path says how.

It speaks both wires: ``/<mode>/v1/chat/completions`` and ``/<mode>/v1/messages``. ``python -m tests.fakes.cloud``
serves by itself (at a port and a host that may follow) and prints its port, for what must not share a process with it.
"""

import contextlib
import json
import socket
import ssl
import struct
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from email.utils import formatdate
from typing import Any, NamedTuple

import anyio
import anyio.abc
import anyio.to_thread
from anyio.streams.tls import TLSListener

TEXT = "Hello from the cloud."
PIECES = ("Hello ", "from the ", "cloud.")
LIMIT_S = 40
NOW_S = 1_900_000_000
"""The time of the fake's dates; tests give the same to whoever reads them."""
LIMITED_KEY = "sk-limited"
HUGE_BYTES = 300_000
PAUSE_S = 0.04
"""Between the pieces of a slow answer."""
LATE_S = 1.5
"""How long a late answer takes."""
GOOD = frozenset({"ok", "slow", "late"})
"""The modes that answer."""
INPUT_TOKENS, OUTPUT_TOKENS, COST_USD = 11, 5, 0.000123


class Seen(NamedTuple):
    """A request as it came."""

    mode: str
    wire: str
    headers: dict[str, str]
    body: dict[str, Any]
    path: str = ""


class Client:
    """One connection: reads requests and writes whatever is wanted, right or wrong."""

    def __init__(self, stream: anyio.abc.SocketStream) -> None:
        self.stream = stream
        self._data = b""

    async def request(self) -> Seen:
        """Reads a request; raises anyio.EndOfStream at the end of the connection."""
        while b"\r\n\r\n" not in self._data:
            self._data += await self.stream.receive()
            if self._data.startswith(b"\x16"):
                # A greeting of TLS, where none is spoken.
                await self.stream.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                raise anyio.EndOfStream
        head, _, self._data = self._data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0"))
        while len(self._data) < length:
            self._data += await self.stream.receive()
        body, self._data = self._data[:length], self._data[length:]
        path = first.split()[1]
        wire = "anthropic" if "messages" in path else "openai"
        return Seen(path.split("/")[1], wire, headers, json.loads(body) if body else {}, path)

    async def answer(self, status: int, body: object, **headers: str) -> None:
        """Sends a whole answer; a body that is no text is sent as JSON."""
        content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        kind = "text/html" if isinstance(body, str) else "application/json"
        given = {"content-type": kind, "content-length": str(len(content)), "x-request-id": "req-1"}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        await self.head(status, given)
        await self.stream.send(content)

    async def head(self, status: int, headers: dict[str, str]) -> None:
        lines = [f"HTTP/1.1 {status} Said", *(f"{name}: {value}" for name, value in headers.items())]
        await self.stream.send(("\r\n".join(lines) + "\r\n\r\n").encode())

    async def begin_stream(self) -> None:
        await self.head(200, {"content-type": "text/event-stream", "transfer-encoding": "chunked"})

    async def chunk(self, data: bytes) -> None:
        await self.stream.send(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    async def event(self, event: object) -> None:
        name = f"event: {event['type']}\n" if isinstance(event, dict) and "type" in event else ""
        text = event if isinstance(event, str) else json.dumps(event)
        await self.chunk(f"{name}data: {text}\n\n".encode())

    async def end_stream(self) -> None:
        await self.stream.send(b"0\r\n\r\n")

    def reset(self) -> None:
        """Makes the close a reset instead of an end."""
        raw = self.stream.extra(anyio.abc.SocketAttribute.raw_socket)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def whole(wire: str, text: str | None = TEXT) -> dict[str, Any]:
    """A good answer in one piece."""
    if wire == "anthropic":
        usage = {"input_tokens": INPUT_TOKENS, "output_tokens": OUTPUT_TOKENS}
        content = [] if text is None else [{"type": "text", "text": text}]
        start = {"id": "msg_1", "type": "message", "role": "assistant", "model": "fake-1"}
        return {**start, "content": content, "stop_reason": "end_turn", "stop_sequence": None, "usage": usage}
    usage = {"prompt_tokens": INPUT_TOKENS, "completion_tokens": OUTPUT_TOKENS, "total_tokens": 16, "cost": COST_USD}
    message = {"role": "assistant", "content": text}
    choices = [] if text is None else [{"index": 0, "message": message, "finish_reason": "stop"}]
    start = {"id": "c1", "object": "chat.completion", "created": NOW_S, "model": "fake-1"}
    return {**start, "choices": choices, "usage": usage}


def events(wire: str, pieces: tuple[str, ...] = PIECES, *, usage: bool = True) -> list[Any]:
    """A good answer as the events of a stream."""
    if wire == "anthropic":
        message = {
            **whole(wire, None),
            "stop_reason": None,
            "usage": {"input_tokens": INPUT_TOKENS, "output_tokens": 1},
        }
        block = {"type": "text", "text": ""}
        texts = [
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}}
            for piece in pieces
        ]
        delta = {"stop_reason": "end_turn", "stop_sequence": None}
        return [
            {"type": "message_start", "message": message},
            {"type": "content_block_start", "index": 0, "content_block": block},
            {"type": "ping"},
            *texts,
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": delta, "usage": {"output_tokens": OUTPUT_TOKENS}},
            {"type": "message_stop"},
        ]
    start = {"id": "c1", "object": "chat.completion.chunk", "created": NOW_S, "model": "fake-1"}

    def part(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return {**start, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

    parts = [part({"role": "assistant", "content": ""}), *(part({"content": piece}) for piece in pieces)]
    last = [{**start, "choices": [], "usage": whole(wire)["usage"]}] if usage else []
    return [*parts, part({}, "stop"), *last, "[DONE]"]


def error(wire: str, kind: str, message: str, **more: object) -> dict[str, Any]:
    """The body of an error, as the wire has it."""
    if wire == "anthropic":
        return {"type": "error", "error": {"type": kind, "message": message, **more}}
    return {"error": {"message": message, "type": kind, "code": kind, **more}}


async def _ok(client: Client, seen: Seen) -> None:
    if not seen.body.get("stream"):
        await client.answer(200, whole(seen.wire))
        return
    await client.begin_stream()
    await client.chunk(b": PROCESSING\n\n")
    for event in events(seen.wire):
        await client.event(event)
    await client.end_stream()


async def _slow(client: Client, seen: Seen) -> None:
    await anyio.sleep(PAUSE_S)
    if not seen.body.get("stream"):
        await client.answer(200, whole(seen.wire))
        return
    await client.begin_stream()
    for event in events(seen.wire):
        await client.event(event)
        await anyio.sleep(PAUSE_S)
    await client.end_stream()


async def _late(client: Client, seen: Seen) -> None:
    await anyio.sleep(LATE_S)
    await _ok(client, seen)


async def _hang_before(client: Client, seen: Seen) -> None:
    await anyio.sleep_forever()


async def _until_closed(client: Client, seen: Seen) -> None:
    if seen.body.get("stream"):
        await client.begin_stream()
        await client.event(events(seen.wire)[1])
    await client.stream.receive()


async def _half_an_answer(client: Client, seen: Seen) -> None:
    if seen.body.get("stream"):
        await client.begin_stream()
        for event in events(seen.wire)[:4]:
            await client.event(event)
    else:
        await client.head(200, {"content-type": "application/json", "content-length": "500"})
        await client.stream.send(b'{"id": "c1", ')


async def _hang_inside(client: Client, seen: Seen) -> None:
    await _half_an_answer(client, seen)
    await anyio.sleep_forever()


async def _reset(client: Client, seen: Seen) -> None:
    client.reset()
    await client.stream.aclose()


async def _broken_stream(client: Client, seen: Seen) -> None:
    await _half_an_answer(client, seen)
    await client.stream.aclose()


async def _reset_inside(client: Client, seen: Seen) -> None:
    await _half_an_answer(client, seen)
    # What is still on its way would go with the connection.
    await anyio.sleep(PAUSE_S)
    await _reset(client, seen)


async def _cut_short(client: Client, seen: Seen) -> None:
    await _half_an_answer(client, seen)
    if seen.body.get("stream"):
        await client.end_stream()
    else:
        await client.stream.aclose()


async def _drip(client: Client, seen: Seen) -> None:
    if seen.body.get("stream"):
        await client.begin_stream()
        while True:
            await client.chunk(b":\n\n")
            await anyio.sleep(0.05)
    await client.head(200, {"content-type": "application/json", "content-length": "100000"})
    while True:
        await client.stream.send(b" ")
        await anyio.sleep(0.05)


async def _empty_choices(client: Client, seen: Seen) -> None:
    if not seen.body.get("stream"):
        await client.answer(200, whole(seen.wire, None))
        return
    await client.begin_stream()
    for event in events(seen.wire, ()):
        await client.event(event)
    await client.end_stream()


async def _wrong_json(client: Client, seen: Seen) -> None:
    if not seen.body.get("stream"):
        await client.answer(200, '{"choices": [{"message": ', content_type="application/json")
        return
    await client.begin_stream()
    await client.event('{"choices": [{"delta": ')
    await client.end_stream()


async def _error_in_stream(client: Client, seen: Seen) -> None:
    more = {} if seen.wire == "anthropic" else {"code": 529}
    await _fails_inside(client, seen, error(seen.wire, "overloaded_error", "Overloaded", **more))


async def _quota_in_stream(client: Client, seen: Seen) -> None:
    await _fails_inside(client, seen, error(seen.wire, "insufficient_quota", "You have nothing left"))


async def _fails_inside(client: Client, seen: Seen, said: dict[str, Any]) -> None:
    if not seen.body.get("stream"):
        await client.answer(200, said)
        return
    await client.begin_stream()
    for event in events(seen.wire)[:4]:
        await client.event(event)
    await client.event(said)
    await client.end_stream()


async def _huge(client: Client, seen: Seen) -> None:
    await client.answer(200, whole(seen.wire, "x" * HUGE_BYTES))


async def _echoes_the_key(client: Client, seen: Seen) -> None:
    key = seen.headers.get("x-api-key") or seen.headers.get("authorization", "").removeprefix("Bearer ")
    await client.answer(401, error(seen.wire, "authentication_error", f"Incorrect API key provided: {key}"))


def _says(status: int, kind: str, **headers: str) -> Callable[[Client, Seen], Awaitable[None]]:
    async def handle(client: Client, seen: Seen) -> None:
        await client.answer(status, error(seen.wire, kind, f"the fake says {kind}"), **headers)

    return handle


async def _cooldown(client: Client, seen: Seen) -> None:
    said = {"code": "model_cooldown", "message": "cooling down", "reset_time": "40s", "reset_seconds": LIMIT_S}
    await client.answer(429, {"error": said})


async def _text_error(client: Client, seen: Seen) -> None:
    await client.answer(500, {"error": "it fell over"})


async def _by_key(client: Client, seen: Seen) -> None:
    """Limits one key, so shortly that the next call meets it again, and answers all others."""
    limited = f" {LIMITED_KEY}" in f" {seen.headers.get('authorization', '')}"
    await (_says(429, "rate_limit_error", retry_after="0") if limited else _ok)(client, seen)


async def _html(client: Client, seen: Seen) -> None:
    await client.answer(502, "<html><title>Bad gateway</title></html>")


async def _sign_in(client: Client, seen: Seen) -> None:
    """What the network of a hotel answers to everything."""
    await client.answer(200, "<html><title>Welcome, please sign in</title></html>")


MODES: dict[str, Callable[[Client, Seen], Awaitable[None]]] = {
    "ok": _ok,
    "slow": _slow,
    "late": _late,
    "by_key": _by_key,
    "hang_before": _hang_before,
    "hang_inside": _hang_inside,
    "until_closed": _until_closed,
    "reset": _reset,
    "reset_inside": _reset_inside,
    "broken_stream": _broken_stream,
    "cut_short": _cut_short,
    "drip": _drip,
    "empty_choices": _empty_choices,
    "wrong_json": _wrong_json,
    "error_in_200": _error_in_stream,
    "quota_in_200": _quota_in_stream,
    "huge": _huge,
    "echoes_the_key": _echoes_the_key,
    "limit_seconds": _says(429, "rate_limit_error", retry_after=str(LIMIT_S)),
    "limit_date": _says(429, "rate_limit_error", retry_after=formatdate(NOW_S + LIMIT_S, usegmt=True)),
    "limit_reset": _says(429, "rate_limit_error", x_ratelimit_reset=str((NOW_S + LIMIT_S) * 1000)),
    "limit_cooldown": _cooldown,
    "credit": _says(402, "insufficient_credits"),
    "key_refused": _says(401, "authentication_error"),
    "fault": _text_error,
    "bad_gateway": _html,
    "unavailable": _says(503, "service_unavailable"),
    "sign_in": _sign_in,
    "overloaded": _says(529, "overloaded_error"),
    "bad_request": _says(400, "invalid_request_error"),
    "unknown_model": _says(404, "not_found_error"),
    "redirect": _says(307, "moved", location="http://127.0.0.1:9/ok/v1/chat/completions"),
}


class Cloud:
    """The fake, once it listens."""

    def __init__(self, port: int, modes: dict[str, str]) -> None:
        self.port = port
        self.seen: list[Seen] = []
        """The calls."""
        self.looked: list[Seen] = []
        """What was asked that costs nothing."""
        self.answered: list[Seen] = []
        """What was answered well and to its end; whether anybody has read it is another matter."""
        self.modes = modes
        """What a first part of the path stands for, where that isn't a mode itself; may change at any time."""
        self.listing: dict[str, Any] = {"object": "list", "data": [{"id": "fake-1", "object": "model"}]}
        """What modes that answer say to who asks for the models."""
        self.on_request: Callable[[], object] = lambda: None
        self.closed = anyio.Event()
        """A client has gone while it was being answered."""

    def base_url(self, mode: str, wire: str = "openai") -> str:
        """What a channel has to be given to reach that mode over that wire."""
        return f"http://127.0.0.1:{self.port}/{mode}" + ("/v1" if wire == "openai" else "")

    async def serve_one(self, stream: anyio.abc.SocketStream) -> None:
        client = Client(stream)
        gone = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)
        with contextlib.suppress(*gone):
            async with stream:
                while True:
                    seen = await client.request()
                    (self.seen if seen.body else self.looked).append(seen)
                    self.on_request()
                    mode = self.modes.get(seen.mode, seen.mode)
                    try:
                        if mode in GOOD and seen.path.partition("?")[0].endswith("/models"):
                            await client.answer(200, self.listing)
                        else:
                            await MODES[mode](client, seen)
                    except gone:
                        self.closed.set()
                        raise
                    if mode in GOOD and seen.body:
                        self.answered.append(seen)


@asynccontextmanager
async def cloud(
    port: int = 0, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None, **modes: str
) -> AsyncGenerator[Cloud]:
    """Serves on a free port of loopback, or on what is given; `modes` are those of `Cloud`."""
    listening = anyio.create_tcp_listener(local_host=host, local_port=port, reuse_port=True)
    async with await listening as listener, anyio.create_task_group() as group:
        made = Cloud(listener.extra(anyio.abc.SocketAttribute.local_port), modes)
        group.start_soon((listener if tls is None else TLSListener(listener, tls)).serve, made.serve_one)
        yield made
        group.cancel_scope.cancel()


async def _main() -> None:
    port, host = [*sys.argv[1:], *("0", "127.0.0.1")[len(sys.argv) - 1 :]]
    async with cloud(int(port), host) as made:
        print(made.port, flush=True)
        await anyio.to_thread.run_sync(sys.stdin.buffer.read)


if __name__ == "__main__":
    anyio.run(_main)
