"""A Unix socket at a path: born private, and never in the place of something that isn't omnid's own."""

import os
import socket
import stat
from typing import Self

from omnid import platform
from omnid.errors import Rejected

_BACKLOG = 1024


class Bound:
    """A listening Unix socket at a path, which lies there as long as the context lasts.

    Raises Rejected: `path_too_long`, `unsafe_directory`, `foreign_file`, `already_running`, `state_unwritable`.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.socket = _listen(path)
        self._identity = _identity(path)

    def unlink(self) -> None:
        """Takes the socket away from its path, unless another one lies there by now."""
        if self._identity is not None and _identity(self._path) == self._identity:
            os.unlink(self._path)
        self._identity = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.unlink()
        self.socket.close()


def _listen(path: str) -> socket.socket:
    length = len(os.fsencode(path))
    if length > platform.SOCKET_PATH_BYTES_MAX:
        raise Rejected("path_too_long", path=path, length=length, limit=platform.SOCKET_PATH_BYTES_MAX)
    directory = os.path.dirname(path)
    try:
        platform.make_private(directory)
        _check_directory(directory)
        _remove_dead(path)
        return _bind(path)
    except OSError as error:
        raise Rejected("state_unwritable", path=directory, detail=error.strerror or str(error)) from error


def _bind(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # The file must not be open to others for a moment either, so its mode comes from the mask, not from a chmod.
    mask = os.umask(0o177)
    try:
        listener.bind(path)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(mask)
    return listener


def _check_directory(directory: str) -> None:
    status = os.stat(directory)
    if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
        mode = f"{stat.S_IMODE(status.st_mode):03o}"
        raise Rejected("unsafe_directory", path=directory, mode=mode, owner=status.st_uid)


def _remove_dead(path: str) -> None:
    """Removes what an omnid that died has left at the path; raises Rejected where anything else lies there."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise Rejected("foreign_file", path=path, detail="it is no socket")
    if status.st_uid != os.getuid():
        raise Rejected("foreign_file", path=path, detail=f"it belongs to user {status.st_uid}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            # Its backlog is full, so somebody listens.
            pass
    raise Rejected("already_running", path=path, holder="it answers at the socket")


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
