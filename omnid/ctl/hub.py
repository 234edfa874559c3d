"""A hub of models, as Hugging Face's is: what a model consists of, and its files, piece by piece.

Source: https://huggingface.co/docs/hub/api (``/api/models/NAME/revision/REVISION?blobs=true``, ``/NAME/resolve/...``).
What comes from it is data: paths are checked, sizes are limits, and nothing is used before its checksum is compared.
"""

import hashlib
import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import IO, Any, NamedTuple, cast

from omnid.errors import Rejected, Retryable
from omnid.weights import MANIFEST, PIECE_BYTES, REVISION, digest, inside

READ_S = 30.0
LISTING_BYTES_MAX = 8 << 20
FILES_MAX = 1_000
NEEDED = (".safetensors", ".gguf", ".json", ".txt", ".model", ".jinja", ".tiktoken")
"""What a model consists of, by the ends of names; programs and pickles never: loading them runs them.

A file that would lie where the cache keeps its own manifest is left out too.
"""
LAST_REFUSAL, MAY_PASS = 499, (408, 429)
"""Answers up to this say that it never will, but for these two."""


class RemoteFile(NamedTuple):
    """A file at the hub, and the checksum that the hub gives for it."""

    path: str
    size_bytes: int
    sha256: str
    """Empty for small files, for which it gives the id of their Git blob."""
    blob: str

    def fits(self, path: str) -> bool:
        """Tells whether a file here is this one; reads all of it. Raises OSError."""
        if self.sha256:
            return digest(path) == self.sha256
        # Source: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects
        hashed = hashlib.sha1(f"blob {self.size_bytes}\0".encode(), usedforsecurity=False)
        with open(path, "rb") as file:
            while piece := file.read(PIECE_BYTES):
                hashed.update(piece)
        return hashed.hexdigest() == self.blob


class Listing(NamedTuple):
    """A version of a model at the hub."""

    revision: str
    files: tuple[RemoteFile, ...]


class Hub:
    """Asks one hub; its errors are `hub_down` (it may be back) and `hub_refused`."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url
        self._opener = urllib.request.OpenerDirector()
        # No files, no FTP: only what is added here.
        for handler in (
            urllib.request.ProxyHandler,
            urllib.request.HTTPHandler,
            urllib.request.HTTPSHandler,
            urllib.request.HTTPDefaultErrorHandler,
            urllib.request.HTTPErrorProcessor,
            _SafeRedirects,
        ):
            self._opener.add_handler(handler())

    def listing(self, name: str, revision: str) -> Listing:
        """Gives the files of a version (a branch, a tag or a commit) that are needed."""
        path = f"/api/models/{_quoted(name)}/revision/{urllib.parse.quote(revision, safe='')}?blobs=true"
        with self._opened(path, name, {}) as response:
            try:
                return _listing(json.loads(response.read(LISTING_BYTES_MAX)))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise self.refused(name, f"what it says of it can't be read ({error})") from None
            except (OSError, http.client.HTTPException) as error:
                raise self._down(error) from None

    def pieces(self, name: str, revision: str, path: str, offset_bytes: int) -> Iterator[bytes]:
        """Yields a file from an offset on; an empty piece first where the hub begins at its start instead."""
        headers = {"Range": f"bytes={offset_bytes}-"} if offset_bytes else {}
        with self._opened(f"/{_quoted(name)}/resolve/{revision}/{_quoted(path)}", name, headers) as response:
            if offset_bytes and response.status != http.client.PARTIAL_CONTENT:
                yield b""
            try:
                while piece := response.read1(PIECE_BYTES):
                    yield piece
            except (OSError, http.client.HTTPException) as error:
                raise self._down(error) from None

    def _opened(self, path: str, name: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        url, all_headers = self.base_url + path, {"User-Agent": "omnid", **headers}
        request = urllib.request.Request(url, headers=all_headers)  # noqa: S310 - the config takes https, or loopback.
        try:
            return cast("http.client.HTTPResponse", self._opener.open(request, timeout=READ_S))
        except urllib.error.HTTPError as error:
            error.close()
            detail = f"HTTP {error.code} ({error.msg})"
            if error.code <= LAST_REFUSAL and error.code not in MAY_PASS:
                raise self.refused(name, detail) from None
            raise Retryable("hub_down", hub=self.base_url, detail=detail) from None
        except (OSError, http.client.HTTPException) as error:
            raise self._down(error) from None

    def _down(self, error: Exception) -> Retryable:
        cause = getattr(error, "reason", error)
        silent = isinstance(cause, TimeoutError)
        detail = f"nothing came for {READ_S:g} s" if silent else str(cause) or type(cause).__name__
        return Retryable("hub_down", hub=self.base_url, detail=detail)

    def refused(self, name: str, detail: str) -> Rejected:
        """Makes the error of an answer that can't be used."""
        return Rejected("hub_refused", hub=self.base_url, name=name, detail=detail)


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows to where the files lie, and never from TLS to none."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if req.type == "https" and not newurl.startswith("https://"):
            raise urllib.error.HTTPError(newurl, code, "it leads away from TLS", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _listing(said: Any) -> Listing:
    revision, files = str(said["sha"]), cast("list[dict[str, Any]]", said["siblings"])
    if not REVISION.fullmatch(revision):
        raise ValueError("its revision is no commit")
    found = tuple(_remote(one) for one in files if _is_needed(str(one["rfilename"])))
    if not 0 < len(found) <= FILES_MAX:
        raise ValueError(f"it has {len(found)} files that a model needs")
    return Listing(revision, found)


def _is_needed(path: str) -> bool:
    # Some file systems don't tell large letters from small ones.
    return path.endswith(NEEDED) and path.casefold() != MANIFEST


def _remote(one: dict[str, Any]) -> RemoteFile:
    lfs = cast("dict[str, Any]", one.get("lfs") or {})
    size_bytes, sha256, blob = int(one["size"]), str(lfs.get("sha256") or ""), str(one.get("blobId") or "")
    if size_bytes < 0 or not (sha256 or blob):
        raise ValueError(f"it gives no checksum for {one['rfilename']}")
    return RemoteFile(inside(str(one["rfilename"])), size_bytes, sha256, blob)


def _quoted(path: str) -> str:
    return urllib.parse.quote(path, safe="/")
