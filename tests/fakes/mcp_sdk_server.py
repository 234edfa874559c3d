"""An MCP server made with the official SDK, as most are; it serves both eras of the protocol."""

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp_types import ToolAnnotations

server = MCPServer("sdk")


@server.tool(annotations=ToolAnnotations(readOnlyHint=True))
async def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@server.tool()
async def report(context: Context) -> str:
    """Tells how far it is."""
    await context.report_progress(1, 2, "half of it")
    return "done"


@server.tool()
async def broken() -> str:
    """Fails."""
    raise ValueError("nothing works")


if __name__ == "__main__":
    server.run()
