"""Workspaces at their ends: merged, compared, listed, removed, bounded; and copies, where there is no git."""

import os
import shutil
import socket
from pathlib import Path

import pytest

from omnid.executor import workspace_files
from omnid.executor.worktree import MERGE_VERSION_MIN
from omnid.model import Command
from omnid.settings import CommandExecutor as Section
from tests.fakes.repository import Repository, write
from tests.fakes.workspaces import PLAIN, Places, refused

COPYING = Section(name="claude-code", profile="claude-code", workspace="copy")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repo")


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path / "workspaces")


async def done(places: Places, repository: Repository, files: dict[str, str], name: str = "t7") -> Command:
    """A task that has succeeded and left these files."""
    at = await places.enter(task := places.task(name), repository.path)
    for file, text in files.items():
        write(at / file, text)
    await places.leave(task)
    return task


async def compared(places: Places, task: Command, **fields) -> str:
    given = {"stat": False, "to": None, "skip_bytes": 0, "bytes_max": 1 << 20, **fields}
    data, _, _ = await places.workspaces.diff(places.record(task), **given)
    return data.decode()


# Merged.


async def test_a_merge_takes_the_work_over_and_removes_the_workspace(places: Places, repository: Repository) -> None:
    task = await done(places, repository, {"new.txt": "x", "a.txt": "changed\n"})
    record = places.record(task)
    merged = await places.workspaces.merge(record)
    assert (merged.into, merged.commits, merged.files) == ("main", 1, ["a.txt", "new.txt"])
    assert (repository.path / "a.txt").read_text() == "changed\n"
    assert (repository.branches(), repository.worktrees(), places.record(task)) == ({"main"}, [], None)
    await refused(places.workspaces.merge(record), "no_workspace")


async def test_a_merge_beside_other_work_makes_a_commit(places: Places, repository: Repository) -> None:
    task = await done(places, repository, {"new.txt": "x"})
    repository.commit({"sub/b.txt": "mine\n"}, "meanwhile")
    write(repository.path / "a.txt", "not committed\n")
    branch = places.record(task).branch
    await places.workspaces.merge(places.record(task))
    assert repository.git("log", "-1", "--format=%s") == f"Merge t7 ({branch})"
    assert (repository.path / "a.txt").read_text() == "not committed\n"


async def test_names_that_are_no_text_can_be_told(places: Places, repository: Repository) -> None:
    odd = Path(os.fsdecode(os.fsencode(repository.path) + b"/\xff\n.txt"))
    odd.write_bytes(b"\xff")
    at = await places.enter(task := places.task(), repository.path)
    assert places.record(task).notes[0].endswith("are not in it: \\xff\n.txt")
    odd.unlink()
    Path(os.fsdecode(os.fsencode(at) + b"/\xfe.txt")).write_bytes(b"\xfe\n")
    await places.leave(task)
    assert (await places.workspaces.merge(places.record(task))).files == ["\\xfe.txt"]


async def test_what_a_failed_task_left_can_be_merged_too(places: Places, repository: Repository) -> None:
    at = await places.enter(task := places.task(), repository.path)
    write(at / "half.txt", "x")
    await places.leave(task, "failure")
    await places.workspaces.merge(places.record(task))
    assert (repository.path / "half.txt").exists()


async def test_a_conflict_names_the_files_and_changes_nothing(places: Places, repository: Repository) -> None:
    task = await done(places, repository, {"a.txt": "theirs\n", "sub/b.txt": "theirs\n", "new.txt": "x"})
    head = repository.commit({"a.txt": "mine\n", "sub/b.txt": "mine\n"}, "meanwhile")
    error = await refused(places.workspaces.merge(places.record(task)), "merge_conflict")
    assert error.what == "t7 can't be merged into main: both changed a.txt, sub/b.txt."
    assert repository.git("rev-parse", "HEAD") == head
    assert repository.git("status", "--porcelain") == ""
    assert not (repository.path / ".git" / "MERGE_HEAD").exists()
    assert places.record(task) is not None


@pytest.mark.parametrize("name", ["a.txt", "new.txt"])
async def test_uncommitted_changes_are_not_overwritten(places: Places, repository: Repository, name: str) -> None:
    task = await done(places, repository, {"a.txt": "theirs\n", "new.txt": "theirs"})
    write(repository.path / name, "mine")
    error = await refused(places.workspaces.merge(places.record(task)), "merge_refused")
    assert f"uncommitted changes in {name}" in error.what
    assert (repository.path / name).read_text() == "mine"
    assert "stash" in error.do


