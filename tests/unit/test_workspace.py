"""Workspaces: where an attempt runs, what becomes of its work, and how they are merged and removed."""

import errno
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnid.executor.workspace_kind import kind_for, uses
from omnid.executor.workspace_record import NAME_CHARS_MAX, key_of
from omnid.model import Work
from omnid.settings import CommandExecutor as Section
from omnid.settings import McpExecutor
from tests.fakes.repository import ENVIRON, Repository, write
from tests.fakes.workspaces import AGENT, PLAIN, Places, refused


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repo")


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path / "workspaces")


# Who works in one.


@pytest.mark.parametrize(
    ("section", "work", "kind"),
    [
        (PLAIN, Work(argv=("make",)), "none"),
        (PLAIN, Work(argv=("claude", "-p", "x")), "worktree"),
        (PLAIN, Work(argv=("/opt/bin/codex", "exec")), "worktree"),
        (PLAIN, Work(argv=("claude",), workspace="none"), "none"),
        (PLAIN, Work(argv=("make",), workspace="copy"), "copy"),
        (AGENT, Work(prompt="x"), "worktree"),
        (Section(name="x", argv=("gemini", "-p")), Work(argv=("x",)), "worktree"),
        (Section(name="x", profile="codex", workspace="none"), Work(argv=("x",)), "none"),
        (Section(name="x", workspace="worktree"), Work(argv=("make",)), "worktree"),
        (Section(name="x", workspace="copy"), Work(argv=("make",), workspace="worktree"), "worktree"),
    ],
)
def test_agents_in_a_repository_get_a_worktree(tmp_path: Path, section: Section, work: Work, kind: str) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "sub").mkdir()
    assert kind_for(section, work, str(tmp_path / "sub")) == kind
    without_git = "none" if kind == "worktree" and not (work.workspace or section.workspace) else kind
    assert kind_for(section, work, "/proc") == without_git


def test_executors_of_agents_use_them() -> None:
    assert [uses(s) for s in (PLAIN, AGENT, Section(name="x", argv=("claude",)), McpExecutor(name="m"))] == [
        False,
        True,
        True,
        False,
    ]
    assert not uses(Section(name="x", profile="codex", workspace="none"))
    assert uses(Section(name="x", workspace="copy"))


@given(st.text(max_size=300), st.uuids(), st.sampled_from((8, 16, 32)))
def test_names_are_plain_and_branches_valid(name: str, id: object, chars: int) -> None:
    key = key_of(name, str(id), chars)
    assert re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?-[0-9a-f]+", key)
    assert len(key) <= NAME_CHARS_MAX + 1 + chars


@given(st.lists(st.tuples(st.text(max_size=60), st.uuids()), min_size=2, max_size=20, unique_by=lambda pair: pair[1]))
def test_whole_ids_never_collide(tasks: list[tuple[str, object]]) -> None:
    assert len({key_of(name, str(id), 32) for name, id in tasks}) == len(tasks)


@pytest.mark.parametrize("name", ["t1", "claude/t7", "..", "a.lock", "-x", "影子/t3", "a b~^:?*[\\", "@{", "x" * 200])
def test_git_takes_the_branch(name: str) -> None:
    key = key_of(name, "0199a1b2-0000-7000-8000-0123456789ab")
    assert subprocess.run(["git", "check-ref-format", "--branch", f"omnid/{key}"], check=False).returncode == 0


# Where attempts run.


async def test_each_task_has_a_worktree_and_a_branch(places: Places, repository: Repository) -> None:
    one, two = places.task("t1"), places.task("agent/t1")
    first = await places.enter(one, repository.path / "sub")
    second = await places.enter(two, repository.path)
    record = places.record(one)
    assert (first / "b.txt").read_text() == "two\n"
    assert first == Path(record.path) / "sub"
    assert (second / "a.txt").exists()
    assert record.branch == f"omnid/t1-{one.task_id.replace('-', '')[-8:]}"
    assert repository.git("branch", "--show-current", at=first) == record.branch
    assert repository.branches() == {"main", record.branch, places.record(two).branch}
    assert stat.S_IMODE(places.root.stat().st_mode) == 0o700
    assert (record.base, record.repository, record.subdirectory) == (
        repository.git("rev-parse", "HEAD"),
        str(repository.path),
        "sub",
    )


