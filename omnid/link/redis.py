"""Redis as a link: a stream for each end, read by one consumer of one group. redis-py is imported by the first dial.

``omnid:{NAME}:in`` holds what was sent to the end NAME and is not acknowledged, ``omnid:{NAME}:dead`` what that end has
set aside; see `redis_keys`. An entry goes when it is acknowledged and not before, so the stream is trimmed behind that
alone. With ``appendfsync always`` an answer to XADD means that it is on the disk.
"""

import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.to_thread

from omnid.link.endpoint import CLOSE_S_MAX, Endpoint, Holder
from omnid.link.interface import Message, Received
from omnid.link.redis_keys import FIELD, FOREIGN, GROUP, WHY, Entry, Found, Keys, foreign_stream, stream_of
from omnid.loading import loading
from omnid.log import Logger

PORTS = {"redis": 6379, "rediss": 6379}
VERSION_MIN = "5.0"
"""The first that has streams."""
DEAD_MAX = 10_000
"""About how many messages an end keeps that it has set aside."""
FULL = "OOM"
"""The code of a server that has no memory for more; it still gives what it has, and forgets it."""
PERSONS = frozenset({"NOAUTH", "WRONGPASS", "NOPERM", "WRONGTYPE", "MOVED", "ASK", "CROSSSLOT", "ERR"})
"""Codes of errors that a person has to mend. Any other passes: LOADING, READONLY, MISCONF, CLUSTERDOWN, ..."""
PIPELINE = "of pipeline caused error: "
"""What redis-py puts before an error inside a transaction, behind a part of the message itself."""
HINTS = {
    "unknown command": f"Redis {VERSION_MIN} or later is needed",
    "DB index": "the path of its URL is the number of a database that Redis has (its setting databases)",
    "SELECT is not allowed": "a cluster has no other database than 0, which a URL without a path means",
}
"""What to do about what a server says."""


