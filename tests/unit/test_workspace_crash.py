"""Workspaces across crashes: a git that stops at a point, a daemon that is killed there, and the next one."""

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import msgspec
import pytest

from omnid.errors import OmnidError
from omnid.model import Command
from tests.fakes.repository import Repository, write
from tests.fakes.signals import WAIT_S, Fifo
from tests.fakes.workspaces import AGENT, Places

ENTER = """
import sys, anyio
from pathlib import Path
from tests.fakes.workspaces import Places
root, path, repository, task_id = sys.argv[1:]
places = Places(Path(root), {"PATH": path})
anyio.run(places.enter, places.task("t1", id=task_id), repository)
"""
WHOLE, HALF, AFTER = "before", "half", "after"
STOPPED = {
    # Before git has done anything, with half of the files there, and after all is done but unsaid.
    WHOLE: 'echo here > "$FIFO"; sleep 600',
    HALF: 'git "$@"; rm -f "$TREE"/*/a.txt; echo here > "$FIFO"; sleep 600',
    AFTER: 'git "$@"; echo here > "$FIFO"; sleep 600',
}


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repo")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "workspaces"


def stopping(tmp_path: Path, root: Path, fifo: Fifo, point: str) -> str:
    """Gives a PATH whose git stops at `git worktree add`, and says so."""
    binary = tmp_path / "bin" / "git"
    script = f"#!/bin/sh\nPATH=${{PATH#*:}}\nFIFO={fifo.path}\nTREE={root}\n"
    script += f'case "$*" in *"worktree add"*) {STOPPED[point]};; esac\n'
    write(binary, script + 'exec git "$@"\n')
    binary.chmod(0o755)
    return f"{binary.parent}:{os.environ['PATH']}"


def killed_in_the_middle(tmp_path: Path, root: Path, repository: Repository, point: str, task: Command) -> int:
    """Kills a daemon while its git makes a worktree; gives the process group of the git that lives on."""
    fifo = Fifo(tmp_path / "fifo")
    argv = [sys.executable, "-c", ENTER, str(root), stopping(tmp_path, root, fifo, point), str(repository.path)]
    here = Path(__file__).parents[2]
    with subprocess.Popen([*argv, task.task_id], cwd=here, env={**os.environ, "PYTHONPATH": str(here)}) as process:
        assert anyio.run(fifo.line) == "here"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signal.SIGKILL)
    fifo.close()
    return int(children[0])


@pytest.mark.parametrize("point", STOPPED)
def test_what_a_crash_left_half_made_is_made_again(
    repository: Repository, root: Path, tmp_path: Path, point: str
) -> None:
    task = Places(root).task("t1")
    git = killed_in_the_middle(tmp_path, root, repository, point, task)
    places = Places(root)
    assert not places.record(task).ready
    waited: list[str] = []

    async def go_on() -> Path:
        # The old git still holds the lock: nothing is begun beside it.
        try:
            async with places.workspaces.records.hold(places.record(task).key, 0.05):
                raise AssertionError("the lock was free")
        except OmnidError as error:
            waited.append(error.code)
        os.killpg(git, signal.SIGKILL)
        with anyio.fail_after(WAIT_S):
            return Path(await places.workspaces.enter(task, AGENT, str(repository.path)))

    at = anyio.run(go_on)
    assert waited == ["workspace_down"]
    assert places.record(task).ready
    assert (at / "a.txt").read_text() == "one\n"
    assert (at / "sub" / "b.txt").exists()
    assert repository.git("status", "--porcelain", at=at) == ""
    assert repository.worktrees() == [str(at)]
    assert repository.branches() == {"main", places.record(task).branch}


def test_what_a_crash_left_is_removed_where_its_task_is_forgotten(
    repository: Repository, root: Path, tmp_path: Path
) -> None:
    task = Places(root).task("t1")
    os.killpg(killed_in_the_middle(tmp_path, root, repository, HALF, task), signal.SIGKILL)
    places = Places(root)

    async def sweep() -> int:
        return await places.workspaces.sweep()

    places.states[task.task_id] = "executing"
    assert anyio.run(sweep) == 0
    del places.states[task.task_id]
    assert anyio.run(sweep) == 1
    assert (repository.branches(), repository.worktrees()) == ({"main"}, [])
    assert list(root.iterdir()) == []


async def test_a_copy_cut_off_is_made_again(root: Path, tmp_path: Path) -> None:
    places = Places(root)
    write(tmp_path / "tree" / "a.txt", "one")
    task = places.task(workspace="copy")
    at = await places.enter(task, tmp_path / "tree")
    record = places.record(task)
    (at / "a.txt").write_text("half")
    await places.workspaces.records.write(msgspec.structs.replace(record, ready=False))
    assert (await places.enter(task, tmp_path / "tree") / "a.txt").read_text() == "one"


async def test_a_lock_that_lost_its_name_is_none(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who held it before removes it between this one's open and its lock."""
    file, flock = root / "t1.lock", fcntl.flock

    def removed_meanwhile(lock: int, how: int) -> None:
        flock(lock, how)
        monkeypatch.undo()
        file.unlink()

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    async with Places(root).workspaces.records.hold("t1") as lock:
        assert os.path.samestat(os.fstat(lock), file.stat())


async def test_two_daemons_do_not_meet(repository: Repository, root: Path) -> None:
    one, two = Places(root), Places(root)
    found: list[Path] = []

    async def enter(places: Places, task: Command) -> None:
        found.append(await places.enter(task, repository.path))

    task = one.task("t1")
    async with anyio.create_task_group() as group:
        group.start_soon(enter, one, task)
        group.start_soon(enter, two, task)
        group.start_soon(enter, two, two.task("t1"))
    assert len(set(found)) == 2
    assert len(repository.worktrees()) == 2


async def test_a_record_of_another_format_is_left_alone(repository: Repository, root: Path) -> None:
    places = Places(root)
    await places.enter(task := places.task(), repository.path)
    file = root / f"{places.record(task).key}.json"
    file.write_text(file.read_text().removesuffix("}") + ',"v":2}')
    assert places.record(task) is None
    del places.states[task.task_id]
    assert await places.workspaces.sweep() == 0
    assert file.exists()


async def test_a_git_that_hangs_is_ended(repository: Repository, tmp_path: Path, root: Path) -> None:
    binary = tmp_path / "bin" / "git"
    write(binary, "#!/bin/sh\nsleep 600\n")
    binary.chmod(0o755)
    places = Places(root, {"PATH": f"{binary.parent}:{os.environ['PATH']}"})
    with anyio.fail_after(WAIT_S), pytest.raises(OmnidError) as caught:
        await places.workspaces.git.run("/", "status", deadline_s=0.2)
    assert caught.value.code == "workspace_down"
    assert "`git status` took longer" in caught.value.what


async def test_output_has_an_end(repository: Repository, root: Path) -> None:
    repository.commit({"big.txt": "x" * 300_000}, "big")
    git = Places(root).workspaces.git
    done = await git.run(str(repository.path), "show", "HEAD:big.txt", bytes_max=1000)
    assert (len(done.out), done.cut, done.code) == (1000, True, 0)
    done = await git.run(str(repository.path), "show", "HEAD:big.txt", skip_bytes=299_990)
    assert (done.out, done.cut) == (b"x" * 10, False)
