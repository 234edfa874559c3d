"""Follows tasks of an MCP server to their end, over as many sessions as that takes: to look at one repeats nothing."""

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

import anyio

from omnid.clock import Clock
from omnid.errors import Retryable
from omnid.executor.mcp_keeper import Keeper
from omnid.executor.mcp_questions import Questions, UnanswerableError
from omnid.executor.mcp_shapes import Answer
from omnid.executor.mcp_tasks import POLL_S_MIN, RemoteTask, Status, TaskGoneError
from omnid.log import Logger
from omnid.retry import Backoff

if TYPE_CHECKING:
    from omnid.executor.mcp_session import McpSession

END_S = 10.0
"""How long a server has to end a task that it is told to end."""
SAID_S = 10.0
"""How often what is said of a task is noted: it may tell the time."""
AWAY = Backoff(base_s=1.0, max_s=30.0)
"""The waits while the server can't be asked."""

Notice = Callable[[str], None]


class Follower:
    """Follows the tasks of one server. Whoever waits has a deadline."""

    def __init__(self, name: str, keeper: Keeper, clock: Clock, log: Logger) -> None:
        self._name = name
        self._keeper = keeper
        self._clock = clock
        self._log = log

    async def follow(self, task_id: str, token: str, notice: Notice, questions: Questions | None = None) -> "Answer":
        """Waits for a task's end and gives what the call would have answered; `token` names the call.

        A server that can't be reached is waited for, and what it asks is answered by `questions`. Raises TaskGoneError
        where it knows the task no more, UnanswerableError where it asks what nobody can answer.
        """
        failures, heard = 0, _Heard(notice)
        while True:
            try:
                session = await self._keeper.session()
                asking = questions and questions.of_call
                with session.held(token, notice, asking, task_id, questions and questions.may_ask):
                    while session.usable:
                        task = await session.look(task_id)
                        failures = 0
                        heard.take(task)
                        if task.ended or (task.status == "input_required" and session.has_tasks):
                            # Before 2026-07-28 a server asks while its result is waited for.
                            return await session.result_of(task)
                        if task.questions and task.status == "input_required":
                            await self._answer(session, task, questions)
                        await anyio.sleep(task.poll_s)
            except Retryable as error:
                failures += 1
                if failures == 1:
                    self._log.warning("mcp_task_waits", server=self._name, id=task_id, **error.as_dict())
            if failures:
                await anyio.sleep(AWAY.delay_s(failures, self._clock.uniform))

    async def _answer(self, session: "McpSession", task: RemoteTask, questions: Questions | None) -> None:
        """Has a person answer what a task asks; it may go on without, if somebody else answers it there."""
        if questions is None:
            raise UnanswerableError(", ".join(task.questions))
        answers, fault = None, list[Exception]()
        gone: Collection[str] = ()
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                nonlocal gone
                try:
                    while session.usable and not gone:
                        await anyio.sleep(task.poll_s)
                        gone = task.questions.keys() - (await session.look(task.id)).questions.keys()
                except (Retryable, TaskGoneError) as error:
                    fault.append(error)
                group.cancel_scope.cancel()

            group.start_soon(watch)
            try:
                answers = await questions.of_task(task.questions)
            except (Retryable, UnanswerableError) as error:
                fault.append(error)
            group.cancel_scope.cancel()
        for error in fault:
            raise error
        await questions.withdraw(gone)
        if answers is not None and not gone:
            await session.answer_task(task.id, answers)

    async def end(self, task_id: str, token: str) -> "tuple[Status, Answer] | None":
        """Has a task ended, and gives its status and what it came to; None: that can't be seen within `END_S`."""
        with anyio.move_on_after(END_S):
            try:
                session = await self._keeper.session()
                with session.held(token, ignore):
                    await session.cancel_task(task_id)
                    while True:
                        task = await session.look(task_id)
                        if task.ended:
                            return task.status, await session.result_of(task)
                        await anyio.sleep(POLL_S_MIN)
            except (Retryable, TaskGoneError) as error:
                self._log.warning("mcp_task_not_ended", server=self._name, id=task_id, why=str(error))
        return None


class _Heard:
    """Notes how a task goes: each change of its status, and of what is said of it now and then."""

    def __init__(self, notice: Notice) -> None:
        self._notice = notice
        self._status, self._said, self._at_s = "", "", 0.0

    def take(self, task: RemoteTask) -> None:
        """Takes what was told of the task."""
        now_s = anyio.current_time()
        if task.status != self._status or (task.said != self._said and now_s - self._at_s >= SAID_S):
            self._status, self._said, self._at_s = task.status, task.said, now_s
            self._notice(f"[task {task.status}] {task.said}\n")


def ignore(_: str) -> None:
    """Takes what a server says while nobody listens."""
