"""The inbox: what ended while an agent was away waits for its next session, and goes when that says so."""

from pathlib import Path
from typing import Any

import anyio
import pytest

from omnid.daemon import Daemon
from omnid.flow import inbox
from omnid.states import STATES, TERMINAL
from omnid.store import outbox
from tests.fakes.home import Home
from tests.fakes.mcp_talk import Talk, Work, talk

pytestmark = pytest.mark.anyio


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


async def call(client: Talk, name: str, **arguments: Any) -> Any:
    answer = await client.ask("tools/call", name=name, arguments=arguments)
    return answer["content"][0]["text"] if answer.get("isError") else answer["structuredContent"]


async def ended(client: Talk, work: Work, outcome: str = "success") -> str:
    """Runs a task to its end; gives its name."""
    work.outcome = outcome
    work.go.set()
    made = await call(client, "task_submit", argv=["x"], executor="mine")
    await call(client, "task_get", task=made["id"], wait_s=10)
    return made["name"]


async def read(client: Talk, **more: Any) -> tuple[list[str], Any]:
    page = await call(client, "task_search", inbox=True, **more)
    return [task["name"] for task in page["tasks"]], page.get("next")


@pytest.mark.parametrize("modern", [True, False])
async def test_the_next_session_is_told_and_acknowledges_by_the_cursor(home: Home, *, modern: bool) -> None:
    work = Work(home)
    async with home.daemon() as daemon, talk(daemon, modern=modern, declared=False) as one:
        names = [await ended(one, work), await ended(one, work, "rejected")]
    async with home.daemon() as daemon:
        async with talk(daemon, modern=modern, declared=False) as one:
            greeting = await (one.ask("server/discover") if modern else one.greet())
            line = "2 tasks in your inbox: t1 ok, t2 failed. task_search(inbox=true)"
            assert line in greeting["instructions"]
            assert line in (await call(one, "status"))["inbox"]
            first, cursor = await read(one, limit=1)
            assert first == names[:1]
            # Nothing is gone before the client has it, and says so.
            assert await read(one, limit=1) == (first, cursor)
            second, last = await read(one, limit=1, cursor=cursor)
            assert second == names[1:]
            assert await read(one, limit=1, cursor=cursor) == (second, last)
            assert await read(one, cursor=last) == ([], None)
            assert "inbox" not in await call(one, "status")
        async with talk(daemon, modern=modern, declared=False) as one:
            assert "inbox" not in (await one.ask("server/discover"))["instructions"] if modern else True


async def test_who_only_reads_acknowledges_nothing(home: Home) -> None:
    work = Work(home)
    async with home.daemon() as daemon, talk(daemon, modern=True, declared=False) as one:
        names = [await ended(one, work) for _ in range(3)]
        async with await anyio.connect_unix(daemon.context.config.socket.path) as stream:
            reader = Talk(stream, modern=False)
            await reader.ask("omnid/hello", role="agent", origin="me", readonly=True)
            reader.modern = True
            first, cursor = await read(reader, limit=2)
            assert await read(reader, limit=2, cursor=cursor) == (names[2:], last := (await read(one))[1])
            assert await read(reader, cursor=last) == ([], None)
            assert "page cursor" in await call(reader, "task_search", inbox=True, cursor="inbox-x")
        assert first == names[:2]
        assert (await read(one))[0] == names, "it is still the agent's own to acknowledge"
        assert await read(one, cursor=cursor) == (names[2:], last)


async def test_an_inbox_is_its_origin_s_own(home: Home) -> None:
    work = Work(home)
    async with home.daemon() as daemon:
        async with talk(daemon, modern=True, declared=False, name="one") as one:
            await ended(one, work)
            _, cursor = await read(one)
        async with talk(daemon, modern=True, declared=False, name="two") as two:
            assert await read(two) == ([], None)
            assert await read(two, cursor=cursor) == ([], None)
            assert "inbox" not in await call(two, "status")
            assert "page cursor" in await call(two, "task_search", inbox=True, cursor="7")
            assert "page cursor" in await call(two, "task_search", inbox=True, cursor="inbox-x")
        async with talk(daemon, modern=True, declared=False, name="one") as one:
            assert (await read(one))[0] == ["one/t1"]
        async with talk(daemon, modern=True, declared=False, name="agent") as nameless:
            await ended(nameless, work)
            assert await read(nameless) == ([], None)
        assert await queues(daemon) == ["~inbox/one"]


async def queues(daemon: Daemon) -> list[str]:
    return await daemon.store.read(outbox.destinations)


async def test_what_waits_for_a_person_is_told_until_it_does_no_more(home: Home) -> None:
    work = Work(home)
    home.file.write_text(home.file.read_text().replace("allow", "# allow"))
    async with home.daemon() as daemon, talk(daemon, modern=True, declared=False) as one:
        made = await call(one, "task_submit", argv=["x"], executor="mine")
        assert "t1 needs you" in (await call(one, "status"))["inbox"]
        await call(one, "task_control", task="t1", action="cancel")
        assert "1 task in your inbox: t1 cancelled" in (await call(one, "status"))["inbox"]
        assert (await read(one))[0] == [made["name"]]
        await call(one, "task_submit", argv=["x"], executor="mine")
        async with await anyio.connect_unix(daemon.context.config.socket.path) as stream:
            person = Talk(stream, modern=False)
            await person.ask("omnid/task.control", task="me/t2", action="approve")
        assert (await read(one))[0] == [made["name"]]
    assert not work.go.is_set()


async def test_an_inbox_is_bounded_and_nobody_carries_it(home: Home) -> None:
    work = Work(home)
    home.file.write_text(home.file.read_text() + "[outbox]\nrows_max = 2\n")
    async with home.daemon() as daemon, talk(daemon, modern=True, declared=False) as one:
        names = [await ended(one, work) for _ in range(3)]
        await anyio.wait_all_tasks_blocked()
        assert (await read(one))[0] == names[1:]
        assert [view.destination for view in (await daemon.store.read(outbox.waiting))] == ["~inbox/me"]
        assert (await daemon.store.read(lambda r: outbox.dead(r, 0, 10))) == []
        gone = await daemon.store.write(lambda tx: inbox.forget_old(tx, daemon.started_at_ms + 3_600_000))
        assert gone == 2
        assert await read(one) == ([], None)
    async with home.daemon() as daemon:
        assert await queues(daemon) == []


def test_what_was_noted_holds_while_it_is_so() -> None:
    for state in STATES:
        for event in TERMINAL:
            assert inbox.still_holds(event, state, None) is (state == event)
    assert inbox.still_holds("approval", "waiting", "approval")
    assert not inbox.still_holds("approval", "waiting", "budget")
    assert not inbox.still_holds("approval", "idle", None)
