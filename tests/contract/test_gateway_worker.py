"""What the gateway's worker says over its socket, and what it keeps LiteLLM from doing."""

import asyncio  # noqa: TID251 - the worker runs on nothing else.
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest

from omnid.worker.gateway import Connection, Gateway, Say, SeenError, _Pieces
from tests.fakes.cloud import Cloud, cloud

HERE = Path(__file__).parents[2]
STREAMS = """
import asyncio, json, sys
from omnid.worker import gateway as worker

async def main(asks):
    gateway = worker.Gateway(*worker.load())
    said = []
    for ask in asks:
        async def say(text):
            said.append(text)
        await gateway.complete(ask, say)
    import tiktoken.registry
    print(json.dumps([said, list(tiktoken.registry.ENCODINGS)]))

asyncio.run(main(json.load(sys.stdin)))
"""


class Transport:
    """Keeps what is written to it."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.ended = asyncio.Event()

    def write(self, data: bytes) -> None:
        self.lines.append(json.loads(data))
        if "text" not in self.lines[-1]:
            self.ended.set()


class Says:
    """A gateway that says all pieces of an answer at once, and ends as it is told."""

    def __init__(self, **ended: Any) -> None:
        self.ended = ended

    async def call(self, ask: dict[str, Any], say: Say) -> dict[str, Any]:
        for piece in ask["pieces"]:
            await say(piece)
        return json.loads(json.dumps(self.ended))


def answered(gateway: Says, *calls: list[str]) -> list[dict[str, Any]]:
    """Makes calls one after the other over one connection, and gives the lines that come."""

    async def run() -> list[dict[str, Any]]:
        transport = Transport()
        connection = Connection(cast("Gateway", gateway))
        connection.connection_made(cast("asyncio.Transport", transport))
        for pieces in calls:
            transport.ended.clear()
            connection.data_received(json.dumps({"op": "call", "pieces": pieces}).encode() + b"\n")
            await transport.ended.wait()
        return transport.lines

    return asyncio.run(run())


def test_the_end_of_a_call_carries_what_has_not_been_said_yet() -> None:
    lines = answered(Says(done={"text": None}), ["Hello ", "from the ", "cloud."], [], ["Again."])
    assert lines == [{"done": {"text": text}} for text in ("Hello from the cloud.", None, "Again.")]


def test_what_has_come_before_a_failure_is_said() -> None:
    failed = {"failed": {"what": "cut", "began": True}}
    assert answered(Says(**failed), ["Hello ", "from"], []) == [{"text": "Hello from"}, failed, failed]


async def test_no_tokenizer_is_loaded_for_a_stream(tmp_path: Path) -> None:
    # It takes 40 MB, and LiteLLM loads it to price a stream of which nothing has come.
    async with cloud() as fake:
        asks = [
            {
                "model": f"{wire}/fake-1",
                "api_base": fake.base_url("ok", wire),
                "api_key": "sk-planted",
                "messages": [{"role": "user", "content": "Say hello."}],
                "stream": True,
                "extra": {"max_tokens": 50},
                "silence_s": 60,
                "connect_s": 60,
                "answer_bytes_max": 100_000,
            }
            for wire in ("openai", "anthropic")
        ]
        ran = await anyio.run_process([sys.executable, "-c", STREAMS], input=json.dumps(asks).encode(), cwd=HERE)
    said, encodings = json.loads(ran.stdout)
    assert "".join(said) == "Hello from the cloud." * 2
    assert encodings == []


def piece(content: str | None, finish: str | None = None, **more: Any) -> Any:
    delta = None if content is None else SimpleNamespace(content=content)
    return SimpleNamespace(choices=[SimpleNamespace(delta=delta, finish_reason=finish)], **more)


class Stream:
    """A stream of LiteLLM's, as one of its versions might have it."""

    def __init__(self, *pieces: Any) -> None:
        self.pieces = pieces

    async def __aiter__(self) -> AsyncIterator[Any]:
        for each in self.pieces:
            yield each

    async def aclose(self) -> None:
        pass


async def read(answer: Any) -> tuple[list[str], dict[str, Any]]:
    said: list[str] = []

    async def say(text: str) -> None:
        said.append(text)

    return said, await Gateway(None, None)._streamed(answer, 1000, say)


