"""Keeps the machine from idle sleep while an attempt runs, by a helper program that the system brings.

One helper serves the daemon. It ends with the daemon, however that ends: on macOS it watches the daemon's process, on
Linux it reads a pipe that only the daemon holds open.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence

import anyio
from anyio.abc import Process

from omnid.flow.context import Context

SETTLE_S = 2.0
"""Attempts shorter than this, and pauses between two, are not worth a process: no machine sleeps that soon."""
END_S_MAX = 5.0


def helper(platform: str, pid: int, which: Callable[[str], str | None] = shutil.which) -> Sequence[str] | None:
    """Gives the command that keeps this machine awake; None: it has none."""
    if platform == "darwin":
        return ("caffeinate", "-i", "-w", str(pid)) if which("caffeinate") else None
    if which("systemd-inhibit") is None:
        return None
    why = ("--who=omnid", "--why=A task runs", "--mode=block")
    return ("systemd-inhibit", "--what=idle:sleep", *why, "cat")


class Awake:
    """Starts the helper with the first attempt and ends it after the last."""

    def __init__(self, context: Context, command: Sequence[str] | None = None) -> None:
        """`command` takes the place of the system's helper."""
        self._context = context
        self._command = command or helper(sys.platform, os.getpid())
        self._complained = False

    async def run(self) -> None:
        """Follows what runs; ends when it is cancelled, and the helper with it."""
        while self._command is not None:
            await self._until(wanted=True)
            process = await self._start(self._command)
            if process is None:
                return
            try:
                await self._until_over(process)
            finally:
                await _end(process)

    def _wanted(self) -> bool:
        return bool(self._context.running) and self._context.config.daemon.keep_awake

    async def _until(self, *, wanted: bool) -> None:
        """Waits until it has been wanted (or not) for a while."""
        while True:
            if self._wanted() == wanted:
                await anyio.sleep(SETTLE_S)
                if self._wanted() == wanted:
                    return
            await self._context.activity.wait()

    async def _until_over(self, process: Process) -> None:
        """Waits until nothing runs any more; a helper that ends before has failed, and is not started again."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._watch, process)
            await self._until(wanted=False)
            group.cancel_scope.cancel()

    async def _watch(self, process: Process) -> None:
        code = await process.wait()
        self._complain(f"it ended with exit code {code}")

    async def _start(self, command: Sequence[str]) -> Process | None:
        quiet = subprocess.DEVNULL
        try:
            # Cut off in its middle, this would leave a helper that nobody ends.
            with anyio.CancelScope(shield=True):
                return await anyio.open_process(command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet)
        except OSError as error:
            self._complain(str(error))
            return None

    def _complain(self, detail: str) -> None:
        if not self._complained:
            self._complained = True
            self._context.log.warning("not_kept_awake", helper=(self._command or ("",))[0], detail=detail)


async def _end(process: Process) -> None:
    with anyio.CancelScope(shield=True):
        if process.returncode is None:
            process.terminate()
        with anyio.move_on_after(END_S_MAX):
            await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()
        await process.aclose()
