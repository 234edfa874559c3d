"""What clients see of the past: output, reasons, the log, the state as it was, and the findings of doctor."""

from collections.abc import Sequence
from functools import partial

import anyio
import msgspec

from omnid import platform
from omnid.api.shapes import (
    Doctor as DoctorAnswer,
)
from omnid.api.shapes import (
    Empty,
    Finding,
    Log,
    LogPart,
    Operation,
    Operations,
    OperationsPage,
    Replay,
    Replayed,
    WhyAnswer,
)
from omnid.api.views import LAST_ORD, Views, by_state
from omnid.errors import OmnidError, Rejected
from omnid.flow.caller import Caller, find_task
from omnid.flow.context import Context
from omnid.flow.doctor import Doctor
from omnid.flow.gates import Gates
from omnid.flow.present import is_present
from omnid.model import Attempt, Change, Problem, Task
from omnid.store import journal
from omnid.store.interface import Reader, tally_key
from omnid.store.log import HLC_COUNTER_BITS, hlc_wall_ms
from omnid.store.replay import change_of

LOOK_AGAIN_S = 0.2
"""How often the file is looked at while somebody follows it: files tell nobody that they grow. Its end is told."""
FIELD_CHARS_MAX = 2_000
PROBE_S_MAX = 15.0
SCAN_MAX, SCAN_PAGE = 20_000, 1_000
"""How many entries are looked at for one page of an agent's, and how many at a time."""


