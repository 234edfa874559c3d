"""The surfaces: the table of operations, the socket, MCP, and the client."""
