"""``omnictl answer``: shows what a running task asks, and answers it."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, cast

from omnid.ctl import times, views
from omnid.ctl.context import Context
from omnid.ctl.options import Option, Verb

_COLUMNS = 16
_ACTIONS = ("accept", "decline", "cancel")


def _answer(context: Context) -> int:
    given = context.given
    task, *values = given.arguments
    actions = [action for action in _ACTIONS if given.flag(action)]
    said = [*values, *(name for name in ("field", "content") if name in given.values), *actions]
    if not said:
        return _show(context, task)
    if len(said) > 1:
        given.misuse("It takes one of: a value, --field, --content, --accept, --decline, --cancel")
    done = context.call(
        "task.answer",
        task=task,
        key=given.text("key"),
        action=actions[0] if actions else None,
        value=values[0] if values else None,
        fields=_fields(context),
        content=_content(context),
    )
    if context.json:
        context.give_json(done)
    else:
        context.screen.paragraph(done["task"]["name"], done["why"], label_style="bold")
    return 0


def _fields(context: Context) -> dict[str, str] | None:
    texts = context.given.many("field")
    if texts is None:
        return None
    for text in texts:
        if "=" not in text:
            context.given.misuse(f"--field takes NAME=VALUE, not {text!r}")
    return {name: value for name, _, value in (text.partition("=") for text in texts)}


def _content(context: Context) -> dict[str, Any] | None:
    text = context.given.text("content")
    if text is None:
        return None
    try:
        content = json.loads(text)
    except ValueError as error:
        context.given.misuse(f"--content is no JSON: {error}")
    if not isinstance(content, dict):
        context.given.misuse('--content takes an object: {"field": "value"}')
    return cast("dict[str, Any]", content)


def _show(context: Context, task: str) -> int:
    """Shows what is open, and how it is answered."""
    view = context.call("task.get", task=task, output=False)
    questions: list[dict[str, Any]] = view["questions"] or []
    if context.json:
        context.give_json({"task": view["task"], "questions": questions})
        return 0
    screen, name, now_ms = context.screen, view["task"]["name"], context.world.now_ms()
    views.headline(screen, view["task"])
    if not questions:
        screen.paragraph("", view["why"], 2)
        return 0
    for question in questions:
        if context.given.text("key") in (None, question["key"]):
            screen.put()
            screen.paragraph(f"  {question['key']}", str(question["params"].get("message", "")), 6, "bold")
            for label, text in _parts(question, now_ms):
                screen.paragraph(f"      {label}", text, _COLUMNS + 6)
    screen.put()
    key = "" if len(questions) == 1 else " --key KEY"
    ways = "VALUE | --field NAME=VALUE ... | --accept | --decline | --cancel"
    screen.paragraph("  answer", f"omnictl answer {name}{key} {ways}", style="cyan")
    return 0


def _parts(question: Mapping[str, Any], now_ms: int) -> Iterator[tuple[str, str]]:
    """Gives the fields of a question's form, or its page, and until when it waits."""
    if question["params"].get("url"):
        yield "page", f"{question['params']['url']} (open it, then --accept)"
    for field in question["fields"]:
        yield field["name"], _field(field)
    yield "until", f"{times.stamp(question['until_ms'])} ({times.distance(question['until_ms'], now_ms)})"


def _field(field: Mapping[str, Any]) -> str:
    choices: dict[str, str] = field["choices"] or {}
    listed = [value if value == title else f"{value} ({title})" for value, title in choices.items()]
    kind = "any of " + ", ".join(listed) if field["kind"] == "array" else "one of " + ", ".join(listed)
    parts = [kind if listed else "yes or no" if field["kind"] == "boolean" else field["kind"]]
    if field["default"] is not None:
        parts.append(f"else {views.compact(field['default'])}")
    elif not field["required"]:
        parts.append("may be left out")
    return f"{field['about']} [{'; '.join(parts)}]" if field["about"] else "; ".join(parts)


VERBS = {
    "answer": Verb(
        _answer,
        "Answers what a running task asks, so that it goes on. Without an answer it shows the question and its form.",
        "TASK [VALUE]",
        (
            Option("key", "KEY", "Which question, where there are several: q1"),
            Option("field", "NAME=VALUE", "A field of its form", many=True),
            Option("content", "JSON", "All fields of its form, as an object"),
            Option("accept", None, "Say yes, where there is nothing to fill in"),
            Option("decline", None, "Say no"),
            Option("cancel", None, "Decide nothing; the task goes on without an answer"),
        ),
        ("omnictl answer t7", "omnictl answer t7 Ada", "omnictl answer t7 --field name=Ada --field age=36"),
    ),
}
