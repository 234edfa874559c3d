"""The verbs that do something to tasks: cancel, retry, pause, resume, priority, resolve, complete, assign, rm."""

from collections.abc import Sequence
from typing import Any

from omnid.ctl.context import Context
from omnid.ctl.options import Option, Verb
from omnid.errors import OmnidError

_EVERYTHING = "*"


def control(context: Context, tasks: Sequence[str], action: str, **params: Any) -> int:
    """Does the same to every task, also after one refuses; gives exit code 1 where one did.

    A single task's refusal is raised as it is.
    """
    results: list[dict[str, Any]] = []
    for task in tasks:
        try:
            results.append(context.call("task.control", task=task, action=action, **params))
        except OmnidError as error:
            if len(tasks) == 1 or error.code.startswith("daemon_"):
                raise
            results.append({"task": task, "error": error.as_dict()})
    if context.json:
        context.give_json({"tasks": results})
    for result in () if context.json else results:
        if "error" in result:
            error = result["error"]
            context.screen.tell(f"omnictl: {result['task']}: {error['what']} {error['do']}")
        else:
            context.screen.paragraph(result["task"]["name"], result["why"], label_style="bold")
    return 1 if any("error" in result for result in results) else 0


def _cancel(context: Context) -> int:
    return control(context, context.given.arguments, "cancel")


def _retry(context: Context) -> int:
    return control(context, context.given.arguments, "retry")


def _pause(context: Context) -> int:
    return _hold(context, "pause")


def _resume(context: Context) -> int:
    return _hold(context, "resume")


def _hold(context: Context, action: str) -> int:
    tasks, executor = context.given.arguments, context.given.text("executor")
    if tasks and executor is not None:
        context.given.misuse("It takes tasks or --executor, not both")
    if tasks:
        return control(context, tasks, action)
    gates = context.call(f"gate.{action}", executor=executor or _EVERYTHING)
    what = "everything" if executor is None else f"executor {executor}"
    next_step = "what runs goes on, nothing new starts" if action == "pause" else "what waited for it may start"
    context.give(gates, [f"{what} is {action}d; {next_step}."])
    return 0


def _priority(context: Context) -> int:
    task, number = context.given.arguments
    return control(context, [task], "priority", priority=context.given.number("The priority", number))


def _resolve(context: Context) -> int:
    chosen = [action for action in ("done", "again", "fail") if context.given.flag(action)]
    if len(chosen) != 1:
        context.given.misuse("It takes exactly one of --done, --again and --fail")
    return control(context, context.given.arguments, chosen[0], output=context.given.text("output"))


def _complete(context: Context) -> int:
    return control(context, context.given.arguments, "complete", output=context.given.text("output"))


def _assign(context: Context) -> int:
    executor, assignee = context.given.text("executor"), context.given.text("assignee")
    if executor is None and assignee is None:
        context.given.misuse("It takes --executor or --assignee")
    return control(context, context.given.arguments, "assign", executor=executor, assignee=assignee)


def _rm(context: Context) -> int:
    tasks = context.given.arguments
    if not context.given.flag("yes"):
        if not context.interactive:
            context.given.misuse("Without a terminal to ask at, it needs --yes")
        if not context.asks(f"Delete {', '.join(tasks)} with all that is known of them?"):
            return 1
    return control(context, tasks, "delete")


_HELD = (Option("executor", "NAME", "This executor"),)
_OUTPUT = Option("output", "TEXT", "What came out of it")

VERBS = {
    "cancel": Verb(_cancel, "Cancels tasks; a running one when its attempt has been ended.", "TASK..."),
    "retry": Verb(_retry, "Runs tasks again that have failed or were cancelled.", "TASK..."),
    "pause": Verb(
        _pause,
        "Starts nothing new of it: the tasks, the executor, or without either everything. What runs goes on.",
        "[TASK...]",
        _HELD,
        ("omnictl pause", "omnictl pause --executor claude", "omnictl pause t7"),
    ),
    "resume": Verb(_resume, "Lets go on what was paused in the same way.", "[TASK...]", _HELD),
    "priority": Verb(
        _priority,
        "Changes the priority: -10 to 10, higher starts first.",
        "TASK NUMBER",
        (),
        ("omnictl priority t7 5",),
    ),
    "resolve": Verb(
        _resolve,
        "Decides about a task of which nobody knows whether it was done. Look at what it left "
        "first: `omnictl show` says what is known.",
        "TASK",
        (
            Option("done", None, "It was done: completed"),
            Option("again", None, "It was not: run it again"),
            Option("fail", None, "It failed"),
            _OUTPUT,
        ),
        ("omnictl resolve t7 --done",),
    ),
    "complete": Verb(_complete, "Finishes a task by hand, as completed.", "TASK", (_OUTPUT,)),
    "assign": Verb(
        _assign,
        "Gives a task to another executor, or notes who takes care of it.",
        "TASK",
        (Option("executor", "NAME", "The executor that gets it"), Option("assignee", "NAME", "Who gets it")),
    ),
    "rm": Verb(_rm, "Deletes tasks and what is known of them.", "TASK...", (Option("yes", None, "Don't ask"),)),
}
