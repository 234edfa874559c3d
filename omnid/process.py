"""How a process of omnid runs to its end: with its log in a file, and its last error told to a person."""

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TextIO, cast

import anyio

from omnid.clock import Clock
from omnid.errors import Fatal, OmnidError
from omnid.flow.guard import first
from omnid.log import Log, Logger
from omnid.lookups import new_loop
from omnid.secrets import Secrets
from omnid.settings import Config


def run_logged(
    serve: Callable[[Logger], Awaitable[None]], settings: Config, file: str, clock: Clock, secrets: Secrets
) -> int:
    """Runs a process of omnid to its end, with its log in a file of the state directory; raises OmnidError."""
    log = Log(
        clock,
        secrets.redact,
        level=settings.log.level,
        path=str(Path(settings.state.dir) / file),
        bytes_max=settings.log.bytes_max,
        files_max=settings.log.files_max,
        stream=terminal(),
    )
    with log:
        try:
            anyio.run(serve, log.logger(), backend_options={"loop_factory": new_loop})
        except BaseExceptionGroup as group:
            error = of_omnid(first(group))
            log.logger().error("ended", detail=str(error), exc_info=group if error.code == "internal" else None)
            raise error from None
    return 0


def of_omnid(error: BaseException) -> OmnidError:
    """Gives an error of omnid's as it is; any other is a fault in omnid."""
    return error if isinstance(error, OmnidError) else Fatal("internal", detail=f"{type(error).__name__}: {error}")


def terminal() -> TextIO | None:
    """Gives standard error where it is a terminal; it may be closed altogether."""
    stream = cast("TextIO | None", sys.stderr)
    return stream if stream is not None and stream.isatty() else None


def say(error: OmnidError) -> int:
    """Tells a person of an error on standard error; gives the exit code."""
    stream = cast("TextIO | None", sys.stderr)
    if stream is None:
        return 1
    stream.write(f"omnid: {error.what}\n  why: {error.why}\n  do:  {error.do}\n")
    return 1
