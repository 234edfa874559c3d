"""What tasks ask, put to the user of the MCP client that waits for them.

At 2025-11-25 the server asks while the client waits (``elicitation/create``); from 2026-07-28 on the call is answered
with what is asked, and comes again with the answers. A user who decides nothing leaves the question open for others.
"""

from collections.abc import Mapping
from typing import Any, cast

import anyio
import mcp_types as types
import msgspec
from anyio import CancelScope
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata
from pydantic import BaseModel, ValidationError

from omnid.api.mcp_calls import Calls, Context, is_modern
from omnid.api.methods import Api
from omnid.api.shapes import Get, TaskView
from omnid.api.shapes_asks import Answer, QuestionView
from omnid.errors import OmnidError
from omnid.log import Logger
from omnid.model import InputResponse

ELICIT = "elicitation/create"
DECIDED = frozenset({"accept", "decline"})


class Question(types.Request[dict[str, Any], str]):
    """A request to the client whose parameters go out as whoever asks has written them."""

    method: str
    params: dict[str, Any]


class Asks:
    """Asks the users of clients; one serves all connections."""

    def __init__(self, api: Api, calls: Calls, log: Logger) -> None:
        self._api = api
        self._calls = calls
        self._log = log

    def may(self, context: Context, view: TaskView) -> dict[str, QuestionView]:
        """Gives what the client's user may be asked, in the ways that the client declares.

        That is what its own tasks ask, unless a person had to approve them: who approves them answers them too.
        """
        declared = context.session.client_capabilities
        ways = None if declared is None else declared.elicitation
        own = self._calls.caller(context).origin == view.task.origin and self._calls.offers(context, "task_control")
        if ways is None or not own or view.approval is not None:
            return {}
        pages = ways.url is not None
        forms = ways.form is not None or not pages
        return {
            one.key: one
            for one in view.questions or ()
            if one.method == ELICIT and (pages if one.params.get("mode") == "url" else forms)
        }

    def round(self, context: Context, view: TaskView, state: str | None) -> dict[str, Any] | None:
        """Gives the answer to a call that asks first, where something is open that it hasn't asked yet.

        `state` is what the round before gave as its ``requestState``: the keys that it has asked for.
        """
        before = set((state or "").split(","))
        new = {key: one for key, one in self.may(context, view).items() if key not in before}
        if not new or not is_modern(context):
            return None
        asked = ",".join(sorted({*before, *new} - {""}))
        return {"resultType": "input_required", "inputRequests": requests_of(new), "requestState": asked}

    async def take(self, context: Context, task_id: str, responses: Mapping[str, Any]) -> None:
        """Takes the answers of a round; raises Rejected where one doesn't fit."""
        given = {key: _plain(one) for key, one in responses.items() if getattr(one, "action", None) in DECIDED}
        if given:
            await self._answer(context, task_id, given)

    async def elicit(self, context: Context, view: TaskView, asked: set[str]) -> bool:
        """Asks the user, at 2025-11-25, what is open and not in `asked`, and takes the answers; tells whether it did.

        Returns when all is answered, here or elsewhere, or dismissed. Raises nothing for what the client does.
        """
        new = {key: one for key, one in self.may(context, view).items() if key not in asked}
        if not new or is_modern(context) or not context.session.can_send_request:
            return False
        asked.update(new)
        scopes = {key: CancelScope() for key in new}
        async with anyio.create_task_group() as group:

            async def ask(question: QuestionView) -> None:
                with scopes[question.key]:
                    await self._ask(context, view.task.id, question)
                del scopes[question.key]
                if not scopes:
                    group.cancel_scope.cancel()

            for one in new.values():
                group.start_soon(ask, one)
            group.start_soon(self._withdraw, context, view.task.id, scopes)
        return True

    async def _ask(self, context: Context, task_id: str, question: QuestionView) -> None:
        request = cast("types.ServerRequest", Question(method=question.method, params=question.params))
        metadata = ServerMessageMetadata(related_request_id=context.request_id)
        try:
            given = await context.session.send_request(request, types.ElicitResult, metadata=metadata)
            if given.action in DECIDED:
                await self._answer(context, task_id, {question.key: _plain(given)})
        except (MCPError, ValidationError, OmnidError) as error:
            # The question stays open for others; this client isn't asked again in this request.
            self._log.warning("question_not_answered", task=task_id, key=question.key, detail=str(error)[:500])

    async def _withdraw(self, context: Context, task_id: str, scopes: Mapping[str, CancelScope]) -> None:
        """Ends the requests to the client for what was answered elsewhere."""
        while True:
            with self._api.change_of(task_id) as changed:
                try:
                    view = cast("TaskView", await self._calls.do(context, "task.get", Get(task=task_id, output=False)))
                    is_open = {one.key for one in view.questions or ()}
                except OmnidError:
                    # It was deleted, or nothing can be read; whoever waits for the task is told so next.
                    is_open = set[str]()
                for key, scope in scopes.items():
                    if key not in is_open:
                        scope.cancel()
                await changed.wait()

    async def _answer(self, context: Context, task_id: str, responses: dict[str, InputResponse]) -> None:
        # As with any mutation: what has begun is brought to its end whatever becomes of the client.
        with CancelScope(shield=True):
            part = ",".join(responses)
            await self._calls.do(context, "task.answer", Answer(task=task_id, responses=responses), part)


def requests_of(questions: Mapping[str, QuestionView]) -> dict[str, Any]:
    """Gives questions as the protocol's input requests."""
    return {key: {"method": one.method, "params": one.params} for key, one in questions.items()}


def read_responses(raw: Mapping[str, Any], view: TaskView) -> dict[str, InputResponse]:
    """Reads those input responses that answer an open question; raises msgspec.ValidationError."""
    known = {one.key: raw[one.key] for one in view.questions or () if one.key in raw}
    return msgspec.convert(known, dict[str, InputResponse])


def _plain(given: BaseModel) -> InputResponse:
    return msgspec.convert(given.model_dump(by_alias=True, mode="json"), InputResponse)
