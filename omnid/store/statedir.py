"""The state directory: private, writable, and used by one daemon at a time."""

import fcntl
import os
import stat
from pathlib import Path
from typing import Self

from omnid import platform
from omnid.errors import Rejected


class StateDir:
    """Holds the lock of a state directory for as long as it is open; the kernel frees it when the process dies."""

    def __init__(self, path: Path, socket: str = "") -> None:
        """Makes the directory (0700), checks it and takes its lock; `socket` is where its daemon will listen.

        Raises Rejected(`state_unwritable`, `unsafe_directory`, `already_running`).
        """
        self.path = path
        try:
            platform.make_private(str(path))
            info = path.stat()
            if info.st_uid != os.geteuid() or stat.S_IMODE(info.st_mode) & 0o077:
                mode = f"{stat.S_IMODE(info.st_mode):04o}"
                raise Rejected("unsafe_directory", path=path, mode=mode, owner=info.st_uid)
            self._fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Rejected("state_unwritable", path=path, detail=error.strerror or str(error)) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            said = os.pread(self._fd, 100, 0).decode(errors="replace")
            holder = said.partition("\n")[0].strip() or "unknown process"
            os.close(self._fd)
            raise Rejected("already_running", path=path, holder=holder) from error
        try:
            os.ftruncate(self._fd, 0)
            # `omnid.api.spawn` reads it where the socket is gone, so that a daemon can be ended even then.
            pid = os.getpid()
            said = f"pid {pid}\nstart {platform.process_start(pid)}\nsocket {socket}\n"
            os.pwrite(self._fd, os.fsencode(said), 0)
        except OSError as error:
            os.close(self._fd)
            raise Rejected("state_unwritable", path=path, detail=error.strerror or str(error)) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the lock."""
        os.close(self._fd)
