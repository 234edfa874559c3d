"""Real MCP clients, each started as its users start it."""
