"""Tasks of MCP servers, as both eras tell of them. Knows nothing of the SDK, which has no tasks of its own.

Source: the extension `io.modelcontextprotocol/tasks` (SEP-2663), and the tasks of 2025-11-25.
"""

from collections.abc import Mapping
from math import inf, isnan
from typing import Any, Literal, cast

import msgspec
from msgspec import Struct

EXTENSION = "io.modelcontextprotocol/tasks"
RELATED_TASK = "io.modelcontextprotocol/related-task"
"""Where a message says which task it belongs to, at 2025-11-25."""
ERA_OF_TASKS = "2025-11-25"
"""The one version whose tasks are part of the protocol."""
ID_CHARS_MAX = 1024
POLL_S, POLL_S_MIN, POLL_S_MAX = 1.0, 0.2, 60.0
"""How often a task is looked at: unless its server says otherwise, and the bounds of what it may say."""

Status = Literal["working", "input_required", "completed", "failed", "cancelled"]


class TaskGoneError(Exception):
    """The server knows no task of that id; the text is what it says."""


class RemoteTask(Struct, frozen=True):
    """A task as its server has just told of it."""

    id: str
    status: Status
    said: str = ""
    poll_s: float = POLL_S
    result: dict[str, Any] | None = None
    """What the call would have answered, where that came along."""
    error: dict[str, Any] | None = None
    """The JSON-RPC error that the call would have ended with."""
    questions: dict[str, Any] = {}
    """What the server wants to know (``inputRequests``)."""

    @property
    def ended(self) -> bool:
        """Whether nothing changes any more."""
        return self.status in ("completed", "failed", "cancelled")


class _Task(Struct, rename="camel"):
    task_id: str
    status: Status
    status_message: str | None = None
    poll_interval_ms: float | None = None
    poll_interval: float | None = None
    ttl_ms: float | None = None
    ttl: float | None = None
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    input_requests: dict[str, Any] = {}


def is_task(result: Mapping[str, Any]) -> bool:
    """Tells whether what a call was answered with is a task in place of a result."""
    return result.get("resultType") == "task" or isinstance(result.get("task"), Mapping)


def read_task(result: Mapping[str, Any]) -> RemoteTask:
    """Reads what a call, ``tasks/get`` or ``tasks/cancel`` answered; raises ValueError where it is no task."""
    inner = result.get("task")
    told = msgspec.convert(cast("Mapping[str, Any]", inner) if isinstance(inner, Mapping) else result, _Task)
    if not 0 < len(told.task_id) <= ID_CHARS_MAX:
        raise ValueError(f"its id has {len(told.task_id)} characters")
    ttl_ms = told.ttl_ms if told.ttl_ms is not None else told.ttl
    poll_ms = told.poll_interval_ms if told.poll_interval_ms is not None else told.poll_interval
    return RemoteTask(
        id=told.task_id,
        status=told.status,
        said=told.status_message or "",
        poll_s=_poll_s(poll_ms, ttl_ms),
        result=told.result,
        error=told.error,
        questions=told.input_requests,
    )


def _poll_s(poll_ms: float | None, ttl_ms: float | None) -> float:
    """Gives how long to wait for the next look: within the bounds, and so that the task isn't gone by then."""
    wanted_s = POLL_S if poll_ms is None or isnan(poll_ms) else poll_ms / 1000
    kept_s = inf if ttl_ms is None or isnan(ttl_ms) else ttl_ms / 1000
    return max(POLL_S_MIN, min(wanted_s, kept_s / 2, POLL_S_MAX))
