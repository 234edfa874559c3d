"""RabbitMQ as a link: a quorum queue for each end, confirmed publishing, manual acknowledgements.

aio-pika is imported by the first dial. Messages go through the channel below it, a batch at a time: for each message
of its own aio-pika and that channel take a task, some futures and a write to the socket, several times what is needed.
``omnid.NAME`` holds what was sent to the end NAME, ``omnid.NAME.dead`` what it set aside, by way of the exchange
``omnid.dead``. Who has the name NAME holds ``omnid.NAME.lock``, which goes with its connection, and has written into
``omnid.NAME.holder`` who it is. Publishing has a connection of its own: a broker that has run out of memory or disk
stops reading from those that publish, and what has come must still be acknowledged then.
"""

import logging
from collections import deque
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from importlib import import_module
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.to_thread

from omnid.errors import OmnidError
from omnid.link.endpoint import CLOSE_S_MAX, Endpoint, Holder
from omnid.link.interface import LinkDown, Message, Received
from omnid.loading import loading
from omnid.log import Logger

PORTS = {"amqp": 5672, "amqps": 5671}
VERSION_MIN = (3, 10)
"""The first whose quorum queues hand dead messages on without losing any."""
DEAD = "omnid.dead"
DEAD_MAX = 10_000
HEARTBEAT_S = 10
"""How often each side says that it is there; after three of them in silence the broker gives its name to the next."""
PREFETCH_MAX = 65_535
"""What the field of the protocol takes (AMQP 0-9-1, ``basic.qos``)."""
NOTE_S_MAX = 1.0
"""How long it may take to write down who has the name: a broker that is full doesn't take that."""
NOBODY = "omnid.nobody"
"""Where to an empty message is sent that shows whether the broker takes any; it confirms it and drops it."""
REFUSED = (
    "AuthenticationError",
    "ProbableAuthenticationError",
    "IncompatibleProtocolError",
    "ConnectionNotAllowed",
    "ConnectionNotImplemented",
    "ChannelAccessRefused",
    "ChannelPreconditionFailed",
)
"""The library's errors that only a person can mend; any other may pass."""


LOCKED = "ChannelLockedResource"
PERSISTENT = 2
"""The delivery mode of what is written to the disk (AMQP 0-9-1)."""


def queue_of(name: str) -> str:
    """Gives the queue of what was sent to an end."""
    return f"omnid.{name}"


