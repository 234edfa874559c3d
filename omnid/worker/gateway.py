"""The gateway: LiteLLM in a process of its own, behind a Unix socket that speaks JSON lines.

Run by its path (``python -I -X utf8 gateway.py SOCKET``) or, where omnid is one binary, as ``omnid worker gateway
SOCKET``: it loads and warms LiteLLM, listens, prints ``ready``, and ends when its standard input does. A connection
carries one call or any number of probes; closing it cancels the call.

A call is a line with all that it needs, the key too, so that no key stands in an argument or the environment::

    {"op": "call", "model": "openai/gpt-5", "api_base": ..., "api_key": ..., "messages": [...], "stream": true,
     "extra": {"max_tokens": 100}, "deadline_s": 60, "connect_s": 10, "silence_s": 120, "answer_bytes_max": 8388608}

It is answered with ``{"text": ...}`` for the pieces of a stream, then with ``{"done": {...}}``, which has the text that
was not said before, or with ``{"failed": {...}}``: what was seen of the failure, which the other side classifies.
``{"op": "probe"}`` asks how the process is.

Standard library only, and litellm where it is loaded: this file knows nothing of omnid but the one beside it. asyncio,
because LiteLLM is.
"""

import asyncio  # noqa: TID251 - LiteLLM runs on nothing else, and this process is there for LiteLLM alone.
import contextlib
import gc
import json
import logging
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING or __package__:
    from omnid.worker.gateway_signs import Record, answered, signs_of
else:
    # Run by its path, and isolated, so that nothing is found beside it unless that is said.
    sys.path.append(os.path.dirname(os.path.abspath(__file__)))
    from gateway_signs import Record, answered, signs_of

LINE_BYTES_MAX = 32 << 20
WARM_S = 10.0
PIECES_S = 0.05
"""How long pieces of a stream wait for each other: each line that is said wakes the other side."""
MEMORY_S, END_S = 1.0, 1.0
SETTINGS = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_MODE": "PRODUCTION",
    "EXPERIMENTAL_OPENAI_BASE_LLM_HTTP_HANDLER": "True",
}
"""No price map from the network, no `.env` of whoever happens to own the directory, and OpenAI's wire by the handler of
LiteLLM's other providers, which takes a fifth less time than the way through OpenAI's own library."""
OPENAI = "openai/"

Say = Callable[[str], Awaitable[None]]


def memory_bytes() -> int:
    """Gives the resident memory of this process; 0 where the system doesn't tell."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


class Connection(asyncio.Protocol):
    """One connection of the other side: probes, and one call at a time. Its loss cancels the call."""

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway
        self._begun = bytearray()
        self._call: asyncio.Task[None] | None = None
        self._pieces: list[str] = []
        self._passes: asyncio.TimerHandle | None = None
        self._transport: Any = None
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - Why it went makes no difference.
        """See asyncio.Protocol: nobody is left who wants the answer."""
        if self._passes is not None:
            self._passes.cancel()
        if self._call is not None:
            self._call.cancel()

    def pause_writing(self) -> None:
        """See asyncio.Protocol: the other side reads more slowly than the provider writes."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        *lines, rest = data.split(b"\n")
        for line in lines:
            whole = bytes(self._begun) + line
            self._begun.clear()
            self._take(whole)
        self._begun += rest
        if len(self._begun) > LINE_BYTES_MAX:
            self._transport.abort()

    def _take(self, line: bytes) -> None:
        try:
            ask = json.loads(line)
            probe = ask["op"] == "probe"
        except (ValueError, KeyError, TypeError):
            # The other side speaks nothing that is known here.
            self._transport.abort()
            return
        if probe:
            self._write(self._gateway.state())
        elif self._call is not None and not self._call.done():
            self._transport.abort()
        else:
            self._call = asyncio.get_running_loop().create_task(self._answer(ask))

    async def _answer(self, ask: Record) -> None:
        ended = await self._gateway.call(ask, self._say)
        self._pass_on(ended.get("done"))
        self._write(ended)

    async def _say(self, text: str) -> None:
        self._pieces.append(text)
        if self._passes is None:
            self._passes = asyncio.get_running_loop().call_later(PIECES_S, self._pass_on)
        await self._writable.wait()

    def _pass_on(self, done: Record | None = None) -> None:
        """Says the pieces that have come, or puts them into the message that ends a call."""
        text = "".join(self._pieces)
        self._pieces.clear()
        if self._passes is not None:
            self._passes.cancel()
            self._passes = None
        if text and done is not None:
            done["text"] = text
        elif text:
            self._write({"text": text})

    def _write(self, message: Record) -> None:
        self._transport.write(json.dumps(message).encode() + b"\n")


