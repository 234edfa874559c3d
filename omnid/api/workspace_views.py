"""What people see and do of workspaces: the list, the diff, the merge, the removal; and where a task's work lies."""

import msgspec

from omnid.api import shapes_workspaces as shapes
from omnid.api.journal_views import decode_piece
from omnid.api.shapes import TaskView, WhyAnswer
from omnid.errors import Rejected
from omnid.executor.workspace import Listed, Workspaces
from omnid.executor.workspace_record import Record
from omnid.flow.caller import Caller, find_task
from omnid.flow.context import Context
from omnid.flow.gates import Gates
from omnid.states import TERMINAL

FILES_MAX = 200
"""How many files of a merge are named."""
STAT_BYTES_MAX = 16_384
"""How much of `git diff --stat` a receipt shows."""


class WorkspaceViews:
    """Carries out the operations on workspaces."""

    def __init__(self, context: Context, gates: Gates, workspaces: Workspaces | None) -> None:
        self._context = context
        self._gates = gates
        self._workspaces = workspaces

    async def list(self) -> shapes.WorkspaceList:
        """Gives all workspaces."""
        workspaces = self._there()
        views = [view_of(listed.record, listed) for listed in await workspaces.listed()]
        settings = workspaces.settings
        size_bytes = sum(view.size_bytes or 0 for view in views)
        return shapes.WorkspaceList(views, size_bytes, settings.kept_max, settings.bytes_max)

    async def diff(self, caller: Caller, params: shapes.Diff) -> shapes.DiffPart:
        """Gives a piece of what a task has changed in its workspace."""
        record = await self._record(caller, params.task)
        data, to, more = await self._there().diff(
            record, stat=params.stat, to=params.to, skip_bytes=params.offset_bytes, bytes_max=params.limit_bytes
        )
        text, used = decode_piece(data, whole=not more)
        following = params.offset_bytes + used if more else None
        return shapes.DiffPart(text, to, following, view_of(record))

    async def merge(self, caller: Caller, params: shapes.WorkspaceOf) -> shapes.WorkspaceMerged:
        """Merges a task's work into the branch that is checked out where it came from, and removes the workspace."""
        record = await self._record(caller, params.task)
        merged = await self._there().merge(record)
        left = self._there().of(record.task_id)
        await self._gates.room_made()
        self._context.wake()
        return shapes.WorkspaceMerged(
            task=record.task,
            repository=record.repository,
            into=merged.into,
            branch=record.branch,
            commits=merged.commits,
            files=merged.files[:FILES_MAX],
            removed=left is None,
            notes=list(record.notes if left is None else left.notes),
        )

    async def remove(self, caller: Caller, params: shapes.WorkspaceOf) -> shapes.WorkspaceRemoved:
        """Removes a task's workspace with all that is in it, and its branch."""
        record = await self._record(caller, params.task)
        await self._there().remove(record)
        await self._gates.room_made()
        self._context.wake()
        return shapes.WorkspaceRemoved(view_of(record))

    def shown(self, view: TaskView) -> TaskView:
        """Adds to a task where its work lies."""
        record = None if self._workspaces is None else self._workspaces.of(view.task.id, view.task.name)
        return view if record is None else msgspec.structs.replace(view, workspace=_brief(record))

    def told(self, answer: WhyAnswer, task_id: str) -> WhyAnswer:
        """Adds to a sentence where the work of the task lies."""
        record = None if self._workspaces is None else self._workspaces.of(task_id)
        if record is None:
            return answer
        name = record.task
        where = f"Its work lies in {record.path}"
        if record.kind == "worktree":
            where += f", on branch {record.branch}"
            if answer.state in TERMINAL:
                where += f" (`omnictl diff {name}`, `omnictl merge {name}`)"
        return msgspec.structs.replace(answer, text=f"{answer.text} {where}.")

    async def _record(self, caller: Caller, ref: str) -> Record:
        """Finds a workspace by its task, also where the journal has forgotten it."""
        workspaces = self._there()
        try:
            task = await self._context.store.read(lambda reader: find_task(reader, ref, caller))
        except Rejected:
            record = workspaces.named(ref)
            if record is None:
                raise
            return record
        record = workspaces.of(task.id)
        if record is None:
            detail = "It runs (or ran) where it was submitted, or its workspace was empty, merged, or removed."
            raise Rejected("no_workspace", task=task.name, detail=detail)
        return record

    def _there(self) -> Workspaces:
        if self._workspaces is None:
            raise Rejected("no_workspace", task="This daemon", detail="It was started without any.")
        return self._workspaces


def view_of(record: Record, listed: Listed | None = None) -> shapes.WorkspaceView:
    """Makes what clients see of a workspace; its condition is only known from a list."""
    notes = list(record.notes)
    if listed is not None and listed.dirty:
        notes.append("something in it is not committed")
    return shapes.WorkspaceView(
        task=record.task,
        task_id=record.task_id,
        kind=record.kind,
        condition=("kept" if record.ready else "making") if listed is None else listed.condition,
        path=record.path,
        directory=record.directory,
        branch=record.branch or None,
        base=record.base or None,
        repository=record.repository or None,
        size_bytes=record.size_bytes,
        created_at_ms=record.created_at_ms,
        notes=notes,
    )


def _brief(record: Record) -> dict[str, object]:
    view = view_of(record)
    return {
        "kind": view.kind,
        "path": record.place,
        "branch": view.branch,
        "base": view.base,
        "repository": view.repository,
        "notes": view.notes,
    }