GOOD = (
    piece("Hel"),
    piece("lo", "length"),
    piece(None, usage=SimpleNamespace(prompt_tokens=1, completion_tokens=2)),
    SimpleNamespace(choices=[]),
    {"text": "", "finish_reason": "stop"},
)


@pytest.mark.parametrize("answer", [Stream(*GOOD), SimpleNamespace(completion_stream=Stream(*GOOD), aclose=None)])
async def test_a_stream_is_read_underneath_where_that_can_be_had(answer: Any) -> None:
    said, ended = await read(answer)
    assert said == ["Hel", "lo"]
    assert ended["finish"] == "length", "the end of the wire says nothing that a piece has not said better"
    assert ended["usage"] == {"prompt_tokens": 1, "completion_tokens": 2, "cost": None}


@pytest.mark.parametrize(
    ("pieces", "what"), [((piece("Hel"),), "cut"), ((), "garbage"), (({"text": "", "finish_reason": ""},), "garbage")]
)
async def test_a_stream_that_does_not_end_was_cut_or_is_none(pieces: tuple[Any, ...], what: str) -> None:
    with pytest.raises(SeenError) as caught:
        await read(Stream(*pieces))
    assert caught.value.signs == {"what": what}


@pytest.mark.parametrize("line", [None, "", "data: [DONE]", "data: {", 'data: {"id": 1}', "data: 3", ": ping", b"x"])
def test_only_an_error_is_taken_for_one(line: Any) -> None:
    pieces = _Pieces()
    pieces._line = line
    assert pieces.error() is None


LEAN = """
import asyncio, json, sys
from omnid.worker import gateway as worker

async def nobody(text):
    pass

async def main(given):
    gateway = worker.Gateway(*worker.load())
    for part in given["missing"]:
        place = gateway._litellm
        *path, last = part.split(".")
        for name in path:
            place = getattr(place, name)
        setattr(place, last, None)
    await worker.warm(gateway)
    lean = gateway.lean
    for ask in given["asks"]:
        for gateway.lean in given["ways"]:
            await gateway.complete(ask, nobody)
    print(lean)

asyncio.run(main(json.load(sys.stdin)))
"""
MODELS = (
    "fake-1",
    "gpt-4.1-mini",
    "gpt-5",
    "o3",
    "openai/gpt-5-mini",
    "anthropic/claude-sonnet-4-5",
    "qwen/qwen3-235b",
)


async def ran(fake: Cloud, *ways: bool, missing: tuple[str, ...] = ()) -> str:
    """Asks all models in these ways, and gives whether the worker was lean once it was warm."""
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Say \u2028 h\u00e9llo."}]
    asks = [
        {
            "model": f"openai/{model}",
            "api_base": fake.base_url("ok"),
            "api_key": key,
            "messages": messages,
            "stream": True,
            "extra": {
                "max_completion_tokens" if "5" in model else "max_tokens": 50,
                "stream_options": {"include_usage": True},
                **({"extra_body": {"usage": {"include": True}}} if "/" in model else {}),
            },
            "silence_s": 60,
            "connect_s": 60,
            "answer_bytes_max": 100_000,
        }
        for model, key in zip(MODELS, ("sk-planted", "") * len(MODELS), strict=False)
    ]
    given = json.dumps({"asks": asks, "ways": ways, "missing": missing})
    done = await anyio.run_process([sys.executable, "-c", LEAN], input=given.encode(), cwd=HERE)
    return done.stdout.decode().strip()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_lean_way_asks_for_the_same_as_litellm_s_own(anyio_backend: str) -> None:
    async with cloud() as fake:
        assert await ran(fake, True, False) == "True"
        asked = [(one.path, one.headers["authorization"], one.body) for one in fake.seen]
    assert len(asked) == 2 * len(MODELS)
    assert asked[::2] == asked[1::2]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_litellm_without_the_lean_way_is_used_as_it_comes(anyio_backend: str) -> None:
    async with cloud() as fake:
        assert await ran(fake, False, missing=("llms.custom_httpx.sse_lines.aiter_sse_lines",)) == "False"
        assert len(fake.seen) == len(MODELS)
