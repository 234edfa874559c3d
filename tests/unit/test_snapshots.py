"""Snapshots of the journal: one committed state each, made while others write, bounded, and fit to go back to."""

import os
import threading
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import anyio
import apsw
import pytest

from omnid.errors import Retryable
from omnid.flow import snapshots as module
from omnid.flow.doctor import Doctor
from omnid.flow.snapshots import Snapshots
from omnid.store import database
from omnid.store import snapshots as copying
from omnid.store.database import SqliteStore
from omnid.store.snapshots import Shelf
from tests.fakes.clock import FakeClock
from tests.fakes.invariants import broken
from tests.fakes.signals import WAIT_S
from tests.fakes.store import gate, opened
from tests.fakes.world import World

ROOM = 1 << 40
AT_MS = 1_795_680_903_007


def gates_in(path: Path) -> list[str]:
    connection = apsw.Connection(str(path))
    try:
        assert connection.pragma("integrity_check") == "ok"
        return [id for (id,) in connection.execute("SELECT id FROM gate ORDER BY ord")]
    finally:
        connection.close()


class Halted:
    """A copy that stops before its first piece until it may go on."""

    def __init__(self) -> None:
        self.is_there, self.may_go_on = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.is_there.set()
        assert self.may_go_on.wait(WAIT_S)


@pytest.fixture
def halted(monkeypatch: pytest.MonkeyPatch) -> Halted:
    made, copy = Halted(), database.copy

    def halting(source: Any, path: Path, bytes_max: int, go_on: Callable[[], None]) -> int:
        def pause() -> None:
            made()
            go_on()

        return copy(source, path, bytes_max, pause)

    monkeypatch.setattr(database, "copy", halting)
    return made


async def copied(store: SqliteStore, path: Path, said: list[str], bytes_max: int = ROOM) -> None:
    try:
        await store.copy(path, bytes_max)
    except Retryable as error:
        assert error.code == "no_snapshot"
        said.append(error.what)