class RedisLink:
    """See `interface.Link`. It knows asyncio only; on another backend a dial is refused."""

    def __init__(self, endpoint: Endpoint, log: Logger) -> None:
        self._endpoint = endpoint
        self._codec = endpoint.codec
        self._log = log
        self._keys = Keys.of(endpoint.name)
        self._marked: set[str] = set()
        """The streams that have omnid's group: this end's, and those of the ends that it sends to."""
        self._replays = False
        """Whether a transaction surely outlives a start of the server."""
        self._lease_ms = round(1000 * endpoint.lease_s)
        self._named = False
        """Whether this end has its name: a server without memory lets it in without."""
        self._unacknowledged: bytes | None = b"0"
        """Behind which entry those are read on that an earlier connection has read; None: all of them were."""
        self._named_late = False
        """Whether another of this name may have read something since: that is read again."""

    @property
    def name_s(self) -> float:
        """See `Link.name_s`."""
        return self._endpoint.lease_s if self._named else 0.0

    async def __aenter__(self) -> Self:
        """See `Link.__aenter__`."""
        endpoint = self._endpoint
        endpoint.need_asyncio()
        self._library: Any = await anyio.to_thread.run_sync(import_library, endpoint)
        options = self._options()
        # Reading waits as long as it takes; whether the server still answers shows on the other connection.
        self._client: Any = self._library.Redis(socket_timeout=endpoint.timeout_s, **options)
        self._reader: Any = self._library.Redis(socket_timeout=None, **options)
        try:
            with self._mapped(dialling=True), endpoint.deadline():
                await self._look()
                self._replays = await self._replays_transactions()
                await self._take_name()
                await self._mark(self._keys.stream)
                await self._reader.ping()
        except BaseException:
            await self._close()
            raise
        return self

    async def _take_name(self) -> None:
        """Takes the lease of this end's name; raises LinkDown(`name_taken`) where another has it."""
        holder = self._endpoint.holder
        self._named = False
        line = await self._client.get(self._keys.lease)
        other = None if line is None else Holder.read(line)
        if other is not None and other.id != holder.id:
            raise self._endpoint.taken(other)
        try:
            if not await self._client.set(self._keys.lease, holder.line, px=self._lease_ms, nx=other is None):
                raise self._endpoint.taken(Holder.read(await self._client.get(self._keys.lease) or b""))
            self._named = True
        except self._library.ResponseError as error:
            if _code_of(error) != FULL:
                raise
            # Who isn't let in can't take out what fills it. A name that nobody has is taken by a later ping.
            self._named = other is not None and bool(await self._client.pexpire(self._keys.lease, self._lease_ms))

    async def _look(self) -> None:
        """Raises Rejected(`link_refused`) where another program has a key of this end, and writes nothing."""
        found = await self._found(*self._keys)
        for key, one, foreign in zip(self._keys, found, FOREIGN, strict=True):
            if what := foreign(one):
                raise self._endpoint.refused(_occupied(key, what, "this end"))

    async def _look_at(self, to: str, stream: str) -> None:
        """Makes sure that what another end reads isn't another program's; raises Retryable(`delivery_failed`)."""
        (found,) = await self._found(stream)
        if what := foreign_stream(found):
            raise self._endpoint.undelivered(to, _occupied(stream, what, "that end"))
        await self._mark(stream)

    async def _replays_transactions(self) -> bool:
        """Tells whether the user `default` may do what this end does in a transaction.

        When a server reads its file at a start, it drops a transaction in which something is that this user may not do,
        whoever did it (redis/redis#14541, mended late in 2025; 7.0 does so).
        """
        if self._endpoint.user in ("", "default"):
            return True
        try:
            entry = ("XADD", self._keys.stream, "*", FIELD, "")
            return bool(await self._client.execute_command("ACL", "DRYRUN", "default", *entry) == b"OK")
        except self._library.ResponseError:
            return False  # Nobody says so: the right to ask is missing, or the server is older than 7.0.

    async def _found(self, *keys: str) -> list[Found]:
        """Looks at keys in one round trip, and at entries only where no group tells whose a stream is."""
        pipeline = self._client.pipeline(transaction=False)
        for key in keys:
            pipeline.execute_command("TYPE", key)
            pipeline.execute_command("PTTL", key)
            pipeline.execute_command("XINFO", "GROUPS", key)  # It fails where no stream is.
        answers = await pipeline.execute(raise_on_error=False)
        return [await self._found_at(key, *answers[3 * n : 3 * n + 3]) for n, key in enumerate(keys)]

    async def _found_at(self, key: str, kind: Any, ttl_ms: Any, groups: Any) -> Found:
        for answer in (kind, ttl_ms, *((groups,) if kind == b"stream" else ())):
            if isinstance(answer, self._library.RedisError):
                raise answer
        if kind != b"stream":
            return Found(kind.decode(), ttl_ms=ttl_ms)
        found = Found("stream", frozenset(dict(zip(group[::2], group[1::2], strict=True))[b"name"] for group in groups))
        if found.has_group:
            self._marked.add(key)
            return found
        first = await self._client.execute_command("XRANGE", key, "-", "+", "COUNT", 1)
        last = await self._client.execute_command("XREVRANGE", key, "+", "-", "COUNT", 1)
        return found._replace(ends=(*first, *last))

    async def _mark(self, stream: str) -> None:
        """Makes the group by which a stream is omnid's, and the stream with it."""
        if stream in self._marked:
            return
        try:
            await self._client.execute_command("XGROUP", "CREATE", stream, GROUP, "0", "MKSTREAM")
        except self._library.ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise
        self._marked.add(stream)

    def _options(self) -> dict[str, Any]:
        endpoint = self._endpoint
        address = endpoint.address(PORTS, "rediss")
        if address.path and not re.fullmatch(r"[0-9]{1,9}", address.path):
            raise endpoint.refused(f"the path of its URL is the number of a database, and not {address.path[:100]}")
        no_backoff = import_module("redis.backoff").NoBackoff
        options: dict[str, Any] = {
            "host": address.host,
            "port": address.port,
            "db": int(address.path or 0),
            "username": endpoint.user or None,
            "password": endpoint.password or None,
            "socket_connect_timeout": endpoint.timeout_s,
            "client_name": f"omnid-{endpoint.name}",
            "protocol": 2,
            # What failed may have been done: whoever sends decides about a second time.
            "retry": import_module("redis.asyncio.retry").Retry(no_backoff(), 0),
        }
        if address.tls:
            endpoint.tls()  # So that a file that can't be read is told by its name.
            options |= {"ssl": True, "ssl_ca_certs": endpoint.ca or None}
        return options

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """See `Link.__aexit__`."""
        await self._close()

    async def _close(self) -> None:
        for goodbye in (self._let_go, self._client.aclose, self._reader.aclose):
            with anyio.move_on_after(CLOSE_S_MAX, shield=True):
                try:
                    await goodbye()
                except (self._library.RedisError, OSError) as error:
                    self._log.debug("goodbye_failed", link=self._endpoint.link, detail=str(error))

    async def _let_go(self) -> None:
        """Gives the name back, where it is still this end's."""
        if await self._client.get(self._keys.lease) == self._endpoint.holder.line.encode():
            await self._client.delete(self._keys.lease)

    async def send(self, to: str, batch: Sequence[Message]) -> None:
        """See `Messenger.send`."""
        stream = stream_of(to)
        encoded = self._codec.encode(to, batch)
        parts = [encoded] if self._replays else [[data] for data in encoded]
        for part in parts:
            await self._add(to, stream, part)

    async def _add(self, to: str, stream: str, encoded: Sequence[bytes]) -> None:
        """Adds all of them to a stream, or none."""
        with self._mapped(), self._endpoint.deadline():
            try:
                if stream not in self._marked:
                    await self._look_at(to, stream)
                if len(encoded) == 1:  # It needs no transaction, which takes redis-py twice as long.
                    await self._client.execute_command("XADD", stream, "*", FIELD, encoded[0])
                    return
                pipeline = self._client.pipeline(transaction=True)
                for data in encoded:
                    pipeline.execute_command("XADD", stream, "*", FIELD, data)
                await pipeline.execute()
            except self._library.ResponseError as error:
                if _code_of(error) not in PERSONS:
                    raise
                raise self._endpoint.undelivered(to, f"Redis says: {_text_of(error)}") from _quoteless(error)

    async def receive(self) -> list[Received]:
        """See `Messenger.receive`."""
        received: list[Received] = []
        while not received:
            entries = await self._entries()
            received = [self._read(id, fields) for id, fields in entries if fields]
            if len(received) < len(entries):
                await self._forget_deleted([id for id, fields in entries if not fields])
        return received

    def _read(self, id: bytes, fields: dict[bytes, bytes]) -> Received:
        sender, message = self._codec.read(fields.get(FIELD, b""))
        return Received(message, (id, fields), sender)

    async def _forget_deleted(self, ids: Sequence[bytes]) -> None:
        """Acknowledges what is not there any more: `_forget` was cut off, or another program has deleted it."""
        with self._mapped(), self._endpoint.deadline():
            await self._client.execute_command("XACK", self._keys.stream, GROUP, *ids)
        self._log.info("deleted_entries_acknowledged", link=self._endpoint.link, count=len(ids))

    async def _entries(self) -> list[Entry]:
        """Reads entries: first what an earlier connection has read and not acknowledged, then what is new."""
        count = self._endpoint.batch_max
        group = ("XREADGROUP", "GROUP", GROUP, self._endpoint.name, "COUNT", count)
        with self._mapped():
            if self._named_late:
                self._named_late, self._unacknowledged = False, b"0"
            if self._unacknowledged is not None:
                entries = _entries_of(
                    await self._reader.execute_command(*group, "STREAMS", self._keys.stream, self._unacknowledged)
                )
                self._unacknowledged = entries[-1][0] if entries else None
                if entries:
                    return entries
            return _entries_of(
                await self._reader.execute_command(*group, "BLOCK", 0, "STREAMS", self._keys.stream, ">")
            )

    async def ack(self, received: Sequence[Received]) -> None:
        """See `Messenger.ack`."""
        ids = [one.tag[0] for one in received]
        if not ids:
            return
        with self._mapped(), self._endpoint.deadline():
            await self._forget(ids)

    async def refuse(self, received: Received, why: str) -> None:
        """See `Messenger.refuse`."""
        id, fields = received.tag
        what = [part for field in fields.items() for part in field]
        with self._mapped(), self._endpoint.deadline():
            # A failure in between leaves it in both places, and not in none.
            await self._client.execute_command("XADD", self._keys.dead, "MAXLEN", "~", DEAD_MAX, "*", *what, WHY, why)
            await self._mark(self._keys.dead)
            await self._forget([id])
        self._log.warning("message_set_aside", link=self._endpoint.link, why=why)

    async def _forget(self, ids: Sequence[bytes]) -> None:
        """Forgets entries; not in a transaction, because a server without memory takes none, and needs this."""
        pipeline = self._client.pipeline(transaction=False)
        # In this order: what is cut off in between comes again, empty, and else would lie there for ever.
        pipeline.execute_command("XDEL", self._keys.stream, *ids)
        pipeline.execute_command("XACK", self._keys.stream, GROUP, *ids)
        await pipeline.execute()

    async def ping(self) -> None:
        """See `Link.ping`: also keeps this end's name, and writes nothing as far as the server would let it."""
        own, pipeline = self._endpoint.holder.line.encode(), self._client.pipeline(transaction=False)
        pipeline.get(self._keys.lease)
        pipeline.execute_command("SETRANGE", self._keys.probe, 0, "")
        with self._mapped(), self._endpoint.deadline():
            line, probed = await pipeline.execute(raise_on_error=False)
            if isinstance(line, self._library.RedisError):
                raise line
            if line == own:  # Another's lease is not prolonged.
                pipeline.pexpire(self._keys.lease, self._lease_ms)
                pipeline.get(self._keys.lease)
                _, line = await pipeline.execute()
            if line != own:
                await self._take_name()
                self._named_late = self._named
            if isinstance(probed, self._library.RedisError):
                raise probed
            if not self._named:
                raise self._endpoint.full("Redis has no memory for the name of this end")

    @contextmanager
    def _mapped(self, *, dialling: bool = False) -> Generator[None]:
        """Maps the library's errors; what a person has to mend is Rejected while it dials, and LinkDown later."""
        library, endpoint = self._library, self._endpoint
        try:
            yield
        except library.RedisError as error:
            code, text, cause = _code_of(error), _text_of(error), _quoteless(error)
            if code == FULL:
                raise (endpoint.down(text) if dialling else endpoint.full(text)) from cause
            stays = isinstance(error, (library.ResponseError, library.AuthenticationError))
            if dialling and stays and code in PERSONS:
                hints = (f"; {hint}" for part, hint in HINTS.items() if part in text)
                raise endpoint.refused(f"Redis says: {text}{''.join(hints)}") from cause
            raise endpoint.down(text) from cause
        except OSError as error:
            raise endpoint.down(error) from error


