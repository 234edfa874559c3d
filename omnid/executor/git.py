"""git as a child process: argv and no shell, a small environment, no prompts and no hooks, deadlines, bounded output.

A repository is the work of others: what git says about it is data, and nothing in its config that names a program is
run, but for the filters without which its files can't be checked out (gitattributes(5)).
"""

import contextlib
import errno
import os
import re
import signal
import subprocess
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import anyio
from anyio.abc import ByteReceiveStream, Process

from omnid.errors import Rejected, Retryable
from omnid.executor.environment import BASE_ENVIRONMENT
from omnid.executor.spool import printable

QUICK_S, LONG_S = 30.0, 600.0
"""Deadlines: of a question, and of what goes through a whole tree."""
OUTPUT_BYTES_MAX = 4 << 20
ERRORS_BYTES_MAX = 64 << 10
SAID_CHARS_MAX = 500
VERSION_MIN, MERGE_VERSION_MIN = (2, 17), (2, 38)
"""`git worktree move` and `remove` came with 2.17, `git merge-tree --write-tree` with 2.38."""
NAME, EMAIL = "omnid", "omnid@localhost"
"""The author of what omnid commits itself."""
IDENTITY = ("-c", f"user.name={NAME}", "-c", f"user.email={EMAIL}")

_SAFE = {
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "core.quotePath": "false",
    "commit.gpgSign": "false",
    "submodule.recurse": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
}
"""Hooks, signing and watchers would run programs with the daemon's rights; garbage is collected when the user does."""
_FIXED = {"GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0", "GIT_EDITOR": "true", "LC_ALL": "C"}
_VERSION = re.compile(r"git version (\d+)\.(\d+)")
_TORN = re.compile(r"failed to read \S*worktrees/\S+/commondir")
"""What git says where another git is in the middle of making a worktree: the file is there and still empty."""
TORN_TRIES, TORN_S = 20, 0.1
_FULL = ("No space left on device", "Disk quota exceeded", "unable to write file")
"""What git says of a full disk; of one that fills up in a checkout it names the file and keeps the cause to itself."""


class Done(NamedTuple):
    """How a call of git ended; `out` was cut where `cut` is set."""

    code: int
    out: bytes
    err: str
    cut: bool

    @property
    def text(self) -> str:
        """What it printed, without the newline at its end."""
        return os.fsdecode(self.out).removesuffix("\n")

    @property
    def said(self) -> str:
        """What it complained of, in one line."""
        lines = [line.strip() for line in self.err.splitlines() if line.strip()]
        line = next((line for line in lines if line.startswith(("fatal:", "error:"))), lines[-1] if lines else "")
        return printable(os.fsencode(line.partition(": ")[2] or line))[:SAID_CHARS_MAX] or "it said nothing"


