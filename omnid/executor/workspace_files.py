"""Trees of files: copied (by reference where the file system can), compared, measured and removed. Blocking."""

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator

BLOCK_BYTES = 512
"""The unit of ``st_blocks`` (stat(2))."""
CHUNK_BYTES = 64 << 20
_NO_RANGE = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF}
"""What `copy_file_range` says where the file systems can't do it; the bytes are read and written then."""


class TooLarge(Exception):
    """The tree takes more than it may."""


class Stopped(Exception):
    """Nobody waits for the copy any more."""


def is_directory(path: str) -> bool:
    """Tells whether a directory is there; one look at one inode, so that it may be asked on the event loop too."""
    return os.path.isdir(path)


def has(path: str, name: str) -> bool:
    """Tells whether something of that name is in a directory."""
    return os.path.exists(os.path.join(path, name))


def is_worktree(path: str) -> bool:
    """Tells whether a directory with a ``.git`` is there."""
    return has(path, ".git")


def is_linked(path: str) -> bool:
    """Tells whether a directory is a git worktree or submodule, whose ``.git`` is a file that leads elsewhere."""
    return os.path.isfile(os.path.join(path, ".git"))


def size_bytes(root: str) -> int:
    """Adds up what a tree takes on the disk; a file with several links counts once."""
    total, seen = 0, set[tuple[int, int]]()
    for entry in _entries(root):
        try:
            info = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        if info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode):
            if (info.st_dev, info.st_ino) in seen:
                continue
            seen.add((info.st_dev, info.st_ino))
        total += info.st_blocks * BLOCK_BYTES
    return total


def copy(source: str, target: str, leave_out: str, bytes_max: int, stopped: Callable[[], bool]) -> int:
    """Copies a tree, but not the tree `leave_out` in it; gives the number of special files that were left out.

    Modes, times and links are kept. Raises TooLarge, Stopped, and OSError.
    """
    left_out = total = 0
    os.mkdir(target, 0o700)
    directories = [(source, target)]
    for of, to in directories:
        with os.scandir(of) as entries:
            for entry in entries:
                if stopped():
                    raise Stopped
                info = entry.stat(follow_symlinks=False)
                path = os.path.join(to, entry.name)
                if stat.S_ISDIR(info.st_mode):
                    if os.path.realpath(entry.path) != leave_out:
                        os.mkdir(path, 0o700)
                        directories.append((entry.path, path))
                elif stat.S_ISLNK(info.st_mode):
                    os.symlink(os.readlink(entry.path), path)
                    shutil.copystat(entry.path, path, follow_symlinks=False)
                elif stat.S_ISREG(info.st_mode):
                    total += info.st_blocks * BLOCK_BYTES
                    if total > bytes_max:
                        raise TooLarge
                    _copy_file(entry.path, path)
                else:
                    left_out += 1
    # From the inside out, because making an entry changes the time of its directory.
    for of, to in reversed(directories):
        shutil.copystat(of, to)
    return left_out


def same(one: str, other: str, leave_out: str) -> bool:
    """Tells whether two trees are alike by names, kinds, modes, sizes and times, as `copy` makes them."""
    return _traits(one, leave_out) == _traits(other, leave_out)


def remove(root: str) -> None:
    """Removes a tree, also where directories in it were made read-only; nothing happens where there is none."""
    try:
        shutil.rmtree(root)
    except FileNotFoundError:
        return
    except PermissionError:
        for directory, _, _ in os.walk(root):
            os.chmod(directory, 0o700)
        shutil.rmtree(root)


def _copy_file(source: str, target: str) -> None:
    with open(source, "rb") as read, open(target, "xb") as write:
        try:
            while os.copy_file_range(read.fileno(), write.fileno(), CHUNK_BYTES):
                pass
        except (AttributeError, OSError) as error:
            # macOS has no such call.
            if isinstance(error, OSError) and error.errno not in _NO_RANGE:
                raise
            read.seek(0)
            write.seek(0)
            write.truncate()
            shutil.copyfileobj(read, write)
    shutil.copystat(source, target)


def _entries(root: str, leave_out: str = "") -> Iterator["os.DirEntry[str]"]:
    """Walks a tree without the tree `leave_out` in it; what goes away meanwhile is passed over."""
    directories = [root]
    while directories:
        try:
            with os.scandir(directories.pop()) as entries:
                for entry in entries:
                    if not entry.is_dir(follow_symlinks=False):
                        yield entry
                    elif os.path.realpath(entry.path) != leave_out:
                        yield entry
                        directories.append(entry.path)
        except (FileNotFoundError, PermissionError):
            continue


def _traits(root: str, leave_out: str) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for entry in _entries(root, leave_out):
        info = entry.stat(follow_symlinks=False)
        name = os.path.relpath(entry.path, root)
        if stat.S_ISLNK(info.st_mode):
            found[name] = ("link", os.readlink(entry.path))
        elif stat.S_ISREG(info.st_mode):
            found[name] = (info.st_mode, info.st_size, info.st_mtime_ns)
        elif stat.S_ISDIR(info.st_mode):
            found[name] = ("directory", info.st_mode)
    return found
