"""The parameters and results of operations about input requests."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from omnid.model import InputResponse, Params

AnswerAction = Literal["accept", "decline", "cancel"]
Key = Annotated[str, Meta(min_length=1, max_length=40, description="Which question: q1, q2, ...")]
Value = Annotated[str, Meta(max_length=16_384, description="The value of a form's only field, as text")]
Content = Annotated[dict[str, Any], Meta(description="The fields of the form")]


class FieldView(Struct, frozen=True):
    """A field of a form."""

    name: str
    kind: str
    """``string``, ``integer``, ``number``, ``boolean``, or ``array`` (of choices)."""
    about: str | None
    required: bool
    default: Any
    choices: dict[str, str] | None
    """What may be chosen, each with its title; None: anything may be entered."""


class QuestionView(Struct, frozen=True):
    """A question that a task waits for the answer to."""

    key: str
    """Names it in its task, and is never used again there."""
    method: str
    """What MCP calls it: ``elicitation/create``."""
    params: dict[str, Any]
    """As MCP has them: `message`, and `requestedSchema` (a form) or `url` (a page to open); data, of whoever asks."""
    fields: list[FieldView]
    """Those of its form."""
    asked_at_ms: int
    until_ms: int
    """When it is answered with `cancel`, if nobody has answered by then."""


class Answer(Params, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An answer to what a running task asks; all of `responses`, or one by the other fields.

    People may answer every task, agents their own, unless a person had to approve it.
    """

    task: Annotated[str, Meta(min_length=1, max_length=200, description="UUID, t7, or origin/t7")]
    key: Key | None = None
    """Which question; it may be left out where only one is open."""
    action: AnswerAction = "accept"
    """`decline` is a no, `cancel` no decision."""
    value: Value | None = None
    fields: Annotated[dict[str, Value], Meta(max_length=100)] | None = None
    """Values of fields as text, by name."""
    content: Content | None = None
    responses: Annotated[dict[str, InputResponse], Meta(max_length=100)] | None = None
    """Answers by the keys of their questions: all or none are taken."""
