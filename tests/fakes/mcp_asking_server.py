"""An MCP server made with the official SDK whose tool asks the user of its client, as the era of the client has it."""

from typing import Annotated

from mcp.server import MCPServer
from mcp.server.mcpserver import AcceptedElicitation, Elicit, ElicitationResult, Resolve
from mcp_types import ToolAnnotations
from pydantic import BaseModel, Field

server = MCPServer("asking")


class Person(BaseModel):
    """The form."""

    name: str = Field(description="As in your passport")
    age: int = Field(default=18, ge=0)


async def ask() -> Elicit[Person]:
    return Elicit("Who are you?", Person)


@server.tool(annotations=ToolAnnotations(readOnlyHint=True))
async def greet(who: Annotated[ElicitationResult[Person], Resolve(ask)]) -> str:
    """Greets whoever answers."""
    if isinstance(who, AcceptedElicitation):
        return f"Hello, {who.data.name}, {who.data.age}."
    return f"No greeting: {who.action}."


if __name__ == "__main__":
    server.run()
