"""MCP tasks on the journal: every task of omnid is one, under its UUID, and nothing else is kept of it.

In the era of 2026-07-28 as the extension `io.modelcontextprotocol/tasks` (SEP-2663): a `task_submit` whose request
declares it is answered with the task itself. At 2025-11-25 as the protocol's own tasks, for which the client asks.
"""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, cast

import anyio
import mcp_types as types
import msgspec
from anyio import CancelScope
from mcp.server.context import CallNext, HandlerResult
from mcp.server.lowlevel import Server
from mcp.server.mcpserver.server import require_client_extension
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import MCP_NAME_HEADER, decode_header_value
from mcp.shared.subscriptions import SUBSCRIPTION_ID_META_KEY
from pydantic import Field

from omnid.api.mcp_asks import Asks, read_responses, requests_of
from omnid.api.mcp_calls import Calls, Context, Notice, invalid, is_modern, say
from omnid.api.mcp_follow import Follow, Look
from omnid.api.mcp_looks import Looks, Seen
from omnid.api.mcp_task_shapes import call_result, detailed, task_fields
from omnid.api.methods import Api
from omnid.api.schedule_views import SCHEDULED
from omnid.api.shapes import Control, Get, Page, Search, TaskView
from omnid.api.shapes_asks import Answer
from omnid.clock import Clock, is_uuid
from omnid.errors import Rejected
from omnid.states import TERMINAL

EXTENSION = "io.modelcontextprotocol/tasks"
RELATED_TASK = "io.modelcontextprotocol/related-task"
IMMEDIATE_RESPONSE = "io.modelcontextprotocol/model-immediate-response"
ERA_OF_TASKS = "2025-11-25"
"""The one version whose tasks are part of the protocol."""

TOLD = "notifications/tasks"
TOOL = "task_submit"
"""The tool whose calls may become tasks."""

LISTENED_MAX = 100
"""How many tasks one subscription may follow, and how many resources."""

PROGRESS_S = 5.0
"""How often a wait for a result reports progress to a client that asked for it."""

DO_RESPOND = "Answer each with an `action` (accept, decline, cancel), and with `content` where it accepts a form."
INSTEAD = {
    "tasks/result": "tasks/get has the result once the task has ended.",
    "tasks/list": "The tool task_search lists tasks.",
    "tasks/update": "It belongs to the tasks of 2026-07-28; the tool task_control passes on what a person answered.",
    "tasks/cancel": "This client gets no tool that changes tasks.",
}
"""What to do where a version of the protocol, or a client, doesn't have a method."""


class TaskParams(types.RequestParams):
    """The parameters of a request about one task."""

    task_id: str


class UpdateParams(TaskParams):
    """The parameters of tasks/update."""

    input_responses: dict[str, Any] = Field(default_factory=dict[str, Any])