async def test_records_that_cant_be_read_now_are_no_fault(
    places: Places, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = places.task()
    await places.enter(task, repository.path)

    def none_left(*_: object) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", none_left)
        await refused(places.enter(task, repository.path), "workspace_down")
        await places.leave(task)
        assert await places.workspaces.changes(task.task_id) == ""
    assert "workspace_not_settled" in places.logged.getvalue()
    assert "changes_not_told" in places.logged.getvalue()
    assert places.record(task) is not None


async def test_retries_use_the_same_worktree(places: Places, repository: Repository) -> None:
    first = await places.enter(task := places.task(), repository.path)
    write(first / "new.txt", "half\n")
    await places.leave(task, "failure")
    repository.commit({"a.txt": "later\n"}, "later")
    again = await places.enter(places.task(number=2, id=task.task_id), repository.path)
    assert again == first
    assert (again / "new.txt").read_text() == "half\n"
    assert (again / "a.txt").read_text() == "one\n"


async def test_a_directory_without_git_is_used_as_it_is(places: Places, tmp_path: Path) -> None:
    assert await places.enter(places.task(), tmp_path) == tmp_path
    assert await places.enter(places.task(), tmp_path / "gone") == tmp_path / "gone"
    await places.leave(places.task())
    assert not places.root.exists()


async def test_many_at_once_in_one_repository(places: Places, repository: Repository) -> None:
    tasks = [places.task(f"t{number}") for number in range(6)]
    found: list[Path] = []

    async def one(command) -> None:
        found.append(await places.enter(command, repository.path))
        write(found[-1] / f"{command.name}.txt", "x")
        await places.leave(command)

    async with anyio.create_task_group() as group:
        for task in tasks:
            group.start_soon(one, task)
    assert len(set(found)) == len(tasks)
    assert len(repository.branches()) == 1 + len(tasks)


async def test_tasks_whose_ids_end_alike_do_not_meet(places: Places, repository: Repository) -> None:
    one = places.task("t1", id="0199a1b2-0000-7000-8000-0000aaaaaaaa")
    two = places.task("t1", id="0199a1b2-0000-7000-8000-1111aaaaaaaa")
    assert await places.enter(one, repository.path) != await places.enter(two, repository.path)
    assert places.record(one).branch != places.record(two).branch
    for task in (one, two):
        assert places.workspaces.of(task.task_id, "t1") == places.record(task)
    assert places.workspaces.of("0199a1b2-0000-7000-8000-2222aaaaaaaa", "t1") is None


async def test_no_hook_of_the_repository_runs(places: Places, repository: Repository, tmp_path: Path) -> None:
    for name in ("post-checkout", "pre-commit", "commit-msg", "post-commit", "pre-merge-commit", "post-merge"):
        hook = repository.path / ".git" / "hooks" / name
        write(hook, f"#!/bin/sh\ntouch {tmp_path}/ran-{name}\n")
        hook.chmod(0o755)
    at = await places.enter(task := places.task(), repository.path)
    write(at / "new.txt", "x")
    await places.leave(task)
    await places.workspaces.merge(places.record(task))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("ran-")] == []
    assert (repository.path / "new.txt").exists()


async def test_git_hears_nothing_of_the_daemons_own_environment(
    places: Places, repository: Repository, tmp_path: Path
) -> None:
    given = {"GIT_DIR": "/nowhere", "GIT_WORK_TREE": "/nowhere", "SECRET": "s3cret"}
    environment = Places(tmp_path / "other", given).workspaces.git._environment
    assert {"GIT_DIR", "GIT_WORK_TREE", "SECRET"}.isdisjoint(environment)
    assert environment["GIT_TERMINAL_PROMPT"] == "0"
    assert (await Places(tmp_path / "third", given).enter(places.task(), repository.path) / "a.txt").exists()


# What becomes of the work.


