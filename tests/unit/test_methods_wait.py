"""The operations that wait: for the end of a task, and for more of its output."""

from functools import partial
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnid.api import shapes
from omnid.api.journal_views import decode_piece
from omnid.errors import Retryable
from tests.fakes.calls import Calls, code
from tests.fakes.world import World

pytestmark = pytest.mark.anyio


@pytest.fixture
def call(world: World) -> Calls:
    return Calls(world)


async def test_get_waits_for_the_end_of_the_task(call: Calls) -> None:
    world = call.world
    task = await world.add("x")
    (command,) = await world.claim()
    views: list[shapes.TaskView] = []

    async def wait(wait_s: float, name: str = "t1") -> None:
        views.append(await call("task.get", task=name, wait_s=wait_s))

    with anyio.fail_after(10):
        await wait(0.001)
        assert (views[0].task.state, views[0].timed_out) == ("executing", True)
        async with anyio.create_task_group() as group:
            for name in ("t1", task.id):
                group.start_soon(wait, 9, name)
            await anyio.wait_all_tasks_blocked()
            world.context.watch.tell([task.id])
            await anyio.wait_all_tasks_blocked()
            assert len(views) == 1, "a change that is not the end is waited past"
            world.context.watch.tell(await world.finish(command, "success"))
    assert [(view.task.state, view.timed_out) for view in views[1:]] == [("completed", False)] * 2
    assert not world.context.watch._events, "nobody waits any more, and nothing is kept"


async def test_log_gives_the_output_in_pieces(call: Calls) -> None:
    world = call.world
    await world.add("x")
    assert await call("task.log", task="t1") == shapes.LogPart("", 0, 0, True)
    assert await code(call("task.log", task="t1", attempt=2)) == "unknown_attempt"
    (command,) = await world.claim()
    await world.context.spool.append_log(command.attempt_id, "añb")
    part = await call("task.log", task="t1", limit_bytes=2)
    assert part == shapes.LogPart("a", 1, 1, False), "a character is never cut in two"
    part = await call("task.log", task="t1", offset_bytes=1)
    assert part == shapes.LogPart("ñb", 4, 1, False)
    await world.finish(command, "success", output="head")
    assert await call("task.log", task="t1", offset_bytes=4) == shapes.LogPart("", 4, 1, True)
    await world.context.spool.remove(command.attempt_id)
    assert (await call("task.log", task="t1")).text == "head", "what is in the journal outlives the spool"


async def test_log_waits_for_more_and_for_the_end(call: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omnid.api.journal_views.LOOK_AGAIN_S", 0.001)
    world = call.world
    await world.add("x")
    (command,) = await world.claim()
    parts: list[shapes.LogPart] = []

    async def wait() -> None:
        parts.append(await call("task.log", task="t1", wait_s=9))

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await world.context.spool.append_log(command.attempt_id, "more")
        async with anyio.create_task_group() as group:
            group.start_soon(partial(call, "task.log", task="t1", offset_bytes=4, wait_s=9))
            await anyio.wait_all_tasks_blocked()
            world.context.watch.tell(await world.finish(command, "success"))
    assert parts == [shapes.LogPart("more", 4, 1, False)]


async def test_a_task_that_only_a_key_helps_on_is_not_waited_for(call: Calls) -> None:
    world = call.world
    missing = Retryable("secret_missing", reference="env:KEY", detail="it is not set")
    await world.add("x")
    (command,) = await world.claim()
    views: list[shapes.TaskView] = []

    async def wait() -> None:
        views.append(await call("task.get", task="t1", wait_s=50))

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            await world.gates.executor_down("command", missing)
            world.context.watch.tell(await world.finish(command, "unstarted"))
            await anyio.wait_all_tasks_blocked()
            assert views == []
            world.clock.now_ms += 2_000
            await world.wake()
    (view,) = views
    assert (view.task.state, view.task.reason, view.timed_out) == ("idle", "login", False)
    assert "needs a key or a login (The secret env:KEY can't be had: it is not set)" in view.why


async def test_who_follows_a_log_is_told_of_its_end_and_the_journal_is_left_alone_until_then(
    call: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omnid.api.journal_views.LOOK_AGAIN_S", 60.0)
    world = call.world
    await world.add("x")
    (command,) = await world.claim()
    reads: list[object] = []
    read = world.store.read

    async def counted(fn: Any) -> Any:
        reads.append(fn)
        return await read(fn)

    monkeypatch.setattr(world.store, "read", counted)
    parts: list[shapes.LogPart] = []

    async def follow() -> None:
        parts.append(await call("task.log", task="t1", wait_s=50))

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(follow)
            await anyio.wait_all_tasks_blocked()
            world.context.watch.tell([command.task_id])
            await anyio.wait_all_tasks_blocked()
            assert not parts
            world.context.watch.tell(await world.finish(command, "success"))
    assert parts == [shapes.LogPart("", 0, 1, True)]
    assert len(reads) <= 6
    assert not world.context.watch._events


@given(st.text(), st.integers(1, 9), st.binary(max_size=3))
def test_pieces_of_any_size_add_up_to_the_text(text: str, size: int, rest: bytes) -> None:
    data = text.encode() + rest
    got, at = "", 0
    while at < len(data):
        piece = data[at : at + size]
        part, used = decode_piece(piece, whole=at + size >= len(data))
        assert 0 < used <= len(piece)
        got, at = got + part, at + used
    if size >= 4:
        assert got == data.decode(errors="backslashreplace")
