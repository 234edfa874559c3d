"""The public conformance suite of MCP, and the fixtures that it asks for: `make conformance`."""