class Tasks:
    """The methods of tasks on the SDK's server, in both eras."""

    def __init__(self, api: Api, calls: Calls, asks: Asks, looks: Looks, follow: Follow, clock: Clock) -> None:
        self._api = api
        self._calls = calls
        self._asks = asks
        self._looks = looks
        self._resources = follow
        self._clock = clock

    def install(self, server: Server[Any]) -> None:
        """Registers the methods and what both eras say about them."""
        server.extensions[EXTENSION] = {}
        server.add_request_handler("tasks/get", TaskParams, self._get)
        server.add_request_handler("tasks/cancel", TaskParams, self._cancel)
        server.add_request_handler("tasks/update", UpdateParams, self._update)
        server.add_request_handler("tasks/result", TaskParams, self._result)
        server.add_request_handler("tasks/list", types.PaginatedRequestParams, self._list)
        server.add_request_handler("subscriptions/listen", types.SubscriptionsListenRequestParams, self._listen)
        server.middleware.append(self._around)

    async def made(self, context: Context, task_id: str) -> dict[str, Any] | None:
        """Gives the answer to a `task_submit` that a client of 2026-07-28 gets as a task; None: it gets the plain one.

        A task that can't start yet is answered plainly: it may wait for a person, or until tomorrow.
        """
        if not is_modern(context) or not _declared(context):
            return None
        view = await self._view(context, task_id)
        if view.task.state == "waiting":
            return None
        return {"resultType": "task", **self._detailed(context, view)}

    async def _get(self, context: Context, params: TaskParams) -> dict[str, Any]:
        modern = _allowed(context)
        view = await self._view(context, params.task_id)
        return self._detailed(context, view) if modern else self._of_old(view)

    async def _cancel(self, context: Context, params: TaskParams) -> dict[str, Any]:
        modern = _allowed(context)
        if not self._calls.offers(context, "task_control"):
            raise _no_method(context)
        view = await self._view(context, params.task_id)
        try:
            # As with any mutation: what has begun is brought to its end whatever becomes of the client.
            with CancelScope(shield=True):
                await self._calls.do(context, "task.control", Control(task=view.task.id, action="cancel"))
        except Rejected as error:
            # From 2026-07-28 on nothing is wrong with the cancel of a task that has ended.
            if not modern or error.code != "not_in_state":
                raise invalid(error) from error
        return {} if modern else self._of_old(await self._view(context, params.task_id))

    async def _update(self, context: Context, params: UpdateParams) -> dict[str, Any]:
        """Takes answers to a task's questions; those to questions that aren't open are to be ignored."""
        if not _allowed(context) or not self._calls.offers(context, "task_control"):
            raise _no_method(context)
        view = await self._view(context, params.task_id)
        try:
            while given := read_responses(params.input_responses, view):
                try:
                    # As with any mutation: what has begun is brought to its end whatever becomes of the client.
                    with CancelScope(shield=True):
                        await self._calls.do(context, "task.answer", Answer(task=view.task.id, responses=given))
                    break
                except Rejected as error:
                    # In between somebody may have answered one of them; the others still count.
                    if error.code != "no_question":
                        raise
                view = await self._view(context, params.task_id)
        except msgspec.ValidationError as error:
            data = {"questions": [one.key for one in view.questions or ()], "do": DO_RESPOND}
            raise MCPError(types.INVALID_PARAMS, f"inputResponses: {error}", data) from error
        except Rejected as error:
            raise invalid(error) from error
        return {}

    async def _result(self, context: Context, params: TaskParams) -> dict[str, Any]:
        """Waits for the end of a task, and gives what the call that made it would have answered."""
        if _allowed(context):
            raise _no_method(context)
        begun_s, state, asked = self._clock.monotonic_s(), "", set[str]()
        while True:
            with self._api.change_of(params.task_id) as changed:
                view = await self._view(context, params.task_id)
                if view.task.state in TERMINAL:
                    related = {RELATED_TASK: {"taskId": view.task.id}}
                    return {**call_result(view), "_meta": related}
                if view.task.state != state:
                    state = view.task.state
                    await say(context, "notifications/tasks/status", self._of_old(view))
                if await self._asks.elicit(context, view, asked):
                    continue
                with anyio.move_on_after(PROGRESS_S):
                    await changed.wait()
            if "progress_token" in (context.meta or {}):
                waited_s = self._clock.monotonic_s() - begun_s
                await context.session.report_progress(waited_s, None, f"{view.task.name} is {view.task.state}")

    async def _list(self, context: Context, params: types.PaginatedRequestParams) -> dict[str, Any]:
        """Lists the tasks of the caller's own origin, newest first."""
        if _allowed(context):
            raise _no_method(context)
        search = Search(origin=self._calls.caller(context).origin, cursor=params.cursor)
        try:
            page = cast("Page", await self._calls.do(context, "task.list", search))
        except Rejected as error:
            raise invalid(error) from error
        kept_ms = self._api.kept_ms()
        answer: dict[str, Any] = {
            "tasks": [
                task_fields(brief, brief.problem and brief.problem.what, kept_ms, modern=False) for brief in page.tasks
            ]
        }
        return answer if page.next is None else {**answer, "nextCursor": page.next}

    async def _listen(
        self, context: Context, params: types.SubscriptionsListenRequestParams
    ) -> types.SubscriptionsListenResult:
        """Tells a client of every change of the tasks that it names, the first time at once, and of its resources."""
        asked = _asked(context, params)
        known = [task_id for task_id in asked if await self._known(context, task_id)]
        # What they are now is looked up before the client is told, so that no change falls in between.
        read = dict[str, Look]()
        for uri in (params.notifications.resource_subscriptions or [])[:LISTENED_MAX]:
            with suppress(Rejected):
                read[str(uri)] = await self._resources.look(context, str(uri))
        meta: dict[str, Any] = {SUBSCRIPTION_ID_META_KEY: context.request_id}
        honored: dict[str, Any] = {"taskIds": known} if known else {}
        if read:
            honored["resourceSubscriptions"] = list(read)
        await say(context, "notifications/subscriptions/acknowledged", {"notifications": honored, "_meta": meta})
        async with anyio.create_task_group() as group:
            for task_id in known:
                group.start_soon(self._follow, context, task_id.lower(), meta)
            for uri, now in read.items():
                told = partial(say, context, "notifications/resources/updated", {"uri": uri, "_meta": meta})
                group.start_soon(self._resources.tell, context, uri, now, told)
            await anyio.sleep_forever()
        raise AssertionError("only a cancellation ends this")

    async def _known(self, context: Context, task_id: str) -> bool:
        try:
            await self._view(context, task_id)
        except MCPError:
            return False
        return True

    async def _follow(self, context: Context, task_id: str, meta: dict[str, Any]) -> None:
        """Tells of a task's changes, with the task."""
        said: Notice | None = None
        while True:
            with self._api.change_of(task_id) as changed:
                try:
                    seen = await self._looks.look(context, task_id, changed, output=True, fresh=said is None)
                except Rejected:
                    return  # It was deleted.
                now = self._notice(context, seen)
                if said is None or now.params != said.params:
                    await now.tell(context, meta)
                said = now
                await changed.wait()

    def _notice(self, context: Context, seen: Seen) -> Notice:
        """Gives what is said of a task; where it asks nothing, that is the same for all who see it."""
        if seen.view.questions:
            return Notice(TOLD, self._detailed(context, seen.view))
        if seen.notice is None:
            seen.notice = Notice(TOLD, self._detailed(context, seen.view))
        return seen.notice

    async def _around(self, ctx: Context, call_next: CallNext) -> HandlerResult:
        """Says at 2025-11-25 that there are tasks, and makes a task of a call that asks for it."""
        if is_modern(ctx):
            return await call_next(ctx)
        if ctx.method == "initialize":
            return _greeted(cast("dict[str, Any]", await call_next(ctx)))
        if ctx.protocol_version != ERA_OF_TASKS:
            return await call_next(ctx)
        if ctx.method == "tools/list":
            return _with_support(cast("dict[str, Any]", await call_next(ctx)))
        if ctx.method == "tools/call" and (ctx.params or {}).get("task") is not None:
            return await self._called(ctx, call_next)
        return await call_next(ctx)

    async def _called(self, context: Context, call_next: CallNext) -> dict[str, Any]:
        name = (context.params or {}).get("name")
        if name != TOOL:
            said = f"{str(name)[:100]} is answered at once, so it makes no task."
            raise MCPError(types.METHOD_NOT_FOUND, said, {"tools": [TOOL], "do": "Call it without `task`."})
        answer = cast("dict[str, Any]", await call_next(context))
        made = answer.get("structuredContent")
        if answer.get("isError") or made is None:
            text = " ".join(part.get("text", "") for part in answer.get("content", ()))
            raise MCPError(types.INVALID_PARAMS, text, {"tool": TOOL, "do": "Correct the arguments: no task was made."})
        if made["state"] == SCHEDULED:
            raise MCPError(
                types.INVALID_PARAMS,
                f"{made['name']} is a schedule and no task: ask for it without `task`.",
                {"schedule": made["name"], "do": "Nothing more: it is there, and runs at its times."},
            )
        view = await self._view(context, made["id"])
        said = f"The task {made['name']} is on the disk and goes on by itself; ask for it with task_get."
        return {"task": self._of_old(view), "_meta": {IMMEDIATE_RESPONSE: said}}

    def _detailed(self, context: Context, view: TaskView) -> dict[str, Any]:
        return detailed(view, self._api.kept_ms(), requests_of(self._asks.may(context, view)))

    def _of_old(self, view: TaskView) -> dict[str, Any]:
        return task_fields(view.task, view.why, self._api.kept_ms(), modern=False)

    async def _view(self, context: Context, task_id: str) -> TaskView:
        """Gives a task by its UUID alone; raises MCPError for any other, and where the Mcp-Name header says another."""
        _check_name(context, task_id)
        ref = task_id.lower()
        try:
            if not is_uuid(ref):
                raise Rejected("unknown_task", task=task_id[:100], hint=" (tasks are known by their UUIDs here)")
            return cast("TaskView", await self._calls.do(context, "task.get", Get(task=ref)))
        except Rejected as error:
            raise invalid(error) from error


