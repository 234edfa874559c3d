"""Limits of executors: what an attempt that hits one does to its task, to its gate, and to all other tasks."""

from collections.abc import Callable
from typing import TypeVar

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnid.flow.control import Cancelling
from omnid.flow.dispatcher import Dispatcher
from omnid.flow.gates import Gates
from omnid.flow.limits import PROVEN_MS, UNSAID_S, WAIT_S_MAX, moved
from omnid.flow.wakeup import NAP_S_MAX, Wakeup
from omnid.link.embedded import EmbeddedLink
from omnid.model import Command, Gate, Park, Problem
from omnid.store import journal
from omnid.store.interface import Reader
from tests.fakes.clock import FakeClock
from tests.fakes.world import PERSON, World

pytestmark = pytest.mark.anyio

T = TypeVar("T")

HOUR_MS = 3_600_000
PROBLEM = Problem.make("agent_limit", executor="safe", said="You've hit your limit.", task="t1")


async def started(world: World, count: int = 1) -> list[Command]:
    for _ in range(count):
        await world.add("x", executor="safe", attempts_max=1)
    return await world.claim()


async def park(world: World, command: Command, wake_at_ms: int | None = None, cause: str = "rate_limit") -> None:
    assert await world.finish(command, "parked", problem=PROBLEM, park=Park(cause, wake_at_ms))


def gate(world: World) -> Gate:
    (found,) = world.gates.all()
    return found


async def outages(world: World) -> list[tuple[object, ...]]:
    return await world.rows("SELECT cause, subject, began_at_ms, ended_at_ms, parked, resumed FROM outage ORDER BY ord")


async def test_an_attempt_that_a_limit_stopped_does_not_count(world: World, clock: FakeClock) -> None:
    (command,) = await started(world)
    await park(world, command, clock.now_ms + HOUR_MS)
    task = await world.task(command.task_id)
    assert (task.state, task.failures, task.retry_at_ms, task.problem) == ("idle", 0, None, PROBLEM)
    found = gate(world)
    assert (found.id, found.wake_at_ms, found.failures) == ("rate_limit:safe", clock.now_ms + HOUR_MS, 1)
    assert world.gates.closed() == {"safe"}
    assert await world.claim() == []


async def test_a_cancel_and_a_deadline_hold_all_the_same(world: World, clock: FakeClock) -> None:
    (command,) = await started(world)
    await world.control("t1", "cancel")
    await park(world, command)
    assert (await world.task(command.task_id)).state == "cancelled"
    assert gate(world).cause == "rate_limit"


async def test_the_first_hit_keeps_all_others_from_their_start(world: World, clock: FakeClock) -> None:
    first, second, third = await started(world, 3)
    await world.add("x", executor="safe")
    await park(world, first, clock.now_ms + HOUR_MS)
    assert await world.claim() == []
    # Those that were under way find the same, and make the wait no longer.
    await park(world, second, clock.now_ms + HOUR_MS)
    await park(world, third)
    assert (gate(world).wake_at_ms, gate(world).failures) == (clock.now_ms + HOUR_MS, 1)
    assert await outages(world) == [("rate_limit", "safe", clock.now_ms, None, 3, None)]


async def test_one_task_tries_and_the_others_follow(world: World, clock: FakeClock) -> None:
    first, *_ = await started(world, 3)
    await world.add("x", executor="safe")
    began_ms = clock.now_ms
    await park(world, first, began_ms + HOUR_MS)
    clock.now_ms += HOUR_MS
    assert world.gates.closed() == frozenset(), "the dispatcher may look"
    (probe,) = await world.claim()
    assert (probe.task_id, probe.begun_before, probe.lost_before) == (first.task_id, 1, False)
    assert await world.claim() == [], "one at a time"
    await world.finish(probe, "success")
    assert world.gates.all() == []
    assert await outages(world) == [("rate_limit", "safe", began_ms, clock.now_ms, 1, 1)]
    assert len(await world.claim()) == 1


async def test_one_that_runs_for_long_has_got_through(world: World, clock: FakeClock) -> None:
    first, *_ = await started(world, 1)
    for _ in range(3):
        await world.add("x", executor="safe")
    await park(world, first, clock.now_ms + HOUR_MS)
    clock.now_ms += HOUR_MS
    await world.claim()
    clock.now_ms += PROVEN_MS - 1
    assert await world.claim() == []
    clock.now_ms += 1
    assert len(await world.claim()) == 3, "work that takes hours doesn't hold up all others"


@pytest.mark.parametrize("outcome", ["failure", "timeout", "rejected"])
async def test_a_probe_that_fails_for_a_reason_of_its_own_opens_the_gate(
    world: World, clock: FakeClock, outcome: str
) -> None:
    (command,) = await started(world)
    await park(world, command)
    clock.now_ms += round(UNSAID_S * 1000)
    (probe,) = await world.claim()
    await world.finish(probe, outcome, problem=PROBLEM)
    assert world.gates.all() == []


