"""What a runner has begun and what it owes, in a database of its own: which attempts are known, open, and answered.

It is written on the store's tables: an attempt with its command as a note, and results as rows of the outbox, one queue
for each daemon. An attempt that is known is never begun again, however often its command comes.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import msgspec
from msgspec import Struct

from omnid.log import Logger
from omnid.model import Command, Result
from omnid.store import journal, outbox
from omnid.store.interface import ATTEMPT, NOTE, Reader, Store, Taken, Tx

COMMAND = "command"
"""The kind of the note that keeps a command, and who sent it."""
CANCEL = "cancel"
"""The kind of the note that keeps a cancel."""
BACK = "back"
"""The kind of the note of a command that is to go back, and never runs."""
OWED_MAX = 100_000
"""How many results wait for one daemon at most; nothing new comes while the broker is away, so it stays far below.

Beyond them, where nothing can be sent to one daemon whose commands still come, the oldest goes, and the log says so.
"""
NOTES_MAX = 1_000_000
"""The command's own note is no executor's, and no limit holds for it."""
PAGE_MAX = 500


class Begun(Struct, frozen=True):
    """An attempt that was begun, and who wants its result."""

    daemon: str
    command: Command


class _Sender(Struct, frozen=True):
    """The part of `Begun` that says who wants the result."""

    daemon: str


_sender = msgspec.json.Decoder(_Sender)


class Open(NamedTuple):
    """An attempt that has begun and not ended."""

    begun: Begun
    cancelled: bool
    """Whether its daemon wants it to end."""
    back: bool = False
    """Whether it counts as begun only so that it can be given back."""


class Settled(NamedTuple):
    """What became of a result."""

    counted: bool
    daemon: str = ""
    dropped: Sequence[str] = ()
    """The attempts whose results made room for it; their daemon will never have them."""


class Ledger:
    """See the module; all that it writes is synced to the disk on return."""

    def __init__(self, store: Store, log: Logger) -> None:
        self._store = store
        self._log = log

    async def begin(self, batch: Sequence[Begun], *, back: bool = False) -> list[Begun]:
        """Writes down those that aren't known, and gives them: only they may be started, or with `back` given back."""
        return await self._store.write(lambda tx: [one for one in batch if _begin(tx, one, back=back)])

    async def cancel(self, attempt_id: str) -> None:
        """Writes down that an attempt is to end; nothing happens where it isn't open."""
        await self._store.write(lambda tx: _cancel(tx, attempt_id))

    async def withdraw(self, begun: Begun, result: Result) -> bool:
        """Ends an attempt before it begins, so that it never does, and queues its result; False where it is known."""
        return (await self._store.write(lambda tx: _withdraw(tx, begun, result), then=self._tell)).counted

    async def open(self) -> list[Open]:
        """Gives the attempts that have begun and not ended, in the order of their begin."""
        found: list[Open] = []
        after = 0
        while page := await self._store.read(lambda reader, after=after: _open(reader, after)):
            after = page[-1][0]
            found += [one for _, one in page]
        return found

    async def settle(self, result: Result) -> bool:
        """Ends an attempt, and queues its result for whoever sent it; False where it had ended."""
        return (await self._store.write(lambda tx: _settle(tx, result), then=self._tell)).counted

    def _tell(self, settled: Settled) -> None:
        if settled.dropped:
            self._log.error("results_dropped", daemon=settled.daemon, attempts=settled.dropped, most=OWED_MAX)

    async def owed(self) -> int:
        """Gives how many results wait for their broker's confirmation."""
        return sum(one.rows for one in await self._store.read(outbox.waiting))

    async def forget(self, before_ms: int, keep_max: int, keep: Collection[str] = ()) -> list[str]:
        """Forgets ended attempts that began before a time, and the oldest beyond `keep_max`; gives their ids.

        Once it is forgotten, a command that comes again would be done again; `keep` are those that have come. A page at
        a time: to be called until it gives nothing.
        """
        return await self._store.write(lambda tx: _forget(tx, before_ms, keep_max, keep))


def _begin(tx: Tx, begun: Begun, *, back: bool = False) -> bool:
    command = begun.command
    fields = {
        "task_id": command.task_id,
        "number": command.number,
        "executor": command.executor,
        "idempotent": 1 if command.idempotent else None,
        "started_at_ms": tx.now_ms,
    }
    try:
        tx.create(ATTEMPT, command.attempt_id, fields)
    except Taken:
        return False
    note = {"attempt_id": command.attempt_id, "kind": COMMAND, "body": begun}
    tx.create(NOTE, journal.note_id(command.attempt_id, 1), note)
    if back:
        journal.add_note(tx, command.attempt_id, BACK, True, notes_max=NOTES_MAX)
    return True


def _withdraw(tx: Tx, begun: Begun, result: Result) -> Settled:
    return _settle(tx, result) if _begin(tx, begun) else Settled(False)


def _cancel(tx: Tx, attempt_id: str) -> None:
    head = tx.one("attempt_head", attempt_id)
    if head is not None and head[4] is None and not journal.notes(tx, attempt_id, CANCEL):
        journal.add_note(tx, attempt_id, CANCEL, True, notes_max=NOTES_MAX)


def _open(reader: Reader, after: int) -> list[tuple[int, Open]]:
    found: list[tuple[int, Open]] = []
    for row in reader.all("open_attempts", after, PAGE_MAX):
        attempt_id = journal.attempt_of(row).id
        begun = _begun(reader, attempt_id)
        if begun is not None:
            cancelled, back = (bool(journal.notes(reader, attempt_id, kind)) for kind in (CANCEL, BACK))
            found.append((row[0], Open(begun, cancelled, back)))
    return found


def _begun(reader: Reader, attempt_id: str) -> Begun | None:
    notes = journal.notes(reader, attempt_id, COMMAND)
    return msgspec.convert(notes[0], Begun) if notes else None


def _settle(tx: Tx, result: Result) -> Settled:
    head = tx.one("attempt_head", result.attempt_id)
    note = None if head is None or head[4] is not None else tx.one("notes_of", result.attempt_id, COMMAND)
    if head is None or note is None:
        return Settled(False)
    journal.end_attempt(tx, head, {"ended_at_ms": tx.now_ms, "outcome": result.outcome})
    daemon = _sender.decode(note[0]).daemon
    dropped = [str(outbox.delivery_of(row).subject) for row in outbox.pushed_out(tx, daemon, OWED_MAX)]
    outbox.put(tx, daemon, "result", result.attempt_id, result, rows_max=OWED_MAX)
    return Settled(True, daemon, dropped)


def _forget(tx: Tx, before_ms: int, keep_max: int, keep: Collection[str]) -> list[str]:
    row = tx.one("ledger_beyond", keep_max)
    before_ord = max(before_ms << 16, 0 if row is None else row[0] + 1)
    gone: list[str] = [id for (id,) in tx.all("ledger_ended", before_ord, PAGE_MAX + len(keep)) if id not in keep]
    for id in gone:
        tx.forget(NOTE, *(note for (note,) in tx.all("note_ids", id)))
    tx.forget(ATTEMPT, *gone)
    return gone
