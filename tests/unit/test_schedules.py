"""Schedules on a real journal: what is due is submitted once, whatever happens to omnid, its config and its clock."""

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from omnid.api.schedule_views import ScheduleViews
from omnid.api.shapes_schedules import ScheduleAdd, ScheduleList, ScheduleOf, ScheduleRun, ScheduleSwitch, ScheduleView
from omnid.errors import Rejected, Retryable
from omnid.flow.caller import Caller
from omnid.flow.control import Cancelling
from omnid.flow.schedules import Schedules
from omnid.model import NamedSchedule, Problem, Schedule, Submit
from omnid.route.rights import Rights
from omnid.settings import Preset
from omnid.store import schedules as rows
from tests.fakes.clock import FakeClock
from tests.fakes.world import AGENT, PERSON, World

pytestmark = pytest.mark.anyio

MINUTE_MS = 60_000
EVERY = Schedule(every_s=60)


class House:
    """What keeps schedules, and what clients see of it."""

    def __init__(self, world: World, clock: FakeClock) -> None:
        self.world = world
        self.clock = clock
        self.begin()

    def begin(self) -> None:
        """Is what a daemon makes at its start."""
        self.schedules = Schedules(self.world.context, Cancelling(self.world.context))
        self.views = ScheduleViews(self.world.context, self.schedules)

    async def add(self, name: str, schedule: Schedule, caller: Caller = PERSON, **task: Any) -> ScheduleView:
        asked = {"argv": (name,), **task}
        return await self.views.add(caller, ScheduleAdd(name=name, schedule=schedule, task=Submit(**asked)))

    async def after(self, minutes: float) -> None:
        """Lets time pass, and does what is due then."""
        self.clock.now_ms += round(minutes * MINUTE_MS)
        self.clock.now_s += minutes * 60
        await self.schedules.work_off()

    async def show(self, name: str) -> ScheduleView:
        return await self.views.show(PERSON, ScheduleOf(name=name))

    async def tasks(self) -> list[Any]:
        ids = await self.world.rows("SELECT id FROM task ORDER BY ord")
        return [await self.world.task(id) for (id,) in ids]

    async def finish(self) -> None:
        """Brings everything that can start to its end."""
        for command in await self.world.claim():
            await self.world.finish(command, "success")


@pytest.fixture
def house(world: World, clock: FakeClock) -> House:
    return House(world, clock)


async def test_what_is_due_is_submitted_and_the_alarm_set_for_the_next(house: House) -> None:
    await house.add("tick", EVERY)
    began_ms = house.clock.now_ms
    await house.schedules.work_off()
    assert await house.tasks() == []
    assert house.world.context.alarms.next_ms() == began_ms + MINUTE_MS
    await house.after(1)
    (task,) = await house.tasks()
    assert task.work.argv == ("tick",)
    assert task.labels == ("schedule:tick",)
    await house.schedules.work_off()
    assert len(await house.tasks()) == 1
    view = await house.show("tick")
    assert (view.runs, view.last_task, view.next_at_ms) == (1, "t1", began_ms + 2 * MINUTE_MS)


async def test_a_daemon_that_was_killed_makes_up_for_what_it_missed_once(house: House) -> None:
    await house.add("tick", EVERY)
    await house.add("all", Schedule(every_s=60, missed="run_all", missed_max=3, overlap="queue"))
    await house.add("none", Schedule(every_s=60, missed="skip"))
    house.clock.now_ms += 10 * MINUTE_MS + 59_000
    for _ in range(2):
        await house.world.restart()
        house.begin()
        await house.after(0.0001)
    made = [task.work.argv[0] for task in await house.tasks()]
    assert sorted(made) == ["all", "all", "all", "none", "tick"]
    assert [(await house.show(name)).skipped for name in ("tick", "all", "none")] == [9, 7, 9]


async def test_a_clock_that_is_set_back_runs_no_time_twice_and_stops_nothing(house: House) -> None:
    await house.add("tick", EVERY)
    for _ in range(3):
        await house.after(1)
        await house.finish()
    house.clock.now_ms -= 60 * MINUTE_MS
    await house.schedules.work_off()
    assert (await house.show("tick")).next_at_ms == house.clock.now_ms + MINUTE_MS
    for _ in range(60):
        await house.after(1)
        await house.finish()
    # The last 3 of the 60 are times that have run before.
    times = [task.key for task in await house.tasks()]
    assert len(times) == len(set(times)) == 60