class Gateway:
    """What is behind the socket."""

    def __init__(self, litellm: Any, httpx: Any) -> None:
        self._litellm = litellm
        self._httpx = httpx
        self._running = 0
        self._calls = 0
        self._memory, self._memory_at_s = 0, 0.0
        self.lean = True
        """Whether LiteLLM has the parts that `_begun_lean` uses; `warm` finds out."""

    def state(self) -> Record:
        """Says how the process is."""
        return {"pid": os.getpid(), "memory_bytes": memory_bytes(), "running": self._running, "calls": self._calls}

    async def call(self, ask: Record, say: Say) -> Record:
        """Makes a call within its deadline, and gives the message that ends it."""
        self._running += 1
        self._calls += 1
        quiet_since_s, began = time.monotonic(), False

        async def heard(text: str) -> None:
            nonlocal quiet_since_s, began
            quiet_since_s, began = time.monotonic(), True
            await say(text)

        try:
            async with asyncio.timeout(ask["deadline_s"]):
                done = await self.complete(ask, heard)
        except TimeoutError:
            return {"failed": {"what": "deadline", "began": began, "waited_s": time.monotonic() - quiet_since_s}}
        except SeenError as error:
            return {"failed": {**error.signs, "began": began}}
        except Exception as error:  # noqa: BLE001 - LiteLLM raises whatever its libraries do: it is told as it is seen.
            return {"failed": {**signs_of(error), "began": began, "waited_s": time.monotonic() - quiet_since_s}}
        finally:
            self._running -= 1
        return {"done": {**done, "memory_bytes": self._about_memory()}}

    def _about_memory(self) -> int:
        """Gives the memory as it was lately: each look costs a call some time."""
        now_s = time.monotonic()
        if now_s - self._memory_at_s >= MEMORY_S:
            self._memory, self._memory_at_s = memory_bytes(), now_s
        return self._memory

    async def complete(self, ask: Record, say: Say) -> Record:
        """Makes a call by LiteLLM; the pieces of a stream are said, and only its end is given."""
        if self.lean and ask["stream"] and ask["model"].startswith(OPENAI):
            return await self._streamed(await self._begun_lean(ask), ask["answer_bytes_max"], say)
        answer = await self._litellm.acompletion(
            model=ask["model"],
            messages=ask["messages"],
            api_base=ask["api_base"],
            # Without one LiteLLM would look for it in the environment.
            api_key=ask["api_key"] or "none",
            stream=ask["stream"],
            timeout=self._timeout(ask),
            max_retries=0,
            num_retries=0,
            **ask["extra"],
        )
        if not ask["stream"]:
            choice = next(iter(answer.choices), None)
            text = "" if choice is None else choice.message.content or ""
            if len(text) > ask["answer_bytes_max"]:
                raise SeenError(what="too_large")
            return {"text": text, **_beside(answer, None if choice is None else choice.finish_reason, answer)}
        return await self._streamed(answer, ask["answer_bytes_max"], say)

    async def _begun_lean(self, ask: Record) -> Any:
        """Begins a stream over OpenAI's wire by LiteLLM's translation, without what LiteLLM does around each call.

        That is a record for callbacks, a look into a cache, a thread, a task, and all parameters twice: more than half
        of a call's time. What is used here is what each provider in LiteLLM is made of.
        """
        litellm, model = self._litellm, ask["model"].removeprefix(OPENAI)
        provider, parts = litellm.LlmProviders.OPENAI, litellm.llms.custom_httpx
        wire = litellm.utils.ProviderConfigManager.get_provider_chat_config(model=model, provider=provider)
        extra: Record = {**ask["extra"], "stream": True}
        beside: Record = extra.pop("extra_body", {})
        params: Record = wire.map_openai_params(extra, {}, model, False)
        about: Record = {"model": model, "optional_params": params, "litellm_params": {}}
        # Without a key LiteLLM would look for it in the environment.
        place: Record = {"api_key": ask["api_key"] or "none", "api_base": ask["api_base"]}
        headers: Any = wire.validate_environment({}, messages=ask["messages"], **about, **place)
        url = wire.get_complete_url(stream=True, **about, **place)
        body: Record = wire.transform_request(messages=ask["messages"], headers=headers, **about)
        # It must live as long as the stream: LiteLLM closes its connections with the last reference to it.
        held = parts.http_handler.get_async_httpx_client(provider)
        request = held.client.build_request(
            "POST", url, content=json.dumps(body | beside), headers=headers, timeout=self._timeout(ask)
        )
        response = await held.client.send(request, stream=True)
        if not response.is_success:
            async with contextlib.aclosing(response):
                # A status counts, even where the words to it break off.
                with contextlib.suppress(self._httpx.HTTPError):
                    await response.aread()
                response.raise_for_status()
        lines = parts.sse_lines.aiter_sse_lines(response.aiter_text())
        stream = wire.get_model_response_iterator(streaming_response=lines, sync_stream=False)
        return SimpleNamespace(completion_stream=stream, aclose=response.aclose, held=held)

    def _timeout(self, ask: Record) -> Any:
        return self._httpx.Timeout(ask["silence_s"], connect=ask["connect_s"])

    async def _streamed(self, answer: Any, bytes_max: int, say: Say) -> Record:
        pieces, said_bytes = _Pieces(), 0
        try:
            async for piece in pieces.of(answer):
                text = pieces.take(piece)
                said_bytes += len(text)
                if said_bytes > bytes_max:
                    raise SeenError(what="too_large")
                if text:
                    await say(text)
        except Exception as error:
            if not pieces.error():
                raise
            raise SeenError(**answered(None, {}, json.dumps({"error": pieces.error()}))) from error
        finally:
            with contextlib.suppress(Exception):
                await answer.aclose()
        if not pieces.finish:
            # Where nothing else went wrong: it was cut, or was no stream at all.
            raise SeenError(what="garbage" if pieces.last is None else "cut")
        return {"text": None, **_beside(pieces.last, pieces.finish, pieces.counted)}


