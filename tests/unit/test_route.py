"""Admission and the router: pure decisions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from omnid.errors import Rejected
from omnid.model import Task, Work
from omnid.route.admission import Load, first, room
from omnid.route.router import choose, route

loads = st.dictionaries(
    st.sampled_from("abcd"),
    st.builds(Load, st.integers(0, 5), st.one_of(st.none(), st.integers(1, 5))),
)


@given(loads, st.frozensets(st.sampled_from([*"abcd", "*"])), st.integers(-2, 9))
def test_room_keeps_to_slots_concurrency_and_gates(
    given_loads: dict[str, Load], closed: frozenset[str], slots: int
) -> None:
    free = room(given_loads, closed, slots)
    for name, count in free.items():
        load = given_loads[name]
        assert name not in closed
        assert "*" not in closed
        assert 0 < count <= slots
        assert load.concurrency is None or load.running + count <= load.concurrency
    for name, load in given_loads.items():
        could = slots > 0 and not closed & {name, "*"} and (load.concurrency is None or load.running < load.concurrency)
        assert (name in free) == could


def task(priority: int, ord: int) -> Task:
    return Task(ord, str(ord), "user", ord, Work(argv=("x",)), "command", "idle", priority)


@given(
    st.lists(st.tuples(st.integers(-10, 10), st.integers(0, 1000)), unique_by=lambda pair: pair[1]), st.integers(0, 9)
)
def test_the_first_are_the_highest_and_then_the_oldest(pairs: list[tuple[int, int]], slots: int) -> None:
    chosen = first([task(*pair) for pair in pairs], slots)
    left = {(one.priority, one.ord) for one in chosen} ^ set(pairs)
    assert len(chosen) == min(slots, len(pairs))
    keys = [(-one.priority, one.ord) for one in chosen]
    assert keys == sorted(keys)
    assert all((-priority, ord) > keys[-1] for priority, ord in left if keys)


KINDS = {"command": "command", "notes": "mcp", "mine": "in_process"}


@pytest.mark.parametrize(
    ("work", "wanted", "expected"),
    [
        (Work(argv=("ls",)), None, "command"),
        (Work(argv=("ls",)), "mine", "mine"),
        (Work(server="notes", tool="add"), None, "notes"),
        (Work(tool="add"), "notes", "notes"),
        (Work(), None, "nothing_to_do"),
        (Work(), "command", "command"),
        (Work(), "notes", "notes"),
        (Work(argv=("ls",), prompt="x"), None, "nothing_to_do"),
        (Work(prompt="fix it"), None, "kind_missing"),
        (Work(argv=("ls",)), "notes", "wrong_executor"),
        (Work(argv=("ls",)), "comand", "unknown_executor"),
        (Work(server="nots", tool="add"), None, "unknown_executor"),
    ],
)
def test_the_router_chooses_or_says_why_not(work: Work, wanted: str | None, expected: str) -> None:
    if expected in KINDS:
        assert choose(structs.replace(work, executor=wanted), KINDS) == expected
        return
    with pytest.raises(Rejected) as caught:
        choose(structs.replace(work, executor=wanted), KINDS)
    assert caught.value.code == expected
    if expected == "unknown_executor":
        assert "did you mean" in caught.value.what


def test_a_route_is_written_with_its_reason() -> None:
    work = Work(argv=("ls",), executor="mine")
    assert route(work, "mine") == {"executor": "mine", "reason": "asked for by name"}
    assert route(work, "command") == {"executor": "command", "reason": "the default for a command (argv)"}
    assert route(work, "other") == {"executor": "other", "reason": "given to it by hand"}