class JournalViews:
    """Builds what clients see of the past."""

    def __init__(self, context: Context, gates: Gates, views: Views, doctor: Doctor) -> None:
        self._context = context
        self._gates = gates
        self._views = views
        self._doctor = doctor

    def why(self, reader: Reader, caller: Caller, task_id: str) -> WhyAnswer:
        """Says why the task is where it is; raises Rejected(`unknown_task`)."""
        task = journal.need_task(reader, task_id)
        last = _attempt(reader, task, task.attempt)
        text = self._views.sentence(reader, caller, task, last)
        chosen = None if task.route is None else msgspec.to_builtins(task.route)
        return WhyAnswer(task.name, task.state, text, chosen if last is None else last.route)

    async def log(self, caller: Caller, params: Log) -> LogPart:
        """Gives a piece of an attempt's output; waits for more where the attempt runs."""
        store, spool = self._context.store, self._context.spool
        task = await store.read(lambda reader: find_task(reader, params.task, caller))
        number = params.attempt or task.attempt
        attempt = await store.read(partial(_attempt, task=task, number=number))
        if attempt is None:
            if params.attempt is None:
                return LogPart("", params.offset_bytes, 0, True)
            raise Rejected("unknown_attempt", number=number, task=task.name, last=task.attempt)
        data = await spool.read(attempt.id, params.offset_bytes, params.limit_bytes)
        if params.wait_s and not data and attempt.ended_at_ms is None:
            attempt, data = await self._more(params, task, attempt)
        if not data and params.offset_bytes == 0 and attempt.output:
            return LogPart(attempt.output, len(attempt.output.encode()), number, True)
        return self._part(params, attempt, data)

    async def printed_bytes(self, attempt_id: str) -> int:
        """Gives how much of an attempt's output there is to read."""
        return await self._context.spool.size_bytes(attempt_id)

    async def _more(self, params: Log, task: Task, attempt: Attempt) -> tuple[Attempt, bytes]:
        """Waits until the attempt has printed more or ended, for at most `wait_s`; gives it as it is then."""
        context, watch = self._context, self._context.watch
        data = b""
        event = watch.event(task.id)
        changed = True
        try:
            with anyio.move_on_after(params.wait_s):
                while not data:
                    if changed:
                        # First whether it has ended, then what it printed: else its last words could be missed.
                        attempt = await context.store.read(partial(_again, attempt=attempt)) or attempt
                    data = await context.spool.read(attempt.id, params.offset_bytes, params.limit_bytes)
                    if data or attempt.ended_at_ms is not None:
                        break
                    with anyio.move_on_after(LOOK_AGAIN_S):
                        await event.wait()
                    changed = event.is_set()
                    if changed:
                        event = watch.event(task.id)
        finally:
            watch.forget(task.id, event)
        return attempt, data

    def _part(self, params: Log, attempt: Attempt, data: bytes) -> LogPart:
        ended = attempt.ended_at_ms is not None
        text, used = decode_piece(data, whole=ended and len(data) < params.limit_bytes)
        last = ended and len(data) < params.limit_bytes
        return LogPart(text, params.offset_bytes + used, attempt.number, last)

    async def operations(self, caller: Caller, params: Operations) -> OperationsPage:
        """Gives a part of the log."""
        return await self._context.store.read(partial(_operations, caller=caller, params=params))

    async def replay(self, params: Replay) -> Replayed:
        """Rebuilds the state as it was, in memory, and shows it."""
        until = params.until_seq
        if until is None:
            if params.until_ms is None:
                detail = "replay needs `until_seq` or `until_ms`"
                raise Rejected("bad_request", detail=detail, where="the parameters")
            bound = min((params.until_ms + 1) << HLC_COUNTER_BITS, LAST_ORD)
            row = await self._context.store.read(lambda reader: reader.one("seq_before", bound))
            until = row[0] if row else 0
        async with self._doctor.state_at(min(until, LAST_ORD)) as replica:
            rows = replica.reader.all("tasks_page", LAST_ORD, params.limit)
            tally = by_state({tally_key(row[0], row[1]): row[2] for row in replica.reader.all("count_by_state")})
            at_ms = hlc_wall_ms(replica.hlc) if replica.hlc else None
            return Replayed(replica.seq, at_ms, tally, [self._views.brief(row, now=False) for row in rows])
        raise AssertionError("nothing hides an exception here")

    async def examine(self, config_problems: Sequence[Problem]) -> DoctorAnswer:
        """Does all checks of doctor."""
        report = await self._doctor.examine()
        context = self._context
        free_bytes = platform.free_bytes(context.config.state.dir)
        findings = [
            _finding("database", report.damage, "no damage found", "Restore a backup."),
            _finding(
                "log",
                report.differences,
                f"{report.entries} entries add up to {report.rows} rows",
                "Keep the database for a report, and restore a backup.",
            ),
            _finding(
                "disk",
                [] if free_bytes >= context.config.store.free_bytes_min else [f"only {free_bytes} bytes are free"],
                f"{free_bytes >> 20} MiB are free",
                "Free some space, or new tasks are refused.",
            ),
            _finding("config", [p.what for p in config_problems], "fine", "Correct the config file."),
            *await self.executors(),
        ]
        return DoctorAnswer(all(finding.ok for finding in findings), findings)

    async def check(self, _caller: Caller, _params: Empty) -> DoctorAnswer:
        """Probes every executor; that of an MCP server begins a session with it."""
        findings = await self.executors()
        return DoctorAnswer(all(one.ok for one in findings), findings)

    async def executors(self) -> list[Finding]:
        """Probes every executor, side by side; the gates follow what is found."""
        wrong: dict[str, str] = {}

        async def probe(name: str) -> None:
            try:
                error = await self._gates.probe(name, PROBE_S_MAX)
            except OmnidError as unwritten:
                error = unwritten
            if error is not None:
                wrong[name] = error.what

        context = self._context
        names = sorted(name for name in context.executors if is_present(context.config, name))
        async with anyio.create_task_group() as group:
            for name in names:
                group.start_soon(probe, name)
        do = "Mend it; its gate opens by itself once it works again (`omnictl status` says when it is tried)."
        return [_finding(f"executor {name}", [wrong[name]] if name in wrong else [], "works", do) for name in names]


def decode_piece(data: bytes, *, whole: bool) -> tuple[str, int]:
    r"""Decodes a piece of output; gives the text and how many bytes it stands for.

    A character that the piece cuts in two is left for the next one, unless the piece is the `whole` rest. What is no
    UTF-8 becomes ``\xNN``.
    """
    used = len(data)
    if not whole:
        for back in range(1, min(4, used) + 1):
            lead = data[-back]
            if lead >= 0xC0:
                need = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
                used -= back if back < need else 0
                break
            if lead < 0x80:
                break
    if used == 0:
        used = len(data)
    return data[:used].decode(errors="backslashreplace"), used


