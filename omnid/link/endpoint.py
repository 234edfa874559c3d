"""Where an end of a link connects to: the address in its URL, with its secrets resolved."""

import ssl
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import anyio

from omnid.errors import Rejected, Retryable
from omnid.link.interface import LinkDown, LinkFull
from omnid.link.message import Codec

CLOSE_S_MAX = 1.0
"""How long a goodbye to a broker may take: one that is frozen takes none."""


HOLDER_BYTES_MAX = 500


class Address(NamedTuple):
    """What a URL says: ``redis://host:port/0``, ``amqps://host/vhost``."""

    host: str
    port: int
    path: str
    """Without its slash; "" where there is none."""
    tls: bool


class Holder(NamedTuple):
    """Who has the name of an end."""

    id: str
    """Of its journal or ledger, without spaces: what comes back with the same one may take its name at once."""
    said: str
    """Where it is, for people."""

    @property
    def line(self) -> str:
        """Gives how it is written down at the broker."""
        return f"{self.id} {self.said}"

    @staticmethod
    def read(line: bytes) -> "Holder":
        """Reads what another has written down, which need not be an omnid."""
        id, _, said = line[:HOLDER_BYTES_MAX].decode(errors="replace").partition(" ")
        return Holder(id, said if said.isprintable() and said else "somebody else")


class Endpoint(NamedTuple):
    """What an end needs to connect; `codec` knows its name, and the link's."""

    codec: Codec
    url: str
    user: str = ""
    password: str = ""
    ca: str = ""
    """A file with the certificates that the broker's is checked against; "": those of the system."""
    timeout_s: float = 10.0
    """Of the dial, and of each request."""
    batch_max: int = 256
    """How many messages are on their way to this end at once."""
    holder: Holder = Holder("", "")
    lease_s: float = 30.0
    """For how long it has its name after its last sign, where the broker doesn't notice by itself that it is gone."""
    held_max: int = 0
    """How many more this end may have taken and not acknowledged yet: behind them it still gets what comes."""

    def __repr__(self) -> str:
        return f"<Endpoint {self.name} of {self.link}>"  # The password is nobody's to see.

    @property
    def link(self) -> str:
        """The link's name in the config."""
        return self.codec.link

    @property
    def name(self) -> str:
        """The name of this end."""
        return self.codec.name

    def address(self, ports: Mapping[str, int], tls: str) -> Address:
        """Reads the URL. `ports` are the schemes that are known, with their ports; `tls` is the one over TLS.

        Raises Rejected(`link_refused`). A URL is shown and logged, so it may hold neither user nor password.
        """
        try:
            parts = urlsplit(self.url)
            port = parts.port
        except ValueError as error:
            raise self.refused(f"its URL can't be read ({error})") from error
        if parts.scheme not in ports:
            raise self.refused(f"its URL begins with none of {', '.join(f'{scheme}://' for scheme in ports)}")
        if "@" in parts.netloc or parts.query or parts.fragment or not parts.hostname:
            raise self.refused("its URL is a scheme, a host, a port and a path; user and password stand beside it")
        path = unquote(parts.path.removeprefix("/"))
        return Address(parts.hostname, port or ports[parts.scheme], path, parts.scheme == tls)

    def tls(self) -> ssl.SSLContext:
        """Makes the context that checks the broker's certificate and name; raises Rejected(`link_refused`)."""
        try:
            return ssl.create_default_context(cafile=self.ca or None)
        except (OSError, ssl.SSLError) as error:
            raise self.refused(f"its certificates in {self.ca} can't be read ({error})") from error

    def refused(self, detail: str) -> Rejected:
        """Makes the error of a link that can't be used as it is."""
        return Rejected("link_refused", link=self.link, detail=detail)

    def down(self, detail: object) -> LinkDown:
        """Makes the error of a link that is down."""
        return LinkDown("link_down", link=self.link, detail=str(detail).rstrip(".") or type(detail).__name__)

    def late(self) -> LinkDown:
        """Makes the error of a link that has not answered within `timeout_s`."""
        return self.down(f"no answer within {self.timeout_s:g} s")

    def full(self, detail: str) -> LinkFull:
        """Makes the error of a link that takes nothing now."""
        return LinkFull("link_full", link=self.link, detail=detail.rstrip("."))

    def undelivered(self, to: str, detail: str) -> Retryable:
        """Makes the error of one destination that can't take what is sent to it."""
        return Retryable("delivery_failed", destination=to, detail=detail.rstrip("."))

    def taken(self, holder: Holder) -> LinkDown:
        """Makes the error of a name that another has."""
        return LinkDown("name_taken", name=self.name, link=self.link, holder=holder.said)

    @contextmanager
    def deadline(self) -> Generator[None]:
        """Ends what takes longer than `timeout_s` with LinkDown."""
        try:
            with anyio.fail_after(self.timeout_s):
                yield
        except TimeoutError as error:
            raise self.late() from error

    def need_asyncio(self) -> None:
        """Raises Rejected(`link_refused`) on a backend that the clients of brokers don't know."""
        if anyio.get_cancelled_exc_class().__module__.partition(".")[0] != "asyncio":
            raise self.refused("its client needs asyncio, and this program runs on another backend")