async def test_a_run_that_goes_on_is_not_overtaken(house: House) -> None:
    await house.add("tick", EVERY)
    for _ in range(3):
        await house.after(1)
    assert len(await house.tasks()) == 1
    assert (await house.show("tick")).skipped == 2
    await house.finish()
    await house.after(1)
    assert len(await house.tasks()) == 2


async def test_runs_wait_for_each_other(house: House) -> None:
    await house.add("tick", Schedule(every_s=60, overlap="queue"))
    for _ in range(3):
        await house.after(1)
    assert len(await house.tasks()) == 3
    for _ in range(3):
        (command,) = await house.world.claim()
        await house.world.finish(command, "success")


async def test_the_run_before_is_ended(house: House) -> None:
    await house.add("tick", Schedule(every_s=60, overlap="kill"))
    await house.after(1)
    (command,) = await house.world.claim()
    await house.after(1)
    first, second = await house.tasks()
    assert (first.cancel, second.state) == (True, "idle")
    assert house.world.context.cancel_was_asked(command.attempt_id)
    assert await house.world.claim() == []
    await house.world.finish(command, "cancelled")
    assert len(await house.world.claim()) == 1


async def test_the_run_before_ends_though_it_has_not_begun(house: House) -> None:
    await house.add("tick", Schedule(every_s=60, overlap="kill"))
    for _ in range(2):
        await house.after(1)
    assert [task.state for task in await house.tasks()] == ["cancelled", "idle"]
    assert len(await house.world.claim()) == 1


async def test_of_an_earlier_versions_missed_runs_none_ends_another(house: House) -> None:
    for name in ("skip", "kill"):
        await house.add(name, Schedule(every_s=60, overlap=name))
        scheduled = await house.world.store.read(lambda reader, name=name: rows.need(reader, name))
        before = replace(scheduled, schedule=replace(scheduled.schedule, missed="run_all"))
        await house.world.write(lambda tx, before=before: rows.put(tx, before))
    await house.after(5)
    assert [(task.work.argv, task.cancel) for task in await house.tasks()] == [(("skip",), False), (("kill",), False)]
    assert [(await house.show(name)).skipped for name in ("skip", "kill")] == [4, 4]


async def test_a_run_by_hand_is_the_last_run_and_none_that_is_counted(house: House) -> None:
    await house.add("twice", Schedule(every_s=60, times_max=2))
    await house.views.run(PERSON, ScheduleRun(name="twice"))
    view = await house.show("twice")
    assert (view.runs, view.last_task, view.last_at_ms) == (0, "t1", house.clock.now_ms)
    await house.after(1)
    assert (await house.show("twice")).skipped == 1, "it goes on"
    await house.finish()
    for _ in range(3):
        await house.after(1)
        await house.finish()
    view = await house.show("twice")
    assert (view.runs, view.next_at_ms, len(await house.tasks())) == (2, None, 3)
    await house.views.run(PERSON, ScheduleRun(name="twice"))
    assert len(await house.tasks()) == 4, "by hand it runs as often as anybody likes"


async def test_one_at_a_time_holds_by_hand_too_and_names_what_goes_on(house: House) -> None:
    bounded = Caller("agent", "ci", rights=Rights("ci", labels=frozenset()))
    await house.add("one", EVERY, bounded)
    await house.views.run(PERSON, ScheduleRun(name="ci/one"))
    for caller, task in ((PERSON, "t1"), (bounded, "somebody else's task")):
        with pytest.raises(Rejected) as caught:
            await house.views.run(caller, ScheduleRun(name="ci/one"))
        assert (caught.value.code, caught.value.fields["task"]) == ("schedule_busy", task)
    await house.finish()
    await house.views.run(PERSON, ScheduleRun(name="ci/one"))
    assert len(await house.tasks()) == 2


async def test_a_run_by_hand_waits_for_or_ends_the_one_before(house: House) -> None:
    for overlap in ("queue", "kill"):
        await house.add(overlap, Schedule(every_s=3600, overlap=overlap))
        await house.views.run(PERSON, ScheduleRun(name=overlap))
    commands = await house.world.claim()
    for overlap in ("queue", "kill"):
        await house.views.run(PERSON, ScheduleRun(name=overlap))
    assert [(task.state, task.cancel) for task in await house.tasks()] == [
        ("executing", False),
        ("executing", True),
        ("idle", False),
        ("idle", False),
    ]
    assert [house.world.context.cancel_was_asked(command.attempt_id) for command in commands] == [False, True]
    assert await house.world.claim() == []
    for command, outcome in zip(commands, ("success", "cancelled"), strict=True):
        await house.world.finish(command, outcome)
    assert len(await house.world.claim()) == 2
    await house.views.run(AGENT, ScheduleRun(name="kill"))
    assert not (await house.tasks())[3].cancel, "an agent ends nobody else's"