@pytest.mark.parametrize("outcome", ["cancelled", "lost", "unstarted"])
async def test_a_probe_that_shows_nothing_leaves_it_to_the_next(world: World, clock: FakeClock, outcome: str) -> None:
    (command,) = await started(world)
    await world.add("y", executor="safe")
    await park(world, command)
    clock.now_ms += round(UNSAID_S * 1000)
    (probe,) = await world.claim()
    await world.finish(probe, outcome, problem=PROBLEM)
    assert len(world.gates.all()) == 1
    assert len(await world.claim()) == 1


async def test_what_started_before_the_limit_opens_nothing(world: World, clock: FakeClock) -> None:
    first, second = await started(world, 2)
    await park(world, first, clock.now_ms + HOUR_MS)
    await world.finish(second, "success")
    assert len(world.gates.all()) == 1


async def test_without_a_time_the_wait_doubles_up_to_an_hour(world: World, clock: FakeClock) -> None:
    (command,) = await started(world)
    for wait_s in (UNSAID_S, 2 * UNSAID_S, WAIT_S_MAX, WAIT_S_MAX):
        await park(world, command)
        assert gate(world).wake_at_ms == clock.now_ms + wait_s * 1000
        clock.now_ms += round(wait_s * 1000)
        (command,) = await world.claim()
    assert (await world.task(command.task_id)).failures == 0


async def test_the_gate_and_its_probe_survive_the_daemon(world: World, clock: FakeClock) -> None:
    first, second = await started(world, 2)
    await park(world, first)
    await park(world, second)
    clock.now_ms += round(UNSAID_S * 1000)
    await world.claim()
    await world.restart()
    assert gate(world).id == "rate_limit:safe"
    assert await world.claim() == [], "the probe of the last daemon may still run"
    assert await world.differences() == []


async def test_a_time_from_before_the_clock_was_set_back_holds_nothing(world: World, clock: FakeClock) -> None:
    (command,) = await started(world)
    await park(world, command, clock.now_ms + HOUR_MS)
    clock.now_ms -= 30 * 24 * HOUR_MS
    assert len(await world.claim()) == 1


async def test_a_person_opens_it_at_once(world: World, clock: FakeClock) -> None:
    (command,) = await started(world)
    await park(world, command, None, "login")
    assert gate(world).id == "login:safe"
    assert await world.gates.resume("safe")
    assert world.gates.all() == []
    assert await outages(world) == [("login", "safe", clock.now_ms, clock.now_ms, 1, 1)]
    assert not await world.gates.resume("safe")


async def test_the_timer_wakes_when_it_is_due_and_not_over_and_over(world: World, clock: FakeClock) -> None:
    (command,) = await started(world)
    await park(world, command, clock.now_ms + HOUR_MS)
    assert world.gates.next_wake_at_ms() == clock.now_ms + HOUR_MS
    clock.now_ms += HOUR_MS
    assert world.gates.next_wake_at_ms() is None


