"""OpenClaw: its own MCP client (2025-11-25, without tasks), added on its command line, used by its agent."""

import json
from typing import Any

import pytest

from tests.e2e.clients.user import User, package, script
from tests.fakes.model_endpoint import Asked, ModelEndpoint

MODEL = {
    "id": "scripted",
    "name": "Scripted",
    "contextWindow": 200_000,
    "maxTokens": 4096,
    "input": ["text"],
    "reasoning": False,
    "cost": {"input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0},
}


def uses(tool: str, **arguments: Any) -> dict[str, Any]:
    """It shows its model one tool that calls all others."""
    called = {"id": f"omnid__{tool}", "args": arguments}
    return {"type": "tool_use", "id": f"toolu_{tool}", "name": "tool_call", "input": called}


@pytest.mark.timeout(420)
def test_a_turn_submits_a_task_and_waits_for_it(user: User) -> None:
    program = package("openclaw/openclaw.mjs")
    # It connects before it saves, and by itself waits 5 s, which a busy machine may need for the daemon's start.
    patient = ("--connect-timeout", "60")
    user.run("node", program, "mcp", "add", "omnid", "--command", "omnid", "--arg", "mcp", *patient)
    steps = [uses("task_submit", argv=script("echo clawed"), key="k"), uses("task_get", task="t1", wait_s=50)]

    def reply(asked: Asked) -> dict[str, Any]:
        return steps[asked.results] if asked.results < len(steps) else {"type": "text", "text": "All done."}

    with ModelEndpoint(reply) as endpoint:
        config = user.root / ".openclaw" / "openclaw.json"
        settings = json.loads(config.read_text())
        provider = {"baseUrl": endpoint.url, "apiKey": "none", "api": "anthropic-messages", "models": [MODEL]}
        settings["models"] = {"providers": {"loopback": provider}}
        config.write_text(json.dumps(settings))
        user.run("node", program, "agent", "exec", "hand it over", "--model", "loopback/scripted", "--config", config)
        made, got = endpoint.asked[-1].told
    assert "/t1" in made
    assert "clawed" in got
    (task,) = user.client.call("omnid/task.list", {})["tasks"]
    assert (task["origin"], task["state"]) == ("openclaw-bundle-mcp", "completed")
