"""Worktrees made ahead: made, renewed, taken, cleaned up."""

from pathlib import Path

import anyio
import pytest

from omnid.executor import workspace_pool as module
from omnid.executor.workspace_pool import READY, TAKEN
from tests.fakes.repository import Repository
from tests.fakes.signals import Fifo
from tests.fakes.workspaces import Places

SETUP = ("sh", "-c", "echo x >> built.o; echo y > stray; echo changed > a.txt; echo run >> $PWD-runs")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository(tmp_path / "repo")
    made.commit({".gitignore": "*.o\n"}, "ignore")
    return made


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path / "w", prewarm=2, setup=SETUP)


def spares(places: Places, suffix: str = READY) -> list[str]:
    return sorted(path.stem for path in (places.root / "pool").glob(f"*{suffix}"))


async def used(places: Places, repository: Repository) -> None:
    """Lets a task use the repository, and the pool see to it."""
    await places.enter(task := places.task("t0"), repository.path)
    await places.leave(task, "cancelled")
    await places.workspaces.pool.round()


async def test_a_task_takes_one_that_lies_ready(places: Places, repository: Repository) -> None:
    await used(places, repository)
    before = spares(places)
    assert len(before) == 2
    later = repository.commit({"a.txt": "later\n", "more.txt": "x"}, "later")
    at = await places.enter(task := places.task("t1"), repository.path / "sub")
    top = at.parent
    assert (top / "a.txt").read_text() == "later\n"
    assert (top / "more.txt").exists()
    assert (top / "built.o").exists()
    assert not (top / "stray").exists()
    assert repository.git("status", "--porcelain", at=top) == ""
    assert repository.git("rev-parse", "HEAD", at=top) == later == places.record(task).base
    assert repository.git("branch", "--show-current", at=top) == places.record(task).branch
    assert len(spares(places)) == 1
    assert set(spares(places)) < set(before)
    await places.leave(task)
    assert not top.exists()


async def test_stale_ones_are_renewed_and_set_up_again(places: Places, repository: Repository) -> None:
    await used(places, repository)
    before = spares(places)
    later = repository.commit({"a.txt": "later\n"}, "later")
    await places.workspaces.pool.round()
    assert spares(places) == before
    for id in before:
        at = places.root / "pool" / id
        assert repository.git("rev-parse", "HEAD", at=at) == later
        assert (places.root / "pool" / f"{id}-runs").read_text() == "run\nrun\n"
    await places.workspaces.pool.round()
    assert (places.root / "pool" / f"{before[0]}-runs").read_text() == "run\nrun\n"


async def test_many_tasks_at_once_take_different_ones(places: Places, repository: Repository) -> None:
    await used(places, repository)
    found: list[Path] = []

    async def enter(name: str) -> None:
        found.append(await places.enter(places.task(name), repository.path))

    async with anyio.create_task_group() as group:
        for number in range(4):
            group.start_soon(enter, f"t{number}")
    assert len(set(found)) == 4
    assert all((at / "built.o").exists() for at in found)
    assert (spares(places), spares(places, TAKEN)) == ([], [])


async def test_a_spare_that_somebody_broke_is_replaced(places: Places, repository: Repository) -> None:
    await used(places, repository)
    for id in spares(places):
        (places.root / "pool" / id / ".git").unlink()
    at = await places.enter(places.task("t1"), repository.path)
    assert repository.git("status", "--porcelain", "a.txt", at=at) == "M a.txt"  # Its set-up ran in it.
    assert spares(places, TAKEN) == []


async def test_the_settings_and_vanished_repositories_end_them(places: Places, repository: Repository) -> None:
    await used(places, repository)
    places.workspaces.configure(places.workspaces.settings.__class__(prewarm=1))
    await places.workspaces.pool.round()
    assert len(spares(places)) == 1
    places.workspaces.configure(places.workspaces.settings.__class__(prewarm=0))
    await places.workspaces.pool.round()
    assert spares(places) == []
    assert len(repository.worktrees()) == 1  # That of t0, which was cancelled.


async def test_what_a_crash_left_taken_is_cleaned_up(
    places: Places, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    await used(places, repository)
    for path in (places.root / "pool").glob(f"*{READY}"):
        path.rename(path.with_suffix(TAKEN))
    await places.workspaces.pool.round()
    assert (len(spares(places)), len(spares(places, TAKEN))) == (2, 2)
    monkeypatch.setattr(module, "LEFT_MS", -1)
    await places.workspaces.pool.round()
    assert (len(spares(places)), len(spares(places, TAKEN))) == (2, 0)
    assert len(repository.worktrees()) == 3


async def test_a_set_up_that_fails_leaves_nothing_and_is_logged_once(repository: Repository, tmp_path: Path) -> None:
    places = Places(tmp_path / "w", prewarm=1)
    await used(places, repository)
    places.workspaces.configure(places.workspaces.settings.__class__(prewarm=2, setup=("sh", "-c", "exit 3")))
    await places.workspaces.pool.round()
    await places.workspaces.pool.round()
    assert places.logged.getvalue().count("prewarm_failed") == 1
    assert (len(spares(places)), spares(places, TAKEN)) == (1, [])


async def test_the_loop_hears_of_a_use(repository: Repository, tmp_path: Path) -> None:
    fifo = Fifo(tmp_path / "fifo")
    places = Places(tmp_path / "w", prewarm=2, setup=("sh", "-c", f"echo $PWD > {fifo.path}"))
    async with anyio.create_task_group() as group:
        group.start_soon(places.workspaces.pool.run)
        await anyio.wait_all_tasks_blocked()
        at = await places.enter(places.task(), repository.path)
        assert Path(await fifo.line()) == at
        assert {Path(await fifo.line()).parent for _ in range(2)} == {places.root / "pool"}
        group.cancel_scope.cancel()
    fifo.close()
