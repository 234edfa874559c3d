"""The Inspector's command line, over stdio and HTTP, in both eras."""

import json
from typing import Any

import pytest

from omnid.api.mcp_tools import TOOLS
from tests.e2e.clients.user import User, package, result_in

LAUNCHER = "@modelcontextprotocol/inspector/clients/launcher/build/index.js"
OVER_STDIO = ("omnid", "mcp")


def ask(user: User, era: str, target: tuple[str, ...], method: str, *more: str) -> Any:
    options = ("--cli", "--protocol-era", era, "--format", "json", "--quiet")
    answer = result_in(user.run("node", package(LAUNCHER), *options, *target, "--method", method, *more))
    return answer["result"]


@pytest.mark.parametrize("era", ["legacy", "modern"])
def test_what_it_asks_over_stdio(user: User, era: str) -> None:
    listed = ask(user, era, OVER_STDIO, "tools/list", "--strict")
    assert {tool["name"] for tool in listed["tools"]} == set(TOOLS)
    arguments = json.dumps({"argv": ["echo", "inspected"], "key": "k"})
    call = ("--tool-name", "task_submit", "--tool-args-json", arguments)
    made = ask(user, era, OVER_STDIO, "tools/call", *call)["structuredContent"]
    user.kill_daemon()
    call = ("--tool-name", "task_get", "--tool-args-json", json.dumps({"task": made["id"], "wait_s": 50}))
    view = ask(user, era, OVER_STDIO, "tools/call", *call)["structuredContent"]
    assert (view["task"]["state"], view["attempts"][-1]["output"]) == ("completed", "inspected\n")


def test_what_it_reads_over_http(user: User) -> None:
    url = user.listen()
    user.start()
    read = ask(user, "modern", ("--server-url", url), "resources/read", "--uri", "omnid://status")
    assert json.loads(read["contents"][0]["text"])["mode"] == "normal"
    assert [one["name"] for one in ask(user, "legacy", ("--server-url", url), "prompts/list")["prompts"]]
