"""What links bring to the daemon that it can't take: shown among the dead, beside what could not be delivered."""

from functools import partial
from hashlib import sha256

import msgspec

from omnid.flow.context import Context
from omnid.flow.insist import insist
from omnid.link.interface import Poison, Received
from omnid.model import Problem
from omnid.store import outbox

QUEUE = "link/"
"""What the names begin with under which it lies there; the name of the link follows."""
KIND = "message"
"""The kind of its rows. They hold what came over a link, so there is nothing that could be sent again."""
TEXT_BYTES_MAX = 1024
"""How much of it is kept; the broker has it whole."""
HEARTBEAT = "heartbeat"


async def bury(context: Context, link: str, received: Received, why: str) -> bool:
    """Puts a message among the dead, beyond `outbox.rows_max` of a link in the place of the oldest.

    What comes again is there once, and of the heartbeats that say they are of one runner the last. False: the store
    was closed, so that the message must come again.
    """
    message = received.message
    data = message.data if isinstance(message, Poison) else msgspec.json.encode(message)
    kind = message.kind if isinstance(message, Poison) else type(message).__name__.lower()
    subject = f"{HEARTBEAT} {received.sender}" if kind == HEARTBEAT else sha256(data).hexdigest()
    set_aside = partial(
        outbox.set_aside,
        destination=f"{QUEUE}{link}",
        kind=KIND,
        subject=subject,
        body={
            "from": received.sender,
            "message": kind,
            "bytes": len(data),
            "text": data[:TEXT_BYTES_MAX].decode(errors="replace"),
        },
        problem=Problem.make("message_refused", link=link, detail=why.rstrip(".")),
        rows_max=context.config.outbox.rows_max,
    )

    async def write() -> bool:
        await context.store.write(set_aside)
        return True

    return bool(await insist(context, write, "refusal_waits", link=link))