async def test_a_merge_under_way_is_left_alone(places: Places, repository: Repository) -> None:
    task = await done(places, repository, {"new.txt": "x"})
    repository.git("switch", "--quiet", "--create", "other")
    repository.commit({"a.txt": "other\n"}, "other")
    repository.git("switch", "--quiet", "main")
    repository.commit({"a.txt": "main\n"}, "main")
    repository.git("merge", "other", fails=True)
    error = await refused(places.workspaces.merge(places.record(task)), "merge_refused")
    assert "another merge is under way" in error.what
    assert (repository.path / ".git" / "MERGE_HEAD").exists()


async def test_an_old_git_merges_by_hand(repository: Repository, tmp_path: Path) -> None:
    binary = tmp_path / "bin" / "git"
    old = f"{MERGE_VERSION_MIN[0]}.{MERGE_VERSION_MIN[1] - 1}"
    write(
        binary,
        f'#!/bin/sh\ncase "$*" in *" version") echo git version {old};; *) PATH=${{PATH#*:}} exec git "$@";; esac\n',
    )
    binary.chmod(0o755)
    places = Places(tmp_path / "w", {"PATH": f"{binary.parent}:{os.environ['PATH']}"})
    task = await done(places, repository, {"new.txt": "x"})
    error = await refused(places.workspaces.merge(places.record(task)), "merge_refused")
    assert f"git is {old}" in error.what
    assert f"git merge {places.record(task).branch}" in error.do


async def test_a_user_without_a_name_gets_a_merge_all_the_same(places: Places, repository: Repository) -> None:
    repository.git("config", "user.useConfigOnly", "true")
    task = await done(places, repository, {"new.txt": "x"})
    repository.commit({"a.txt": "mine\n"}, "meanwhile")
    await places.workspaces.merge(places.record(task))
    assert repository.git("log", "-1", "--format=%cn") == "omnid"


async def test_a_vanished_repository_and_branch_are_told(places: Places, repository: Repository) -> None:
    one, two = await done(places, repository, {"x": "x"}), await done(places, repository, {"y": "y"})
    record = places.record(one)
    repository.git("worktree", "remove", "--force", record.path)
    repository.git("branch", "-D", record.branch)
    assert "is gone" in (await refused(places.workspaces.merge(record), "merge_refused")).what
    await refused(compared(places, one), "no_workspace")
    repository.path.rename(repository.path.with_name("moved"))
    assert "the directory is gone" in (await refused(places.workspaces.merge(places.record(two)), "merge_refused")).what
    await places.workspaces.remove(places.record(two))
    assert places.record(two) is None


@pytest.mark.parametrize("state", ["executing", "waiting", "idle"])
async def test_what_may_still_be_worked_on_stays(places: Places, repository: Repository, state: str) -> None:
    await places.enter(task := places.task(), repository.path)
    places.states[task.task_id] = state
    assert state in (await refused(places.workspaces.merge(places.record(task)), "workspace_busy")).what
    await refused(places.workspaces.remove(places.record(task)), "workspace_busy")
    places.states[task.task_id] = "uncertain"
    await places.workspaces.remove(places.record(task))


# Compared.


async def test_a_diff_shows_what_is_committed_and_what_is_not(places: Places, repository: Repository) -> None:
    at = await places.enter(task := places.task(), repository.path)
    repository.commit({"a.txt": "changed\n"}, "one", at=at)
    write(at / "sub" / "b.txt", "more\n")
    write(at / "new.txt", "fresh\n")
    text = await compared(places, task)
    assert all(line in text for line in ("+changed", "-two", "+more", "+fresh"))
    assert repository.git("status", "--porcelain", at=at) == "M sub/b.txt\n?? new.txt"
    assert "3 files changed" in await compared(places, task, stat=True)
    repository.commit({"a.txt": "main\n"}, "elsewhere")
    assert await compared(places, task) == text


async def test_a_diff_comes_in_pieces_of_the_same(places: Places, repository: Repository) -> None:
    task = await done(places, repository, {"big.txt": "line\n" * 5000})
    whole = await compared(places, task)
    record, to, pieces, more = places.record(task), None, [], True
    while more:
        skip = sum(map(len, pieces))
        data, to, more = await places.workspaces.diff(record, stat=False, to=to, skip_bytes=skip, bytes_max=7000)
        pieces.append(data)
        assert len(data) <= 7000
    assert b"".join(pieces).decode() == whole
    assert len(pieces) > 3


