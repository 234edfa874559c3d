"""Calls to models, through the gateway and directly, against LiteLLM in process: one fake provider, block by block."""

import contextlib
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import anyio

from bench import model_tasks
from bench.report import Report
from bench.world import environ, scratch
from omnid.channels import whole
from omnid.clock import SystemClock
from omnid.executor.direct import Direct
from omnid.executor.gateway import Gateway
from omnid.executor.model_wire import Answer, Ask, Message
from omnid.executor.supervised import Supervised
from omnid.log import Log
from omnid.settings import Channel, Config, Models

BLOCKS, TURNS, WARM = 12, 40, 20
COLD_STARTS = 3
MANY, AT_ONCE = 10_000, 8
DEADLINE_S = 30.0
KEY = "sk-bench"
ASK = Ask("fake-1", (Message("user", "Say hello."),), 50)
STREAMED = Ask("fake-1", (Message("user", "Say hello."),), 50, stream=True)
"""As tasks ask."""
HERE = Path(__file__).parent.parent

Call = Callable[[], Awaitable[None]]


def run(report: Report) -> None:
    with provider() as address:
        with scratch() as directory:
            anyio.run(_measure, report, directory, f"{address}/ok/v1")
        model_tasks.run(report, address)


@contextlib.contextmanager
def provider() -> Iterator[str]:
    """Runs the fake provider in a process of its own, and gives its address."""
    argv = [sys.executable, "-m", "tests.fakes.cloud"]
    with subprocess.Popen(argv, cwd=HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the provider has no pipes")
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.stdin.close()


async def _measure(report: Report, directory: Path, base_url: str) -> None:
    clock, config = SystemClock(), Config()
    channel = whole(Channel(name="bench", base_url=base_url, models=("fake-1",), free=True))
    supervised = Supervised(directory / "spool", clock, config.limits)
    async with anyio.create_task_group() as tasks:
        log = Log(clock, str).logger()
        path = str(directory / "gateway.sock")
        gateway = Gateway(config, path, supervised, environ(directory), tasks=tasks, clock=clock, log=log)
        ready_s = [await _cold(gateway) for _ in range(COLD_STARTS)]
        direct = Direct(clock, Models())

        async def through() -> None:
            _good(await gateway.call(channel, KEY, ASK, DEADLINE_S))

        async def streamed() -> None:
            _good(await gateway.call(channel, KEY, STREAMED, DEADLINE_S))

        async def past() -> None:
            _good(await direct.call(channel, KEY, ASK, DEADLINE_S))

        bare, bare_streamed = _acompletion(base_url, stream=False), _acompletion(base_url, stream=True)
        calls = (bare, through, past, bare_streamed, streamed)
        bare_ms, through_ms, past_ms, bare_streamed_ms, streamed_ms = await _in_turns(*calls)
        report.add("acompletion in process, p50", bare_ms, "ms")
        report.add("through the gateway, p50", through_ms, "ms")
        report.add("through the gateway, against acompletion", through_ms / bare_ms, "x", "<=", 1.15)
        report.add("acompletion in process, streamed, p50", bare_streamed_ms, "ms")
        report.add("through the gateway, streamed, p50", streamed_ms, "ms")
        report.add(
            "through the gateway, streamed, against acompletion", streamed_ms / bare_streamed_ms, "x", "<=", 1.15
        )
        report.add("directly, p50", past_ms, "ms")
        report.add("directly, against acompletion", past_ms / bare_ms, "x", "<=", 0.25)
        report.add("gateway ready from cold", median(ready_s), "s", "<=", 3)
        await _many(streamed)
        state = await gateway.probe(DEADLINE_S)
        memory_mb = float("nan") if state is None else state.memory_bytes / 1e6
        report.add(f"gateway's memory after {MANY:,} streamed calls", memory_mb, "MB", "<=", 230)
        await direct.aclose()
        await gateway.aclose()


async def _cold(gateway: Gateway) -> float:
    since_s = time.monotonic()
    await gateway.start()
    took_s = time.monotonic() - since_s
    await gateway.kill()
    return took_s


def _acompletion(base_url: str, *, stream: bool) -> Call:
    """Gives a call by LiteLLM as it comes, without what the gateway keeps it from doing."""
    # Not from the network, and no `.env`.
    os.environ.update({"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION"})
    litellm: Any = importlib.import_module("litellm")
    asked: dict[str, Any] = {
        "model": "openai/fake-1",
        "messages": [{"role": "user", "content": "Say hello."}],
        "api_base": base_url,
        "api_key": KEY,
        "max_tokens": 50,
        "stream": stream,
        "timeout": DEADLINE_S,
        "max_retries": 0,
        "num_retries": 0,
    }

    async def read() -> None:
        pieces = [piece async for piece in await litellm.acompletion(**asked)]
        if not any(choice.delta.content for piece in pieces for choice in piece.choices):
            raise RuntimeError("it answered nothing")

    async def call() -> None:
        answer = await litellm.acompletion(**asked)
        if not answer.choices[0].message.content:
            raise RuntimeError("it answered nothing")

    return read if stream else call


def _good(answer: object) -> None:
    if not isinstance(answer, Answer):
        raise RuntimeError(f"a call failed: {answer}")


async def _in_turns(*calls: Call) -> list[float]:
    """Gives the medians of all of them in ms, measured block by block in turns."""
    taken: list[list[float]] = [[] for _ in calls]
    for call in calls:
        for _ in range(WARM):
            await call()
    for _ in range(BLOCKS):
        for call, times in zip(calls, taken, strict=True):
            for _ in range(TURNS):
                since_ns = time.monotonic_ns()
                await call()
                times.append((time.monotonic_ns() - since_ns) / 1e6)
    return [median(times) for times in taken]


async def _many(call: Call) -> None:
    left = MANY

    async def work() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await call()

    async with anyio.create_task_group() as group:
        for _ in range(AT_ONCE):
            group.start_soon(work)
