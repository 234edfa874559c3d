"""Tasks, attempts, gates and the rest as typed rows: what the flow calls inside its transactions."""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import structs

from omnid.errors import Rejected
from omnid.model import Attempt, Gate, Problem, Route, Task, Work
from omnid.money import MICRO
from omnid.states import advance
from omnid.store.interface import ATTEMPT, GATE, NOTE, ORIGIN, TASK, At, Reader, Row, Tables, Tx, tally_key
from omnid.store.log import decode_heads, hlc_wall_ms

ORIGINS_KEPT_MAX = 1_000

_work = msgspec.json.Decoder(Work)
_labels = msgspec.json.Decoder(tuple[str, ...])
_problem = msgspec.json.Decoder(Problem)
_route = msgspec.json.Decoder(Route)
_READY = {"ready": 1}
_NOT_READY = {"ready": None}
_LANE_FIELDS = frozenset({"state", "priority", "executor"})


def ahead_ms(tx: Tx) -> int:
    """Gives by how much the latest time that the journal has seen is ahead of the clock; 0 where it is not."""
    return hlc_wall_ms(tx.stamp()) - tx.now_ms


def problem_of(text: str | None) -> Problem | None:
    """Reads a stored problem."""
    return _problem.decode(text) if text else None


def labels_of(text: str | None) -> tuple[str, ...]:
    """Reads stored labels."""
    return _labels.decode(text) if text else ()


def task_of(row: Row) -> Task:
    """Makes a task of a row of the fragment `task_row`, whose columns are in the order of the task's fields."""
    values = list(row)
    values[4] = _work.decode(row[4])
    values[12] = labels_of(row[12])
    values[21] = bool(row[21])
    values[23] = bool(row[23])
    values[24] = row[24] or 0
    values[25] = row[25] or 0
    values[27] = problem_of(row[27])
    values[28] = _route.decode(row[28]) if row[28] else None
    values[29] = decode_heads(row[29])
    return Task(*values)


def attempt_of(row: Row) -> Attempt:
    """Makes an attempt of a row of the fragment `attempt_row`, whose columns are `ord` and then the fields."""
    values = list(row[1:])
    values[4] = bool(row[5])
    values[8] = problem_of(row[9])
    values[12] = None if row[13] is None else msgspec.json.decode(row[13])
    values[13] = None if row[14] is None else row[14] / MICRO
    values[14] = None if row[15] is None else msgspec.json.decode(row[15])
    values[15] = decode_heads(row[16])
    values[16] = None if row[17] is None else row[17] / MICRO
    return Attempt(*values)


def gate_of(row: Row) -> Gate:
    """Makes a gate of a row of the query `gates`."""
    values = list(row[:8])
    values[5] = problem_of(row[5])
    values[6] = row[6] or 0
    values[7] = decode_heads(row[7])
    return Gate(*values)


def task_by_id(tx: Reader, id: str) -> Task | None:
    """Gives the task, or None."""
    row = tx.one("task_by_id", id)
    return None if row is None else task_of(row)


def need_task(tx: Reader, id: str) -> Task:
    """Gives the task; raises Rejected(`unknown_task`)."""
    task = task_by_id(tx, id)
    if task is None:
        raise Rejected("unknown_task", task=id, hint="")
    return task


def take_number(tx: Tx, origin: str) -> int:
    """Gives the number of the origin's next task; the origin's numbers only grow."""
    numbers: dict[str, int] = tx.memory.setdefault("numbers", {})
    number = numbers.get(origin)
    if number is None:
        row = tx.one("last_number", origin)
        number = row[0] if row and row[0] else 0
        if len(numbers) >= ORIGINS_KEPT_MAX:
            numbers.clear()
    numbers[origin] = number + 1
    return number + 1


def give_back_number(tx: Tx, origin: str) -> None:
    """Takes back the number that was given last in the origin, because its task turned out to be there."""
    tx.memory["numbers"][origin] -= 1