def _declared(context: Context) -> bool:
    capabilities = context.session.client_capabilities
    return EXTENSION in ((capabilities and capabilities.extensions) or {})


def _allowed(context: Context) -> bool:
    """Tells which era asks, True for 2026-07-28; raises MCPError where it may not, or knows no tasks."""
    if is_modern(context):
        require_client_extension(context, EXTENSION)
        return True
    if context.protocol_version != ERA_OF_TASKS:
        raise _no_method(context)
    return False


def _check_name(context: Context, task_id: str) -> None:
    """Holds the header that requests are routed by against the task; some clients leave it out."""
    if not is_modern(context) or context.request is None:
        return
    name: str | None = context.request.headers.get(MCP_NAME_HEADER)
    if name is not None and context.method.startswith("tasks/") and decode_header_value(name) != task_id:
        detail = "The Mcp-Name header is not the taskId of the request."
        raise MCPError(types.HEADER_MISMATCH, detail, {"header": name[:100], "taskId": task_id[:100]})


def _asked(context: Context, params: types.SubscriptionsListenRequestParams) -> Sequence[str]:
    """Gives the tasks that a subscription names; raises MCPError where they can't be followed."""
    asked: Any = (params.notifications.model_extra or {}).get("taskIds")
    if asked is None:
        return ()
    require_client_extension(context, EXTENSION)
    if not isinstance(asked, list) or not all(isinstance(one, str) for one in cast("list[Any]", asked)):
        raise MCPError(types.INVALID_PARAMS, "taskIds is a list of the UUIDs of tasks.", {"limit": LISTENED_MAX})
    ids = list(dict.fromkeys(cast("list[str]", asked)))
    if len(ids) > LISTENED_MAX:
        raise MCPError(
            types.INVALID_PARAMS, f"A subscription follows at most {LISTENED_MAX} tasks.", {"limit": LISTENED_MAX}
        )
    return ids


def _greeted(result: dict[str, Any]) -> dict[str, Any]:
    """Adds to the answer to an initialize what its version knows of tasks; the extension belongs to a later one."""
    capabilities = {key: value for key, value in result["capabilities"].items() if key != "extensions"}
    if result["protocolVersion"] == ERA_OF_TASKS:
        capabilities["tasks"] = {"list": {}, "cancel": {}, "requests": {"tools": {"call": {}}}}
    return {**result, "capabilities": capabilities}


def _with_support(result: dict[str, Any]) -> dict[str, Any]:
    # Never "required": some clients hide such tools.
    support = {"execution": {"taskSupport": "optional"}}
    return {**result, "tools": [{**tool, **support} if tool["name"] == TOOL else tool for tool in result["tools"]]}


def _no_method(context: Context) -> MCPError:
    do = INSTEAD.get(context.method, f"Speak {ERA_OF_TASKS} or a later version of the protocol.")
    data = {"method": context.method, "protocolVersion": context.protocol_version, "do": do}
    return MCPError(types.METHOD_NOT_FOUND, "Method not found", data)
