"""The one loop that sends: empties every outbox, each to its destination, at least once and in order.

Each destination has a carrier of its own, so that a dead one blocks nobody. A carrier looks at the head of its queue,
sends, and forgets what was confirmed; it sleeps until something is put into the queue or the one timer wakes it.
"""

import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial

import anyio
from anyio.abc import TaskGroup

from omnid.errors import OmnidError, Rejected, Retryable
from omnid.flow.context import Bell, Context
from omnid.flow.inbox import QUEUE as INBOX
from omnid.flow.insist import insist
from omnid.flow.keep import keep
from omnid.link.destination import AFTER_S_MAX, Destination
from omnid.link.interface import LinkDown
from omnid.model import Delivery, Problem
from omnid.retry import Backoff
from omnid.store import outbox

DAY_MS = 86_400_000
BATCH_BYTES_MAX = 4 << 20
"""How much is sent at once, unless one delivery alone has more: what fails in the middle is sent again as a whole, so a
slow line gets through a batch, and doesn't begin anew with a larger one for ever."""

CaughtUp = Callable[[str, int], None]
"""Hears that a queue is empty again which could not be sent for a while, and how many were sent since."""
Open = Callable[[str], Destination | None]
"""Gives the destination of a queue as the config has it now; None where it has none."""


def _ignored(_queue: str, _sent: int) -> None:
    """Nobody wants to hear of it."""


class Drain:
    """Holds the carriers. `ring` is where the store says that something was put into a queue."""

    def __init__(self, context: Context, open: Open) -> None:
        self._context = context
        self._open = open
        self.caught_up: CaughtUp = _ignored
        """Set by whoever wants to hear of it."""
        self._carriers: dict[str, Carrier] = {}
        self._rung: dict[str, None] = {}
        self._bell = Bell()
        self._stopping = False

    def ring(self, queue: str) -> None:
        """Says that something waits in a queue; an inbox waits for its reader."""
        if queue.startswith(INBOX):
            return
        carrier = self._carriers.get(queue)
        if carrier is not None:
            carrier.bell.ring()
        else:
            self._rung[queue] = None
            self._bell.ring()

    def ring_all(self) -> None:
        """Has every carrier look again: the config has changed."""
        for carrier in self._carriers.values():
            carrier.bell.ring()

    def _catches_up(self, queue: str, sent: int) -> None:
        self.caught_up(queue, sent)

    def behind(self, queues: Iterable[str]) -> dict[str, int]:
        """Gives those of the queues that could not be sent and have yet to catch up, and what was sent since."""
        held = {queue: self._carriers[queue] for queue in queues if queue in self._carriers}
        return {queue: carrier.sent_since for queue, carrier in held.items() if carrier.sent_since is not None}

    def queues(self) -> list[str]:
        """Gives the queues that have carriers."""
        return list(self._carriers)

    async def run(self, group: TaskGroup) -> None:
        """Starts a carrier in the group for each queue that holds something, now or later; ends when cancelled."""
        for queue in await self._context.store.read(outbox.destinations):
            if not queue.startswith(INBOX):
                self._start(group, queue, sent_since=0)  # It could not be sent before this start.
        while True:
            rung, self._rung = self._rung, {}
            for queue in rung:
                self._start(group, queue)
            await self._bell.wait()

    def _start(self, group: TaskGroup, queue: str, sent_since: int | None = None) -> None:
        if self._stopping:
            return
        if queue in self._carriers:
            self._carriers[queue].bell.ring()
            return
        carrier = self._carriers[queue] = Carrier(self._context, self._open, queue, self._catches_up)
        carrier.sent_since = sent_since
        loop = partial(keep, f"drain {queue}", carrier.run, clock=self._context.clock, log=self._context.log)
        group.start_soon(loop)

    async def finish(self) -> None:
        """Sends nothing new, and returns once what is on its way has been confirmed or has failed."""
        self._stopping = True
        for carrier in self._carriers.values():
            carrier.stopping = True
        for carrier in self._carriers.values():
            async with carrier.sending:
                pass

    async def flush(self) -> None:
        """Sends all that waits, and returns once it has been confirmed or can't be sent now; then it sends no more."""
        await self.finish()
        async with anyio.create_task_group() as group:
            for queue in await self._context.store.read(outbox.destinations):
                group.start_soon(self._empty, Carrier(self._context, self._open, queue))

    async def _empty(self, carrier: "Carrier") -> None:
        while await carrier.carry():
            pass


