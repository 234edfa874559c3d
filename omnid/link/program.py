"""Runs a small program that delivers something: a list of arguments and no shell, text on its standard input."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import anyio
from anyio.abc import ByteReceiveStream, Process

from omnid.errors import Rejected, Retryable

SAID_BYTES_MAX = 4096
DETAIL_CHARS_MAX = 300
REST_S = 0.2
"""How long its last words are waited for once it has ended: a child of it may keep the pipe."""


class Done(NamedTuple):
    """How a program ended."""

    code: int
    said: str
    """The end of what it printed."""

    @property
    def detail(self) -> str:
        """Gives its exit code and its last words."""
        words = " ".join(self.said.split())[-DETAIL_CHARS_MAX:]
        return f"exit code {self.code}{f': {words}' if words else ''}"


async def run(destination: str, argv: Sequence[str], stdin: str, environ: Mapping[str, str]) -> Done:
    """Runs the program to its end; where it is cancelled, the program and its children are ended.

    Raises Retryable(`delivery_failed`) where it can't be started, and Rejected(`delivery_refused`) where it never can.
    """
    try:
        process = await anyio.open_process(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environ,
            start_new_session=True,
        )
    except ValueError as error:  # A NUL in an argument, which no program can be given.
        raise Rejected("delivery_refused", destination=destination, detail=str(error)) from error
    except OSError as error:
        detail = f"{argv[0]} can't be started: {error}"
        raise Retryable("delivery_failed", destination=destination, detail=detail) from error
    said = bytearray()
    code = -1
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(_feed, process, stdin.encode())
            if process.stdout is not None:
                group.start_soon(_listen, process.stdout, said)
            code = await process.wait()
            group.cancel_scope.deadline = anyio.current_time() + REST_S
    finally:
        _end(process)
        with anyio.CancelScope(shield=True):
            await process.aclose()
    return Done(code, bytes(said).decode(errors="replace"))


def _end(process: Process) -> None:
    """Ends the group of a program that has not ended; its own pid is still its, because nobody has waited for it."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


async def _feed(process: Process, data: bytes) -> None:
    """Writes the input; a program that doesn't read it is none the worse for it."""
    if process.stdin is not None:
        with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            await process.stdin.send(data)
        with contextlib.suppress(OSError):
            await process.stdin.aclose()


async def _listen(stream: ByteReceiveStream, said: bytearray) -> None:
    with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
        while True:
            said += await stream.receive()
            del said[:-SAID_BYTES_MAX]
