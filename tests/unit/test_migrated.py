"""A journal that was written under any of the older schemas is whole under the newest: nothing lost, nothing odd."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from omnid.errors import Retryable
from omnid.flow import asking
from omnid.flow.caller import Caller
from omnid.flow.doctor import Doctor
from omnid.flow.once import once
from omnid.model import InputRequest, Problem, Schedule, Scheduled, Task
from omnid.states import REASONS, STATES
from omnid.store import journal, outbox
from omnid.store import schedules as schedule_rows
from omnid.store.interface import ASK, COLLECTIONS, Tx
from omnid.store.migrate import migrate, schemas
from omnid.store.replay import change_of
from tests.fakes.clock import FakeClock
from tests.fakes.invariants import broken
from tests.fakes.purse import Purse
from tests.fakes.world import AGENT

pytestmark = pytest.mark.anyio

NUMBERS = [number for number, _ in schemas()]
UNLOGGED = {"meta", "node", "change", "blob", "dependency", "cascade", "label", "spend"}
LATER_REASONS = {"budget"}
"""Reasons to wait that no task had under the first schema."""
FOLLOWS = {4: "DELETE FROM spend WHERE scope LIKE 'origin:%'"}
"""What a program that knows no schema from this number on has not derived."""
EVERY = Schedule(every_s=60)
Tables = dict[str, list[tuple[Any, ...]]]


@pytest.fixture
async def story(tmp_path: Path, clock: FakeClock) -> AsyncIterator[Purse]:
    """A journal of today with tasks in every state, and rows of all kinds."""
    world = Purse(tmp_path / "today", clock)
    try:
        await _tasks_that_wait(world)
        await _tasks_that_run(world)
        await _tasks_that_ended(world)
        await _what_is_beside_tasks(world)
        await world.write(lambda tx: _others(world, tx))
        yield world
    finally:
        world.close()


async def _tasks_that_wait(world: Purse) -> None:
    await world.add("paused", "y" * 20_000, labels=("a", "b"))
    await world.control("t1", "pause")
    await world.add("first", after=("t1",))
    await world.add("later", not_before_ms=world.clock.wall_ms() + 1_000_000)
    await world.add("asks", caller=AGENT)
    await world.add("by night", only="23:00-23:01")
    await world.add("again", executor="safe", attempts_max=3)
    (command,) = await world.claim()
    await world.finish(command, "failure", output="z" * 20_000, value={"a": [None]})


async def _tasks_that_run(world: Purse) -> None:
    for _ in range(3):
        await world.add("runs", lane="l", executor="claude", labels=("a",))
        await world.add("runs")
    running = await world.claim()
    request = InputRequest("elicitation/create", {"message": "Sure?"})
    asked = next(one for one in running if one.executor == "command")
    await world.write(lambda tx: asking.record(tx, asked.attempt_id, {"sure": request}, world.context.config))
    sent = next(one for one in running if one.executor == "command" and one is not asked)

    def send(tx: Tx) -> Task:
        return journal.edit_task(tx, journal.need_task(tx, sent.task_id), state="dispatching")

    await world.write(send)


async def _tasks_that_ended(world: Purse) -> None:
    for outcome, cost_usd in (("success", 1.5), ("failure", None), ("lost", None)):
        await world.add("ends", executor="codex", attempts_max=1, key=outcome)
        (command,) = await world.claim()
        await world.finish(command, outcome, output=outcome, cost_usd=cost_usd, exit_code=3)
    await world.control((await world.add("goes")).id, "cancel")
    await world.control((await world.add("is forgotten")).id, "delete")
    approved = await world.add("allowed", caller=AGENT)
    await world.control(approved.id, "approve", always=True)


async def _what_is_beside_tasks(world: Purse) -> None:
    await world.gates.pause("safe")
    await world.gates.executor_down("codex", Retryable("executor_down", executor="codex", detail="no"))
    await world.write(once(Caller(session="s", request_id="1"), "m", {}, lambda tx: 7, int))
    scheduled = Scheduled("s1", "nightly", "user", "person", EVERY, {"argv": ["x"]}, {}, enabled=True, created_at_ms=1)
    await world.write(lambda tx: schedule_rows.put(tx, scheduled))
    problem = Problem.make("delivery_failed", destination="a", detail="no")
    for _ in range(2):
        id = await world.write(lambda tx: outbox.put(tx, "a", "answer", "t", {"text": "x"}, rows_max=9))
    await world.write(lambda tx: outbox.bury(tx, id, problem, rows_max=9))
    (ended,) = await world.rows("SELECT id FROM task WHERE state = 'completed'")
    await world.write(lambda tx: tx.run("add_cascade", *ended))
    ask = {"task_id": ended[0], "event": "approve", "about": None, "created_at_ms": 1}
    await world.write(lambda tx: tx.create(ASK, "0f", ask))


def _others(world: Purse, tx: Tx) -> None:
    """Gives each logged table that came after this was written a row of its own."""
    for name, collection in COLLECTIONS.items():
        if not tx.all(f"page_{name}", 0, 1):
            described = world.store._connection.execute(f"PRAGMA table_info({name})")
            needed = {row[1]: row[2] for row in described if row[3] and row[1] in collection.fields}
            tx.create(collection, "x", {column: 1 if kind == "INTEGER" else "{}" for column, kind in needed.items()})


def older(world: Purse, path: Path, number: int) -> Tables:
    """Makes the journal that a program which knows the schemas up to a number has of the same; gives its rows."""
    source, target = world.store._connection, apsw.Connection(str(path))
    migrate(target, path, schemas()[:number])
    columns = {
        name: _columns(target, name)
        for (name,) in target.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
    }
    for name, known in columns.items():
        marks = ", ".join("?" * len(known))
        for row in source.execute(f"SELECT {', '.join(known)} FROM {name}"):
            cells = _entry(dict(zip(known, row, strict=True)), columns) if name == "change" else _row(known, row)
            if cells is not None:
                target.execute(f"INSERT INTO {name} VALUES ({marks})", cells)
    for since, statement in FOLLOWS.items():
        if number < since and "spend" in columns:
            target.execute(statement)
    rows = _rows(target, columns)
    target.close()
    return rows


def _columns(connection: apsw.Connection, table: str) -> list[str]:
    return [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]


def _row(known: list[str], row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Gives a row without the heads of fields that aren't there yet."""
    if "heads" not in known or row[known.index("heads")] is None:
        return row
    at = known.index("heads")
    heads = {field: head for field, head in msgspec.json.decode(row[at]).items() if field in known}
    return (*row[:at], msgspec.json.encode(heads).decode() if heads else None, *row[at + 1 :])


