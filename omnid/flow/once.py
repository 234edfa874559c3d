"""A mutation of a session is done once: its answer is kept in its own transaction, and a repeat is answered with it."""

from collections.abc import Callable
from hashlib import sha256
from typing import TypeVar

import msgspec

from omnid.errors import Rejected
from omnid.flow.caller import Caller
from omnid.store.interface import ANSWER, Tx

T = TypeVar("T")


def once(caller: Caller, method: str, params: object, fn: Callable[[Tx], T], answer: type[T]) -> Callable[[Tx], T]:
    """Wraps a transaction so that the same request of the same session is done once.

    The function given raises Rejected(`busy_key`) where the request id was used for something else.
    """
    if caller.session is None or caller.request_id is None:
        return fn
    id = f"{caller.session}/{caller.request_id}"
    body_hash = sha256(msgspec.json.encode([method, params], order="sorted")).hexdigest()

    def run(tx: Tx) -> T:
        row = tx.one("answer_by_id", id)
        if row is not None:
            if row[0] != body_hash:
                raise Rejected("busy_key", request=caller.request_id)
            return msgspec.json.decode(row[1], type=answer)
        value = fn(tx)
        tx.create(ANSWER, id, {"body_hash": body_hash, "result": value, "created_at_ms": tx.now_ms})
        return value

    return run
