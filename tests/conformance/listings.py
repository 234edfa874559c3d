"""Resources, prompts, completions and logging, as the suite asks for them."""

from typing import Any

import mcp_types as types
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError

from tests.conformance.contents import PNG
from tests.conformance.rounds import answers, asks, question

CACHED = {"resultType": "complete", "ttlMs": 1000, "cacheScope": "private"}
PROMPTS: dict[str, tuple[str, ...]] = {
    "test_simple_prompt": (),
    "test_prompt_with_arguments": ("arg1", "arg2"),
    "test_prompt_with_embedded_resource": ("resourceUri",),
    "test_prompt_with_image": (),
    "test_input_required_result_prompt": (),
}
TEXT = {
    "uri": "test://static-text",
    "mimeType": "text/plain",
    "text": "This is the content of the static text resource.",
}
BINARY = {"uri": "test://static-binary", "mimeType": "image/png", "blob": PNG}
RESOURCES = {one["uri"]: one for one in (TEXT, BINARY)}


async def _resources(_context: Any, _params: Any) -> Any:
    listed = [
        {"uri": uri, "name": uri[7:], "description": "A fixture.", "mimeType": one["mimeType"]}
        for uri, one in RESOURCES.items()
    ]
    return {"resources": listed, **CACHED}


async def _templates(_context: Any, _params: Any) -> Any:
    template = {"uriTemplate": "test://template/{id}/data", "name": "template", "description": "A fixture."}
    return {"resourceTemplates": [template], **CACHED}


async def _read(_context: Any, params: Any) -> Any:
    uri = str(params.uri)
    head, _, rest = uri.partition("test://template/")
    if head == "" and rest.endswith("/data"):
        id = rest.removesuffix("/data")
        said = f'{{"id":"{id}","templateTest":true,"data":"Data for ID: {id}"}}'
        return {"contents": [{"uri": uri, "mimeType": "application/json", "text": said}], **CACHED}
    if uri not in RESOURCES:
        raise MCPError(types.INVALID_PARAMS, "Resource not found", {"uri": uri})
    return {"contents": [RESOURCES[uri]], **CACHED}


async def _prompts(_context: Any, _params: Any) -> Any:
    listed = [
        {
            "name": name,
            "description": "A fixture.",
            "arguments": [{"name": one, "description": "A fixture.", "required": True} for one in arguments],
        }
        for name, arguments in PROMPTS.items()
    ]
    return {"prompts": listed, **CACHED}


async def _prompt(_context: Any, params: Any) -> Any:
    given = params.arguments or {}
    if params.name == "test_input_required_result_prompt":
        context = answers(params).get("user_context")
        if context is None:
            return asks({"user_context": question("What context should the prompt use?", "context")})
        return _messages(_text(f"The context: {context}"))
    if params.name == "test_prompt_with_arguments":
        return _messages(_text(f"Prompt with arguments: arg1='{given['arg1']}', arg2='{given['arg2']}'"))
    if params.name == "test_prompt_with_embedded_resource":
        said = "Embedded resource content for testing."
        resource = {"uri": given["resourceUri"], "mimeType": "text/plain", "text": said}
        embedded = {"type": "resource", "resource": resource}
        return _messages(embedded, _text("Please process the embedded resource above."))
    if params.name == "test_prompt_with_image":
        image = {"type": "image", "data": PNG, "mimeType": "image/png"}
        return _messages(image, _text("Please analyze the image above."))
    if params.name not in PROMPTS:
        raise MCPError(types.INVALID_PARAMS, "There is no such prompt.")
    return _messages(_text("This is a simple prompt for testing."))


def _text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def _messages(*content: dict[str, Any]) -> dict[str, Any]:
    return {"resultType": "complete", "messages": [{"role": "user", "content": one} for one in content]}


async def _complete(_context: Any, params: Any) -> Any:
    values = [one for one in ("paris", "park", "party") if one.startswith(params.argument.value)]
    return {"resultType": "complete", "completion": {"values": values, "total": len(values), "hasMore": False}}


async def _nothing(_context: Any, _params: Any) -> Any:
    return {}


def install(server: Server[Any]) -> None:
    """Adds them to a server."""
    server.add_request_handler("resources/list", types.PaginatedRequestParams, _resources)
    server.add_request_handler("resources/templates/list", types.PaginatedRequestParams, _templates)
    server.add_request_handler("resources/read", types.ReadResourceRequestParams, _read)
    server.add_request_handler("resources/subscribe", types.SubscribeRequestParams, _nothing)
    server.add_request_handler("resources/unsubscribe", types.UnsubscribeRequestParams, _nothing)
    server.add_request_handler("prompts/list", types.PaginatedRequestParams, _prompts)
    server.add_request_handler("prompts/get", types.GetPromptRequestParams, _prompt)
    server.add_request_handler("completion/complete", types.CompleteRequestParams, _complete)
    server.add_request_handler("logging/setLevel", types.SetLevelRequestParams, _nothing)