class Git:
    """Runs git; `environ` is the daemon's environment, of which git gets as little as commands do."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        names = (*BASE_ENVIRONMENT, "XDG_CONFIG_HOME")
        self._environment = {name: environ[name] for name in names if name in environ} | _FIXED
        self._version: tuple[int, int] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What a program that works in a new worktree gets: the same."""
        return {name: value for name, value in self._environment.items() if not name.startswith("GIT_")}

    async def version(self) -> tuple[int, int]:
        """Gives git's version; raises Retryable ``workspace_down`` where git is missing or too old."""
        if self._version is None:
            done = await self.run("/", "version")
            match = _VERSION.match(done.text)
            if match is None:
                raise Retryable("workspace_down", detail=f"`git version` ended with exit code {done.code}: {done.said}")
            version = int(match[1]), int(match[2])
            if version < VERSION_MIN:
                detail = f"git is {dotted(version)}, and at least {dotted(VERSION_MIN)} is needed"
                raise Retryable("workspace_down", detail=detail)
            self._version = version
        return self._version

    async def run(
        self,
        directory: str,
        *words: str,
        deadline_s: float = QUICK_S,
        hold: int | None = None,
        index: str | None = None,
        skip_bytes: int = 0,
        bytes_max: int = OUTPUT_BYTES_MAX,
    ) -> Done:
        """Runs git in a directory and gives how it ended, whatever its exit code.

        `hold` is a lock that git inherits: it is held until git has ended, even where omnid is killed. `index` takes
        the place of the repository's index file. The first `skip_bytes` of the output are left out, and what comes
        after `bytes_max` more ends the call. Raises Retryable: ``workspace_down`` where there is no git or it takes too
        long, ``disk_full``.
        """
        once = partial(
            self._once,
            directory,
            *words,
            deadline_s=deadline_s,
            hold=hold,
            index=index,
            skip_bytes=skip_bytes,
            bytes_max=bytes_max,
        )
        done = await once()
        for _ in range(TORN_TRIES):
            if done.code == 0 or _TORN.search(done.err) is None:
                break
            await anyio.sleep(TORN_S)
            done = await once()
        return done

    async def _once(
        self,
        directory: str,
        *words: str,
        deadline_s: float,
        hold: int | None,
        index: str | None,
        skip_bytes: int,
        bytes_max: int,
    ) -> Done:
        settings = [word for key, value in _SAFE.items() for word in ("-c", f"{key}={value}")]
        argv = ("git", "--no-pager", *settings, *words)
        environment = self._environment if index is None else {**self._environment, "GIT_INDEX_FILE": index}
        try:
            process = await anyio.open_process(
                argv,
                stdin=subprocess.DEVNULL,
                cwd=directory,
                env=environment,
                start_new_session=True,
                pass_fds=() if hold is None else (hold,),
            )
        except OSError as error:
            raise _no_start(directory, error) from error
        taken: dict[str, bytes] = {}
        async with process:
            try:
                with anyio.fail_after(deadline_s):
                    await _gather(process, taken, skip_bytes, bytes_max)
                    code = await process.wait()
            except TimeoutError:
                detail = f"`git {_verb(words)}` took longer than {deadline_s:.0f} s in {directory}"
                raise Retryable("workspace_down", detail=detail) from None
            finally:
                end(process)
        cut = len(taken["out"]) > bytes_max
        done = Done(0 if cut else code, taken["out"][:bytes_max], taken["err"].decode(errors="backslashreplace"), cut)
        if done.code != 0 and any(text in done.err for text in _FULL):
            raise Retryable("disk_full", detail=done.said, path=directory)
        return done

    async def need(
        self,
        directory: str,
        *words: str,
        deadline_s: float = QUICK_S,
        hold: int | None = None,
        index: str | None = None,
    ) -> str:
        """Runs git where it must succeed, and gives what it printed.

        Raises Rejected ``workspace_impossible`` where it fails, and what `run` raises.
        """
        done = await self.run(directory, *words, deadline_s=deadline_s, hold=hold, index=index)
        if done.code != 0:
            detail = f"`git {_verb(words)}` ended with exit code {done.code}: {done.said}"
            remedy = "Mend that in the repository, or submit the task with `--workspace none`."
            raise Rejected("workspace_impossible", directory=directory, detail=detail, remedy=remedy)
        return done.text


def dotted(version: tuple[int, int]) -> str:
    """Writes a version as git does."""
    return f"{version[0]}.{version[1]}"


def end(process: Process) -> None:
    """Ends a process that leads a session, with all that it has started there."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _verb(words: tuple[str, ...]) -> str:
    """Gives git's word for what it was asked, without the options before it."""
    rest = iter(words)
    for word in rest:
        if word == "-c":
            next(rest, None)
        elif not word.startswith("-"):
            return word
    return ""


def _no_start(directory: str, error: OSError) -> Retryable | Rejected:
    if not os.path.isdir(directory):
        return Rejected("bad_cwd", cwd=directory, why="It is not there any more.")
    if error.errno in (errno.ENOENT, errno.EACCES):
        return Retryable("workspace_down", detail="git was not found in the directories of PATH")
    return Retryable("workspace_down", detail=f"git can't be started: {error.strerror}")


async def _gather(process: Process, taken: dict[str, bytes], skip_bytes: int, bytes_max: int) -> None:
    """Reads both streams to their ends; what is too much on standard output ends the process."""

    async def out(stream: ByteReceiveStream) -> None:
        taken["out"] = await _read(stream, skip_bytes, bytes_max)
        if len(taken["out"]) > bytes_max:
            end(process)

    async def err(stream: ByteReceiveStream) -> None:
        taken["err"] = await _drain(stream)

    if process.stdout is None or process.stderr is None:
        raise AssertionError("both streams are pipes")
    async with anyio.create_task_group() as group:
        group.start_soon(out, process.stdout)
        group.start_soon(err, process.stderr)


async def _read(stream: ByteReceiveStream, skip_bytes: int, bytes_max: int) -> bytes:
    """Gives at most one byte more than `bytes_max`, which tells that there was more."""
    kept = bytearray()
    async for chunk in stream:
        kept += chunk[skip_bytes:]
        skip_bytes = max(0, skip_bytes - len(chunk))
        if len(kept) > bytes_max:
            break
    return bytes(kept[: bytes_max + 1])


async def _drain(stream: ByteReceiveStream) -> bytes:
    kept = bytearray()
    async for chunk in stream:
        kept += chunk[: ERRORS_BYTES_MAX - len(kept)]
    return bytes(kept)
