"""The frames of AMQP 0-9-1 that batches consist of, and the channels that they go out by.

For each message of its own aio-pika's channel takes a task, some futures and a write to the socket; a batch takes one.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import anyio

CLOSE_S = 0.1
"""How long is waited for a channel to be closed: one whose queue has no majority takes the broker a minute."""
PERSISTENT = 2
"""The delivery mode of what is written to the disk (AMQP 0-9-1)."""


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


class Outlet:
    """The way to one destination: a channel of its own, and whether its queue confirms what goes there."""

    def __init__(self) -> None:
        self.opening = anyio.Lock()
        self.channel: Any = None
        self.is_known = False
        """Whether its queues are there."""
        self.is_silent = False
        """Whether it was sent something that it has not confirmed, while the broker answered."""
        self.asked: Any = None
        """The confirmation of the one message that it was sent since."""
        self.ask_at_s = 0.0
        """When it may be sent another one, on a new channel (of the event loop's clock)."""

    async def close(self) -> None:
        """Closes its channel, where it has one: what waits for a confirmation there fails, and may have arrived."""
        channel, self.channel, self.asked = self.channel, None, None
        if channel is not None:
            with anyio.move_on_after(CLOSE_S):
                await channel.close()


class Wire:
    """Makes the frames of AMQP 0-9-1 that a batch consists of, with the classes that aiormq has them from."""

    def __init__(self) -> None:
        self._basic: Any = import_module("pamqp.commands").Basic
        self._header: Any = import_module("pamqp.header").ContentHeader
        self._body: Any = import_module("pamqp.body").ContentBody
        self._frame: Any = import_module("aiormq.abc").ChannelFrame

    async def publish(self, channel: Any, queue: str, bodies: Sequence[bytes]) -> Any:
        """Publishes a batch by one write; gives the future that is done when the broker has confirmed all of it.

        The channel's books are kept as its own `basic_publish` keeps them: a tag belongs to what was written, and to
        nothing else, because the broker counts too.
        """
        async with channel.lock:
            tags = range(channel.delivery_tag + 1, channel.delivery_tag + 1 + len(bodies))
            written = self.messages(channel, queue, dict(zip(tags, bodies, strict=True)))
            confirmed = channel.create_future()
            channel.confirmations.update(dict.fromkeys(tags, Batch(confirmed, len(bodies))))
            channel.message_id_delivery_tag.update((str(tag), tag) for tag in tags)
            try:
                await channel.write_queue.put(written)
            except BaseException:
                confirmed.cancel()
                _forget(channel, tags)
                for tag in tags:
                    del channel.confirmations[tag]
                raise
            channel.delivery_tag = tags[-1]
        confirmed.add_done_callback(partial(_forget, channel, tags))
        return confirmed

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


def _forget(channel: Any, tags: Sequence[int], _confirmed: Any = None) -> None:
    """Has the channel look no more for messages under these tags among those that come back."""
    for tag in tags:
        channel.message_id_delivery_tag.pop(str(tag), None)
