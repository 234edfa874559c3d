"""What git does for workspaces: worktrees made, looked at, committed in, merged and removed.

Nothing here knows of limits or of tasks' states; every function that changes something is called under the lock of the
workspace, which git inherits.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.to_thread
import msgspec

from omnid.errors import Rejected
from omnid.executor import workspace_files
from omnid.executor.git import IDENTITY, LONG_S, MERGE_VERSION_MIN, Done, Git, dotted, end
from omnid.executor.spool import printable
from omnid.executor.workspace_record import Record

BRANCHES = "omnid/"
NAMED_MAX = 10
"""How many files an error names."""
SETUP_SAID_BYTES_MAX = 300
_NESTED = "embedded git repository"

UNFIT = "Run it where it is with `--workspace none`, or in a copy with `--workspace copy`."


class Base(NamedTuple):
    """What a worktree is made from."""

    repository: str
    """The top of the working tree that the directory lies in."""
    common_dir: str
    subdirectory: str
    commit: str


class State(NamedTuple):
    """How a worktree is now."""

    there: bool
    """False where somebody deleted its directory."""
    tip: str | None
    """The commit that its work has come to; None where the branch is gone too."""
    dirty: bool
    """Whether something in it is not committed (and not ignored)."""
    merged: bool
    """Whether the branch that is checked out in the repository holds the tip."""

    def empty(self, base: str) -> bool:
        """Tells whether nothing has come of it."""
        return not self.dirty and self.tip in (None, base)


async def look(git: Git, directory: str) -> Base:
    """Finds out what a worktree for this directory would be made from.

    Raises Rejected ``workspace_impossible``, each case with its way out, and what `Git.run` raises.
    """
    await git.version()
    wanted = ("--show-toplevel", "--show-prefix", "--git-common-dir", "HEAD^{commit}")
    done = await git.run(directory, "rev-parse", *wanted)
    if "unknown revision" in done.err:
        detail = f"the repository {done.text.partition(chr(10))[0]} has no commit yet"
        raise impossible(directory, detail, "Make a first commit, or submit the task with `--workspace none`.")
    lines = done.text.split("\n")
    if done.code != 0 or len(lines) != len(wanted):
        raise _unfit(directory, done)
    top, prefix, common_dir, commit = lines
    return Base(top, _absolute(directory, common_dir), prefix.rstrip("/"), commit)


def _absolute(directory: str, path: str) -> str:
    return os.path.realpath(os.path.join(directory, path))


async def submodules(git: Git, repository: str) -> list[str]:
    """Names the submodules of a tree."""
    if not workspace_files.has(repository, ".gitmodules"):
        return []
    done = await git.run(repository, "config", "-z", "--file", ".gitmodules", "--get-regexp", r"^submodule\..*\.path$")
    return [printable(entry.partition(b"\n")[2]) for entry in done.out.split(b"\0") if entry]


async def uncommitted(git: Git, directory: str) -> list[str]:
    """Names, to be shown, what is not committed in a tree, without what is ignored."""
    words = ("status", "--porcelain=v1", "-z", "--no-renames", "--untracked-files=normal", "--ignore-submodules=dirty")
    done = await git.run(directory, *words, deadline_s=LONG_S)
    return [printable(entry[3:]) for entry in done.out.split(b"\0") if entry] if done.code == 0 else []


async def make(git: Git, record: Record, hold: int) -> Record:
    """Makes the worktree of a record, with its branch; a branch that is there already is taken up with its work."""
    words = ("worktree", "add", "--quiet", "--force")
    new = ("--no-track", "-b", record.branch, record.path, record.base)
    done = await git.run(record.repository, *words, *new, deadline_s=LONG_S, hold=hold)
    if done.code != 0 and "already exists" in done.err and await tip_of_branch(git, record):
        await git.need(record.common_dir, *words, record.path, record.branch, deadline_s=LONG_S, hold=hold)
        base = await git.run(record.repository, "merge-base", record.branch, "HEAD")
        record = msgspec.structs.replace(record, base=base.text if base.code == 0 else record.base)
        return record.noted(f"its branch was there already, and it goes on from there ({record.branch})")
    if done.code != 0:
        raise _unfit(record.repository, done)
    return record


async def restore(git: Git, record: Record, hold: int) -> Record:
    """Brings back a worktree that somebody deleted, in part or whole: what was committed is there again."""
    if workspace_files.is_directory(record.path):
        await git.run(record.common_dir, "worktree", "repair", hold=hold)
        if workspace_files.is_worktree(record.path):
            return record.noted("its .git had been deleted, and was made again")
        detail = f"its workspace {record.path} is no worktree any more, because somebody deleted its .git"
        remedy = f"Save what you need from there, then `omnictl workspaces rm {record.task}`."
        raise impossible(record.directory, detail, remedy)
    branch = await tip_of_branch(git, record)
    new = (record.path, record.branch) if branch else ("--no-track", "-b", record.branch, record.path, record.base)
    words = ("worktree", "add", "--quiet", "--force", "--force", *new)
    await git.need(record.common_dir, *words, deadline_s=LONG_S, hold=hold)
    had = "from its branch; what was not committed is gone" if branch else "from its first commit; its branch was gone"
    return record.noted(f"it had been deleted, and was made again {had}")


async def set_up(git: Git, argv: Sequence[str], record_task: str, place: str, timeout_s: float) -> None:
    """Runs the config's command that makes a worktree ready; raises Rejected ``setup_failed``."""
    said = b""
    try:
        process = await anyio.open_process(
            argv,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            cwd=place,
            env=git.environment,
            start_new_session=True,
        )
    except OSError as error:
        raise Rejected("setup_failed", task=record_task, detail=f"{argv[0]} can't be started: {error}") from error
    async with process:
        try:
            with anyio.fail_after(timeout_s):
                if process.stdout is not None:
                    async for chunk in process.stdout:
                        said = (said + chunk)[-SETUP_SAID_BYTES_MAX:]
                code = await process.wait()
        except TimeoutError:
            detail = f"{argv[0]} took longer than {timeout_s:.0f} s"
            raise Rejected("setup_failed", task=record_task, detail=detail) from None
        finally:
            end(process)
    if code != 0:
        last = (printable(said).strip().splitlines() or ["nothing"])[-1]
        detail = f"{argv[0]} ended with exit code {code} and said last: {last}"
        raise Rejected("setup_failed", task=record_task, detail=detail)


