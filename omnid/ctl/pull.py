"""Fetches a model into the cache: goes on where an earlier try broke off, and puts nothing in place unchecked.

It runs in ``omnictl`` and not in the daemon: a person starts it, watches it and may end it, and it must work before the
daemon's first start.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Generator, Sequence
from fnmatch import fnmatchcase
from typing import BinaryIO

from omnid import platform
from omnid.ctl.context import World
from omnid.ctl.hub import Hub, Listing, RemoteFile
from omnid.ctl.render import Screen, size
from omnid.errors import Retryable
from omnid.weights import PARTS, Weights, WeightsFile, digest, directory_of, read, write

LOCK = ".lock"

TRIES_MAX = 5
"""In a row, without a byte that came."""
PAUSE_S, PAUSE_S_MAX = 1.0, 15.0
SHOW_EVERY_S = 0.2
FREE_BYTES_MIN = 256 << 20
"""What is left free beside the model."""


class Pull:
    """One fetch of one model; the screen is told how it goes on."""

    def __init__(self, hub: Hub, root: str, name: str, world: World, screen: Screen) -> None:
        self._hub = hub
        self._root = root
        self._name = name
        self._world = world
        self._screen = screen
        self._shown_s = 0.0

    def run(self, revision: str, only: Sequence[str] = ()) -> Weights:
        """Fetches what isn't there yet; raises the errors of `hub`, `hub_lies`, `pull_no_room` and `cache_...`."""
        with opened(self._root, self._name) as directory:
            listing = self._hub.listing(self._name, revision)
            wanted = [one for one in listing.files if not only or any(fnmatchcase(one.path, form) for form in only)]
            if not wanted:
                raise self._hub.refused(self._name, f"it has no file like {', '.join(only)}")
            final = os.path.join(directory, listing.revision)
            parts = os.path.join(directory, PARTS, listing.revision)
            place = final if read(final) is not None else parts
            missing = [one for one in wanted if not _is_there(one, os.path.join(place, one.path))]
            self._check_room(directory, parts, missing)
            for number, one in enumerate(missing, 1):
                self._say(f"{one.path} ({number} of {len(missing)})")
                self._fetch(listing, one, parts, place)
            weights = self._manifest(listing, wanted, place)
            if place == parts:
                shutil.rmtree(final, ignore_errors=True)
                os.replace(parts, final)
                _sync(directory)
                weights = weights._replace(directory=final)
            forget_older(directory, listing.revision)
            return weights

    def _say(self, line: str) -> None:
        self._screen.progress("")
        self._screen.tell(line)

    def _progress(self, one: RemoteFile, came_bytes: int) -> None:
        now_s = self._world.monotonic_s()
        if now_s - self._shown_s >= SHOW_EVERY_S:
            self._shown_s = now_s
            self._screen.progress(f"{one.path}: {size(came_bytes)} of {size(one.size_bytes)}")

    def _check_room(self, directory: str, parts: str, missing: Sequence[RemoteFile]) -> None:
        needed = FREE_BYTES_MIN
        for one in missing:
            with contextlib.suppress(OSError):
                needed -= os.path.getsize(_part(parts, one))
            needed += one.size_bytes
        free = platform.free_bytes(directory)
        if missing and free < needed:
            raise Retryable("pull_no_room", needed_bytes=needed, path=directory, free_bytes=free)

    def _fetch(self, listing: Listing, one: RemoteFile, parts: str, place: str) -> None:
        """Fetches a file; what came before counts, and what turns out wrong is fetched once more from its start."""
        part = _part(parts, one)
        os.makedirs(os.path.dirname(part), exist_ok=True)
        for last in (False, True):
            self._complete(listing, one, part)
            if one.fits(part):
                break
            os.unlink(part)
            if last:
                detail = "its checksum is another"
                raise Retryable("hub_lies", path=one.path, hub=self._hub.base_url, detail=detail)
            self._say(f"{one.path}: its checksum is wrong; it is fetched anew")
        os.makedirs(os.path.dirname(os.path.join(place, one.path)), exist_ok=True)
        os.replace(part, os.path.join(place, one.path))

    def _complete(self, listing: Listing, one: RemoteFile, part: str) -> None:
        """Fetches until the file is as long as it should be, over as many connections as that takes."""
        failures = 0
        with open(part, "ab") as file:
            best_bytes = file.tell()
            while file.tell() < one.size_bytes:
                problem = "it broke off"
                try:
                    self._append(listing, one, file)
                except Retryable as error:
                    if error.code != "hub_down":
                        raise
                    problem = str(error.fields["detail"])
                if file.tell() == one.size_bytes:
                    break
                # A hub that can't go on in the middle may break off at the same place for ever.
                failures = 0 if file.tell() > best_bytes else failures + 1
                best_bytes = max(best_bytes, file.tell())
                if failures == TRIES_MAX:
                    raise Retryable("hub_down", hub=self._hub.base_url, detail=problem)
                self._say(f"{one.path}: {problem}; it goes on")
                self._world.sleep_s(min(PAUSE_S_MAX, PAUSE_S * 2**failures))
            file.flush()
            os.fsync(file.fileno())

    def _append(self, listing: Listing, one: RemoteFile, file: BinaryIO) -> None:
        """Fetches over one connection, from where the file ends."""
        for piece in self._hub.pieces(self._name, listing.revision, one.path, file.tell()):
            if not piece:
                file.seek(0)
                file.truncate()
            elif file.tell() + len(piece) > one.size_bytes:
                detail = f"it is longer than {one.size_bytes} bytes"
                raise Retryable("hub_lies", path=one.path, hub=self._hub.base_url, detail=detail)
            else:
                file.write(piece)
                self._progress(one, file.tell())

    def _manifest(self, listing: Listing, wanted: Sequence[RemoteFile], place: str) -> Weights:
        """Writes what is there now, with what an earlier fetch of the same version has brought."""
        before, now_ms = read(place), self._world.now_ms()
        names = {one.path for one in wanted}
        files = [one for one in before.files if one.path not in names] if before is not None else []
        for one in wanted:
            path = os.path.join(place, one.path)
            status = os.stat(path)
            files.append(WeightsFile(one.path, status.st_size, one.sha256 or digest(path), status.st_mtime_ns))
        weights = Weights(self._name, listing.revision, place, tuple(files), now_ms, now_ms)
        write(weights)
        return weights


def forget_older(directory: str, revision: str) -> list[str]:
    """Removes other versions than this one, and what was fetched of them; gives their revisions."""
    gone = [name for name in os.listdir(directory) if name != revision and not name.startswith(".")]
    for name in (*gone, PARTS):
        shutil.rmtree(os.path.join(directory, name), ignore_errors=True)
    return gone


@contextlib.contextmanager
def opened(root: str, name: str) -> Generator[str]:
    """Gives the directory of a model, which nobody else works in meanwhile; maps what the disk says."""
    try:
        directory = directory_of(root, name)
        platform.make_private(directory)
        lock = os.open(os.path.join(directory, LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield directory
        finally:
            os.close(lock)
    except BlockingIOError:
        raise Retryable("cache_busy", name=name) from None
    except OSError as error:
        raise Retryable("cache_unwritable", detail=f"{error.filename}: {error.strerror}") from error


def _is_there(one: RemoteFile, path: str) -> bool:
    try:
        return os.path.getsize(path) == one.size_bytes and one.fits(path)
    except FileNotFoundError:
        return False


def _part(parts: str, one: RemoteFile) -> str:
    return os.path.join(parts, f"{one.path}.part")


def _sync(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