def _finding(name: str, wrong: Sequence[str], fine: str, do: str) -> Finding:
    return Finding(name, not wrong, "; ".join(wrong) or fine, do if wrong else None)


def _attempt(reader: Reader, task: Task, number: int) -> Attempt | None:
    row = reader.one("attempt_by_number", task.id, number)
    return None if row is None else journal.attempt_of(row)


def _again(reader: Reader, *, attempt: Attempt) -> Attempt | None:
    row = reader.one("attempt_by_number", attempt.task_id, attempt.number)
    return None if row is None else journal.attempt_of(row)


def _operations(reader: Reader, *, caller: Caller, params: Operations) -> OperationsPage:
    """Gives a part of the log; an agent gets what concerns the tasks of its own origin."""
    since = params.since
    if params.since_ms is not None:
        row = reader.one("seq_before", min(params.since_ms << HLC_COUNTER_BITS, LAST_ORD))
        since = max(since, row[0] if row else 0)
    if params.task is None and caller.role == "agent":
        return _own_operations(reader, caller.origin, since, params.limit)
    if params.task is None:
        rows = reader.all("changes_page", since, LAST_ORD, params.limit + 1)
    else:
        rows = _of_task(reader, params.task, caller, since, params.limit + 1)
    found = [_operation(change_of(row)) for row in rows[: params.limit]]
    return OperationsPage(found, found[-1].seq if len(rows) > params.limit else None)


def _own_operations(reader: Reader, origin: str, since: int, limit: int) -> OperationsPage:
    """Gives the next entries about tasks of an origin, their attempts and notes; a page may hold few of them."""
    found: list[Operation] = []
    owners: dict[str, str | None] = {}
    for _ in range(0, SCAN_MAX, SCAN_PAGE):
        rows = reader.all("changes_page", since, LAST_ORD, SCAN_PAGE)
        for row in rows:
            since = row[0]
            if _owner(reader, row[4], row[5], owners) == origin:
                found.append(_operation(change_of(row)))
                if len(found) == limit:
                    return OperationsPage(found, since)
        if len(rows) < SCAN_PAGE:
            return OperationsPage(found, None)
    return OperationsPage(found, since)


def _owner(reader: Reader, collection: str, id: str, owners: dict[str, str | None]) -> str | None:
    """Gives the origin of the task that an entry is about; None: it is about no task."""
    if collection not in ("task", "attempt", "note"):
        return None
    # A note is named after its attempt.
    key = id if collection == "task" else id.partition("/")[0]
    if key not in owners:
        row = reader.one("parent_of" if collection == "task" else "origin_of_attempt", key)
        owners[key] = None if row is None else row[-1]
    return owners[key]


def _of_task(reader: Reader, ref: str, caller: Caller, since: int, limit: int) -> list[Sequence[object]]:
    task = find_task(reader, ref, caller)
    if caller.role == "agent" and task.origin != caller.origin:
        raise Rejected("other_origin", task=task.name, origin=caller.origin, action="operations")
    rows = reader.all("changes_of", "task", task.id, since, limit)
    for (attempt_id,) in reader.all("attempt_ids", task.id):
        rows += reader.all("changes_of", "attempt", attempt_id, since, limit)
        for (note_id,) in reader.all("note_ids", attempt_id):
            rows += reader.all("changes_of", "note", note_id, since, limit)
    return sorted(rows, key=lambda row: row[0])[:limit]


def _operation(change: Change) -> Operation:
    fields = {
        name: value if not isinstance(value, str) or len(value) <= FIELD_CHARS_MAX else value[:FIELD_CHARS_MAX] + "…"
        for name, value in change.fields.items()
    }
    return Operation(change.seq, hlc_wall_ms(change.hlc), change.collection, change.id, change.kind, fields)