class _Pieces:
    """What comes with the pieces of a stream."""

    def __init__(self) -> None:
        self.last: Any = None
        self.counted: Any = None
        self.finish: str | None = None
        self._line: Any = None

    def of(self, answer: Any) -> Any:
        """Gives the provider's pieces, translated: what LiteLLM's own stream around them is made from.

        That one puts the whole answer together again at its end, counts it and prices it: half of a call's time.
        """
        stream: Any = getattr(answer, "completion_stream", None)
        if hasattr(stream, "streaming_response"):
            stream.streaming_response = self._kept(stream.streaming_response)
        return stream if hasattr(stream, "__aiter__") else answer

    async def _kept(self, lines: Any) -> AsyncIterator[Any]:
        async for line in lines:
            self._line = line
            yield line

    def error(self) -> Any:
        """Gives the provider's own error, where it has said one: LiteLLM passes on its message alone."""
        try:
            return json.loads(self._line.removeprefix("data:")).get("error")
        except (ValueError, TypeError, AttributeError):
            return None

    def take(self, piece: Any) -> str:
        """Gives the text of a piece, which LiteLLM makes of one of two shapes."""
        if isinstance(piece, dict):
            # The end of OpenAI's wire, or of a provider that LiteLLM knows as text alone.
            told = cast("Record", piece)
            self.finish = self.finish or told.get("finish_reason") or None
            return told.get("text") or ""
        self.last = piece
        self.counted = piece if getattr(piece, "usage", None) else self.counted
        for choice in piece.choices[:1]:
            self.finish = choice.finish_reason or self.finish
            return (choice.delta and choice.delta.content) or ""
        return ""