class Carrier:
    """Carries one queue to its destination."""

    def __init__(self, context: Context, open: Open, queue: str, caught_up: CaughtUp = _ignored) -> None:
        self.bell = Bell()
        self.sending = anyio.Lock()
        self.stopping = False
        self._context = context
        self._open = open
        self._queue = queue
        self._caught_up = caught_up
        self.sent_since: int | None = None
        """How many were sent since its destination was away, until nothing is left; None: it has caught up."""
        self._failures = 0
        """Of the destination in a row: what is behind the head needn't find out anew that it is down."""
        self._not_before_ms = 0
        """When a destination that is down may be tried again, whatever is the head by then."""
        self._wait_ms = 0
        """How far ahead that was when it was set."""
        self._single = False
        """Whether the last batch was refused: its rows are sent one by one until one is taken or found out."""
        self._nap_s = math.inf
        """For how long nothing is tried unless something rings."""

    async def run(self) -> None:
        """Carries what comes; ends when it is cancelled."""
        while not self.stopping:
            if not await self.carry():
                with anyio.move_on_after(self._nap_s):
                    await self.bell.wait()
                self._context.alarms.drop(self._alarm)

    @property
    def _alarm(self) -> str:
        return f"outbox {self._queue}"

    async def carry(self) -> bool:
        """Sends the head of the queue if it is due, else sets an alarm for it; tells whether there may be more."""
        context = self._context
        self._nap_s = math.inf
        destination = self._open(self._queue)
        limit = 1 if destination is None or self._single else destination.batch_max
        batch = await context.store.peek(lambda reader: outbox.peek(reader, self._queue, limit, BATCH_BYTES_MAX))
        if not batch and self.sent_since is not None:
            sent, self.sent_since = self.sent_since, None
            self._caught_up(self._queue, sent)
        if not batch or self.stopping:
            return False
        if destination is None:
            await self._bury(batch[0], Problem.make("destination_gone", destination=self._queue))
            return True
        now_ms = context.clock.wall_ms()
        due_ms = max(self._retry_ms(batch[0], now_ms), destination.due_ms(batch, now_ms))
        if now_ms < due_ms:
            context.alarms.set(self._alarm, due_ms, self.bell)
            return False
        async with self.sending:
            return await self._send(destination, batch)

    def _retry_ms(self, head: Delivery, now_ms: int) -> int:
        """Gives when it may be tried after the failures so far.

        What is further ahead than the wait was is nothing that anybody asked for: the clock was set back.
        """
        if self._failures:
            at_ms, wait_ms = self._not_before_ms, self._wait_ms
        else:  # An earlier daemon may have failed with it; how long it was to wait is not known any more.
            asked_s = AFTER_S_MAX if head.problem is not None and head.problem.code == "delivery_delayed" else 0
            at_ms, wait_ms = head.retry_at_ms or 0, round(1000 * max(self._backoff.max_s, asked_s))
        return at_ms if at_ms <= now_ms + wait_ms else now_ms

    async def _send(self, destination: Destination, batch: Sequence[Delivery]) -> bool:
        """Sends a batch; tells whether there may be more: not where the destination rings when it is back."""
        may_ring = True
        try:
            with anyio.fail_after(destination.timeout_s):
                await destination.send(batch)
        except TimeoutError:
            may_ring = False  # Its link may have been up all the time.
            detail = f"no answer within {destination.timeout_s:g} s"
            failure: Retryable = Retryable("delivery_failed", destination=self._queue, detail=detail)
        except Rejected as error:
            await self._refused(batch, error)
            return True
        except Retryable as error:
            failure, may_ring = error, isinstance(error, LinkDown) or error.code == "delivery_failed"
        else:
            await self._delivered(batch)
            return True
        if destination.rings:
            self.sent_since = self.sent_since or 0
            if not may_ring:
                self._nap_s = self._wait_s(batch[0], failure)
            return False
        await self._failed(batch[0], failure)
        return True

    async def _delivered(self, batch: Sequence[Delivery]) -> None:
        ids = [delivery.id for delivery in batch]
        if self.sent_since is not None:
            self.sent_since += len(batch)
        await self._write_down(lambda: self._context.store.write(lambda tx: outbox.confirm(tx, ids), patient=True))
        if self._failures:
            self._context.log.info("destination_back", destination=self._queue, after=self._failures)
        self._failures, self._not_before_ms, self._single = 0, 0, False

    async def _write_down(self, write: Callable[[], Awaitable[object]]) -> None:
        """Insists on writing down what became of a batch: were it forgotten, the batch would be sent again."""
        await insist(self._context, write, "confirmation_waits", destination=self._queue)

    async def _refused(self, batch: Sequence[Delivery], error: Rejected) -> None:
        """Sets aside the one that was refused; out of several, it is found by sending them one by one."""
        if len(batch) > 1:
            self._single = True
            return
        self._single = False
        await self._bury(batch[0], Problem.of(error))

    async def _bury(self, delivery: Delivery, problem: Problem) -> None:
        context = self._context
        rows_max = context.config.outbox.rows_max
        bury = partial(outbox.bury, id=delivery.id, problem=problem, rows_max=rows_max)
        await self._write_down(lambda: context.store.write(bury))
        context.log.warning(
            "delivery_dead", id=delivery.id, destination=self._queue, code=problem.code, what=problem.what
        )

    @property
    def _backoff(self) -> Backoff:
        settings = self._context.config.outbox
        return Backoff(settings.retry_base_s, max(settings.retry_base_s, settings.retry_max_s))

    def _wait_s(self, head: Delivery, error: OmnidError) -> float:
        """Counts a failure, and gives how long to wait after it; a destination's outage is logged when it begins."""
        context = self._context
        self._failures += 1
        if self._failures == 1:
            context.log.warning("destination_down", destination=self._queue, **error.as_dict())
        return self._backoff.delay_s(max(self._failures, head.tries + 1), context.clock.uniform)

    async def _failed(self, head: Delivery, error: OmnidError) -> None:
        """Sets the time of the next try, or gives up."""
        context, settings = self._context, self._context.config.outbox
        wait_s, now_ms = self._wait_s(head, error), context.clock.wall_ms()
        self._wait_ms = round(1000 * max(wait_s, float(str(error.fields.get("after_s", 0)))))
        self._not_before_ms = now_ms + self._wait_ms
        if now_ms - head.created_at_ms >= settings.give_up_days * DAY_MS:
            days = f"{settings.give_up_days:g}"
            await self._bury(head, Problem.make("given_up", destination=self._queue, days=days, detail=error.what))
            return
        retry_at_ms, problem = self._not_before_ms, Problem.of(error)
        postpone = partial(outbox.postpone, id=head.id, retry_at_ms=retry_at_ms, problem=problem)
        await self._write_down(lambda: context.store.write(postpone))
