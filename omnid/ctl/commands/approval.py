"""``omnictl approve`` and ``omnictl deny``."""

from omnid.ctl import views
from omnid.ctl.commands.control import control
from omnid.ctl.context import Context
from omnid.ctl.options import Option, Verb
from omnid.ctl.render import Cell


def _approve(context: Context) -> int:
    return _decide(context, "approve")


def _deny(context: Context) -> int:
    return _decide(context, "deny")


def _decide(context: Context, action: str) -> int:
    """Shows what is decided about before it is: executor, command and directory, to which the approval is bound."""
    tasks = context.given.arguments
    for task in () if context.json else tasks:
        _show(context, task)
    verb = "Let" if action == "approve" else "Refuse to let"
    ask = context.interactive and not context.json and not context.given.flag("yes")
    if ask and not context.asks(f"{verb} {'it' if len(tasks) == 1 else 'them'} run?"):
        return 1
    return control(context, tasks, action, always=context.given.flag("always"))


def _show(context: Context, task: str) -> None:
    view = context.call("task.get", task=task, output=False)
    brief = view["task"]
    context.screen.put(Cell(f"{brief['name']} of {brief['origin']}", "bold"))
    for label, text in (("executor", brief["executor"]), *views.work(view["work"])):
        context.screen.paragraph(f"  {label}", text, 16)
    context.world.stdout.flush()


_OPTIONS = (
    Option("always", None, "The same command in the same directory needs no further answer"),
    Option("yes", None, "Don't ask"),
)

VERBS = {
    "approve": Verb(
        _approve,
        "Lets a task run that an agent submitted to an executor which isn't open to it. Shows the "
        "executor, the command and the directory first, and asks where there is a terminal.",
        "TASK...",
        _OPTIONS,
    ),
    "deny": Verb(_deny, "Refuses such a task; it fails.", "TASK...", _OPTIONS),
}
