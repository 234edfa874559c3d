"""What a user of fastmcp writes: run by the Python of `.venv-clients`, which knows nothing of omnid."""

import json

import anyio
from fastmcp import Client
from fastmcp_tasks import call_tool_task

CONFIG = {"mcpServers": {"omnid": {"command": "omnid", "args": ["mcp"]}}}


async def main() -> None:
    async with Client(CONFIG) as client:
        # It gets a task for an answer, and asks for it until it has ended.
        done = await client.call_tool("task_submit", {"argv": ["echo", "from fastmcp"]})
        task = await call_tool_task(client, "task_submit", {"argv": ["sleep", "60"]})
        before = await task.status()
        await task.cancel()
        after = await task.wait(timeout=50)
        inbox = await client.call_tool("task_search", {"inbox": True})
    said = {
        "era": client.session.protocol_version if client.is_connected() else None,
        "done": done.structured_content,
        "task": task.task_id,
        "statuses": [before.status, after.status],
        "inbox": [one["state"] for one in inbox.structured_content["tasks"]],
    }
    print(json.dumps(said))


anyio.run(main)
