"""Where agents work: each task in a place of its own, made at its first attempt and kept until its work is taken over.

`enter` gives an attempt its directory and `leave` hears of its end; all else is asked for by people. What is on the
disk is the truth: a record beside each workspace, and git's own data. docs/workspaces.md tells it from the outside.
"""

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
from omnid.executor.workspace_kind import kind_for
from omnid.executor.workspace_making import Maker, is_whole
from omnid.executor.workspace_pool import Pool
from omnid.executor.workspace_record import Record, Records
from omnid.log import Logger
from omnid.model import Command, Result
from omnid.settings import CommandExecutor, Workspace
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
RETAKEN = ("uncertain",)
"""Beside the states that end a task, those in which its work may be merged or removed."""

Condition = Literal["making", "running", "waiting", "kept", "empty", "merged", "orphaned", "deleted"]
"""How a workspace is: `kept` holds work of a task that has ended, `orphaned` of one that the journal has forgotten."""


class Listed(NamedTuple):
    """A workspace, and how it is."""

    record: Record
    condition: Condition
    dirty: bool


class Workspaces:
    """The workspaces of one daemon, under one root."""

    def __init__(
        self, root: Path, settings: Workspace, environ: Mapping[str, str], clock: Clock, log: Logger, states: States
    ) -> None:
        self.git = Git(environ)
        self.records = Records(root)
        self.pool = Pool(self.records.root / POOL, self.git, settings, clock, log)
        self._maker = Maker(self.git, self.records, self.pool, settings, clock, begin=self._begin, full=self._full)
        self._log = log
        self._states = states
        self._making = anyio.Lock()
        self._merging = anyio.Lock()
        self._needs_git = False

    def configure(self, settings: Workspace) -> None:
        """Takes over the settings of a changed config."""
        self._maker.settings = settings
        self.pool.configure(settings)

    @property
    def settings(self) -> Workspace:
        """The settings in use."""
        return self._maker.settings

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
                await self._maker.remove(record, hold)  # A crash cut it off, so no attempt has worked in it.
                record = None
            if record is None:
                kind = kind_for(section, command.work, directory)
                self._needs_git = self._needs_git or kind != "copy"
                record = await self._maker.make(kind, command, directory, key, hold)
            elif not is_whole(record):
                record = await self._maker.restore(record, hold)
        return record.place

    async def leave(self, command: Command, result: Result) -> None:
        """Hears that an attempt has ended, before its result is in the journal.

        After a success, what was left uncommitted is committed, and a workspace in which nothing has come of it is
        removed. Whatever fails here fails the next time too, so it is logged and noted, and the work stays.
        """
        try:
            record = self.records.of(command.task_id)
            if record is None or not record.ready:
                return
            async with self.records.hold(record.key) as hold:
                await self._settle(record, hold, done=result.outcome == "success")
        except OmnidError as error:
            self._log.warning("workspace_not_settled", task=command.name, **error.as_dict())

    async def changes(self, task_id: str) -> str:
        """Gives ``git diff --stat`` of a task's work so far; empty where it has no workspace, or git can't tell."""
        try:
            record = self.records.of(task_id)
            if record is None or not record.ready:
                return ""
            stat, _, more = await self.diff(record, stat=True, to=None, skip_bytes=0, bytes_max=STAT_BYTES_MAX)
        except OmnidError as error:
            self._log.warning("changes_not_told", task=task_id, **error.as_dict())
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
                await self._maker.remove(record, hold)
        return merged

    async def remove(self, record: Record) -> None:
        """Removes a workspace with all that is in it; raises Rejected ``workspace_busy``, ``no_workspace``."""
        async with self.records.hold(record.key) as hold:
            await self._maker.remove(await self._at_rest(record), hold)

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
                        await self._maker.remove(now, hold)
                        gone += 1
            except OmnidError as error:
                self._log.warning("workspace_not_swept", task=record.task, **error.as_dict())
        return gone

    async def _begin(self, record: Record) -> None:
        """Writes the record of a workspace that is to be made, if there is room; two tasks don't share the last one."""
        async with self._making:
            if self._lacks() is not None:
                await self._make_room(record.task)
            await self.records.write(record)

    def _lacks(self) -> str | None:
        """Says what there is too much of for another workspace; None: there is room."""
        records, settings = self.records.all(), self.settings
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

    async def _settle(self, record: Record, hold: int, *, done: bool) -> None:
        """Takes stock after an attempt: commits, measures, and removes what is empty or merged."""
        if done and record.kind == "worktree" and is_whole(record):
            record = await worktree.commit_left(self.git, record, hold)
        if done and await self._needless(record):
            await self._maker.remove(record, hold)
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
