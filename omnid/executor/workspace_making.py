"""Workspaces on the disk: made for a task, made anew where somebody deleted one, and removed.

Every function is called under the lock of the workspace.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Literal

import anyio
import anyio.to_thread
import msgspec

from omnid.clock import Clock
from omnid.errors import OmnidError, Retryable
from omnid.executor import workspace_files, worktree
from omnid.executor.git import Git
from omnid.executor.workspace_pool import Pool
from omnid.executor.workspace_record import Record, Records, mapped
from omnid.executor.worktree import UNFIT, impossible
from omnid.model import Command
from omnid.settings import Workspace

NOTED_MAX = 5


class Maker:
    """Makes and removes workspaces.

    `begin` writes the record of one that is to be made, if there is room; `full` gives the error where there is none.
    """

    def __init__(
        self,
        git: Git,
        records: Records,
        pool: Pool,
        settings: Workspace,
        clock: Clock,
        *,
        begin: Callable[[Record], Awaitable[None]],
        full: Callable[[str, str], Awaitable[Retryable]],
    ) -> None:
        self._git = git
        self._records = records
        self._pool = pool
        self.settings = settings
        self._clock = clock
        self._begin = begin
        self._full = full

    async def make(self, kind: str, command: Command, directory: str, key: str, hold: int) -> Record:
        """Makes a workspace of a kind (``worktree``, ``copy``) for a task; one that can't be made leaves nothing.

        Raises what `Workspaces.enter` raises.
        """
        make = self._copy if kind == "copy" else self._worktree
        return await make(command, directory, key, hold)

    async def restore(self, record: Record, hold: int) -> Record:
        """Makes a worktree anew whose directory was deleted, from its branch; raises Rejected where that can't be."""
        if record.kind == "copy":
            detail = f"its copy {record.path} was deleted"
            raise impossible(record.directory, detail, f"`omnictl workspaces rm {record.task}`, then retry the task.")
        if not workspace_files.is_directory(record.common_dir):
            detail = f"the repository {record.common_dir} is gone"
            raise impossible(record.directory, detail, f"What it holds of the work lies in {record.path}.")
        return await self._records.write(await worktree.restore(self._git, record, hold))

    async def remove(self, record: Record, hold: int) -> None:
        """Removes a workspace with all that is in it, and its record."""
        with mapped(self._records.root):
            if record.kind == "worktree":
                await worktree.remove(self._git, record, hold)
            else:
                await anyio.to_thread.run_sync(workspace_files.remove, record.path)
        await self._records.forget(record)

    def _record(self, kind: Literal["worktree", "copy"], command: Command, directory: str, key: str) -> Record:
        """Begins the record of a workspace: what every kind has."""
        return Record(
            key=key,
            task_id=command.task_id,
            task=command.name,
            kind=kind,
            directory=directory,
            path=str(self._records.root / key),
            created_at_ms=self._clock.wall_ms(),
        )

    async def _worktree(self, command: Command, directory: str, key: str, hold: int) -> Record:
        base = await worktree.look(self._git, directory)
        await self._check_submodules(base, directory)
        record = msgspec.structs.replace(
            self._record("worktree", command, directory, key),
            subdirectory=base.subdirectory,
            repository=base.repository,
            common_dir=base.common_dir,
            base=base.commit,
            branch=f"{worktree.BRANCHES}{key}",
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
            await self.remove(record, hold)
            raise failed
        await self._pool.used(base)
        for note in notes:
            record = record.noted(note)
        return await self._records.write(msgspec.structs.replace(record, ready=True))

    async def _made(self, record: Record, hold: int, timeout_s: float) -> Record:
        """Makes a worktree that can be worked in: taken from those made ahead, or new and set up."""
        taken = await self._pool.take(record, hold)
        if not taken:
            record = await worktree.make(self._git, record, hold)
        if not workspace_files.is_directory(record.place):
            detail = "git does not hold the directory, so a worktree would not have it"
            raise impossible(record.directory, detail, f"Commit something in it. {UNFIT}")
        if not taken and self.settings.setup:
            limit_s = min(self.settings.setup_timeout_s, timeout_s)
            await worktree.set_up(self._git, self.settings.setup, record.task, record.path, limit_s)
        return record

    async def _check_submodules(self, base: worktree.Base, directory: str) -> None:
        """Raises Rejected where submodules would be missing: a set-up can fill them, and nothing else here."""
        names = [] if self.settings.setup else await worktree.submodules(self._git, base.repository)
        if names:
            detail = f"it has submodules ({', '.join(names[:NOTED_MAX])}), which are empty in a new worktree"
            remedy = 'Fill them with workspace.setup = ["git", "submodule", "update", "--init"]. ' + UNFIT
            raise impossible(directory, detail, remedy)

    async def _note_uncommitted(self, repository: str, notes: list[str]) -> None:
        """Says what the tree has and a worktree of its commit has not; where git can't tell, it says that."""
        try:
            dirty = await worktree.uncommitted(self._git, repository)
        except OmnidError as error:
            notes.append(f"whether {repository} has uncommitted changes is not known: {error.what}")
            return
        if dirty:
            more = f" and {len(dirty) - NOTED_MAX} more" if len(dirty) > NOTED_MAX else ""
            notes.append(f"uncommitted changes of {repository} are not in it: {', '.join(dirty[:NOTED_MAX])}{more}")

    async def _copy(self, command: Command, directory: str, key: str, hold: int) -> Record:
        record = self._record("copy", command, directory, key)
        if workspace_files.is_linked(directory):
            detail = "it is a git worktree or submodule, and a copy would share its index"
            raise impossible(directory, detail, "Use `--workspace worktree`, or run it where it is with `none`.")
        await self._begin(record)
        try:
            left_out = await self._copied(record)
        except (OmnidError, anyio.get_cancelled_exc_class()):
            with anyio.CancelScope(shield=True):
                await self.remove(record, hold)
            raise
        if left_out:
            record = record.noted(f"{left_out} sockets, pipes or devices were not copied")
        size_bytes = await anyio.to_thread.run_sync(workspace_files.size_bytes, record.path)
        return await self._records.write(msgspec.structs.replace(record, ready=True, size_bytes=size_bytes))

    async def _copied(self, record: Record) -> int:
        stop = False

        def stopped() -> bool:
            return stop

        limit_bytes = self.settings.bytes_max
        used_bytes = sum(other.size_bytes or 0 for other in self._records.all())
        args = (record.directory, record.path, str(self._records.root), limit_bytes - used_bytes, stopped)
        with mapped(self._records.root):
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


def is_whole(record: Record) -> bool:
    """Tells whether a workspace is still there."""
    return (
        workspace_files.is_worktree(record.path)
        if record.kind == "worktree"
        else workspace_files.is_directory(record.path)
    )
