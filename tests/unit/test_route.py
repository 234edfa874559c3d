"""Admission: pure decisions."""

from hypothesis import given
from hypothesis import strategies as st

from omnid.model import Task, Work
from omnid.route.admission import Load, first, room

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
