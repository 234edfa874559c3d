"""Waiting for the end of tasks, over many requests and over restarts of the daemon; shared by ``wait`` and ``add``."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from omnid.ctl import times, views
from omnid.ctl.context import Context
from omnid.errors import OmnidError
from omnid.states import TERMINAL

EXIT_FAILED, EXIT_LOGIN, EXIT_TIMED_OUT = 1, 4, 124

_WAIT_S_MAX = 50.0
_PROGRESS_S = 1.0
_AWAY_S_MAX = 60.0
_AWAY_RETRY_S = 0.25
_AWAY_CODES = ("daemon_down", "daemon_unheard", "daemon_lost", "answer_timeout")


class Waited(NamedTuple):
    """The tasks as they were last seen, and whether the time ran out before all of them had ended."""

    views: list[dict[str, Any]]
    timed_out: bool


def wait_for(context: Context, names: Sequence[str], timeout_s: float | None, *, known: bool = False) -> Waited:
    """Waits until all tasks have ended or `timeout_s` has passed (None: as long as it takes), with a line of progress.

    A task that only a key or a login helps on is not waited for.

    A daemon that goes away is waited for, too (`_AWAY_S_MAX`), once it has been there: `known` says that it has.
    Raises what `Context.call` raises.
    """
    try:
        return _wait_for(context, names, timeout_s, known=known)
    finally:
        context.screen.progress("")


def report(context: Context, waited: Waited) -> int:
    """Writes how the tasks ended and gives the exit code: 0 where all were completed, 4 where one needs a login."""
    if context.json:
        context.give_json({"tasks": waited.views, "timed_out": waited.timed_out})
    for view in () if context.json else waited.views:
        context.screen.paragraph(view["task"]["name"], view["why"], label_style="bold")
    if any(map(_needs_login, waited.views)):
        return EXIT_LOGIN
    if waited.timed_out:
        return EXIT_TIMED_OUT
    return 0 if all(view["task"]["state"] == "completed" for view in waited.views) else EXIT_FAILED


def _wait_for(context: Context, names: Sequence[str], timeout_s: float | None, *, known: bool) -> Waited:
    started_s = context.world.monotonic_s()
    seen: list[dict[str, Any]] = []
    timed_out = False
    for name in names:
        while True:
            left_s = None if timeout_s is None else started_s + timeout_s - context.world.monotonic_s()
            step_s = _PROGRESS_S if context.screen.progress_shown else _WAIT_S_MAX
            wait_s = max(0.0, step_s if left_s is None else min(step_s, left_s))
            away_s = _AWAY_S_MAX if left_s is None else min(_AWAY_S_MAX, left_s)
            view = _get(context, name, wait_s, away_s, known=known)
            known = True
            ended = view["task"]["state"] in TERMINAL or _needs_login(view)
            if ended or (left_s is not None and left_s <= wait_s):
                seen.append(view)
                timed_out |= not ended
                break
            _show(context, view, len(seen), len(names), context.world.monotonic_s() - started_s)
    return Waited(seen, timed_out)


def _needs_login(view: dict[str, Any]) -> bool:
    return view["task"]["state"] not in TERMINAL and view["task"]["reason"] == "login"


def _get(context: Context, name: str, wait_s: float, away_s: float, *, known: bool) -> dict[str, Any]:
    """Asks for the task, and waits at most `away_s` for a daemon that has gone."""
    until_s = context.world.monotonic_s() + away_s
    while True:
        try:
            return context.call("task.get", task=name, wait_s=wait_s, output=False)
        except OmnidError as error:
            # A connection that broke is proof that there was a daemon.
            known = known or error.code == "daemon_lost"
            if not known or error.code not in _AWAY_CODES or context.world.monotonic_s() >= until_s:
                raise
        context.screen.progress("The daemon is away; waiting for it to come back")
        context.world.sleep_s(_AWAY_RETRY_S)


def _show(context: Context, view: dict[str, Any], done: int, total: int, elapsed_s: float) -> None:
    of = f"{done} of {total} · " if total > 1 else ""
    task = view["task"]
    context.screen.progress(
        f"{of}{task['name']} {views.state(task).text} · {times.span(elapsed_s // 1 * 1000)} · {view['why']}"
    )
