"""Where MCP servers are, and what goes to an address on the web: pure checks of what a config says."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

_URL = re.compile(r"https?://[^\s@/?#]+([/?#]\S*)?")
_GUARDED = re.compile(r"https://|http://(localhost|127\.\d+\.\d+\.\d+|\[::1\])([:/?#]|$)")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
"""A name of a header (RFC 9110, section 5.1)."""
_OWN_HEADERS = frozenset(
    {
        "accept",
        "connection",
        "content-length",
        "content-type",
        "host",
        "last-event-id",
        "mcp-method",
        "mcp-name",
        "mcp-protocol-version",
        "mcp-session-id",
        "transfer-encoding",
        "user-agent",
    }
)
_OF_PROCESSES = ("cwd", "env", "env_set")
_OF_URLS = ("token", "headers", "ca_file", "verify", "connect_timeout_s")


def is_url(text: str) -> bool:
    """Tells whether the text is the address of something on the web, without a password in it."""
    return _URL.fullmatch(text) is not None


def is_guarded(url: str) -> bool:
    """Tells whether nobody can read on the way what is sent to an address: it takes TLS, or stays on this machine."""
    return is_url(url) and _GUARDED.match(url) is not None


def may_go_to(url: str, *, secrets: bool) -> bool:
    """Tells whether a server may be spoken to at an address, and be sent `secrets`."""
    return is_guarded(url) if secrets else is_url(url)


def problems(given: Mapping[str, Any], *, url_is_known: bool) -> Iterator[tuple[str, Any, str]]:
    """Gives what is wrong with the section of a server: key, value (None: it isn't shown) and detail.

    `url_is_known`: it is no reference.
    """
    url = given.get("url", "")
    if bool(given.get("argv")) == bool(url):
        yield (
            "argv",
            [*given.get("argv", ())],
            "an MCP server needs the command that starts it, or its url, and not both",
        )
    for key in _OF_PROCESSES if url else _OF_URLS:
        if key in given:
            yield (
                key,
                None if key in ("token", "headers") else given[key],
                f"it is for a server {'that omnid starts' if url else 'at a url'}",
            )
    for name in given.get("headers", {}):
        if not _HEADER.fullmatch(name):
            yield f"headers.{name}", name, "it is no name of a header"
        elif name.lower() in _OWN_HEADERS:
            yield f"headers.{name}", name, "omnid sets this header itself"
    if url and url_is_known and not may_go_to(url, secrets="token" in given or "headers" in given):
        yield (
            "url",
            None if "@" in url else url,
            "it begins with https:// (http:// is for this machine, or without a token), and holds no password",
        )
    if (path := given.get("ca_file", "")) and not path.startswith("/"):
        yield "ca_file", path, "a path starts with /"
