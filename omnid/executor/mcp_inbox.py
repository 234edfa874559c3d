"""What comes from an MCP server, sorted before the SDK gets it: answers and requests go on, notices to their calls.

Importing this module imports the SDK; only `mcp_session` does.
"""

import contextlib
from collections.abc import Callable, Generator, Sequence
from typing import Any, cast

import anyio
import mcp_types as types
import msgspec
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.client import ClientRequestContext
from mcp.shared.message import SessionMessage
from msgspec import Struct

from omnid.errors import Retryable
from omnid.executor import mcp_listing
from omnid.executor.mcp_messages import leaf, short
from omnid.executor.mcp_nameless import Nameless
from omnid.executor.mcp_questions import ELICIT
from omnid.executor.mcp_shapes import Party
from omnid.executor.mcp_tasks import RELATED_TASK, is_task
from omnid.executor.mcp_transport import Broken, Flow, Id, Trouble
from omnid.log import Logger

DISCOVER_S = 2.0
"""How long a server may take to answer ``server/discover``, which servers of the older era may ignore."""
UNSENT_MAX = 512
"""How many messages may wait for a server that doesn't read; one that asks on and on ends there."""
TEXT_CHARS_MAX = 4096

SEVERAL = (
    "Several calls are open here, and it can't be told which of them asks. Answer yours with an error: from now on "
    "they come one at a time."
)
"""What a server is told whose question may belong to one of several tasks."""

HELD_BACK = (
    "[omnid] Something is asked, in this call or in another one of the server: it is held back until that is known.\n"
)
"""What the logs of all say that may have asked."""

SAID = object()
"""Marks errors that the server has sent with the code that the SDK gives to those of a connection that ended."""

Streams = tuple[MemoryObjectReceiveStream[SessionMessage | Exception], MemoryObjectSendStream[SessionMessage]]


class _Envelope(Struct):
    """As much of a message as tells where it goes."""

    method: str | None = None
    id: int | str | None = None
    params: msgspec.Raw = msgspec.Raw(b"{}")


class _Progress(Struct):
    progressToken: int | str  # noqa: N815 - the protocol's name.
    progress: float
    total: float | None = None
    message: str | None = None


class _LogMessage(Struct):
    level: str
    data: Any
    logger: str | None = None


def _ignore(_: str) -> None:
    """Takes what nobody listens to."""


_NOBODY = Party(_ignore, None, None)


