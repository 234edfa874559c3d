"""Whoever gets the form of a text wrong is told in words what it is."""

import re
from typing import Annotated, Any

import msgspec
import pytest
from msgspec import Meta

from omnid.api.mcp_tools import TOOLS
from omnid.api.methods import METHODS
from omnid.errors import Rejected
from omnid.patterns import SAID, said
from omnid.settings import Config


@pytest.mark.parametrize("pattern", SAID)
def test_no_regex_is_told(pattern: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="matching regex") as caught:
        msgspec.convert({"a": "* *"}, msgspec.defstruct("Held", [("a", Annotated[str, Meta(pattern=pattern)])]))
    assert said(caught.value) == f"Expected {SAID[pattern]}, at `a`"


@pytest.mark.parametrize(
    ("text", "fits"), [("23:00-07:00", True), ("9-17", False), ("24:00-07:00", False), ("23:00-07:00 ", False)]
)
def test_an_agent_is_told_what_hours_look_like(text: str, fits: bool) -> None:
    asked = {"prompt": "tidy up", "only": text}
    if fits:
        assert TOOLS["task_submit"].parse(asked) is not None
        return
    with pytest.raises(Rejected) as caught:
        TOOLS["task_submit"].parse(asked)
    assert "Expected hours like 23:00-07:00, at `only`" in str(caught.value)


def test_every_pattern_has_words() -> None:
    schemas, parts = msgspec.json.schema_components([Config, *(method.params for method in METHODS.values())])
    found = set(_patterns([schemas, parts]))
    assert found == SAID.keys(), "each pattern stands in omnid/patterns.py, with its words"
    assert all(re.compile(pattern) for pattern in found)


def _patterns(value: Any) -> list[str]:
    if isinstance(value, dict):
        inner = [one for part in value.values() for one in _patterns(part)]
        return [value["pattern"], *inner] if isinstance(value.get("pattern"), str) else inner
    return [one for part in value for one in _patterns(part)] if isinstance(value, list | tuple) else []
