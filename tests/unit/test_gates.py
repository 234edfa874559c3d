"""Gates: one row per cause, closed by a person or by an executor that is down, opened by a person or a probe."""

from typing import Any

import anyio
import pytest

from omnid.errors import OmnidError, Rejected, Retryable
from omnid.flow.gates import PROBE_BACKOFF, Gates
from omnid.retry import Backoff
from omnid.store import journal
from tests.fakes.clock import FakeClock
from tests.fakes.world import World

pytestmark = pytest.mark.anyio


def down(name: str = "command", detail: str = "gone") -> Retryable:
    return Retryable("executor_down", executor=name, detail=detail)


async def probes(world: World) -> None:
    async with anyio.create_task_group() as group:
        world.gates.probe_due(group)


def probe(world: World, *answers: OmnidError | None) -> None:
    left = list(answers)

    async def answer() -> None:
        error = left.pop(0)
        if error is not None:
            raise error

    world.context.executors["command"].probe = answer


async def test_gates_are_closed_again_after_a_start(world: World) -> None:
    await world.gates.pause("*")
    await world.gates.executor_down("command", down())
    before = world.gates.all()
    again = Gates(world.context)
    await again.load()
    assert [(gate.id, gate.problem) for gate in again.all()] == [(gate.id, gate.problem) for gate in before]
    assert again.closed() == {"*", "command"}


async def test_a_pause_is_shown_before_a_failure(world: World) -> None:
    assert world.gates.of("command") is None
    await world.gates.executor_down("command", down())
    assert world.gates.of("safe") is None
    await world.gates.pause("command")
    gate = world.gates.of("command")
    assert gate is not None
    assert gate.cause == "paused"


async def test_resume_says_whether_there_was_a_pause(world: World) -> None:
    await world.gates.pause("command")
    await world.gates.pause("command")
    assert await world.gates.resume("command")
    assert not await world.gates.resume("command")
    assert await world.rows("SELECT count(*) FROM gate") == [(0,)]


async def test_each_failed_probe_waits_longer_within_a_limit(world: World, clock: FakeClock) -> None:
    await world.gates.executor_down("command", down())
    since_ms = clock.now_ms
    for failures in range(2, 12):
        gate = world.gates.all()[0]
        assert gate.wake_at_ms is not None
        assert gate.wake_at_ms - clock.now_ms == 1000 * min(PROBE_BACKOFF.max_s, 2.0 ** (failures - 1))
        assert world.gates.next_wake_at_ms() == gate.wake_at_ms
        clock.now_ms = gate.wake_at_ms
        probe(world, down(detail=f"try {failures}"))
        await probes(world)
        gate = world.gates.all()[0]
        assert (gate.failures, gate.closed_at_ms) == (failures, since_ms)
        assert gate.problem is not None
        assert f"try {failures}" in gate.problem.what
    assert world.logged.getvalue().count('"event":"executor_down"') == 1, "logged when it goes down, not at every probe"


async def test_a_good_probe_opens_the_gate(world: World, clock: FakeClock) -> None:
    await world.gates.executor_down("command", down())
    probe(world, None)
    await probes(world)
    assert world.gates.closed() == {"command"}, "it is not probed before its time"
    clock.now_ms += 2_000
    await probes(world)
    assert world.gates.closed() == frozenset()
    assert world.context.dispatch._event.is_set()
    assert "executor_up" in world.logged.getvalue()


async def test_a_probe_that_hangs_or_rejects_keeps_the_gate_closed(
    world: World, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omnid.flow.gates.PROBE_S_MAX", 0.001)
    await world.gates.executor_down("command", down())
    world.context.executors["command"].probe = anyio.sleep_forever
    clock.now_ms += 2_000
    with anyio.fail_after(10):
        await probes(world)
    assert world.gates.all()[0].failures == 2
    probe(world, Rejected("unknown_method", method="x", version="1", hint=""))
    clock.now_ms += 4_000
    await probes(world)
    assert world.gates.all()[0].failures == 3


@pytest.mark.parametrize("error", [down(), None, Retryable("secret_missing", reference="env:X", detail="y")])
async def test_any_probe_closes_and_opens_the_gate_by_what_it_finds(world: World, error: Retryable | None) -> None:
    probe(world, error, None)
    assert await world.gates.probe("command", 1.0) is error
    gate = world.gates.of("command")
    assert (gate is None) == (error is None)
    assert (world.gates.login("command") is None) == (error is None or error.code != "secret_missing")
    await world.gates.pause("*")
    assert world.gates.login("command") is None, "a pause stands before"
    await world.gates.resume("*")
    changes = await world.rows("SELECT count(*) FROM change WHERE id LIKE 'executor%'")
    assert await world.gates.probe("command", 1.0) is None
    assert world.gates.all() == []
    if error is None:
        assert await world.rows("SELECT count(*) FROM change WHERE id LIKE 'executor%'") == changes == [(0,)]
    assert await world.gates.probe("no longer there", 1.0) is None


async def test_the_gate_of_an_executor_that_left_the_config_opens(world: World, clock: FakeClock) -> None:
    await world.gates.executor_down("command", down())
    world.context.take_executors({})
    clock.now_ms += 2_000
    await probes(world)
    assert world.gates.all() == []


async def test_what_a_probe_found_is_written_as_soon_as_the_store_takes_it(
    world: World, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.gates.executor_down("command", down())
    monkeypatch.setattr("omnid.flow.gates.PROBE_BACKOFF", Backoff(0.001, 0.001))
    clock.now_ms += 2_000
    write, errors = world.store.write, [Retryable("disk_full", path="/", detail="x") for _ in range(2)]

    async def full(fn: Any, **options: Any) -> Any:
        if errors:
            raise errors.pop()
        return await write(fn, **options)

    world.store.write = full
    with anyio.fail_after(10):
        await probes(world)
    assert world.gates.all() == []
    assert world.logged.getvalue().count("probe_waits") == 1


async def test_an_executor_is_probed_once_at_a_time(world: World, clock: FakeClock) -> None:
    await world.gates.executor_down("command", down())
    clock.now_ms += 2_000
    asked: list[int] = []
    answer = anyio.Event()

    async def slow() -> None:
        asked.append(1)
        await answer.wait()

    world.context.executors["command"].probe = slow
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            world.gates.probe_due(group)
            world.gates.probe_due(group)
            assert world.gates.next_wake_at_ms() is None
            await anyio.wait_all_tasks_blocked()
            answer.set()
    assert asked == [1]


async def test_a_clock_that_was_set_back_does_not_put_probes_off(world: World, clock: FakeClock) -> None:
    await world.gates.executor_down("command", down())
    probe(world, None)
    clock.now_ms -= 86_400_000
    await probes(world)
    assert world.gates.all() == []


async def test_closing_a_gate_as_it_is_writes_nothing(world: World) -> None:
    await world.gates.pause("*")
    gate = world.gates.all()[0]
    before = await world.rows("SELECT count(*) FROM change")
    await world.write(lambda tx: journal.close_gate(tx, gate))
    assert await world.rows("SELECT count(*) FROM change") == before