def _occupied(key: str, what: str, end: str) -> str:
    """Says that another program has a key, and how to go on."""
    return f"{key} on Redis is another program's: {what}; move it away, or give {end} another name"


def _code_of(error: Exception) -> str:
    """Gives the word with which the server's answer began: redis-py takes those off that it knows."""
    word = _text_of(error).partition(" ")[0]
    return word if word.isupper() else ""


def _quoteless(error: Exception) -> Exception | None:
    """Gives an error as a cause that may be logged: none that quotes the message it was about."""
    return None if PIPELINE in str(error) else error


def _text_of(error: Exception) -> str:
    """Gives what the server said, with its code, and without what redis-py adds of the message."""
    text = str(error).rpartition(PIPELINE)[2]
    code = getattr(error, "status_code", None)
    if text.startswith("("):
        text = text[1:].strip("'\",)")
    return text if code is None or text.startswith(code) else f"{code} {text}"


def _entries_of(answer: Any) -> list[Entry]:
    """Gives the entries of the only stream that was asked for."""
    return answer[0][1] if answer else []


def import_library(endpoint: Endpoint) -> Any:
    """Imports redis-py; raises Rejected(`link_refused`) where it isn't there."""
    try:
        with loading():
            return import_module("redis.asyncio")
    except ImportError as error:
        raise endpoint.refused("redis-py isn't there (pip install 'omnid[redis]')") from error