class SessionInbox:
    """Implements `mcp_transport.Inbox` for one session, with the streams to the SDK and from it."""

    def __init__(self, name: str, log: Logger, version: Callable[[], str | None], nameless: Callable[[], None]) -> None:
        """`version` gives the protocol's version, once it is known; `nameless` hears of questions that name no call."""
        self.unusable: dict[str, str] = {}
        """Tools that the server describes in a way that the protocol doesn't allow, and what is wrong with them."""
        self.parties: dict[str, Party] = {}
        """Who takes part in open calls, by their progress tokens."""
        self.made: dict[str, dict[str, Any]] = {}
        """Tasks that servers have answered calls with, by the calls' tokens: the SDK knows no tasks."""
        self.inward, self.to_client = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        self.from_client, self.outward = anyio.create_memory_object_stream[SessionMessage](0)
        self._name = name
        self._log = log
        self._version = version
        self._told_nameless = nameless
        self._nameless = Nameless()
        self._asked: dict[Id, str] = {}
        """The tokens of calls by the ids of their requests."""
        self._askers: dict[Id, str] = {}
        """The tokens of calls by the ids of the requests that came on their streams."""
        self._listings: set[Id] = set()
        self._discover_id: Id | None = None
        self._discovering, self._discovered = anyio.Event(), anyio.Event()

    @property
    def ignores_discover(self) -> bool:
        """Whether the server has left ``server/discover`` without an answer, as servers of the older era may."""
        return self._discovering.is_set() and not self._discovered.is_set()

    async def bound_discover(self) -> None:
        """Answers ``server/discover`` for a server that doesn't: the SDK would wait ten seconds before it goes on.

        It then sends ``initialize``; a server that was only slow to start answers both, and the SDK finds its era.
        """
        await self._discovering.wait()
        with anyio.move_on_after(DISCOVER_S):
            await self._discovered.wait()
        if self.ignores_discover:
            nothing = types.ErrorData(code=types.METHOD_NOT_FOUND, message=f"no answer within {DISCOVER_S:g} s")
            error = types.JSONRPCError(jsonrpc="2.0", id=self._discover_id, error=nothing)
            with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                await self.inward.send(SessionMessage(error))

    async def take(self, message: bytes, flow: Flow) -> bool:
        """See `Inbox.take`: hands an answer or a request on to the SDK, and a notice to its call."""
        try:
            envelope = msgspec.json.decode(message, type=_Envelope)
            if envelope.method is not None:
                await flow.pace()
                if envelope.id is None:
                    self._notice(envelope)
                    return False
        except ValueError:
            # It may still be an answer: Python's own json writes numbers (NaN) that only the SDK reads.
            await flow.pace()
        try:
            parsed = types.jsonrpc_message_adapter.validate_json(message, by_name=False)
        except ValueError:
            self._count_garbage(message, flow)
            return False
        is_answer = isinstance(parsed, types.JSONRPCResponse | types.JSONRPCError)
        if isinstance(parsed, types.JSONRPCNotification) or (is_answer and flow.answers not in (None, parsed.id)):
            self._count_garbage(message, flow)
            return False
        if is_answer:
            parsed = self._answered(parsed)
        elif self.from_client.statistics().tasks_waiting_send > UNSENT_MAX:
            raise Broken("it asks on and on without reading the answers")
        elif parsed.method == ELICIT and flow.answers in self._asked:
            self._askers[parsed.id] = self._asked[flow.answers]
        await self.inward.send(SessionMessage(parsed))
        return is_answer

    async def fail(self, id: Id, trouble: Trouble) -> None:
        """See `Inbox.fail`."""
        # No server can forge this: what it sends is never a Trouble.
        said = types.ErrorData(code=types.CONNECTION_CLOSED, message=trouble.why, data=trouble)
        with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            await self.inward.send(SessionMessage(types.JSONRPCError(jsonrpc="2.0", id=id, error=said)))

    async def elicit(
        self, context: ClientRequestContext, params: types.ElicitRequestParams
    ) -> types.ElicitResult | types.ErrorData:
        """Has a person answer what the server asks in the middle of a call, as it does before 2026-07-28."""
        party = await self._party_of(context)
        if party is None:
            return types.ErrorData(code=types.INVALID_REQUEST, message=SEVERAL)
        ask = party.ask
        if ask is None:
            return types.ErrorData(code=types.INVALID_REQUEST, message="There is nobody who could be asked.")
        asked = params.model_dump(by_alias=True, mode="json", exclude_none=True, exclude={"meta", "task"})
        try:
            answers = await ask({"": {"method": ELICIT, "params": asked}})
        except Retryable as error:
            return types.ErrorData(code=types.INTERNAL_ERROR, message=error.what)
        return types.ElicitResult.model_validate(answers[""])

    async def _party_of(self, context: ClientRequestContext) -> Party | None:
        """Finds the call in whose course a request comes: by its task, its stream, or because there is no other.

        Gives None where it may be one of several.
        """
        related: Any = (context.meta or {}).get(RELATED_TASK)
        task_id = cast("dict[str, Any]", related).get("taskId") if isinstance(related, dict) else None
        token = self._askers.pop(context.request_id, None)
        for of, party in self.parties.items():
            if (task_id is not None and party.task_id == task_id) or of == token:
                return party
        # One that was answered meanwhile hasn't asked, and one that isn't made yet neither.
        made = set(self._asked.values())
        calls = [of for of, party in self.parties.items() if of in made or party.task_id is not None]
        if not calls:
            return _NOBODY
        self._told_nameless()
        with self._held_back(calls):
            call = await self._nameless.whose(calls)
        return None if call is None else self.parties.get(call, _NOBODY)

    @contextlib.contextmanager
    def _held_back(self, calls: Sequence[str]) -> Generator[None]:
        """Tells the calls one of which asks that nobody knows yet which; with one call that is known."""
        with contextlib.ExitStack() as stack:
            for party in [self.parties[call] for call in calls] if len(calls) > 1 else ():
                party.notice(HELD_BACK)
                if party.may_ask is not None:
                    stack.enter_context(party.may_ask())
            yield

    def leave(self, token: str) -> None:
        """Forgets who took part in a call that has ended."""
        del self.parties[token]
        self._nameless.left(token)

    def asks(self, request: types.JSONRPCRequest) -> None:
        """Remembers requests whose answers are looked at before the SDK gets them."""
        if request.method == "server/discover" and self._discover_id is None:
            self._discover_id = request.id
            self._discovering.set()
        elif request.method == mcp_listing.METHOD:
            self._listings.add(request.id)
        elif request.method == "tools/call":
            self._asked[request.id] = str((request.params or {})["_meta"]["progressToken"])

    def _answered(self, message: types.JSONRPCResponse | types.JSONRPCError) -> types.JSONRPCMessage:
        """Looks at an answer: a task is kept, and from a list of tools those go that can't be used.

        The SDK would refuse the whole of the one and of the other.
        """
        if message.id is not None and message.id == self._discover_id:
            self._discovered.set()
        token = self._asked.pop(message.id, None) if message.id is not None else None
        if token is not None:
            self._nameless.answered(token)
        listing = message.id in self._listings
        self._listings.discard(message.id or 0)
        version = self._version()
        if isinstance(message, types.JSONRPCError):
            error = message.error.model_copy(update={"data": SAID})
            return message.model_copy(update={"error": error}) if error.code == types.CONNECTION_CLOSED else message
        if version is None:
            return message
        if token is not None and is_task(message.result):
            self.made[token] = message.result
            return message.model_copy(update={"result": {"content": [], "resultType": "complete"}})
        if not listing:
            return message
        result, faults = mcp_listing.usable(message.result, version)
        for name, fault in faults.items():
            self.unusable[name] = leaf(fault)
            self._log.warning("mcp_tool_refused", server=self._name, tool=name, why=self.unusable[name])
        return message.model_copy(update={"result": result})

    def forget(self, token: str) -> None:
        """Forgets a call that has ended."""
        self.made.pop(token, None)
        self._asked = {id: of for id, of in self._asked.items() if of != token}
        self._askers = {id: of for id, of in self._askers.items() if of != token}

    def _notice(self, envelope: _Envelope) -> None:
        """Gives progress to its call; a log notice names no call, so that it goes to all that are open."""
        if envelope.method == "notifications/progress":
            progress = msgspec.json.decode(envelope.params, type=_Progress)
            of = "" if progress.total is None else f"/{progress.total:g}"
            party = self.parties.get(str(progress.progressToken))
            if party is not None:
                party.notice(f"[progress {progress.progress:g}{of}] {short(progress.message or '', TEXT_CHARS_MAX)}\n")
        elif envelope.method == "notifications/message":
            said = msgspec.json.decode(envelope.params, type=_LogMessage)
            data = said.data if isinstance(said.data, str) else msgspec.json.encode(said.data).decode()
            line = f"[{short(said.level, 20)}] {short(data, TEXT_CHARS_MAX)}\n"
            for party in self.parties.values():
                party.notice(line)

    def _count_garbage(self, message: bytes, flow: Flow) -> None:
        if flow.garbage():
            self._log.warning("mcp_garbage", server=self._name, line=short(repr(message)))
