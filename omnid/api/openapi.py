"""The OpenAPI 3.1 document of REST, made from its addresses and the shapes of the operations' table."""

from collections.abc import Mapping
from typing import Any

import msgspec

from omnid import __version__
from omnid.api.http_gate import API
from omnid.api.mcp_tools import HIDDEN
from omnid.api.rest import OPENAPI, ROUTES, Route
from omnid.model import Problem, Submitted

VERSION = "3.1.0"
_REF = "#/components/schemas/{name}"
ERRORS: Mapping[int, str] = {
    400: "It can't be read, or a parameter doesn't fit",
    401: "No token, or a wrong one",
    403: "Who asks may not do it",
    404: "There is no such task",
    409: "What is there already stands against it",
    413: "It is too large",
    422: "It can never be done as it is",
    429: "Too often, with Retry-After",
    503: "It may work later, with Retry-After",
}


def document() -> dict[str, Any]:
    """Gives the document."""
    paths: dict[str, dict[str, Any]] = {
        OPENAPI: {"get": {"operationId": "openapi", "summary": "Gives this document.", "responses": _described()}}
    }
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.verb.lower()] = _operation(route)
    kinds = {route.method.result for route in ROUTES} | {route.method.params for route in ROUTES} | {Problem}
    _, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    schemas = {name: _shown(name, schema) for name, schema in components.items()}
    schemas["Error"] = _envelope("error", {"$ref": _REF.format(name="Problem")})
    error = {"application/json": {"schema": {"$ref": _REF.format(name="Error")}}}
    return {
        "openapi": VERSION,
        "info": {
            "title": "omnid",
            "version": __version__,
            "description": "A daemon that takes tasks, never loses one, and gets each done. Times are Unix milliseconds"
            " (`_ms`), durations seconds (`_s`), sizes bytes. What has no value is left out of an answer.",
        },
        "servers": [{"url": API}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {str(code): {"description": said, "content": error} for code, said in ERRORS.items()},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    params = route.method.params
    _, components = msgspec.json.schema_components([params], ref_template=_REF)
    properties = components[params.__name__]["properties"]
    given = {field.encode_name: field.required for field in route.given}
    operation: dict[str, Any] = {
        "operationId": f"{route.fixed.get('action', '')}_{route.method.name}".strip("_").replace(".", "_"),
        "summary": route.summary,
        "parameters": [_parameter("task", properties["task"], where="path")] if "{task}" in route.path else [],
        "responses": _responses(route),
    }
    if route.verb == "GET":
        queried = (_parameter(name, properties[name], where="query", required=given[name]) for name in given)
        operation["parameters"] += queried
        return operation
    operation["parameters"].append(
        {
            "name": "Idempotency-Key",
            "in": "header",
            "description": "The same key with the same body is answered, and not done again.",
            "schema": {"type": "string", "minLength": 1, "maxLength": 200},
        }
    )
    body = {
        "type": "object",
        "properties": {name: _part(properties[name]) for name in given},
        "additionalProperties": False,
    }
    operation["requestBody"] = {"required": any(given.values()), "content": {"application/json": {"schema": body}}}
    return operation


def _responses(route: Route) -> dict[str, Any]:
    good = _envelope("ok", {"$ref": _REF.format(name=route.method.result.__name__)})
    content: dict[str, Any] = {"application/json": {"schema": good}}
    if route.method.name == "task.log":
        content["text/plain"] = {"schema": {"type": "string"}}
    answers: dict[str, Any] = {"200": {"description": "Done", "content": content}}
    if route.method.result is Submitted:
        answers["200"]["description"] = "It was there already"
        answers["201"] = {"description": "It is on the disk", "content": content}
    return {**answers, **{str(code): {"$ref": f"#/components/responses/{code}"} for code in ERRORS}}


def _described() -> dict[str, Any]:
    return {"200": {"description": "OpenAPI", "content": {"application/json": {"schema": {"type": "object"}}}}}


def _envelope(status: str, data: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"status": {"const": status}, "data": data, "message": {"type": "string"}},
        "required": ["status", "data", "message"],
    }


def _parameter(name: str, schema: dict[str, Any], *, where: str, required: bool = True) -> dict[str, Any]:
    return {"name": name, "in": where, "required": required, "schema": _part(schema)}


def _shown(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Gives a shape as an agent sees it: what may be None is left out of answers, and so is what is hidden."""
    if "properties" not in schema:
        return schema
    hidden = HIDDEN.get(name, frozenset())
    parts = {key: part for key, part in schema["properties"].items() if key not in hidden}
    # An empty schema is that of Any, which takes None too.
    optional = {key for key, part in parts.items() if not part or {"type": "null"} in part.get("anyOf", ())}
    shown = {**schema, "properties": {key: _part(part) for key, part in parts.items()}}
    shown["required"] = [key for key in schema.get("required", ()) if key in parts and key not in optional]
    return shown


def _part(schema: dict[str, Any]) -> dict[str, Any]:
    """Gives the schema of a field without null, which no answer holds and no request needs."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    part = {key: value for key, value in schema.items() if key != "anyOf" and (key, value) != ("default", None)}
    if len(kinds) == 1:
        return {**kinds[0], **part}
    return {**part, "anyOf": kinds} if kinds else part