class RabbitLink:
    """See `interface.Link`. It knows asyncio only; on another backend a dial is refused."""

    def __init__(self, endpoint: Endpoint, log: Logger) -> None:
        self._endpoint = endpoint
        self._codec = endpoint.codec
        self._log = log
        self._connections: list[Any] = []
        self._known: set[str] = set()
        """The ends whose queues are there."""
        self._arrived: deque[Any] = deque()
        self._unacknowledged: dict[int, None] = {}
        """The delivery tags of what has come, in their order."""
        self._filled = anyio.Event()
        self._lost: LinkDown | None = None

    name_s = float(HEARTBEAT_S)
    """See `Link.name_s`: so long at least the broker bears the silence of a connection."""

    async def __aenter__(self) -> Self:
        """See `Link.__aenter__`."""
        endpoint = self._endpoint
        endpoint.need_asyncio()
        self._library: Any = await anyio.to_thread.run_sync(import_library, endpoint)
        self._wire = Wire()
        try:
            with self._mapped(dialling=True), endpoint.deadline():
                sending, receiving = await self._connect(), await self._connect()
                self._sending: Any = await sending.channel(publisher_confirms=True, on_return_raises=True)
                self._receiving: Any = await receiving.channel()
                for channel in (self._sending, self._receiving):
                    channel.close_callbacks.add(self._closed)
                await self._take_name(receiving)
                await self._receiving.set_qos(prefetch_count=min(PREFETCH_MAX, endpoint.held_max + endpoint.batch_max))
                await self._declare(self._receiving, endpoint.name)
                self._publisher: Any = await self._sending.get_underlay_channel()
                self._consumer: Any = await self._receiving.get_underlay_channel()
                self._consumer.on_consumer_cancel_callbacks.add(self._cancelled)
                await self._consumer.basic_consume(queue_of(endpoint.name), self._came)
        except BaseException:
            await self._close()
            raise
        return self

    async def _connect(self) -> Any:
        endpoint = self._endpoint
        address = endpoint.address(PORTS, "amqps")
        connection = await self._library.connect(
            host=address.host,
            port=address.port,
            login=endpoint.user or "guest",
            password=endpoint.password or "guest",
            virtualhost=address.path or "/",
            ssl=address.tls,
            ssl_context=endpoint.tls() if address.tls else None,
            client_properties={"connection_name": f"omnid-{endpoint.name} ({endpoint.holder.said})"},
            timeout=endpoint.timeout_s,
            heartbeat=HEARTBEAT_S,
        )
        self._connections.append(connection)
        version = str(connection.transport.connection.server_properties.get("version", ""))
        if tuple(int(part) for part in version.split(".")[:2] if part.isdecimal()) < VERSION_MIN:
            wanted = ".".join(map(str, VERSION_MIN))
            raise endpoint.refused(f"it is RabbitMQ {version or 'of an unknown version'}, and {wanted} is needed")
        return connection

    async def _take_name(self, connection: Any) -> None:
        """Locks this end's name, and writes down who has it; raises LinkDown(`name_taken`) where another has.

        Quorum queues know no exclusive consumers, so a queue of its own is the lock: it goes when its connection does.
        """
        name = queue_of(self._endpoint.name)
        locking = await connection.channel()
        try:
            await locking.declare_queue(f"{name}.lock", exclusive=True)
        except self._library.exceptions.ChannelClosed as error:
            if type(error).__name__ != LOCKED:
                raise
            asking = await connection.channel()
            said = await (await asking.declare_queue(**_holder_queue(name))).get(fail=False)
            raise self._endpoint.taken(Holder.read(b"" if said is None else said.body)) from error
        with anyio.move_on_after(NOTE_S_MAX):
            await self._sending.declare_queue(**_holder_queue(name))
            await self._publish_to(f"{name}.holder", self._endpoint.holder.line.encode())

    async def _declare(self, channel: Any, name: str) -> None:
        """Makes the queues of an end, whichever end comes first.

        A node of 3.10 that is killed within a second can lose what it has to know of the queue that was made last, and
        comes back with one that nobody can use. So that is the queue of the dead messages, which nobody waits for.
        """
        exchange = await channel.declare_exchange(DEAD, "direct", durable=True)
        await channel.declare_queue(
            queue_of(name),
            durable=True,
            arguments={
                "x-queue-type": "quorum",
                # Whoever has lost its lock and doesn't know yet stands by, and the order holds.
                "x-single-active-consumer": True,
                "x-dead-letter-exchange": DEAD,
                "x-dead-letter-routing-key": name,
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
            },
        )
        dead = await channel.declare_queue(
            f"{queue_of(name)}.dead", durable=True, arguments={"x-queue-type": "quorum", "x-max-length": DEAD_MAX}
        )
        await dead.bind(exchange, name)

    def _came(self, message: Any) -> None:
        self._unacknowledged[message.delivery_tag] = None
        self._arrived.append(message)
        self._filled.set()

    def _closed(self, _channel: Any, error: BaseException | None) -> None:
        self._lost = self._lost or self._endpoint.down(_detail(error))
        self._filled.set()

    def _cancelled(self, _frame: Any) -> None:
        """Hears that nothing comes any more although the channel is open (``basic.cancel`` of the broker)."""
        self._lost = self._lost or self._endpoint.down(
            "RabbitMQ has cancelled its consumer: its queue was deleted or is gone"
        )
        self._filled.set()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """See `Link.__aexit__`."""
        await self._close()

    async def _close(self) -> None:
        with anyio.move_on_after(CLOSE_S_MAX, shield=True):
            async with anyio.create_task_group() as group:
                for connection in self._connections:
                    group.start_soon(self._bye, connection)

    async def _bye(self, connection: Any) -> None:
        try:
            with self._mapped():
                await connection.close()
        except LinkDown as error:
            self._log.debug("goodbye_failed", link=self._endpoint.link, detail=error.what)

    async def send(self, to: str, batch: Sequence[Message]) -> None:
        """See `Messenger.send`."""
        bodies = self._codec.encode(to, batch)
        if not bodies:
            return
        async with self._room():
            await self._send(to, bodies)

    async def _send(self, to: str, bodies: Sequence[bytes]) -> None:
        with self._mapped(), self._endpoint.deadline():
            if to not in self._known:
                await self._declare_for(to)
                self._known.add(to)
            try:
                await self._publish(queue_of(to), bodies)
            except self._library.exceptions.DeliveryError as error:
                self._known.discard(to)
                raise self._endpoint.undelivered(to, f"RabbitMQ says: {error}") from error

    async def _declare_for(self, to: str) -> None:
        """Makes the queues of another end, on a channel of its own: a refusal ends it."""
        exceptions = self._library.exceptions
        declaring = await self._connections[0].channel()
        try:
            await self._declare(declaring, to)
        except exceptions.ChannelClosed as error:
            if type(error).__name__ not in REFUSED:
                raise
            raise self._endpoint.undelivered(to, f"RabbitMQ says: {error}") from error
        await declaring.close()

    async def _publish_to(self, queue: str, body: bytes, *, mandatory: bool = True) -> None:
        message = self._library.Message(body, delivery_mode=self._library.DeliveryMode.PERSISTENT)
        await self._sending.default_exchange.publish(message, queue, mandatory=mandatory)

    async def _publish(self, queue: str, bodies: Sequence[bytes]) -> None:
        """Publishes a batch by one write, and waits until the broker has confirmed all of it.

        The channel's books are kept as its own `basic_publish` keeps them: a tag belongs to what was written, and to
        nothing else, because the broker counts too.
        """
        channel, wire = self._publisher, self._wire
        async with channel.lock:
            tags = range(channel.delivery_tag + 1, channel.delivery_tag + 1 + len(bodies))
            written = wire.messages(channel, queue, dict(zip(tags, bodies, strict=True)))
            confirmed = channel.create_future()
            channel.confirmations.update(dict.fromkeys(tags, Batch(confirmed, len(bodies))))
            channel.message_id_delivery_tag.update((str(tag), tag) for tag in tags)
            try:
                await channel.write_queue.put(written)
            except BaseException:
                confirmed.cancel()
                for tag in tags:
                    del channel.confirmations[tag], channel.message_id_delivery_tag[str(tag)]
                raise
            channel.delivery_tag = tags[-1]
        try:
            await confirmed
        finally:
            for tag in tags:
                channel.message_id_delivery_tag.pop(str(tag), None)

    async def receive(self) -> list[Received]:
        """See `Messenger.receive`."""
        while not self._arrived:
            if self._lost is not None:
                raise self._lost
            self._filled = anyio.Event()
            await self._filled.wait()
        received: list[Received] = []
        while self._arrived and len(received) < self._endpoint.batch_max:
            message = self._arrived.popleft()
            sender, read = self._codec.read(message.body)
            received.append(Received(read, message, sender))
        return received

    async def ack(self, received: Sequence[Received]) -> None:
        """See `Messenger.ack`."""
        frames = self._acks({one.tag.delivery_tag for one in received})
        if not frames:
            return
        with self._mapped(), self._endpoint.deadline():
            await self._settle(frames)

    def _acks(self, tags: set[int]) -> list[Any]:
        """Gives the frames for what is acknowledged: one for all before which nothing else waits, and the others."""
        up_to = 0
        for tag in self._unacknowledged:
            if tag not in tags:
                break
            up_to = tag
        frames = [self._wire.ack(up_to, multiple=True)] if up_to else []
        for tag in sorted(tags.intersection(self._unacknowledged)):
            del self._unacknowledged[tag]
            if tag > up_to:
                frames.append(self._wire.ack(tag))
        return frames

    async def _settle(self, frames: Sequence[Any]) -> None:
        """Writes what becomes of messages that have come, and waits until that is on its way."""
        channel = self._consumer
        if channel.is_closed:
            raise self._lost or self._endpoint.down(_detail(None))
        written = channel.create_future()
        await channel.write_queue.put(self._wire.together(channel, frames, written))
        await written

    async def refuse(self, received: Received, why: str) -> None:
        """See `Messenger.refuse`: the broker moves it, and the reason stands in the log."""
        message = received.tag
        self._unacknowledged.pop(message.delivery_tag, None)
        with self._mapped(), self._endpoint.deadline():
            await self._settle([self._wire.reject(message.delivery_tag)])
        self._log.warning("message_set_aside", link=self._endpoint.link, why=why)

    async def ping(self) -> None:
        """See `Link.ping`: asks for the queue of this end, which also shows whether it is still there."""
        with self._mapped(), self._endpoint.deadline():
            await self._receiving.declare_queue(queue_of(self._endpoint.name), passive=True)
        async with self._room():
            # The broker doesn't say that it is full before somebody wants to give it something.
            with self._mapped(), self._endpoint.deadline():
                await self._publish_to(NOBODY, b"", mandatory=False)

    @asynccontextmanager
    async def _room(self) -> AsyncGenerator[None]:
        """Raises LinkFull where the broker takes nothing, before and after: one that is full just doesn't answer."""
        await self._check_room()
        try:
            yield
        except LinkDown:
            await self._check_room()
            raise

    async def _check_room(self) -> None:
        transport = self._connections[0].transport
        if transport is None:
            return  # It has been closed meanwhile.
        with anyio.move_on_after(0) as waited:
            await transport.connection.ready()
        if waited.cancelled_caught:
            raise self._endpoint.full("RabbitMQ has blocked those who publish (an alarm of its memory or disk)")

    @property
    def _failures(self) -> tuple[type[Exception], ...]:
        exceptions = self._library.exceptions
        return exceptions.AMQPError, exceptions.ChannelInvalidStateError

    @contextmanager
    def _mapped(self, *, dialling: bool = False) -> Generator[None]:
        """Maps the library's errors; what a person has to mend is Rejected while it dials, and LinkDown later.

        Those who wait for what it will never hear any more are told so as if they were cancelled. Such a cancellation
        belongs to no scope, and would quietly end the task group that it came to.
        """
        try:
            yield
        except OmnidError:
            raise
        except anyio.get_cancelled_exc_class() as error:
            if anyio.get_current_task().has_pending_cancellation():
                raise
            raise self._endpoint.down(_detail(None)) from error
        except (*self._failures, OSError) as error:
            if dialling and isinstance(error, self._library.exceptions.AMQPError):
                if type(error).__name__ == "InvalidFrameError":
                    # It has closed the connection where it should have opened the virtual host; why is lost.
                    detail = "this user can't open its virtual host: there is none of that name, or it may not, or it"
                    raise self._endpoint.refused(f"{detail} has too many connections or is down") from error
                if type(error).__name__ in REFUSED:
                    raise self._endpoint.refused(f"RabbitMQ says: {error}") from error
            raise self._endpoint.down(_detail(error)) from error


