"""The one table of operations: name, parameters, result, handler, and who may call it.

The socket's methods and the MCP tools come from it; later the HTTP routes do too.
"""

from collections.abc import Awaitable, Callable, Container, Hashable, Mapping
from functools import partial, wraps
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

import anyio
from msgspec import Struct

from omnid.api import shapes, shapes_asks, shapes_mode, shapes_money, shapes_night, shapes_outbox
from omnid.api import shapes_schedules as plans
from omnid.api import shapes_workspaces as places
from omnid.api.account import Account
from omnid.api.answering import Answering
from omnid.api.host import Host
from omnid.api.inbox_views import InboxViews
from omnid.api.journal_views import JournalViews
from omnid.api.link_views import LinkViews
from omnid.api.mode_views import ModeViews
from omnid.api.night import Night
from omnid.api.outbox_views import OutboxViews
from omnid.api.repeats import Repeats
from omnid.api.routing import Routing
from omnid.api.runner_views import RunnerViews
from omnid.api.schedule_views import ScheduleViews
from omnid.api.shapes_links import LinkList
from omnid.api.shapes_routing import RouteExplain, RouteExplained
from omnid.api.shapes_runners import RunnerList
from omnid.api.status_views import StatusViews
from omnid.api.views import Views
from omnid.api.waiting import Waiting
from omnid.api.workspace_views import WorkspaceViews
from omnid.errors import OmnidError, Rejected
from omnid.executor.workspace import Workspaces
from omnid.flow import control, intake
from omnid.flow.caller import Caller, entitled, find_task, origins_above
from omnid.flow.context import Context
from omnid.flow.control import Cancelling, Effect
from omnid.flow.diskroom import DiskRoom
from omnid.flow.doctor import Doctor
from omnid.flow.gates import Gates
from omnid.flow.once import once
from omnid.flow.retention import promised_ms
from omnid.flow.schedules import Schedules
from omnid.model import Submit, Submitted
from omnid.route.router import unknown_executor
from omnid.states import TERMINAL
from omnid.store.interface import Outcome, Reader, Tx

P = TypeVar("P")

FOLLOW_UP_S = 10.0
BULK_TASKS = 10
"""From how many tasks on a batch is too long for the event loop."""


Handler = Callable[["Api", Caller, Any], Awaitable[Struct]]
Write = tuple[Callable[[Tx], Any], Callable[[Any], None] | None]
"""A function of the transaction, and what follows its commit."""


class Method(NamedTuple):
    """One operation."""

    name: str
    params: type[Struct]
    result: type[Struct]
    handler: Handler
    roles: frozenset[str]
    """Who may call it: `person`, `agent`."""
    waits: bool = False
    """Whether it may take longer than a write to the store."""
    begin: Callable[["Api", Caller, Any], "Write"] | None = None
    """Where it is one write: checks what was asked and gives the write and what follows it; raises what is wrong."""
    all_origins: bool = False
    """Whether it adds up the tasks of all origins, so that it is closed to who sees some of them only."""


