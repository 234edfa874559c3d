"""When a runner on another host counts as lost, and when it doesn't though nothing was heard of it."""

from collections.abc import Sequence
from typing import Any

import anyio
import msgspec
import pytest

from omnid.errors import Retryable
from omnid.flow import insist
from omnid.flow.runner import left
from omnid.model import Result, Watch
from omnid.retry import Backoff
from omnid.settings_links import Link
from tests.fakes.cable import Bench, beat
from tests.fakes.clock import FakeClock
from tests.fakes.world import World

pytestmark = pytest.mark.anyio

STEP_S = 4.0
"""As long as a batch of results takes the daemon here."""


@pytest.fixture
def bench(world: World) -> Bench:
    made = Bench(world)
    made.config("a", "b", lease_s=30.0)
    return made


async def pass_time(bench: Bench, clock: FakeClock, seconds_s: float) -> None:
    """Has time pass, and the leases looked at as often as they ask for."""
    until_s = clock.now_s + seconds_s
    while clock.now_s < until_s:
        clock.now_s = min(until_s, clock.now_s + STEP_S)
        await look(bench)


async def look(bench: Bench) -> None:
    """Has the leases looked at."""
    bench.lines.configure()
    await anyio.wait_all_tasks_blocked()


def lost(bench: Bench) -> set[str]:
    return {peer.name for peer in bench.context.fleet.peers.values() if peer.lost_at_ms is not None}


class Steps:
    """Results of the runner b that come again and again: while one batch is written down, the next is there."""

    def __init__(self, bench: Bench, clock: FakeClock) -> None:
        self.bench, self.clock = bench, clock
        self.turn = anyio.Event()
        self.number = 0
        bench.results.try_all = self._try_all
        bench.cable.bring("b", beat())

    async def _try_all(self, results: Sequence[Result]) -> list[bool]:
        turn = self.turn
        await turn.wait()
        return [True] * len(results)

    async def step(self, *more: tuple[str, Any]) -> None:
        """Has the batch written down that has come, with the next one there, and `more` in it."""
        self.number += 1
        self.bench.cable.bring("b", Result(f"x{self.number}", "i", 1, "success"))
        for sender, message in more:
            self.bench.cable.bring(sender, message)
        self.clock.now_s += STEP_S
        done, self.turn = self.turn, anyio.Event()
        done.set()
        await look(self.bench)


async def test_a_runner_is_lost_on_a_link_that_is_never_at_rest(bench: Bench, clock: FakeClock) -> None:
    async with bench.runs():
        bench.cable.bring("a", beat())
        task = await bench.world.add("one", executor="safe")
        await bench.sent(1)
        steps = Steps(bench, clock)
        while clock.now_s < 30:
            await steps.step()
        assert lost(bench) == set(), "its last words may be in what has come by then"
        for _ in range(3):
            await steps.step()
        assert lost(bench) == {"a"}
        after = await bench.task(task)
        assert (after.state, after.problem and after.problem.code) == ("waiting", "runner_lost")


@pytest.mark.parametrize("batch", [0, 1])
async def test_the_last_words_of_a_runner_are_heard_before_it_is_lost(
    bench: Bench, clock: FakeClock, batch: int
) -> None:
    async with bench.runs():
        bench.cable.bring("a", beat())
        await bench.world.add("one")
        await bench.sent(1)
        steps = Steps(bench, clock)
        while clock.now_s < 30:
            await steps.step()
        for _ in range(batch):
            await steps.step()
        await steps.step(("a", beat()))
        for _ in range(4):
            await steps.step()
        assert lost(bench) == set()


async def test_an_attempt_that_its_runner_lacks_is_settled_on_a_link_that_is_never_at_rest(
    bench: Bench, clock: FakeClock
) -> None:
    async with bench.runs():
        bench.cable.bring("a", beat())
        task = await bench.world.add("one", executor="safe")
        await bench.sent(1)
        steps = Steps(bench, clock)
        while clock.now_s < 90:
            await steps.step(("a", beat(attempts=())))
        after = await bench.task(task)
        assert (after.state, after.problem and after.problem.code) == ("waiting", "runner_silent")


async def test_who_could_not_listen_for_a_while_calls_nobody_lost(bench: Bench, clock: FakeClock) -> None:
    async with bench.runs():
        bench.cable.bring("a", beat())
        await bench.world.add("one")
        await bench.sent(1)
        steps = Steps(bench, clock)
        await steps.step()
        await pass_time(bench, clock, 300)  # A disk that is full, say.
        await steps.step()
        await steps.step()
        assert lost(bench) == set()


