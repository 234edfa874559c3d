"""Prompts through a real daemon: against a bare call through LiteLLM's own proxy, over a limited key, with a kill."""

import contextlib
import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from bench.report import Report
from bench.world import Connection, cpu_s, environ, real_daemon, scratch
from omnid.states import TERMINAL
from omnid.worker.supervisor import STARTED, read_record

BLOCKS, TURNS, WARM = 8, 25, 10
AT_ONCE, ROUNDS = 16, 4
INTO_CALLS_S = 0.2
"""When the gateway is killed: a slow answer of the fake takes twice as long."""
ANSWER_S, READY_S = 60.0, 300.0
LOOK_S = 0.05
PROXY = Path(__file__).parent.parent / ".venv-proxy" / "bin" / "litellm"
PROMPT = "Say hello."
OUTPUT_TOKENS = 50
CONFIG = """
[daemon]
slots_max = 32
[notify]
to = []
[budget]
repeats_max = 1000000
[models]
output_tokens_max = {tokens}
"""
CHANNEL = """
[[channel]]
name = "{name}"
profile = "openrouter"
base_url = "{url}/{mode}/v1"
key = "env:{key}"
backup_keys = ["env:GOOD_KEY"]
models = [{{ name = "{name}", id = "fake-1", input_usd = 1, output_usd = 2 }}]
"""
CHANNELS = (("plain", "ok", "GOOD_KEY"), ("limited", "by_key", "LIMITED_KEY"), ("slow", "slow", "GOOD_KEY"))
"""Their models are named as they are, so that a prompt can ask for one."""
KEYS = {"GOOD_KEY": "sk-bench", "LIMITED_KEY": "sk-limited"}

Take = Callable[[], None]


def run(report: Report, provider: str) -> None:
    """Measures with a fake provider at that address (without the part that says how it behaves)."""
    with scratch() as directory:
        variables = {**environ(directory), **KEYS, "OMNID_CONFIG": str(directory / "config.toml")}
        channels = (CHANNEL.format(name=name, mode=mode, key=key, url=provider) for name, mode, key in CHANNELS)
        (directory / "config.toml").write_text(CONFIG.format(tokens=OUTPUT_TOKENS) + "".join(channels))
        with _proxy(directory, provider) as (proxy, proxied, streamed), real_daemon(variables) as (daemon, client):
            calls = (lambda: _task(client, "plain"), lambda: _task(client, "limited"), proxied, streamed)
            whole_ms, failover_ms, proxied_ms, streamed_ms = _in_turns(*calls)
            report.add("a bare call through LiteLLM's own proxy, p50", proxied_ms, "ms")
            report.add("a prompt as a task, from submit to result, p50", whole_ms, "ms")
            report.add("a prompt as a task, against the bare call", whole_ms / proxied_ms, "x", "<=", 0.65)
            report.add("a streamed call through LiteLLM's own proxy, p50", streamed_ms, "ms")
            report.add("a prompt as a task, against the streamed call", whole_ms / streamed_ms, "x")
            report.add("processor time of a prompt, daemon", _cpu_ms(calls[0], [daemon.pid]), "ms")
            gateways = _gateways(directory / "state")
            report.add("processor time of a prompt, gateway", _cpu_ms(calls[0], gateways), "ms")
            report.add("processor time of a bare call, proxy", _cpu_ms(proxied, [proxy]), "ms")
            report.add("processor time of a streamed call, proxy", _cpu_ms(streamed, [proxy]), "ms")
            report.add("failover to a backup key after a 429, added", failover_ms - whole_ms, "ms", "<=", 50)
            _killed(report, client, directory / "state")


