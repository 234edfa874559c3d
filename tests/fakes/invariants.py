"""What must hold for the tables after every transaction, computed from nothing but the rows themselves."""

from collections import Counter
from typing import Any, NamedTuple

import msgspec

from omnid.states import NEVER_MS, RUNNING, TERMINAL
from omnid.store.calls import check_spend
from tests.fakes.world import World

TASKS = """
SELECT ord, id, state, reason, wake_at_ms, priority, lane, executor, ready, labels, approval, paused, attempt,
finished_at_ms, not_before_ms, retry_at_ms, budget_at_ms,
coalesce(work, (SELECT data FROM blob WHERE sha256 = work_blob)), number, origin FROM task
"""

CALLS = """
SELECT c.id FROM call c JOIN attempt a ON a.id = c.attempt_id
WHERE c.settled_at_ms IS NULL AND a.ended_at_ms IS NOT NULL
UNION SELECT a.id FROM attempt a WHERE a.reserved_microusd IS NOT NULL AND a.ended_at_ms IS NULL
AND NOT EXISTS (SELECT 1 FROM call c WHERE c.attempt_id = a.id AND c.settled_at_ms IS NULL)
"""

ASKED = """
SELECT n.kind, a.ended_at_ms IS NOT NULL, n.body ->> 'key' FROM note n JOIN attempt a ON a.id = n.attempt_id
WHERE a.task_id = ? AND n.kind IN ('input_request', 'input_response')
"""


class Row(NamedTuple):
    ord: int
    id: str
    state: str
    reason: str | None
    wake_at_ms: int | None
    priority: int
    lane: str | None
    executor: str
    ready: int | None
    labels: str | None
    approval: str | None
    paused: int | None
    attempt: int | None
    finished_at_ms: int | None
    not_before_ms: int | None
    retry_at_ms: int | None
    budget_at_ms: int | None
    work: str
    number: int
    origin: str

    @property
    def after(self) -> list[str]:
        return msgspec.json.decode(self.work).get("after", [])


async def broken(world: World) -> list[str]:
    """Gives every rule that doesn't hold; the cascades must have been settled."""
    rows = {row.id: row for row in (Row(*cells) for cells in await world.rows(TASKS))}
    found = [f"replay: {line}" for line in await world.differences()]
    counted = Counter(row.state if row.state != "waiting" else f"waiting:{row.reason}" for row in rows.values())
    tally = {key: count for key, count in world.store.tally.items() if count}
    if tally != dict(counted):
        found.append(f"tally {tally} is not {dict(counted)}")
    found += _ready(list(rows.values()))
    found += _dependencies(rows, await world.rows("SELECT after_id, task_id FROM dependency"))
    for row in rows.values():
        found += _waits(row)
        if (row.state in TERMINAL) != (row.finished_at_ms is not None):
            found.append(f"{row.id} is {row.state}, finished at {row.finished_at_ms}")
    labels = {(label, row.ord) for row in rows.values() for label in msgspec.json.decode(row.labels or "[]")}
    if labels != set(await world.rows("SELECT label, ord FROM label")):
        found.append("the labels differ from those of the tasks")
    found += _attempts(rows, await world.rows("SELECT task_id, number, ended_at_ms FROM attempt"))
    found += await world.store.read(check_spend)
    found += [
        f"the call {id} is open and its attempt is not, or the other way round" for (id,) in await world.rows(CALLS)
    ]
    for row in rows.values():
        found += await _asks(world, row)
    return found + await _blobs(world)


async def _asks(world: World, row: Row) -> list[str]:
    """A task asks as long as its open attempt has a question without an answer; no key is given twice."""
    notes = await world.rows(ASKED, row.id)
    keys = [key for kind, _, key in notes if kind == "input_request"]
    answered = {key for kind, _, key in notes if kind == "input_response"}
    unanswered = [key for kind, ended, key in notes if kind == "input_request" and not ended and key not in answered]
    if (row.state == "input_required") != bool(unanswered):
        return [f"{row.id} is {row.state} and asks {unanswered}"]
    return [] if len(set(keys)) == len(keys) else [f"{row.id} has asked {keys}"]


def _ready(rows: list[Row]) -> list[str]:
    busy = Counter(row.lane for row in rows if row.lane is not None and row.state in RUNNING)
    found = [f"{count} tasks run in the lane {lane}" for lane, count in busy.items() if count > 1]
    heads: dict[tuple[str, str], Row] = {}
    for row in sorted(rows, key=lambda row: (-row.priority, row.ord)):
        if row.state == "idle" and row.lane is not None and row.lane not in busy:
            heads.setdefault((row.lane, row.executor), row)
    for row in rows:
        wanted = row.state == "idle" and (row.lane is None or heads.get((row.lane, row.executor)) is row)
        if bool(row.ready) != wanted:
            found.append(f"{row.id} ({row.state}, lane {row.lane}) has ready {row.ready}")
    return found


def _dependencies(rows: dict[str, Row], edges: list[Any]) -> list[str]:
    wanted = {
        (before, row.id)
        for row in rows.values()
        if row.state in ("idle", "waiting")
        for before in row.after
        if before in rows and rows[before].state != "completed"
    }
    return [f"dependencies: {set(edges) ^ wanted} are there or should be"] if set(edges) != wanted else []


def _waits(row: Row) -> list[str]:
    expected: dict[str | None, tuple[bool, int | None]] = {
        "paused": (bool(row.paused), None),
        "approval": (row.approval == "needed" and not row.paused, None),
        "dependency": (bool(row.after), None),
        "not_before": (row.not_before_ms is not None, row.not_before_ms),
        "hours": (bool(msgspec.json.decode(row.work).get("only")), row.wake_at_ms),
        "backoff": (row.retry_at_ms is not None, row.retry_at_ms),
        "budget": (row.budget_at_ms is not None, None if row.budget_at_ms == NEVER_MS else row.budget_at_ms),
    }
    if row.state == "waiting":
        holds, wake_at_ms = expected.get(row.reason, (False, None))
        return (
            [] if holds and row.wake_at_ms == wake_at_ms else [f"{row.id} waits for {row.reason}, to {row.wake_at_ms}"]
        )
    if row.reason is not None or row.wake_at_ms is not None:
        return [f"{row.id} is {row.state} and has the reason {row.reason}, to {row.wake_at_ms}"]
    return [f"{row.id} is idle, and held"] if row.state == "idle" and (row.paused or row.approval == "needed") else []


def _attempts(rows: dict[str, Row], attempts: list[Any]) -> list[str]:
    found: list[str] = []
    for id, row in rows.items():
        mine = [(number, ended) for task_id, number, ended in attempts if task_id == id]
        unfinished = [number for number, ended in mine if ended is None]
        if unfinished != ([row.attempt] if row.state in RUNNING else []):
            found.append(f"{id} is {row.state} at attempt {row.attempt}; open are {unfinished}")
        if sorted(number for number, _ in mine) != list(range(1, (row.attempt or 0) + 1)):
            found.append(f"{id} has a gap in its attempts: {mine}")
    return found + [f"an attempt of {id} has no task" for id, _, _ in attempts if id not in rows]


async def _blobs(world: World) -> list[str]:
    held = {row[0] for row in await world.rows("SELECT sha256 FROM blob")}
    used = {
        row[0]
        for row in await world.rows(
            "SELECT work_blob FROM task UNION SELECT output_blob FROM attempt UNION SELECT value_blob FROM attempt"
        )
        if row[0] is not None
    }
    return [] if held == used else [f"blobs: {len(held - used)} too many, {len(used - held)} missing"]
