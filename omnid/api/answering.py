"""Takes the answers to input requests: held against their forms, then written, all or none."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import anyio.to_thread

from omnid.api.shapes import Control, Controlled
from omnid.api.shapes_asks import Answer, FieldView, QuestionView
from omnid.errors import Rejected
from omnid.flow import asking, forms
from omnid.flow.asking import Request
from omnid.flow.caller import Caller, find_task
from omnid.flow.context import Context
from omnid.flow.forms import Given
from omnid.flow.once import once
from omnid.model import InputResponse, Task
from omnid.store.interface import Reader, Tx

METHOD, CONTROL, ANSWER = "task.answer", "task.control", "answer"
"""The operation, the other one, and the action of that which does the same."""


class Open(NamedTuple):
    """A task, and what it waits to be answered."""

    task: Task
    requests: dict[str, Request]


class Answering:
    """Answers questions of tasks; `controlled` gives what is shown of a task afterwards.

    Both methods raise Rejected: `no_question`, `answer_unfit`, `other_origin`, `not_allowed`, `unknown_task`.
    """

    def __init__(self, context: Context, controlled: Callable[[Reader, Caller, str], Controlled]) -> None:
        self._context = context
        self._controlled = controlled

    async def answer(self, caller: Caller, params: Answer) -> Controlled:
        """Answers what a running task asks. Agents answer for their own tasks, but for those that a person approved."""
        return await self._answer(caller, params, METHOD, params)

    async def _answer(self, caller: Caller, params: Answer, method: str, asked: Answer | Control) -> Controlled:
        """Writes the answer in the name of the operation that was asked for, so that its repeat is found."""
        responses = await self._responses(caller, params)
        write = partial(self._write, caller=caller, ref=params.task, responses=responses)
        done = await self._context.store.write(once(caller, method, asked, write, Controlled))
        self._context.watch.tell([done.task.id])
        return done

    async def controlled(self, caller: Caller, params: Control) -> Controlled | None:
        """Does the action `answer` of `task_control`, or a `reply` to a task that asks; None where it asks nothing."""
        if params.action == ANSWER:
            action = params.response or "accept"
            given = Answer(task=params.task, key=params.key, action=action, value=params.text, content=params.content)
            return await self._answer(caller, given, CONTROL, params)
        if params.action != "reply" or params.text is None:
            return None

        def asks(reader: Reader) -> bool:
            return bool(asking.open_requests(reader, find_task(reader, params.task, caller)))

        # What asks nothing may have an approval to be passed on, which is no business of this.
        if not await self._context.store.read(asks):
            return None
        return await self._answer(caller, Answer(task=params.task, value=params.text), CONTROL, params)

    async def _responses(self, caller: Caller, params: Answer) -> dict[str, InputResponse]:
        """Looks for the questions and holds the answers against their forms."""
        found = await self._context.store.read(partial(_open, caller=caller, ref=params.task))
        task, bytes_max = found.task, self._context.config.limits.ask_bytes_max
        given: Mapping[str, Given]
        if params.responses is not None:
            given = {key: Given(one.action, one.content) for key, one in params.responses.items()}
        else:
            given = {_key(found, params.key): Given(params.action, params.content, params.value, params.fields)}
        responses: dict[str, InputResponse] = {}
        for key, one in given.items():
            if key not in found.requests:
                raise Rejected("no_question", task=task.name, which=f" {key[:40]}")
            fit = partial(forms.fit, task.name, found.requests[key], one, bytes_max)
            responses[key] = await anyio.to_thread.run_sync(fit)
        return responses

    def _write(self, tx: Tx, *, caller: Caller, ref: str, responses: Mapping[str, InputResponse]) -> Controlled:
        task = _open(tx, caller=caller, ref=ref).task
        for key, response in responses.items():
            task = asking.respond(tx, task, key, response, caller.origin)
        return self._controlled(tx, caller, task.id)


def question_views(reader: Reader, task: Task, answer_timeout_s: float) -> list[QuestionView]:
    """Gives what a task asks now."""
    return [
        QuestionView(
            key=one.key,
            method=one.request.method,
            params=one.request.params,
            fields=[
                FieldView(
                    name=name,
                    kind=str(field.get("type")),
                    about=_about(field),
                    required=name in forms.required_of(one.request.params),
                    default=field.get("default"),
                    choices=forms.choices_of(field) or None,
                )
                for name, field in forms.fields_of(one.request.params).items()
            ],
            asked_at_ms=one.asked_at_ms,
            until_ms=one.asked_at_ms + round(1000 * answer_timeout_s),
        )
        for one in asking.open_requests(reader, task)
    ]


def _about(field: Mapping[str, Any]) -> str | None:
    said = [str(field[name]) for name in ("title", "description") if field.get(name)]
    return ": ".join(said) or None


def _open(reader: Reader, *, caller: Caller, ref: str) -> Open:
    """Gives a task that the caller may answer, and what it asks.

    Raises Rejected: `unknown_task`, and for an agent `other_origin`, or `not_allowed` where a person had to approve it.
    """
    task = find_task(reader, ref, caller)
    if caller.role == "agent" and task.origin != caller.origin:
        raise Rejected("other_origin", task=task.name, origin=caller.origin, action="answer")
    if caller.role == "agent" and task.approval is not None:
        raise Rejected("not_allowed", method=f"an answer to {task.name}, which a person has approved,", role="agent")
    return Open(task, {one.key: one for one in asking.open_requests(reader, task)})


def _key(found: Open, key: str | None) -> str:
    if key is not None:
        return key
    if len(found.requests) == 1:
        return next(iter(found.requests))
    which = f" without a key (it asks {', '.join(found.requests)})" if found.requests else ""
    raise Rejected("no_question", task=found.task.name, which=which)
