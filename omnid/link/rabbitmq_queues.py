"""The queues that RabbitMQ has for an end. What is made here is looked for by these names ever after."""

from typing import Any

DEAD = "omnid.dead"
"""The exchange by which messages are set aside."""
DEAD_MAX = 10_000
"""How many of them an end keeps; then the oldest goes."""


def queue_of(name: str) -> str:
    """Gives the queue of what was sent to an end."""
    return f"omnid.{name}"


async def declare(channel: Any, name: str) -> None:
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


def holder_queue(name: str) -> dict[str, Any]:
    """Gives what the queue is declared with in which stands who has a name: its last message, and no other."""
    return {"name": f"{name}.holder", "durable": True, "arguments": {"x-max-length": 1}}
