"""``omnictl logs``."""

from collections.abc import Iterator
from typing import Any

from omnid.ctl.context import Context
from omnid.ctl.options import Option, Verb
from omnid.states import TERMINAL

_WAIT_S = 50.0
_NEXT_ATTEMPT_S = 1.0


def _logs(context: Context) -> int:
    last = "\n"
    for part in _parts(context):
        if context.json:
            context.give_json(part)
        elif part["text"]:
            context.screen.output(part["text"])
            last = part["text"]
        elif part["attempt"] == 0 and not context.given.flag("follow"):
            task = context.given.arguments[0]
            context.screen.tell(f"{task} has not been started yet; `omnictl why {task}` says why.")
    if not last.endswith("\n"):
        context.screen.put()
    return 0


def _parts(context: Context) -> Iterator[dict[str, Any]]:
    """Gives the output piece by piece: up to now, or with ``--follow`` to the end of the task (or the attempt)."""
    given = context.given
    task, attempt = given.arguments[0], given.whole("attempt")
    follow, only_one = given.flag("follow"), attempt is not None
    offset_bytes = 0
    while True:
        wait_s = _WAIT_S if follow else 0
        part = context.call("task.log", task=task, attempt=attempt, offset_bytes=offset_bytes, wait_s=wait_s)
        yield part
        attempt, moved = part["attempt"], part["next_offset_bytes"] > offset_bytes
        offset_bytes = part["next_offset_bytes"]
        if part["ended"]:
            following = None if only_one or not follow else _next_attempt(context, task, attempt)
            if following is None:
                return
            attempt, offset_bytes = following, 0
        elif not follow and not moved:
            return


def _next_attempt(context: Context, task: str, attempt: int) -> int | None:
    """Waits for the attempt after this one; None where the task has ended, or nothing runs it until a person acts."""
    while True:
        brief = context.call("task.get", task=task, wait_s=_NEXT_ATTEMPT_S, output=False)["task"]
        if brief["attempt"] > attempt:
            return int(brief["attempt"])
        if brief["state"] in {*TERMINAL, "uncertain"}:
            return None


VERBS = {
    "logs": Verb(
        _logs,
        "Shows what the last attempt of a task printed. With --json: one piece a line.",
        "TASK",
        (
            Option("follow", None, "Go on as it comes, over further attempts, until the task has ended", short="f"),
            Option("attempt", "N", "This attempt only"),
        ),
        ("omnictl logs t7 -f",),
    )
}
