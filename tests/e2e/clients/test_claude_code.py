"""Claude Code: `claude mcp add`, `mcp list`, and whole `claude -p` sessions, whose model on loopback does as told."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.e2e.clients.user import User, script
from tests.e2e.test_claude_code import claude
from tests.fakes.model_endpoint import Asked, ModelEndpoint

ALLOWED = "mcp__omnid__task_submit,mcp__omnid__task_get,mcp__omnid__task_search"
WAITS = {"type": "tool_use", "id": "toolu_wait", "name": "WaitForMcpServers", "input": {}}
"""It doesn't wait for its servers by itself."""
DONE = {"type": "text", "text": "All done."}


def uses(tool: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"toolu_{tool}", "name": f"mcp__omnid__{tool}", "input": arguments}


@contextmanager
def session(user: User, *blocks: dict[str, Any]) -> Iterator[Callable[[], list[str]]]:
    """A session whose model uses these tools one after the other; yields what runs it and gives what they told."""
    steps = (WAITS, *blocks)

    def reply(asked: Asked) -> dict[str, Any]:
        return steps[asked.results] if asked.results < len(steps) else DONE

    with ModelEndpoint(reply) as endpoint:
        environ = {
            "ANTHROPIC_BASE_URL": endpoint.url,
            "CLAUDE_CODE_OAUTH_TOKEN": "sk-ant-oat01-of-no-use",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        }

        def run() -> list[str]:
            user.run(claude(), "-p", "do it", "--allowedTools", ALLOWED, environ=environ)
            return endpoint.asked[-1].told[1:]

        yield run


def test_it_is_added_listed_and_well(user: User) -> None:
    user.run(claude(), "mcp", "add", "omnid", "--", "omnid", "mcp")
    said = user.run(claude(), "mcp", "list")
    assert "omnid: omnid mcp" in said
    assert "Connected" in said


@pytest.mark.timeout(420)
def test_what_one_session_submits_the_next_one_reads_over_the_end_of_the_daemon(user: User) -> None:
    user.run(claude(), "mcp", "add", "omnid", "--", "omnid", "mcp")
    with user.gate() as gate:
        argv = script("read x < go", "echo built")
        with session(user, uses("task_submit", argv=argv, cwd=str(user.work), key="build")) as run:
            (made,) = run()
        assert "claude-code/t1" in made
        user.kill_daemon()
        gate.let()
        with session(user, uses("task_get", task="t1", wait_s=50), uses("task_search", inbox=True)) as run:
            got, found = run()
    assert "completed" in got
    assert "built" in got
    assert "claude-code/t1" in found
    (task,) = user.client.call("omnid/task.list", {})["tasks"]
    assert (task["origin"], task["state"], task["attempt"]) == ("claude-code", "completed", 1)
