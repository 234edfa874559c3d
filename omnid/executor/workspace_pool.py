"""Worktrees made ahead: detached at the head of their repository, set up, and taken by a move when a task needs one.

Each has a file beside it: ``ID.json`` while it lies ready, ``ID.taken`` while somebody works on it. The rename from the
one to the other is the claim, so that it is taken once, whoever else would take it, renew it or clean up.
"""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.to_thread
import msgspec
from msgspec import Struct

from omnid.clock import Clock
from omnid.errors import OmnidError
from omnid.executor import workspace_files, worktree
from omnid.executor.git import LONG_S, Git
from omnid.executor.spool import make_directory
from omnid.executor.workspace_record import Record, mapped, write_synced
from omnid.executor.worktree import Base
from omnid.log import Logger
from omnid.settings import Workspace

READY, TAKEN, USED = ".json", ".taken", "repositories"
ROUND_S = 300.0
"""How often the repositories are looked at for new commits, besides whenever one is used."""
LEFT_MS = 3_600_000
"""After that long, nobody works any more on what was taken: it is removed."""
REPOSITORIES_MAX = 16
"""How many repositories are remembered: those used last."""


class Spare(Struct, frozen=True):
    """A worktree made ahead."""

    id: str
    repository: str
    common_dir: str
    commit: str


class Use(Struct, frozen=True):
    """A repository that a task has used."""

    repository: str
    at_ms: int


class _Held(NamedTuple):
    spare: Spare
    file: Path


