"""The two ways to call a model, and what they have in common in tests."""

import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Protocol

from omnid.channels import whole
from omnid.clock import SystemClock
from omnid.executor.direct import Direct, OnText
from omnid.executor.gateway_client import GatewayClient
from omnid.executor.model_errors import Failure
from omnid.executor.model_wire import Answer, Ask, Message
from omnid.settings import Channel, Models
from omnid.worker import gateway as worker
from tests.fakes.cloud import NOW_S

KEY = "sk-planted-0123456789abcdef"
READY_S = 60.0


class Clock(SystemClock):
    """Real time, but for the date, which is the fake cloud's."""

    def wall_ms(self) -> int:
        return NOW_S * 1000


class Way(Protocol):
    async def call(
        self, channel: Channel, key: str, ask: Ask, deadline_s: float, on_text: OnText | None = None
    ) -> Answer | Failure: ...


def channel(base_url: str, wire: str) -> Channel:
    """A channel that reports costs, as OpenRouter does, wherever its wire can."""
    profile = "openrouter" if wire == "openai" else "anthropic"
    return whole(Channel(name="fake", profile=profile, base_url=base_url, key="env:K", models=("fake-1",)))


def ask(*, stream: bool) -> Ask:
    messages = (Message("system", "Be short."), Message("user", "Say hello."))
    return Ask("fake-1", messages, 50, stream=stream)


@contextmanager
def gateway_process(directory: Path) -> Iterator[str]:
    """Runs the worker with the real LiteLLM, and gives the path of its socket."""
    path = str(directory / "gw.sock")
    argv = [sys.executable, "-I", "-X", "utf8", worker.__file__, path]
    kept = {
        name: os.environ[name]
        for name in ("PATH", "HOME", "COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG")
        if name in os.environ
    }
    with subprocess.Popen(argv, env=kept, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            yield path
        finally:
            process.stdin.close()
            process.wait(READY_S)


@asynccontextmanager
async def way(name: str, models: Models, gateway_path: str) -> AsyncGenerator[Way]:
    if name == "gateway":
        client = GatewayClient(gateway_path, Clock(), models)
        try:
            yield client
        finally:
            await client.aclose()
        return
    direct = Direct(Clock(), models)
    try:
        yield direct
    finally:
        await direct.aclose()
