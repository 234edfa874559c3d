"""``omnictl up``, ``down`` and ``version``."""

from typing import Any

from omnid import __version__
from omnid.ctl.context import Context
from omnid.ctl.options import Option, Verb
from omnid.errors import Retryable

_STOP_S = 30.0
_ASK_S_MIN = 2.0
"""How long a daemon may take to hear that it should stop, also where nobody waits for its end."""


def _up(context: Context) -> int:
    # Only here: whoever starts no daemon needn't load what starts one.
    from omnid.api.spawn import start_daemon

    started = start_daemon(context.world.environ)
    status = context.call("status")
    what = "runs" if started else "was running already"
    where = f"omnid {status['version']} {what} (pid {status['pid']}), state in {status['state_dir']}"
    context.give({"started": started, **status}, [where])
    return 0


def _down(context: Context) -> int:
    from omnid.api.spawn import wait_for_end

    timeout_s = context.given.duration_s("timeout")
    timeout_s = _STOP_S if timeout_s is None else timeout_s
    context.answer_s = min(context.answer_s, max(timeout_s, _ASK_S_MIN))
    try:
        state_dir = context.call("status")["state_dir"]
        stopping = context.call("daemon.stop")
    except Retryable as error:
        if error.code != "daemon_unheard":
            raise
        state_dir, stopping = _terminate(context)
    if not wait_for_end(state_dir, timeout_s):
        raise Retryable("not_stopped", pid=stopping["pid"], seconds_s=timeout_s, state_dir=state_dir)
    running = stopping.get("running", 0)
    left = f"; {running} running task{'s go' if running > 1 else ' goes'} on without it" if running else ""
    context.give(stopping, [f"omnid (pid {stopping['pid']}) has stopped{left}."])
    return 0


def _terminate(context: Context) -> tuple[str, dict[str, Any]]:
    """Ends a daemon whose socket is gone by a signal; gives its state directory and what is told of it."""
    from omnid import platform
    from omnid.api.spawn import terminate

    daemon = context.unheard()
    state_dir = platform.locate(context.world.environ).state_dir
    if daemon is None:
        raise Retryable("daemon_down", path=platform.socket_path(context.world.environ), detail="It has just ended.")
    context.screen.tell(
        f"The daemon (pid {daemon.pid}) doesn't listen at {daemon.socket}, but holds {state_dir}: it gets SIGTERM."
    )
    terminate(daemon)
    return state_dir, {"pid": daemon.pid}


def _version(context: Context) -> int:
    try:
        status = context.call("status")
    except Retryable as error:
        if error.code != "daemon_down":
            raise
        status = None
    daemon = "not running" if status is None else f"{status['version']} (pid {status['pid']})"
    result = {"omnictl": __version__, "omnid": None if status is None else status["version"]}
    context.give(result, [f"omnictl {__version__}", f"omnid   {daemon}"])
    return 0


VERBS = {
    "up": Verb(_up, "Starts the daemon in the background where it is not running, and waits until it answers."),
    "down": Verb(
        _down,
        "Stops the daemon and waits until it has ended. Running commands go on; the next start finds them again.",
        "",
        (Option("timeout", "DURATION", "Wait so long at most (30s)"),),
    ),
    "version": Verb(_version, "Shows the versions of omnictl and of the daemon, if one runs."),
}