class Pool:
    """The worktrees made ahead under one root."""

    def __init__(self, root: Path, git: Git, settings: Workspace, clock: Clock, log: Logger) -> None:
        self.root = root.absolute()
        self.settings = settings
        self._git = git
        self._clock = clock
        self._log = log
        self._bell = anyio.Event()
        self._using = anyio.Lock()
        self._failing: set[str] = set()

    def configure(self, settings: Workspace) -> None:
        """Takes over the settings of a changed config."""
        self.settings = settings
        self._bell.set()

    async def run(self) -> None:
        """Makes, renews and removes, as tasks and commits come; ends when it is cancelled."""
        while True:
            await self.round()
            with anyio.move_on_after(ROUND_S):
                await self._bell.wait()
            self._bell = anyio.Event()

    async def used(self, base: Base) -> None:
        """Remembers a repository that a task has used, and lets the pool see to it."""
        if not self.settings.prewarm:
            return
        async with self._using:
            uses = {**self._uses(), base.common_dir: Use(base.repository, self._clock.wall_ms())}
            last = sorted(uses, key=lambda key: uses[key].at_ms)[-REPOSITORIES_MAX:]
            with mapped(self.root):
                make_directory(self.root)
                content = msgspec.json.encode({key: uses[key] for key in last})
                await anyio.to_thread.run_sync(write_synced, self.root / USED, content)
        self._bell.set()

    async def take(self, record: Record, hold: int) -> bool:
        """Makes a spare worktree the one of this record, on its branch and at its commit; False where there is none.

        What its set-up left and git ignores stays in it; all else is as the commit has it.
        """
        for held in self._ready():
            if held.spare.common_dir != record.common_dir or (mine := self._claim(held)) is None:
                continue
            path = str(self.root / held.spare.id)
            moved = await self._git.run(record.common_dir, "worktree", "move", path, record.path, hold=hold)
            words = ("checkout", "--quiet", "--force", "--no-track", "-b", record.branch, record.base)
            done = moved.code == 0 and (
                (await self._git.run(record.path, *words, deadline_s=LONG_S, hold=hold)).code == 0
                and (await self._git.run(record.path, "clean", "-ffdq", deadline_s=LONG_S, hold=hold)).code == 0
            )
            if done:
                mine.unlink(missing_ok=True)
                return True
            await self._remove(held.spare, mine)
            if moved.code == 0:
                await self._git.run(record.common_dir, "worktree", "remove", "--force", "--force", record.path)
                await anyio.to_thread.run_sync(workspace_files.remove, record.path)
        return False

    async def round(self) -> None:
        """Brings the pool to what the settings and the repositories ask for; what fails is tried in the next round."""
        await self._clean_up()
        uses = self._uses() if self.settings.prewarm else {}
        for held in self._ready():
            if held.spare.common_dir not in uses and (mine := self._claim(held)) is not None:
                await self._remove(held.spare, mine)
        for common_dir, use in uses.items():
            try:
                await self._provide(common_dir, use.repository)
            except OmnidError as error:
                if common_dir not in self._failing:
                    self._failing.add(common_dir)
                    self._log.warning("prewarm_failed", repository=use.repository, **error.as_dict())
            else:
                self._failing.discard(common_dir)

    async def _provide(self, common_dir: str, repository: str) -> None:
        if not workspace_files.is_directory(repository) or await worktree.submodules(self._git, repository):
            return
        base = await worktree.look(self._git, repository)
        mine = [held for held in self._ready() if held.spare.common_dir == common_dir]
        for held in mine[self.settings.prewarm :]:
            if (file := self._claim(held)) is not None:
                await self._remove(held.spare, file)
        for held in mine[: self.settings.prewarm]:
            if held.spare.commit != base.commit and (file := self._claim(held)) is not None:
                await self._prepare(msgspec.structs.replace(held.spare, commit=base.commit), file, new=False)
        for _ in range(self.settings.prewarm - len(mine)):
            spare = Spare(self._clock.uuid(), repository, common_dir, base.commit)
            with mapped(self.root):
                make_directory(self.root)
                file = self.root / f"{spare.id}{TAKEN}"
                await anyio.to_thread.run_sync(write_synced, file, msgspec.json.encode(spare))
            await self._prepare(spare, file, new=True)

    async def _prepare(self, spare: Spare, file: Path, *, new: bool) -> None:
        """Makes or renews one that is claimed, and lays it ready; one that can't be is removed."""
        path = str(self.root / spare.id)
        try:
            if new:
                words = ("worktree", "add", "--quiet", "--detach", path, spare.commit)
                await self._git.need(spare.repository, *words, deadline_s=LONG_S)
            else:
                words = ("checkout", "--quiet", "--force", "--detach", spare.commit)
                await self._git.need(path, *words, deadline_s=LONG_S)
            if self.settings.setup:
                timeout_s = self.settings.setup_timeout_s
                await worktree.set_up(self._git, self.settings.setup, f"a spare of {spare.repository}", path, timeout_s)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._remove(spare, file)
            raise
        with mapped(self.root):
            await anyio.to_thread.run_sync(_lay_ready, file, msgspec.json.encode(spare))

    async def _remove(self, spare: Spare, file: Path) -> None:
        path = str(self.root / spare.id)
        if workspace_files.is_directory(spare.common_dir):
            words = ("worktree", "remove", "--force", "--force", path)
            await self._git.run(spare.common_dir, *words, deadline_s=LONG_S)
        with mapped(self.root):
            await anyio.to_thread.run_sync(workspace_files.remove, path)
            await anyio.to_thread.run_sync(partial(file.unlink, missing_ok=True))

    async def _clean_up(self) -> None:
        """Removes what somebody claimed and never came back to, after a crash say."""
        for held in self._with(TAKEN):
            if self._clock.wall_ms() - _changed_at_ms(held.file) > LEFT_MS:
                await self._remove(held.spare, held.file)

    def _claim(self, held: _Held) -> Path | None:
        """Claims one that lies ready; None where another was faster."""
        taken = held.file.with_suffix(TAKEN)
        try:
            held.file.rename(taken)
        except FileNotFoundError:
            return None
        return taken

    def _ready(self) -> list[_Held]:
        return self._with(READY)

    def _with(self, suffix: str) -> list[_Held]:
        found: list[_Held] = []
        for path in sorted(self.root.glob(f"*{suffix}")):
            try:
                found.append(_Held(msgspec.json.decode(path.read_bytes(), type=Spare), path))
            except (FileNotFoundError, msgspec.MsgspecError):
                continue
        return found

    def _uses(self) -> dict[str, Use]:
        try:
            return msgspec.json.decode((self.root / USED).read_bytes(), type=dict[str, Use])
        except (FileNotFoundError, msgspec.MsgspecError):
            return {}


def _lay_ready(file: Path, content: bytes) -> None:
    write_synced(file, content)
    file.rename(file.with_suffix(READY))


def _changed_at_ms(file: Path) -> int:
    """Gives when a file was last made, renamed or written, as Unix milliseconds; one that went counts as of no age."""
    try:
        return file.stat().st_ctime_ns // 1_000_000
    except FileNotFoundError:
        return 1 << 62