async def test_an_empty_one_is_removed_after_a_success(places: Places, repository: Repository) -> None:
    at = await places.enter(task := places.task(), repository.path)
    await places.leave(task)
    assert not at.exists()
    assert places.record(task) is None
    assert (repository.branches(), repository.worktrees()) == ({"main"}, [])
    assert [path.name for path in places.root.iterdir()] == []


@pytest.mark.parametrize("outcome", ["failure", "timeout", "cancelled", "lost"])
async def test_a_failure_leaves_it_as_it_is(places: Places, repository: Repository, outcome) -> None:
    at = await places.enter(task := places.task(), repository.path)
    write(at / "a.txt", "changed\n")
    await places.leave(task, outcome)
    assert repository.git("status", "--porcelain", at=at) == "M a.txt"
    assert places.record(task).size_bytes > 0


async def test_what_an_agent_left_uncommitted_is_committed_by_omnid(places: Places, repository: Repository) -> None:
    at = await places.enter(task := places.task("t7"), repository.path / "sub")
    write(at / "new.txt", "x")
    write(at.parent / "a.txt", "changed\n")
    (at / "b.txt").unlink()
    await places.leave(task)
    branch = places.record(task).branch
    assert repository.git("status", "--porcelain", at=at) == ""
    assert repository.git("log", "-1", "--format=%an %cn|%s", branch) == (
        "omnid omnid|Work of t7 that was left uncommitted"
    )
    changed = repository.git("diff", "--name-status", f"main...{branch}").split()
    assert changed == ["M", "a.txt", "D", "sub/b.txt", "A", "sub/new.txt"]


async def test_an_agents_own_branch_counts(places: Places, repository: Repository) -> None:
    at = await places.enter(task := places.task(), repository.path)
    repository.git("switch", "--quiet", "--create", "feature", at=at)
    tip = repository.commit({"new.txt": "x"}, "its own", at=at)
    write(at / "more.txt", "x")
    await places.leave(task)
    record = places.record(task)
    assert repository.git("rev-parse", f"{record.branch}~1") == tip
    assert repository.git("branch", "--show-current", at=at) == record.branch
    await places.workspaces.merge(record)
    assert (repository.path / "more.txt").exists()


async def test_a_branch_that_the_agent_left_behind_is_kept_and_told(places: Places, repository: Repository) -> None:
    at = await places.enter(task := places.task(), repository.path)
    tip = repository.commit({"new.txt": "x"}, "on the branch", at=at)
    repository.git("switch", "--quiet", "--create", "feature", "main", at=at)
    await places.leave(task)
    record = places.record(task)
    assert record.keep
    assert "went over to feature" in record.notes[0]
    assert repository.git("rev-parse", record.branch) == tip


async def test_a_repository_inside_is_never_removed_with_it(places: Places, repository: Repository) -> None:
    at = await places.enter(task := places.task(), repository.path)
    Repository(at / "inner")
    await places.leave(task)
    merged = await places.workspaces.merge(places.record(task))
    assert merged.commits == 1
    assert (at / "inner" / "a.txt").exists()
    assert "in name only" in places.record(task).notes[-1]


async def test_a_deleted_git_file_is_made_again_and_nothing_is_thrown_away(
    places: Places, repository: Repository
) -> None:
    at = await places.enter(task := places.task(), repository.path)
    write(at / "new.txt", "x")
    (at / ".git").unlink()
    await places.leave(task)
    assert (at / "new.txt").exists()
    assert await places.enter(places.task(number=2, id=task.task_id), repository.path) == at
    assert ".git had been deleted" in places.record(task).notes[-1]
    assert repository.git("status", "--porcelain", at=at) == "?? new.txt"


async def test_a_deleted_worktree_comes_back_from_its_branch(places: Places, repository: Repository) -> None:
    at = await places.enter(task := places.task(), repository.path)
    repository.commit({"new.txt": "x"}, "kept", at=at)
    shutil.rmtree(at)
    assert await places.enter(places.task(number=2, id=task.task_id), repository.path) == at
    assert (at / "new.txt").exists()
    assert "it had been deleted, and was made again from its branch" in places.record(task).notes[-1]
    shutil.rmtree(at)
    repository.git("worktree", "prune")
    repository.git("branch", "-D", places.record(task).branch)
    assert await places.enter(places.task(number=3, id=task.task_id), repository.path) == at
    assert "its branch was gone" in places.record(task).notes[-1]


