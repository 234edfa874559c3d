"""The local cache of models: where their files lie, which versions there are, and whether they are whole.

Each version is a directory with the files of a model and a manifest that says what belongs there, with its checksums.
Standard library only: ``omnictl`` fills the cache, and the daemon reads it. It never changes while a version is used: a
file or a version is put into its place with a single rename.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

MANIFEST = "manifest.json"
PARTS = ".parts"
"""Below a model's directory: what is being pulled."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
REVISION = re.compile(r"[0-9a-f]{7,64}")
MANIFEST_BYTES_MAX = 4 << 20
PIECE_BYTES = 1 << 20


class WeightsFile(NamedTuple):
    """A file of a model, as it was when it was last found whole."""

    path: str
    size_bytes: int
    sha256: str
    mtime_ns: int = 0


class Weights(NamedTuple):
    """A version of a model in the cache."""

    name: str
    revision: str
    directory: str
    files: tuple[WeightsFile, ...]
    pulled_at_ms: int
    verified_at_ms: int
    damaged: tuple[str, ...] = ()
    """What the last look at all of its bytes has found."""

    @property
    def size_bytes(self) -> int:
        """How large all files are together."""
        return sum(file.size_bytes for file in self.files)


def directory_of(root: str, name: str) -> str:
    """Gives the directory of a model: ``owner/name`` becomes ``owner--name``; raises ValueError for any other name."""
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a model: it is OWNER/NAME")
    return os.path.join(root, name.replace("/", "--"))


def cached(root: str) -> list[Weights]:
    """Gives all versions in the cache, those of a model together, its newest first."""
    found: list[Weights] = []
    for model in _names(root):
        for revision in _names(os.path.join(root, model)):
            weights = read(os.path.join(root, model, revision))
            if weights is not None:
                found.append(weights)
    return sorted(found, key=lambda one: (one.name, -one.pulled_at_ms))


def find(root: str, name: str) -> Weights | None:
    """Gives the newest version of a model; None where it was never pulled."""
    try:
        directory = directory_of(root, name)
    except ValueError:
        return None
    versions = [one for revision in _names(directory) if (one := read(os.path.join(directory, revision))) is not None]
    # `a/b--c` and `a--b/c` share a directory.
    versions = [one for one in versions if one.name == name]
    return max(versions, key=lambda one: one.pulled_at_ms, default=None)


def read(directory: str) -> Weights | None:
    """Reads the manifest of a version; None where there is none that can be used."""
    try:
        with open(os.path.join(directory, MANIFEST), "rb") as file:
            said: Any = json.loads(file.read(MANIFEST_BYTES_MAX))
        files = tuple(
            WeightsFile(inside(one["path"]), int(one["size_bytes"]), str(one["sha256"]), int(one["mtime_ns"]))
            for one in cast("list[dict[str, Any]]", said["files"])
        )
        return Weights(
            str(said["name"]),
            str(said["revision"]),
            directory,
            files,
            int(said["pulled_at_ms"]),
            int(said["verified_at_ms"]),
            tuple(str(path) for path in said["damaged"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(weights: Weights) -> None:
    """Writes the manifest of a version, durably; raises OSError."""
    said = {
        "name": weights.name,
        "revision": weights.revision,
        "files": [file._asdict() for file in weights.files],
        "pulled_at_ms": weights.pulled_at_ms,
        "verified_at_ms": weights.verified_at_ms,
        "damaged": list(weights.damaged),
    }
    path = os.path.join(weights.directory, MANIFEST)
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump(said, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.new", path)


def look(weights: Weights) -> list[str]:
    """Gives the files that are gone or other than when they were last found whole; reads none of them."""
    wrong = list(weights.damaged)
    for file in weights.files:
        with contextlib.suppress(OSError):
            status = os.stat(os.path.join(weights.directory, file.path))
            if (status.st_size, status.st_mtime_ns) == (file.size_bytes, file.mtime_ns):
                continue
        wrong.append(file.path)
    return list(dict.fromkeys(wrong))


def verify(weights: Weights, now_ms: int, read_bytes: Callable[[int], None] = lambda _: None) -> Weights:
    """Reads all bytes of a version and writes down which files are damaged; `read_bytes` hears how it goes on.

    Raises OSError where that can't be written down.
    """
    damaged: list[str] = []
    files: list[WeightsFile] = []
    for file in weights.files:
        path = os.path.join(weights.directory, file.path)
        try:
            whole = digest(path, read_bytes) == file.sha256
            files.append(file._replace(mtime_ns=os.stat(path).st_mtime_ns) if whole else file)
        except OSError:
            whole = False
            files.append(file)
        if not whole:
            damaged.append(file.path)
    verified = weights._replace(files=tuple(files), verified_at_ms=now_ms, damaged=tuple(damaged))
    write(verified)
    return verified


def digest(path: str, read_bytes: Callable[[int], None] = lambda _: None) -> str:
    """Gives the SHA-256 of a file; raises OSError."""
    hashed = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(PIECE_BYTES):
            hashed.update(piece)
            read_bytes(len(piece))
    return hashed.hexdigest()


def size_of(paths: Iterable[str]) -> int:
    """Adds up the sizes of files, and of the files right in directories; what isn't there counts as nothing."""
    total = 0
    for path in paths:
        with contextlib.suppress(OSError):
            files = [entry.path for entry in os.scandir(path)] if os.path.isdir(path) else [path]
            total += sum(os.path.getsize(file) for file in files if os.path.isfile(file))
    return total


def inside(path: str) -> str:
    """Gives a path that leads to a place inside its directory; raises ValueError for any other."""
    parts = path.split("/")
    if not path or "\\" in path or "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{path!r} is no path of a file")
    return path


def _names(directory: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(directory) if not name.startswith("."))
    except OSError:
        return []
