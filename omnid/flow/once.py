"""A mutation of a session is done once: its answer is kept in its own transaction, and a repeat is answered with it."""

from collections.abc import Callable
from hashlib import sha256
from typing import TypeVar

import msgspec

from omnid.errors import Rejected
from omnid.flow.caller import Caller
from omnid.store.interface import ANSWER, Reader, Tx

T = TypeVar("T")


def kept(reader: Reader, caller: Caller, method: str, params: object, answer: type[T]) -> T | None:
    """Gives what the same request of the same session was answered before, or None.

    Raises Rejected(`busy_key`) where the request id was used for something else.
    """
    if caller.session is None or caller.request_id is None:
        return None
    id, body_hash = _identity(caller, method, params)
    return _kept(reader, caller, id, body_hash, answer)


def _identity(caller: Caller, method: str, params: object) -> tuple[str, str]:
    body_hash = sha256(msgspec.json.encode([method, params], order="sorted")).hexdigest()
    return f"{caller.session}/{caller.request_id}", body_hash


def _kept(reader: Reader, caller: Caller, id: str, body_hash: str, answer: type[T]) -> T | None:
    row = reader.one("answer_by_id", id)
    if row is None:
        return None
    if row[0] != body_hash:
        raise Rejected("busy_key", request=caller.request_id)
    return msgspec.json.decode(row[1], type=answer)


def once(caller: Caller, method: str, params: object, fn: Callable[[Tx], T], answer: type[T]) -> Callable[[Tx], T]:
    """Wraps a transaction so that the same request of the same session is done once.

    The function given raises Rejected(`busy_key`) where the request id was used for something else.
    """
    if caller.session is None or caller.request_id is None:
        return fn
    id, body_hash = _identity(caller, method, params)

    def run(tx: Tx) -> T:
        known = _kept(tx, caller, id, body_hash, answer)
        if known is not None:
            return known
        value = fn(tx)
        tx.create(ANSWER, id, {"body_hash": body_hash, "result": value, "created_at_ms": tx.now_ms})
        return value

    return run