async def test_it_ends_after_its_times(house: House) -> None:
    await house.add("twice", Schedule(every_s=60, times_max=2))
    for _ in range(4):
        await house.after(1)
        await house.finish()
    view = await house.show("twice")
    assert (view.runs, view.next_at_ms) == (2, None)
    assert len(await house.tasks()) == 2


async def test_a_time_that_is_left_out_is_not_one_of_its_times(house: House) -> None:
    await house.add("twice", Schedule(every_s=60, times_max=2))
    for _ in range(3):
        await house.after(1)
    await house.finish()
    await house.after(1)
    view = await house.show("twice")
    assert (view.runs, view.skipped, view.next_at_ms) == (2, 2, None)


async def test_another_zone_moves_what_is_to_come(house: House) -> None:
    house.world.set("daemon", zone="Asia/Taipei")
    context = house.world.context
    context.take_executors(context.executors)
    await house.add("nightly", Schedule(cron="0 3 * * *"))
    await house.add("there", Schedule(cron="0 3 * * *", zone="Asia/Taipei"))
    await house.schedules.work_off()
    before_ms = (await house.show("nightly")).next_at_ms
    house.world.set("daemon", zone="UTC")
    context.take_executors(context.executors)
    await house.schedules.work_off()
    assert before_ms is not None
    assert (await house.show("there")).next_at_ms == before_ms
    moved_ms = (await house.show("nightly")).next_at_ms
    assert moved_ms is not None
    assert (moved_ms - before_ms) % (24 * 60 * MINUTE_MS) == 8 * 60 * MINUTE_MS


async def test_what_was_changed_meanwhile_is_looked_at_again(house: House) -> None:
    await house.add("tick", EVERY)
    house.clock.now_ms += MINUTE_MS
    (due,) = await house.world.store.read(lambda reader: rows.due(reader, house.clock.now_ms, 10))
    await house.views.switch(PERSON, ScheduleSwitch(name="tick", enabled=False))
    await house.schedules._run_due(due)
    view = await house.show("tick")
    assert (view.enabled, view.runs) == (False, 0)
    assert await house.tasks() == []


async def test_events_set_it_going(house: House) -> None:
    await house.add("alarm", Schedule(on=("executor.down:safe", "executor.up:safe")))
    await house.add("other", Schedule(on=("cloud.down",)))
    await house.after(1)
    assert await house.tasks() == []
    gates = house.world.gates
    await gates.executor_down("safe", _down())
    await house.schedules.work_off()
    await gates.executor_down("safe", _down())
    await house.schedules.work_off()
    assert [task.work.argv for task in await house.tasks()] == [("alarm",)]
    await house.finish()
    await house.after(1)
    await gates.probe("safe", 1)
    await house.schedules.work_off()
    assert [task.work.argv for task in await house.tasks()] == [("alarm",), ("alarm",)]


def _down() -> Retryable:
    return Retryable("executor_down", executor="safe", detail="it is away")


async def test_an_event_is_not_lost_with_the_daemon(house: House) -> None:
    await house.add("alarm", Schedule(on=("executor.down:safe",)))
    await house.world.gates.executor_down("safe", _down())
    await house.world.restart()
    house.begin()
    await house.schedules.work_off()
    assert len(await house.tasks()) == 1


async def test_one_that_is_switched_off_sleeps_and_begins_anew(house: House) -> None:
    await house.add("tick", Schedule(every_s=60, on=("start",)))
    await house.views.switch(PERSON, ScheduleSwitch(name="tick", enabled=False))
    await house.world.write(lambda tx: rows.fire(tx, "start"))
    await house.after(10)
    assert await house.tasks() == []
    view = await house.views.switch(PERSON, ScheduleSwitch(name="tick", enabled=True))
    assert view.next_at_ms == house.clock.now_ms + MINUTE_MS
    await house.after(1)
    assert len(await house.tasks()) == 1


