"""What omnid costs while nothing happens, and how long its small programs take: memory, processor, first answers."""

import json
import subprocess
import time
from statistics import median

from bench.report import Report
from bench.world import ANSWER_S, BIN, Connection, cpu_s, environ, memory_mb, real_daemon, scratch

REST_S = 2.0
IDLE_S = 30.0
RUNS = 20

INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "bench", "version": "1"},
    },
}
FIRST_LINE = json.dumps(INITIALIZE).encode() + b"\n"


def run(report: Report) -> None:
    with scratch() as directory:
        env = environ(directory)
        with real_daemon(env):
            pass  # The first start writes bytecode and makes the database.
        with real_daemon(env) as (process, client):
            client.call("status", {})
            time.sleep(REST_S)
            before = memory_mb(process.pid)
            cpu_percent = _cpu_percent(process.pid)
            _first_answer(Connection(client.path))
            time.sleep(REST_S)
            after = memory_mb(process.pid)
            report.add("idle daemon before the first MCP message, RSS", before["rss"], "MB", "<=", 60)
            report.add("the same, PSS", before["pss"], "MB")
            report.add("idle daemon after the first MCP message, RSS", after["rss"], "MB", "<=", 120)
            report.add("the same, PSS", after["pss"], "MB")
            report.add("idle daemon, processor", cpu_percent, "%", "<", 0.1)
            _relay(report, env)
            report.add("omnictl status, warm", median(_status_ms(env) for _ in range(RUNS)), "ms", "<=", 60)


def _first_answer(client: Connection) -> None:
    answer = json.loads(client.exchange(FIRST_LINE))
    client.close()
    if "result" not in answer:
        raise RuntimeError(f"initialize was answered with {answer}")


def _cpu_percent(pid: int) -> float:
    since_s, before_s = time.monotonic(), cpu_s(pid)
    time.sleep(IDLE_S)
    return 100 * (cpu_s(pid) - before_s) / (time.monotonic() - since_s)


def _relay(report: Report, env: dict[str, str]) -> None:
    times: list[float] = []
    for _ in range(RUNS):
        since_s = time.monotonic()
        with subprocess.Popen(
            [str(BIN / "omnid"), "mcp"], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as relay:
            assert relay.stdin is not None
            assert relay.stdout is not None
            relay.stdin.write(FIRST_LINE)
            relay.stdin.flush()
            answer = json.loads(relay.stdout.readline())
            times.append((time.monotonic() - since_s) * 1000)
            if "result" not in answer:
                raise RuntimeError(f"the relay answered {answer}")
            if len(times) == RUNS:
                time.sleep(REST_S)
                memory = memory_mb(relay.pid)
                report.add("relay at rest, RSS", memory["rss"], "MB", "<=", 13)
                report.add("the same, PSS", memory["pss"], "MB")
            relay.stdin.close()
            relay.wait(ANSWER_S)
    report.add("relay, from its start to the first answer", median(times), "ms", "<=", 60)


def _status_ms(env: dict[str, str]) -> float:
    since_s = time.monotonic()
    subprocess.run([str(BIN / "omnictl"), "status"], env=env, check=True, capture_output=True, timeout=ANSWER_S)
    return (time.monotonic() - since_s) * 1000
