"""Tasks as MCP shows them, in both eras: pure functions of what the journal knows. Knows nothing of the MCP SDK.

2026-07-28: the extension `io.modelcontextprotocol/tasks` (SEP-2663); 2025-11-25: tasks of the protocol itself. The two
name fields differently, and differ in what `failed` means: to the first it is a JSON-RPC error, and a tool's own
failure a completed task whose result has `isError`; to the second both are failed.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from omnid.api.mcp_tools import shown
from omnid.api.shapes import TaskBrief, TaskView
from omnid.states import TERMINAL

POLL_MS = 1_000
"""How often a client may ask for a task."""


def task_fields(brief: TaskBrief, why: str | None, kept_ms: int, *, modern: bool) -> dict[str, Any]:
    """Gives the members of a Task; `kept_ms` is how long a task that has ended is surely kept.

    The time to live counts from the creation, so it is known once the task has ended, and null before.
    """
    ended_ms = brief.finished_at_ms
    ttl_ms = None if ended_ms is None else ended_ms - brief.created_at_ms + kept_ms
    updated_ms = max(brief.created_at_ms, brief.started_at_ms or 0, ended_ms or 0)
    fields: dict[str, Any] = {"taskId": brief.id, "status": status_of(brief.state, modern=modern)}
    if why:
        fields["statusMessage"] = why
    fields |= {"createdAt": _iso(brief.created_at_ms), "lastUpdatedAt": _iso(updated_ms)}
    names = ("ttlMs", "pollIntervalMs") if modern else ("ttl", "pollInterval")
    return {**fields, names[0]: ttl_ms, names[1]: POLL_MS}


def status_of(state: str, *, modern: bool) -> str:
    """Gives the status of a task in a state of the table; what waits for a person is working too.

    Only a client that is shown the questions is told by it that there are any: see `detailed`.
    """
    if state not in TERMINAL:
        return "input_required" if state == "input_required" and not modern else "working"
    return "completed" if state == "failed" and modern else state


def detailed(view: TaskView, kept_ms: int, requests: Mapping[str, Any]) -> dict[str, Any]:
    """Gives a DetailedTask of 2026-07-28: with the result where there is one, or with what the client is asked."""
    fields = task_fields(view.task, view.why, kept_ms, modern=True)
    if requests:
        return {**fields, "status": "input_required", "inputRequests": dict(requests)}
    return {**fields, "result": call_result(view)} if fields["status"] == "completed" else fields


def call_result(view: TaskView) -> dict[str, Any]:
    """Gives the CallToolResult of the task_submit that made the task: what it answers, and how the task ended."""
    task = view.task
    structured = {"id": task.id, "name": task.name, "state": task.state, "created": True, **shown(view)}
    text = msgspec.json.encode(structured).decode()
    return {
        "content": [{"type": "text", "text": text}],
        "structuredContent": structured,
        "isError": task.state != "completed",
    }


def _iso(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
