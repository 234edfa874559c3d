"""RabbitMQ as a link: a quorum queue for each end, confirmed publishing, manual acknowledgements.

aio-pika is imported by the first dial. Messages go through the channel below it, a batch at a time (`rabbitmq_wire`).
``omnid.NAME`` holds what was sent to the end NAME, ``omnid.NAME.dead`` what it set aside, by way of the exchange
``omnid.dead``. Who has the name NAME holds ``omnid.NAME.lock``, which goes with its connection, and has written into
``omnid.NAME.holder`` who it is. Publishing has a connection of its own: a broker that has run out of memory or disk
stops reading from those that publish, and what has come must still be acknowledged then. On it each destination has
a channel of its own: a queue that confirms nothing has its channel stand still.
"""

import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from importlib import import_module
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.to_thread

from omnid.errors import OmnidError, Retryable
from omnid.link.endpoint import CLOSE_S_MAX, Endpoint, Holder
from omnid.link.interface import LinkDown, LinkFull, Message, Received
from omnid.link.rabbitmq_queues import declare, holder_queue, queue_of
from omnid.link.rabbitmq_wire import Outlet, Wire
from omnid.loading import loading
from omnid.log import Logger

PORTS = {"amqp": 5672, "amqps": 5671}
VERSION_MIN = (3, 10)
"""The first whose quorum queues hand dead messages on without losing any."""
HEARTBEAT_S = 10
"""How often each side says that it is there; after three of them in silence the broker gives its name to the next."""
PREFETCH_MAX = 65_535
"""What the field of the protocol takes (AMQP 0-9-1, ``basic.qos``)."""
NOTE_S_MAX = 1.0
"""How long it may take to write down who has the name: a broker that is full doesn't take that."""
ASK_EVERY_S = 60.0
"""How often a queue that confirms nothing is sent one on a new channel: so long the old one takes to be closed."""
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
LEADERLESS = "it has no leader, and needs most of the nodes that hold it"

TOLD = ("aiormq.connection", "aiormq.channel")
"""What these log comes as errors too: that a connection is lost, or can't be made, that a consumer is cancelled."""
LOCKED, FORBIDDEN, BROKEN = "ChannelLockedResource", "ChannelAccessRefused", "ConnectionInternalError"


