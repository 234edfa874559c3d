"""The MCP tools as data: their texts, their schemas, and what is shown of a result."""

import json
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct

from omnid.api import shapes
from omnid.api.answering import ANSWER
from omnid.api.mcp_tools import INSTRUCTIONS, OUTPUT_CHARS_MAX, TOOLS, shown
from omnid.errors import Rejected
from omnid.flow.control import AGENT_ACTIONS
from tests.fakes.mcp_peer import ATTEMPT, view

ARGUMENTS: dict[str, dict[str, Any]] = {
    "task_submit": {"argv": ["make", "test"], "key": "k1"},
    "task_get": {"task": "t1"},
    "task_search": {"states": ["idle"]},
    "task_control": {"task": "t1", "action": "cancel"},
    "status": {},
}


def test_texts_are_short() -> None:
    assert len(INSTRUCTIONS) <= 600
    assert list(TOOLS) == ["task_submit", "task_get", "task_search", "task_control", "status"]
    for tool in TOOLS.values():
        assert len(tool.description) <= 400, tool.name


def walk(schema: dict[str, Any]) -> list[dict[str, Any]]:
    inner = [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]
    return [schema, *(part for child in inner for part in walk(child))]


@pytest.mark.parametrize("tool", TOOLS.values(), ids=lambda tool: tool.name)
def test_schemas_are_plain(tool: Any) -> None:
    for schema in (tool.input_schema(), tool.output_schema()):
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["type"] == "object"
        for part in walk(schema):
            assert not {"$ref", "$defs", "anyOf", "oneOf"} & part.keys()
            assert part == {} or isinstance(part["type"], str)
            assert part.get("required", ["x"]) != []
    assert tool.input_schema()["additionalProperties"] is False


@pytest.mark.parametrize("tool", TOOLS.values(), ids=lambda tool: tool.name)
def test_input_schema_says_what_is_taken(tool: Any) -> None:
    schema = tool.input_schema()
    arguments = ARGUMENTS[tool.name]
    jsonschema.validate(arguments, schema)
    assert isinstance(tool.parse(arguments), tool.method.params)
    for name in tool.method.params.__struct_fields__:
        if name not in schema["properties"]:
            with pytest.raises(Rejected, match=f"unknown field `{name}`"):
                tool.parse({**arguments, name: None})


def json_values() -> st.SearchStrategy[Any]:
    leaves = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20)
    return st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Anything of a type that the result structs use."""
    if hint is Any:
        return json_values()
    if isinstance(hint, type) and issubclass(hint, Struct):
        fields = {name: values(kind) for name, kind in get_type_hints(hint).items()}
        return st.fixed_dictionaries(fields).map(lambda chosen: hint(**chosen))
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return st.one_of([values(kind) for kind in args])
    if origin in (list, tuple):
        return st.lists(values(args[0]), max_size=5).map(origin)
    if origin is dict:
        return st.dictionaries(st.text(max_size=5), values(args[1]), max_size=3)
    if origin is Literal:
        return st.sampled_from(args)
    if hint is float:
        return st.floats(allow_nan=False, allow_infinity=False)
    return st.from_type(hint)


@pytest.mark.parametrize("tool", TOOLS.values(), ids=lambda tool: tool.name)
def test_whatever_is_shown_fits_the_output_schema(tool: Any) -> None:
    validator = jsonschema.Draft202012Validator(tool.output_schema())

    @settings(max_examples=50)
    @given(values(tool.method.result))
    def fits(result: Struct) -> None:
        structured = shown(result)
        validator.validate(structured)
        assert json.loads(msgspec.json.encode(structured)) == structured

    fits()


def test_shown_leaves_out_what_is_none_or_hidden() -> None:
    task = shown(view(ATTEMPT))
    assert task["task"]["name"] == "tester/t1"
    assert task["attempts"] == [{"number": 1, "executor": "command", "started_at_ms": 2_000}]
    assert not {"work", "key", "deadline_ms"} & task.keys()
    assert not {"origin", "problem", "lane"} & task["task"].keys()


def test_long_output_is_cut_in_its_middle() -> None:
    text = "head" + "x" * (2 * OUTPUT_CHARS_MAX) + "tail"
    attempts = [
        msgspec.structs.replace(ATTEMPT, number=number, output=text, value={"text": text}) for number in (5, 2, 4, 3)
    ]
    shown_attempts = shown(view(*attempts))["attempts"]
    assert [attempt["number"] for attempt in shown_attempts] == [3, 4, 5]
    assert "output" not in shown_attempts[0]
    assert "value" not in shown_attempts[1]
    output = shown_attempts[-1]["output"]
    assert output.startswith("head")
    assert output.endswith("tail")
    left_out = len(text) - OUTPUT_CHARS_MAX
    assert f"[... {left_out} characters left out ...]" in output
    assert len(shown_attempts[-1]["value"]) < OUTPUT_CHARS_MAX + 100
    kept = msgspec.structs.replace(ATTEMPT, output="x" * OUTPUT_CHARS_MAX, value={"a": None})
    assert shown(view(kept))["attempts"][0] == shown(view(ATTEMPT))["attempts"][0] | {
        "output": "x" * OUTPUT_CHARS_MAX,
        "value": {"a": None},
    }


def test_agents_are_offered_what_they_may() -> None:
    offered = TOOLS["task_control"].input_schema()["properties"]["action"]["enum"]
    assert set(offered) == {*AGENT_ACTIONS, ANSWER}
    assert set(offered) < set(get_args(shapes.Action))


def test_nul_in_an_argument_is_refused() -> None:
    with pytest.raises(Rejected) as caught:
        TOOLS["task_submit"].parse({"argv": ["x", "a\0"]})
    assert "argv[1]" in caught.value.what


def test_half_of_a_surrogate_pair_is_the_caller_s_fault() -> None:
    # JSON can say it, and over HTTP it comes through.
    with pytest.raises(Rejected) as caught:
        TOOLS["task_submit"].parse({"argv": ["x", "a\ud800"]})
    assert (caught.value.code, "surrogate" in caught.value.what) == ("bad_request", True)
