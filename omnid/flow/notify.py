"""Notices to people: what happened that they should know, written down together with what caused it."""

from typing import Literal

from omnid.settings import Config
from omnid.store.interface import Tx

Kind = Literal["limit", "limit_over", "needs_you", "budget", "failed", "mode", "digest"]


def tell(tx: Tx, config: Config, kind: Kind, subject: str, **fields: str) -> None:
    """Writes a notice into the outbox of each place that `notify.to` names, in the transaction of its cause.

    `subject` is what it is about (a task's id, an executor's name); `fields` fill in the notice's text.
    """
