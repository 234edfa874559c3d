"""Where agents work: each task in a place of its own, made at its first attempt and kept until its work is taken over.

`enter` gives an attempt its directory and `leave` hears of its end; all else is asked for by people. What is on the
disk is the truth: a record beside each workspace, and git's own data. docs/workspaces.md tells it from the outside.
"""

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import anyio
import anyio.to_thread
import msgspec

from omnid.clock import Clock
from omnid.errors import OmnidError, Rejected, Retryable
from omnid.executor import workspace_files, worktree
from omnid.executor.git import Git
from omnid.executor.spool import printable
from omnid.executor.workspace_pool import Pool
from omnid.executor.workspace_record import Record, Records, mapped
from omnid.executor.worktree import UNFIT, impossible
from omnid.log import Logger
from omnid.model import Command, Result, Work
from omnid.settings import AGENT_PROGRAMS, CommandExecutor, Executor, Workspace
from omnid.states import TERMINAL

States = Callable[[Sequence[str]], Awaitable[Mapping[str, str]]]
"""Gives the states of the tasks that the journal knows, by id."""

POOL = "pool"
DIFF_INDEX = ".index"
STAT_BYTES_MAX = 4_000
NAMED_MAX = 5
DIFF_S = 60.0
SWEEP_S = 3600.0
SWEEP_LOCK_S = 0.1
NOTED_MAX = 5
RETAKEN = ("uncertain",)
"""Beside the states that end a task, those in which its work may be merged or removed."""

Condition = Literal["making", "running", "waiting", "kept", "empty", "merged", "orphaned", "deleted"]
"""How a workspace is: `kept` holds work of a task that has ended, `orphaned` of one that the journal has forgotten."""


class Listed(NamedTuple):
    """A workspace, and how it is."""

    record: Record
    condition: Condition
    dirty: bool


def uses(section: Executor) -> bool:
    """Tells whether the tasks of an executor work in workspaces by themselves: it runs an agent, or says so."""
    if not isinstance(section, CommandExecutor) or section.workspace == "none":
        return False
    return section.workspace is not None or section.profile is not None or _is_agent(section.argv)


def kind_for(section: CommandExecutor, work: Work, directory: str) -> str:
    """Decides what a task works in: what it asks for, what its executor says, or a worktree for agents in git."""
    asked = work.workspace or section.workspace
    if asked is not None:
        return asked
    agent = section.profile is not None or _is_agent((*section.argv, *(work.argv or ())))
    return "worktree" if agent and _in_git(directory) else "none"


def _is_agent(argv: Sequence[str]) -> bool:
    return bool(argv) and os.path.basename(argv[0]) in AGENT_PROGRAMS


def _in_git(directory: str) -> bool:
    """Tells whether git would find a repository here; without git, so that it is known where git is missing."""
    if all(os.path.exists(os.path.join(directory, name)) for name in ("HEAD", "objects", "refs")):
        return True
    path = Path(directory)
    return any((above / ".git").exists() or (above / ".git").is_symlink() for above in (path, *path.parents))