async def test_who_could_not_ask_for_a_while_calls_nobody_lost(bench: Bench, clock: FakeClock) -> None:
    settle, free = bench.results.settle, anyio.Event()

    async def held_up(result: Result) -> bool:
        await free.wait()
        return await settle(result)

    async with bench.runs():
        bench.cable.bring("a", beat())
        first = await bench.world.add("one")
        await bench.sent(1)
        await pass_time(bench, clock, 25)
        bench.cable.bring("b", beat())
        await anyio.wait_all_tasks_blocked()
        second = await bench.world.add("two")
        await bench.sent(1, "b")
        bench.results.settle = held_up
        await pass_time(bench, clock, 6)
        assert lost(bench) == {"a"}
        asked = len([name for name, message in bench.cable.sent if name == "b" and isinstance(message, Watch)])
        clock.now_s += 300  # Nobody asks b meanwhile, so it says nothing.
        free.set()
        await look(bench)
        assert lost(bench) == {"a"}
        watches = [name for name, message in bench.cable.sent if name == "b" and isinstance(message, Watch)]
        assert len(watches) == asked + 1
        assert [(await bench.task(task)).state for task in (first, second)] == ["uncertain", "executing"]


async def test_what_became_a_runners_while_it_was_lost_is_settled_too(bench: Bench) -> None:
    fleet = bench.context.fleet
    took = fleet.took

    def late(attempt_id: str, runner: str, executor: str, *, unsent: bool = False) -> None:
        fleet.lose(fleet.peers[runner])  # Its lease ends while the claim is being synced.
        took(attempt_id, runner, executor, unsent=unsent)

    async with bench.runs():
        bench.cable.bring("a", beat())
        await anyio.wait_all_tasks_blocked()
        fleet.took = late
        task = await bench.world.add("one", executor="safe")
        await anyio.wait_all_tasks_blocked()
        after = await bench.task(task)
        assert (after.state, after.problem and after.problem.code) == ("waiting", "runner_lost")
        assert fleet.peers["a"].open == {}


async def test_what_a_lost_runner_had_is_settled_where_the_store_was_busy_at_first(
    bench: Bench, clock: FakeClock
) -> None:
    store = bench.world.store
    read = store.read

    async def busy(fn: Any) -> Any:
        raise Retryable("store_busy", seconds_s=30)

    async with bench.runs():
        bench.cable.bring("a", beat())
        task = await bench.world.add("one", executor="safe")
        await bench.sent(1)
        clock.now_s += 31
        store.read = busy
        with pytest.raises(Retryable):
            await bench.lines._leases._look_at_leases()
        store.read = read
        assert (await bench.task(task)).state == "executing"
        await look(bench)
        assert (await bench.task(task)).state == "waiting"


async def test_what_a_runner_gives_back_is_taken_where_the_store_was_busy_at_first(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(insist, "BACKOFF", Backoff(0.01, 0.01))
    store = bench.world.store
    read = store.read

    async def busy_once(fn: Any) -> Any:
        store.read = read
        raise Retryable("store_busy", seconds_s=30)

    async with bench.runs():
        bench.cable.bring("a", beat())
        task = await bench.world.add("one")
        (command,) = await bench.sent(1)
        store.read = busy_once
        bench.cable.bring("a", left(command, "a"))
        await bench.cable.until(lambda: command.attempt_id in bench.cable.acked)
        after = await bench.task(task)
        assert (after.state, after.problem and after.problem.code) == ("idle", "runner_left")


async def test_a_link_that_is_changed_says_goodbye_before_it_is_dialled_anew(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    goodbye, said = anyio.Event(), list[str]()

    async def run(section: Link) -> None:
        said.append(f"dialled {section.url}")
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await goodbye.wait()
                said.append(f"left {section.url}")

    monkeypatch.setattr("tests.fakes.cable.Cable.run", lambda cable: run(cable.section))
    async with bench.runs():
        for host in ("one", "two"):  # The second change comes before the first has said goodbye.
            (link,) = bench.context.config.link
            changed = (msgspec.structs.replace(link, url=f"redis://{host}"),)
            bench.context.config = msgspec.structs.replace(bench.context.config, link=changed)
            await look(bench)
        assert said == ["dialled redis://127.0.0.1"]
        goodbye.set()
        await bench.cable.until(lambda: len(said) > 2)
        assert said == ["dialled redis://127.0.0.1", "left redis://127.0.0.1", "dialled redis://two"]