async def test_it_holds_what_was_committed_and_no_write_waits_for_it(tmp_path: Path, halted: Halted) -> None:
    path = tmp_path / "copy.db"
    async with opened(tmp_path) as store, anyio.create_task_group() as group:
        await store.write(gate("before"))
        group.start_soon(copied, store, path, [])
        await anyio.to_thread.run_sync(halted.is_there.wait, WAIT_S)
        for number in range(50):
            await store.write(gate(f"during{number}"))
        assert not path.exists(), "what has the name is whole"
        halted.may_go_on.set()
    assert gates_in(path) == ["paused:before"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(one.name for one in tmp_path.glob("*.new*")) == []


@pytest.mark.parametrize(
    ("why", "said"),
    [
        ("stop", "omnid is stopping"),
        ("pressed", "so much is written just now"),
        ("late", "it took more than 0 s"),
        ("cancel", ""),
    ],
)
async def test_it_is_broken_off_and_nothing_is_left(
    tmp_path: Path, halted: Halted, monkeypatch: pytest.MonkeyPatch, why: str, said: str
) -> None:
    if why == "late":
        monkeypatch.setattr(database, "COPY_S_MAX", 0.0)
    found: list[str] = []
    async with opened(tmp_path, wal_bytes_max=1 << 20) as store:
        async with anyio.create_task_group() as group:
            group.start_soon(copied, store, tmp_path / "copy.db", found)
            await anyio.to_thread.run_sync(halted.is_there.wait, WAIT_S)
            if why == "stop":
                store.interrupt()
            if why == "pressed":
                monkeypatch.setattr(store, "_wal_bytes", lambda: 2 << 20)
            if why == "cancel":
                group.cancel_scope.cancel()
            halted.may_go_on.set()
        assert [said in one for one in found] == ([True] if said else [])
        assert list(tmp_path.glob("copy*")) == []


@pytest.mark.parametrize(
    ("name", "bytes_max", "said"),
    [("copy.db", 10_000, "and there is room for 10000"), ("missing/copy.db", ROOM, "No such file"), ("", ROOM, "")],
)
async def test_what_does_not_fit_or_can_not_be_written_is_said(
    tmp_path: Path, name: str, bytes_max: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []
    if not name:

        def full(*_: Any) -> None:
            raise apsw.FullError("database or disk is full")

        monkeypatch.setattr(copying, "_copy_pages", full)
        name, said = "copy.db", "database or disk is full"
    async with opened(tmp_path) as store:
        await store.write(gate("a"))
        await copied(store, tmp_path / name, found, bytes_max)
        assert [said in one for one in found] == [True]
        await store.write(gate("b"))
    assert [one.name for one in tmp_path.glob("copy*")] == []


def test_a_shelf_keeps_the_newest_within_both_limits(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "snapshots")
    assert shelf.look() == ()
    assert shelf.shrink(1, 1) == ()
    for number, size_bytes in enumerate((10, 30, 20, 10)):
        shelf.place(AT_MS + 1000 * number).write_bytes(bytes(size_bytes))
    assert (tmp_path / "snapshots").stat().st_mode & 0o777 == 0o700
    (tmp_path / "snapshots" / "notes.txt").write_text("mine")
    unfinished = shelf.place(AT_MS).with_name("journal-20261126T081503.007Z.db.new")
    unfinished.touch()
    assert [(one.at_ms - AT_MS, one.size_bytes) for one in shelf.look()] == [
        (3000, 10),
        (2000, 20),
        (1000, 30),
        (0, 10),
    ]
    assert not unfinished.exists()
    assert [one.at_ms - AT_MS for one in shelf.shrink(3, 1000)] == [3000, 2000, 1000]
    assert [one.at_ms - AT_MS for one in shelf.shrink(3, 35)] == [3000, 2000]
    assert [one.at_ms - AT_MS for one in shelf.look()] == [3000, 2000]
    assert shelf.shrink(0, 1000) == ()
    assert [one.name for one in (tmp_path / "snapshots").iterdir()] == ["notes.txt"]


@pytest.fixture
async def kept(world: World, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[World]:
    """A world whose snapshots are made, and tried again at once."""
    world.set("notify", to=("told",))
    sleep = anyio.sleep
    monkeypatch.setattr(anyio, "sleep", lambda _: sleep(0))
    async with anyio.create_task_group() as group:
        group.start_soon(Snapshots(world.context).run)
        await anyio.wait_all_tasks_blocked()
        yield world
        group.cancel_scope.cancel()


async def lose(world: World, at_ms: int = AT_MS) -> None:
    """Has the cloud go, and waits for what follows."""
    modes = world.context.modes
    before = modes.snapshots, modes.no_snapshot
    modes.cloud_lost(at_ms)
    with anyio.fail_after(WAIT_S):
        while (modes.snapshots, modes.no_snapshot) == before:
            await anyio.lowlevel.checkpoint()
        await anyio.wait_all_tasks_blocked()


async def test_it_is_a_state_to_go_back_to(kept: World, tmp_path: Path, clock: FakeClock) -> None:
    await kept.add(key="a")
    (command,) = await kept.claim()
    await lose(kept)
    await kept.add(key="b")
    (snapshot,) = kept.context.modes.snapshots
    assert (snapshot.at_ms, Path(snapshot.path).name) == (AT_MS, "journal-20261126T081503.007Z.db")
    back = tmp_path / "back"
    (back / "state").mkdir(parents=True)
    os.rename(snapshot.path, back / "state" / "journal.db")
    restored = World(back, clock)
    try:
        assert await restored.rows("SELECT key, state FROM task") == [("a", "executing")]
        assert await broken(restored) == []
        report = await Doctor(restored.context).examine()
        assert (report.damage, report.differences) == ([], [])
        assert report.entries > 0
        await restored.finish(command, "success")
        assert await restored.differences() == []
    finally:
        restored.close()


async def test_only_so_many_are_kept_and_none_where_none_is_wanted(kept: World) -> None:
    kept.set("mode", snapshots_max=2)
    for number in range(4):
        await lose(kept, AT_MS + number)
    assert [one.at_ms for one in kept.context.modes.snapshots] == [AT_MS + 3, AT_MS + 2]
    assert len(list((kept.path / "state" / "snapshots").iterdir())) == 2
    kept.set("mode", snapshots_max=0)
    kept.context.modes.cloud_lost(AT_MS + 9)
    await anyio.wait_all_tasks_blocked()
    assert [one.at_ms for one in kept.context.modes.snapshots] == [AT_MS + 3, AT_MS + 2]


@pytest.mark.parametrize(
    ("section", "limit", "said"),
    [("store", {"free_bytes_min": 1 << 60}, "and there is room for 0"), ("mode", {"snapshots_bytes_max": 9}, "for 9")],
)
async def test_where_there_is_no_room_people_are_told_and_the_next_one_is_made(
    kept: World, section: str, limit: dict[str, int], said: str
) -> None:
    before = kept.context.config
    kept.set(section, **limit)
    await lose(kept)
    problem = kept.context.modes.no_snapshot
    assert problem is not None
    assert (problem.code, said in problem.what) == ("no_snapshot", True)
    assert kept.logged.getvalue().count('"event":"no_snapshot"') == 1, "logged once, after all tries"
    (told,) = await kept.rows("SELECT body FROM outbox WHERE destination = 'notice/told'")
    assert said in told[0]
    assert kept.context.modes.snapshots == ()
    kept.context.config = before
    await lose(kept, AT_MS + 1)
    assert kept.context.modes.no_snapshot is None
    assert [one.at_ms for one in kept.context.modes.snapshots] == [AT_MS + 1]


async def test_one_that_was_broken_off_is_tried_again(kept: World, monkeypatch: pytest.MonkeyPatch) -> None:
    copy, failures = kept.store.copy, iter((True, True))

    async def pressed(path: Path, bytes_max: int) -> int:
        if next(failures, False):
            raise Retryable("no_snapshot", path=path, detail="so much is written")
        return await copy(path, bytes_max)

    monkeypatch.setattr(kept.store, "copy", pressed)
    await lose(kept)
    assert [one.at_ms for one in kept.context.modes.snapshots] == [AT_MS]
    assert "no_snapshot" not in kept.logged.getvalue()
    assert module.TRIES_MAX == 3


async def test_a_directory_that_can_not_be_used_is_said(kept: World) -> None:
    (kept.path / "state" / "snapshots").write_text("a file")
    await lose(kept)
    problem = kept.context.modes.no_snapshot
    assert problem is not None
    assert "File exists" in problem.what