@contextlib.contextmanager
def _proxy(directory: Path, provider: str) -> Iterator[tuple[int, Take, Take]]:
    """Runs LiteLLM's proxy, and gives its pid and a whole and a streamed call through it, on a kept connection."""
    if not PROXY.exists():
        raise RuntimeError("LiteLLM's proxy is not there: `make bench` installs it")
    key = f"sk-{secrets.token_hex(16)}"
    called = {"model": "openai/fake-1", "api_base": f"{provider}/ok/v1", "api_key": KEYS["GOOD_KEY"]}
    # JSON is YAML.
    config = {
        "model_list": [{"model_name": "fake-1", "litellm_params": called}],
        "litellm_settings": {"num_retries": 0, "telemetry": False},
        "general_settings": {"master_key": key},
    }
    path = directory / "proxy.yaml"
    path.write_text(json.dumps(config))
    port = _free_port()
    argv = [str(PROXY), "--config", str(path), "--host", "127.0.0.1", "--port", str(port)]
    argv += ["--keepalive_timeout", str(round(READY_S))]
    variables = {**environ(directory), "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION"}
    with subprocess.Popen(argv, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
        message = {"model": "fake-1", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": OUTPUT_TOKENS}
        whole, streamed = json.dumps(message), json.dumps({**message, "stream": True})
        headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}

        def asked(body: str) -> bytes:
            connection.request("POST", "/v1/chat/completions", body, headers)
            answer = connection.getresponse()
            said = answer.read()
            if answer.status != 200:
                raise RuntimeError(f"the proxy answered {answer.status}: {said[:500]!r}")
            return said

        def call() -> None:
            if not json.loads(asked(whole))["choices"]:
                raise RuntimeError("the proxy answered nothing")

        def stream() -> None:
            if not asked(streamed).rstrip().endswith(b"[DONE]"):
                raise RuntimeError("the proxy's stream has no end")

        try:
            _connect(connection, process)
            yield process.pid, call, stream
        finally:
            connection.close()
            process.terminate()


def _connect(connection: http.client.HTTPConnection, process: subprocess.Popen[bytes]) -> None:
    """Connects as soon as somebody listens."""
    until_s = time.monotonic() + READY_S
    while process.poll() is None and time.monotonic() < until_s:
        with contextlib.suppress(ConnectionRefusedError):
            connection.connect()
            return
        time.sleep(LOOK_S)
    raise RuntimeError("LiteLLM's proxy doesn't come up")


def _task(client: Connection, model: str) -> None:
    """Submits a prompt and waits for its result."""
    id = client.call("task.submit", {"prompt": PROMPT, "model": model})["id"]
    _completed(client, id)


def _completed(client: Connection, id: str) -> dict[str, Any]:
    task: dict[str, Any] = {"state": ""}
    until_s = time.monotonic() + ANSWER_S
    while task["state"] not in TERMINAL and time.monotonic() < until_s:
        task = client.call("task.get", {"task": id, "wait_s": ANSWER_S / 4})["task"]
    if task["state"] != "completed":
        raise RuntimeError(f"a prompt is {task['state']}: {task['problem']}")
    return task


def _in_turns(*takes: Take) -> list[float]:
    """Gives the medians of all of them in ms, measured block by block in turns."""
    taken: list[list[float]] = [[] for _ in takes]
    for take in takes:
        for _ in range(WARM):
            take()
    for _ in range(BLOCKS):
        for take, times in zip(takes, taken, strict=True):
            for _ in range(TURNS):
                since_ns = time.monotonic_ns()
                take()
                times.append((time.monotonic_ns() - since_ns) / 1e6)
    return [median(times) for times in taken]


def _cpu_ms(take: Take, pids: list[int]) -> float:
    """Gives the processor time that doing it once takes in these processes."""
    before_s = sum(map(cpu_s, pids))
    for _ in range(TURNS):
        take()
    return 1000 * (sum(map(cpu_s, pids)) - before_s) / TURNS


def _killed(report: Report, client: Connection, state: Path) -> None:
    """Kills the gateway with calls in flight, and compares with the same prompts left alone."""
    alone_s: list[float] = []
    killed_s: list[float] = []
    again = 0
    for _ in range(ROUNDS):
        alone_s += [took_s for took_s, _ in _load(client, None)]
        rounds = _load(client, state)
        killed_s += [took_s for took_s, _ in rounds]
        again += sum(attempt > 1 for _, attempt in rounds)
        until_s = time.monotonic() + READY_S
        while client.call("mode.show", {})["gateway_gone"] or not _gateways(state):
            if time.monotonic() > until_s:
                raise RuntimeError("the gateway doesn't come back")
            time.sleep(LOOK_S)
    report.add(f"gateway killed under {AT_ONCE} calls: prompts that failed", again, "", "<=", 0)
    added_s = quantiles(killed_s, n=100)[98] - quantiles(alone_s, n=100)[98]
    report.add("gateway killed under load, p99 added", added_s, "s", "<=", 1.5)


def _load(client: Connection, state: Path | None) -> list[tuple[float, int]]:
    """Has prompts answered slowly, all at once; gives how long each took in s, and its last attempt.

    Where a state directory is given, its gateway is killed in the middle.
    """
    tasks = [{"prompt": PROMPT, "model": "slow"}] * AT_ONCE
    ids = [one["id"] for one in client.call("task.submit_batch", {"tasks": tasks})["tasks"]]
    if state is not None:
        time.sleep(INTO_CALLS_S)
        for pid in _gateways(state):
            os.kill(pid, signal.SIGKILL)
    done = [_completed(client, id) for id in ids]
    return [((task["finished_at_ms"] - task["created_at_ms"]) / 1000, task["attempt"]) for task in done]


def _gateways(state: Path) -> list[int]:
    """Gives the pids of gateways that live."""
    records = [read_record(STARTED, str(path.parent)) for path in state.glob(f"spool/server-gateway*/{STARTED}")]
    return [record["pid"] for record in records if record is not None and Path(f"/proc/{record['pid']}").exists()]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
