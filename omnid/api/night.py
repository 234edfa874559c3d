"""What people see in the morning: the digest of what happened, and the receipt of a task."""

from functools import partial

from msgspec import structs

from omnid.api import shapes_night as shapes
from omnid.api.shapes import Get
from omnid.api.views import NEEDS_YOU_MAX, Views
from omnid.flow import digest, receipt
from omnid.flow.caller import Caller, find_task
from omnid.flow.context import Context
from omnid.flow.digest import Digest, Money
from omnid.flow.gates import Gates
from omnid.model import Attempt, Task
from omnid.money import MICRO
from omnid.store import journal
from omnid.store.interface import Reader, Tx

DAY_MS = 86_400_000
FAILED_SHOWN_MAX = 10
CHECK_CHARS_MAX = 4_000
MARK = "away_since_ms"
"""The name, among the facts of this node, of the time up to which a person has been told."""


class Night:
    """Builds digests and receipts."""

    def __init__(self, context: Context, gates: Gates, views: Views) -> None:
        self._context = context
        self._gates = gates
        self._views = views

    async def away(self, caller: Caller, params: shapes.Away) -> shapes.AwayDigest:
        """Says what happened since a person last asked; a person's question sets that time anew."""
        context = self._context
        now_ms = context.clock.wall_ms()
        found = await context.store.read(partial(self._digest, since_ms=params.since_ms, now_ms=now_ms))
        if caller.role == "person" and params.since_ms is None and not params.keep:
            await context.store.write(partial(_mark, at_ms=now_ms))
        return found

    def _digest(self, reader: Reader, *, since_ms: int | None, now_ms: int) -> shapes.AwayDigest:
        needs_you, total = self._views.needs_you(reader, Caller())
        since = _since(reader, now_ms) if since_ms is None else since_ms
        facts = self._gather(reader, since, now_ms, total)
        failed = [self._views.brief(row) for row in reader.all("failed_since", since, FAILED_SHOWN_MAX)]
        return shapes.AwayDigest(
            text=self._say(facts),
            since_ms=since,
            until_ms=now_ms,
            ended=dict(facts.ended),
            parked=[shapes.ParkedView(*parked) for parked in facts.parked],
            failed=failed,
            needs_you=needs_you[:NEEDS_YOU_MAX],
            needs_you_total=total,
            spent_usd=None if facts.money is None else facts.money.spent_usd,
            cap_usd=None if facts.money is None else facts.money.cap_usd,
            limits=facts.limits,
            limits_s=facts.limits_s,
        )

    def line(self, reader: Reader, since_ms: int, now_ms: int) -> str:
        """Says in one line what happened between two times: the daily notice."""
        _, total = self._views.needs_you(reader, Caller())
        return self._say(self._gather(reader, since_ms, now_ms, total))

    def _gather(self, reader: Reader, since_ms: int, now_ms: int, needs_you: int) -> Digest:
        return digest.gather(reader, since_ms, now_ms, self._gates.all(), needs_you, self._money(reader))

    def _say(self, facts: Digest) -> str:
        return digest.text(facts, self._context.zone, self._context.config.notify.language)

    def _money(self, reader: Reader) -> Money | None:
        today = self._views.money.today(reader)
        if today is None:
            return None
        return Money(today.amounts.spent_usd, today.limit_usd, today.amounts.unknown_usd)

    async def receipt(self, caller: Caller, params: shapes.ReceiptOf) -> shapes.Receipt:
        """Gives all that is known of a task's way."""
        store = self._context.store
        task = await store.read(lambda reader: find_task(reader, params.task, caller))
        check = await self._check(task, await store.read(partial(_last, task=task)))
        found = await store.read(partial(self._receipt, caller=caller, task_id=task.id, check=check))
        # As with the diff: what was changed is for people.
        return found if caller.role == "person" else structs.replace(found, changes=None)

    async def _check(self, task: Task, last: Attempt | None) -> shapes.CheckReceipt | None:
        if task.work.check is None:
            return None
        output = "" if last is None else await self._context.spool.excerpt(last.id, check=True)
        passed = None
        if task.state == "completed" and last is not None and last.outcome == "success":
            passed = True  # Whoever completed it by hand has checked nothing.
        elif task.state == "failed" and task.problem is not None and task.problem.code == "check_failed":
            passed = False
        return shapes.CheckReceipt(task.work.check, passed, output[-CHECK_CHARS_MAX:])

    def _receipt(
        self, reader: Reader, *, caller: Caller, task_id: str, check: shapes.CheckReceipt | None
    ) -> shapes.Receipt:
        view = self._views.view(reader, caller, Get(task=task_id), timed_out=False)
        facts = receipt.gather(reader, journal.need_task(reader, task_id))
        return shapes.Receipt(
            task=view.task,
            asked=view.work,
            why=view.why,
            route=facts.attempts[-1].route if facts.attempts else None,
            attempts=[_attempt(attempt, facts.restarts.get(attempt.id, 0)) for attempt in facts.attempts],
            restarts=sum(facts.restarts.values()),
            calls=facts.calls,
            spent_usd=facts.spent_microusd / MICRO,
            reserved_usd=facts.reserved_microusd / MICRO,
            unknown=facts.unknown,
            check=check,
            changes=facts.changes,
            entries=facts.entries,
            sha256=facts.sha256,
        )


def _attempt(attempt: Attempt, restarts: int) -> shapes.AttemptReceipt:
    return shapes.AttemptReceipt(
        number=attempt.number,
        executor=attempt.executor,
        outcome=attempt.outcome,
        started_at_ms=attempt.started_at_ms,
        ended_at_ms=attempt.ended_at_ms,
        restarts=restarts,
        exit_code=attempt.exit_code,
        cost_usd=attempt.cost_usd,
        problem=None if attempt.problem is None else attempt.problem.what,
    )


def _since(reader: Reader, now_ms: int) -> int:
    row = reader.one("meta_one", MARK)
    return now_ms - DAY_MS if row is None else min(int(row[0]), now_ms)


def _mark(tx: Tx, *, at_ms: int) -> None:
    tx.run("meta_set", MARK, str(at_ms))


def _last(reader: Reader, *, task: Task) -> Attempt | None:
    rows = reader.all("attempts_of", task.id, 1)
    return journal.attempt_of(rows[0]) if rows else None