async def test_a_diff_runs_no_program_of_the_repository(places: Places, repository: Repository, tmp_path: Path) -> None:
    repository.git("config", "diff.external", f"touch {tmp_path}/ran")
    repository.git("config", "diff.evil.textconv", f"touch {tmp_path}/ran")
    repository.git("config", "core.fsmonitor", f"touch {tmp_path}/ran")
    task = await done(places, repository, {".gitattributes": "* diff=evil\n", "a.txt": "changed\n"})
    assert "+changed" in await compared(places, task)
    assert not (tmp_path / "ran").exists()


# Listed, swept, bounded.


async def test_the_list_says_how_each_is(places: Places, repository: Repository) -> None:
    kept = await done(places, repository, {"x": "x"}, "t1")
    merged = await done(places, repository, {"y": "y"}, "t2")
    repository.git("merge", "--quiet", places.record(merged).branch)
    forgotten = await done(places, repository, {"z": "z"}, "t3")
    del places.states[forgotten.task_id]
    await places.enter(running := places.task("t4"), repository.path)
    await places.enter(failed := places.task("t5"), repository.path)
    await places.leave(failed, "failure")
    deleted = await done(places, repository, {"w": "w"}, "t6")
    shutil.rmtree(places.record(deleted).path)
    listed = await places.workspaces.listed()
    assert [(place.record.task, place.condition) for place in listed] == [
        ("t1", "kept"),
        ("t2", "merged"),
        ("t3", "orphaned"),
        ("t4", "running"),
        ("t5", "empty"),
        ("t6", "deleted"),
    ]
    assert all(place.record.size_bytes > 0 for place in listed[:5])
    assert await places.workspaces.sweep() == 1
    assert places.record(merged) is None
    assert places.record(running).task == "t4"
    assert places.workspaces.named("t3").task_id == forgotten.task_id
    assert await places.workspaces.sweep(finished=True) == 1
    assert places.record(failed) is None
    assert places.record(kept) is not None


async def test_a_forgotten_task_takes_its_empty_workspace_along(places: Places, repository: Repository) -> None:
    await places.enter(task := places.task(), repository.path)
    await places.leave(task, "failure")
    assert await places.workspaces.sweep() == 0
    del places.states[task.task_id]
    assert await places.workspaces.sweep() == 1
    assert (repository.branches(), repository.worktrees()) == ({"main"}, [])


async def test_no_more_than_may_be_kept(repository: Repository, tmp_path: Path) -> None:
    places = Places(tmp_path / "w", kept_max=2)
    one = await done(places, repository, {"x": "x"}, "t1")
    await places.enter(two := places.task("t2"), repository.path)
    error = await refused(places.enter(places.task("t3"), repository.path), "workspace_full")
    assert "2 are there, and workspace.kept_max is 2" in error.what
    assert "t1" in error.do
    assert "t2" not in error.do
    await places.workspaces.check()  # What runs may still make room.
    again = await places.enter(places.task("t2", number=2, id=two.task_id), repository.path)
    write(again / "y", "y")
    await places.leave(two)
    await refused(places.workspaces.check(), "workspace_full")
    await places.workspaces.merge(places.record(one))
    await places.workspaces.check()
    await places.enter(places.task("t3"), repository.path)


async def test_what_nobody_needs_makes_room(repository: Repository, tmp_path: Path) -> None:
    places = Places(tmp_path / "w", kept_max=1)
    await places.enter(task := places.task("t1"), repository.path)
    await places.leave(task, "failure")
    await places.enter(places.task("t2"), repository.path)
    assert places.record(task) is None


async def test_no_more_bytes_than_they_may_take(repository: Repository, tmp_path: Path) -> None:
    places = Places(tmp_path / "w", bytes_max=1 << 20)
    await done(places, repository, {"big.bin": "x" * (2 << 20)}, "t1")
    error = await refused(places.enter(places.task("t2"), repository.path), "workspace_full")
    assert "workspace.bytes_max" in error.what


# Copies.


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    write(tree / "deep" / "a.txt", "one\n")
    write(tree / "run.sh", "#!/bin/sh\n")
    (tree / "run.sh").chmod(0o755)
    (tree / "link").symlink_to("deep/a.txt")
    (tree / "dangling").symlink_to("/nowhere")
    os.mkfifo(tree / "pipe")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tree / "socket"))
    return tree


