"""Answers to input requests, held against their forms: those of MCP's elicitation, flat objects of simple fields.

A form comes from a server and an answer from anywhere, so neither is trusted. Pure.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, cast

import msgspec

from omnid.errors import Rejected
from omnid.executor.mcp_schema import misfit
from omnid.flow.asking import Request
from omnid.model import InputResponse

BOOLEANS: Mapping[str, bool] = {
    **dict.fromkeys(("yes", "y", "true", "1", "是"), True),
    **dict.fromkeys(("no", "n", "false", "0", "否"), False),
}
NAMES_SHOWN_MAX = 20


class Given(NamedTuple):
    """What somebody has answered: with `accept` the fields of a form, or the value of its only one as text."""

    action: Literal["accept", "decline", "cancel"] = "accept"
    content: Mapping[str, Any] | None = None
    value: str | None = None
    fields: Mapping[str, str] | None = None
    """Values of fields as text."""


def fit(task: str, asked: Request, given: Given, bytes_max: int) -> InputResponse:
    """Makes the response of an answer; what a form says by default is filled in where it was left out.

    To be called in a thread, as `misfit`. Raises Rejected(`answer_unfit`), and `too_many` where it is too large.
    """
    try:
        response = InputResponse(given.action, _content(asked.request.params, given))
    except ValueError as error:
        raise Rejected("answer_unfit", key=asked.key, task=task, detail=error) from error
    size_bytes = len(msgspec.json.encode(response))
    if size_bytes > bytes_max:
        setting = "limits.ask_bytes_max"
        raise Rejected("too_many", count=size_bytes, things="bytes of an answer", limit=bytes_max, setting=setting)
    return response


def form_of(params: Mapping[str, Any]) -> dict[str, Any]:
    """Gives the schema of the form that an elicitation shows; one that says nothing has no fields."""
    schema = params.get("requestedSchema")
    return cast("dict[str, Any]", schema) if isinstance(schema, dict) else {}


def fields_of(params: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Gives the fields of the form, by name, each with its schema."""
    fields = form_of(params).get("properties")
    if not isinstance(fields, dict):
        return {}
    return {str(name): field for name, field in cast("dict[Any, Any]", fields).items() if isinstance(field, dict)}


def required_of(params: Mapping[str, Any]) -> frozenset[str]:
    """Names the fields that must be filled in."""
    names = form_of(params).get("required")
    return frozenset(str(name) for name in cast("list[Any]", names)) if isinstance(names, list) else frozenset()


def choices_of(field: Mapping[str, Any]) -> dict[str, str]:
    """Gives what a field lets one choose from, each with its title; empty where anything may be entered."""
    items = field.get("items")
    field = cast("Mapping[str, Any]", items) if field.get("type") == "array" and isinstance(items, dict) else field
    titled: Any = field.get("oneOf") or field.get("anyOf")
    if isinstance(titled, list):
        options = [cast("dict[str, Any]", one) for one in cast("list[Any]", titled) if isinstance(one, dict)]
        return {str(one["const"]): str(one.get("title", one["const"])) for one in options if "const" in one}
    values = field.get("enum")
    if not isinstance(values, list):
        return {}
    listed = [str(value) for value in cast("list[Any]", values)]
    titles = field.get("enumNames")
    named = [str(title) for title in cast("list[Any]", titles)] if isinstance(titles, list) else listed
    return dict(zip(listed, named, strict=False))


def _content(params: Mapping[str, Any], given: Given) -> dict[str, Any] | None:
    """Gives the fields of an answer; raises ValueError with what is wrong."""
    if given.action != "accept" or params.get("mode") == "url":
        if given.value is not None or given.content or given.fields:
            raise ValueError(
                "a page takes no fields" if given.action == "accept" else f"a {given.action} has no fields"
            )
        return None
    fields = fields_of(params)
    content = dict(given.content or {})
    texts = dict(given.fields or {})
    if given.value is not None:
        texts[_only(fields)] = given.value
    content |= {name: _read(name, fields.get(name, {}), text) for name, text in texts.items()}
    unknown = content.keys() - fields.keys()
    if unknown:
        known = ", ".join(list(fields)[:NAMES_SHOWN_MAX]) or "none"
        raise ValueError(f"its form has no field {min(unknown)[:100]} (it has: {known})")
    defaults = {name: field["default"] for name, field in fields.items() if "default" in field}
    content = {**defaults, **content}
    wrong = misfit(form_of(params), content)
    if wrong is not None:
        raise ValueError(wrong)
    return content


def _only(fields: Mapping[str, Mapping[str, Any]]) -> str:
    """Names the field that a value without a name is for."""
    if len(fields) == 1:
        return next(iter(fields))
    wanted = [name for name, field in fields.items() if "default" not in field]
    if len(wanted) == 1:
        return wanted[0]
    names = ", ".join(list(fields)[:NAMES_SHOWN_MAX])
    raise ValueError(f"its form has the fields {names}: give them by name" if names else "its form has no fields")


def _read(name: str, field: Mapping[str, Any], text: str) -> Any:
    """Reads the value of a field as people write it; raises ValueError."""
    kind = field.get("type")
    if kind == "array":
        return [_chosen(name, field, part.strip()) for part in text.split(",")]
    if kind == "boolean":
        value = BOOLEANS.get(text.strip().casefold())
        if value is None:
            raise ValueError(f"{name} is yes or no, not {text[:100]!r}")
        return value
    if kind in ("integer", "number"):
        try:
            return int(text) if kind == "integer" else float(text)
        except ValueError:
            raise ValueError(f"{name} is a{'n' if kind == 'integer' else ''} {kind}, not {text[:100]!r}") from None
    return _chosen(name, field, text)


def _chosen(name: str, field: Mapping[str, Any], text: str) -> str:
    """Gives the value that a choice or its title means; any text where there is nothing to choose from."""
    choices = choices_of(field)
    if not choices or text in choices:
        return text
    meant = [value for value, title in choices.items() if text.casefold() in (value.casefold(), title.casefold())]
    if len(meant) != 1:
        raise ValueError(f"{name} is one of {', '.join(list(choices)[:NAMES_SHOWN_MAX])}, not {text[:100]!r}")
    return meant[0]
