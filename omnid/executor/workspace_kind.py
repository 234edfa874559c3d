"""What a task works in: what it asks for, what its executor says, or a worktree for agents in git."""

import os
from collections.abc import Sequence
from pathlib import Path

from omnid.model import Work
from omnid.settings import AGENT_PROGRAMS, CommandExecutor, Executor


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