async def test_a_limit_that_lifts_while_the_timer_looks_is_seen_at_once(
    world: World, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    (command,) = await started(world)
    await park(world, command, clock.now_ms + HOUR_MS)
    looks = 0
    looked = anyio.Event()
    bells = (world.context.dispatch, world.context.timer)
    real = world.store.read

    async def read(look: Callable[[Reader], T]) -> T:
        nonlocal looks
        looks += 1
        if looks == 2:
            # The last read before the nap is so slow that the limit lifts meanwhile, and nobody has rung for it.
            for bell in bells:
                await bell.wait()
            clock.now_ms += HOUR_MS
            looked.set()
        return await real(look)

    for bell in bells:
        bell.ring()
    monkeypatch.setattr(world.store, "read", read)
    timer = Wakeup(world.context, world.gates, Cancelling(world.context))
    async with anyio.create_task_group() as group:
        group.start_soon(timer.run)
        with anyio.fail_after(NAP_S_MAX / 3):
            await looked.wait()
            await world.context.dispatch.wait()
        group.cancel_scope.cancel()


async def test_the_dispatcher_looks_when_it_is_due(world: World, clock: FakeClock) -> None:
    (command,) = await started(world)
    await park(world, command, clock.now_ms + HOUR_MS)
    world.context.paused_starts = False
    link = EmbeddedLink()
    dispatcher = Dispatcher(world.context, world.gates, link)
    assert not await dispatcher.start_some()
    clock.now_ms += HOUR_MS
    await dispatcher.start_some()
    assert len(world.context.running) == 1
    await dispatcher.start_some()
    assert len(world.context.running) == 1
    link.close()


async def test_an_executor_that_is_down_is_an_outage_too_and_a_pause_is_none(world: World, clock: FakeClock) -> None:
    from omnid.errors import Retryable

    await world.gates.pause("safe")
    await world.gates.resume("safe")
    assert await outages(world) == []
    await world.gates.executor_down("safe", Retryable("executor_down", executor="safe", detail="gone"))
    await world.gates.executor_down("safe", Retryable("executor_down", executor="safe", detail="gone"))
    assert await outages(world) == [("executor", "safe", clock.now_ms, None, None, None)]


async def test_old_outages_are_forgotten(world: World, clock: FakeClock) -> None:
    (command,) = await started(world)
    await park(world, command)
    await world.gates.resume("safe")
    clock.now_ms += 31 * 24 * HOUR_MS
    await world.retain()
    assert await outages(world) == []


async def test_earlier_attempts_and_their_session_are_known(world: World, clock: FakeClock) -> None:
    (command,) = await started(world)
    assert (command.begun_before, command.session) == (0, None)
    await world.write(lambda tx: journal.add_note(tx, command.attempt_id, "session", "s-1", notes_max=9))
    await park(world, command)
    await world.gates.resume("safe")
    (again,) = await world.claim()
    assert (again.begun_before, again.session, again.lost_before) == (1, "s-1", False)
    await world.finish(again, "lost", problem=PROBLEM)
    clock.now_ms += HOUR_MS
    await world.wake()
    (third,) = await world.claim()
    assert (third.begun_before, third.lost_before) == (2, True)


async def test_a_person_who_says_again_knows_that_something_was_lost(world: World, clock: FakeClock) -> None:
    (command,) = await started(world)
    await world.finish(command, "lost", problem=PROBLEM)
    clock.now_ms += HOUR_MS
    await world.wake()
    (second,) = await world.claim()
    assert second.lost_before
    # Its session went with the first one, so that it is asked about.
    await world.write(lambda tx: journal.add_note(tx, second.attempt_id, "idempotent", False, notes_max=9))
    await world.finish(second, "lost", problem=PROBLEM)
    assert (await world.task(command.task_id)).state == "uncertain"
    await world.control(command.task_id, "again")
    (third,) = await world.claim()
    assert (third.begun_before, third.lost_before) == (2, False), "it may begin anew"
    await world.finish(third, "lost", problem=PROBLEM)
    clock.now_ms += HOUR_MS
    await world.wake()
    (fourth,) = await world.claim()
    assert (fourth.begun_before, fourth.lost_before) == (3, True)


@given(st.lists(st.tuples(st.booleans(), st.none() | st.integers(-HOUR_MS, 8 * 24 * HOUR_MS)), max_size=20))
def test_it_is_always_due_some_time_ahead(parks: list[tuple[bool, int | None]]) -> None:
    known, now_ms = None, 1_800_000_000_000
    for is_probe, ahead_ms in parks:
        now_ms += 1000
        found = Park("rate_limit", None if ahead_ms is None else now_ms + ahead_ms)
        before = known
        known = moved(known, found, now_ms, is_probe=is_probe)
        assert known.wake_at_ms is not None
        assert known.wake_at_ms <= now_ms + 9 * 24 * HOUR_MS
        assert known.wake_at_ms > now_ms or (before is not None and not is_probe)


async def test_why_says_until_when_in_local_time(world: World, clock: FakeClock) -> None:
    from omnid.api.views import Views

    world.set("daemon", zone="America/New_York")
    world.context.take_executors(world.context.executors)
    (command,) = await started(world)
    await park(world, command, clock.now_ms + HOUR_MS)
    views = Views(world.context, world.gates)
    task = await world.task(command.task_id)
    said = await world.store.read(lambda reader: views.sentence(reader, PERSON, task, None))
    assert said.startswith(
        "t1 waits because safe can take no work for now: You've hit your limit; one task tries it at "
    )
    assert said.endswith("(America/New_York), in 1 h, and the others follow; it goes on where it was.")
    assert views.gates()[0].text in said.replace("; it goes on where it was", "").replace("t1 waits because ", "")
    assert (await world.gates.resume("safe"), Gates(world.context).all()) == (True, [])


async def test_a_login_needs_a_person(world: World) -> None:
    from omnid.api.views import Views

    (command,) = await started(world)
    await park(world, command, None, "login")
    needs, total = await world.store.read(lambda reader: Views(world.context, world.gates).needs_you(reader, PERSON))
    assert (total, needs[0].task, needs[0].do) == (1, "safe", "omnictl resume --executor safe")
    assert Views(world.context, world.gates).problems(PERSON) == [], "it is told once"
    gate = world.gates.login("safe")
    assert gate is not None, "who waits for its tasks must hear that nothing helps but a login"
    assert gate.cause == "login"
