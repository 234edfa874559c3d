"""The parameters and results of the operations on workspaces."""

from typing import Annotated

from msgspec import Meta, Struct

from omnid.api.shapes import TaskRef
from omnid.model import Ordinal, Params
from omnid.patterns import REVISIONS


class WorkspaceView(Struct, frozen=True):
    """Where a task works, and how it is there."""

    task: str
    task_id: str
    kind: str
    condition: str
    """`making`, `running`, `waiting`, `kept`, `empty`, `merged`, `orphaned` (its task is forgotten) or `deleted`."""
    path: str
    directory: str
    """Where the task was to run."""
    branch: str | None
    base: str | None
    """The commit that the branch was made from."""
    repository: str | None
    size_bytes: int | None
    created_at_ms: int
    notes: list[str]
    """What a person should know of it."""


class WorkspaceList(Struct, frozen=True):
    """All workspaces, the oldest first, and how much they may take."""

    workspaces: list[WorkspaceView]
    size_bytes: int
    kept_max: int
    bytes_max: int


class WorkspaceOf(Params, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose workspace; also that of a task which retention has removed, by its short name or UUID."""

    task: TaskRef


class Diff(Params, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a task has changed; `to` of one piece makes the next a piece of the same."""

    task: TaskRef
    stat: bool = False
    """Only the names of the files, with how much changed."""
    to: Annotated[str, Meta(pattern=REVISIONS)] | None = None
    offset_bytes: Ordinal = 0
    limit_bytes: Annotated[int, Meta(ge=1, le=1024 * 1024)] = 256 * 1024


class DiffPart(Struct, frozen=True):
    r"""A piece of a diff, as text (undecodable bytes as ``\xNN``); `next_offset_bytes` is None at its end."""

    text: str
    to: str
    next_offset_bytes: int | None
    workspace: WorkspaceView


class WorkspaceMerged(Struct, frozen=True):
    """What was merged, and into which branch of which repository."""

    task: str
    repository: str
    into: str
    branch: str
    commits: int
    files: list[str]
    removed: bool
    """Whether workspace and branch are gone; False where something in it is not held by git."""
    notes: list[str]


class WorkspaceRemoved(Struct, frozen=True):
    """The workspace that is gone, as it was."""

    workspace: WorkspaceView