class Api:
    """Carries out the operations; one serves all surfaces."""

    def __init__(
        self,
        context: Context,
        gates: Gates,
        cancelling: Cancelling,
        host: Host,
        workspaces: Workspaces | None = None,
        schedules: Schedules | None = None,
    ) -> None:
        self._context = context
        self._gates = gates
        self._cancelling = cancelling
        self._host = host
        self._views = Views(context, gates)
        self.history = JournalViews(context, gates, self._views, Doctor(context))
        self._routing = Routing(context)
        self.outbox = OutboxViews(context)
        self.inbox = InboxViews(context, self._views)
        self.runners = RunnerViews(context)
        self.links = LinkViews(context, host)
        self._status = StatusViews(context, host, self._views, self.outbox, self.inbox, self.runners)
        self._waiting = Waiting(context, gates)
        self.change_of = self._waiting.change_of
        self.modes = ModeViews(context)
        self.account = Account(context, gates, self._views)
        self.workspaces = WorkspaceViews(context, gates, workspaces)
        self.night = Night(context, gates, self._views)
        self.schedules = ScheduleViews(context, schedules or Schedules(context, cancelling))
        self.answering = Answering(context, self._controlled_now)
        self._repeats = Repeats(context)
        self.room = DiskRoom(context.config.state.dir, context.clock)

    async def call(self, caller: Caller, name: str, params: Struct) -> Struct:
        """Does one operation; raises OmnidError where it can't, Rejected(`not_allowed`) where the caller may not."""
        method = METHODS[name]
        if caller.role not in method.roles:
            raise Rejected("not_allowed", method=name, role=caller.role)
        caller = self._entitled(caller)
        if method.all_origins and not caller.rights.sees_all:
            raise Rejected("shows_all", method=name, origin=caller.origin)
        do = partial(method.handler, self, caller, params)
        return await self._repeats.answered(caller, name, params, method.result, do)

    def _entitled(self, caller: Caller) -> Caller:
        return entitled(caller, self._context.config)

    def sight(self, caller: Caller) -> Hashable:
        """Gives what decides on what a caller sees of tasks: it is equal for those who see the same."""
        rights = self._entitled(caller).rights
        return None if rights.sees_all else rights

    def begin(
        self,
        caller: Caller,
        method: Method,
        params: Struct,
        encode: Callable[[Struct], bytes],
        done: Callable[[Outcome[bytes]], None],
    ) -> bool:
        """Does an operation for a caller without a task, where it is one write and nothing speaks against it.

        `done` gets the encoded result. Where it gives False nothing was begun, and `call` says what is wrong.
        """
        if method.begin is None or caller.role not in method.roles:
            return False
        try:
            fn, then = method.begin(self, self._entitled(caller), params)
        except OmnidError:
            return False
        self._context.store.post(lambda tx: encode(fn(tx)), done, then=then)
        return True

    def begin_submit(self, caller: Caller, params: Submit) -> "Write":
        """Checks one task and gives the function that writes it, and what follows; raises what is wrong with it."""
        self.room.check(self._context.config.store.free_bytes_min)
        if params.schedule is not None:
            return self.schedules.begin_submit(caller, params), None
        write = intake.plan_one(self._context, caller, params)
        timed = params.not_before_ms is not None or params.deadline_ms is not None
        return once(caller, "task.submit", params, write, Submitted), self._timed if timed else None

    async def inside_of(self, attempt_id: str) -> tuple[str | None, tuple[str, ...]]:
        """Gives the task of an attempt, and its origin with those above; nothing where the journal doesn't know it."""

        def find(reader: Reader) -> tuple[str | None, tuple[str, ...]]:
            row = reader.one("attempt_head", attempt_id)
            return (None, ()) if row is None else (row[2], origins_above(reader, row[2]))

        return await self._context.store.read(find)

    async def submit(self, caller: Caller, params: Submit) -> Submitted:
        """Takes one task; returns after it is synced to the disk."""
        fn, then = self.begin_submit(caller, params)
        return await self._context.store.write(fn, then=then)

    async def submit_batch(self, caller: Caller, params: shapes.SubmitBatch) -> shapes.SubmittedBatch:
        """Takes many tasks, all or none."""
        answer = shapes.SubmittedBatch
        self.room.check(self._context.config.store.free_bytes_min)
        write = intake.plan(self._context, caller, params.tasks)
        fn = once(caller, "task.submit_batch", params, lambda tx: answer(write(tx)), answer)
        bulk = len(params.tasks) > BULK_TASKS
        timed = any(task.not_before_ms is not None or task.deadline_ms is not None for task in params.tasks)
        return await self._context.store.write(fn, bulk=bulk, then=self._timed if timed else None)

    def _timed(self, _written: object) -> None:
        """Wakes the timer where a new task has a time of its own."""
        self._context.timer.ring()

    async def get(self, caller: Caller, params: shapes.Get) -> shapes.TaskView:
        """Gives a task, after waiting for at most `wait_s` for its end, or until only a key or a login helps it on.

        An agent waits no longer either when its task asks something.
        """
        store = self._context.store
        timed_out, asked = False, params
        if params.wait_s:
            task = await store.peek(lambda reader: find_task(reader, params.task, caller))
            asked = shapes.Get(task=task.id, output=params.output)
            if task.state not in TERMINAL:
                with anyio.move_on_after(params.wait_s) as scope:
                    await self._waiting.settled(task.id, asks=caller.role == "agent" and task.origin == caller.origin)
                timed_out = scope.cancelled_caught
        view = await store.peek(lambda reader: self._views.view(reader, caller, asked, timed_out=timed_out))
        return self.workspaces.shown(view)

    def kept_ms(self) -> int:
        """Gives how long a task that has ended is surely kept."""
        return promised_ms(self._context.config.retention)

    async def search(self, caller: Caller, params: shapes.Search) -> shapes.Page:
        """Gives the tasks that fit a filter, newest first; or the caller's inbox."""
        if params.inbox:
            return await self.inbox.page(caller, params)
        return await self._context.store.read(partial(self._views.page, caller=caller, params=params))

    async def control(self, caller: Caller, params: shapes.Control) -> shapes.Controlled:
        """Does something with a task: cancel, retry, pause, approve, ..."""
        answered = await self.answering.controlled(caller, params)
        if answered is not None:
            return answered
        what = control.Order(
            params.task,
            params.action,
            params.executor,
            params.assignee,
            params.priority,
            params.output,
            params.always,
            params.text,
            params.cost_max_usd,
        )
        act = control.order(self._context, caller, what)
        effects: list[Effect] = []

        def write(tx: Tx) -> shapes.Controlled:
            before = self._views.brief_of(tx, find_task(tx, params.task, caller).id)
            effect = act(tx)
            effects[:] = [effect]
            return self._controlled(tx, caller, effect.task_id, before)

        fn = once(caller, "task.control", params, write, shapes.Controlled)
        # What was written is followed up whatever becomes of the client, though not for ever.
        with anyio.CancelScope(shield=True):
            done = await self._context.store.write(fn)
            for effect in effects:
                self._context.watch.tell(effect.touched)
                self._context.wake()
                with anyio.move_on_after(FOLLOW_UP_S):
                    await self._follow_up(effect)
            return done
        raise AssertionError("nobody cancels this scope")

    async def _follow_up(self, effect: Effect) -> None:
        if effect.cancel_attempt is not None:
            await self._cancelling.end_attempt(effect.cancel_attempt)
        for attempt_id in effect.gone_attempts:
            await self._context.spool.remove(attempt_id)

    def _controlled(self, reader: Reader, caller: Caller, task_id: str, before: shapes.TaskBrief) -> shapes.Controlled:
        if reader.one("brief_by_id", task_id) is None:
            return shapes.Controlled(before, f"{before.name} was deleted; nothing comes next.")
        return self._controlled_now(reader, caller, task_id)

    def _controlled_now(self, reader: Reader, caller: Caller, task_id: str) -> shapes.Controlled:
        brief = self._views.brief_of(reader, task_id)
        return shapes.Controlled(brief, self.history.why(reader, caller, task_id).text)

    async def why(self, caller: Caller, params: shapes.Why) -> shapes.WhyAnswer:
        """Says in one sentence why a task is where it is, and in another where its work lies."""

        def find(reader: Reader) -> tuple[shapes.WhyAnswer, str]:
            task = find_task(reader, params.task, caller)
            return self.history.why(reader, caller, task.id), task.id

        return self.workspaces.told(*await self._context.store.read(find))

    async def route(self, caller: Caller, params: RouteExplain) -> RouteExplained:
        """Shows the rules in force, and which executor a task would go to, why, and what is turned down for it."""
        return self._routing.explain(caller, params)

    async def pause(self, _caller: Caller, params: shapes.GateControl) -> shapes.Gates:
        """Keeps an executor's tasks (or all) from starting, until resumed."""
        self._check_executor(params.executor, {"*"})
        await self._gates.pause(params.executor)
        return shapes.Gates(self._views.gates())

    async def resume(self, _caller: Caller, params: shapes.GateControl) -> shapes.Gates:
        """Lets an executor's tasks (or all) start again."""
        # One that left the config may have left a closed gate behind.
        self._check_executor(params.executor, {"*", *(gate.subject for gate in self._gates.all())})
        await self._gates.resume(params.executor)
        return shapes.Gates(self._views.gates())

    def _check_executor(self, name: str, others: Container[str]) -> None:
        if name not in self._context.executors and name not in others:
            raise unknown_executor(name, self._context.executors)

    async def status(self, caller: Caller, _params: shapes.Empty) -> shapes.Status:
        """Says how omnid is doing."""
        return await self._status.status(caller)

    async def spend(self, _caller: Caller, params: shapes_money.Spend) -> shapes_money.Spent:
        """Gives what was spent, and the caps."""
        return await self._context.store.read(partial(self._views.money.spent, params=params))

    async def replay(self, _caller: Caller, params: shapes.Replay) -> shapes.Replayed:
        """Shows the state as it was, from the log alone."""
        return await self.history.replay(params)

    async def doctor(self, _caller: Caller, _params: shapes.Empty) -> shapes.Doctor:
        """Checks the journal, the disk, the executors and the config."""
        examined = await self.history.examine(self._host.config_problems())
        channels = await self.modes.findings()
        ok = examined.ok and all(one.ok for one in channels)
        return shapes.Doctor(ok, [*examined.findings, *channels])

    async def config_show(self, _caller: Caller, _params: shapes.Empty) -> shapes.ConfigShown:
        """Gives the config in use."""
        path, rows = self._host.config_rows()
        return shapes.ConfigShown(path, [shapes.ConfigRow(*row) for row in rows])

    async def config_check(self, _caller: Caller, _params: shapes.Empty) -> shapes.ConfigChecked:
        """Checks the config file on disk."""
        path, problems = self._host.config_rows()[0], self._host.config_problems()
        return shapes.ConfigChecked(path, problems, remarks=self._host.config_remarks())

    async def config_reload(self, _caller: Caller, _params: shapes.Empty) -> shapes.ConfigChecked:
        """Takes the config file over, whole or not at all."""
        problems = await self._host.reload()
        path = self._host.config_rows()[0]
        return shapes.ConfigChecked(path, problems, not problems, self._host.config_remarks())

    async def workspace_list(self, _caller: Caller, _params: shapes.Empty) -> places.WorkspaceList:
        """Gives the workspaces of agents' tasks."""
        return await self.workspaces.list()

    async def stop(self, _caller: Caller, _params: shapes.Stop) -> shapes.Stopping:
        """Makes the daemon end; running commands go on under their supervisors."""
        self._host.stop()
        return shapes.Stopping(self._host.pid, len(self._context.running))


