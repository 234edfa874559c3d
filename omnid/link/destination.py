"""What a destination is: a place that things are delivered to, at least once and in order."""

from collections.abc import Sequence
from typing import Protocol

from omnid.errors import Rejected, Retryable
from omnid.model import Delivery
from omnid.secrets import Secrets, is_reference

AFTER_S_MAX = 86_400
"""The longest that a place is left alone because it asks for it."""


class Destination(Protocol):
    """Takes deliveries. It raises Retryable and Rejected and nothing of its library's; whoever calls it has a deadline.

    Cancelling `send` must leave nothing behind: no process, no connection.
    """

    @property
    def batch_max(self) -> int:
        """How many deliveries `send` takes at once."""
        ...

    @property
    def timeout_s(self) -> float:
        """How long `send` may take."""
        ...

    @property
    def rings(self) -> bool:
        """Whether it says itself when it is back. Until then only what had no answer in time is tried.

        Nothing is ever given up.
        """
        ...

    def due_ms(self, batch: Sequence[Delivery], now_ms: int) -> int:
        """Gives when the batch may be sent: `now_ms` or earlier is at once.

        A clock that was set back must not keep it waiting until it is where it was.
        """
        ...

    async def send(self, batch: Sequence[Delivery]) -> None:
        """Returns when the other side has all of them, each under its `id`, so that it can drop what it gets twice.

        Raises Retryable (`delivery_failed`, `delivery_delayed` with `after_s`) and Rejected (`delivery_refused`).
        """
        ...


class Single:
    """What destinations that take one delivery at a time, and at any time, have in common."""

    batch_max = 1
    rings = False

    def __init__(self, name: str, timeout_s: float) -> None:
        self.name = name
        self.timeout_s = timeout_s

    def due_ms(self, batch: Sequence[Delivery], now_ms: int) -> int:  # noqa: ARG002 - it takes whatever comes.
        """See `Destination.due_ms`."""
        return now_ms


def text_of(delivery: Delivery) -> str:
    """Gives what a person reads."""
    return str(delivery.body.get("text", ""))


def place_of(delivery: Delivery, key: str) -> str:
    """Gives the ``target`` or the ``session`` that an answer goes to; "" where it names none."""
    return str(delivery.body.get(key) or "")


async def resolved(destination: str, reference: str, secrets: Secrets) -> str:
    """Gives what a reference stands for; a secret that can't be had now may come back: Retryable(`delivery_failed`)."""
    if not is_reference(reference):
        return reference
    try:
        return await secrets.resolve(reference)
    except Rejected as error:
        raise Retryable("delivery_failed", destination=destination, detail=error.what) from error
