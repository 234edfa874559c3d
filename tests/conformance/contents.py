"""Tools of the suite that answer at once, or ask the client of an earlier era while they run."""

import json
import warnings
from typing import Any

import anyio
import mcp_types as types
from mcp.shared.exceptions import MCPError

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
WAV = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQAAAAA="
STEP_S = 0.05
NOTHING: dict[str, Any] = {"type": "object", "properties": {}}


def text(*said: str, **more: Any) -> dict[str, Any]:
    return {"resultType": "complete", "content": [{"type": "text", "text": one} for one in said], **more}


def needs(context: Any, name: str) -> None:
    """Refuses a client that hasn't declared a capability."""
    capabilities = context.session.client_capabilities
    if capabilities is None or getattr(capabilities, name) is None:
        data = types.MissingRequiredClientCapabilityErrorData(
            required_capabilities=types.ClientCapabilities(**{name: {}})
        )
        shown = data.model_dump(by_alias=True, mode="json", exclude_none=True)
        raise MCPError(types.MISSING_REQUIRED_CLIENT_CAPABILITY, f"It needs {name}.", shown)


def _says(*content: dict[str, Any]) -> Any:
    async def call(_context: Any, _params: Any) -> dict[str, Any]:
        return {"resultType": "complete", "content": list(content)}

    return call


def _resource(uri: str, kind: str, said: str) -> dict[str, Any]:
    return {"type": "resource", "resource": {"uri": uri, "mimeType": kind, "text": said}}


async def _logs(context: Any, _params: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for said in ("Tool execution started", "Tool processing data", "Tool execution completed"):
            await context.session.send_log_message("info", said, related_request_id=context.request_id)
            await anyio.sleep(STEP_S)
    return text("It has logged.")


async def _fails(_context: Any, _params: Any) -> Any:
    return text("This tool intentionally returns an error for testing", isError=True)


async def _progresses(context: Any, _params: Any) -> Any:
    for done in (0, 50, 100):
        await context.session.report_progress(done, 100)
        await anyio.sleep(STEP_S)
    return text("It has reported.")


async def _samples(context: Any, params: Any) -> Any:
    asked = types.SamplingMessage(role="user", content=types.TextContent(type="text", text=params.arguments["prompt"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = await context.session.create_message([asked], max_tokens=100, related_request_id=context.request_id)
    return text(f"LLM response: {got.content.text}")


def _elicits(label: str, schema: dict[str, Any] | None = None) -> Any:
    async def call(context: Any, params: Any) -> Any:
        message = (params.arguments or {}).get("message", "Please fill this in.")
        got = await context.session.elicit_form(message, schema or PERSON, related_request_id=context.request_id)
        return text(f"{label}: action={got.action}, content={json.dumps(got.content)}")

    return call


async def _samples_or_not(context: Any, _params: Any) -> Any:
    needs(context, "sampling")
    return text("It can sample.")


async def _streams(context: Any, _params: Any) -> Any:
    needs(context, "elicitation")
    question = {"message": "Go on?", "requestedSchema": PERSON}
    asked = {"go": {"method": "elicitation/create", "params": {**question, "mode": "form"}}}
    return {"resultType": "input_required", "inputRequests": asked}


async def _closes(context: Any, _params: Any) -> Any:
    if context.close_sse_stream is not None:
        await context.close_sse_stream()
    await anyio.sleep(STEP_S)
    return text("It went on.")


def _field(kind: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, **more}


def _form(**fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields}


PERSON = {**_form(username=_field("string"), email=_field("string")), "required": ["username", "email"]}
DEFAULTS = _form(
    name=_field("string", default="John Doe"),
    age=_field("integer", default=30),
    score=_field("number", default=95.5),
    status=_field("string", enum=["active", "inactive", "pending"], default="active"),
    verified=_field("boolean", default=True),
)
_TITLED = [{"const": f"value{i}", "title": f"{name} Option"} for i, name in enumerate(("First", "Second", "Third"), 1)]
ENUMS = _form(
    untitledSingle=_field("string", enum=["option1", "option2", "option3"]),
    titledSingle=_field("string", oneOf=_TITLED),
    legacyEnum=_field("string", enum=["opt1", "opt2", "opt3"], enumNames=["Option One", "Option Two", "Option Three"]),
    untitledMulti=_field("array", items=_field("string", enum=["option1", "option2", "option3"])),
    titledMulti=_field("array", items={"anyOf": _TITLED}),
)
SCHEMA_2020 = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {"address": {"$anchor": "addressDef", **_form(street=_field("string"), city=_field("string"))}},
    "properties": {
        "name": _field("string"),
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": _field("string", enum=["phone", "email"]),
        "phone": _field("string"),
        "email": _field("string"),
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}
_IMAGE = {"type": "image", "data": PNG, "mimeType": "image/png"}

TOOLS: dict[str, tuple[dict[str, Any], Any]] = {
    "test_simple_text": (NOTHING, _says({"type": "text", "text": "This is a simple text response for testing."})),
    "test_image_content": (NOTHING, _says(_IMAGE)),
    "test_audio_content": (NOTHING, _says({"type": "audio", "data": WAV, "mimeType": "audio/wav"})),
    "test_embedded_resource": (
        NOTHING,
        _says(_resource("test://embedded-resource", "text/plain", "This is an embedded resource content.")),
    ),
    "test_multiple_content_types": (
        NOTHING,
        _says(
            {"type": "text", "text": "Multiple content types test:"},
            _IMAGE,
            _resource("test://mixed-content-resource", "application/json", '{"test":"data","value":123}'),
        ),
    ),
    "test_tool_with_logging": (NOTHING, _logs),
    "test_logging_tool": (NOTHING, _logs),
    "test_error_handling": (NOTHING, _fails),
    "test_tool_with_progress": (NOTHING, _progresses),
    "test_sampling": (_form(prompt=_field("string")), _samples),
    "test_elicitation": (_form(message=_field("string")), _elicits("User response")),
    "test_elicitation_sep1034_defaults": (NOTHING, _elicits("Elicitation completed", DEFAULTS)),
    "test_elicitation_sep1330_enums": (NOTHING, _elicits("Elicitation completed", ENUMS)),
    "json_schema_2020_12_tool": (SCHEMA_2020, _says({"type": "text", "text": "It fits."})),
    "test_missing_capability": (NOTHING, _samples_or_not),
    "test_streaming_elicitation": (NOTHING, _streams),
    "test_reconnection": (NOTHING, _closes),
    "test_custom_header": (
        _form(region={"type": "string", "x-mcp-header": "Region"}),
        _says({"type": "text", "text": "The header fits."}),
    ),
}