async def tip_of_branch(git: Git, record: Record) -> str | None:
    """Gives the commit of the workspace's branch; None where it is gone."""
    words = ("rev-parse", "--verify", "--quiet", f"refs/heads/{record.branch}^{{commit}}")
    done = await git.run(record.common_dir, *words)
    return done.text if done.code == 0 else None


async def state(git: Git, record: Record) -> State:
    """Looks at a worktree; its own HEAD counts, because agents make branches of their own."""
    there = workspace_files.is_worktree(record.path)
    tip, dirty = None, False
    if there:
        head = await git.run(record.path, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
        tip = head.text if head.code == 0 else None
        dirty = bool(await uncommitted(git, record.path))
    if tip is None and workspace_files.is_directory(record.common_dir):
        tip = await tip_of_branch(git, record)
    merged = False
    if tip is not None and workspace_files.is_directory(record.repository):
        merged = (await git.run(record.repository, "merge-base", "--is-ancestor", tip, "HEAD")).code == 0
    return State(there, tip, dirty, merged)


async def commit_left(git: Git, record: Record, hold: int) -> Record:
    """Commits what an agent has left uncommitted, on the task's branch, so that diff and merge see it.

    Where the agent has made a branch of its own, the task's branch is moved up to it first.
    """
    branch = f"refs/heads/{record.branch}"
    head = await git.run(record.path, "symbolic-ref", "--quiet", "HEAD")
    if head.text != branch:
        ahead = await git.run(record.path, "merge-base", "--is-ancestor", branch, "HEAD")
        if ahead.code != 0 and await tip_of_branch(git, record):
            where = head.text.removeprefix("refs/heads/") or "no branch"
            kept = msgspec.structs.replace(record, keep=True)
            return kept.noted(f"its agent went over to {where}, which does not hold what is on {record.branch}")
        await git.need(record.path, "update-ref", branch, "HEAD", hold=hold)
        await git.need(record.path, "symbolic-ref", "HEAD", branch, hold=hold)
    if not await uncommitted(git, record.path):
        return record
    added = await git.run(record.path, "add", "--all", deadline_s=LONG_S, hold=hold)
    if added.code != 0:
        return msgspec.structs.replace(record, keep=True).noted(f"what is uncommitted can't be added: {added.said}")
    if _NESTED in added.err:
        record = msgspec.structs.replace(record, keep=True).noted("a repository in it is held by git in name only")
    message = f"Work of {record.task} that was left uncommitted\n\nOmnid-Task: {record.task_id}\n"
    words = (*IDENTITY, "commit", "--quiet", "--no-verify", "--message", message)
    done = await git.run(record.path, *words, deadline_s=LONG_S, hold=hold)
    if done.code != 0:
        return msgspec.structs.replace(record, keep=True).noted(f"what is uncommitted can't be committed: {done.said}")
    return record


async def tree(git: Git, record: Record, scratch: Path) -> str:
    """Gives the commit or tree that holds all work so far, committed or not; changes nothing that an agent sees.

    Raises Rejected ``no_workspace`` where both the directory and the branch are gone.
    """
    if not workspace_files.is_directory(record.common_dir):
        raise Rejected("no_workspace", task=record.task, detail=f"Its repository {record.common_dir} is gone.")
    now = await state(git, record)
    if now.tip is None:
        detail = f"Its directory {record.path} and its branch {record.branch} were deleted."
        raise Rejected("no_workspace", task=record.task, detail=detail)
    if not now.dirty:
        return now.tip
    index = os.path.join(record.path, await git.need(record.path, "rev-parse", "--git-path", "index"))
    try:
        await anyio.to_thread.run_sync(shutil.copyfile, index, str(scratch))
        await git.need(record.path, "add", "--all", deadline_s=LONG_S, index=str(scratch))
        return await git.need(record.path, "write-tree", index=str(scratch))
    finally:
        await anyio.to_thread.run_sync(partial(scratch.unlink, missing_ok=True))


async def trees_of_copy(git: Git, record: Record, scratch: Path) -> str:
    """Gives ``TREE..TREE``: what the copied directory holds now, and what its copy does, both without what git ignores.

    The copy's own repository keeps them; its index and the original stay as they are.
    """
    own = f"--git-dir={record.path}/.git"
    found: list[str] = []
    for place in (record.directory, record.path):
        try:
            words = (own, f"--work-tree={place}", "add", "--all")
            await git.need(place, *words, deadline_s=LONG_S, index=str(scratch))
            found.append(await git.need(place, own, "write-tree", index=str(scratch)))
        finally:
            await anyio.to_thread.run_sync(partial(scratch.unlink, missing_ok=True))
    return "..".join(found)


async def remove(git: Git, record: Record, hold: int) -> None:
    """Removes a worktree and its branch, with whatever is in them; all of it may be gone already."""
    known = workspace_files.is_directory(record.common_dir)
    if known:
        words = ("worktree", "remove", "--force", "--force", record.path)
        await git.run(record.common_dir, *words, deadline_s=LONG_S, hold=hold)
    await anyio.to_thread.run_sync(workspace_files.remove, record.path)
    if known:
        await git.run(record.common_dir, "branch", "--quiet", "-D", record.branch, hold=hold)


class Merged(NamedTuple):
    """What a merge did."""

    into: str
    commits: int
    files: list[str]


def check_target(record: Record) -> None:
    """Raises Rejected ``merge_refused`` where the tree that a merge would go into is gone."""
    if not workspace_files.is_directory(record.repository):
        raise refused(record, "the directory is gone", f"The work is on {record.branch} in {record.common_dir}.")


async def merge(git: Git, record: Record, hold: int) -> Merged:
    """Merges a workspace's branch into the branch that is checked out in the repository.

    It is tried beside the tree first. Raises Rejected ``merge_conflict`` and ``merge_refused``; the tree then stays as
    it was.
    """
    repository = record.repository
    head = await git.run(repository, "symbolic-ref", "--quiet", "--short", "HEAD")
    if head.code != 0:
        raise refused(record, "no branch is checked out there", f"Check one out: `git -C {repository} switch main`.")
    into, tip = printable(head.out).rstrip("\n"), await tip_of_branch(git, record)
    if tip is None:
        raise refused(record, f"its branch {record.branch} is gone", f"Look into {record.path}.")
    count = await git.need(repository, "rev-list", "--count", f"HEAD..{tip}")
    if count == "0":
        return Merged(into, 0, [])
    await _try_merge(git, record, into, tip)
    files = await git.need(repository, "diff", "--name-only", "-z", f"HEAD...{tip}")
    who = await git.run(repository, "var", "GIT_COMMITTER_IDENT")
    identity = () if who.code == 0 else IDENTITY
    message = f"Merge {record.task} ({record.branch})"
    words = (*identity, "merge", "--quiet", "--ff", "--no-edit", "--no-verify", "--no-autostash", "-m", message, tip)
    done = await git.run(repository, *words, deadline_s=LONG_S, hold=hold)
    if done.code != 0:
        raise await _merge_failed(git, record, done)
    return Merged(into, int(count), [printable(os.fsencode(name)) for name in files.split("\0") if name])


async def _try_merge(git: Git, record: Record, into: str, tip: str) -> None:
    version = await git.version()
    if version < MERGE_VERSION_MIN:
        detail = f"git is {dotted(version)}, and at least {dotted(MERGE_VERSION_MIN)} can try a merge beside the tree"
        raise refused(record, detail, f"Upgrade git, or merge by hand: `git merge {record.branch}`.")
    words = ("merge-tree", "--write-tree", "--name-only", "--no-messages", "-z", "HEAD", tip)
    done = await git.run(record.repository, *words, deadline_s=LONG_S)
    if done.code == 0:
        return
    if done.code != 1:
        raise refused(record, done.said, f"Merge by hand to see more: `git merge {record.branch}`.")
    names = [printable(name) for name in done.out.split(b"\0")[1:] if name]
    raise Rejected(
        "merge_conflict",
        task=record.task,
        into=into,
        files=_named(sorted(set(names))),
        branch=record.branch,
        repository=record.repository,
        path=record.path,
    )


async def _merge_failed(git: Git, record: Record, done: Done) -> Rejected:
    """Says why git refused a merge that has no conflict; what it began nevertheless is taken back."""
    touched = [line.strip() for line in done.err.splitlines() if line.startswith("\t")]
    if "would be overwritten" in done.err and touched:
        detail = f"it would overwrite uncommitted changes in {_named(touched)}"
        return refused(record, detail, "Commit or stash them, then merge again.")
    if "not concluded" in done.err or "unmerged" in done.err.lower():
        return refused(record, "another merge is under way there", "Finish it, then merge again.")
    await git.run(record.repository, "merge", "--abort")
    return refused(record, done.said, f"Mend that, or merge by hand: `git merge {record.branch}`.")


def refused(record: Record, detail: str, remedy: str) -> Rejected:
    """Makes the error of a merge that can't be done now."""
    where = record.repository or record.directory
    return Rejected("merge_refused", task=record.task, repository=where, detail=detail, remedy=remedy)


def impossible(directory: str, detail: str, remedy: str) -> Rejected:
    """Makes the error of a workspace that can't be made."""
    return Rejected("workspace_impossible", directory=directory, detail=detail, remedy=remedy)


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
    return ", ".join(names[:NAMED_MAX]) + more


def _unfit(directory: str, done: Done) -> Rejected:
    """Says why git makes no worktree here."""
    if "dubious ownership" in done.err:
        detail = "the repository belongs to another user, and git doesn't trust it (safe.directory)"
        remedy = f"`git config --global --add safe.directory {directory}` if you trust it, or `--workspace none`."
    elif "must be run in a work tree" in done.err:
        detail = "it is a bare repository or lies inside of one, where nothing is checked out"
        remedy = "Give a directory of a working tree with `--cwd`, or submit the task with `--workspace none`."
    elif "not a git repository (or any" in done.err:
        detail, remedy = "it lies in no git repository", UNFIT
    elif "not a git repository" in done.err or "invalid gitfile" in done.err:
        detail = f"its .git file leads nowhere (git says: {done.said})"
        remedy = "Mend it with `git worktree repair`, or submit the task with `--workspace none`."
    else:
        detail = f"git says: {done.said}"
        remedy = "Mend that in the repository, or submit the task with `--workspace none`."
    return impossible(directory, detail, remedy)
