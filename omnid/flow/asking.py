"""Input requests: what a running attempt asks a person. They are notes of the attempt, and so are the answers.

A request is on the disk before anybody waits for its answer, and its key is never used again in its task. As long as
one is open, the task is `input_required`; with its attempt they all end.
"""

from collections.abc import Collection, Mapping
from functools import partial
from typing import NamedTuple

import anyio
import msgspec
from msgspec import Struct

from omnid.errors import Rejected
from omnid.flow.context import Context
from omnid.flow.texts import excerpt
from omnid.model import InputRequest, InputResponse, Task
from omnid.settings import Config
from omnid.states import RUNNING
from omnid.store import journal
from omnid.store.interface import Reader, Tx

REQUEST, RESPONSE = "input_request", "input_response"
"""The kinds of notes."""
NOBODY = "omnid"
"""Who answers what was withdrawn, and what nobody has answered in time."""
UNANSWERED = InputResponse("cancel")
MESSAGE_CHARS_MAX = 200
NAP_S_MAX = 30.0
"""The longest wait between two looks at the time: a wall clock that jumps is noticed within it."""


class Request(Struct, frozen=True):
    """The note of a request."""

    key: str
    """Names it in its task: ``q1``, ``q2``, ..."""
    name: str
    """Names it in its attempt, for its executor."""
    request: InputRequest
    asked_at_ms: int


class Response(Struct, frozen=True):
    """The note of an answer."""

    key: str
    response: InputResponse
    by: str
    """The origin of whoever answered."""


class Question(NamedTuple):
    """A request, and its answer where there is one."""

    asked: Request
    answer: InputResponse | None


def questions(reader: Reader, attempt_id: str) -> list[Question]:
    """Gives what an attempt has asked, oldest first."""
    asked = msgspec.convert(journal.notes(reader, attempt_id, REQUEST), list[Request])
    answers = msgspec.convert(journal.notes(reader, attempt_id, RESPONSE), list[Response])
    given = {note.key: note.response for note in answers}
    return [Question(note, given.get(note.key)) for note in asked]


def open_requests(reader: Reader, task: Task) -> list[Request]:
    """Gives the requests that a task waits for, oldest first."""
    row = reader.one("attempt_by_number", task.id, task.attempt) if task.state == "input_required" else None
    return [] if row is None else [one.asked for one in questions(reader, row[1]) if one.answer is None]


def message_of(request: Request) -> str:
    """Gives what a request says to people, in one line: data of whoever asks."""
    said = request.request.params.get("message")
    return " ".join(excerpt(said, MESSAGE_CHARS_MAX).split()) if isinstance(said, str) and said else "(it says nothing)"


def respond(tx: Tx, task: Task, key: str, response: InputResponse, by: str) -> Task:
    """Writes the answer to an open request, and lets the attempt go on where it was the last; gives the task."""
    row = tx.one("attempt_by_number", task.id, task.attempt)
    if row is None or key not in {request.key for request in open_requests(tx, task)}:
        raise Rejected("no_question", task=task.name, which=f" {key}")
    journal.add_note(tx, row[1], RESPONSE, Response(key, response, by), notes_max=None)
    return task if open_requests(tx, task) else journal.advance_task(tx, task, "answer")


def record(tx: Tx, attempt_id: str, requests: Mapping[str, InputRequest], config: Config) -> str:
    """Writes down those requests that are new, and gives the id of the task; see `Ports.ask`."""
    task = _task_of(tx, attempt_id)
    if task is None:
        raise _over(attempt_id)
    before = questions(tx, attempt_id)
    known = {one.asked.name for one in before}
    new = {name: request for name, request in requests.items() if name not in known}
    if not new:
        return task.id
    _check(len(before) + len(new), "questions of one attempt", config.limits.asks_max, "limits.asks_max")
    for request in new.values():
        size_bytes = len(msgspec.json.encode(request))
        _check(size_bytes, "bytes of a question", config.limits.ask_bytes_max, "limits.ask_bytes_max")
    row = tx.one("count_notes_of_task", task.id, REQUEST)
    for number, (name, request) in enumerate(new.items(), (row[0] if row else 0) + 1):
        note = Request(f"q{number}", name, request, tx.now_ms)
        journal.add_note(tx, attempt_id, REQUEST, note, notes_max=None)
    if task.state != "input_required":
        journal.advance_task(tx, task, "ask")
    return task.id


class Asking:
    """Asks for attempts, and waits for the answers; see `executor.interface.Ports`."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def ask(self, attempt_id: str, requests: Mapping[str, InputRequest]) -> dict[str, InputResponse]:
        """See `Ports.ask`."""
        context = self._context
        task_id = await context.store.write(lambda tx: record(tx, attempt_id, requests, context.config))
        context.watch.tell([task_id])
        while True:
            event = context.watch.event(task_id)
            try:
                found = await context.store.read(partial(_asked, attempt_id=attempt_id))
                asked = [one for one in found if one.asked.name in requests]
                if all(one.answer for one in asked):
                    return {one.asked.name: one.answer for one in asked if one.answer}
                left_s = self._left_s(asked)
                if left_s <= 0:
                    await self.withdraw(attempt_id, requests)
                    continue
                with anyio.move_on_after(min(left_s, NAP_S_MAX)):
                    await event.wait()
            finally:
                context.watch.forget(task_id, event)

    async def withdraw(self, attempt_id: str, names: Collection[str]) -> None:
        """See `Ports.withdraw`."""
        task_id = await self._context.store.write(partial(_withdraw, attempt_id=attempt_id, names=names))
        if task_id is not None:
            self._context.watch.tell([task_id])

    def _left_s(self, asked: list[Question]) -> float:
        """Gives how long the first of the open requests may still wait."""
        first_ms = min(one.asked.asked_at_ms for one in asked if one.answer is None)
        waited_s = (self._context.clock.wall_ms() - first_ms) / 1000
        return self._context.config.task.answer_timeout_s - waited_s


def _asked(reader: Reader, *, attempt_id: str) -> list[Question]:
    """Gives what an attempt has asked; raises Rejected(`not_in_state`) where it is over: nothing is answered then."""
    if _task_of(reader, attempt_id) is None:
        raise _over(attempt_id)
    return questions(reader, attempt_id)


def _over(attempt_id: str) -> Rejected:
    why = "Only an attempt that runs can ask a person."
    return Rejected("not_in_state", task=attempt_id, state="over", event="ask", why=why, remedy="ask no more")


def _withdraw(tx: Tx, *, attempt_id: str, names: Collection[str]) -> str | None:
    task = _task_of(tx, attempt_id)
    if task is None:
        return None
    for request in open_requests(tx, task):
        if request.name in names:
            task = respond(tx, task, request.key, UNANSWERED, NOBODY)
    return task.id


def _task_of(reader: Reader, attempt_id: str) -> Task | None:
    """Gives the task of an attempt that is its current one and still runs."""
    head = reader.one("attempt_head", attempt_id)
    task = None if head is None or head[4] is not None else journal.task_by_id(reader, head[2])
    current = task is not None and head is not None and task.attempt == head[3] and task.state in RUNNING
    return task if current else None


def _check(count: int, things: str, limit: int, setting: str) -> None:
    if count > limit:
        raise Rejected("too_many", count=count, things=things, limit=limit, setting=setting)