async def test_a_branch_outlives_its_record(places: Places, repository: Repository) -> None:
    at = await places.enter(task := places.task(), repository.path)
    repository.commit({"new.txt": "x"}, "kept", at=at)
    shutil.rmtree(places.root)
    at = await places.enter(places.task(number=2, id=task.task_id), repository.path)
    assert (at / "new.txt").exists()
    assert "its branch was there already" in places.record(task).notes[-1]
    assert places.record(task).base == repository.git("rev-parse", "main")


async def test_a_repository_that_vanished_is_told(places: Places, repository: Repository) -> None:
    await places.enter(task := places.task(), repository.path)
    shutil.rmtree(repository.path)
    shutil.rmtree(places.record(task).path)
    again = places.enter(places.task(number=2, id=task.task_id), repository.path)
    assert "is gone" in (await refused(again, "workspace_impossible")).what


# Clear answers.


async def test_uncommitted_changes_of_the_tree_are_told(places: Places, repository: Repository) -> None:
    write(repository.path / "a.txt", "mine\n")
    at = await places.enter(task := places.task(), repository.path)
    assert (at / "a.txt").read_text() == "one\n"
    assert places.record(task).notes == (f"uncommitted changes of {repository.path} are not in it: a.txt",)


async def test_a_repository_without_commits(places: Places, tmp_path: Path) -> None:
    empty = Repository(tmp_path / "empty", empty=True)
    error = await refused(places.enter(task := places.task(), empty.path), "workspace_impossible")
    assert "no commit yet" in error.what
    assert places.record(task) is None