class RabbitLink:
    """See `interface.Link`. It knows asyncio only; on another backend a dial is refused."""

    def __init__(self, endpoint: Endpoint, log: Logger) -> None:
        self._endpoint = endpoint
        self._codec = endpoint.codec
        self._log = log
        self._connections: list[Any] = []
        self._outlets: dict[str, Outlet] = {}
        """The ways to others, by their names."""
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
            with self._mapped(dialling=True):
                with endpoint.deadline():
                    await self._open_channels()
                await self._consume(self._consumer, self._came)
        except BaseException:
            await self._close()
            raise
        return self

    async def _open_channels(self) -> None:
        endpoint = self._endpoint
        sending, receiving = await self._connect(), await self._connect()
        self._sending: Any = await sending.channel(publisher_confirms=True, on_return_raises=True)
        self._receiving: Any = await receiving.channel()
        for channel in (self._sending, self._receiving):
            channel.close_callbacks.add(self._closed)
        await self._take_name(receiving)
        await self._receiving.set_qos(prefetch_count=min(PREFETCH_MAX, endpoint.held_max + endpoint.batch_max))
        await declare(self._receiving, endpoint.name)
        self._consumer: Any = await self._receiving.get_underlay_channel()
        self._consumer.on_consumer_cancel_callbacks.add(self._cancelled)

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
        said = connection.transport.connection.server_properties
        version = str(said.get("version", ""))
        if tuple(int(part) for part in version.split(".")[:2] if part.isdecimal()) < VERSION_MIN:
            found = f"{said.get('product', 'RabbitMQ')} {version or 'of an unknown version'}"
            wanted = ".".join(map(str, VERSION_MIN))
            raise endpoint.refused(f"it is {found}, and RabbitMQ {wanted} or later is needed")
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
            if await self._is_there(connection, f"{name}.lock"):
                raise self._endpoint.refused(f"its queue {name}.lock is no lock, but another program's") from error
            asking = await connection.channel()
            said = await (await asking.declare_queue(**holder_queue(name))).get(fail=False)
            raise self._endpoint.taken(Holder.read(b"" if said is None else said.body)) from error
        with anyio.move_on_after(NOTE_S_MAX):
            await self._sending.declare_queue(**holder_queue(name))
            await self._publish_to(f"{name}.holder", self._endpoint.holder.line.encode())

    async def _consume(self, channel: Any, came: Callable[[Any], None]) -> None:
        """Becomes a consumer of the queue of this end; raises LinkDown where that has no leader, or no majority."""
        try:
            with self._endpoint.deadline():
                await channel.basic_consume(queue_of(self._endpoint.name), came)
        except LinkDown as error:
            raise self._deaf(error.fields["detail"]) from error
        except self._library.exceptions.ConnectionClosed as error:
            if type(error).__name__ != BROKEN:
                raise
            raise self._deaf(f"RabbitMQ says: {error}") from error

    def _deaf(self, detail: object) -> LinkDown:
        return self._endpoint.down(
            f"nothing can be read from the queue {queue_of(self._endpoint.name)} of this end: {LEADERLESS} ({detail})"
        )

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
        outlet = self._outlets.setdefault(to, Outlet())
        if outlet.is_silent:
            await self._ask(to, outlet, bodies[0])
        channel: Any = None
        try:
            with self._mapped(), anyio.move_on_after(self._endpoint.timeout_s):
                channel = await self._opened(to, outlet)
                await self._publish(to, channel, bodies)
                return
        except LinkDown:
            if channel is outlet.channel:
                raise
            # Another send has found that nothing is confirmed there, and has closed the channel under this one.
            raise self._unconfirmed(to) from None
        if channel is outlet.channel:
            with self._mapped():
                await outlet.close()
        outlet.is_silent = True  # From now on: others may send meanwhile.
        try:
            await self._check_answers()
        except LinkDown:
            outlet.is_silent = False
            raise
        raise self._unconfirmed(to)

    async def _check_answers(self) -> None:
        """Raises LinkDown where the broker that was too late with a confirmation is frozen, and LinkFull where full.

        So it does where the queue of this end has no majority either: it would hear nothing of those it still sends to.
        """
        try:
            await self.ping()
        except LinkFull:
            raise
        except LinkDown as error:
            raise self._endpoint.late() from error
        with self._mapped():
            with self._endpoint.deadline():
                asking = await self._connections[1].channel()
                channel = await asking.get_underlay_channel()
            await self._consume(channel, _ignored)
            with self._endpoint.deadline():
                await asking.close()

    async def _ask(self, to: str, outlet: Outlet, body: bytes) -> None:
        """Raises `undelivered` until a queue that confirmed nothing confirms one message; it waits for none.

        A leader without a majority keeps whatever is sent to it, so that is little, and seldom. Where it gets one, it
        confirms that by itself.
        """
        if outlet.asked is not None and outlet.asked.done():
            outlet.asked, outlet.is_silent = None, False
            return
        with self._mapped(), self._endpoint.deadline():
            async with outlet.opening:
                if outlet.asked is None or anyio.current_time() >= outlet.ask_at_s:
                    await outlet.close()
                    outlet.channel = await self._open()
                    outlet.asked = await self._wire.publish(outlet.channel, queue_of(to), [body])
                    outlet.ask_at_s = anyio.current_time() + ASK_EVERY_S
        raise self._unconfirmed(to)

    def _unconfirmed(self, to: str, how: str = "confirms nothing") -> Retryable:
        return self._endpoint.undelivered(to, f"RabbitMQ answers, and its queue {queue_of(to)} {how}: {LEADERLESS}")

    async def _opened(self, to: str, outlet: Outlet) -> Any:
        """Gives the channel by which messages go to another end, whose queues are there then."""
        async with outlet.opening:
            if not outlet.is_known:
                await self._declare_for(to)
                outlet.is_known = True
            if outlet.channel is None or outlet.channel.is_closed:
                outlet.channel = await self._open()
            return outlet.channel

    async def _open(self) -> Any:
        transport = self._connections[0].transport
        if transport is None or transport.connection.is_closed:
            raise self._lost or self._endpoint.down(_detail(None))
        return await transport.connection.channel(publisher_confirms=True, on_return_raises=True)

    async def _publish(self, to: str, channel: Any, bodies: Sequence[bytes]) -> None:
        try:
            await (await self._wire.publish(channel, queue_of(to), bodies))
        except self._library.exceptions.DeliveryError as error:
            self._outlets[to].is_known = False
            if error.frame.name == "Basic.Nack":
                raise self._unconfirmed(to, "refuses what it is sent") from error
            raise self._endpoint.undelivered(to, f"RabbitMQ says: {error}") from error

    async def _declare_for(self, to: str) -> None:
        """Makes the queues of another end, on a channel of its own: a refusal ends it.

        Whose rights go no further than its own queues can send to others that have dialled before.
        """
        exceptions = self._library.exceptions
        declaring = await self._connections[0].channel()
        try:
            await declare(declaring, to)
        except exceptions.ChannelClosed as error:
            if type(error).__name__ not in REFUSED:
                raise
            if type(error).__name__ == FORBIDDEN and await self._is_there(self._connections[0], queue_of(to)):
                return
            raise self._endpoint.undelivered(to, f"RabbitMQ says: {error}") from error
        finally:
            with anyio.move_on_after(CLOSE_S_MAX, shield=True):
                await declaring.close()

    async def _is_there(self, connection: Any, queue: str) -> bool:
        """Tells whether a queue is there that isn't the lock of another."""
        asking = await connection.channel()
        try:
            await asking.declare_queue(queue, passive=True)
        except self._library.exceptions.ChannelClosed:
            return False
        await asking.close()
        return True

    async def _publish_to(self, queue: str, body: bytes, *, mandatory: bool = True) -> None:
        message = self._library.Message(body, delivery_mode=self._library.DeliveryMode.PERSISTENT)
        await self._sending.default_exchange.publish(message, queue, mandatory=mandatory)

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
        """See `Link.ping`: asks for the queue of this end, which also shows whether it is still there and read."""
        with self._mapped(), self._endpoint.deadline():
            queue = await self._receiving.declare_queue(queue_of(self._endpoint.name), passive=True)
            if not queue.declaration_result.consumer_count:
                raise self._deaf("it knows of no consumer")
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


def _ignored(_message: Any) -> None:
    """Takes nothing: another consumer is there already."""


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
    for name in ("aio_pika", "aiormq", *TOLD):
        # Without a handler Python would write what it says to standard error.
        logging.getLogger(name).addHandler(logging.NullHandler())
    for name in TOLD:
        logging.getLogger(name).propagate = False
    return library
