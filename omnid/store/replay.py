"""The log read again: as operations for people, as a database rebuilt from nothing, and compared with the tables."""

from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import apsw
import msgspec

from omnid.errors import Rejected
from omnid.model import Change
from omnid.states import TERMINAL
from omnid.store import journal
from omnid.store.calls import derive_spend
from omnid.store.interface import COLLECTIONS, Reader, Row
from omnid.store.log import column_values, decode_body, decode_heads, encode_heads
from omnid.store.migrate import migrate
from omnid.store.queries import columns_of, insert_sql, queries, update_sql
from omnid.store.sqlite import SqliteReader

PAGE_MAX = 1_000
DIFFERENCES_MAX = 20


def change_of(row: Row) -> Change:
    """Makes an entry of a row of `changes_page`."""
    body = decode_body(row[7])
    fields: dict[str, Any] = {name: msgspec.json.decode(raw) for name, raw in body.f.items()}
    seq, hlc, node, incarnation, collection, id, kind = row[:7]
    return Change(seq, hlc, node, incarnation, collection, id, kind, fields, body.p)


class Replica:
    """A database in memory (or a file) that a log is applied to, entry by entry."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or Path(":memory:")
        self.connection = apsw.Connection(str(self._path))
        self.connection.pragma("journal_mode", "off")
        self.connection.pragma("synchronous", "off")
        migrate(self.connection, self._path)
        self.reader = SqliteReader(self.connection)
        self.seq = 0
        self.hlc = 0

    def apply(self, rows: list[Row]) -> None:
        """Applies rows of `changes_page`; raises Rejected(`replay_mismatch`) where an entry can't follow."""
        try:
            with self.connection:
                for row in rows:
                    self._apply(row)
        except (apsw.Error, msgspec.DecodeError) as error:
            raise Rejected("replay_mismatch", detail=f"after entry {self.seq}: {error}") from error

    def _apply(self, row: Row) -> None:
        seq, hlc, _, _, name, id, kind, text = row
        collection = COLLECTIONS.get(name)
        if collection is None:
            raise Rejected("replay_mismatch", detail=f"entry {seq} is of an unknown collection {name}")
        body = decode_body(text)
        execute = self.connection.execute
        if kind == "create":
            columns = column_values(collection, body)
            execute(insert_sql(name, ("ord", "id", *columns)), (hlc, id, *columns.values()))
        elif kind == "delete":
            execute(queries()[f"delete_{name}"], (id,))
        else:
            found = self.reader.one(f"heads_{name}", id)
            if found is None:
                raise Rejected("replay_mismatch", detail=f"entry {seq} edits {name} {id}, which isn't there")
            self._edit(row, found)
        self.seq, self.hlc = seq, hlc

    def _edit(self, row: Row, found: Row) -> None:
        seq, hlc, _, _, name, id, _, text = row
        collection = COLLECTIONS[name]
        body = decode_body(text)
        ord, heads = found[0], decode_heads(found[1])
        for field, seen in body.p.items():
            if heads.get(field, ord) != seen:
                raise Rejected("replay_mismatch", detail=f"entry {seq} edits {name} {id}.{field} of another state")
        columns = column_values(collection, body)
        after: dict[str, int] = {**heads, **dict.fromkeys(body.p, int(hlc))}
        values = (*columns.values(), encode_heads(after), ord)
        self.connection.execute(update_sql(name, (*columns, "heads")), values)

    def keep_blob(self, digest: str, data: str) -> None:
        """Takes a large value over; raises Rejected(`replay_mismatch`) where it isn't what its digest says."""
        if sha256(data.encode()).hexdigest() != digest:
            raise Rejected("replay_mismatch", detail=f"the large value {digest} has other content")
        self.connection.execute(queries()["keep_blob"], (digest, data))

    def rows(self) -> int:
        """Counts the rows of all logged tables."""
        return sum(row[0] for name in COLLECTIONS for row in self.reader.all(f"count_{name}"))

    def close(self) -> None:
        """Lets go of the database."""
        self.connection.close()


class Difference(NamedTuple):
    """A row that the log and the tables don't agree on."""

    collection: str
    id: str
    detail: str


