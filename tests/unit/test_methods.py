"""The operations as clients see them: submit, get, search, control, why, gates, status, the past."""

import json
from functools import partial
from typing import Any

import msgspec
import pytest

from omnid.api import shapes
from omnid.api.methods import METHODS
from omnid.errors import Retryable
from omnid.flow.caller import Caller
from omnid.model import Problem, Submit
from omnid.store.interface import Trouble
from tests.fakes.calls import Calls, code
from tests.fakes.clock import FakeClock
from tests.fakes.world import AGENT, World

pytestmark = pytest.mark.anyio


@pytest.fixture
def call(world: World) -> Calls:
    return Calls(world)


@pytest.mark.parametrize("name", sorted(name for name, method in METHODS.items() if "agent" not in method.roles))
async def test_what_is_for_people_is_refused_to_agents(call: Calls, name: str) -> None:
    needed = {field.name: "t7" for field in msgspec.structs.fields(METHODS[name].params) if field.required}
    assert await code(call(name, AGENT, **needed)) == "not_allowed"


def test_agents_grant_themselves_nothing() -> None:
    assert {name for name, method in METHODS.items() if "agent" in method.roles} == {
        "task.submit",
        "task.submit_batch",
        "task.get",
        "task.list",
        "task.log",
        "task.control",
        "task.answer",
        "task.why",
        "task.receipt",
        "away",
        "route.explain",
        "schedule.add",
        "schedule.list",
        "schedule.show",
        "schedule.switch",
        "schedule.remove",
        "schedule.run",
        "mode.show",
        "outage.list",
        "operations",
        "status",
        "spend",
    }


async def test_a_submit_lets_the_dispatcher_look_and_a_time_wakes_the_timer(call: Calls, clock: FakeClock) -> None:
    context = call.world.context
    looks: list[bool] = []
    context.store.attend(lambda tx: looks.append(tx.stirred), lambda _: None, lambda: None)
    await call("task.submit", argv=("x",))
    assert looks == [True]
    assert not context.timer._event.is_set()
    await call("task.submit_batch", tasks=[Submit(argv=("x",)), Submit(argv=("y",), deadline_ms=clock.now_ms + 9)])
    assert context.timer._event.is_set()


async def test_a_batch_of_any_size_is_taken_whole(call: Calls) -> None:
    done = await call("task.submit_batch", tasks=[Submit(argv=("x",))] * 30)
    assert [one.name for one in done.tasks] == [f"t{n}" for n in range(1, 31)]
    assert await code(call("task.submit_batch", tasks=[Submit(argv=("x",)), Submit()])) == "batch_task"
    assert call.world.store.tally["idle"] == 30


