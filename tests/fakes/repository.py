"""A git repository for tests, in a temporary directory, with nothing of the user's config."""

import os
import subprocess
from pathlib import Path

ENVIRON = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_AUTHOR_EMAIL": "ada@localhost",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@localhost",
    "LC_ALL": "C",
}


class Repository:
    """A working tree with a branch `main` and one commit."""

    def __init__(self, path: Path, *, empty: bool = False) -> None:
        self.path = path
        path.mkdir(parents=True)
        self.git("init", "--quiet", "--initial-branch=main")
        if not empty:
            self.commit({"a.txt": "one\n", "sub/b.txt": "two\n"}, "first")

    def git(self, *words: str, at: Path | str | None = None, fails: bool = False) -> str:
        """Runs git as the user would, and gives what it printed; it must succeed, or fail where `fails` says so."""
        argv = ["git", *words]
        done = subprocess.run(argv, cwd=at or self.path, env=ENVIRON, capture_output=True, check=False, timeout=60)
        assert (done.returncode != 0) is fails, done.stderr.decode()
        return done.stdout.decode().strip()

    def commit(self, files: dict[str, str], message: str, at: Path | str | None = None) -> str:
        """Writes files, commits all, and gives the commit."""
        for name, text in files.items():
            write(Path(at or self.path) / name, text)
        self.git("add", "--all", at=at)
        self.git("commit", "--quiet", "--message", message, at=at)
        return self.git("rev-parse", "HEAD", at=at)

    def branches(self) -> set[str]:
        """Gives the names of all branches."""
        return set(self.git("for-each-ref", "--format=%(refname:short)", "refs/heads").split())

    def worktrees(self) -> list[str]:
        """Gives the paths of all worktrees but the main one."""
        lines = self.git("worktree", "list", "--porcelain").splitlines()
        return [line.partition(" ")[2] for line in lines if line.startswith("worktree ")][1:]


def write(path: Path, text: str) -> None:
    """Writes a file and the directories above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
