"""What goes to runners on other hosts: commands and cancels, by way of an outbox for each runner."""

from collections.abc import Callable, Sequence

import msgspec
from anyio.lowlevel import checkpoint

from omnid.errors import Rejected
from omnid.flow.context import Context
from omnid.flow.fleet import QUEUE, queue_of
from omnid.flow.runner import Settles, left, unbegun
from omnid.link.interface import LinkDown, Messenger
from omnid.model import Cancel, Command, Delivery, Problem, Task
from omnid.store import journal, outbox
from omnid.store.interface import Tx

BATCH_MAX = 64
"""So many take the event loop a few milliseconds, and whoever submits meanwhile has to wait for that."""
SEND_S_MAX = 120.0
COMMAND = "command"
"""The kind of the rows that hold commands; a dead one holds what it was about."""
CANCEL = "cancel"
ROWS_MAX = 1 << 30
"""A runner's outbox has no limit but its window: what is in it is an attempt in the journal."""

Find = Callable[[str], Messenger | None]
"""Gives the link that leads to a runner; None where there is none."""


def hand_over(tx: Tx, runner: str, command: Command) -> None:
    """Puts a command into the outbox of a runner."""
    outbox.put(tx, queue_of(runner), COMMAND, command.attempt_id, command, rows_max=ROWS_MAX)


def recall(tx: Tx, runner: str, attempt_id: str) -> None:
    """Has a runner told to end an attempt: behind its command, whether that has gone out or not; once is enough."""
    if not outbox.is_queued(tx, attempt_id, CANCEL):
        outbox.put(tx, queue_of(runner), CANCEL, attempt_id, Cancel(attempt_id), rows_max=ROWS_MAX)


def recall_last(tx: Tx, task: Task) -> str | None:
    """Has the runner of a task's last attempt, if it is a runner's, told to end it; gives that attempt."""
    row = tx.one("attempt_by_number", task.id, task.attempt)
    if row is None:
        return None
    attempt = journal.attempt_of(row)
    runner = (attempt.route or {}).get("runner")
    if runner is not None:
        recall(tx, runner, attempt.id)
    return attempt.id


def recall_uncertain(tx: Tx, task: Task) -> None:
    """Has the runner of an uncertain task told, for when it comes back, to end what somebody has decided about."""
    if task.state == "uncertain":
        recall_last(tx, task)


class Commands:
    """The destination of one runner's queue; see `Destination`. The return of its link rings."""

    batch_max = BATCH_MAX
    timeout_s = SEND_S_MAX
    rings = True

    def __init__(self, context: Context, settles: Settles, runner: str, find: Find) -> None:
        self._context = context
        self._settles = settles
        self._runner = runner
        self._find = find

    def due_ms(self, batch: Sequence[Delivery], now_ms: int) -> int:  # noqa: ARG002 - it takes whatever comes.
        """See `Destination.due_ms`."""
        return now_ms

    async def send(self, batch: Sequence[Delivery]) -> None:
        """See `Destination.send`. A command that can never be sent ends its attempt, and needs no place among the dead.

        What was cancelled before it went out ends here, and what was to go to a runner that leaves goes elsewhere; that
        of an attempt which has ended meanwhile is left out.
        """
        fleet = self._context.fleet
        messages = await self._messages(batch)
        # While one is looked at, another may be withdrawn; from here to `sends` nothing is awaited.
        while any(isinstance(one, Command) and fleet.is_withdrawn(one.attempt_id) for one in messages):
            messages = await self._messages(batch)
        messenger = self._find(self._runner)
        if messenger is None and not any(isinstance(message, Command) for message in messages):
            return
        if messenger is None or not fleet.reaches(self._runner):
            detail = "the config has no runner of that name any more" if messenger is None else "it is down"
            raise LinkDown("link_down", link=self._runner, detail=detail)
        if not messages:
            return
        fleet.sends(message.attempt_id for message in messages)
        try:
            await messenger.send(self._runner, messages)
        except Rejected as error:
            if len(batch) > 1 or not isinstance(messages[0], Command):
                raise
            await self._settles.settle(messages[0].ended("rejected", Problem.of(error)))

    async def _messages(self, batch: Sequence[Delivery]) -> list[Command | Cancel]:
        return [message for delivery in batch if (message := await self._message(delivery)) is not None]

    async def _message(self, delivery: Delivery) -> Command | Cancel | None:
        if delivery.kind == CANCEL:
            return msgspec.convert(delivery.body, Cancel)
        command = msgspec.convert(delivery.body, Command)
        fleet = self._context.fleet
        # A reader may see a claim that was committed a moment before the fleet is told of it.
        while fleet.where(command.attempt_id) is None and await self._is_open(command.attempt_id):
            await checkpoint()
        if fleet.is_withdrawn(command.attempt_id):
            await self._settles.settle(unbegun(command))
            return None  # However that went: where the store was closed, the next daemon deals with it.
        if fleet.is_spared(command.attempt_id):
            await self._settles.settle(left(command, self._runner))
            return None
        return command if fleet.where(command.attempt_id) == self._runner else None

    async def _is_open(self, attempt_id: str) -> bool:
        head = await self._context.store.read(lambda reader: reader.one("attempt_head", attempt_id))
        return head is not None and head[4] is None


def runner_of(queue: str) -> str | None:
    """Gives the runner whose queue it is; None for any other queue."""
    return queue.removeprefix(QUEUE) if queue.startswith(QUEUE) else None
