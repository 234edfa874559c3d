"""Links and runners as the config has them: what is wrong with them, and what a runner may offer. Pure."""

import re
from collections.abc import Iterable, Iterator
from urllib.parse import urlsplit

from omnid import patterns, platform
from omnid.settings import CommandExecutor, Executor, McpExecutor
from omnid.settings_links import Link, Remote

END_NAME = re.compile(patterns.NAME)
"""What the ends of links may be called: daemons and runners."""
TLS = {"redis": "rediss", "amqp": "amqps"}
"""The schemes of links, and those of the same over TLS."""


def problems(link: Link) -> Iterator[tuple[str, str]]:
    """Gives what is wrong with a link: the key, and why its value can't be used."""
    try:
        parts = urlsplit(link.url)
        host, _ = parts.hostname, parts.port
    except ValueError:  # Its text quotes what may be a password.
        yield "url", "it is no address: scheme://host:port, with a number as its port"
        return
    if parts.scheme not in (*TLS, *TLS.values()) or not host:
        yield "url", f"it is the address of a broker: {', '.join(f'{scheme}://HOST' for scheme in TLS.values())}"
        return
    if "@" in parts.netloc or parts.query or parts.fragment:
        yield "url", "it is a scheme, a host, a port and a path; user and password have their own settings"
    if platform.is_loopback(host):
        return
    if parts.scheme in TLS and link.password:
        yield "url", f"a password goes over the network with TLS only: {TLS[parts.scheme]}://"
    if is_exposed(link) and not link.unsigned:
        yield "key", "whoever can write to this broker could have commands run; give it a key, or set unsigned = true"


def is_exposed(link: Link) -> bool:
    """Tells whether commands come from whoever can write to a broker: others can, and no key tells them apart."""
    return not link.key and not platform.is_loopback(urlsplit(link.url).hostname or "")


def may_be_offered(executor: Executor) -> bool:
    """Tells whether a runner may offer an executor: agents and models need the journal, and what they may cost."""
    if isinstance(executor, CommandExecutor):
        return executor.profile in (None, "none") and executor.workspace in (None, "none")
    return isinstance(executor, McpExecutor)


def given_away(remotes: Iterable[Remote]) -> frozenset[str]:
    """Gives the executors that work on runners on other hosts, and not in the daemon."""
    return frozenset(name for remote in remotes for name in remote.executors)
