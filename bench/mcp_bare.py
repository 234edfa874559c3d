"""The least that an MCP server on the SDK can be: over stdio its tool stores what it gets, over HTTP it does nothing.

`mcp_bare stdio DATABASE` speaks on its standard streams; `mcp_bare http` prints the port that it serves.
"""

import json
import socket
import sys
from typing import Any

import anyio
import apsw
import mcp_types as types
import uvicorn
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

from omnid.api.http_uvicorn import KEEP_ALIVE_S
from omnid.api.mcp_tools import TOOLS

TOOL = "task_submit"
ANSWER = {"id": "01931e3c-0000-7000-8000-000000000001", "name": "bench/t1", "state": "idle", "created": True}
TASK = {
    "taskId": ANSWER["id"],
    "status": "working",
    "statusMessage": "It waits: everything is paused.",
    "createdAt": "2026-01-01T00:00:00Z",
    "lastUpdatedAt": "2026-01-01T00:00:00Z",
    "ttlMs": None,
    "pollIntervalMs": 1000,
}


def answered(result: dict[str, Any]) -> types.CallToolResult:
    text = types.TextContent(type="text", text=json.dumps(result))
    return types.CallToolResult(content=[text], structured_content=result)


class Stored:
    """The tool `task_submit` with omnid's own schemas: one row, one synced transaction."""

    def __init__(self, path: str) -> None:
        self._connection = apsw.Connection(path)
        self._connection.pragma("journal_mode", "wal")
        self._connection.pragma("synchronous", "full")
        self._connection.execute("CREATE TABLE task (id INTEGER PRIMARY KEY, body TEXT NOT NULL)")

    async def list(self, _context: Any, _params: Any) -> types.ListToolsResult:
        tool = TOOLS[TOOL]
        schemas: dict[str, Any] = {"input_schema": tool.input_schema(), "output_schema": tool.output_schema()}
        return types.ListToolsResult(tools=[types.Tool(name=TOOL, **schemas)])

    async def call(self, _context: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        self._connection.execute("INSERT INTO task (body) VALUES (?)", (json.dumps(params.arguments),))
        return answered(ANSWER)


async def over_stdio(path: str) -> None:
    stored = Stored(path)
    server = Server[Any]("bare", on_list_tools=stored.list, on_call_tool=stored.call)
    async with stdio_server() as (reading, writing):
        await server.run(reading, writing, server.create_initialization_options())


async def _trivial(_context: Any, _params: types.CallToolRequestParams) -> types.CallToolResult:
    return answered(TASK)


def over_http() -> None:
    app = Server[Any]("bare", on_call_tool=_trivial).streamable_http_app()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        config = uvicorn.Config(
            app, loop="none", http="h11", log_level="critical", access_log=False, timeout_keep_alive=KEEP_ALIVE_S
        )
        anyio.run(uvicorn.Server(config).serve, [listener])


if __name__ == "__main__":
    if sys.argv[1] == "http":
        over_http()
    else:
        anyio.run(over_stdio, sys.argv[2])