def create_task(tx: Tx, id: str, fields: Mapping[str, Any], after: tuple[str, ...]) -> None:
    """Writes a new task with its derived rows: open dependencies, labels, and its place in the queue.

    Raises store.interface.Taken where a task with its key is there already; nothing is written then.
    """
    state, lane = fields["state"], fields.get("lane")
    derived = _READY if state == "idle" and lane is None else {}
    ord = tx.create(TASK, id, fields, derived)
    for before in after:
        tx.run("add_dependency", before, id)
    for label in fields.get("labels") or ():
        tx.run("add_label", label, ord)
    tx.moved(None, tally_key(state, fields.get("reason")))
    tx.stirred = True
    if lane is not None and state == "idle":
        refresh_lane(tx, lane)
    if state == "waiting" and tx.follow is not None:
        tx.follow(tx, None, need_task(tx, id))


def edit_task(tx: Tx, task: Task, **fields: Any) -> Task:
    """Sets fields of a task read in this transaction, keeps what is derived from them, and gives it as it is now."""
    changed = {name: value for name, value in fields.items() if getattr(task, name) != value}
    if not changed:
        return task
    after = structs.replace(task, **changed)
    derived = {}
    if after.lane is None and after.state != task.state:
        derived = _READY if after.state == "idle" else _NOT_READY
    elif after.state != "idle" and task.state == "idle":
        derived = _NOT_READY
    if "state" in changed or "executor" in changed:
        tx.stirred = True
    heads = tx.edit(TASK, task.id, At(task.ord, task.heads), _columns(changed), derived)
    after = structs.replace(after, heads=heads)
    if after.state != task.state or after.reason != task.reason:
        tx.moved(tally_key(task.state, task.reason), tally_key(after.state, after.reason))
        if tx.follow is not None:
            tx.follow(tx, task, after)
    if after.lane is not None and not _LANE_FIELDS.isdisjoint(changed):
        refresh_lane(tx, after.lane)
    return after


def _columns(changed: dict[str, Any]) -> dict[str, Any]:
    """Stores what is false, zero or empty as NULL, as `create_task` leaves it out."""
    return {
        name: (value or None) if name in ("paused", "cancel", "attempt", "failures", "labels") else value
        for name, value in changed.items()
    }


def advance_task(tx: Tx, task: Task, event: str, **fields: Any) -> Task:
    """Takes the task through its state machine; raises Rejected(`bad_event`) and changes nothing then."""
    return edit_task(tx, task, state=advance(task.state, event), **fields)


def work_of(text: str) -> Work:
    """Reads stored work."""
    return _work.decode(text)


def lane_wanted(reader: Reader, lane: str) -> set[int]:
    """Gives what may start in the lane: nothing while one of its tasks runs, else the first of each executor."""
    wanted: set[int] = set()
    if reader.one("lane_busy", lane) is None:
        executor = ""
        while (row := reader.one("lane_next", lane, executor)) is not None:
            executor = row[0]
            wanted.add(row[1])
    return wanted


def refresh_lane(tx: Tables, lane: str) -> None:
    """Makes ready what may start in the lane, and nothing else of it."""
    wanted = lane_wanted(tx, lane)
    now: set[int] = {row[0] for row in tx.all("lane_ready", lane)}
    for ord in now - wanted:
        tx.run("set_ready", None, ord)
    for ord in wanted - now:
        tx.run("set_ready", 1, ord)


def start_attempt(
    tx: Tx,
    task: Task,
    attempt_id: str,
    *,
    idempotent: bool,
    route: Route,
    reserved_microusd: int | None = None,
) -> Task:
    """Writes the next attempt of an idle task and makes it executing: the `begun` record of the embedded link."""
    number = task.attempt + 1
    fields = {
        "task_id": task.id,
        "number": number,
        "executor": task.executor,
        "idempotent": 1 if idempotent else None,
        "started_at_ms": tx.now_ms,
        "route": route,
        "reserved_microusd": reserved_microusd,
    }
    tx.create(ATTEMPT, attempt_id, fields)
    tx.begun.append(task.executor)
    state = advance(task.state, "start")
    return edit_task(tx, task, state=state, attempt=number, retry_at_ms=None, budget_at_ms=None)


def end_attempt(tx: Tx, head: Row, fields: Mapping[str, Any]) -> None:
    """Sets the end of an attempt, given as a row of the query `attempt_head` read in this transaction."""
    tx.edit(ATTEMPT, head[1], At(head[0], decode_heads(head[6])), fields)
    tx.ended.append(head[1])
    tx.stirred = True


