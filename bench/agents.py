"""What agents' tasks cost beside the agents themselves; each part measures one thing and adds its figures."""

import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import anyio

from bench.morning import digests
from bench.report import Report
from bench.routing import decisions
from bench.world import environ, scratch
from omnid.clock import SystemClock
from omnid.executor.workspace import Workspaces
from omnid.log import Log
from omnid.model import Command, Work
from omnid.settings import CommandExecutor, Workspace

FILES = 300
FILE_BYTES = 2_000
ROUNDS = 30
WARM_UP = 5


def git(directory: Path, *words: str) -> None:
    """Runs git as a script would."""
    who = ("-c", "user.name=bench", "-c", "user.email=bench@localhost")
    subprocess.run(["git", *who, *words], cwd=directory, check=True, capture_output=True)


def repository(directory: Path) -> Path:
    """Makes a repository with some files and one commit."""
    made = directory / "repository"
    made.mkdir()
    git(made, "init", "--quiet", "--initial-branch=main")
    for number in range(FILES):
        path = made / f"part{number % 20}" / f"file{number}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{number}\n" * (FILE_BYTES // len(f"{number}\n")))
    git(made, "add", "--all")
    git(made, "commit", "--quiet", "--message", "first")
    return made


async def worktrees(report: Report) -> None:
    """Compares what an attempt waits for its directory with a plain `git worktree add`, one beside the other."""

    async def nobody(_ids: Sequence[str]) -> Mapping[str, str]:
        return {}

    with scratch() as directory:
        made = repository(directory)
        clock = SystemClock()
        log = Log(clock, lambda text: text).logger()
        settings = Workspace(kept_max=10 * ROUNDS)
        workspaces = Workspaces(directory / "workspaces", settings, environ(directory), clock, log, nobody)
        section = CommandExecutor(name="claude-code", profile="claude-code")
        plain_ms: list[float] = []
        ours_ms: list[float] = []
        for number in range(ROUNDS + WARM_UP):
            since_s = time.perf_counter()
            git(made, "worktree", "add", "--quiet", "-b", f"plain-{number}", str(directory / f"plain-{number}"))
            between_s = time.perf_counter()
            work = Work(argv=("claude", "-p", "x"))
            command = Command(clock.uuid(), clock.uuid(), 1, f"t{number}", "claude-code", work, 60.0)
            await workspaces.enter(command, section, str(made))
            ended_s = time.perf_counter()
            plain_ms.append((between_s - since_s) * 1e3)
            ours_ms.append((ended_s - between_s) * 1e3)
    plain, ours = plain_ms[WARM_UP:], ours_ms[WARM_UP:]
    over = [our - their for our, their in zip(ours, plain, strict=True)]
    report.add("worktree task overhead over plain git worktree add, p50", median(over), "ms", "<=", 50)
    report.add("a plain git worktree add, p50", median(plain), "ms")
    report.add("a task's worktree, p50", median(ours), "ms")


PARTS = (worktrees, decisions, digests)


def run(report: Report) -> None:
    """Measures all parts, one after the other."""
    for part in PARTS:
        anyio.run(part, report)
