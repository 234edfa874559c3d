"""What `status` shows: the facts of the running daemon, and of its tasks those that the caller sees."""

from collections import Counter
from functools import partial

from omnid import __version__
from omnid.api.host import Host
from omnid.api.inbox_views import InboxViews
from omnid.api.outbox_views import OutboxViews
from omnid.api.runner_views import RunnerViews
from omnid.api.shapes import GateView, Status
from omnid.api.views import Views, by_reason, by_state, next_wake
from omnid.flow.caller import Caller
from omnid.flow.context import Context
from omnid.store.interface import Reader, tally_key

COUNTED_MAX = 10_000
"""How many tasks are counted for one who sees only some: the newest of its own origin."""


class StatusViews:
    """Puts together what `status` shows."""

    def __init__(
        self,
        context: Context,
        host: Host,
        views: Views,
        outbox: OutboxViews,
        inbox: InboxViews,
        runners: RunnerViews,
    ) -> None:
        self._context = context
        self._host = host
        self._views = views
        self._outbox = outbox
        self._inbox = inbox
        self._runners = runners

    async def status(self, caller: Caller) -> Status:
        """Says how omnid is doing; who sees some tasks only is told what its own origin has."""
        context, host, views = self._context, self._host, self._views
        everything = caller.rights.sees_all
        tally, running = context.store.tally, context.running_by_executor()
        if not everything:
            tally, running = await context.store.read(partial(_own, caller=caller))
        needs_you, total = await context.store.read(partial(views.needs_you, caller=caller))
        return Status(
            version=__version__,
            pid=host.pid,
            mode=context.modes.mode,
            started_at_ms=host.started_at_ms,
            now_ms=context.clock.wall_ms(),
            state_dir=context.config.state.dir,
            tasks=by_state(tally),
            reasons=by_reason(tally),
            running=len(context.running) if everything else running.total(),
            slots=context.config.daemon.slots_max,
            executors=[one for one in views.executors(running) if caller.rights.opens(one.name)],
            gates=[one for one in views.gates() if self._concerns(caller, one)],
            needs_you=needs_you,
            needs_you_total=total,
            next_wake_at_ms=await context.store.read(next_wake) if everything else None,
            today=await context.store.read(partial(views.money.today, origin=None if everything else caller.origin)),
            clients=host.clients(),
            problems=views.problems(caller),
            config_problem=host.config_problem(),
            outbox=await context.store.read(self._outbox.waiting) if everything else [],
            runners=self._runners.all() if everything else [],
            inbox=await self._inbox.line(caller.origin) if caller.role == "agent" else None,
        )

    def _concerns(self, caller: Caller, gate: GateView) -> bool:
        """Tells whether a gate may hold back tasks of the caller: not that of an executor which it may not use."""
        return gate.subject not in self._context.executors or caller.rights.opens(gate.subject)


def _own(reader: Reader, *, caller: Caller) -> tuple[dict[str, int], Counter[str]]:
    """Counts the tasks of the caller's own origin, and by executor those that run: others' are none of its business."""
    rows = reader.all("count_of_origin", caller.origin, COUNTED_MAX)
    running = Counter[str]()
    for executor, count in reader.all("running_of_origin", caller.origin):
        running[executor] = count
    return {tally_key(state, reason): count for state, reason, count in rows}, running
