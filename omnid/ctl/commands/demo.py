"""``omnictl demo``: a story in four chapters, told by a real daemon that is killed in the middle of it."""

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from omnid.ctl import demo_tasks
from omnid.ctl.context import Context
from omnid.ctl.demo import Count, Interrupted, Place, Signals, place
from omnid.ctl.options import Verb
from omnid.ctl.render import Cell
from omnid.errors import OmnidError, Retryable
from omnid.states import TERMINAL

_BEGIN_S = 30.0
"""How long the held tasks may take until they are in the middle of their work."""

_FINISH_S = 60.0
"""How long everything may take from the daemon's return to the last line of the ledger."""


def _demo(context: Context) -> int:
    with Signals() as signals:
        try:
            with place(context.world.environ) as made:
                count, back_s = _Story(context, made, signals).tell()
            # What happened while all of it was ended counts too.
            signals.check()
        except Interrupted as interrupted:
            context.screen.tell("The demo was interrupted; nothing of it is left behind.")
            return 128 + interrupted.number
    context.give({**count._asdict(), "back_s": round(back_s, 3)}, ["", str(count)])
    return 0 if count.good else 1


class _Story:
    """Tells what happens while it happens; with ``--json`` it happens in silence."""

    def __init__(self, context: Context, made: Place, signals: Signals) -> None:
        self._context = context
        self._place = made
        self._signals = signals
        self._client = made.first.client
        self._names: dict[str, str] = {}
        self._held = [job.name for job in demo_tasks.JOBS if job.held]

    def tell(self) -> tuple[Count, float]:
        """Goes through all chapters and gives what the ledger adds up to, and how long the daemon was away."""
        try:
            pid = self._submit()
            back_s = self._kill(pid)
            self._explain()
            self._finish()
        except OmnidError as error:
            if error.code == "demo_failed":
                raise
            # Its advice is about the daemon of whoever reads it, and not about this one.
            raise Retryable("demo_failed", detail=f"{error.what.rstrip('.')} ({error.why.rstrip('.')})") from error
        return self._count(), back_s

    def _submit(self) -> int:
        directory = os.path.dirname(self._place.work)
        self._say(
            f"{len(demo_tasks.JOBS)} tasks, a daemon that is killed among them, and a ledger that says what became of "
            f"them. All of it happens in {directory}; your own omnid, if you have one, is not touched."
        )
        self._chapter("1. The tasks go in")
        self._place.second.start()
        self._signals.check()
        pid = self._place.first.start()
        self._signals.check()
        tasks = [job.submit(self._place.work) for job in demo_tasks.JOBS]
        began_s = time.monotonic()
        answer = self._client.call("omnid/task.submit_batch", {"tasks": tasks})
        took_ms = 1000 * (time.monotonic() - began_s)
        self._names = {job.name: task["name"] for job, task in zip(demo_tasks.JOBS, answer["tasks"], strict=True)}
        self._say(
            f"The daemon (pid {pid}) answered after {took_ms:.0f} ms, when all of them were on the disk. From here on "
            "none may get lost. Each is a small script over a week of logs; the last thing it does is to write its "
            "name into the ledger."
        )
        self._table([(self._names[job.name], job.name, job.about) for job in demo_tasks.JOBS])
        return pid

    def _kill(self, pid: int) -> float:
        self._chapter("2. The daemon is killed")
        if not self._wait(self._all_begun, _BEGIN_S, "the first tasks to be at work"):
            raise Retryable("demo_failed", detail=f"the tasks that should run don't, after {_BEGIN_S:.0f} s")
        held = " and ".join(self._names[name] for name in self._held)
        finished = len(self._place.ledger())
        self._place.first.kill()
        began_s = time.monotonic()
        self._say(
            f"kill -9 {pid}, with {finished} tasks done, {held} in the middle of their work, and the others waiting or "
            "just begun. Nobody had time to tidy up. The two commands don't notice: each runs under a small "
            "supervisor of its own."
        )
        new_pid = self._place.first.start()
        back_s = time.monotonic() - began_s
        self._signals.check()
        for name in self._held:
            view = self._client.get(self._names[name])
            if (view["task"]["state"], view["task"]["attempt"]) != ("executing", 1):
                raise Retryable("demo_failed", detail=f"a running command was not adopted: {view['why'].rstrip('.')}")
        self._say(
            f"Back after {back_s:.1f} s (pid {new_pid}). It read its journal and adopted {held}: still attempt 1, not "
            "started again."
        )
        return back_s

    def _explain(self) -> None:
        self._chapter("3. Ask it why")
        for name in ("report-2", "archive"):
            self._why(name)

    def _finish(self) -> None:
        self._chapter("4. All of them finish")
        self._place.open_door()
        self._wait(self._all_ended, _FINISH_S, "the tasks to finish")
        self._why("fetch")
        for job in demo_tasks.JOBS:
            if self._client.get(self._names[job.name])["task"]["state"] != "completed":
                self._why(job.name)

    def _count(self) -> Count:
        ledger = self._place.ledger()
        self._say(
            f"{self._names['sizes']} and {self._names['clients']} were handed to a second omnid, through its MCP "
            "tool. It may have been asked twice; the key in the call makes that one task."
        )
        self._say("")
        self._say("The ledger, as the tasks wrote it:")
        self._say(", ".join(ledger), indent=2)
        return Count.of(ledger, [job.name for job in demo_tasks.JOBS])

    def _all_begun(self) -> bool:
        return all(self._place.begun(name) for name in self._held)

    def _all_ended(self) -> bool:
        return _open(self._client.status()) == 0 == _open(self._place.second.client.status())

    def _wait(self, found: Callable[[], bool], limit_s: float, what: str) -> bool:
        self._context.screen.progress(f"waits for {what} ...")
        try:
            return self._place.wait_until(found, limit_s, self._signals)
        finally:
            self._context.screen.progress("")

    def _why(self, name: str) -> None:
        task = self._names[name]
        if not self._context.json:
            self._context.screen.put(Cell(f"  $ omnictl why {task}", "bold"))
        self._say(self._client.why(task)["text"], indent=2)

    def _chapter(self, title: str) -> None:
        self._say("")
        if not self._context.json:
            self._context.screen.put(Cell(title, "bold"))

    def _say(self, text: str, indent: int = 0) -> None:
        """Writes a paragraph at once, so that a pipe sees the story while it happens."""
        if not self._context.json:
            self._context.screen.paragraph("", text, indent)
            self._context.world.stdout.flush()

    def _table(self, rows: list[tuple[str, str, str]]) -> None:
        if not self._context.json:
            cells = [(Cell(task, "bold"), Cell(name), Cell(about, "dim")) for task, name, about in rows]
            self._context.screen.table((), cells, indent="  ")


def _open(status: Mapping[str, Any]) -> int:
    """Counts the tasks that have not ended."""
    return sum(count for state, count in status["tasks"].items() if state not in TERMINAL)


VERBS = {
    "demo": Verb(
        _demo,
        "Shows omnid losing nothing: twelve tasks, a daemon that is killed while they run, and a ledger that is "
        "counted at the end. It takes a few seconds, happens in a temporary directory, and leaves nothing there.",
    )
}