def digests_of(rows: list[Row]) -> set[str]:
    """Gives the digests of the large values that entries of the log speak of."""
    found: set[str] = set()
    for row in rows:
        if '_blob":"' in row[7]:
            fields = decode_body(row[7]).f
            found.update(msgspec.json.decode(raw) for name, raw in fields.items() if name.endswith("_blob"))
    return found


def apply_page(reader: Reader, replica: Replica, until: int) -> bool:
    """Applies the next page of the log up to a seq; tells whether there may be more."""
    rows = reader.all("changes_page", replica.seq, until, PAGE_MAX)
    replica.apply(rows)
    for digest in digests_of(rows):
        row = reader.one("blob_by_digest", digest)
        if row is not None:  # Of a row that is deleted again it may have gone.
            replica.keep_blob(digest, row[0])
    return len(rows) == PAGE_MAX


def compare_page(reader: Reader, replica: Replica, name: str, after: int) -> tuple[list[Difference], int | None]:
    """Compares the next page of a table with the replica; gives what differs and where to go on (None: at the end).

    Rows that changed after the replica's last entry, or were forgotten with their history since, are passed over.
    """
    mine = reader.all(f"page_{name}", after, PAGE_MAX)
    theirs = replica.reader.all(f"page_{name}", after, PAGE_MAX)
    bound = min((rows[-1][0] for rows in (mine, theirs) if len(rows) == PAGE_MAX), default=None)
    by_ord: dict[int, list[Row | None]] = {}
    for side, rows in enumerate((mine, theirs)):
        for row in rows:
            if bound is None or row[0] <= bound:
                by_ord.setdefault(row[0], [None, None])[side] = row
    found = [
        Difference(name, (a or b or ("", "?"))[1], _detail(name, a, b))
        for a, b in by_ord.values()
        if a != b and _is_settled(reader, replica, name, (a or b or ("", ""))[1], in_table=a is not None)
    ]
    return found, bound


def _detail(name: str, mine: Row | None, theirs: Row | None) -> str:
    if theirs is None or mine is None:
        return "is in the table only" if theirs is None else "is in the log only"
    columns = columns_of(COLLECTIONS[name])
    return "differs in " + ", ".join(c for c, a, b in zip(columns, mine, theirs, strict=True) if a != b)


def _is_settled(reader: Reader, replica: Replica, name: str, id: str, *, in_table: bool) -> bool:
    """Tells whether the row's last change is one that the replica has seen, so that a difference means something."""
    row = reader.one("last_change_of", name, id)
    last = row[0] if row else None
    return in_table if last is None else last <= replica.seq


def check_table(reader: Reader, name: str) -> list[str]:
    """Lets SQLite look for damage in one table; gives what it found."""
    found = [row[0] for row in reader.all(f"check_{name}")]
    return [] if found == ["ok"] else found


class _Derived(SqliteReader):
    """What `journal.refresh_lane` needs, on a replica."""

    def run(self, query: str, *args: Any) -> None:
        self._execute(self._queries[query], args)


def derive(replica: Replica, zone: ZoneInfo) -> None:
    """Computes anew what is not in the log: the queue, open dependencies, the index of labels, and what was spent.

    `zone` is that of the days in the table `spend`.
    """
    tables = _Derived(replica.connection)
    lanes: set[str] = set()
    with replica.connection:
        after = 0
        while rows := tables.all("derive_page", after, PAGE_MAX):
            for row in rows:
                after = row[0]
                _derive_row(tables, row, lanes)
        for lane in lanes:
            journal.refresh_lane(tables, lane)
        derive_spend(tables, zone)


def _derive_row(tables: _Derived, row: Row, lanes: set[str]) -> None:
    ord, id, state, lane, labels, work = row
    for label in journal.labels_of(labels):
        tables.run("add_label", label, ord)
    if state == "idle" and lane is None:
        tables.run("set_ready", 1, ord)
    elif state == "idle":
        lanes.add(lane)
    if state in TERMINAL or work is None:
        return
    for before_id in journal.work_of(work).after:
        before = journal.task_by_id(tables, before_id)
        if before is not None and before.state != "completed":
            tables.run("add_dependency", before_id, id)
