"""What the conformance suite asks a server to have, added to the daemon's own MCP server: never shipped."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import mcp_types as types
from mcp.server.lowlevel import Server
from mcp.server.mcpserver.server import require_client_extension

from omnid.model import InputRequest
from tests.conformance import contents, listings, rounds
from tests.fakes.executor import InProcessExecutor, asks

EXTENSION = "io.modelcontextprotocol/tasks"
WAIT_S = 20
FAILING_S = 1.0

FORM = {"type": "object", "properties": {"confirm": {"type": "boolean"}, "name": {"type": "string"}}}
QUESTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "confirm_delete": {"sure": {"message": "Delete it?", "requestedSchema": FORM}},
    "multi_input": {
        "first": {"message": "The first name?", "requestedSchema": FORM},
        "second": {"message": "The second name?", "requestedSchema": FORM},
    },
}
"""What the tasks ask that ask."""

Tool = Callable[[Any, types.CallToolRequestParams], Awaitable[Any]]


async def work(argv: tuple[str, ...]) -> Any:
    """What the fixtures' tasks do: `argv` is the name of the tool, and its arguments as JSON."""
    name, arguments = argv[0], json.loads(argv[1])
    if name == "slow_compute":
        await anyio.sleep(arguments.get("seconds", 0))
    elif name in QUESTIONS:
        await asks.get()({key: InputRequest("elicitation/create", params) for key, params in QUESTIONS[name].items()})
    elif name in ("failing_job", "protocol_error_job"):
        await anyio.sleep(FAILING_S)
        return "rejected", b"It always fails."
    return "success", json.dumps(arguments).encode()


def executor() -> InProcessExecutor:
    return InProcessExecutor("fixture", work)


class Fixtures:
    """The tools of the suite in front of the server's own."""

    def __init__(self, server: Server[Any]) -> None:
        entries = {name: server.get_request_handler(name) for name in ("tools/list", "tools/call", "tasks/get")}
        self._list, self._call, self._get = (entry.handler for entry in entries.values() if entry is not None)
        self._broken: set[str] = set()
        self._tools: dict[str, tuple[types.Tool, Tool]] = {}
        for name, properties in (
            ("greet", {"name": {"type": "string"}}),
            ("slow_compute", {"seconds": {"type": "number"}, "label": {"type": "string"}}),
            ("failing_job", {}),
            ("protocol_error_job", {}),
            ("confirm_delete", {"filename": {"type": "string"}}),
            ("multi_input", {}),
            ("test_tool_with_task", {}),
        ):
            fn = self._greet if name == "greet" else self._round if name == "test_tool_with_task" else self._task
            self._add(name, {"type": "object", "properties": properties}, fn)
        for name, (schema, fn) in {**contents.TOOLS, **rounds.TOOLS}.items():
            self._add(name, schema, fn)
        server.add_request_handler("tools/list", types.PaginatedRequestParams, self.list_tools)
        server.add_request_handler("tools/call", types.CallToolRequestParams, self.call_tool)
        server.add_request_handler("tasks/get", entries["tasks/get"].params_type, self.get_task)
        listings.install(server)

    def _add(self, name: str, schema: dict[str, Any], fn: Tool) -> None:
        self._tools[name] = types.Tool(name=name, description=f"The fixture {name}.", input_schema=schema), fn

    async def list_tools(self, context: Any, params: Any) -> types.ListToolsResult:
        own = await self._list(context, params)
        return types.ListToolsResult(tools=[*own.tools, *(tool for tool, _ in self._tools.values())])

    async def call_tool(self, context: Any, params: types.CallToolRequestParams) -> Any:
        if params.name in self._tools:
            return await self._tools[params.name][1](context, params)
        return await self._call(context, params)

    async def get_task(self, context: Any, params: Any) -> Any:
        """Gives one of the daemon's tasks; that of the fixture which breaks the protocol has failed by it."""
        task = await self._get(context, params)
        if task["taskId"] in self._broken and "result" in task:
            del task["result"]
            return {**task, "status": "failed", "error": {"code": types.INTERNAL_ERROR, "message": "It broke off."}}
        return task

    async def _greet(self, _context: Any, params: types.CallToolRequestParams) -> Any:
        return contents.text(f"Hello, {(params.arguments or {}).get('name')}!")

    async def _task(self, context: Any, params: types.CallToolRequestParams) -> Any:
        """Submits a task of the daemon's, as its own tool does."""
        if params.name == "failing_job":
            require_client_extension(context, EXTENSION)
        return await self._submit(context, params.name, params.arguments or {})

    async def _submit(self, context: Any, name: str, arguments: dict[str, Any]) -> Any:
        asked = {"argv": [name, json.dumps(arguments)], "executor": "fixture"}
        made = await self._call(context, types.CallToolRequestParams(name="task_submit", arguments=asked))
        if isinstance(made, dict):
            if name == "protocol_error_job":
                self._broken.add(made["taskId"])
            return made
        waited = {"task": made.structured_content["id"], "wait_s": WAIT_S}
        return await self._call(context, types.CallToolRequestParams(name="task_get", arguments=waited))

    async def _round(self, context: Any, params: types.CallToolRequestParams) -> Any:
        """Asks for a name first, then makes a task."""
        require_client_extension(context, EXTENSION)
        given = rounds.answers(params).get("user_name")
        if given is None:
            return rounds.asks({"user_name": rounds.question("What is your name?", "name")})
        return await self._submit(context, params.name, {"name": given["content"]["name"]})


def extend(server: Server[Any]) -> None:
    """Adds the fixtures to a server."""
    Fixtures(server)
