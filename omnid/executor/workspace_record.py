"""The records of workspaces: one JSON file beside each, which says whose it is and what it was made from.

What is on the disk is the truth. A record is written, and synced, before anything is made, and again when it is
complete; so whatever a crash leaves behind has a record that says how far it came.
"""

import errno
import fcntl
import os
import re
import threading
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Literal

import anyio
import anyio.to_thread
import msgspec
from msgspec import Struct

from omnid.errors import Retryable
from omnid.executor.spool import make_directory

FORMAT = 1
SUFFIX, LOCKED = ".json", ".lock"
NAME_CHARS_MAX = 40
SHORT_CHARS = 8
"""How much of a task's id stands in names: 32 bits of its random part."""
KEY_CHARS = (SHORT_CHARS, 16, 32)
"""As much stands there where the shorter names are another's already."""
LOCK_S_MAX = 120.0
LOCK_LOOK_S, LOCK_LOOK_S_MAX = 0.01, 0.5
NOTES_MAX = 8

_PLAIN = re.compile(r"[^A-Za-z0-9_]+")


class Record(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of one workspace."""

    key: str
    """The name of its directory, and of its branch without ``omnid/``."""
    task_id: str
    task: str
    """The task's short name: it stays known when the journal has forgotten the task."""
    kind: Literal["worktree", "copy"]
    ready: bool = False
    """False until it is complete: no attempt has worked in it."""
    directory: str
    """Where the task was to run, in the tree that the workspace was made from."""
    path: str
    subdirectory: str = ""
    """The same place inside the workspace."""
    repository: str = ""
    """The top of the tree that `directory` lies in, which a merge goes into."""
    common_dir: str = ""
    """Its git directory, which all its worktrees share."""
    base: str = ""
    """The commit that the branch was made from."""
    branch: str = ""
    created_at_ms: int
    size_bytes: int | None = None
    """What it took on the disk when it was last measured."""
    keep: bool = False
    """Whether only a person may remove it, because git does not hold all that lies in it."""
    notes: tuple[str, ...] = ()
    """What a person should know of it."""
    v: int = FORMAT

    @property
    def place(self) -> str:
        """The directory that attempts run in."""
        return os.path.join(self.path, self.subdirectory) if self.subdirectory else self.path

    def noted(self, note: str) -> "Record":
        """Gives the record with one more note."""
        return self if note in self.notes else msgspec.structs.replace(self, notes=(*self.notes, note)[-NOTES_MAX:])


def key_of(task: str, task_id: str, chars: int = SHORT_CHARS) -> str:
    """Gives the name for a task's workspace: its short name made plain, and the end of its id, which is random.

    It is valid as a file's name and, behind ``omnid/``, as a branch (git-check-ref-format(1)).
    """
    plain = _PLAIN.sub("-", task).strip("-")[:NAME_CHARS_MAX].rstrip("-")
    return f"{plain or 'task'}-{task_id.replace('-', '')[-chars:]}"


class Records:
    """The records under one root, which is 0700."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))

    def of(self, task_id: str, task: str | None = None) -> Record | None:
        """Finds the record of a task: its name ends with the end of the task's id, so that few are read.

        Where the task's short name is given too, nothing has to be searched. Raises what `mapped` gives.
        """
        if task is None:
            ending = f"{task_id.replace('-', '')[-SHORT_CHARS:]}{SUFFIX}"
            names = [name for name in self._names() if name.endswith(ending)]
        else:
            keys = (key_of(task, task_id, chars) for chars in KEY_CHARS)
            names = [f"{key}{SUFFIX}" for key in keys if os.path.exists(f"{self.root}/{key}{SUFFIX}")]
        found = (self._read(name) for name in names)
        return next((record for record in found if record is not None and record.task_id == task_id), None)

    def all(self) -> list[Record]:
        """Gives all records, the oldest first."""
        found = [record for name in self._names() if (record := self._read(name)) is not None]
        return sorted(found, key=lambda record: (record.created_at_ms, record.key))

    def free_key(self, task: str, task_id: str) -> str:
        """Gives a name that no other workspace has, longer where the ids of two tasks end alike."""
        keys = [key_of(task, task_id, chars) for chars in KEY_CHARS]
        return next(
            (key for key in keys if not (self.root / key).exists() and self._read(key + SUFFIX) is None), keys[-1]
        )

    async def write(self, record: Record) -> Record:
        """Writes a record, and syncs it; raises Retryable ``disk_full`` or ``workspace_down``."""
        with mapped(self.root):
            await anyio.to_thread.run_sync(self._write, record)
        return record

    async def forget(self, record: Record) -> None:
        """Removes a record: the last step of removing a workspace."""
        with mapped(self.root):
            (self.root / f"{record.key}{SUFFIX}").unlink(missing_ok=True)

    @asynccontextmanager
    async def hold(self, name: str, wait_s: float = LOCK_S_MAX) -> AsyncGenerator[int]:
        """Holds the lock of that name; gives its descriptor, for the children that must hold it too.

        Raises Retryable ``workspace_down`` where another holds it for longer than `wait_s`.
        """
        path = self.root / f"{name}{LOCKED}"
        with mapped(self.root):
            make_directory(self.root)
            lock = await self._locked(path, wait_s)
        try:
            yield lock
        finally:
            # It goes while it is held, so that whoever opened it in the meantime sees that it is another one.
            if not (self.root / f"{name}{SUFFIX}").exists():
                path.unlink(missing_ok=True)
            os.close(lock)

    async def _locked(self, path: Path, wait_s: float) -> int:
        pause_s = LOCK_LOOK_S
        until_s = anyio.current_time() + wait_s
        while True:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_same(lock, path):
                    return lock
            except BlockingIOError:
                pass
            os.close(lock)
            if anyio.current_time() >= until_s:
                raise Retryable("workspace_down", detail=f"another omnid or its git holds {path}")
            await anyio.sleep(pause_s)
            pause_s = min(2 * pause_s, LOCK_LOOK_S_MAX)

    def _names(self) -> list[str]:
        with mapped(self.root):
            try:
                with os.scandir(self.root) as entries:
                    return [entry.name for entry in entries if entry.name.endswith(SUFFIX)]
            except FileNotFoundError:
                return []

    def _read(self, name: str) -> Record | None:
        """Reads one; None where it is not there, or of another format: then it is not for this omnid to touch."""
        with mapped(self.root):
            try:
                record = msgspec.json.decode((self.root / name).read_bytes(), type=Record)
            except (FileNotFoundError, msgspec.MsgspecError):
                return None
        return record if record.v == FORMAT else None

    def _write(self, record: Record) -> None:
        make_directory(self.root)
        write_synced(self.root / f"{record.key}{SUFFIX}", msgspec.json.encode(record))


def _is_same(lock: int, path: Path) -> bool:
    """Tells whether an open lock still has its name: who held it before may have removed it."""
    try:
        return os.path.samestat(os.fstat(lock), path.stat())
    except FileNotFoundError:
        return False


def write_synced(path: Path, content: bytes) -> None:
    """Writes a file in place of an older one, so that a crash leaves the one or the other."""
    new = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_native_id()}")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@contextmanager
def mapped(where: Path) -> Generator[None]:
    """Turns the system's errors into Retryable: ``disk_full``, or ``workspace_down`` for all others."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Retryable("disk_full", detail=str(error), path=where) from error
        raise Retryable("workspace_down", detail=str(error)) from error
