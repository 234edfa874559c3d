"""The catalogue of errors: each says what, why and what to do, and fills in all that it was given."""

import re
import string

import pytest

from omnid.errors import Fatal, OmnidError, Rejected, Retryable
from omnid.messages import CATALOGUE
from omnid.model import Problem


def fields_of(code: str) -> dict[str, object]:
    parts = [part for text in CATALOGUE[code] for part in string.Formatter().parse(text)]
    return {name: f"<{name}>" for _, name, _, _ in parts if name}


@pytest.mark.parametrize("code", CATALOGUE)
def test_each_message_says_what_why_and_what_to_do(code: str) -> None:
    fields = fields_of(code)
    error = OmnidError(code, **fields)
    for text in (error.what, error.why, error.do):
        assert len(text) > 5 or text.startswith("<"), text
        assert not re.search(r"\{\w*\}", text), text
        assert "\n" not in text
        assert text == text.strip()
    assert str(error) == f"{error.what} {error.why} {error.do}"
    for name in fields:
        assert f"<{name}>" in str(error)


@pytest.mark.parametrize("code", CATALOGUE)
def test_an_error_and_a_problem_say_the_same(code: str) -> None:
    fields = fields_of(code)
    error = OmnidError(code, **fields)
    assert Problem.make(code, **fields) == Problem.of(error)
    assert error.as_dict() == {"code": code, "what": error.what, "why": error.why, "do": error.do}


def test_a_raise_that_forgets_a_field_is_a_fault() -> None:
    with pytest.raises(KeyError):
        Rejected("unknown_task", task="t1")
    with pytest.raises(KeyError):
        Problem.make("no_such_code")


def test_the_four_errors_are_told_apart() -> None:
    kinds = (Retryable, Rejected, Fatal)
    assert all(issubclass(kind, OmnidError) for kind in kinds)
    assert not any(issubclass(a, b) for a in kinds for b in kinds if a is not b)


def test_a_sentence_inside_of_a_sentence_ends_once():
    for detail, end in (("It is closed.", "closed."), ("it is closed", "closed."), ("and so on ...", "on ....")):
        assert Retryable("delivery_failed", destination="x", detail=detail).what.endswith(f" {end}")