class Batch:
    """What aiormq's channel takes for the future of one confirmation: that of a batch, done with its last message."""

    def __init__(self, confirmed: Any, left: int) -> None:
        self._confirmed = confirmed
        self._left = left

    def done(self) -> bool:
        """Tells the channel that it may still be told something, be it that nobody waits for any more."""
        return False

    def set_result(self, _frame: Any) -> None:
        """Hears that one message is confirmed."""
        self._left -= 1
        if not self._left and not self._confirmed.done():
            self._confirmed.set_result(None)

    def set_exception(self, error: BaseException) -> None:
        """Hears that one message was refused, and with it the batch."""
        if not self._confirmed.done():
            self._confirmed.set_exception(error)


class Wire:
    """Makes the frames of AMQP 0-9-1 that a batch consists of, with the classes that aiormq has them from."""

    def __init__(self) -> None:
        self._basic: Any = import_module("pamqp.commands").Basic
        self._header: Any = import_module("pamqp.header").ContentHeader
        self._body: Any = import_module("pamqp.body").ContentBody
        self._frame: Any = import_module("aiormq.abc").ChannelFrame

    def together(self, channel: Any, frames: Sequence[Any], written: Any = None) -> Any:
        """Gives frames that are written at once; `written` is the future that is done then."""
        return self._frame.marshall(channel.number, frames, written)

    def messages(self, channel: Any, queue: str, bodies: Mapping[int, bytes]) -> Any:
        """Gives messages that outlive the broker, by their tags; one that finds no queue comes back under its tag."""
        frames: list[Any] = []
        size_max = channel.max_content_size
        for tag, body in bodies.items():
            properties = self._basic.Properties(delivery_mode=PERSISTENT, message_id=str(tag))
            frames.append(self._basic.Publish(routing_key=queue, mandatory=True))
            frames.append(self._header(properties=properties, body_size=len(body)))
            frames += (self._body(body[at : at + size_max]) for at in range(0, len(body), size_max))
        return self.together(channel, frames)

    def ack(self, tag: int, *, multiple: bool = False) -> Any:
        """Gives the acknowledgement of a message, or of all up to it."""
        return self._basic.Ack(tag, multiple)

    def reject(self, tag: int) -> Any:
        """Gives the frame that has the broker set a message aside."""
        return self._basic.Reject(tag, requeue=False)


def _holder_queue(name: str) -> dict[str, Any]:
    """Gives what the queue is declared with in which stands who has a name: its last message, and no other."""
    return {"name": f"{name}.holder", "durable": True, "arguments": {"x-max-length": 1}}


def _detail(error: BaseException | None) -> str:
    """Gives what an error of the library says, and not how Python shows what it holds."""
    text = "" if error is None else str(error)
    return "the connection is closed" if not text or "0x" in text or text == "(None, None)" else text


def import_library(endpoint: Endpoint) -> Any:
    """Imports aio-pika; raises Rejected(`link_refused`) where it isn't there."""
    try:
        with loading():
            library = import_module("aio_pika")
    except ImportError as error:
        raise endpoint.refused("aio-pika isn't there (pip install 'omnid[rabbitmq]')") from error
    for name in ("aio_pika", "aiormq"):
        # Without a handler Python would write what it says to standard error.
        logging.getLogger(name).addHandler(logging.NullHandler())
    # That a connection is lost, or can't be made, comes as errors too, and is logged once for an outage.
    logging.getLogger("aiormq.connection").propagate = False
    return library
