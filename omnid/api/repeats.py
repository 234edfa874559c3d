"""A mutation that a session asks for again is answered as it was, also where it couldn't be done any more.

Most keep their answer in the transaction that does them (see `flow.once`). Some do more than one transaction can hold:
their answer is kept once they are done. What changes nothing but the daemon's memory is done again.
"""

from collections.abc import Awaitable, Callable
from functools import partial

import anyio
from msgspec import Struct

from omnid.api.shapes import SubmitBatch, SubmittedBatch
from omnid.errors import Rejected, Retryable
from omnid.flow import intake
from omnid.flow.caller import Caller
from omnid.flow.context import Context
from omnid.flow.once import kept, once
from omnid.model import Submit
from omnid.store.interface import Reader

KEPT = frozenset(
    {
        "task.submit",
        "task.submit_batch",
        "task.control",
        "task.answer",
        "dead.retry",
        "dead.drop",
        "schedule.add",
        "schedule.switch",
        "schedule.remove",
        "schedule.run",
    }
)
"""The operations that keep their answer as they are done."""
KEPT_AFTER = frozenset({"gate.pause", "gate.resume", "workspace.merge", "workspace.remove"})
"""The operations whose answer is kept once they are done."""


class Repeats:
    """Does operations, and answers repeats of mutations."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def answered(
        self, caller: Caller, name: str, params: Struct, answer: type[Struct], do: Callable[[], Awaitable[Struct]]
    ) -> Struct:
        """Gives what `do` gives, or the kept answer of type `answer`; raises what `do` raises where there is none.

        Raises Rejected(`busy_key`) where the request id was used for something else.
        """
        if name not in KEPT and name not in KEPT_AFTER:
            return await do()
        store = self._context.store
        look = partial(kept, caller=caller, method=name, params=params, answer=answer)
        if name in KEPT_AFTER:
            before = await store.read(look)
            if before is not None:
                return before
        try:
            done = await do()
        except (Rejected, Retryable):
            before = await store.read(look) or await store.read(partial(_known, caller=caller, params=params))
            if before is None:
                raise
            return before
        if name in KEPT_AFTER:
            # It is done whatever becomes of the client.
            with anyio.CancelScope(shield=True):
                await store.write(once(caller, name, params, lambda _: done, answer))
        return done


def _known(reader: Reader, *, caller: Caller, params: Struct) -> Struct | None:
    """Gives the tasks that were submitted before, found by their keys."""
    if isinstance(params, Submit):
        found = intake.known(reader, caller, (params,))
        return None if found is None else found[0]
    if isinstance(params, SubmitBatch):
        found = intake.known(reader, caller, params.tasks)
        return None if found is None else SubmittedBatch(found)
    return None