async def test_a_copy_is_like_its_tree(places: Places, tree: Path) -> None:
    at = await places.enter(task := places.task(), tree, COPYING)
    assert (at / "deep" / "a.txt").read_text() == "one\n"
    assert os.access(at / "run.sh", os.X_OK)
    assert (os.readlink(at / "link"), os.readlink(at / "dangling")) == ("deep/a.txt", "/nowhere")
    assert sorted(path.name for path in at.iterdir()) == ["dangling", "deep", "link", "run.sh"]
    assert places.record(task).notes == ("2 sockets, pipes or devices were not copied",)
    write(at / "deep" / "a.txt", "changed\n")
    assert (tree / "deep" / "a.txt").read_text() == "one\n"
    await places.leave(task)
    assert "+changed" in await compared(places, task)
    assert (
        "copy, which has no branch"
        in (await refused(places.workspaces.merge(places.record(task)), "merge_refused")).what
    )
    await places.workspaces.remove(places.record(task))
    assert not at.exists()


async def test_an_unchanged_copy_goes(places: Places, tree: Path) -> None:
    for name in ("pipe", "socket"):
        (tree / name).unlink()
    at = await places.enter(task := places.task(), tree, COPYING)
    await places.leave(task)
    assert not at.exists()


async def test_a_copy_does_not_hold_itself(tree: Path) -> None:
    places = Places(tree / "state" / "workspaces")
    at = await places.enter(places.task(), tree, COPYING)
    assert (at / "deep").is_dir()
    assert list((at / "state").iterdir()) == []


async def test_a_copy_that_is_too_large(tree: Path, tmp_path: Path) -> None:
    write(tree / "big", "x" * 20_000)
    places = Places(tmp_path / "w", bytes_max=4096)
    error = await refused(places.enter(task := places.task(), tree, COPYING), "workspace_impossible")
    assert "larger than workspace.bytes_max" in error.what
    assert places.record(task) is None
    assert [path.name for path in places.root.iterdir()] == []


async def test_a_copy_of_a_linked_worktree_is_refused(places: Places, repository: Repository, tmp_path: Path) -> None:
    repository.git("worktree", "add", "--quiet", "--detach", str(tmp_path / "linked"))
    error = await refused(places.enter(places.task(), tmp_path / "linked", COPYING), "workspace_impossible")
    assert "share its index" in error.what


async def test_a_copy_that_somebody_deleted(places: Places, tree: Path) -> None:
    at = await places.enter(task := places.task(), tree, COPYING)
    shutil.rmtree(at)
    error = await refused(places.enter(places.task(number=2, id=task.task_id), tree, COPYING), "workspace_impossible")
    assert "was deleted" in error.what
    await refused(compared(places, task), "no_workspace")


async def test_a_copy_of_a_whole_repository_is_one_of_its_own(places: Places, repository: Repository) -> None:
    at = await places.enter(places.task(workspace="copy"), repository.path, PLAIN)
    repository.commit({"new.txt": "x"}, "there", at=at)
    assert not (repository.path / "new.txt").exists()
    assert repository.git("status", "--porcelain") == ""


async def test_of_a_copied_repository_git_itself_is_no_change(places: Places, repository: Repository) -> None:
    write(repository.path / "uncommitted.txt", "x\n")
    at = await places.enter(task := places.task(workspace="copy"), repository.path, PLAIN)
    write(at / "sub" / "b.txt", "three\n")
    repository.commit({"new.txt": "x\n"}, "there", at=at)
    repository.git("branch", "another")
    diff = await compared(places, task)
    assert [line for line in diff.splitlines() if line.startswith("diff")] == [
        "diff --git a/new.txt b/new.txt",
        "diff --git a/sub/b.txt b/sub/b.txt",
    ]
    assert await places.workspaces.changes(task.task_id)
    assert repository.git("status", "--porcelain") == "?? uncommitted.txt"


def test_a_read_only_tree_can_be_removed(tmp_path: Path) -> None:
    write(tmp_path / "tree" / "locked" / "file", "x")
    (tmp_path / "tree" / "locked").chmod(0o500)
    workspace_files.remove(str(tmp_path / "tree"))
    workspace_files.remove(str(tmp_path / "tree"))
    assert not (tmp_path / "tree").exists()