async def test_a_bare_repository(places: Places, repository: Repository, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    repository.git("clone", "--quiet", "--bare", ".", str(bare))
    assert "bare" in (await refused(places.enter(places.task(), bare), "workspace_impossible")).what


async def test_a_detached_head_is_worked_on_but_not_merged_into(places: Places, repository: Repository) -> None:
    repository.git("checkout", "--quiet", "--detach")
    at = await places.enter(task := places.task(), repository.path)
    write(at / "new.txt", "x")
    await places.leave(task)
    error = await refused(places.workspaces.merge(places.record(task)), "merge_refused")
    assert "no branch is checked out" in error.what


async def test_a_git_file_that_leads_nowhere(places: Places, tmp_path: Path) -> None:
    write(tmp_path / "lost" / ".git", "gitdir: /nowhere/.git/worktrees/lost\n")
    error = await refused(places.enter(places.task(), tmp_path / "lost"), "workspace_impossible")
    assert "leads nowhere" in error.what


async def test_a_repository_of_somebody_else(places: Places, repository: Repository, tmp_path: Path) -> None:
    binary = tmp_path / "bin" / "git"
    write(binary, '#!/bin/sh\nGIT_TEST_ASSUME_DIFFERENT_OWNER=1 PATH=${PATH#*:} exec git "$@"\n')
    binary.chmod(0o755)
    other = Places(tmp_path / "w", {"PATH": f"{binary.parent}:{os.environ['PATH']}"})
    error = await refused(other.enter(other.task(), repository.path), "workspace_impossible")
    assert "another user" in error.what
    assert "safe.directory" in error.do


async def test_an_untracked_directory(places: Places, repository: Repository) -> None:
    (repository.path / "fresh").mkdir()
    error = await refused(places.enter(places.task(), repository.path / "fresh"), "workspace_impossible")
    assert "does not hold the directory" in error.what
    assert (repository.branches(), repository.worktrees()) == ({"main"}, [])


async def test_submodules_are_refused_unless_a_set_up_fills_them(repository: Repository, tmp_path: Path) -> None:
    Repository(tmp_path / "library")
    allow = ("-c", "protocol.file.allow=always")
    repository.git(*allow, "submodule", "--quiet", "add", str(tmp_path / "library"), "lib")
    repository.git("commit", "--quiet", "--message", "lib")
    places = Places(tmp_path / "w1")
    error = await refused(places.enter(places.task(), repository.path), "workspace_impossible")
    assert "lib" in error.what
    set_up = ("git", *allow, "submodule", "--quiet", "update", "--init")
    places = Places(tmp_path / "w2", setup=set_up)
    at = await places.enter(task := places.task(), repository.path)
    assert (at / "lib" / "a.txt").exists()
    await places.leave(task)
    assert not at.exists()
    inside = await places.enter(places.task(), repository.path / "lib")
    assert (inside / "a.txt").exists()


async def test_without_git_the_task_waits(repository: Repository, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    places = Places(tmp_path / "w", {"PATH": str(tmp_path / "bin")})
    outside = tmp_path / "outside"
    outside.mkdir()
    assert await places.enter(places.task(), outside) == outside
    await places.workspaces.check()  # Nothing has needed git so far.
    error = await refused(places.enter(places.task(), repository.path), "workspace_down")
    assert "git was not found" in error.what
    await refused(places.workspaces.check(), "workspace_down")
    write(tmp_path / "bin" / "git", "#!/bin/sh\necho git version 1.8.3\n")
    (tmp_path / "bin" / "git").chmod(0o755)
    assert "at least 2.17" in (await refused(places.workspaces.check(), "workspace_down")).what


async def test_a_worktree_that_another_git_is_making_is_waited_for(repository: Repository, tmp_path: Path) -> None:
    torn, binary = repository.path / ".git" / "worktrees" / "t6-0" / "commondir", tmp_path / "bin" / "git"
    torn.parent.mkdir(parents=True)
    torn.write_text("")
    (torn.parent / "HEAD").write_text("ref: refs/heads/x\n")
    (torn.parent / "gitdir").write_text("/nowhere/.git\n")
    # The other git writes the rest after this one has failed twice.
    write(
        binary,
        f'#!/bin/sh\ncase "$*" in *"worktree add"*) echo x >> {tmp_path}/tries\n'
        f'[ $(wc -l < {tmp_path}/tries) -lt 3 ] || echo ../.. > {torn};; esac\nPATH=${{PATH#*:}} exec git "$@"\n',
    )
    binary.chmod(0o755)
    places = Places(tmp_path / "w", {"PATH": f"{binary.parent}:{os.environ['PATH']}"})
    assert (await places.enter(places.task(), repository.path)).is_dir()
    assert len((tmp_path / "tries").read_text().splitlines()) >= 3


@pytest.mark.parametrize("said", ["fatal: write error: No space left on device", "error: unable to write file big"])
async def test_a_full_disk_is_said_and_leaves_nothing(repository: Repository, tmp_path: Path, said: str) -> None:
    binary = tmp_path / "bin" / "git"
    full = f"echo '{said}' >&2; exit 128"
    write(binary, f'#!/bin/sh\ncase "$*" in *"worktree add"*) {full};; esac\nPATH=${{PATH#*:}} exec git "$@"\n')
    binary.chmod(0o755)
    places = Places(tmp_path / "w", {"PATH": f"{binary.parent}:{os.environ['PATH']}"})
    await refused(places.enter(task := places.task(), repository.path), "disk_full")
    assert places.record(task) is None
    assert (repository.branches(), repository.worktrees()) == ({"main"}, [])


async def test_a_set_up_makes_it_ready_or_fails_the_attempt(repository: Repository, tmp_path: Path) -> None:
    places = Places(tmp_path / "w1", setup=("sh", "-c", "echo made > ready.txt"))
    assert (await places.enter(places.task(), repository.path) / "ready.txt").exists()
    places = Places(tmp_path / "w2", setup=("sh", "-c", "echo no luck >&2; exit 3"))
    error = await refused(places.enter(places.task(), repository.path), "setup_failed")
    assert "exit code 3 and said last: no luck" in error.what
    places = Places(tmp_path / "w3", setup=("sleep", "600"), setup_timeout_s=0.2)
    error = await refused(places.enter(task := places.task(), repository.path), "setup_failed")
    assert "took longer" in error.what
    places = Places(tmp_path / "w4", setup=("no-such-program",))
    await refused(places.enter(places.task(), repository.path), "setup_failed")
    assert places.record(task) is None
    assert ENVIRON["HOME"] == "/nonexistent"