async def test_a_run_that_cant_be_submitted_is_told_and_the_next_is_tried(house: House) -> None:
    await house.add("tick", EVERY, executor="safe")
    executors = dict(house.world.context.executors)
    house.world.context.take_executors({"command": executors["command"]})
    await house.after(1)
    view = await house.show("tick")
    assert view.problem is not None
    assert view.problem.code == "unknown_executor"
    assert (view.runs, view.skipped) == (0, 1)
    house.world.context.take_executors(executors)
    await house.after(1)
    view = await house.show("tick")
    assert (view.problem, view.runs) == (None, 1)


async def test_one_that_cant_be_filled_in_stops_no_other(house: House) -> None:
    task = Submit(argv=("x",), lane="{params.lane}")
    await house.views.add(PERSON, ScheduleAdd(name="odd", schedule=EVERY, task=task, params={"lane": "a"}))
    odd = await house.world.store.read(lambda reader: rows.need(reader, "odd"))
    await house.world.write(lambda tx: rows.put(tx, replace(odd, params={"lane": ""})))
    await house.add("tick", EVERY)
    await house.after(1)
    assert [task.work.argv for task in await house.tasks()] == [("tick",)]
    view = await house.show("odd")
    assert view.problem is not None
    assert view.problem.code == "bad_schedule"
    with pytest.raises(Rejected) as caught:
        await house.views.run(PERSON, ScheduleRun(name="odd"))
    assert caught.value.code == "bad_schedule"


async def test_a_name_that_makes_no_label_is_refused(house: House) -> None:
    with pytest.raises(Rejected) as caught:
        await house.add("n" * 64, EVERY, caller=Caller("agent", "a" * 40))
    assert caught.value.code == "bad_schedule"


async def test_parameters_stand_in_the_task(house: House) -> None:
    task = Submit(argv=("backup", "{params.path}", "{x}"), labels=("to-{params.path}",))
    asked = ScheduleAdd(name="backup", task=task, params={"path": "/home"})
    await house.views.add(PERSON, asked)
    await house.views.run(PERSON, ScheduleRun(name="backup"))
    await house.finish()
    await house.views.run(PERSON, ScheduleRun(name="backup", params={"path": "/srv"}))
    first, second = await house.tasks()
    assert first.work.argv == ("backup", "/home", "{x}")
    assert second.work.argv == ("backup", "/srv", "{x}")
    assert second.labels == ("to-/srv", "schedule:backup")
    with pytest.raises(Rejected, match="has no such parameter") as caught:
        await house.views.run(PERSON, ScheduleRun(name="backup", params={"wrong": "x"}))
    assert caught.value.code == "bad_schedule"
    with pytest.raises(Rejected) as caught:
        await house.views.add(
            PERSON, ScheduleAdd(name="typo", task=Submit(argv=("{params.pth}",)), params={"path": ""})
        )
    assert caught.value.code == "bad_template"
    assert len(await house.tasks()) == 2


async def test_presets_follow_the_config(house: House) -> None:
    world = house.world

    async def take(*presets: Preset) -> list[Problem]:
        world.context.config = msgspec.structs.replace(world.context.config, preset=presets)
        await house.schedules._take_presets()
        await house.schedules.work_off()
        return world.context.preset_problems

    tick = Preset(name="tick", task={"argv": ["a"]}, every="1m")
    assert await take(tick) == []
    await house.after(1)
    (task,) = await house.tasks()
    assert (task.origin, task.work.argv) == ("config", ("a",))
    await house.finish()
    # What has happened to it stays, and so do its times where only its task changes.
    await take(msgspec.structs.replace(tick, task={"argv": ["b"]}))
    view = await house.show("tick")
    assert (view.runs, view.title) == (1, "b")
    await house.views.switch(PERSON, ScheduleSwitch(name="tick", enabled=False))
    house.begin()
    await take(msgspec.structs.replace(tick, task={"argv": ["b"]}))
    assert not (await house.show("tick")).enabled
    with pytest.raises(Rejected) as caught:
        await house.views.remove(PERSON, ScheduleOf(name="tick"))
    assert caught.value.code == "schedule_of_config"
    await house.add("mine", EVERY)
    (problem,) = await take(Preset(name="mine", task={"argv": ["x"]}))
    assert problem.code == "schedule_taken"
    assert (await house.show("mine")).origin == "user"
    await take()
    with pytest.raises(Rejected) as caught:
        await house.show("tick")
    assert caught.value.code == "unknown_schedule"


