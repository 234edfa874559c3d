"""What clients see of the outbox, and what people do with what was given up."""

from functools import partial

from omnid.api.shapes_outbox import DeadList, DeadPage, DeadRef, DeadView, OutboxView
from omnid.errors import Rejected
from omnid.flow import control
from omnid.flow.caller import Caller
from omnid.flow.commands import COMMAND
from omnid.flow.context import Context
from omnid.flow.inbox import QUEUE as INBOX
from omnid.flow.once import once
from omnid.flow.poison import KIND as POISON
from omnid.flow.poison import QUEUE as LINK
from omnid.model import Delivery
from omnid.store import outbox
from omnid.store.interface import Reader, Tx


class OutboxViews:
    """Shows what waits and what is dead, and brings the dead back or lets them go."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def waiting(self, reader: Reader) -> list[OutboxView]:
        """Gives what waits, by destination."""
        return [_queue(one) for one in outbox.waiting(reader) if not one.destination.startswith(INBOX)]

    async def list(self, _caller: Caller, params: DeadList) -> DeadPage:
        """Gives what could not be delivered and was given up, oldest first."""
        rows = await self._context.store.read(partial(outbox.dead, after=params.after, limit=params.limit + 1))
        shown = rows[: params.limit]
        return DeadPage([_dead(row) for row in shown], shown[-1].ord if len(rows) > params.limit else None)

    async def show(self, _caller: Caller, params: DeadRef) -> DeadView:
        """Gives one dead delivery; raises Rejected(`unknown_delivery`)."""
        return _dead(await self._context.store.read(partial(outbox.need_dead, id=params.id)))

    async def retry(self, caller: Caller, params: DeadRef) -> DeadView:
        """Has a dead delivery tried again, of a command that a runner has refused its task.

        What came over a link can't be: raises Rejected(`nothing_to_retry`).
        """
        retry = partial(_retry, context=self._context, caller=caller, id=params.id)
        return await self._context.store.write(once(caller, "dead.retry", params, retry, DeadView))

    async def drop(self, caller: Caller, params: DeadRef) -> DeadView:
        """Forgets a dead delivery."""
        fn = once(caller, "dead.drop", params, lambda tx: _dead(outbox.drop(tx, params.id)), DeadView)
        return await self._context.store.write(fn)


def _retry(tx: Tx, *, context: Context, caller: Caller, id: str) -> DeadView:
    dead = outbox.need_dead(tx, id)
    if dead.kind == POISON:
        raise Rejected("nothing_to_retry", id=id, link=dead.destination.removeprefix(LINK))
    if dead.kind != COMMAND:
        return _dead(outbox.revive(tx, id))
    control.order(context, caller, control.Order(str(dead.subject), "retry"))(tx)
    return _dead(outbox.drop(tx, id))


def _queue(one: outbox.Waiting) -> OutboxView:
    head = one.head
    return OutboxView(
        destination=one.destination,
        waiting=one.rows,
        dead=one.dead,
        dropped=one.dropped,
        oldest_at_ms=head and head.created_at_ms,
        tries=head.tries if head else 0,
        retry_at_ms=head and head.retry_at_ms,
        problem=head and head.problem,
    )


def _dead(row: Delivery) -> DeadView:
    return DeadView(
        row.id,
        row.destination,
        row.kind,
        row.subject,
        row.body,
        row.created_at_ms,
        row.dead_at_ms,
        row.tries,
        row.problem,
    )