class SeenError(Exception):
    """Carries the signs of a failure that are seen here and not by LiteLLM."""

    def __init__(self, **signs: Any) -> None:
        super().__init__(signs)
        self.signs = signs


def _beside(answer: Any, finish: str | None, counted: Any) -> Record:
    """Gives what comes with the text of an answer."""
    usage = getattr(counted, "usage", None)
    names = ("prompt_tokens", "completion_tokens", "cost")
    told = None if usage is None else {name: getattr(usage, name, None) for name in names}
    return {"finish": finish, "model": getattr(answer, "model", None), "usage": told}


def load() -> tuple[Any, Any]:
    """Imports LiteLLM and quiets it; its collector rests meanwhile, which takes a third off the time."""
    os.environ.update(SETTINGS)
    gc.disable()
    import httpx
    import litellm

    gc.freeze()
    gc.enable()
    # A redirect would take the key to wherever it points; without it the answer is an error like any other.
    setattr(httpx.Response, "has_redirect_location", property(lambda _: False))  # noqa: B010 - Read-only by its type.
    litellm.suppress_debug_info = True
    # Providers count tokens themselves; its own tokenizer would cost 50 MB at the first call to Anthropic, and 40 MB at
    # the first stream, which LiteLLM prices before anything of it has come.
    litellm.main.__dict__["encoding"] = None
    litellm.utils.__dict__["update_response_metadata"] = _nothing
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy", "httpx", "openai", "aiohttp", "asyncio"):
        # What goes wrong is told over the socket; a library's own words about it may hold a key.
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    return litellm, httpx


def _nothing(**_: Any) -> None:
    """Stands for what LiteLLM does to an answer that nobody here looks at."""


async def warm(gateway: Gateway) -> None:
    """Makes one call to a provider of its own, which loads what LiteLLM loads only then.

    Over OpenAI's wire, which all channels but Anthropic's own speak; that one is loaded when it is first needed.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n")[0] or 0))
            body = f"data: {json.dumps(_WARM)}\n\ndata: [DONE]\n\n"
            kind = f"content-type: text/event-stream\r\ncontent-length: {len(body)}"
            writer.write(f"HTTP/1.1 200 OK\r\n{kind}\r\n\r\n{body}".encode())
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    ask: Record = {"model": "openai/warm", "api_base": f"http://127.0.0.1:{port}", "api_key": "warm", "stream": True}
    ask["messages"] = [{"role": "user", "content": "warm"}]
    ask["extra"] = {"max_tokens": 1, "stream_options": {"include_usage": True}}
    ask |= {"silence_s": WARM_S, "connect_s": WARM_S, "answer_bytes_max": LINE_BYTES_MAX}
    for gateway.lean in (True, False):
        # One that fails here in both ways will fail where somebody hears of it.
        with contextlib.suppress(Exception):
            await gateway.complete(ask, _nobody)
            break
    server.close()


async def _nobody(_: str) -> None:
    """Hears a stream of which nobody wants to hear."""


_WARM: Record = {
    "choices": [{"index": 0, "delta": {"content": "w"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


async def serve(path: str) -> None:
    """Loads LiteLLM, listens on the socket and says so, as long as standard input is open."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    threading.Thread(target=_end_with_input, args=(loop, stop), daemon=True).start()
    # Before the seconds that LiteLLM takes: what can't be moved out of the way is seen at once.
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    gateway = Gateway(*load())
    await warm(gateway)
    os.umask(0o177)
    server = await loop.create_unix_server(lambda: Connection(gateway), path)
    os.umask(0o077)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await stop.wait()
    server.close()


def main(argv: Sequence[str]) -> int:
    """Serves the socket that the arguments name."""
    try:
        asyncio.run(serve(argv[0]))
    except ImportError as error:
        sys.stderr.write(f"{error}: omnid's extra `models` brings LiteLLM (pip install 'omnid[models]')\n")
        return 1
    return 0


def _end_with_input(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """Ends the process with its parent, in a thread of its own: the loop may hang, and is not waited for."""
    while os.read(0, 4096):
        pass
    loop.call_soon_threadsafe(stop.set)
    time.sleep(END_S)
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
