"""Answers to questions: read as people write them, held against the form, refused with what is wrong."""

from typing import Any

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from omnid.errors import Rejected
from omnid.flow.asking import Request
from omnid.flow.forms import Given, choices_of, fields_of, fit, required_of
from omnid.model import InputRequest, InputResponse

TITLED = [{"const": "r", "title": "Red"}, {"const": "g", "title": "Green"}]
AGE = {"age": {"type": "integer", "minimum": 0}}


def asked(properties: Any = None, **more: Any) -> Request:
    form = {"type": "object", "properties": properties or {}, "required": list(properties or {})}
    params = {"message": "?", "requestedSchema": form, **more}
    return Request("q1", "name", InputRequest("elicitation/create", params), 0)


def answered(request: Request, **how: Any) -> InputResponse:
    return fit("t7", request, Given(**how), 16_384)


def why_not(request: Request, **how: Any) -> str:
    with pytest.raises(Rejected) as caught:
        answered(request, **how)
    assert caught.value.code == "answer_unfit"
    assert "omnictl answer t7" in caught.value.do
    return str(caught.value.fields["detail"])


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ({"type": "string"}, " 7 ", " 7 "),
        ({"type": "integer"}, "36", 36),
        ({"type": "number"}, "1.5", 1.5),
        ({"type": "boolean"}, "Yes", True),
        ({"type": "boolean"}, "no", False),
        ({"type": "string", "enum": ["a", "b"]}, "A", "a"),
        ({"type": "string", "oneOf": TITLED}, "green", "g"),
        ({"type": "string", "enum": ["r", "g"], "enumNames": ["Red", "Green"]}, "red", "r"),
        ({"type": "array", "items": {"type": "string", "enum": ["a", "b", "c"]}}, "a, C", ["a", "c"]),
        ({"type": "array", "items": {"anyOf": TITLED}}, "Red,g", ["r", "g"]),
    ],
)
def test_a_value_is_read_as_its_field_is(field: dict[str, Any], text: str, value: Any) -> None:
    request = asked({"it": field})
    assert answered(request, value=text) == InputResponse("accept", {"it": value})
    assert answered(request, fields={"it": text}) == InputResponse("accept", {"it": value})
    assert answered(request, content={"it": value}) == InputResponse("accept", {"it": value})


@pytest.mark.parametrize(
    ("request_", "how", "detail"),
    [
        (asked({"age": {"type": "integer"}}), {"value": "old"}, "age is an integer, not 'old'"),
        (asked({"share": {"type": "number"}}), {"value": "half"}, "share is a number, not 'half'"),
        (asked({"sure": {"type": "boolean"}}), {"value": "maybe"}, "sure is yes or no, not 'maybe'"),
        (asked({"c": {"type": "string", "oneOf": TITLED}}), {"value": "blue"}, "c is one of r, g, not 'blue'"),
        (asked(AGE), {"value": "-1"}, "age: -1 is less than the minimum of 0"),
        (asked(AGE), {"content": {"age": "x"}}, "age: 'x' is not of type 'integer'"),
        (asked(AGE), {"content": {}}, "'age' is a required property"),
        (asked(AGE), {"content": {"aeg": 1}}, "its form has no field aeg (it has: age)"),
        (asked(AGE), {"fields": {"aeg": "1"}}, "its form has no field aeg (it has: age)"),
        (
            asked({**AGE, "name": {"type": "string"}}),
            {"value": "1"},
            "its form has the fields age, name: give them by name",
        ),
        (asked(), {"value": "1"}, "its form has no fields"),
        (asked(AGE), {"action": "decline", "content": {"age": 1}}, "a decline has no fields"),
        (asked(mode="url", url="https://example.org"), {"value": "x"}, "a page takes no fields"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_is_wrong(request_: Request, how: Any, detail: str) -> None:
    assert why_not(request_, **how) == detail


def test_what_is_left_out_is_as_the_form_says() -> None:
    request = asked({"name": {"type": "string"}, "colour": {"type": "string", "default": "red"}})
    assert answered(request, value="Ada").content == {"colour": "red", "name": "Ada"}
    assert answered(request, content={"name": "Ada", "colour": "x"}).content == {"colour": "x", "name": "Ada"}


@pytest.mark.parametrize("action", ["decline", "cancel"])
def test_a_refusal_has_no_content(action: Any) -> None:
    assert answered(asked(AGE), action=action) == InputResponse(action)


def test_a_page_is_accepted_without_fields() -> None:
    assert answered(asked(mode="url", url="https://example.org")) == InputResponse("accept")


def test_an_answer_is_bounded() -> None:
    with pytest.raises(Rejected) as caught:
        answered(asked({"it": {"type": "string"}}), value="x" * 20_000)
    assert (caught.value.code, caught.value.fields["setting"]) == ("too_many", "limits.ask_bytes_max")


@drawn(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["type", "properties", "required", "enum", "enumNames", "oneOf", "const", "items", "a"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=20,
    )
)
def test_no_form_breaks_it(form: Any) -> None:
    request = Request("q1", "n", InputRequest("elicitation/create", {"requestedSchema": form}), 0)
    params = request.request.params
    for name, field in fields_of(params).items():
        assert isinstance(name, str)
        choices_of(field)
    required_of(params)
    for how in ({"value": "a"}, {"content": {"a": 1}}, {"fields": {"a": "1"}}, {"action": "decline"}):
        try:
            answered(request, **how)
        except Rejected as error:
            assert error.code == "answer_unfit"
