"""What messages of the SDK mean to us: tools, answers and their texts, errors, and what transports take.

Importing this module imports the SDK's types; only `mcp_session` does.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import mcp_types as types
from mcp.shared.message import ClientMessageMetadata, SessionMessage
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from omnid.errors import Retryable
from omnid.executor.mcp_http import VERSION
from omnid.executor.mcp_shapes import Answer, Asked, Tool
from omnid.executor.mcp_transport import DETAIL_CHARS_MAX, Outgoing


class OfTask(types.Request[dict[str, Any], str]):
    """A request about a task, of either era."""

    name_param: ClassVar[str | None] = "taskId"
    method: str
    params: dict[str, Any]


class Anything(types.Result, extra="allow"):
    """A result that is read by us and not by the SDK."""


def tool_of(tool: types.Tool) -> Tool:
    """Gives what is known of a tool."""
    hints, execution = tool.annotations, tool.execution
    repeatable = hints is not None and (hints.read_only_hint is True or hints.idempotent_hint is True)
    tasks = execution is not None and execution.task_support in ("optional", "required")
    return Tool(tool.name, tool.input_schema, repeatable, tasks)


def answer_of(result: types.CallToolResult | types.InputRequiredResult) -> Answer | Asked:
    """Gives what a result says, or asks."""
    if isinstance(result, types.InputRequiredResult):
        asked = result.model_dump(by_alias=True, mode="json", exclude_none=True)
        return Asked(asked.get("inputRequests", {}), result.request_state)
    return Answer("error" if result.is_error else "done", text_of(result.content), result.structured_content)


def outgoing(message: SessionMessage) -> Outgoing:
    """Gives a message of the SDK as transports take them."""
    inner, metadata = message.message, message.metadata
    given = (metadata.headers if isinstance(metadata, ClientMessageMetadata) else None) or {}
    headers = {name.lower(): value for name, value in given.items()}
    cancels = None
    if isinstance(inner, types.JSONRPCNotification) and inner.method == "notifications/cancelled":
        cancels = (inner.params or {}).get("requestId")
    return Outgoing(
        body=inner.model_dump_json(by_alias=True, exclude_unset=True).encode(),
        method=getattr(inner, "method", None),
        id=getattr(inner, "id", None),
        headers=headers,
        modern=headers.get(VERSION) in MODERN_PROTOCOL_VERSIONS,
        cancels=cancels,
    )


def text_of(content: Sequence[types.ContentBlock]) -> str:
    """Writes the content of an answer as text; what is no text is described."""
    return "\n".join(_block(block) for block in content)


def _block(block: types.ContentBlock) -> str:
    match block:
        case types.TextContent():
            return block.text
        case types.ImageContent() | types.AudioContent():
            return f"[{block.type}: {block.mime_type}, {_decoded_bytes(block.data)} bytes]"
        case types.ResourceLink():
            return f"[resource: {block.uri}]"
        case types.EmbeddedResource():
            resource = block.resource
            if isinstance(resource, types.TextResourceContents):
                return resource.text
            return f"[resource: {resource.uri}, {_decoded_bytes(resource.blob)} bytes]"


def _decoded_bytes(base64: str) -> int:
    return len(base64) * 3 // 4 - base64[-2:].count("=")


def leaf(error: BaseException) -> str:
    """Gives the text of an error, or of the first one inside a group, cut to `DETAIL_CHARS_MAX`."""
    if isinstance(error, BaseExceptionGroup):
        return leaf(cast("BaseExceptionGroup[BaseException]", error).exceptions[0])
    if isinstance(error, Retryable):
        return str(error.fields["detail"])
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        return short(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}")
    return short(str(error) or type(error).__name__)


def short(text: str, chars_max: int = DETAIL_CHARS_MAX) -> str:
    """Cuts a text that is too long."""
    return text if len(text) <= chars_max else f"{text[:chars_max]}..."
