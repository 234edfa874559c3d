"""omnictl answer: the question with its form, and every way to answer it."""

import json
from typing import Any

import pytest

from omnid import errors
from omnid.api import shapes
from omnid.api.shapes_asks import FieldView, QuestionView
from tests.fakes.ctl_world import NOW_MS, Daemon, Ran, brief, view

DONE = shapes.Controlled(brief(), "t7 runs on command.")
FIELDS = [
    FieldView("name", "string", "Name: As in your passport", True, None, None),
    FieldView("age", "integer", None, False, None, None),
    FieldView("colour", "string", None, True, "r", {"r": "Red", "g": "g"}),
    FieldView("days", "array", None, True, None, {"mon": "mon"}),
    FieldView("sure", "boolean", None, True, None, None),
]


def question(key: str = "q1", fields: Any = (), **params: Any) -> QuestionView:
    asked = {"message": "Who \x1b[31mare you?", **params}
    return QuestionView(key, "elicitation/create", asked, list(fields), NOW_MS - 60_000, NOW_MS + 3_600_000)


def asking(*questions: QuestionView) -> shapes.TaskView:
    return view(brief(state="input_required"), why="t7 asks.", questions=list(questions) or None)


def test_the_question_and_its_form_are_shown():
    ran = Ran("answer", "t7", daemon=Daemon(task__get=asking(question(fields=FIELDS))))
    assert (ran.code, ran.err) == (0, "")
    lines = [line.strip() for line in ran.out.splitlines()]
    assert lines[0].startswith("t7  make -C x")
    assert lines[2] == r"q1  Who \x1b[31mare you?"
    assert [" ".join(line.split()) for line in lines[3:8]] == [
        "name Name: As in your passport [string]",
        "age integer; may be left out",
        'colour one of r (Red), g; else "r"',
        "days any of mon",
        "sure yes or no",
    ]
    assert lines[8].startswith("until")
    assert "in 1 h" in lines[8]
    assert lines[-2].startswith("answer  omnictl answer t7 VALUE | --field NAME=VALUE ... |")


def test_several_questions_have_keys_and_one_may_be_picked():
    daemon = Daemon(task__get=asking(question(), question("q2", mode="url", url="https://example.org/a")))
    ran = Ran("answer", "t7", daemon=daemon)
    assert "https://example.org/a (open it, then --accept)" in ran.out
    assert "omnictl answer t7 --key KEY VALUE" in ran.out
    assert "q2" not in Ran("answer", "t7", "--key", "q1", daemon=daemon).out
    assert Ran("answer", "t7", "--json", daemon=daemon).json["result"]["questions"][1]["key"] == "q2"


def test_a_task_that_asks_nothing_says_what_it_does():
    ran = Ran("answer", "t7", daemon=Daemon(task__get=view()))
    assert (ran.code, ran.out.splitlines()[-1].strip()) == (0, "t7 runs since 3 minutes.")


@pytest.mark.parametrize(
    ("argv", "params"),
    [
        (["Ada"], {"value": "Ada"}),
        (["--key", "q2", "36"], {"key": "q2", "value": "36"}),
        (["--field", "name=Ada", "--field=is=a=b"], {"fields": {"name": "Ada", "is": "a=b"}}),
        (["--content", '{"age": 36}'], {"content": {"age": 36}}),
        (["--accept"], {"action": "accept"}),
        (["--decline"], {"action": "decline"}),
        (["--cancel"], {"action": "cancel"}),
    ],
)
def test_an_answer_is_sent_as_it_was_given(argv: list[str], params: dict[str, Any]):
    ran = Ran("answer", "t7", *argv, daemon=Daemon(task__answer=DONE))
    assert (ran.code, ran.calls) == (0, [("task.answer", {"task": "t7", **params})])
    assert ran.out == "t7  t7 runs on command.\n"
    ran = Ran("answer", "t7", *argv, "--json", daemon=Daemon(task__answer=DONE))
    assert ran.json["result"]["why"] == DONE.why


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["Ada", "--decline"], "one of"),
        (["--accept", "--cancel"], "one of"),
        (["--field", "name"], "NAME=VALUE"),
        (["--content", "{"], "no JSON"),
        (["--content", "[1]"], "an object"),
    ],
)
def test_what_can_not_be_an_answer_is_misuse(argv: list[str], text: str):
    ran = Ran("answer", "t7", *argv)
    assert (ran.code, ran.calls) == (2, [])
    assert text in ran.err


def test_an_answer_that_does_not_fit_says_why():
    refused = errors.Rejected("answer_unfit", key="q1", task="t7", detail="age is an integer, not 'x'")
    ran = Ran("answer", "t7", "x", daemon=Daemon(task__answer=refused))
    assert ran.code == 1
    assert "age is an integer, not 'x'" in ran.err
    assert json.loads(Ran("answer", "t7", "x", "--json", daemon=Daemon(task__answer=refused)).out)["error"]["code"]
