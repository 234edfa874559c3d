"""``omnictl wait``."""

from omnid.ctl.context import Context
from omnid.ctl.options import Option, Verb
from omnid.ctl.waiting import report, wait_for


def _wait(context: Context) -> int:
    return report(context, wait_for(context, context.given.arguments, context.given.duration_s("timeout")))


VERBS = {
    "wait": Verb(
        _wait,
        "Waits until the tasks have ended. Exit code 0: all completed; 1: one failed or was "
        "cancelled; 4: its agent needs a login; 124: the time ran out. Goes on over a restart of the daemon.",
        "TASK...",
        (Option("timeout", "DURATION", "Give up after this time; without it, wait on"),),
        ("omnictl wait t7 t8 --timeout 5m",),
    )
}
