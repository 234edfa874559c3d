"""What is taken, what is refused, and that a refusal leaves nothing."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from omnid.errors import OmnidError, Rejected, Retryable
from omnid.flow import intake
from omnid.flow.caller import Caller
from omnid.flow.diskroom import DiskRoom
from omnid.flow.intake import TITLE_CHARS_MAX, permit_id, title_of
from omnid.model import ReplyTo, Submit, Work
from omnid.settings import Destination
from tests.fakes.clock import FakeClock
from tests.fakes.world import AGENT, World

pytestmark = pytest.mark.anyio


async def refused(world: World, code: str, *asked: Submit, caller: Caller | None = None) -> OmnidError:
    """Submits what must be refused, and sees that nothing of it stays."""
    before = await world.rows("SELECT count(*) FROM change")
    with pytest.raises(OmnidError) as caught:
        await world.submit(*asked, **({} if caller is None else {"caller": caller}))
    assert caught.value.code == code
    assert await world.rows("SELECT count(*) FROM change") == before
    return caught.value


async def test_a_task_is_kept_with_all_that_was_asked(world: World, clock: FakeClock) -> None:
    asked: dict[str, Any] = {
        "stdin": "text",
        "executor": "safe",
        "priority": 7,
        "key": "k",
        "lane": "x",
        "timeout_s": 5.0,
        "deadline_ms": clock.now_ms + 60_000,
        "attempts_max": 4,
        "backoff_s": 0.5,
        "check": ("test", "-e", "x"),
        "labels": ("a", "b"),
        "kind": "programming",
        "assignee": "eve",
        "cwd": "/",
        "env": ("TERM",),
        "reply_to": ReplyTo(channel="chat", target="7"),
        "workspace": "none",
        "only": "07:00-07:00",
        "cost_max_usd": 0.5,
    }
    world.context.config = structs.replace(
        world.context.config, destination=(Destination(name="chat", kind="command"),)
    )
    task = await world.add("make", "all", **asked)
    for name, value in asked.items():
        held = task if hasattr(task, name) else task.work
        stored = structs.asdict(value) if isinstance(value, ReplyTo) else value
        assert getattr(held, name) == stored, name
    assert (task.work.argv, task.name, task.origin, task.state) == (("make", "all"), "t1", "user", "idle")
    assert task.created_at_ms == clock.now_ms


async def test_the_same_key_with_the_same_body_is_the_same_task(world: World, clock: FakeClock) -> None:
    params = Submit(argv=("pay",), key="k", deadline_ms=clock.now_ms + 1_000)
    (first,) = await world.submit(params)
    clock.now_ms += 2_000
    (again,) = await world.submit(params)
    assert (again.id, again.created) == (first.id, False)
    error = await refused(world, "key_reused", Submit(argv=("pay", "more"), key="k"))
    assert "t1" in error.what
    (other,) = await world.submit(Submit(argv=("pay",), key="k", origin="elsewhere"))
    assert other.created, "keys count within an origin"


async def test_a_key_lives_as_long_as_its_task(world: World) -> None:
    task = await world.add("x", key="k")
    await world.control(task.name, "delete")
    assert (await world.submit(Submit(argv=("y",), key="k")))[0].created


async def test_names_count_within_an_origin_and_are_never_given_again(world: World) -> None:
    agent = Caller("agent", "claude")
    assert (await world.add("a")).name == "t1"
    assert (await world.add("b", caller=agent)).name == "claude/t1"
    assert (await world.add("c")).name == "t2"
    await world.control("t2", "delete")
    await world.restart()
    assert (await world.add("d")).name == "t3"


async def test_a_refused_task_takes_no_number(world: World) -> None:
    await world.add("a")
    await refused(world, "batch_task", Submit(argv=("b",)), Submit(argv=("c",), after=("t99",)))
    assert (await world.add("d")).name == "t2"


async def test_an_agent_submits_in_its_own_origin_only(world: World) -> None:
    assert (await world.add("x", caller=AGENT, origin="user")).origin == "claude"
    assert (await world.add("x", origin="sync")).origin == "sync"


@pytest.mark.parametrize(
    ("code", "params"),
    [
        ("nothing_to_do", Submit()),
        ("nothing_to_do", Submit(argv=("x",), prompt="y")),
        ("kind_missing", Submit(prompt="fix it")),
        ("unknown_executor", Submit(argv=("x",), executor="comand")),
        ("input_too_large", Submit(argv=("x", "y" * (1 << 20)))),
        ("too_many", Submit(argv=("x",), labels=tuple(f"l{n}" for n in range(33)))),
        ("too_many", Submit(argv=("x",), after=("t1",) * 257)),
        ("unknown_task", Submit(argv=("x",), after=("t9",))),
        ("deadline_passed", Submit(argv=("x",), deadline_ms=1)),
    ],
)
async def test_what_can_not_be_done_is_refused(world: World, code: str, params: Submit) -> None:
    await refused(world, code, params)
    error = await refused(world, "batch_task", Submit(argv=("fine",)), params)
    assert error.what.startswith("tasks[1]: ")
    assert error.do.endswith("Nothing of the batch was taken.")


async def test_only_so_many_tasks_are_taken_at_once(world: World) -> None:
    world.set("limits", batch_tasks_max=2)
    error = await refused(world, "too_many", *[Submit(argv=("x",))] * 3)
    assert "limits.batch_tasks_max" in error.why


async def test_only_so_many_tasks_may_wait_and_ended_ones_do_not_count(world: World) -> None:
    world.set("limits", waiting_tasks_max=2)
    await world.add("a")
    await world.add("b")
    with pytest.raises(Retryable) as caught:
        await world.add("c")
    assert caught.value.code == "too_many_waiting"
    (command, _) = await world.claim()
    await world.finish(command, "success")
    await world.add("c")


async def test_a_batch_may_name_its_own_tasks_in_any_order(world: World) -> None:
    done = await world.submit(
        Submit(argv=("last",), after=("mid", "first")),
        Submit(argv=("mid",), ref="mid", after=("first",)),
        Submit(argv=("first",), ref="first"),
    )
    assert [one.state for one in done] == ["waiting", "waiting", "idle"]
    assert (await world.task(done[0].id)).work.after == (done[1].id, done[2].id)
    order: list[str] = []
    for _ in done:
        (command,) = await world.claim()
        order.append(command.task_id)
        await world.finish(command, "success")
    assert order == [one.id for one in reversed(done)]


@pytest.mark.parametrize("after", [("a",), ("b",), ("c", "b")])
async def test_tasks_that_would_wait_for_each_other_are_refused(world: World, after: tuple[str, ...]) -> None:
    error = await refused(
        world,
        "dependency_cycle",
        Submit(argv=("x",), ref="a", after=after),
        Submit(argv=("y",), ref="b", after=("a",)),
        Submit(argv=("z",), ref="c", after=("b",)),
    )
    assert " -> " in error.what


async def test_a_ref_names_one_task(world: World) -> None:
    await refused(world, "duplicate_ref", Submit(argv=("x",), ref="a"), Submit(argv=("y",), ref="a"))


async def test_a_ref_to_a_task_that_its_key_has_made_before_is_that_task(world: World) -> None:
    before = Submit(argv=("x",), ref="a", key="k")
    (first,) = await world.submit(before)
    again, after = await world.submit(before, Submit(argv=("y",), after=("a",)))
    assert (again.id, again.created) == (first.id, False)
    assert (await world.task(after.id)).work.after == (first.id,)
    (command,) = await world.claim()
    await world.finish(command, "success")
    assert (await world.task(after.id)).state == "idle"
    _, late = await world.submit(before, Submit(argv=("z",), after=("a",)))
    assert late.state == "idle", "what comes after a completed task waits for nothing"


async def test_a_task_after_one_that_failed_is_refused(world: World) -> None:
    await world.add("x", key="k")
    await world.control("t1", "cancel")
    error = await refused(world, "dependency_failed", Submit(argv=("y",), after=("t1",)))
    assert "t1" in error.what
    assert "cancelled" in error.what


async def test_a_task_may_come_after_one_of_another_origin_by_any_of_its_names(world: World) -> None:
    before = await world.add("x", caller=AGENT, origin=None)
    await world.control("claude/t1", "approve")
    for ref in ("claude/t1", before.id, before.id.upper()):
        assert (await world.add("y", after=(ref,))).work.after == (before.id,)


async def test_the_same_task_twice_in_after_counts_once(world: World) -> None:
    await world.add("x")
    task = await world.add("y", after=("t1", "t1"))
    assert len(task.work.after) == 1


@given(st.text(max_size=600))
def test_a_title_is_one_line_within_its_limit(text: str) -> None:
    title = title_of(Work(argv=("x", text)))
    assert len(title) <= TITLE_CHARS_MAX
    assert title.splitlines() in ([title], [])
    assert title.split()[0] == "x"


def test_titles_say_what_is_asked_for() -> None:
    assert title_of(Work(server="notes", tool="add")) == "notes.add"
    assert title_of(Work(tool="add")) == "add"
    assert title_of(Work(prompt="mend\nit")) == "mend it"


EXACT = Work(argv=("rm", "x"), cwd="/a", env=("A",), check=("true",), stdin="y", server="s", tool="t", prompt="p")


@pytest.mark.parametrize(
    "change",
    [
        {"argv": ("rm", "x", "y")},
        {"argv": ("rm x",)},
        {"cwd": "/b"},
        {"cwd": None},
        {"env": ("B",)},
        {"check": None},
        {"stdin": "z"},
        {"server": "r"},
        {"tool": "u"},
        {"arguments": {}},
        {"prompt": "q"},
    ],
)
def test_a_permit_covers_exactly_one_work(change: dict[str, Any]) -> None:
    assert permit_id("o", "e", msgspec.structs.replace(EXACT, **change)) != permit_id("o", "e", EXACT)
    assert permit_id("o2", "e", EXACT) != permit_id("o", "e", EXACT) != permit_id("o", "e2", EXACT)


def test_what_does_not_run_is_no_part_of_a_permit() -> None:
    other = msgspec.structs.replace(EXACT, timeout_s=1.0, attempts_max=2, backoff_s=1.0, reply_to={}, after=("x",))
    assert permit_id("o", "e", other) == permit_id("o", "e", EXACT)


def test_a_low_disk_refuses_new_tasks_and_is_looked_at_once_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    free = [100]
    monkeypatch.setattr("omnid.platform.free_bytes", lambda path: free[0])
    room = DiskRoom(str(tmp_path), clock)
    with pytest.raises(Retryable) as caught:
        room.check(101)
    assert caught.value.code == "disk_low"
    free[0] = 101
    with pytest.raises(Retryable):
        room.check(101)
    clock.now_s += 1.0
    room.check(101)


async def test_the_limits_are_those_of_the_config_at_the_time(world: World) -> None:
    world.set("limits", input_bytes_max=1024)
    with pytest.raises(Rejected) as caught:
        intake.plan(world.context, Caller(), [Submit(argv=("x", "y" * 2000))])
    assert "1024" in caught.value.what


async def test_an_answer_goes_only_where_the_config_says(world: World) -> None:
    async def refused(**reply_to: str) -> Rejected:
        with pytest.raises(Rejected) as caught:
            await world.add("x", reply_to=ReplyTo(**reply_to))
        return caught.value

    assert "there is none yet" in (await refused(channel="chat")).why
    chat, hook = Destination(name="chat", kind="openclaw"), Destination(name="hook", kind="webhook")
    world.context.config = structs.replace(world.context.config, destination=(chat, hook))
    error = await refused(channel="chta", target="7")
    assert error.code == "unknown_channel"
    assert "did you mean chat?" in error.what
    assert "chat, hook" in error.why
    assert (await refused(channel="chat")).code == "no_target"
    for reply_to in ({"channel": "chat", "target": "7"}, {"channel": "chat", "session": "s"}, {"channel": "hook"}):
        await world.add("x", reply_to=ReplyTo(**reply_to))
    assert await world.rows("SELECT count(*) FROM task") == [(3,)]