async def test_a_disk_that_is_nearly_full_refuses_submits_only(call: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    await call("task.submit", argv=("x",))
    call.world.clock.now_s += 5
    monkeypatch.setattr("omnid.platform.free_bytes", lambda path: 1)
    assert await code(call("task.submit", argv=("x",))) == "disk_low"
    assert await code(call("task.submit_batch", tasks=[Submit(argv=("x",))])) == "disk_low"
    assert (await call("task.control", task="t1", action="pause")).task.reason == "paused"


async def test_get_shows_all_that_is_known(call: Calls, clock: FakeClock) -> None:
    world = call.world
    await world.add("first")
    await world.add("x", key="k", assignee="eve", after=("t1",), attempts_max=2, backoff_s=0)
    await world.finish((await world.claim())[0], "success")
    for outcome in ("failure", "success"):
        (command,) = await world.claim()
        await world.finish(command, outcome, output=outcome, cost_usd=0.5, value=[1], exit_code=3)
    view = await call("task.get", task="t2")
    assert (view.task.state, view.key, view.assignee, view.after) == ("completed", "k", "eve", ["t1"])
    assert [(one.number, one.outcome, one.output) for one in view.attempts] == [
        (1, "failure", "failure"),
        (2, "success", "success"),
    ]
    assert (view.attempts_total, view.attempts[0].exit_code, view.attempts[1].cost_usd) == (2, 3, 0.5)
    assert not view.timed_out
    assert view.work["argv"] == ("x",)
    assert (await call("task.get", task="t2", output=False)).attempts[0].output is None
    await world.control("t1", "delete")
    assert (await call("task.get", task="t2")).after == list((await world.task(view.task.id)).work.after)


async def test_search_fits_each_filter(call: Calls, clock: FakeClock) -> None:
    world = call.world
    await world.add("make", "all", labels=("a", "b"), lane="l")
    await world.add("make", "docs", labels=("b",), executor="safe")
    clock.now_ms += 1000
    await world.add("ls", origin="sync")
    await world.control("t2", "pause")
    for params, names in (
        ({}, ["sync/t1", "t2", "t1"]),
        ({"states": ("idle",)}, ["sync/t1", "t1"]),
        ({"states": ("idle", "waiting")}, ["sync/t1", "t2", "t1"]),
        ({"states": ("idle", "completed")}, ["sync/t1", "t1"]),
        ({"labels": ("b",)}, ["t2", "t1"]),
        ({"labels": ("b", "a")}, ["t1"]),
        ({"executor": "safe"}, ["t2"]),
        ({"origin": "sync"}, ["sync/t1"]),
        ({"lane": "l"}, ["t1"]),
        ({"since_ms": clock.now_ms}, ["sync/t1"]),
        ({"text": "MAKE"}, ["t2", "t1"]),
        ({"text": "make", "executor": "command"}, ["t1"]),
    ):
        page = await call("task.list", **params)
        assert ([one.name for one in page.tasks], page.next) == (names, None), params


@pytest.mark.parametrize("filters", [{}, {"states": ("idle",)}, {"labels": ("even",)}, {"states": ("idle", "waiting")}])
async def test_pages_follow_each_other_without_gap_or_repeat(call: Calls, filters: dict[str, Any]) -> None:
    for n in range(120):
        await call.world.add("x", labels=("even",) if n % 2 else ())
    for n in range(3, 60, 7):
        await call.world.control(f"t{n}", "pause")
    whole = [one.name for one in (await call("task.list", limit=500, **filters)).tasks]
    seen: list[str] = []
    cursor = None
    while True:
        page = await call("task.list", limit=7, cursor=cursor, **filters)
        seen += [one.name for one in page.tasks]
        if (cursor := page.next) is None:
            break
    assert seen == whole
    assert len(seen) > 50


async def test_a_search_that_finds_little_looks_at_so_much_and_leads_on(
    call: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omnid.api.views.SCAN_MAX", 50)
    for n in range(120):
        await call.world.add("needle" if n == 3 else "hay")
    pages: list[Any] = [await call("task.list", text="needle")]
    while pages[-1].next is not None:
        pages.append(await call("task.list", text="needle", cursor=pages[-1].next))
    assert len(pages) > 1
    assert [one.name for page in pages for one in page.tasks] == ["t4"]


@pytest.mark.parametrize(
    ("params", "expected"),
    [({"cursor": "x"}, "bad_cursor"), ({"cursor": "1" * 20}, "bad_cursor"), ({"states": ("odd",)}, "bad_request")],
)
async def test_a_search_that_can_not_be_read(call: Calls, params: dict[str, Any], expected: str) -> None:
    assert await code(call("task.list", **params)) == expected


async def test_a_line_shows_what_a_task_waits_for(call: Calls) -> None:
    world = call.world
    await world.add("x")
    await world.add("x", lane="l", priority=1)
    await world.add("x", lane="l")

    async def reasons() -> list[str | None]:
        return [one.reason for one in reversed((await call("task.list")).tasks)]

    assert await reasons() == ["slots", "slots", "lane"]
    await world.gates.executor_down("command", Retryable("executor_down", executor="command", detail="x"))
    assert await reasons() == ["executor"] * 3
    await world.gates.pause("*")
    assert await reasons() == ["paused"] * 3


async def test_control_answers_with_the_task_and_what_comes_next(call: Calls) -> None:
    world = call.world
    await world.add("x")
    done = await call("task.control", task="t1", action="pause")
    assert (done.task.state, done.why) == (
        "waiting",
        "t1 waits because it is paused; `omnictl resume t1` lets it go on.",
    )
    done = await call("task.control", task="t1", action="delete")
    assert (done.task.name, done.why) == ("t1", "t1 was deleted; nothing comes next.")
    assert world.context.timer._event.is_set()


async def test_control_ends_the_running_attempt_and_removes_what_it_left(call: Calls) -> None:
    world = call.world
    await world.add("x")
    (command,) = await world.claim()
    await call("task.control", task="t1", action="cancel")
    assert world.context.cancel_was_asked(command.attempt_id)
    await world.context.spool.append_log(command.attempt_id, "x")
    await world.finish(command, "cancelled")
    await call("task.control", task="t1", action="delete")
    assert await world.context.spool.attempts() == []


async def test_a_repeated_control_of_a_session_is_answered_and_not_done(call: Calls) -> None:
    await call.world.add("x")
    caller = Caller("person", "user", "s", "1")
    first = await call("task.control", caller, task="t1", action="delete")
    assert await call("task.control", caller, task="t1", action="delete") == first
    assert await code(call("task.control", caller, task="t1", action="pause")) == "busy_key"
    assert await code(call("task.control", task="t1", action="delete")) == "unknown_task"


async def test_gates_are_paused_and_resumed(call: Calls) -> None:
    gates = await call("gate.pause", executor="safe")
    assert [(one.id, one.cause, one.subject) for one in gates.gates] == [("paused:safe", "paused", "safe")]
    assert len((await call("gate.pause")).gates) == 2
    for method in ("gate.pause", "gate.resume"):
        assert await code(call(method, executor="nobody")) == "unknown_executor"
    await call("gate.resume", executor="safe")
    assert (await call("gate.resume")).gates == []


async def test_why_says_it_in_one_sentence_with_the_route(call: Calls) -> None:
    await call.world.add("x")
    await call.world.claim()
    answer = await call("task.why", task="t1")
    assert (answer.task, answer.state, answer.route["executor"]) == ("t1", "executing", "command")
    assert answer.text.startswith("t1 runs on command (attempt 1, started 0 s ago)")


async def test_status_counts_and_asks_for_a_person(call: Calls, clock: FakeClock) -> None:
    world = call.world
    await world.add("x", caller=AGENT)
    await world.add("y", not_before_ms=clock.now_ms + 7_000)
    await world.add("z")
    await world.finish((await world.claim())[0], "lost")
    status = await call("status")
    assert status.tasks == {"waiting": 2, "uncertain": 1}
    assert status.reasons == {"approval": 1, "not_before": 1}
    assert (status.next_wake_at_ms, status.clients, status.pid) == (clock.now_ms + 7_000, 2, 7)
    assert [(one.task, one.do) for one in status.needs_you] == [
        ("t2", "omnictl resolve t2 --done | --again | --fail"),
        ("claude/t1", "omnictl approve claude/t1 | deny claude/t1"),
    ]
    assert status.needs_you_total == 2
    assert [one.name for one in status.executors] == ["command", "safe"]


async def test_the_log_is_shown_from_any_point_whole_or_of_one_task(call: Calls, clock: FakeClock) -> None:
    world = call.world
    await world.add("x", "y" * 5000)
    await world.add("z")
    clock.now_ms += 1000
    (command, _) = await world.claim()
    await world.write(partial(_note, command.attempt_id))
    await world.finish(command, "success", output="o" * 3000)
    whole = (await call("operations")).operations
    assert [one.seq for one in whole] == list(range(1, len(whole) + 1))
    first = await call("operations", limit=2)
    assert (await call("operations", since=first.next)).operations == whole[2:]
    later = (await call("operations", since_ms=clock.now_ms)).operations
    assert later == [one for one in whole if one.at_ms >= clock.now_ms]
    mine = (await call("operations", task="t1")).operations
    assert {one.collection for one in mine} == {"task", "attempt", "note"}
    assert command.task_id in {one.id for one in mine}
    assert all(len(json.dumps(one.fields)) < 8_000 for one in whole), "long fields are cut"


def _note(attempt_id: str, tx: Any) -> None:
    from omnid.store import journal

    journal.add_note(tx, attempt_id, "seen", "x", notes_max=5)


async def test_replay_shows_the_state_as_it_was(call: Calls, clock: FakeClock) -> None:
    world = call.world
    await world.add("x")
    then_ms, then_seq = clock.now_ms, (await call("operations")).operations[-1].seq
    clock.now_ms += 1000
    await world.add("y")
    await world.finish((await world.claim(slots=1))[0], "success")
    for params in ({"until_ms": then_ms}, {"until_seq": then_seq}, {"until_ms": then_ms + 999}):
        then = await call("replay", **params)
        assert (then.until_seq, then.tasks, [one.name for one in then.list]) == (then_seq, {"idle": 1}, ["t1"])
        assert then.at_ms == then_ms
    now = await call("replay", until_ms=clock.now_ms)
    assert now.tasks == {"idle": 1, "completed": 1}
    nothing = await call("replay", until_ms=then_ms - 1)
    assert (nothing.until_seq, nothing.at_ms, nothing.tasks) == (0, None, {})
    assert await code(call("replay")) == "bad_request"


async def test_doctor_finds_a_table_that_was_edited(call: Calls) -> None:
    await call.world.add("x")
    assert (await call("doctor")).ok
    await call.world.write(lambda tx: tx.connection.execute("UPDATE task SET priority = 9"))
    (wrong,) = [one for one in (await call("doctor")).findings if not one.ok]
    assert wrong.name == "log"
    assert "priority" in wrong.detail
    await call.world.write(lambda tx: tx.connection.execute("UPDATE task SET priority = 0"))


async def test_doctor_finds_a_log_that_was_edited(call: Calls) -> None:
    await call.world.add("x")
    await call.world.control("t1", "pause")
    (body,) = (await call.world.rows("SELECT body FROM change WHERE seq = 1"))[0]
    for broken in ("{", body.replace('"command"', '"other"')):
        await call.world.write(partial(_rewrite, broken))
        assert not (await call("doctor")).ok
    await call.world.write(partial(_rewrite, body))
    assert (await call("doctor")).ok


def _rewrite(body: str, tx: Any) -> None:
    tx.connection.execute("UPDATE change SET body = ? WHERE seq = 1", (body,))


async def test_doctor_names_what_is_down_full_or_misconfigured(call: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    async def probe() -> None:
        raise Retryable("executor_down", executor="safe", detail="gone")

    monkeypatch.setattr(call.world.context.executors["safe"], "probe", probe)
    monkeypatch.setattr("omnid.platform.free_bytes", lambda path: 7)
    problem = Problem.make("config_unknown_key", key="x", hint="")
    monkeypatch.setattr(call.host, "config_problems", lambda: [problem])
    wrong = {one.name: one.detail for one in (await call("doctor")).findings if not one.ok}
    assert set(wrong) == {"disk", "config", "executor safe"}
    assert "gone" in wrong["executor safe"]
    assert problem.what in wrong["config"]


async def test_status_names_what_a_person_must_mend(call: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    world = call.world
    assert (await call("status")).problems == []
    await world.gates.executor_down("safe", Retryable("secret_missing", reference="env:KEY", detail="it is not set"))
    await world.gates.executor_down("command", Retryable("executor_down", executor="command", detail="gone"))
    monkeypatch.setattr("omnid.platform.free_bytes", lambda path: 7)
    assert [one.code for one in (await call("status")).problems] == ["disk_low", "secret_missing"]
    world.store.trouble = Trouble(world.clock.monotonic_s(), Problem.make("disk_full", path="/", detail="x"))
    assert [one.code for one in (await call("status")).problems] == ["disk_full", "secret_missing"]
    await world.add("x", executor="safe")
    world.context.executors["other"] = world.context.executors["safe"]
    assert "needs a key" in (await call("task.why", task="t1")).text
    world.clock.now_ms += 61_000
    assert "disk_full" not in [one.code for one in (await call("status")).problems], "nobody has tried for a while"

    world.context.damage.append(Problem.make("database_damaged", table="task", detail="row 7"))
    assert [one.code for one in (await call("status")).problems] == ["disk_low", "database_damaged", "secret_missing"]
    world.context.damage.clear()

    def gone(path: str) -> int:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("omnid.platform.free_bytes", gone)
    assert [one.code for one in (await call("status")).problems] == ["state_unwritable", "secret_missing"]
    assert await code(call("task.submit", argv=("x",))) == "state_unwritable"


async def test_the_config_is_shown_checked_and_taken_over(call: Calls) -> None:
    assert (await call("config.show")).rows == [shapes.ConfigRow("daemon.slots_max", 4, "default")]
    assert (await call("config.check")).problems == []
    assert (await call("config.reload")).reloaded
    assert await call("daemon.stop") == shapes.Stopping(7, 0)
    assert call.host.stopped