def add_note(tx: Tx, attempt_id: str, kind: str, body: Any, *, notes_max: int | None) -> None:
    """Writes a note beside an open attempt; the kind `idempotent` also sets the attempt's own field.

    Raises Rejected(`too_many`) beyond `notes_max` notes of one attempt; None: the caller has a limit of its own.
    """
    row = tx.one("count_notes", attempt_id)
    count = row[0] if row else 0
    if notes_max is not None and count >= notes_max:
        setting = "limits.notes_max"
        raise Rejected("too_many", count=count + 1, things="notes of one attempt", limit=notes_max, setting=setting)
    tx.create(NOTE, note_id(attempt_id, count + 1), {"attempt_id": attempt_id, "kind": kind, "body": body})
    head = tx.one("attempt_head", attempt_id) if kind == "idempotent" else None
    if head is not None:
        tx.edit(ATTEMPT, attempt_id, At(head[0], decode_heads(head[6])), {"idempotent": 1 if body else None})


def note_id(attempt_id: str, number: int) -> str:
    """Gives the id of an attempt's note by its number, from 1 on."""
    return f"{attempt_id}/{number}"


def close_gate(tx: Tx, gate: Gate) -> None:
    """Closes a gate, or sets anew why and until when it is closed."""
    fields = {
        "cause": gate.cause,
        "subject": gate.subject,
        "closed_at_ms": gate.closed_at_ms,
        "wake_at_ms": gate.wake_at_ms,
        "problem": gate.problem,
        "failures": gate.failures or None,
    }
    row = tx.one("gate_by_id", gate.id)
    if row is None:
        tx.create(GATE, gate.id, fields)
        return
    now = gate_of(row)
    same = {"cause", "subject"}
    changed = {n: v for n, v in fields.items() if n not in same and v != (getattr(now, n) or None)}
    if changed:
        tx.edit(GATE, gate.id, At(row[8], now.heads), changed)


def open_gate(tx: Tx, id: str) -> bool:
    """Opens a gate; tells whether it was closed."""
    row = tx.one("gate_by_id", id)
    if row is None:
        return False
    tx.delete(GATE, id, At(row[8], decode_heads(row[7])))
    return True


def raise_number_floor(tx: Tx, origin: str, number: int) -> None:
    """Keeps numbers up to `number` from being given again in the origin."""
    row = tx.one("number_floor", origin)
    if row is None:
        tx.create(ORIGIN, origin, {"number_floor": number})
    elif row[1] < number:
        tx.edit(ORIGIN, origin, At(row[0], decode_heads(row[2])), {"number_floor": number})


def drop_derived(tx: Tx, task: Task) -> None:
    """Removes a task's derived rows, before the task itself goes."""
    tx.run("drop_dependencies_of", task.id)
    for label in task.labels:
        tx.run("drop_label", label, task.ord)


def notes(reader: Reader, attempt_id: str, kind: str) -> list[Any]:
    """Gives the bodies of an attempt's notes of one kind, oldest first."""
    return [msgspec.json.decode(row[0]) for row in reader.all("notes_of", attempt_id, kind)]


def forget_attempts(tx: Tx, task_id: str) -> list[str]:
    """Removes a task's attempts and their notes with their history; gives the ids of the attempts."""
    attempts: list[str] = [row[0] for row in tx.all("attempt_ids", task_id)]
    for attempt_id in attempts:
        tx.forget(NOTE, *(id for (id,) in tx.all("note_ids", attempt_id)))
    tx.forget(ATTEMPT, *attempts)
    return attempts


def forget_task(tx: Tx, task: Task) -> list[str]:
    """Removes an ended task as if it had never been: rows, history, and values that nothing else holds.

    What remains of the log still adds up to what remains of the tables. Gives the ids of the task's attempts.
    """
    blobs = tx.all("blobs_of_task", task.id)
    attempts = forget_attempts(tx, task.id)
    raise_number_floor(tx, task.origin, task.number)
    drop_derived(tx, task)
    tx.forget(TASK, task.id)
    for (digest,) in blobs:
        tx.run("drop_blob", digest)
    tx.moved(tally_key(task.state, task.reason), None)
    return attempts
