"""What is kept for an agent that may have gone: its tasks that ended or need a person, in the order in which they did.

An inbox is a queue of the outbox that nobody carries: the origin's next session reads it, and what it has read goes
when it says so, by the cursor that it was given. It holds references; the results stay with their tasks.
"""

from omnid.model import USER_ORIGIN, Delivery, Task
from omnid.settings import Config
from omnid.states import TERMINAL
from omnid.store import outbox
from omnid.store.interface import Reader, Tx

QUEUE = "~inbox/"
"""How the names of inboxes start: behind all destinations, so that many agents crowd out none of them."""

NAMELESS = "agent"
"""The origin of agents that gave no name: nobody can come back as one."""

BATCH = 500


def keep_for_origin(tx: Tx, config: Config, task: Task, event: str) -> None:
    """Notes that a task ended or needs a person; `event` is its state, or what it needs."""
    if task.origin not in (USER_ORIGIN, NAMELESS):
        outbox.put(tx, f"{QUEUE}{task.origin}", "inbox", task.id, {"event": event}, rows_max=config.outbox.rows_max)


def unread(reader: Reader, origin: str, limit: int, after: int = 0) -> list[Delivery]:
    """Gives what an origin hasn't acknowledged, the oldest first, behind the row of an `ord`."""
    return outbox.peek(reader, f"{QUEUE}{origin}", limit, after=after)


def last(reader: Reader, origin: str) -> int | None:
    """Gives the `ord` of the newest that an origin hasn't acknowledged; None where there is nothing."""
    return outbox.last(reader, f"{QUEUE}{origin}")


def acknowledge(tx: Tx, origin: str, last: int) -> None:
    """Forgets what an origin has read, up to and including the row of that `ord`."""
    while True:
        rows = unread(tx, origin, BATCH)
        read = [row.id for row in rows if row.ord <= last]
        outbox.confirm(tx, read)
        if len(read) < BATCH:
            return


def still_holds(event: str, state: str, need: str | None) -> bool:
    """Tells whether what was noted of a task is still so: it may have been retried, or got what it needed. Pure."""
    return event == state if event in TERMINAL else event == need


def forget_old(tx: Tx, before_ms: int) -> int:
    """Forgets what was noted before a time, for agents that don't come back; gives how many rows went."""
    count = 0
    for queue in outbox.destinations(tx, after=QUEUE):
        old = [row.id for row in outbox.peek(tx, queue, BATCH) if row.created_at_ms < before_ms]
        count += outbox.confirm(tx, old)
    return count
