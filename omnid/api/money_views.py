"""What clients see of money: sums by executor, model, label or day, the caps, today, and what one task has cost."""

from omnid.api.shapes_money import Amounts, CapView, Spend, SpendRow, Spent, TaskMoney, Today
from omnid.flow.context import Context
from omnid.flow.money import describe, fills, task_money
from omnid.model import Task
from omnid.money import ALL, MICRO, dollars, origin_scope
from omnid.route.budget import Used, window_ms
from omnid.store.calls import zone_of
from omnid.store.interface import Reader
from omnid.times import day_ms, local

FOREVER_MS = (1 << 63) - 1


class MoneyViews:
    """Builds what clients see of money."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def spent(self, reader: Reader, params: Spend) -> Spent:
        """Gives what was spent since a time; whole days, from the one that holds the time."""
        zone = zone_of(reader)
        now_ms = self._context.clock.wall_ms()
        begin_ms = window_ms("month", now_ms, zone)[0] if params.since_ms is None else params.since_ms
        since_ms = day_ms(begin_ms, zone)[0]
        if params.by == "day":
            rows = [
                SpendRow(f"{local(row[0], zone):%Y-%m-%d}", amounts(Used(*row[1:])), row[0])
                for row in reader.all("spend_days", ALL, since_ms, params.limit)
            ]
        else:
            head = f"{params.by}:"
            # All that begins with the head: `;` is what comes after `:`.
            found = reader.all("spend_scopes", head, f"{params.by};", since_ms, params.limit)
            rows = [SpendRow(row[0].removeprefix(head), amounts(Used(*row[1:]))) for row in found]
        total = reader.one("spend_between", ALL, since_ms, FOREVER_MS)
        caps = [
            CapView(
                fill.lid.name,
                fill.lid.scope,
                fill.lid.window,
                fill.lid.limit_microusd / MICRO,
                amounts(fill.used),
                fill.begin_at_ms,
                fill.end_at_ms,
            )
            for fill in fills(reader, self._context.budget.all_lids(), now_ms)
        ]
        return Spent(params.by, since_ms, zone.key, amounts(Used(*total) if total else Used()), rows, caps)

    def today(self, reader: Reader, origin: str | None = None) -> Today | None:
        """Gives what today has cost, all of it or one origin's; None where there is neither a cap nor a cost."""
        begin_ms, end_ms = day_ms(self._context.clock.wall_ms(), zone_of(reader))
        row = reader.one("spend_between", ALL if origin is None else origin_scope(origin), begin_ms, end_ms)
        used = Used(*row) if row else Used()
        limit_usd = self._context.config.budget.day_usd or None
        if origin is not None:
            own = (lid for lid in self._context.budget.lids_of(origin) if lid.window == "day")
            limit_usd = next((lid.limit_microusd / MICRO for lid in own), None)
        if limit_usd is None and not used.calls:
            return None
        return Today(amounts(used), limit_usd, end_ms)

    def task(self, reader: Reader, task: Task) -> TaskMoney | None:
        """Gives what a task has cost; None where it costs nothing."""
        if not task.attempt and task.executor not in self._context.budget.paid:
            return None
        used = task_money(reader, task.id)
        limit = self._context.budget.task_limit_microusd(task.work)
        if not used.calls and (limit is None or task.executor not in self._context.budget.paid):
            return None
        return TaskMoney(amounts(used), None if limit is None else limit / MICRO)

    def sentence(self, reader: Reader, task: Task) -> str | None:
        """Says what a task has cost: ``$1.84 spent, $2.00 unknown, of at most $5.00``; None where it has no calls."""
        used = task_money(reader, task.id)
        if not used.calls:
            return None
        limit = self._context.budget.task_limit_microusd(task.work)
        return describe(used) if limit is None else f"{describe(used)}, of at most {dollars(limit)}"


def amounts(used: Used) -> Amounts:
    """Gives what counts as dollars."""
    return Amounts(
        used.spent_microusd / MICRO, used.reserved_microusd / MICRO, used.unknown_microusd / MICRO, used.calls
    )