class Workspaces:
    """The workspaces of one daemon, under one root."""

    def __init__(
        self, root: Path, settings: Workspace, environ: Mapping[str, str], clock: Clock, log: Logger, states: States
    ) -> None:
        self.git = Git(environ)
        self.records = Records(root)
        self.pool = Pool(self.records.root / POOL, self.git, settings, clock, log)
        self._settings = settings
        self._clock = clock
        self._log = log
        self._states = states
        self._making = anyio.Lock()
        self._merging = anyio.Lock()
        self._needs_git = False

    def configure(self, settings: Workspace) -> None:
        """Takes over the settings of a changed config."""
        self._settings = settings
        self.pool.configure(settings)

    @property
    def settings(self) -> Workspace:
        """The settings in use."""
        return self._settings

    async def run(self) -> None:
        """Removes now and then what nobody needs any more; ends when it is cancelled. `Pool.run` is its own loop."""
        while True:
            await self.sweep()
            await anyio.sleep(SWEEP_S)

    async def enter(self, command: Command, section: CommandExecutor, directory: str) -> str:
        """Gives the directory for an attempt: its task's workspace, made if need be, or else `directory` itself.

        Raises Retryable ``workspace_full`` (it goes on when room is made), ``workspace_down`` and ``disk_full``;
        Rejected ``workspace_impossible`` and ``setup_failed``.
        """
        record = self.records.of(command.task_id)
        if record is None:
            kind = kind_for(section, command.work, directory)
            if kind == "none" or not workspace_files.is_directory(directory):
                return directory
        key = self.records.free_key(command.name, command.task_id) if record is None else record.key
        async with self.records.hold(key) as hold:
            record = self.records.of(command.task_id)
            if record is not None and not record.ready:
                await self._remove(record, hold)  # A crash cut it off, so no attempt has worked in it.
                record = None
            if record is None:
                kind = kind_for(section, command.work, directory)
                make = self._new_copy if kind == "copy" else self._new_worktree
                record = await make(command, directory, key, hold)
            elif not _is_whole(record):
                record = await self._restored(record, hold)
        return record.place

    async def leave(self, command: Command, result: Result) -> None:
        """Hears that an attempt has ended, before its result is in the journal.

        After a success, what was left uncommitted is committed, and a workspace in which nothing has come of it is
        removed. Whatever fails here fails the next time too, so it is logged and noted, and the work stays.
        """
        record = self.records.of(command.task_id)
        if record is None or not record.ready:
            return
        try:
            async with self.records.hold(record.key) as hold:
                await self._settle(record, hold, done=result.outcome == "success")
        except OmnidError as error:
            self._log.warning("workspace_not_settled", task=command.name, **error.as_dict())

    async def changes(self, task_id: str) -> str:
        """Gives ``git diff --stat`` of a task's work so far; empty where it has no workspace, or git can't tell."""
        record = self.records.of(task_id)
        if record is None or not record.ready:
            return ""
        try:
            stat, _, more = await self.diff(record, stat=True, to=None, skip_bytes=0, bytes_max=STAT_BYTES_MAX)
        except OmnidError as error:
            self._log.warning("changes_not_told", task=record.task, **error.as_dict())
            return ""
        return printable(stat).rstrip("\n") + ("\n..." if more else "")

    async def check(self) -> None:
        """Raises Retryable where no task could get a workspace now: for the probes of executors that use them.

        While unfinished tasks have workspaces, a lack of room is no reason: they need none to go on and make some.
        Nor is a lack of git before a task has needed it: agents work without it where there is no repository.
        """
        if self._needs_git:
            await self.git.version()
        if self._lacks() is None:
            return
        records = self.records.all()
        states = await self._states([record.task_id for record in records])
        if all(state in TERMINAL for state in states.values()):
            await self._make_room("the next task")

    def of(self, task_id: str, task: str | None = None) -> Record | None:
        """Gives the record of a task's workspace; see `Records.of`."""
        return self.records.of(task_id, task)

    def named(self, name: str) -> Record | None:
        """Finds a workspace by its task's short name or id, also where the journal has forgotten the task."""
        found = [record for record in self.records.all() if name in (record.task, record.task_id)]
        return found[-1] if found else None

    async def listed(self) -> list[Listed]:
        """Gives all workspaces, the oldest first, and measures those that were never measured."""
        records = self.records.all()
        states = await self._states([record.task_id for record in records])
        found: list[Listed] = []
        for record in records:
            size_bytes = record.size_bytes
            if record.ready and size_bytes is None:
                size_bytes = await anyio.to_thread.run_sync(workspace_files.size_bytes, record.path)
            measured = msgspec.structs.replace(record, size_bytes=size_bytes)
            found.append(await self._with_condition(measured, states.get(record.task_id)))
        return found

    async def diff(
        self, record: Record, *, stat: bool, to: str | None, skip_bytes: int, bytes_max: int
    ) -> tuple[bytes, str, bool]:
        """Gives a piece of what a task has changed, what it is compared up to (for the next piece), and if more comes.

        Raises Rejected ``no_workspace`` where nothing is left of it.
        """
        words = ("diff", "--no-color", "--no-ext-diff", "--no-textconv", *(("--stat",) if stat else ()))
        run = partial(self.git.run, deadline_s=DIFF_S, skip_bytes=skip_bytes, bytes_max=bytes_max)
        if record.kind == "copy":
            if not workspace_files.is_directory(record.path) or not workspace_files.is_directory(record.directory):
                detail = f"{record.path} or {record.directory}, from which it was copied, was deleted."
                raise Rejected("no_workspace", task=record.task, detail=detail)
            if workspace_files.has(record.path, ".git"):
                to = to or await worktree.trees_of_copy(
                    self.git, record, self.records.root / f".{record.key}{DIFF_INDEX}"
                )
                done = await run(record.path, *words, *to.split(".."), "--")
                return done.out, to, done.cut
            done = await run("/", *words, "--no-index", "--", record.directory, record.path)
            return done.out, "copy", done.cut
        if to is None:
            to = await worktree.tree(self.git, record, self.records.root / f".{record.key}{DIFF_INDEX}")
        done = await run(record.common_dir, *words, record.base, to, "--")
        if done.code != 0:
            raise Rejected("no_workspace", task=record.task, detail=f"git can't compare it any more: {done.said}.")
        return done.out, to, done.cut

    async def merge(self, record: Record) -> worktree.Merged:
        """Merges a task's work into the branch that is checked out where it came from, and removes the workspace.

        Raises Rejected ``workspace_busy``, ``merge_conflict``, ``merge_refused``, ``no_workspace``.
        """
        if record.kind == "copy":
            detail = "its workspace is a copy, which has no branch"
            raise worktree.refused(record, detail, f"Take what you need from {record.path}, then remove it.")
        async with self._merging, self.records.hold(record.key) as hold:
            record = await self._at_rest(record)
            worktree.check_target(record)
            if workspace_files.is_worktree(record.path):
                record = await self.records.write(await worktree.commit_left(self.git, record, hold))
            merged = await worktree.merge(self.git, record, hold)
            if not record.keep:
                await self._remove(record, hold)
        return merged

    async def remove(self, record: Record) -> None:
        """Removes a workspace with all that is in it; raises Rejected ``workspace_busy``, ``no_workspace``."""
        async with self.records.hold(record.key) as hold:
            await self._remove(await self._at_rest(record), hold)

    async def sweep(self, *, finished: bool = False) -> int:
        """Removes the workspaces that nobody needs: merged or empty, of tasks that succeeded or are forgotten.

        With `finished` also those of tasks that failed or were cancelled. Gives how many went.
        """
        records = self.records.all()
        states = await self._states([record.task_id for record in records])
        gone = 0
        for record in records:
            state = states.get(record.task_id)
            if state is not None and (state not in TERMINAL or (state != "completed" and not finished)):
                continue
            try:
                async with self.records.hold(record.key, SWEEP_LOCK_S) as hold:
                    now = self.records.of(record.task_id)
                    if now is not None and (not now.ready or await self._needless(now)):
                        await self._remove(now, hold)
                        gone += 1
            except OmnidError as error:
                self._log.warning("workspace_not_swept", task=record.task, **error.as_dict())
        return gone

    async def _new_worktree(self, command: Command, directory: str, key: str, hold: int) -> Record:
        self._needs_git = True
        base = await worktree.look(self.git, directory)
        await self._check_submodules(base, directory)
        record = Record(
            key=key,
            task_id=command.task_id,
            task=command.name,
            kind="worktree",
            directory=directory,
            path=str(self.records.root / key),
            subdirectory=base.subdirectory,
            repository=base.repository,
            common_dir=base.common_dir,
            base=base.commit,
            branch=f"{worktree.BRANCHES}{key}",
            created_at_ms=self._clock.wall_ms(),
        )
        await self._begin(record)
        notes: list[str] = []
        failed: OmnidError | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(self._note_uncommitted, base.repository, notes)
            try:
                record = await self._made(record, hold, command.timeout_s)
            except OmnidError as error:
                failed = error
                group.cancel_scope.cancel()
        if failed is not None:
            await self._remove(record, hold)
            raise failed
        await self.pool.used(base)
        for note in notes:
            record = record.noted(note)
        return await self.records.write(msgspec.structs.replace(record, ready=True))

    async def _made(self, record: Record, hold: int, timeout_s: float) -> Record:
        """Makes a worktree that can be worked in: taken from those made ahead, or new and set up."""
        taken = await self.pool.take(record, hold)
        if not taken:
            record = await worktree.make(self.git, record, hold)
        if not workspace_files.is_directory(record.place):
            detail = "git does not hold the directory, so a worktree would not have it"
            raise impossible(record.directory, detail, f"Commit something in it. {UNFIT}")
        if not taken and self._settings.setup:
            limit_s = min(self._settings.setup_timeout_s, timeout_s)
            await worktree.set_up(self.git, self._settings.setup, record.task, record.path, limit_s)
        return record

    async def _check_submodules(self, base: worktree.Base, directory: str) -> None:
        """Raises Rejected where submodules would be missing: a set-up can fill them, and nothing else here."""
        names = [] if self._settings.setup else await worktree.submodules(self.git, base.repository)
        if names:
            detail = f"it has submodules ({', '.join(names[:NOTED_MAX])}), which are empty in a new worktree"
            remedy = 'Fill them with workspace.setup = ["git", "submodule", "update", "--init"]. ' + UNFIT
            raise impossible(directory, detail, remedy)

    async def _note_uncommitted(self, repository: str, notes: list[str]) -> None:
        """Says what the tree has and a worktree of its commit has not; where git can't tell, it says that."""
        try:
            dirty = await worktree.uncommitted(self.git, repository)
        except OmnidError as error:
            notes.append(f"whether {repository} has uncommitted changes is not known: {error.what}")
            return
        if dirty:
            more = f" and {len(dirty) - NOTED_MAX} more" if len(dirty) > NOTED_MAX else ""
            notes.append(f"uncommitted changes of {repository} are not in it: {', '.join(dirty[:NOTED_MAX])}{more}")

    async def _new_copy(self, command: Command, directory: str, key: str, hold: int) -> Record:
        record = Record(
            key=key,
            task_id=command.task_id,
            task=command.name,
            kind="copy",
            directory=directory,
            path=str(self.records.root / key),
            created_at_ms=self._clock.wall_ms(),
        )
        if workspace_files.is_linked(directory):
            detail = "it is a git worktree or submodule, and a copy would share its index"
            raise impossible(directory, detail, "Use `--workspace worktree`, or run it where it is with `none`.")
        await self._begin(record)
        try:
            left_out = await self._copy(record)
        except (OmnidError, anyio.get_cancelled_exc_class()):
            with anyio.CancelScope(shield=True):
                await self._remove(record, hold)
            raise
        if left_out:
            record = record.noted(f"{left_out} sockets, pipes or devices were not copied")
        size_bytes = await anyio.to_thread.run_sync(workspace_files.size_bytes, record.path)
        return await self.records.write(msgspec.structs.replace(record, ready=True, size_bytes=size_bytes))

    async def _copy(self, record: Record) -> int:
        stop = False

        def stopped() -> bool:
            return stop

        limit_bytes = self._settings.bytes_max
        used_bytes = sum(other.size_bytes or 0 for other in self.records.all())
        args = (record.directory, record.path, str(self.records.root), limit_bytes - used_bytes, stopped)
        with mapped(self.records.root):
            try:
                return await anyio.to_thread.run_sync(partial(workspace_files.copy, *args), abandon_on_cancel=True)
            except workspace_files.TooLarge:
                if used_bytes == 0:
                    detail = f"it is larger than workspace.bytes_max ({limit_bytes} bytes)"
                    raise impossible(record.directory, detail, "Raise workspace.bytes_max, or use `none`.") from None
                detail = f"a copy of {record.directory} would pass workspace.bytes_max ({limit_bytes} bytes)"
                raise await self._full(record.task, detail) from None
            finally:
                stop = True

    async def _begin(self, record: Record) -> None:
        """Writes the record of a workspace that is to be made, if there is room; two tasks don't share the last one."""
        async with self._making:
            if self._lacks() is not None:
                await self._make_room(record.task)
            await self.records.write(record)

    def _lacks(self) -> str | None:
        """Says what there is too much of for another workspace; None: there is room."""
        records, settings = self.records.all(), self._settings
        if len(records) >= settings.kept_max:
            return f"{len(records)} are there, and workspace.kept_max is {settings.kept_max}"
        size_bytes = sum(record.size_bytes or 0 for record in records)
        if size_bytes >= settings.bytes_max:
            return f"they take {size_bytes} bytes, and workspace.bytes_max is {settings.bytes_max}"
        return None

    async def _make_room(self, task: str) -> None:
        """Removes what nobody needs; raises Retryable ``workspace_full`` where that is not enough."""
        await self.sweep(finished=True)
        detail = self._lacks()
        if detail is not None:
            raise await self._full(task, detail)

    async def _full(self, task: str, detail: str) -> Retryable:
        records = self.records.all()
        states = await self._states([record.task_id for record in records])
        ended = [record.task for record in records if states.get(record.task_id, "completed") in TERMINAL]
        names = ", ".join(ended[:NAMED_MAX]) or "none of them has ended yet"
        return Retryable("workspace_full", task=task, detail=detail, tasks=names)

    async def _restored(self, record: Record, hold: int) -> Record:
        if record.kind == "copy":
            detail = f"its copy {record.path} was deleted"
            raise impossible(record.directory, detail, f"`omnictl workspaces rm {record.task}`, then retry the task.")
        if not workspace_files.is_directory(record.common_dir):
            detail = f"the repository {record.common_dir} is gone"
            raise impossible(record.directory, detail, f"What it holds of the work lies in {record.path}.")
        return await self.records.write(await worktree.restore(self.git, record, hold))

    async def _settle(self, record: Record, hold: int, *, done: bool) -> None:
        """Takes stock after an attempt: commits, measures, and removes what is empty or merged."""
        if done and record.kind == "worktree" and _is_whole(record):
            record = await worktree.commit_left(self.git, record, hold)
        if done and await self._needless(record):
            await self._remove(record, hold)
            return
        size_bytes = await anyio.to_thread.run_sync(workspace_files.size_bytes, record.path)
        await self.records.write(msgspec.structs.replace(record, size_bytes=size_bytes))

    async def _needless(self, record: Record) -> bool:
        """Tells whether nothing would be lost with a workspace: all of it is elsewhere too."""
        if record.keep:
            return False
        if record.kind == "copy":
            if not workspace_files.is_directory(record.directory) or not workspace_files.is_directory(record.path):
                return not workspace_files.is_directory(record.path)
            roots = (record.directory, record.path, str(self.records.root))
            return await anyio.to_thread.run_sync(workspace_files.same, *roots)
        now = await worktree.state(self.git, record)
        if workspace_files.is_directory(record.path) and not now.there:
            return False  # Somebody deleted its .git, so that git can't say what else lies in it.
        return now.empty(record.base) or (now.merged and not now.dirty)

    async def _remove(self, record: Record, hold: int) -> None:
        with mapped(self.records.root):
            if record.kind == "worktree":
                await worktree.remove(self.git, record, hold)
            else:
                await anyio.to_thread.run_sync(workspace_files.remove, record.path)
        await self.records.forget(record)

    async def _at_rest(self, record: Record) -> Record:
        """Reads a record again under its lock; raises Rejected where its task may still work in it."""
        now = self.records.of(record.task_id)
        if now is None:
            raise Rejected("no_workspace", task=record.task, detail="It was merged or removed a moment ago.")
        state = (await self._states([record.task_id])).get(record.task_id)
        if state is not None and state not in TERMINAL and state not in RETAKEN:
            raise Rejected("workspace_busy", task=record.task, state=state)
        return now

    async def _with_condition(self, record: Record, state: str | None) -> Listed:
        if not record.ready:
            return Listed(record, "making", dirty=False)
        if record.kind == "copy":
            condition: Condition = "orphaned" if state is None else "kept" if state in TERMINAL else "running"
            return Listed(record, condition if workspace_files.is_directory(record.path) else "deleted", dirty=False)
        now = await worktree.state(self.git, record)
        if state is not None and state not in TERMINAL:
            return Listed(record, "waiting" if state in ("idle", "waiting") else "running", now.dirty)
        if now.tip is None or not now.there:
            return Listed(record, "deleted", now.dirty)
        if now.empty(record.base):
            return Listed(record, "empty", now.dirty)
        if now.merged and not now.dirty:
            return Listed(record, "merged", now.dirty)
        return Listed(record, "orphaned" if state is None else "kept", now.dirty)


def _is_whole(record: Record) -> bool:
    """Tells whether a workspace is still there."""
    return (
        workspace_files.is_worktree(record.path)
        if record.kind == "worktree"
        else workspace_files.is_directory(record.path)
    )
