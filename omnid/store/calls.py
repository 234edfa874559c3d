"""Calls, which cost money, and the table `spend`, which adds them up by scope and day: derived, kept in step here."""

from collections.abc import Iterable
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from omnid.money import scopes_of
from omnid.store.interface import CALL, At, Reader, Row, Tables, Tx
from omnid.store.journal import labels_of
from omnid.store.log import decode_heads
from omnid.times import day_ms

PAGE_MAX = 1_000
ZONE = "spend_zone"
"""The fact in `meta` that names the zone of the days in `spend`."""

Sums = dict[tuple[str, int], tuple[int, int, int, int]]
"""By scope and begin of the day: spent, reserved, unknown, calls."""


class Call(NamedTuple):
    """A row of the fragment `call_row`."""

    ord: int
    id: str
    task_id: str
    attempt_id: str
    executor: str
    channel: str | None
    model: str | None
    labels: tuple[str, ...]
    reserved_microusd: int
    spent_microusd: int | None
    started_at_ms: int
    settled_at_ms: int | None
    outcome: str | None
    origin: str | None
    heads: dict[str, int]

    @property
    def is_unknown(self) -> bool:
        """Whether it has ended and nobody knows what it cost."""
        return self.settled_at_ms is not None and self.spent_microusd is None

    def amounts(self) -> tuple[int, int, int]:
        """Gives what it counts as: spent, reserved, unknown."""
        if self.settled_at_ms is None:
            return 0, self.reserved_microusd, 0
        return (0, 0, self.reserved_microusd) if self.spent_microusd is None else (self.spent_microusd, 0, 0)

    def scopes(self) -> list[str]:
        """Gives the scopes that it counts in."""
        return scopes_of(self.executor, self.labels, self.model, self.origin)


def call_of(row: Row) -> Call:
    """Makes a call of a row of the fragment `call_row`."""
    values = list(row)
    values[7] = labels_of(row[7])
    values[14] = decode_heads(row[14])
    return Call(*values)


def zone_of(reader: Reader) -> ZoneInfo:
    """Gives the zone of the days in `spend`."""
    row = reader.one("meta_one", ZONE)
    return ZoneInfo(row[0] if row else "UTC")


def add_call(tx: Tx, id: str, fields: dict[str, Any], zone: ZoneInfo) -> None:
    """Writes a new call, which is a reservation until it is settled."""
    tx.create(CALL, id, fields)
    _count(tx, _need(tx, id), zone, 1)


def settle_call(tx: Tx, call: Call, spent_microusd: int | None, outcome: str, zone: ZoneInfo) -> None:
    """Sets what a call has cost (None: nobody knows), and that it is over."""
    _count(tx, call, zone, -1)
    fields = {"spent_microusd": spent_microusd, "settled_at_ms": tx.now_ms, "outcome": outcome}
    tx.edit(CALL, call.id, At(call.ord, call.heads), fields)
    _count(tx, _need(tx, call.id), zone, 1)


def forget_call(tx: Tx, call: Call, zone: ZoneInfo) -> None:
    """Removes a call with its history, and what it adds up to."""
    _count(tx, call, zone, -1)
    tx.forget(CALL, call.id)


def _need(reader: Reader, id: str) -> Call:
    row = reader.one("call_by_id", id)
    if row is None:
        raise LookupError(f"the call {id} is gone in the transaction that wrote it")
    return call_of(row)


def _count(tables: Tables, call: Call, zone: ZoneInfo, times: int) -> None:
    day_at_ms = day_ms(call.started_at_ms, zone)[0]
    spent, reserved, unknown = (times * amount for amount in call.amounts())
    for scope in call.scopes():
        tables.run("spend_add", scope, day_at_ms, reserved, spent, unknown, times)
        if times < 0:
            tables.run("spend_drop_empty", scope, day_at_ms)


def add_up(calls: Iterable[Call], zone: ZoneInfo, sums: Sums) -> None:
    """Adds calls to sums by scope and day."""
    for call in calls:
        day_at_ms = day_ms(call.started_at_ms, zone)[0]
        for scope in call.scopes():
            before = sums.get((scope, day_at_ms), (0, 0, 0, 0))
            spent, reserved, unknown = call.amounts()
            sums[scope, day_at_ms] = (before[0] + spent, before[1] + reserved, before[2] + unknown, before[3] + 1)


def sums_of(reader: Reader, zone: ZoneInfo) -> Sums:
    """Adds up all calls."""
    sums: Sums = {}
    after = 0
    while rows := reader.all("calls_page", after, PAGE_MAX):
        add_up(map(call_of, rows), zone, sums)
        after = rows[-1][0]
    return sums


def derive_spend(tables: Tables, zone: ZoneInfo) -> None:
    """Computes `spend` anew from the calls."""
    tables.run("spend_drop_all")
    for (scope, day_at_ms), (spent, reserved, unknown, calls) in sums_of(tables, zone).items():
        tables.run("spend_add", scope, day_at_ms, reserved, spent, unknown, calls)


def set_zone(tx: Tx, zone: ZoneInfo) -> None:
    """Makes the days in `spend` those of a zone; adds all up anew where that is another one."""
    row = tx.one("meta_one", ZONE)
    if row is None or row[0] != zone.key:
        tx.run("meta_set", ZONE, zone.key)
        derive_spend(tx, zone)


def check_spend(reader: Reader) -> list[str]:
    """Holds `spend` against the calls; gives what differs."""
    kept: Sums = {(row[0], row[1]): (row[2], row[3], row[4], row[5]) for row in reader.all("spend_all")}
    sums = sums_of(reader, zone_of(reader))
    return [
        f"spend {scope} {day_at_ms} is {kept.get((scope, day_at_ms))}, and its calls are {sums.get((scope, day_at_ms))}"
        for scope, day_at_ms in sorted(kept.keys() | sums.keys())
        if kept.get((scope, day_at_ms)) != sums.get((scope, day_at_ms))
    ]
