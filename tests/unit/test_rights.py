"""What the config lets an origin do: decided purely, and held at every operation."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnid.api.methods import METHODS
from omnid.channels import whole
from omnid.clock import is_uuid
from omnid.errors import OmnidError, Retryable
from omnid.flow.caller import Caller
from omnid.flow.control import Cancelling
from omnid.flow.failover import Failover
from omnid.flow.schedules import Schedules
from omnid.model import Gate, Schedule, Submit, Task, Work
from omnid.route.rights import Rights, rights_of
from omnid.settings import Channel, Origin, Rule
from tests.fakes.calls import Calls, code
from tests.fakes.clock import FakeClock
from tests.fakes.executor import InProcessExecutor
from tests.fakes.purse import Purse
from tests.fakes.world import AGENT, PERSON, World, nothing

CI = Caller("agent", "ci")
OTHER = Caller("agent", "other")
NAMES = st.sampled_from(["ci", "other", "user", "*", "x"])
WORDS = st.sets(st.sampled_from(["a", "b", "c"])).map(tuple)
SECTIONS = st.lists(
    st.builds(Origin, name=NAMES, executors=st.none() | WORDS, labels=st.none() | WORDS, complete=st.booleans()),
    max_size=4,
    unique_by=lambda section: section.name,
)
pytestmark = pytest.mark.anyio


@pytest.fixture
def call(world: World) -> Calls:
    return Calls(world)


def sections(world: World, *given: Origin) -> None:
    world.context.config = msgspec.structs.replace(world.context.config, origin=given)


@given(SECTIONS, NAMES, NAMES, WORDS, st.sampled_from(["a", "b", "c", "d"]))
def test_a_section_of_its_own_decides_else_that_of_all_others(
    given: list[Origin], name: str, owner: str, labels: tuple[str, ...], executor: str
) -> None:
    named = {section.name: section for section in given}
    section = None if name == "user" else named.get(name, named.get("*"))
    rights = rights_of(given, name)
    assert rights.sees(name, ()), "its own it always sees"
    assert rights.sees(owner, labels) is (
        section is None or section.labels is None or owner == name or bool({*labels} & {*section.labels})
    )
    assert rights.opens(executor) is (section is None or section.executors is None or executor in section.executors)
    assert rights.complete is (section is not None and section.complete)
    if section is None:
        assert rights == Rights(name), "an unknown origin has no bounds"


@given(SECTIONS, NAMES, NAMES, NAMES, WORDS, st.sampled_from(["a", "b", "c", "d"]))
def test_inside_of_another_origin_nothing_is_won(
    given: list[Origin], name: str, above: str, owner: str, labels: tuple[str, ...], executor: str
) -> None:
    inner, outer = rights_of(given, name), rights_of(given, above)
    both = inner.within(outer)
    assert both.origin == name
    assert both.opens(executor) is (inner.opens(executor) and outer.opens(executor))
    assert both.complete is (inner.complete and outer.complete)
    assert both.sees(name), "its own it sees still"
    if both.sees(owner, labels):
        assert inner.sees(owner, labels)
        assert owner == name or outer.sees(owner, labels)


@given(WORDS, st.sampled_from(["a", "b", "command", "model", "model-offline"]), st.booleans())
def test_a_check_is_a_command_and_prompts_that_do_not_wait_are_prompts(
    open_to: tuple[str, ...], executor: str, check: bool
) -> None:
    rights = Rights("ci", frozenset((*open_to, "model")))
    work = Work(prompt="x", check=("x",) if check else None)
    known = executor in (*open_to, "model", "model-offline")
    assert rights.needs(executor, work) == (executor if not known else "command" if check else None)


async def test_status_counts_what_runs_of_the_own_origin_alone(call: Calls) -> None:
    sections(call.world, Origin(name="ci", labels=()))
    call.world.set("agents", allow=("command", "safe"))
    await call("task.submit", OTHER, argv=("x",), executor="safe")
    (command,) = await call.world.claim()
    call.world.context.take_on(command.attempt_id, command.executor)

    async def seen(caller: Caller) -> tuple[int, dict[str, int]]:
        status = await call("status", caller)
        return status.running, {one.name: one.running for one in status.executors}

    nothing_runs = dict.fromkeys(call.world.context.executors, 0)
    assert await seen(OTHER) == (1, {**nothing_runs, "safe": 1})
    assert await seen(CI) == (0, nothing_runs)
    await call("task.submit", CI, argv=("x",), executor="command")
    (command,) = await call.world.claim()
    call.world.context.take_on(command.attempt_id, command.executor)
    assert await seen(CI) == (1, {**nothing_runs, "command": 1})
    assert await seen(OTHER) == (2, {**nothing_runs, "safe": 1, "command": 1})


async def test_an_executor_that_is_not_open_is_refused_however_it_is_asked_for(call: Calls) -> None:
    world = call.world
    sections(world, Origin(name="ci", executors=("safe",)))
    for asked in (
        {"argv": ("x",), "executor": "command"},
        {"argv": ("x",)},
        {"argv": ("x",), "executor": "safe", "check": ("x",)},
    ):
        for method, params in (("task.submit", asked), ("task.submit_batch", {"tasks": [Submit(**asked)]})):
            with pytest.raises(OmnidError) as caught:
                await call(method, CI, **params)
            assert "ci may not use the executor command" in caught.value.what
        assert await code(call("task.submit", CI, **asked)) == "executor_closed"
    assert await code(call("route.explain", CI, argv=("x",))) == "executor_closed"
    begun = call.api.begin(CI, METHODS["task.submit"], Submit(argv=("x",)), msgspec.json.encode, lambda _: None)
    assert not begun, "the short way in is no way around"
    assert (await call("status", CI)).tasks == {}
    for executor in ("command", "safe", "*"):
        await call("gate.pause", executor=executor)
    assert [one.subject for one in (await call("status", CI)).gates] == ["*", "safe"]
    assert [one.name for one in (await call("status", CI)).executors] == ["safe"]
    assert (await call("task.submit", CI, argv=("x",), executor="safe")).created
    assert (await call("task.submit", OTHER, argv=("x",))).created


async def test_what_it_may_use_is_looked_at_again_when_a_task_is_run_again(call: Calls) -> None:
    task = await call.world.add("x", caller=CI)
    await call("task.control", CI, task=task.id, action="cancel")
    sections(call.world, Origin(name="ci", executors=("safe",)))
    assert await code(call("task.control", CI, task=task.id, action="retry")) == "executor_closed"
    assert (await call("task.control", task=task.id, action="retry")).task.state == "waiting", "a person decides"


async def test_a_rule_goes_past_what_is_not_open_and_says_so(call: Calls) -> None:
    world = call.world
    world.context.config = msgspec.structs.replace(
        world.context.config,
        rule=(Rule(name="both", executor=("command", "safe")),),
        origin=(Origin(name="ci", executors=("safe",)),),
    )
    world.context.take_executors(world.context.executors)
    done = await call("task.submit", CI, argv=("x",))
    assert "command isn't open to ci" in (await call("task.why", CI, task=done.id)).text
    assert (await world.task(done.id)).executor == "safe"
    assert (await world.task((await call("task.submit", OTHER, argv=("x",))).id)).executor == "command"


@pytest.mark.parametrize("origin", ["ci", "other"])
async def test_no_failover_leads_to_what_is_not_open(world: World, clock: FakeClock, origin: str) -> None:
    world.context.config = msgspec.structs.replace(
        world.context.config,
        rule=(Rule(name="both", executor=("safe", "command")),),
        origin=(Origin(name="ci", executors=("safe",)),),
    )
    world.set("agents", allow=("safe", "command"))
    world.context.take_executors(world.context.executors)
    task = await world.add("x", caller=Caller("agent", origin, rights=rights_of(world.context.config.origin, origin)))
    assert task.executor == "safe"
    gate = Gate("executor:safe", "executor", "safe", clock.now_ms, None)
    world.context.shut = lambda: {"safe": gate}
    moved = await Failover(world.context, lambda: {"command": 1}).move_some()
    assert moved == ([] if origin == "ci" else [task.id])


async def hidden(world: World) -> Task:
    """Gives a task that another origin runs, with all that could tell of it."""
    world.set("agents", allow=("safe",))
    task = await world.add("secret-words", caller=OTHER, labels=("secret-label",), lane="shared", executor="safe")
    (command,) = await world.claim()
    assert command.task_id == task.id
    world.set("agents", allow=())
    await world.add("secret-words", caller=OTHER, labels=("secret-label",))
    return task


def asked_about(ref: str) -> list[tuple[str, dict[str, Any]]]:
    """Gives every way in which an agent can name a task."""
    return [
        ("task.get", {"task": ref}),
        ("task.get", {"task": ref, "wait_s": 0.01}),
        ("task.log", {"task": ref}),
        ("task.why", {"task": ref}),
        ("task.receipt", {"task": ref}),
        ("operations", {"task": ref}),
        ("task.control", {"task": ref, "action": "cancel"}),
        ("task.control", {"task": ref, "action": "reply", "text": "ok 123"}),
        ("task.submit", {"argv": ("x",), "executor": "safe", "after": (ref,)}),
    ]


async def told(call: Calls, caller: Caller, method: str, params: dict[str, Any]) -> dict[str, Any]:
    with pytest.raises(OmnidError) as caught:
        await call(method, caller, **params)
    return caught.value.as_dict()


@pytest.mark.parametrize("labels", [(), ("public",)])
async def test_a_task_out_of_sight_is_exactly_like_one_that_is_not_there(call: Calls, labels: tuple[str, ...]) -> None:
    task = await hidden(call.world)
    sections(call.world, Origin(name="ci", labels=labels))
    unknown = "01931e3c-0000-7000-8000-00000000dead"
    assert is_uuid(task.id)
    for there, not_there in ((task.id, unknown), ("other/t1", "other/t999"), ("t1", "t999")):
        ways = zip(asked_about(there), asked_about(not_there), strict=True)
        for (method, params), (_, like) in ways:
            said = await told(call, CI, method, params)
            expected = await told(call, CI, method, like)
            assert said == {name: text.replace(not_there, there) for name, text in expected.items()}, method
            assert said["code"] == "unknown_task"
    assert (await call.world.task(task.id)).state == "executing", "nothing was changed"


async def test_what_is_wrong_with_executors_that_are_not_open_is_not_told(call: Calls) -> None:
    world = call.world
    await world.gates.executor_down("safe", Retryable("secret_missing", reference="env:KEY", detail="it isn't set"))
    sections(world, Origin(name="ci", executors=("command",)), Origin(name="free", executors=("safe",)))
    assert (await call("status", CI)).problems == []
    assert [problem.code for problem in (await call("status", Caller("agent", "free"))).problems] == ["secret_missing"]


async def test_nothing_that_an_agent_can_ask_tells_of_tasks_out_of_sight(call: Calls) -> None:
    world = call.world
    task = await hidden(world)
    sections(world, Origin(name="ci", labels=()))
    mine = await call("task.submit", CI, argv=("mine",), executor="safe", lane="shared")
    world.set("agents", allow=("safe",))
    free = await call("task.submit", CI, argv=("mine",), executor="safe", lane="shared")
    answers = [
        await call("status", CI),
        await call("task.list", CI),
        await call("task.list", CI, states=("executing",)),
        await call("task.list", CI, labels=("secret-label",)),
        await call("task.list", CI, text="secret"),
        await call("task.list", CI, origin="other"),
        await call("task.list", CI, inbox=True),
        await call("operations", CI),
        *[await call(method, CI, task=id) for id in (mine.id, free.id) for method in ("task.get", "task.why")],
        *[await call("task.receipt", CI, task=id) for id in (mine.id, free.id)],
    ]
    text = msgspec.json.encode(answers).decode()
    for secret in (task.id, "other/t", "secret-words", "secret-label"):
        assert secret not in text
    assert "where another task runs" in answers[-3].text
    assert answers[0].tasks == {"waiting": 1, "idle": 1}
    assert answers[0].needs_you_total == 1
    assert [one.name for one in answers[1].tasks] == ["ci/t2", "ci/t1"]
    assert {one.collection for one in answers[7].operations} == {"task"}
    for method in ("away", "spend"):
        assert await code(call(method, CI)) == "shows_all"
        await call(method, OTHER)
    # Without bounds all this would show: the test looks where something is to be seen.
    everything = [await call("status", AGENT), await call("task.list", AGENT), await call("task.why", task=free.id)]
    assert msgspec.json.encode(everything).decode().count("secret-words") > 1
    assert "where other/t1 runs" in everything[-1].text


async def test_labels_show_tasks_of_others_to_read_and_never_to_change(call: Calls) -> None:
    world = call.world
    shared = await world.add("x", caller=OTHER, labels=("public", "y"))
    await world.add("x", caller=OTHER, labels=("y",))
    await world.add("x", caller=Caller("agent", "third"))
    sections(world, Origin(name="ci", labels=("public",)))
    assert [one.id for one in (await call("task.list", CI)).tasks] == [shared.id]
    assert (await call("task.get", CI, task="other/t1")).task.id == shared.id
    assert (await call("task.get", CI, task="t1")).task.id == shared.id, "it is the only t1 that it sees"
    assert await code(call("task.control", CI, task=shared.id, action="cancel")) == "other_origin"
    assert await code(call("operations", CI, task=shared.id)) == "other_origin"
    assert (await call("task.submit", CI, argv=("x",), after=(shared.id,))).created


async def test_an_agent_reads_the_log_of_its_own_tasks(call: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    world = call.world
    for caller in (CI, OTHER, CI, PERSON):
        await world.add("x", caller=caller, executor="safe")
    whole = (await call("operations")).operations
    mine = (await call("operations", CI)).operations
    assert [one.fields["number"] for one in mine] == [1, 2]
    first = await call("operations", CI, limit=1)
    rest = await call("operations", CI, since=first.next)
    assert first.operations + rest.operations == mine
    assert (await call("operations", CI, since=mine[-1].seq)).operations == []
    monkeypatch.setattr("omnid.api.journal_views.SCAN_MAX", 2)
    monkeypatch.setattr("omnid.api.journal_views.SCAN_PAGE", 2)
    found, since = [], 0
    while since is not None:
        page = await call("operations", CI, since=since)
        assert page.next is None or page.next == since + 2
        found, since = found + page.operations, page.next
    assert found == mine
    assert len(whole) > len(mine)


async def test_only_with_the_right_an_agent_ends_a_task_of_its_own_by_hand(call: Calls) -> None:
    mine, theirs = await call.world.add("x", caller=CI), await call.world.add("x", caller=OTHER)
    assert await code(call("task.control", CI, task=mine.id, action="complete")) == "not_allowed"
    sections(call.world, Origin(name="ci", complete=True))
    assert await code(call("task.control", CI, task=theirs.id, action="complete")) == "other_origin"
    assert await code(call("task.control", CI, task=mine.id, action="delete")) == "not_allowed"
    done = await call("task.control", CI, task=mine.id, action="complete", output="by hand")
    assert done.task.state == "completed"


async def test_the_names_of_earlier_tasks_are_not_told_to_who_does_not_see_them(world: World) -> None:
    call = Calls(world)
    world.context.take_executors({**world.context.executors, "claude-code": InProcessExecutor("claude-code", nothing)})
    world.set("budget", repeats_max=1)
    await call("task.submit", OTHER, argv=("x",), executor="claude-code")
    sections(world, Origin(name="ci", labels=()))
    refused = await told(call, CI, "task.submit", {"argv": ("x",), "executor": "claude-code"})
    assert refused["code"] == "loop"
    assert "other/t1" not in str(refused)
    assert "other/t1" in str(await told(call, AGENT, "task.submit", {"argv": ("x",), "executor": "claude-code"}))


@pytest.fixture
def purse(tmp_path: Any, clock: FakeClock) -> Any:
    purse = Purse(tmp_path, clock)
    purse.set("agents", allow=("codex", "command"))
    yield purse
    purse.close()


async def test_a_cap_of_an_origin_makes_its_tasks_wait_and_no_others(purse: Purse) -> None:
    purse.cap(origins=(Origin(name="ci", day_usd=3),))
    tasks = [await purse.add("x", caller=caller, executor="codex") for caller in (CI, CI, OTHER)]
    commands = await purse.claim()
    assert [command.task_id for command in commands] == [tasks[0].id, tasks[2].id]
    waits = await purse.task(tasks[1].id)
    assert (waits.state, waits.reason, purse.gates.all()) == ("waiting", "budget", [])
    why = (await Calls(purse)("task.why", task=waits.id)).text
    assert "origin.ci.day_usd" in why
    await purse.finish(commands[0], "success", cost_usd=0.5)
    assert [command.task_id for command in await purse.claim()] == [tasks[1].id], "what was given back lets it go on"
    spent = await Calls(purse)("spend", by="origin")
    assert [(row.name, row.amounts.spent_usd, row.amounts.reserved_usd) for row in spent.rows] == [
        ("ci", 0.5, 2.0),
        ("other", 0.0, 2.0),
    ]
    assert [(cap.name, cap.scope) for cap in spent.caps] == [("origin.ci.day_usd", "origin:ci")]
    purse.cap(origins=(Origin(name="ci", day_usd=3, labels=()),))
    today = (await Calls(purse)("status", CI)).today
    assert (today.amounts.spent_usd, today.amounts.reserved_usd, today.limit_usd) == (0.5, 2.0, 3.0), "its own alone"


async def test_what_is_said_for_all_others_holds_for_each_by_itself_and_never_for_people(purse: Purse) -> None:
    purse.cap(origins=(Origin(name="*", day_usd=3),))
    callers = (CI, CI, OTHER, OTHER, PERSON, PERSON)
    tasks = [await purse.add(f"x{n}", caller=caller, executor="codex") for n, caller in enumerate(callers)]
    started = [command.task_id for command in await purse.claim()]
    assert sorted(started) == sorted([tasks[0].id, tasks[2].id, tasks[4].id, tasks[5].id])


async def test_schedules_out_of_sight_are_not_there_and_what_they_run_has_their_origin_s_rights(
    call: Calls, clock: FakeClock
) -> None:
    world = call.world
    every = Schedule(every_s=60)
    await call("schedule.add", OTHER, name="hidden", schedule=every, task=Submit(argv=("secret-words",)))
    await call("schedule.add", OTHER, name="open", schedule=every, task=Submit(argv=("x",), labels=("public",)))
    mine = await call("schedule.add", CI, name="mine", schedule=every, task=Submit(argv=("x",), executor="command"))
    sections(world, Origin(name="ci", labels=("public",), executors=("safe",)))
    assert [one.name for one in (await call("schedule.list", CI)).schedules] == ["ci/mine", "other/open"]
    first = await call("schedule.list", CI, limit=1)
    assert [one.name for one in (await call("schedule.list", CI, limit=1, after=first.next)).schedules] == [
        "other/open"
    ]
    assert len((await call("schedule.list", OTHER)).schedules) == 3
    for method, params in (("show", {}), ("run", {}), ("switch", {"enabled": False}), ("remove", {})):
        said = await told(call, CI, f"schedule.{method}", {"name": "other/hidden", **params})
        like = await told(call, CI, f"schedule.{method}", {"name": "other/nothing", **params})
        assert said == {name: text.replace("nothing", "hidden") for name, text in like.items()}
        assert said["code"] == "unknown_schedule"
    assert await code(call("schedule.remove", CI, name="other/open")) == "other_schedule"
    assert await code(call("schedule.run", CI, name="other/open")) == "executor_closed", "in its own name and rights"
    clock.now_ms += 60_000
    await Schedules(world.context, Cancelling(world.context)).work_off()
    refused = (await call("schedule.show", CI, name=mine.name)).problem
    assert refused is not None
    assert refused.code == "executor_closed"
    assert (await call("schedule.show", OTHER, name="hidden")).problem is None


async def test_where_keys_lie_is_for_people(call: Calls) -> None:
    channel = Channel(
        name="lab", base_url="http://127.0.0.1:9/v1", models=("m",), key="env:K", backup_keys=("file:/k",)
    )
    world = call.world
    world.context.config = msgspec.structs.replace(world.context.config, channel=(whole(channel),))
    (shown,) = (await call("mode.show")).channels
    assert [key.reference for key in shown.keys] == ["env:K", "file:/k"]
    (seen,) = (await call("mode.show", CI)).channels
    assert [key.reference for key in seen.keys] == [None, None]
    assert msgspec.structs.replace(seen, keys=shown.keys) == shown