def _by(part: Callable[[Api], P], do: Callable[[P, Caller, Any], Awaitable[Struct]]) -> Handler:
    """Makes a handler of what a part of the operations does."""

    @wraps(do)
    def handle(api: Api, caller: Caller, params: Any) -> Awaitable[Struct]:
        return do(part(api), caller, params)

    return handle


_PLANS: Callable[[Api], ScheduleViews] = attrgetter("schedules")
_HISTORY: Callable[[Api], JournalViews] = attrgetter("history")
_ANSWERS: Callable[[Api], Answering] = attrgetter("answering")
_NIGHT: Callable[[Api], Night] = attrgetter("night")
_DEAD: Callable[[Api], OutboxViews] = attrgetter("outbox")
_PLACES: Callable[[Api], WorkspaceViews] = attrgetter("workspaces")
_MODES: Callable[[Api], ModeViews] = attrgetter("modes")
_RUNNERS: Callable[[Api], RunnerViews] = attrgetter("runners")
_LINKS: Callable[[Api], LinkViews] = attrgetter("links")
_ACCOUNT: Callable[[Api], Account] = attrgetter("account")
_PERSON = frozenset({"person"})
_ALL = frozenset({"person", "agent"})

METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method("task.submit", Submit, Submitted, Api.submit, _ALL, begin=Api.begin_submit),
        Method("task.submit_batch", shapes.SubmitBatch, shapes.SubmittedBatch, Api.submit_batch, _ALL),
        Method("task.get", shapes.Get, shapes.TaskView, Api.get, _ALL, waits=True),
        Method("task.list", shapes.Search, shapes.Page, Api.search, _ALL, waits=True),
        Method("task.log", shapes.Log, shapes.LogPart, _by(_HISTORY, JournalViews.log), _ALL, waits=True),
        Method("task.control", shapes.Control, shapes.Controlled, Api.control, _ALL),
        Method("task.answer", shapes_asks.Answer, shapes.Controlled, _by(_ANSWERS, Answering.answer), _ALL, waits=True),
        Method("task.why", shapes.Why, shapes.WhyAnswer, Api.why, _ALL),
        Method(
            "task.receipt", shapes_night.ReceiptOf, shapes_night.Receipt, _by(_NIGHT, Night.receipt), _ALL, waits=True
        ),
        Method(
            "away",
            shapes_night.Away,
            shapes_night.AwayDigest,
            _by(_NIGHT, Night.away),
            _ALL,
            waits=True,
            all_origins=True,
        ),
        Method("route.explain", RouteExplain, RouteExplained, Api.route, _ALL),
        Method("mode.show", shapes.Empty, shapes_mode.ModeShown, _by(_MODES, ModeViews.show), _ALL),
        Method(
            "mode.hold", shapes_mode.ModeHold, shapes_mode.ModeShown, _by(_MODES, ModeViews.hold), _PERSON, waits=True
        ),
        Method("link.list", shapes.Empty, LinkList, _by(_LINKS, LinkViews.list), _PERSON),
        Method("outage.list", shapes_mode.OutageList, shapes_mode.Outages, _by(_MODES, ModeViews.list_outages), _ALL),
        Method(
            "channel.check",
            shapes.Empty,
            shapes_mode.ChannelsChecked,
            _by(_MODES, ModeViews.check),
            _PERSON,
            waits=True,
        ),
        Method("executor.check", shapes.Empty, shapes.Doctor, _by(_HISTORY, JournalViews.check), _PERSON, waits=True),
        Method(
            "model.rehearse", shapes.Empty, shapes_mode.Rehearsed, _by(_MODES, ModeViews.rehearse), _PERSON, waits=True
        ),
        Method(
            "state.ask", shapes_mode.Question, shapes_mode.Answered, _by(_ACCOUNT, Account.answer), _PERSON, waits=True
        ),
        Method("gate.pause", shapes.GateControl, shapes.Gates, Api.pause, _PERSON),
        Method("gate.resume", shapes.GateControl, shapes.Gates, Api.resume, _PERSON),
        Method("status", shapes.Empty, shapes.Status, Api.status, _ALL),
        Method("spend", shapes_money.Spend, shapes_money.Spent, Api.spend, _ALL, all_origins=True),
        Method(
            "operations",
            shapes.Operations,
            shapes.OperationsPage,
            _by(_HISTORY, JournalViews.operations),
            _ALL,
            waits=True,
        ),
        Method("replay", shapes.Replay, shapes.Replayed, Api.replay, _PERSON, waits=True),
        Method("doctor", shapes.Empty, shapes.Doctor, Api.doctor, _PERSON, waits=True),
        Method("runner.list", shapes.Empty, RunnerList, _by(_RUNNERS, RunnerViews.list), _PERSON),
        Method("dead.list", shapes_outbox.DeadList, shapes_outbox.DeadPage, _by(_DEAD, OutboxViews.list), _PERSON),
        Method("dead.show", shapes_outbox.DeadRef, shapes_outbox.DeadView, _by(_DEAD, OutboxViews.show), _PERSON),
        Method("dead.retry", shapes_outbox.DeadRef, shapes_outbox.DeadView, _by(_DEAD, OutboxViews.retry), _PERSON),
        Method("dead.drop", shapes_outbox.DeadRef, shapes_outbox.DeadView, _by(_DEAD, OutboxViews.drop), _PERSON),
        Method("config.show", shapes.Empty, shapes.ConfigShown, Api.config_show, _PERSON),
        Method("config.check", shapes.Empty, shapes.ConfigChecked, Api.config_check, _PERSON),
        Method("config.reload", shapes.Empty, shapes.ConfigChecked, Api.config_reload, _PERSON),
        Method("workspace.list", shapes.Empty, places.WorkspaceList, Api.workspace_list, _PERSON, waits=True),
        Method("workspace.diff", places.Diff, places.DiffPart, _by(_PLACES, WorkspaceViews.diff), _PERSON, waits=True),
        Method(
            "workspace.merge",
            places.WorkspaceOf,
            places.WorkspaceMerged,
            _by(_PLACES, WorkspaceViews.merge),
            _PERSON,
            waits=True,
        ),
        Method(
            "workspace.remove",
            places.WorkspaceOf,
            places.WorkspaceRemoved,
            _by(_PLACES, WorkspaceViews.remove),
            _PERSON,
            waits=True,
        ),
        Method("schedule.add", plans.ScheduleAdd, plans.ScheduleView, _by(_PLANS, ScheduleViews.add), _ALL),
        Method("schedule.list", plans.ScheduleList, plans.SchedulePage, _by(_PLANS, ScheduleViews.list), _ALL),
        Method("schedule.show", plans.ScheduleOf, plans.ScheduleView, _by(_PLANS, ScheduleViews.show), _ALL),
        Method("schedule.switch", plans.ScheduleSwitch, plans.ScheduleView, _by(_PLANS, ScheduleViews.switch), _ALL),
        Method("schedule.remove", plans.ScheduleOf, plans.ScheduleView, _by(_PLANS, ScheduleViews.remove), _ALL),
        Method("schedule.run", plans.ScheduleRun, Submitted, _by(_PLANS, ScheduleViews.run), _ALL),
        Method("daemon.stop", shapes.Stop, shapes.Stopping, Api.stop, _PERSON),
    )
}
