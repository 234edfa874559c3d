"""``omnictl ask``: questions about omnid's own state."""

from omnid.ctl.context import Context
from omnid.ctl.options import Option, Verb
from omnid.ctl.render import Cell

ANSWER_S_MAX = 600.0
"""The local model may have to be woken first."""


def _ask(context: Context) -> int:
    given = context.given
    context.answer_s = ANSWER_S_MAX
    answer = context.call(
        "state.ask",
        question=" ".join(given.arguments),
        facts_only=given.flag("facts"),
        wake=given.flag("wake"),
    )
    if context.json:
        context.give_json(answer)
        return 0
    screen = context.screen
    for line in answer["text"].splitlines():
        screen.paragraph("", line, 0)
    if not answer["model"] and not given.flag("facts"):
        screen.tell(f"No model put this into words: {answer['why_no_model']}.")
    screen.put()
    said_by = f"{answer['model']} was given these facts:" if answer["model"] else "The facts:"
    screen.put(Cell(said_by, "dim"))
    for fact in answer["facts"]:
        screen.paragraph("-", fact, 1)
    return 0


VERBS = {
    "ask": Verb(
        _ask,
        "Answers a question about omnid's own state: what waits, why, what happened. The facts are gathered first and "
        "shown with the answer; a model of this machine puts them into words, where one is awake. Nothing goes to the "
        "cloud.",
        "[QUESTION...]",
        (
            Option("facts", None, "The facts alone; no model is asked"),
            Option("wake", None, "Wakes the local model for it although the cloud is there"),
        ),
        ("omnictl ask", "omnictl ask 'why does t7 wait?'"),
    ),
}
