"""The desktop of the machine as a destination: a notice in its corner, by ``notify-send`` or ``osascript``."""

import os
import shutil
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from omnid.errors import Retryable
from omnid.link.destination import Single, text_of
from omnid.link.program import run
from omnid.log import Logger
from omnid.model import Delivery
from omnid.platform import IS_MACOS

TIMEOUT_S = 15.0
VARIABLES = ("DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR", "DISPLAY", "WAYLAND_DISPLAY")
"""What ``notify-send`` needs beside the basic environment."""
_SCRIPT = (
    "on run argv",
    "display notification (item 2 of argv) with title (item 1 of argv)",
    "end run",
)


class Desktop(NamedTuple):
    """The program that shows a notice, and how it takes the text."""

    program: str
    is_macos: bool

    def argv(self, title: str, text: str) -> tuple[str, ...]:
        """Gives the command line; the title and the text are arguments, never a part of a script or of markup."""
        if self.is_macos:
            script = (part for line in _SCRIPT for part in ("-e", line))
            return (self.program, *script, "--", title, text)
        return (self.program, "--app-name=omnid", "--", title, escape(text, quote=False))


def find_desktop(environ: Mapping[str, str], *, is_macos: bool = IS_MACOS) -> Desktop | None:
    """Gives the desktop, or None where there is none to show anything on: a server, or a session without a bus."""
    program = shutil.which("osascript" if is_macos else "notify-send", path=environ.get("PATH"))
    if program is None or is_macos:
        return None if program is None else Desktop(program, is_macos)
    bus = os.path.join(environ.get("XDG_RUNTIME_DIR", "/nowhere"), "bus")
    return Desktop(program, is_macos) if environ.get("DBUS_SESSION_BUS_ADDRESS") or os.path.exists(bus) else None


class DesktopDestination(Single):
    """Implements `destination.Destination`. Where there is no desktop, the log is all that hears of a notice."""

    def __init__(self, desktop: Desktop | None, environ: Mapping[str, str], log: Logger) -> None:
        super().__init__("desktop", TIMEOUT_S)
        self._desktop = desktop
        self._environ = environ
        self._log = log

    async def send(self, batch: Sequence[Delivery]) -> None:
        """See `Destination.send`."""
        for delivery in batch:
            text = text_of(delivery)
            if self._desktop is None:
                self._log.info("notice_without_desktop", id=delivery.id, subject=delivery.subject)
                continue
            done = await run(self.name, self._desktop.argv("omnid", text), "", self._environ)
            if done.code != 0:
                raise Retryable("delivery_failed", destination=self.name, detail=done.detail)
