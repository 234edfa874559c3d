"""A hub of models on loopback, in a thread: it gives what it was given, and misbehaves as it is told to."""

import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REVISION = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves one model; the fields say what goes wrong, and what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.name = "test/tiny"
        self.revision = REVISION
        self.files: dict[str, bytes] = {}
        self.large: set[str] = set()
        """Files for which it gives a SHA-256; for the others the id of a Git blob, as Hugging Face does."""
        self.cut_at: list[int] = []
        """Connections, one after the other, break off after so many bytes."""
        self.lies: list[str] = []
        """Files whose last byte is another, once for each time that they stand here."""
        self.ranges = True
        self.status: list[int] = []
        """What the next requests are answered with."""
        self.more: list[dict[str, Any]] = []
        """Entries that the listing has beside its files."""
        self.redirect_to = ""
        self.asked: list[tuple[str, str]] = []
        """Paths, and the ranges that were asked for."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def listing(self) -> dict[str, Any]:
        siblings = [
            {
                "rfilename": path,
                "size": len(data),
                "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
                **(
                    {"lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}}
                    if path in self.large
                    else {}
                ),
            }
            for path, data in self.files.items()
        ]
        return {"id": self.name, "sha": self.revision, "siblings": [*siblings, *self.more]}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        hub, url = self.server, urllib.parse.urlsplit(self.path)
        hub.asked.append((url.path, self.headers.get("Range", "")))
        if hub.status:
            self._answer(hub.status.pop(0), b"no")
        elif url.path == f"/api/models/{hub.name}/revision/main":
            self._answer(200, json.dumps(hub.listing()).encode())
        elif url.path.startswith(f"/{hub.name}/resolve/{hub.revision}/"):
            if hub.redirect_to:
                self.send_response(302)
                self.send_header("Location", hub.redirect_to)
                self.send_header("Content-Length", "0")
                self.end_headers()
            else:
                self._file(urllib.parse.unquote(url.path.rpartition(f"{hub.revision}/")[2]))
        else:
            self._answer(404, b"no such thing")

    def _file(self, path: str) -> None:
        hub = self.server
        data = hub.files[path]
        if path in hub.lies:
            hub.lies.remove(path)
            data = data[:-1] + bytes([data[-1] ^ 1])
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and hub.ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        piece = data[start:]
        if hub.cut_at:
            piece = piece[: hub.cut_at.pop(0)]
            self.close_connection = True
        self.wfile.write(piece)

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def hub() -> Iterator[Hub]:
    """Serves until the end of the block."""
    with Hub() as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield made
        finally:
            made.shutdown()
            thread.join()
