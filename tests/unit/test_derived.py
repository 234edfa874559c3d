"""Doctor also looks at what is derived: the queue, the open edges and the index of labels, page by page."""

from functools import partial

import pytest

from omnid.flow.doctor import DIFFERENCES_MAX, Doctor
from omnid.model import Submit
from tests.fakes.world import World

pytestmark = pytest.mark.anyio


async def found(world: World) -> list[str]:
    return (await Doctor(world.context).examine()).differences


async def story(world: World) -> None:
    await world.add("x", labels=("a", "b"))
    await world.add("y", labels=("a",), after=("t1",))
    await world.add("z", lane="l")
    await world.add("z", lane="l", priority=1)
    await world.add("z", lane="m", executor="safe")


@pytest.mark.parametrize("page", [1, 2, 1000])
@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("DELETE FROM label WHERE label = 'b'", "lacks its label b"),
        ("INSERT INTO label VALUES ('c', (SELECT ord FROM task WHERE number = 2))", "the label c for task"),
        ("INSERT INTO label VALUES ('zz', 7)", "the label zz for no task"),
        ("DELETE FROM dependency", "has no edge to"),
        ("INSERT INTO dependency SELECT after_id, 'gone' FROM dependency", "to gone, which isn't there"),
        (
            "INSERT INTO dependency SELECT (SELECT id FROM task WHERE number = 2), id FROM task WHERE number = 1",
            "has an edge to",
        ),
        ("UPDATE task SET ready = 1 WHERE number = 3", "in lane l"),
        ("UPDATE task SET ready = NULL WHERE number = 5", "in lane m"),
        ("UPDATE task SET ready = NULL WHERE number = 1", "waits but is not in the queue"),
    ],
)
async def test_what_is_derived_wrongly_is_found(
    world: World, monkeypatch: pytest.MonkeyPatch, sql: str, says: str, page: int
) -> None:
    monkeypatch.setattr("omnid.store.derived.PAGE_MAX", page)
    monkeypatch.setattr("omnid.store.derived.LANES_MAX", page)
    await story(world)
    assert await found(world) == []
    world.store._connection.execute("SAVEPOINT tampering")
    world.store._connection.execute(sql)
    world.store._connection.execute("RELEASE tampering")
    lines = await found(world)
    assert any(says in line for line in lines), lines
    await mend(world)


async def mend(world: World) -> None:
    """Puts back what the fixture's invariants ask for."""
    for sql in (
        "DELETE FROM label",
        "INSERT INTO label SELECT 'a', ord FROM task WHERE number < 3",
        "INSERT INTO label SELECT 'b', ord FROM task WHERE number = 1",
        "DELETE FROM dependency",
        "INSERT INTO dependency SELECT a.id, b.id FROM task a, task b WHERE a.number = 1 AND b.number = 2",
        "UPDATE task SET ready = NULL",
        "UPDATE task SET ready = 1 WHERE number IN (1, 4, 5)",
    ):
        world.store._connection.execute(sql)


async def test_an_end_that_not_all_have_been_told_of_is_no_fault(world: World) -> None:
    await world.add("first")
    await world.submit(*[Submit(argv=("x",), after=("t1",))] * 50)
    (command,) = await world.claim()
    await world.finish(command, "success")
    assert await world.rows("SELECT count(*) FROM cascade") == [(1,)]
    assert await found(world) == []
    await world.wake()
    assert await found(world) == []


async def test_only_so_much_of_it_is_told(world: World) -> None:
    await world.submit(*[Submit(argv=("x",), labels=("a",))] * (DIFFERENCES_MAX + 5))
    world.store._connection.execute("DELETE FROM label")
    assert len(await found(world)) == DIFFERENCES_MAX
    world.store._connection.execute("INSERT INTO label SELECT 'a', ord FROM task")


async def test_the_pages_are_read_in_order_of_an_index(world: World) -> None:
    await story(world)
    for name in ("label_page", "dependency_page", "dependencies_of", "next_lane", "has_label"):
        text = await world.store.read(partial(lambda reader, name: reader._queries[name], name=name))
        plan = " | ".join(
            row[3] for row in await world.rows(f"EXPLAIN QUERY PLAN {text}", *["a", 1, 5][: text.count("?")])
        )
        assert "TEMP B-TREE" not in plan, (name, plan)
        assert "SEARCH" in plan, (name, plan)