async def test_the_start_sets_it_going_once_a_start(house: House) -> None:
    await house.add("hello", Schedule(on=("start",)))
    for count in (1, 2):
        await house.world.write(lambda tx: rows.fire(tx, "start"))
        await house.schedules.work_off()
        await house.after(1)
        assert len(await house.tasks()) == count
        await house.finish()


async def test_an_agents_schedule_is_its_own_and_its_runs_ask(house: House) -> None:
    view = await house.add("tick", EVERY, caller=AGENT)
    assert view.name == "claude/tick"
    await house.after(1)
    (task,) = await house.tasks()
    assert (task.origin, task.state, task.reason) == ("claude", "waiting", "approval")
    other = Caller("agent", "other")
    await house.add("mine", EVERY)
    for call in (
        lambda: house.views.switch(other, ScheduleSwitch(name="claude/tick", enabled=False)),
        lambda: house.views.remove(other, ScheduleOf(name="claude/tick")),
        lambda: house.views.remove(AGENT, ScheduleOf(name="mine")),
    ):
        with pytest.raises(Rejected) as caught:
            await call()
        assert caught.value.code == "other_schedule"
    # Whoever has a person's preset run gets no more rights by that.
    done = await house.views.run(other, ScheduleRun(name="mine"))
    assert (await house.world.task(done.id)).reason == "approval"
    assert (await house.views.remove(AGENT, ScheduleOf(name="tick"))).name == "claude/tick"


async def test_a_submit_may_ask_for_a_schedule(house: House) -> None:
    asked = Submit(argv=("x",), key="k", schedule=NamedSchedule(name="nightly", cron="0 3 * * *"))
    first = await house.world.write(house.views.begin_submit(AGENT, asked))
    again = await house.world.write(house.views.begin_submit(AGENT, asked))
    assert (first.name, first.state, first.created) == ("claude/nightly", "scheduled", True)
    assert (again.id, again.created) == (first.id, False)
    other = msgspec.structs.replace(asked, argv=("y",))
    with pytest.raises(Rejected) as caught:
        await house.world.write(house.views.begin_submit(AGENT, other))
    assert caught.value.code == "schedule_taken"
    assert await house.tasks() == []


async def test_a_batch_takes_tasks_alone(house: House) -> None:
    asked = Submit(argv=("x",), schedule=NamedSchedule(name="nightly", cron="@daily"))
    with pytest.raises(Rejected, match="submitted by itself"):
        await house.world.submit(Submit(argv=("y",)), asked)


@pytest.mark.parametrize(
    ("task", "schedule", "where"),
    [
        ({"after": ("t1",)}, EVERY, "after"),
        ({"key": "k"}, EVERY, "key"),
        ({"deadline_ms": 1}, EVERY, "deadline_ms"),
        ({}, Schedule(cron="x"), "cron"),
        ({}, Schedule(every_s=60, missed="run_all"), "missed"),
        ({}, Schedule(every_s=60, missed="run_all", overlap="kill"), "missed"),
    ],
)
async def test_what_can_never_run_is_refused(
    house: House, task: dict[str, Any], schedule: Schedule, where: str
) -> None:
    with pytest.raises(Rejected) as caught:
        await house.add("bad", schedule, **task)
    assert (caught.value.code, caught.value.fields["where"]) == ("bad_schedule", where)
    assert (await house.views.list(PERSON, ScheduleList())).schedules == []


async def test_there_are_so_many_and_no_more(house: House) -> None:
    house.world.set("schedules", count_max=2)
    for name in ("a", "b"):
        await house.add(name, EVERY)
    with pytest.raises(Rejected) as caught:
        await house.add("c", EVERY)
    assert caught.value.code == "too_many"
    page = await house.views.list(PERSON, ScheduleList(limit=1))
    assert ([view.name for view in page.schedules], page.next) == (["a"], "a")
    page = await house.views.list(PERSON, ScheduleList(limit=1, after="a"))
    assert ([view.name for view in page.schedules], page.next) == (["b"], None)


async def test_the_log_holds_what_a_schedule_is_and_not_each_of_its_runs(house: House) -> None:
    await house.add("tick", EVERY)
    for _ in range(5):
        await house.after(1)
        await house.finish()
    ((entries,),) = await house.world.rows("SELECT count(*) FROM change WHERE collection = 'schedule'")
    assert entries == 1