def _entry(entry: dict[str, Any], columns: dict[str, list[str]]) -> tuple[Any, ...] | None:
    """Gives an entry of the log without the fields that aren't there yet; None where nothing is left of it."""
    known = columns.get(entry["collection"])
    if known is None:
        return None
    body = msgspec.json.decode(entry["body"], type=dict[str, dict[str, msgspec.Raw]])
    kept = {part: {field: raw for field, raw in fields.items() if field in known} for part, fields in body.items()}
    if entry["kind"] == "edit" and not kept["f"]:
        return None
    return tuple({**entry, "body": msgspec.json.encode(kept).decode()}.values())


def _rows(connection: apsw.Connection, columns: dict[str, list[str]]) -> Tables:
    return {
        name: sorted(connection.execute(f"SELECT {', '.join(known)} FROM {name}"), key=repr)
        for name, known in columns.items()
        if name != "meta"
    }


async def test_the_story_has_rows_of_all_kinds(story: Purse) -> None:
    for table in (*COLLECTIONS, *UNLOGGED):
        assert await story.rows(f"SELECT 1 FROM {table} LIMIT 1") == [(1,)], table
    assert {state for (state,) in await story.rows("SELECT state FROM task")} == set(STATES)
    reasons = {reason for (reason,) in await story.rows("SELECT reason FROM task WHERE state = 'waiting'")}
    assert reasons == set(REASONS) - LATER_REASONS


@pytest.mark.parametrize("number", NUMBERS)
async def test_a_journal_of_an_older_schema_is_brought_up_to_date(
    story: Purse, tmp_path: Path, clock: FakeClock, number: int
) -> None:
    (tmp_path / "then" / "state").mkdir(parents=True)
    path = tmp_path / "then" / "state" / "journal.db"
    rows = older(story, path, number)
    world = Purse(tmp_path / "then", clock)
    try:
        assert world.store._connection.pragma("user_version") == NUMBERS[-1]
        then = apsw.Connection(":memory:")
        migrate(then, path, schemas()[:number])
        assert _rows(world.store._connection, {name: _columns(then, name) for name in (*rows, "meta")}) == rows
        await _is_whole(world)
        await world.gates.load()
        await _goes_on(world, clock)
        await _is_whole(world)
    finally:
        world.close()


async def _is_whole(world: Purse) -> None:
    assert await broken(world) == []
    report = await Doctor(world.context).examine()
    assert (report.differences, report.damage) == ([], [])
    last = (await world.rows("SELECT max(seq), count(*) FROM change"))[0]
    entries = [
        change_of(row) for row in await world.store.read(lambda reader: reader.all("changes_page", 0, last[0], last[1]))
    ]
    assert len(entries) == last[1]


async def _goes_on(world: Purse, clock: FakeClock) -> None:
    """Lets everything that was under way go on to its end."""
    clock.now_ms += 2_000_000
    clock.now_s += 2_000
    await world.control("t1", "resume")
    await world.gates.resume("safe")
    await world.wake()
    for command in await world.claim():
        await world.finish(command, "success", cost_usd=0.5)
    ends = await world.rows("SELECT count(*) FROM task WHERE state = 'completed'")
    assert ends[0][0] > 3
