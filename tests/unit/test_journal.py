"""The journal's rows and log: round trips, large values, blobs, numbers, and transactions that leave nothing."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnid.errors import Rejected
from omnid.model import Submit
from omnid.store import journal, log
from omnid.store.interface import ATTEMPT, BLOB_BYTES_MIN, TASK, Collection
from tests.fakes.clock import FakeClock
from tests.fakes.world import World

pytestmark = pytest.mark.anyio


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(ATTEMPT.fields), VALUES, max_size=4), st.booleans())
def test_what_the_log_holds_is_what_the_table_holds(fields: dict[str, Any], large: bool) -> None:
    plain = {name: value if name in ATTEMPT.json or value is None else str(value) for name, value in fields.items()}
    if large:
        plain["output"] = "x" * (BLOB_BYTES_MIN + 1)
    columns, logged, _ = log.cells(ATTEMPT, plain)
    body = log.decode_body(log.encode_body(logged, dict.fromkeys(plain, 1)))
    assert log.column_values(ATTEMPT, body) == columns
    assert set(body.p) == set(plain)


@pytest.mark.parametrize("size", [BLOB_BYTES_MIN - 2, BLOB_BYTES_MIN, BLOB_BYTES_MIN + 1])
def test_only_large_values_become_blobs(size: int) -> None:
    columns, logged, blobs = log.cells(Collection("x", ("a",), large=frozenset({"a"})), {"a": "y" * size})
    assert bool(blobs) == (size > BLOB_BYTES_MIN)
    assert (columns["a"] is None) == bool(blobs)
    assert len(str(logged)) < BLOB_BYTES_MIN + 100


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=20))
def test_the_clock_of_the_log_only_grows_whatever_the_wall_does(walls: list[int]) -> None:
    last = 0
    for wall_ms in walls:
        after = log.next_hlc(last, wall_ms)
        assert after > last
        assert log.hlc_wall_ms(after) >= wall_ms
        last = after


@given(st.dictionaries(TEXT, st.integers(0, 2**62)))
def test_heads_are_read_as_they_were_written(heads: dict[str, int]) -> None:
    assert log.decode_heads(log.encode_heads(heads)) == heads


async def test_a_clock_that_jumps_back_keeps_the_order_of_submission(world: World, clock: FakeClock) -> None:
    await world.add("first")
    clock.now_ms -= 86_400_000
    await world.add("second")
    await world.restart()
    clock.now_ms -= 86_400_000
    await world.add("third")
    assert [command.name for command in await world.claim()] == ["t1", "t2", "t3"]


async def test_a_result_that_changes_from_large_to_small_and_back_is_kept_as_it_is(world: World) -> None:
    await world.add("x")
    (command,) = await world.claim()
    await world.finish(command, "lost", value={"big": "v" * 20_000})
    await world.finish(command, "failure", value={"small": 1}, output="o" * 20_000)
    row = await world.store.read(lambda reader: reader.one("attempt_by_number", command.task_id, command.number))
    assert row is not None
    kept = journal.attempt_of(row)
    assert (kept.value, len(kept.output or "")) == ({"small": 1}, 20_000)
    await world.write(lambda tx: tx.run("drop_blob", _digest({"big": "v" * 20_000})))


def _digest(value: Any) -> str:
    from hashlib import sha256

    import msgspec

    return sha256(msgspec.json.encode(value)).hexdigest()


async def test_a_transaction_that_fails_leaves_rows_log_tally_and_numbers_as_they_were(world: World) -> None:
    await world.add("x")

    def fail(tx: Any) -> None:
        task = journal.need_task(tx, "nobody" if journal.take_number(tx, "user") > 9 else _first(tx))
        journal.edit_task(tx, task, priority=5, paused=True, state="waiting", reason="paused")
        raise ValueError("no")

    before = dict(world.store.tally)
    with pytest.raises(ValueError, match="no"):
        await world.write(fail)
    assert world.store.tally == before
    assert (await world.add("y")).name == "t2"


def _first(tx: Any) -> str:
    return str(tx.one("task_by_name", "user", 1)[1])


async def test_an_edit_that_changes_nothing_writes_nothing(world: World) -> None:
    task = await world.add("x")
    before = await world.rows("SELECT max(seq) FROM change")
    await world.write(lambda tx: journal.edit_task(tx, task, priority=task.priority, labels=(), cancel=False))
    assert await world.rows("SELECT max(seq) FROM change") == before


async def test_an_event_that_the_state_does_not_take_changes_nothing(world: World) -> None:
    task = await world.add("x")
    with pytest.raises(Rejected) as caught:
        await world.write(lambda tx: journal.advance_task(tx, task, "succeed"))
    assert caught.value.code == "bad_event"
    assert await world.task(task.id) == task


async def test_an_unknown_task_is_said_so(world: World) -> None:
    with pytest.raises(Rejected) as caught:
        await world.task("nobody")
    assert caught.value.code == "unknown_task"


async def test_the_tally_is_counted_anew_at_a_start(world: World) -> None:
    await world.submit(*[Submit(argv=("x",))] * 3)
    await world.control("t1", "pause")
    await world.finish((await world.claim())[0], "success")
    before = {key: count for key, count in world.store.tally.items() if count}
    await world.restart()
    after = {key: count for key, count in world.store.tally.items() if count}
    assert after == before == {"waiting:paused": 1, "completed": 1, "executing": 1}


async def test_a_node_keeps_its_name_and_the_numbers_of_its_log(world: World) -> None:
    await world.add("x")
    node, last = world.store.node, (await world.rows("SELECT max(seq) FROM change"))[0][0]
    await world.restart()
    assert world.store.node == node
    await world.add("y")
    assert (await world.rows("SELECT min(seq) FROM change WHERE seq > ?", last))[0][0] == last + 1
    assert [row[0] for row in await world.rows("SELECT incarnation FROM change")] == [1, 2]


async def test_numbers_of_many_origins_are_kept_apart(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "ORIGINS_KEPT_MAX", 2)
    for _ in range(2):
        for origin in "abcd":
            await world.add("x", origin=origin)
    assert [row[0] for row in await world.rows("SELECT number FROM task ORDER BY ord")] == [1] * 4 + [2] * 4


def test_collections_name_their_columns_once() -> None:
    assert len(set(TASK.fields)) == len(TASK.fields)
    assert set(TASK.json | TASK.large) <= set(TASK.fields)
