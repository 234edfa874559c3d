"""The log read again: it adds up to the tables, it shows any moment, and what was tampered with is found."""

from functools import partial
from zoneinfo import ZoneInfo

import pytest

from omnid.errors import Rejected
from omnid.flow.doctor import DIFFERENCES_MAX, Doctor
from omnid.store.replay import Replica, apply_page, change_of, compare_page, derive
from tests.fakes.world import World

pytestmark = pytest.mark.anyio


async def story(world: World) -> None:
    """A bit of everything that the log can hold."""
    await world.add("x", "y" * 20_000, labels=("a",), lane="l")
    await world.add("y", after=("t1",), lane="l")
    await world.gates.pause("safe")
    (command,) = await world.claim()
    await world.finish(command, "failure", output="z" * 20_000, value={"a": None})
    await world.control("t1", "complete")
    await world.control("t2", "delete")
    await world.gates.resume("safe")


async def test_the_log_alone_adds_up_to_the_tables(world: World) -> None:
    await story(world)
    assert await world.differences() == []
    report = await Doctor(world.context).examine()
    assert (report.differences, report.damage) == ([], [])
    assert report.entries == (await world.rows("SELECT max(seq) FROM change"))[0][0]
    assert report.rows > 2


async def test_pages_of_the_log_and_of_the_tables_follow_each_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omnid.store.replay.PAGE_MAX", 3)
    await story(world)
    for _ in range(10):
        await world.add("x")
    assert (await Doctor(world.context).examine()).differences == []


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("UPDATE task SET priority = 3 WHERE number = 1", "priority"),
        ("DELETE FROM attempt", "is in the log only"),
        (
            "INSERT INTO gate (ord, id, cause, subject, closed_at_ms) VALUES (9, 'g', 'paused', '*', 1)",
            "is in the table only",
        ),
        ("DELETE FROM change WHERE seq = 1", "isn't there"),
        ("DELETE FROM change WHERE kind = 'edit' AND id = (SELECT id FROM task LIMIT 1)", "differs in"),
        ("UPDATE change SET collection = 'odd' WHERE seq = 1", "unknown collection odd"),
        ("UPDATE change SET body = '{' WHERE seq = 1", "after entry 0"),
        ("UPDATE change SET kind = 'create' WHERE kind = 'edit'", "after entry"),
    ],
)
async def test_tampering_is_found(world: World, sql: str, says: str) -> None:
    await story(world)
    saved = {name: await world.rows(f"SELECT * FROM {name}") for name in ("task", "attempt", "gate", "change")}
    world.store._connection.execute(sql)
    found = (await Doctor(world.context).examine()).differences
    assert found
    assert any(says in line for line in found), found
    for name, rows in saved.items():
        world.store._connection.execute(f"DELETE FROM {name}")
        for row in rows:
            marks = ", ".join("?" * len(row))
            world.store._connection.execute(f"INSERT INTO {name} VALUES ({marks})", row)


async def test_an_edit_of_another_state_is_refused(world: World) -> None:
    await world.add("x")
    await world.control("t1", "pause")
    rows = await world.store.read(lambda reader: reader.all("changes_page", 0, 1 << 60, 10))
    stale = [rows[0], (*rows[1][:7], rows[1][7].replace(str(rows[0][1]), "7"))]
    replica = Replica()
    with pytest.raises(Rejected) as caught:
        replica.apply(stale)
    assert caught.value.code == "replay_mismatch"
    assert "of another state" in caught.value.what
    replica.close()


async def test_only_so_many_differences_are_told(world: World) -> None:
    for _ in range(DIFFERENCES_MAX + 5):
        await world.add("x")
    world.store._connection.execute("UPDATE task SET priority = 3")
    assert len((await Doctor(world.context).examine()).differences) == DIFFERENCES_MAX
    world.store._connection.execute("UPDATE task SET priority = 0")


async def test_a_comparison_is_right_while_the_daemon_goes_on(world: World) -> None:
    await story(world)
    last = (await world.rows("SELECT max(seq) FROM change"))[0][0]
    async with Doctor(world.context).state_at(last) as replica:
        await world.add("later")
        await world.control("t1", "delete")
        for name in ("task", "attempt"):
            found, _ = await world.store.read(partial(compare_page, replica=replica, name=name, after=0))
            assert found == [], "what changed since is passed over"


async def test_any_moment_can_be_rebuilt(world: World) -> None:
    await story(world)
    last = (await world.rows("SELECT max(seq) FROM change"))[0][0]
    states: list[str | None] = []
    for seq in range(last + 1):
        replica = Replica()
        while await world.store.read(partial(apply_page, replica=replica, until=seq)):
            pass
        row = replica.reader.one("task_by_name", "user", 1)
        states.append(None if row is None else row[6])
        assert replica.seq == seq
        replica.close()
    assert list(dict.fromkeys(states)) == [None, "idle", "executing", "waiting", "completed"]


async def test_entries_are_typed(world: World) -> None:
    await world.add("x")
    await world.control("t1", "pause")
    rows = await world.store.read(lambda reader: reader.all("changes_page", 0, 1 << 60, 10))
    create, flag, edit = (change_of(row) for row in rows)
    assert (flag.fields, flag.prev) == ({"paused": True}, {"paused": create.hlc})
    assert (create.seq, create.kind, create.collection, create.prev) == (1, "create", "task", {})
    assert create.node == world.store.node
    assert (edit.kind, edit.fields["reason"], edit.prev["reason"]) == ("edit", "paused", create.hlc)


async def test_what_is_not_in_the_log_is_computed_from_what_is(world: World) -> None:
    await story(world)
    for fields in (
        {"labels": ("a", "b")},
        {"lane": "l"},
        {"lane": "l", "priority": 2},
        {"lane": "m", "executor": "safe"},
    ):
        await world.add("x", **fields)
    await world.add("x", after=("t3",))
    await world.claim(slots=2)
    async with Doctor(world.context).state_at((await world.rows("SELECT max(seq) FROM change"))[0][0]) as replica:
        derive(replica, ZoneInfo("UTC"))
        for sql in (
            "SELECT id, ready FROM task ORDER BY ord",
            "SELECT after_id, task_id FROM dependency ORDER BY 1, 2",
            "SELECT label, ord FROM label ORDER BY 1, 2",
        ):
            mine = await world.rows(sql)
            assert mine
            assert list(replica.connection.execute(sql)) == mine
